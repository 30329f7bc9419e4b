"""Whole fields of many generic records, all elements in a row: what a batch holds, without making the samples first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.alone import FILL, FILL_PALETTE, decoded
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.codec.field_reader import Bytes, Located, cut, scattered
from torchcell_cache.codec.generic import FIELD
from torchcell_cache.codec.layout import BOOL, DTYPES, Payload, TensorValue
from torchcell_cache.codec.values import (
    BASE,
    CONSTANT,
    DIFF,
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
    if found.dtype.any() or found.ndim.any() or not np.isin(found.encoding, (RAW, BASE, CONSTANT)).all():
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
    of_base = np.isin(found.encoding, (BASE, DIFF, PALETTE))
    if of_base.any() and not isinstance(reference, TensorValue):
        raise CorruptRecordError(f"{found.label} refers to the base graph, which has no such field")
    code, ndim = int(found.dtype.max()), int(found.ndim.max())
    own = found.encoding != BASE
    if isinstance(reference, TensorValue) and of_base.any():
        code, ndim = reference.dtype, reference.array.ndim
    if code not in DTYPES or (found.dtype[own] != code).any() or (found.ndim[own] != ndim).any():
        return None
    numbers = data.view("<i8")
    where = (found.at[:, None] + FIELD.size) // 8 + np.arange(ndim)
    shapes = numbers[np.where(own[:, None], where, 0)]
    if isinstance(reference, TensorValue) and of_base.any():
        shapes[~own] = reference.array.shape
        if bool((shapes[of_base] != reference.array.shape).any()):
            raise CorruptRecordError(f"{found.label} changes a base field of another shape or dtype")
    carrier = DTYPES[code].carrier
    extents = np.maximum(shapes, 1).astype(np.float64).prod(axis=1) * carrier.itemsize
    if bool((shapes < 0).any()) or float(extents.max()) > MAX_RECORD_BYTES:
        raise too_large(found.label, int(extents.max()), MAX_RECORD_BYTES)
    sizes = shapes.prod(axis=1)
    if code != BOOL and (found.encoding == RAW).all():
        if bool((found.length != sizes * carrier.itemsize).any()):
            raise CorruptRecordError(f"{found.label} has lengths that do not fit its shapes")
        return Column(code, shapes, cut(data, found.start, found.length).view(carrier))
    return Column(code, shapes, _elements(data, found, reference, code, shapes, sizes))


def _elements(
    data: Bytes, found: Located, reference: Payload | None, code: int, shapes: Int64Array, sizes: Int64Array
) -> npt.NDArray[Any]:
    """All elements, of records that are stored in different ways."""
    carrier, ptr = DTYPES[code].carrier, offsets(sizes)
    out = np.zeros(int(ptr[-1]), dtype=carrier.newbyteorder("="))
    in_base = np.isin(found.encoding, (BASE, DIFF, PALETTE))
    filled = np.isin(found.encoding, (FILL, FILL_PALETTE))
    together = code != BOOL and carrier.itemsize <= 8
    bits = out.view(f"u{min(carrier.itemsize, 8)}")
    for k in np.flatnonzero(in_base).tolist():
        assert isinstance(reference, TensorValue)
        out[ptr[k] : ptr[k + 1]] = reference.array.reshape(-1)
    if together and (rows := np.flatnonzero(filled)).size:
        if bool((found.length[rows] < 16).any()):
            raise CorruptRecordError(f"{found.label} has a malformed list of changes")
        element = data.view(f"<u{carrier.itemsize}")[found.start[rows] // carrier.itemsize]
        if bool((data.view("<u8")[found.start[rows] // 8] != element).any()):
            raise CorruptRecordError(f"{found.label} has a malformed first element")
        for k, one in zip(rows.tolist(), element, strict=True):
            bits[ptr[k] : ptr[k + 1]] = one
    if together and (rows := np.flatnonzero((in_base & (found.encoding != BASE)) | filled)).size:
        part, first = found.take(rows), np.where(filled[rows], 8, 0)
        part = replace(part, start=part.start + first, length=part.length - first)
        changes = scattered(data, part, carrier, sizes[rows])
        slots = changes.positions + np.repeat(ptr[:-1][rows], np.diff(changes.ptr))
        bits[slots] = changes.values.view(f"u{carrier.itemsize}")
    alone = ~(in_base | filled) if together else found.encoding != BASE
    for k in np.flatnonzero(alone).tolist():
        start, length = int(found.start[k]), int(found.length[k])
        field = StoredField(
            found.label,
            int(found.encoding[k]),
            code,
            int(data[found.at[k] + 3]),
            tuple(shapes[k].tolist()),
            0,
            length,
        )
        decoded_size(field, MAX_RECORD_BYTES)
        stored = memoryview(data[start : start + length].tobytes())
        base = reference if in_base[k] else None
        value = decoded(stored, field, base)
        assert isinstance(value, TensorValue)
        out[ptr[k] : ptr[k + 1]] = value.array.reshape(-1)
    return out
