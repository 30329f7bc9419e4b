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

HEAD = struct.Struct("<II")
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


def encode_field(value: Payload, base: Payload | None, mode: str) -> Encoded:
    """Encode one field: as the base graph's if it is equal to that, else in the shortest form, the lower code when equal."""
    if isinstance(value, bytes):
        return (BASE, 0, b"") if value == base else (RAW, 0, value)
    array, reference = value.array, None
    if mode != "full" and isinstance(base, TensorValue):
        reference = base.array if (base.dtype, base.array.shape) == (value.dtype, array.shape) else None
    if reference is not None and np.array_equal(as_bits(array), as_bits(reference)):
        return BASE, 0, b""
    if value.dtype == BOOL:
        # A bool tensor made by reinterpreting bytes may hold other bytes than 0 and 1; they all mean True.
        array = np.not_equal(array.view(np.uint8), 0)
    if value.dtype == BOOL and array.size > 8:
        best = (BITS, 0, np.packbits(array.reshape(-1), bitorder="little").tobytes())
    else:
        best = (RAW, 0, little_endian(array, value.dtype))
    if mode != "full" and value.dtype == BOOL:
        flat = array.reshape(-1)
        fill = 2 * int(np.count_nonzero(flat)) > flat.size
        rare = np.flatnonzero(flat != fill)
        if 2 * len(rare) < len(best[2]) and len(words := _words(rare)) < len(best[2]):
            best = (SPARSE, int(fill), words)
    if reference is not None:
        changed = as_bits(array) != as_bits(reference)
        positions = np.flatnonzero(changed.any(axis=1) if changed.ndim == 2 else changed)
        new = TensorValue(value.dtype, array.reshape(-1)[positions])
        best = differences(new, positions, len(best[2])) or best
    return best


def as_bits(array: Array) -> Array:
    """Flat view as unsigned integers, ``[n]``, or ``[n, 2]`` for 16-byte elements."""
    flat = array.reshape(-1)
    return flat.view(np.uint64).reshape(-1, 2) if flat.itemsize == 16 else flat.view(f"u{flat.itemsize}")


def little_endian(array: Array, dtype: int) -> bytes:
    """The elements as they are stored."""
    return array.astype(DTYPES[dtype].carrier, copy=False).tobytes()


def differences(
    new: TensorValue, at: Int64Array | bytes, limit: int, codes: tuple[int, int] = (DIFF, PALETTE)
) -> Encoded | None:
    """New elements at positions or at their gap code, if that takes less than ``limit`` bytes.

    An element takes its own bytes (DIFF), or one byte and a place in a table of the distinct ones (PALETTE).
    """
    count, size = len(new.array), new.array.itemsize
    if 3 * count >= limit:
        return None
    words = at if isinstance(at, bytes) else _words(at)
    best: Encoded | None = None
    payload = HEAD.pack(len(words) // 2, 0) + padded(words) + little_endian(new.array, new.dtype)
    if len(payload) < limit:
        best, limit = (codes[0], 0, payload), len(payload)
    bits = as_bits(new.array)
    if (
        not (2 <= size <= 8 and 0 < count <= PALETTE_LIMIT)
        or len(np.unique(bits[: 4 * MAX_ENTRIES])) > MAX_ENTRIES
    ):
        return best
    entries, numbers = np.unique(bits, return_inverse=True)
    if len(entries) > MAX_ENTRIES:
        return best
    table = padded(entries.astype(f"<u{size}", copy=False).tobytes())
    head = HEAD.pack(len(words) // 2, len(entries)) + padded(words)
    payload = head + table + numbers.astype(np.uint8).tobytes()
    return (codes[1], 0, payload) if len(payload) < limit else best


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
    num_words, entries = HEAD.unpack_from(stored) if len(stored) >= HEAD.size else (0, 1 << 31)
    end = HEAD.size + 2 * num_words
    first = end + -end % 8
    if first > len(stored) or any(stored[end:first]) or (entries and not palette):
        raise CorruptRecordError(f"{field.label} has a malformed list of changes")
    if palette:
        table, numbers = entries_of(stored[first:], entries, field)
        new = picked(table, np.frombuffer(numbers, dtype=np.uint8), field)
    elif (len(stored) - first) % DTYPES[field.dtype].carrier.itemsize == 0:
        new = native(stored[first:], field)
    else:
        raise CorruptRecordError(f"{field.label} has a malformed list of changes")
    done = 0
    for positions in _positions(stored[HEAD.size : end], flat.size, field.label):
        if done + len(positions) > len(new):
            raise CorruptRecordError(f"{field.label} changes more positions than it has new elements")
        flat[positions] = new[done : done + len(positions)]
        done += len(positions)
    if done != len(new):
        raise CorruptRecordError(f"{field.label} changes {done} positions and has {len(new)} new elements")


def entries_of(stored: memoryview, num_entries: int, field: StoredField) -> tuple[Array, memoryview]:
    """A table of distinct elements, and what follows it."""
    end = num_entries * DTYPES[field.dtype].carrier.itemsize
    first = end + -end % 8
    if not 0 < num_entries <= MAX_ENTRIES or first > len(stored) or any(stored[end:first]):
        raise CorruptRecordError(f"{field.label} has a malformed table of elements")
    return native(stored[:end], field), stored[first:]


def picked(entries: Array, numbers: npt.NDArray[np.uint8], field: StoredField) -> Array:
    """Elements by their numbers in a table."""
    if len(numbers) and int(numbers.max()) >= len(entries):
        raise CorruptRecordError(f"{field.label} refers to element {int(numbers.max())} of {len(entries)}")
    return entries[numbers]


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
