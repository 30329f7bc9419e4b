"""Fields of many generic records, each of all records together: where it lies, and what differs from the base field.

For batches, which need a field of all samples and no samples; :mod:`.columns` reads whole fields. All lengths are checked
before they are used; a record that does not fit raises the error that decoding it would raise.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.alone import FILL_PALETTE
from torchcell_cache.codec.delta_code import ESCAPE, decode_gaps_ragged
from torchcell_cache.codec.generic import FIELD, HEADER, KIND, MAX_NDIM, decode
from torchcell_cache.codec.layout import BOOL, DTYPES, Layout, Payload, TensorValue
from torchcell_cache.codec.values import BASE, DIFF, MAX_ENTRIES, PALETTE
from torchcell_cache.core.ragged import Int64Array, ascends, offsets
from torchcell_cache.errors import CorruptRecordError

_DIFF_HEAD_BYTES = 8

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """A field of many samples as what differs from the base field.

    Attributes:
        positions: Changed positions of the flattened tensor, ascending per sample, ``[nnz] int64``.
        values: The elements there, ``[nnz]`` of the base's carrier dtype.
        ptr: Where each sample starts, ``[num_samples + 1] int64``.
    """

    positions: Int64Array
    values: npt.NDArray[Any]
    ptr: Int64Array


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """Descriptors of one field in many records, each ``[n] int64``: where they lie and what they say."""

    label: str
    at: Int64Array
    encoding: Int64Array
    dtype: Int64Array
    ndim: Int64Array
    start: Int64Array
    length: Int64Array

    def among(self, *encodings: int) -> npt.NDArray[np.bool_]:
        """Which records have the field in one of some encodings, ``[n] bool``."""
        found: npt.NDArray[np.bool_] = self.encoding == encodings[0]
        for encoding in encodings[1:]:
            found |= self.encoding == encoding
        return found

    def take(self, rows: Int64Array | slice) -> Located:
        """Those of some records."""
        parts = (self.at, self.encoding, self.dtype, self.ndim, self.start, self.length)
        return Located(self.label, *(part[rows] for part in parts))


def changes_of(data: Bytes, found: Located, reference: Payload | None) -> Changes | None:
    """Differences of a located field from the base field; ``None`` if a record has it otherwise."""
    if not isinstance(reference, TensorValue) or reference.dtype == BOOL:
        return None
    carrier, size = DTYPES[reference.dtype].carrier, reference.array.size
    differs = found.among(DIFF, PALETTE) if reference.array.itemsize > 1 else found.encoding == DIFF
    if carrier.itemsize > 8 or not all_of(differs | (found.encoding == BASE)):
        return None
    shape, at = reference.array.shape, found.at[differs]
    if np.count_nonzero((found.ndim[differs] != len(shape)) | (found.dtype[differs] != reference.dtype)):
        return None
    stored = data.view("<i8")[(at[:, None] + FIELD.size) // 8 + np.arange(len(shape))]
    if not all_of(stored == np.array(shape, dtype=np.int64)):
        return None
    return scattered(data, found, carrier, np.full(len(found.at), size))


def locate(
    data: Bytes, starts: Int64Array, stops: Int64Array, layouts: Mapping[int, Layout]
) -> tuple[Bytes, Layout, list[Located]] | None:
    """The fields of records of one layout, and their bytes in whole words; ``None`` if the layouts differ.

    Raises:
        CorruptRecordError: If a record does not fit its descriptors.
    """
    layout = _common_layout(data, starts, stops, layouts)
    if layout is None or np.count_nonzero(starts % 8):
        return None
    if len(data) % 8:
        data = np.concatenate([data, np.zeros(-len(data) % 8, dtype=np.uint8)])
    words = data.view("<u4")
    at = starts + HEADER.size
    payload = np.zeros(len(starts), dtype=np.int64)
    out: list[Located] = []
    for label in layout.labels:
        if np.count_nonzero(at + FIELD.size > stops):
            raise CorruptRecordError(f"a record ends inside the descriptor of {label}")
        encoding, dtype, ndim = (data[at + k].astype(np.int64) for k in range(3))
        length = words[at // 4 + 1].astype(np.int64)
        if int(ndim.max()) > MAX_NDIM or np.count_nonzero(at + FIELD.size + 8 * ndim > stops):
            raise CorruptRecordError(f"{label} says {int(ndim.max())} dimensions")
        out.append(Located(label, at, encoding, dtype, ndim, payload.copy(), length))
        at = at + FIELD.size + 8 * ndim
        payload += (length + 7) // 8 * 8
    if np.count_nonzero(at + payload != stops):
        raise CorruptRecordError("payloads of a record do not fill it")
    for found in out:
        found.start[:] += at
    return data, layout, out


def _common_layout(
    data: Bytes, starts: Int64Array, stops: Int64Array, layouts: Mapping[int, Layout]
) -> Layout | None:
    """The layout all bodies name, ``None`` if they differ; ``decode`` finds the words for a header that is wrong."""
    lengths = stops - starts
    if int(lengths.min()) >= HEADER.size:
        heads = data[starts[:, None] + np.arange(HEADER.size)]
        ids, stated = heads[:, 8:].copy().view("<u8").ravel(), heads[:, 4:8].copy().view("<u4").ravel()
        if np.count_nonzero(ids != ids[0]):
            return None
        known = layouts.get(int(ids[0]))
        fields = 0 if known is None else len(known.keys)
        same = np.frombuffer(struct.pack("<BBH", KIND, 0, fields), dtype=np.uint8)
        if known is not None and all_of(stated == lengths) and all_of(heads[:, :4] == same):
            return known
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        decode(memoryview(data[start:stop].tobytes()), layouts, {})
    raise CorruptRecordError("a generic record has a header that does not fit it")


def scattered(data: Bytes, found: Located, carrier: np.dtype[Any], sizes: Int64Array) -> Changes:
    """Positions and new elements of records that each say what differs, in tensors of ``sizes`` elements."""
    label, size, differs = found.label, carrier.itemsize, found.encoding != BASE
    palette = found.among(PALETTE, FILL_PALETTE)
    if np.count_nonzero(np.where(differs, found.length < _DIFF_HEAD_BYTES, found.length > 0)):
        raise CorruptRecordError(f"{label} has a malformed list of changes")
    heads = data.view("<u4")
    num_words, num_entries = np.zeros((2, len(found.start)), dtype=np.int64)
    num_words[differs] = heads[found.start[differs] // 4]
    num_entries[differs] = heads[found.start[differs] // 4 + 1]
    if np.count_nonzero((num_entries > np.where(palette, MAX_ENTRIES, 0)) | (num_entries < palette)):
        raise CorruptRecordError(f"{label} has a malformed table of elements")
    first = _DIFF_HEAD_BYTES + (2 * num_words + 7) // 8 * 8
    table = (num_entries * size + 7) // 8 * 8
    rest = np.where(differs, found.length - first - table, 0)
    step = np.where(palette, 1, size)
    if np.count_nonzero((rest < 0) | (rest % step > 0)):
        raise CorruptRecordError(f"{label} has a malformed list of changes")
    word_ptr, ptr = offsets(num_words), offsets(rest // step)
    words = cut(data.view("<u2"), (found.start + _DIFF_HEAD_BYTES) // 2, num_words)
    ends = word_ptr[1:][num_words > 0] - 1
    if np.count_nonzero(words[ends] == ESCAPE):
        raise CorruptRecordError(f"positions of {label} end inside a gap")
    positions, position_ptr = decode_gaps_ragged(words, word_ptr)
    if np.count_nonzero(position_ptr != ptr):
        raise CorruptRecordError(f"{label} does not have as many new elements as positions")
    counts = np.diff(ptr)
    filled = counts > 0
    outside = positions[ptr[1:][filled] - 1] >= sizes[filled]
    if np.count_nonzero(outside) or not ascends(positions, ptr):
        raise CorruptRecordError(f"positions of {label} do not ascend within its elements")
    tails = (found.start + first) // size
    if not np.count_nonzero(palette):
        return Changes(positions, cut(data.view(f"<u{size}"), tails, counts).view(carrier), ptr)
    numbers = _numbers(data, found.start + first + table, ptr, palette, num_entries, label)
    places = np.repeat(tails, counts)
    places += numbers
    return Changes(positions, data.view(f"<u{size}")[places].view(carrier), ptr)


def _numbers(
    data: Bytes,
    starts: Int64Array,
    ptr: Int64Array,
    palette: npt.NDArray[np.bool_],
    num_entries: Int64Array,
    label: str,
) -> npt.NDArray[Any]:
    """Where each new element stands behind its record's first one: its number in the table, or its own number."""
    counts = np.diff(ptr)
    found = cut(data, starts[palette], counts[palette])
    insist_within(found, counts[palette], num_entries[palette], label)
    if all_of(palette):
        return found
    numbers = np.arange(int(ptr[-1])) - np.repeat(ptr[:-1], counts)
    numbers[np.repeat(palette, counts)] = found
    return numbers


def insist_within(numbers: npt.NDArray[Any], counts: Int64Array, num_entries: Int64Array, label: str) -> None:
    """Refuse numbers, ``counts`` of each record, that its table of elements does not have."""
    filled = counts > 0
    if len(numbers):
        largest = np.maximum.reduceat(numbers, offsets(counts)[:-1][filled])
        if np.count_nonzero(largest >= num_entries[filled]):
            raise CorruptRecordError(f"{label} refers to an element that its table does not have")


def all_of(flags: npt.NDArray[np.bool_]) -> bool:
    """``flags.all()`` of few flags, in a fifth of the time; ``np.count_nonzero`` is that for ``any``."""
    return bool(np.count_nonzero(flags) == flags.size)


def cut(array: npt.NDArray[Any], starts: Int64Array, counts: Int64Array) -> npt.NDArray[Any]:
    """``array[start : start + count]`` of every record, one after the other; slices cost less than indices."""
    spans = zip(starts.tolist(), (starts + counts).tolist(), strict=True)
    return np.concatenate([array[start:stop] for start, stop in spans]) if len(starts) else array[:0]
