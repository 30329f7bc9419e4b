"""Gap code: ascending unique positions as 16-bit words.

Each position is stored as its distance to the previous one (the first from 0). A distance ``g`` becomes
``g // 65535`` words of ``0xFFFF`` ("add 65,535, emit nothing") and the word ``g % 65535``. The running sum of the
words is therefore the position itself, so decoding is one cumulative sum and one comparison, on a CPU or a GPU.
A knock-out of three yeast genes removes about 2,300 of 2.5 million edges: 4.7 KB instead of 9.4 KB as int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, offsets

ESCAPE = 0xFFFF

UInt16Array = npt.NDArray[np.uint16]


def encode_gaps_ragged(
    positions: npt.NDArray[np.integer[Any]], ptr: Int64Array
) -> tuple[UInt16Array, Int64Array]:
    """Encode many ascending position lists at once, ``ptr`` are their offsets; words and offsets of these."""
    gaps = np.empty(len(positions), dtype=positions.dtype if positions.dtype.kind == "i" else np.int64)
    if len(gaps) == 0:
        return np.empty(0, dtype="<u2"), np.zeros(len(ptr), dtype=np.int64)
    np.subtract(positions[1:], positions[:-1], out=gaps[1:], casting="same_kind")
    starts = ptr[:-1][ptr[:-1] < ptr[1:]]
    gaps[starts] = positions[starts]
    if int(gaps.min()) < 0:
        raise ValueError("positions must be non-negative and ascending within each list")
    if int(gaps.max()) < ESCAPE:
        return gaps.astype("<u2"), ptr
    escapes, words = np.divmod(gaps, ESCAPE)
    shift = offsets(escapes)
    out = np.full(len(gaps) + int(shift[-1]), ESCAPE, dtype="<u2")
    out[np.arange(len(gaps)) + shift[1:]] = words
    return out, ptr + shift[ptr]


def decode_gaps_ragged(words: npt.NDArray[Any], ptr: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Decode many lists at once; the inverse of :func:`encode_gaps_ragged`: positions and offsets of these."""
    running = offsets(words)
    emits = words != ESCAPE
    escapes = np.flatnonzero(~emits)
    positions, out_ptr = running[1:], ptr
    if len(escapes):
        positions, out_ptr = positions[emits], ptr - np.searchsorted(escapes, ptr)
    counts = np.diff(out_ptr)
    return positions - np.repeat(running[ptr[:-1]], counts), out_ptr


def check_gaps_ragged(words: npt.NDArray[Any], ptr: Int64Array, size: int) -> int | None:
    """The first list that does not ascend within ``0..size - 1`` or ends inside a gap, ``None`` if all are sound."""
    running = offsets(words)
    filled = ptr[:-1] < ptr[1:]
    wrong = running[ptr[1:]] - running[ptr[:-1]] >= size
    wrong[filled] |= words[ptr[1:][filled] - 1] == ESCAPE
    # No distance, but at the start or behind an escape: the same position twice.
    again = np.flatnonzero(words == 0)
    owner = np.searchsorted(ptr, again, side="right") - 1
    wrong[owner[(again > ptr[owner]) & (words[again - 1] != ESCAPE)]] = True
    wrong &= filled
    return int(np.argmax(wrong)) if wrong.any() else None


def encode_gaps(positions: npt.NDArray[np.integer[Any]]) -> UInt16Array:
    """Encode one ascending unique position list ``[n]`` as ``[num_words] uint16``."""
    return encode_gaps_ragged(positions, np.array([0, len(positions)], dtype=np.int64))[0]


def decode_gaps(words: npt.NDArray[Any]) -> Int64Array:
    """Decode one list of words ``[num_words] uint16`` to positions ``[n] int64``."""
    return decode_gaps_ragged(words, np.array([0, len(words)], dtype=np.int64))[0]
