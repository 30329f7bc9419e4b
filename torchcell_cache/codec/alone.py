"""A tensor that no base field helps with, in less than its own bytes: encodings 17 to 20 of :mod:`.generic`.

Lossless to the bit: elements are compared and looked up as unsigned integers.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.layout import BOOL, DTYPES, Payload, TensorValue
from torchcell_cache.codec.values import (
    BITS,
    DIFF,
    HEAD,
    MAX_ENTRIES,
    PALETTE,
    RAW,
    SPARSE,
    Array,
    Encoded,
    StoredField,
    as_bits,
    decode_field,
    differences,
    entries_of,
    little_endian,
    native,
    padded,
    patched,
    picked,
)
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import CorruptRecordError

FILL, FILL_PALETTE, TABLE, NARROW = range(17, 21)

LEAST = 16
"""Bytes of a tensor that nothing makes shorter."""
_SAMPLE = 256
_MOST_SORTED = 1 << 20
"""Elements of which the distinct ones are looked for: sorting more takes too long."""


def allowed(dtype: int) -> tuple[int, ...]:
    """Encodings that tensors of a dtype may have, beside BASE and CONSTANT."""
    carrier = DTYPES[dtype].carrier
    if dtype == BOOL:
        return (RAW, BITS, SPARSE, DIFF)
    if carrier.itemsize == 1:
        return (RAW, DIFF, FILL, TABLE)
    if carrier.itemsize == 16:
        return (RAW, DIFF, FILL)
    return (RAW, DIFF, PALETTE, FILL, FILL_PALETTE, TABLE, *((NARROW,) if carrier.kind in "iu" else ()))


def encode_alone(value: TensorValue, limit: int) -> Encoded | None:
    """The shortest form of a tensor, not bool, if that takes less than ``limit`` bytes; the lower code when equal."""
    # Short enough: looking further takes longer than it saves.
    if limit <= LEAST or 4 * limit < value.array.nbytes:
        return None
    bits, size = as_bits(value.array), value.array.itemsize
    fill = _most_common(bits)
    changed = bits != fill
    positions = np.flatnonzero(changed.any(axis=1) if changed.ndim == 2 else changed)
    head = padded(fill.astype(f"<u{min(size, 8)}").tobytes())
    new = TensorValue(value.dtype, value.array.reshape(-1)[positions])
    best = differences(new, positions, limit - len(head), (FILL, FILL_PALETTE))
    if best is not None:
        best = (best[0], 0, head + best[2])
        limit = len(best[2])
    for code, payload in ((TABLE, _table(bits, fill, positions, limit)), (NARROW, _narrow(value, limit))):
        if payload is not None and len(payload) < limit:
            best, limit = (code, 0, payload), len(payload)
    return best


def _most_common(bits: Array) -> Array:
    """Zero, or the element that a sample shows to be more common, ``[]``, or ``[2]`` for 16-byte elements."""
    zero: Array = np.zeros(bits.shape[1:], dtype=bits.dtype)
    if bits.ndim == 2:
        return zero
    values, counts = np.unique(bits[:: len(bits) // _SAMPLE + 1], return_counts=True)
    found: Array = values[np.argmax(counts)]
    return found if found and np.count_nonzero(bits == found) > len(bits) - np.count_nonzero(bits) else zero


def _table(bits: Array, fill: Array, positions: Int64Array, limit: int) -> bytes | None:
    """Distinct elements and a number of each among them, if that can take less than ``limit`` bytes."""
    size, count = bits.itemsize, len(positions)
    if bits.ndim == 2 or count > _MOST_SORTED or 8 + size + len(bits) // 8 >= limit:
        return None
    new = bits[positions]
    if len(np.unique(new[:: count // _SAMPLE + 1])) > MAX_ENTRIES:
        return None
    entries, numbers = np.unique(new, return_inverse=True)
    if count < len(bits):
        at = int(np.searchsorted(entries, fill))
        entries, some = np.insert(entries, at, fill), numbers
        numbers = np.full(len(bits), at)
        numbers[positions] = some + (some >= at)
    width = bits_of(len(entries)) if len(entries) <= MAX_ENTRIES else 8
    if len(entries) > MAX_ENTRIES or 8 + size * len(entries) + len(bits) * width // 8 >= limit:
        return None
    table = padded(entries.astype(f"<u{size}", copy=False).tobytes())
    return HEAD.pack(len(entries), 0) + table + _packed(numbers.astype(np.uint8), width)


def bits_of(num_entries: int) -> int:
    """Bits per number of an entry: 0, 1, 2, 4 or 8."""
    return next(width for width in (0, 1, 2, 4, 8) if num_entries <= 1 << width)


def _packed(numbers: npt.NDArray[np.uint8], width: int) -> bytes:
    if width in (0, 8):
        return numbers.tobytes() if width else b""
    each = 8 // width
    whole = np.zeros(-(-len(numbers) // each) * each, dtype=np.uint8)
    whole[: len(numbers)] = numbers
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(width)
    return bytes(np.bitwise_or.reduce(whole.reshape(-1, each) << shifts, axis=1).astype(np.uint8))


def unpacked(packed: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.uint8]:
    """The numbers of 1, 2, 4 or 8 bits that whole bytes hold."""
    return packed if width == 8 else _NUMBERS[width][packed].view(np.uint8)


_NUMBERS = {
    width: (np.arange(256)[:, None] >> np.arange(0, 8, width) & (1 << width) - 1)
    .astype(np.uint8)
    .view(f"u{8 // width}")
    .ravel()
    for width in (1, 2, 4)
}


def _narrow(value: TensorValue, limit: int) -> bytes | None:
    """The least element and what to add to it, in fewer bytes per element, if that can take less than ``limit``."""
    array, size = value.array.reshape(-1), value.array.itemsize
    if NARROW not in allowed(value.dtype) or 8 + len(array) >= limit:
        return None
    low, high = int(array.min()), int(array.max())
    width = next((w for w in (1, 2, 4) if high - low < 1 << 8 * w), size)
    if width >= size or 8 + width * len(array) >= limit:
        return None
    least = array[np.argmin(array)].reshape(1)
    steps = (as_bits(array) - as_bits(least)).astype(f"<u{width}").tobytes()
    return padded(little_endian(least, value.dtype)) + steps


def decoded(stored: memoryview, field: StoredField, base: Payload | None) -> Payload:
    """Decode a payload of any encoding but BASE and CONSTANT; the result is fresh and writable.

    Raises:
        CorruptRecordError: If the content does not fit the descriptor.
    """
    if not FILL <= field.encoding <= NARROW:
        return decode_field(stored, field, base)
    count, size = math.prod(field.shape), DTYPES[field.dtype].carrier.itemsize
    first = max(8, size)
    flat: Array
    if len(stored) < first:
        raise CorruptRecordError(f"{field.label} has {len(stored)} bytes in encoding {field.encoding}")
    if field.encoding == TABLE:
        return TensorValue(field.dtype, _looked_up(stored, field, count).reshape(field.shape))
    if size < first and any(stored[size:first]):
        raise CorruptRecordError(f"{field.label} has a malformed first element")
    element = native(stored[:size], field)
    if field.encoding == NARROW:
        width = (len(stored) - first) // max(count, 1)
        if width not in (1, 2, 4) or width >= size or len(stored) != first + width * count:
            raise CorruptRecordError(
                f"{field.label} of {count} elements has {len(stored)} bytes of small numbers"
            )
        steps = np.frombuffer(stored[first:], dtype=f"<u{width}").astype(f"u{size}")
        flat = (as_bits(element) + steps).view(element.dtype)
    else:
        flat = np.repeat(element, count)
        patched(stored[first:], field, flat, field.encoding == FILL_PALETTE)
    return TensorValue(field.dtype, flat.reshape(field.shape))


def _looked_up(stored: memoryview, field: StoredField, count: int) -> Array:
    num_entries, reserved = HEAD.unpack_from(stored)
    entries, packed = entries_of(stored[HEAD.size :], -1 if reserved else num_entries, field)
    width = bits_of(num_entries)
    if len(packed) != -(-count * width // 8):
        raise CorruptRecordError(f"{field.label} of {count} elements has {len(packed)} bytes of numbers")
    numbers = np.zeros(count, dtype=np.uint8)
    if width:
        numbers = unpacked(np.frombuffer(packed, dtype=np.uint8), width)[:count]
    return picked(entries, numbers, field)
