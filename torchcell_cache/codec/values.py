"""How one field of a generic record becomes bytes and back; the layout is described in :mod:`.generic`.

Every choice is lossless to the bit: NaN payloads and -0.0 are compared as unsigned integers, never as values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.delta_code import ESCAPE, decode_gaps, encode_gaps
from torchcell_cache.codec.layout import BOOL, DTYPES, Payload, TensorValue
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import CorruptRecordError, RecordTooLargeError

RAW, BASE, BITS, SPARSE, DIFF = range(5)
PALETTE = 16
CONSTANT = 24
MAX_ENTRIES = 256
PALETTE_LIMIT = 1 << 16
"""Changes of one field up to which a palette is tried: finding the distinct elements of more takes too long."""

_DIFF_HEAD = struct.Struct("<II")
_CHUNK = 1 << 18

Array: TypeAlias = npt.NDArray[Any]
Encoded: TypeAlias = tuple[int, int, bytes]
"""Encoding, fill and payload."""


class StoredField(NamedTuple):
    """One descriptor with its payload's place in the body."""

    label: str
    encoding: int
    dtype: int
    fill: int
    shape: tuple[int, ...]
    start: int
    length: int


def padded(payload: bytes) -> bytes:
    """The payload with zeros up to a multiple of 8 bytes."""
    return payload + bytes(-len(payload) % 8)


def too_large(what: str, got: int, cap: int) -> RecordTooLargeError:
    """The error for anything beyond the cap."""
    return RecordTooLargeError(
        f"{what} takes {got:,} bytes, the cap is {cap:,}",
        fix="raise max_record_bytes, or drop fields in the processor",
    )


def equals_base(value: Payload, base: Payload | None, mode: str) -> bool:
    """Whether a value is stored as the base graph's: JSON whenever equal, tensors not in ``full`` mode."""
    if isinstance(value, bytes):
        return value == base
    reference = _reference(value, base) if mode != "full" else None
    return reference is not None and bool(np.array_equal(as_bits(value.array), as_bits(reference)))


def encode_field(value: Payload, base: Payload | None, mode: str) -> Encoded:
    """Encode one field that is not the base graph's; the shortest form wins, the lower code when equal."""
    if isinstance(value, bytes):
        return RAW, 0, value
    array, size = value.array, value.array.size
    if value.dtype == BOOL:
        # A bool tensor made by reinterpreting bytes may hold other bytes than 0 and 1; they all mean True.
        array = np.not_equal(array.view(np.uint8), 0)
    if value.dtype == BOOL and size > 8:
        best = (BITS, 0, np.packbits(array.reshape(-1), bitorder="little").tobytes())
    else:
        best = (RAW, 0, little_endian(array, value.dtype))
    if mode != "full":
        sparse = _sparse(array, len(best[2])) if value.dtype == BOOL else None
        best = sparse or best
        reference = _reference(value, base)
        if reference is not None:
            best = _differences(TensorValue(value.dtype, array), reference, len(best[2])) or best
    return best


def _reference(value: TensorValue, base: Payload | None) -> Array | None:
    alike = (
        isinstance(base, TensorValue) and base.dtype == value.dtype and base.array.shape == value.array.shape
    )
    return base.array if isinstance(base, TensorValue) and alike else None


def as_bits(array: Array) -> Array:
    """Flat view as unsigned integers, ``[n]``, or ``[n, 2]`` for 16-byte elements."""
    flat = array.reshape(-1)
    return flat.view(np.uint64).reshape(-1, 2) if flat.itemsize == 16 else flat.view(f"u{flat.itemsize}")


def little_endian(array: Array, dtype: int) -> bytes:
    """The elements as they are stored."""
    return array.astype(DTYPES[dtype].carrier, copy=False).tobytes()


def _sparse(array: Array, limit: int) -> Encoded | None:
    """Positions of the rarer value, if that takes less than ``limit`` bytes."""
    flat = array.reshape(-1)
    fill = 2 * int(np.count_nonzero(flat)) > flat.size
    positions = np.flatnonzero(flat != fill)
    if 2 * len(positions) >= limit:
        return None
    payload = _words(positions)
    return (SPARSE, int(fill), payload) if len(payload) < limit else None


def _differences(value: TensorValue, base: Array, limit: int) -> Encoded | None:
    """Positions and new elements where ``value`` differs from ``base``, if that takes less than ``limit`` bytes."""
    changed = as_bits(value.array) != as_bits(base)
    found = differences(value, np.flatnonzero(changed.any(axis=1) if changed.ndim == 2 else changed), limit)
    return None if found is None else (PALETTE if found[0] else DIFF, 0, found[1])


def differences(value: TensorValue, positions: Int64Array, limit: int) -> tuple[bool, bytes] | None:
    """Positions and elements of ``value`` there, if that takes less than ``limit`` bytes, and whether with a palette.

    An element takes its own bytes (DIFF), or one byte and a place in a table of the distinct ones (PALETTE).
    """
    size = value.array.itemsize
    words: bytes | None = None
    best: tuple[bool, bytes] | None = None
    if len(positions) * (2 + size) < limit:
        words = _words(positions)
        new = little_endian(value.array.reshape(-1)[positions], value.dtype)
        payload = _DIFF_HEAD.pack(len(words) // 2, 0) + padded(words) + new
        if len(payload) < limit:
            best, limit = (False, payload), len(payload)
    if not 2 <= size <= 8 or not 0 < 3 * len(positions) < min(limit, 3 * PALETTE_LIMIT + 1):
        return best
    bits = as_bits(value.array)[positions]
    if len(np.unique(bits[: 4 * MAX_ENTRIES])) > MAX_ENTRIES:
        return best
    entries, indices = np.unique(bits, return_inverse=True)
    if len(entries) > MAX_ENTRIES:
        return best
    words = _words(positions) if words is None else words
    table = padded(entries.astype(f"<u{size}", copy=False).tobytes())
    head = _DIFF_HEAD.pack(len(words) // 2, len(entries)) + padded(words)
    payload = head + table + indices.astype(np.uint8).tobytes()
    return (True, payload) if len(payload) < limit else best


def _words(positions: Int64Array) -> bytes:
    return encode_gaps(positions).astype("<u2", copy=False).tobytes()


def decoded_size(field: StoredField, max_bytes: int) -> int:
    """Check a payload's length against the shape; returns what decoding it will take, in bytes.

    Raises:
        RecordTooLargeError: If that is more than ``max_bytes``.
        CorruptRecordError: If the length cannot be right.
    """
    if field.dtype == 0:
        return field.length
    itemsize = DTYPES[field.dtype].carrier.itemsize
    # An empty tensor may name a huge extent beside its 0; numpy and torch still multiply the others.
    if math.prod(max(extent, 1) for extent in field.shape) * itemsize >= 1 << 63:
        raise CorruptRecordError(f"{field.label} says shape {field.shape}, more than any tensor can hold")
    count = math.prod(field.shape)
    if count * itemsize > max_bytes:
        raise too_large(field.label, count * itemsize, max_bytes)
    packed = field.dtype == BOOL and count > 8
    plain_length = -(-count // 8) if packed else count * itemsize
    if field.encoding in (RAW, BITS):
        fits = field.length == plain_length and packed == (field.encoding == BITS)
    else:
        fits = field.length < plain_length
    if not fits:
        raise CorruptRecordError(
            f"{field.label} of shape {field.shape} has {field.length} bytes in encoding {field.encoding}"
        )
    return count * itemsize


def decode_field(stored: memoryview, field: StoredField, base: Payload | None) -> Payload:
    """Decode a payload whose length :func:`decoded_size` accepted; the result is fresh and writable.

    Raises:
        CorruptRecordError: If the content does not fit the descriptor.
    """
    if field.dtype == 0:
        return bytes(stored)
    count = math.prod(field.shape)
    if field.encoding == RAW:
        flat = native(stored, field)
    elif field.encoding == BITS:
        packed = np.frombuffer(stored, dtype=np.uint8)
        if count % 8 and packed[-1] >> count % 8:
            raise CorruptRecordError(f"{field.label} has spare bits set")
        flat = np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)
    elif field.encoding == SPARSE:
        flat = np.full(count, bool(field.fill))
        for positions in _positions(stored, count, field.label):
            flat[positions] = not field.fill
    elif not isinstance(base, TensorValue) or (base.dtype, base.array.shape) != (field.dtype, field.shape):
        raise CorruptRecordError(f"{field.label} changes a base field of another shape or dtype")
    else:
        flat = base.array.reshape(-1).copy()
        patched(stored, field, flat, field.encoding == PALETTE)
    return TensorValue(field.dtype, flat.reshape(field.shape))


def native(stored: memoryview, field: StoredField) -> Array:
    """A fresh, writable, native-endian copy of stored elements."""
    carrier = DTYPES[field.dtype].carrier
    array = np.frombuffer(stored, dtype=carrier).astype(carrier.newbyteorder("="), copy=True)
    if field.dtype == BOOL and array.size and int(array.view(np.uint8).max()) > 1:
        raise CorruptRecordError(f"{field.label} holds a bool that is neither 0 nor 1")
    return array


def patched(stored: memoryview, field: StoredField, flat: Array, palette: bool) -> None:
    """Put the stored elements into a flat tensor."""
    num_words, entries = _DIFF_HEAD.unpack_from(stored) if len(stored) >= _DIFF_HEAD.size else (0, 1 << 31)
    end = _DIFF_HEAD.size + 2 * num_words
    first = end + -end % 8
    if first > len(stored) or any(stored[end:first]) or (entries and not palette):
        raise CorruptRecordError(f"{field.label} has a malformed list of changes")
    if palette:
        new = _looked_up(stored[first:], entries, field)
    elif (len(stored) - first) % DTYPES[field.dtype].carrier.itemsize == 0:
        new = native(stored[first:], field)
    else:
        raise CorruptRecordError(f"{field.label} has a malformed list of changes")
    done = 0
    for positions in _positions(stored[_DIFF_HEAD.size : end], flat.size, field.label):
        if done + len(positions) > len(new):
            raise CorruptRecordError(f"{field.label} changes more positions than it has new elements")
        flat[positions] = new[done : done + len(positions)]
        done += len(positions)
    if done != len(new):
        raise CorruptRecordError(f"{field.label} changes {done} positions and has {len(new)} new elements")


def _looked_up(stored: memoryview, num_entries: int, field: StoredField) -> Array:
    """New elements from their table and a byte each."""
    end = num_entries * DTYPES[field.dtype].carrier.itemsize
    first = end + -end % 8
    if not 0 < num_entries <= MAX_ENTRIES or first > len(stored) or any(stored[end:first]):
        raise CorruptRecordError(f"{field.label} has a malformed table of elements")
    indices = np.frombuffer(stored[first:], dtype=np.uint8)
    if len(indices) and int(indices.max()) >= num_entries:
        raise CorruptRecordError(f"{field.label} refers to element {int(indices.max())} of {num_entries}")
    return native(stored[:end], field)[indices]


def _positions(stored: memoryview, count: int, label: str) -> Iterator[Int64Array]:
    """Decode positions in chunks, so that a hostile record cannot make this take eight times its size."""
    if len(stored) % 2:
        raise CorruptRecordError(f"{label} has an odd number of position bytes")
    words = np.frombuffer(stored, dtype="<u2")
    if len(words) and int(words[-1]) == ESCAPE:
        raise CorruptRecordError(f"positions of {label} end inside a gap")
    offset, last = 0, -1
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK]
        positions = decode_gaps(part) + offset
        offset += int(part.sum(dtype=np.int64))
        if len(positions) == 0:
            continue
        if (
            int(positions[0]) <= last
            or int(positions[-1]) >= count
            or bool((positions[1:] <= positions[:-1]).any())
        ):
            raise CorruptRecordError(f"positions of {label} do not ascend within its {count} elements")
        last = int(positions[-1])
        yield positions
