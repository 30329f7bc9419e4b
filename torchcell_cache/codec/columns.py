"""Whole fields of many generic records, all elements in a row: what a batch holds, without making the samples first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.alone import FILL, FILL_PALETTE, NARROW, TABLE, bits_of, decoded, unpacked
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.codec.field_reader import Bytes, Located, all_of, cut, insist_within, scattered
from torchcell_cache.codec.generic import FIELD
from torchcell_cache.codec.layout import BOOL, DTYPES, Payload, TensorValue
from torchcell_cache.codec.values import (
    BASE,
    CONSTANT,
    DIFF,
    MAX_ENTRIES,
    PALETTE,
    RAW,
    StoredField,
    decoded_size,
    too_large,
)
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.errors import CorruptRecordError


class Column(NamedTuple):
    """A tensor field of many records: dtype code, each record's shape ``[n, ndim] int64``, all elements in a row."""

    dtype: int
    shapes: Int64Array
    array: npt.NDArray[Any]


def read_texts(data: Bytes, found: Located) -> list[bytes | int | None]:
    """The JSON of a field that is no tensor, of each record; an id for a constant, ``None`` for the base graph's.

    Raises:
        CorruptRecordError: If a descriptor does not fit.
    """
    if np.count_nonzero(found.dtype | found.ndim) or not all_of(found.among(RAW, BASE, CONSTANT)):
        raise CorruptRecordError(f"{found.label} says encoding {int(found.encoding.max())} of no tensor")
    spans = zip(found.encoding.tolist(), found.start.tolist(), found.length.tolist(), strict=True)
    texts = [(code, data[at : at + length].tobytes()) for code, at, length in spans]
    return [None if c == BASE else int.from_bytes(t, "little") if c == CONSTANT else t for c, t in texts]


def read_column(data: Bytes, found: Located, reference: Payload | None) -> Column | None:
    """A tensor field of many records; ``None`` if they differ in dtype or number of dimensions.

    Raises:
        CorruptRecordError: If a record does not fit its descriptors.
        RecordTooLargeError: If a record says that it is larger than any can be.
    """
    of_base = found.among(BASE, DIFF, PALETTE)
    needs_base = np.count_nonzero(of_base) > 0
    if needs_base and not isinstance(reference, TensorValue):
        raise CorruptRecordError(f"{found.label} refers to the base graph, which has no such field")
    code, ndim = int(found.dtype.max()), int(found.ndim.max())
    own = found.encoding != BASE
    if isinstance(reference, TensorValue) and needs_base:
        code, ndim = reference.dtype, reference.array.ndim
    if code not in DTYPES or np.count_nonzero(own & ((found.dtype != code) | (found.ndim != ndim))):
        return None
    numbers = data.view("<i8")
    where = (found.at[:, None] + FIELD.size) // 8 + np.arange(ndim)
    shapes = numbers[np.where(own[:, None], where, 0)]
    if isinstance(reference, TensorValue) and needs_base:
        shapes[~own] = reference.array.shape
        if np.count_nonzero(shapes[of_base] != reference.array.shape):
            raise CorruptRecordError(f"{found.label} changes a base field of another shape or dtype")
    carrier = DTYPES[code].carrier
    extents = np.maximum(shapes, 1).astype(np.float64).prod(axis=1) * carrier.itemsize
    if np.count_nonzero(shapes < 0) or float(extents.max()) > MAX_RECORD_BYTES:
        raise too_large(found.label, int(extents.max()), MAX_RECORD_BYTES)
    sizes = shapes.prod(axis=1)
    if code != BOOL and all_of(found.encoding == RAW):
        if np.count_nonzero(found.length != sizes * carrier.itemsize):
            raise CorruptRecordError(f"{found.label} has lengths that do not fit its shapes")
        return Column(code, shapes, cut(data, found.start, found.length).view(carrier))
    return Column(code, shapes, _elements(data, found, reference, code, shapes, sizes))


def _elements(
    data: Bytes, found: Located, reference: Payload | None, code: int, shapes: Int64Array, sizes: Int64Array
) -> npt.NDArray[Any]:
    """All elements, of records that are stored in different ways."""
    carrier, ptr = DTYPES[code].carrier, offsets(sizes)
    size, together = carrier.itemsize, code != BOOL and carrier.itemsize <= 8
    native, read = carrier.newbyteorder("="), _TOGETHER.get(int(found.encoding[0]))
    if together and read is not None and all_of(found.encoding == found.encoding[0]):
        return read(data, found, size, sizes).view(native)
    out = np.zeros(int(ptr[-1]), dtype=native)
    bits = out.view(f"u{min(size, 8)}")
    for encoding, read in _TOGETHER.items() if together else ():
        mine = found.encoding == encoding
        if np.count_nonzero(mine):
            _put(bits, mine, sizes, read(data, found.take(np.flatnonzero(mine)), size, sizes[mine]))
    in_base = found.among(BASE, DIFF, PALETTE)
    for k in np.flatnonzero(in_base).tolist():
        assert isinstance(reference, TensorValue)
        out[ptr[k] : ptr[k + 1]] = reference.array.reshape(-1)
    filled = found.among(FILL, FILL_PALETTE)
    if together and (rows := np.flatnonzero(filled)).size:
        for k, one in zip(rows.tolist(), _first_elements(data, found.take(rows), size), strict=True):
            if one:
                bits[ptr[k] : ptr[k + 1]] = one
    if together and (rows := np.flatnonzero((in_base & (found.encoding != BASE)) | filled)).size:
        part, first = found.take(rows), np.where(filled[rows], 8, 0)
        part = replace(part, start=part.start + first, length=part.length - first)
        changes = scattered(data, part, carrier, sizes[rows])
        slots = changes.positions + np.repeat(ptr[:-1][rows], np.diff(changes.ptr))
        bits[slots] = changes.values.view(f"u{size}")
    alone = found.encoding != BASE
    if together:
        alone &= ~found.among(DIFF, PALETTE, FILL, FILL_PALETTE, *_TOGETHER)
    for k in np.flatnonzero(alone).tolist():
        start, length = int(found.start[k]), int(found.length[k])
        said = int(found.encoding[k]), code, int(data[found.at[k] + 3]), tuple(shapes[k].tolist())
        field = StoredField(found.label, *said, 0, length)
        decoded_size(field, MAX_RECORD_BYTES)
        stored = memoryview(data[start : start + length].tobytes())
        value = decoded(stored, field, reference if in_base[k] else None)
        assert isinstance(value, TensorValue)
        out[ptr[k] : ptr[k + 1]] = value.array.reshape(-1)
    return out


def _first_elements(data: Bytes, found: Located, size: int) -> npt.NDArray[Any]:
    """The leading element of each record, zeros up to 8 bytes behind it."""
    if np.count_nonzero(found.length < 8):
        raise CorruptRecordError(f"{found.label} has {int(found.length.min())} bytes of a leading element")
    element = data.view(f"<u{size}")[found.start // size]
    if np.count_nonzero(data.view("<u8")[found.start // 8] != element):
        raise CorruptRecordError(f"{found.label} has a malformed first element")
    return element


def _from_tables(data: Bytes, found: Located, size: int, sizes: Int64Array) -> npt.NDArray[Any]:
    """Elements of records that each have a table of the distinct ones, and a number in it per element."""
    label, heads = found.label, data.view("<u4")
    long = found.length >= 8
    num_entries = heads[np.where(long, found.start // 4, 0)].astype(np.int64)
    if not all_of(long & (num_entries > 0) & (num_entries <= MAX_ENTRIES)):
        raise CorruptRecordError(f"{label} has a malformed table of elements")
    first, width = 8 + (num_entries * size + 7) // 8 * 8, _WIDTHS[num_entries]
    packed = -(-sizes * width // 8)
    if np.count_nonzero(heads[found.start // 4 + 1] | (found.length != first + packed)):
        raise CorruptRecordError(f"{label} has a table and not one number per element")
    numbers = np.zeros(int(sizes.sum()), dtype=np.uint8)
    for each in set(width.tolist()) - {0}:
        rows = width == each
        whole = unpacked(cut(data, (found.start + first)[rows], packed[rows]), each)
        used = cut(whole, offsets(packed[rows] * 8 // each)[:-1], sizes[rows])
        _put(numbers, rows, sizes, used)
    insist_within(numbers, sizes, num_entries, label)
    places = numbers.astype(np.int64)
    places += np.repeat(found.start // size + 8 // size, sizes)
    return data.view(f"<u{size}").take(places)


def _from_steps(data: Bytes, found: Located, size: int, sizes: Int64Array) -> npt.NDArray[Any]:
    """Elements of records that each have the least one, and what to add to it per element."""
    least, width = _first_elements(data, found, size), (found.length - 8) // np.maximum(sizes, 1)
    fits = (width == 1) | (width == 2) | (width == 4)
    if not all_of(fits & (width < size) & (found.length == 8 + width * sizes)):
        raise CorruptRecordError(f"{found.label} has not one small number per element")
    steps = np.zeros(int(sizes.sum()), dtype=f"u{size}")
    for each in set(width.tolist()):
        rows = width == each
        _put(steps, rows, sizes, cut(data, found.start[rows] + 8, (width * sizes)[rows]).view(f"<u{each}"))
    steps += np.repeat(least, sizes)
    return steps


def _put(
    out: npt.NDArray[Any], rows: npt.NDArray[np.bool_], sizes: Int64Array, values: npt.NDArray[Any]
) -> None:
    """Write the elements of some records, ``sizes`` of each, into those of all."""
    out[slice(None) if all_of(rows) else np.repeat(rows, sizes)] = values


_WIDTHS = np.array([bits_of(number) for number in range(MAX_ENTRIES + 1)])
_TOGETHER = {TABLE: _from_tables, NARROW: _from_steps}
