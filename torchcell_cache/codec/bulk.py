"""Bodies of many generic records at once, for samples that differ in arrays and not in their layout.

The bytes are those of :func:`torchcell_cache.codec.generic.encode`, sample by sample; only the way there differs: positions
of a whole chunk are gap-coded in one pass, and a sample costs one join of slices.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.codec.fields import BASE, DIFF, RAW, padded, too_large
from torchcell_cache.codec.gap import encode_gaps_ragged
from torchcell_cache.codec.generic import FIELD, HEADER, KIND, MAX_NDIM, MODES
from torchcell_cache.codec.layout import BOOL, DTYPES, Layout, Payload, TensorValue
from torchcell_cache.errors import SettingError
from torchcell_cache.record import Int64Array

Parts = list[tuple[bytes, bytes, int]]
"""Per sample: descriptor, padded payload, decoded bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedField:
    """A field that is the base graph's own in every sample."""


@dataclass(frozen=True, slots=True, eq=False)
class ChangedRows:
    """A tensor of the base field's shape and dtype, equal to it but at some positions.

    Attributes:
        base: The base graph's field.
        ptr: Where each sample starts, ``[num_samples + 1] int64``.
        positions: Changed positions of the flattened tensor, ascending and unique per sample, ``[nnz] int64``.
        values: The new elements, ``[nnz]`` of the base's dtype. Each differs from the base's in at least one bit.
    """

    base: TensorValue
    ptr: Int64Array
    positions: Int64Array
    values: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class StackedField:
    """One tensor of the same shape per sample, without a base field; not bool.

    Attributes:
        dtype: Dtype code.
        array: ``[num_samples, *shape]``.
    """

    dtype: int
    array: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class ListedField:
    """One payload per sample, without a base field: tensors of any shape but bool, or typed JSON."""

    payloads: Sequence[Payload]


Field = SharedField | ChangedRows | StackedField | ListedField

_DIFF_HEAD = struct.Struct("<II")
_SHARED: tuple[bytes, bytes, int] = (FIELD.pack(BASE, 0, 0, 0, 0), b"", 0)


@dataclass(frozen=True, slots=True, eq=False)
class FieldChunk:
    """Consecutive samples of one layout, column by column.

    Attributes:
        count: Number of samples.
        layout: Their layout.
        fields: One column per field of the layout, in its order.
    """

    count: int
    layout: Layout
    fields: Sequence[Field]


def encode_many(chunk: FieldChunk, mode: str, max_bytes: int = MAX_RECORD_BYTES) -> list[bytes]:
    """Encode a chunk.

    Args:
        chunk: The samples.
        mode: ``"full"`` or ``"delta"``, as for one sample.
        max_bytes: Largest body and largest decoded size accepted.

    Returns:
        One body per sample.

    Raises:
        RecordTooLargeError: If a body or its decoded form exceeds ``max_bytes``.
        SettingError: If ``mode`` is neither of the two.
    """
    if mode not in MODES:
        raise SettingError(f"storage mode {mode!r} is unknown, choose 'full' or 'delta'")
    own = [
        None if isinstance(field, SharedField) else _parts(field, chunk.count, mode) for field in chunk.fields
    ]
    layout, out = chunk.layout, []
    for k in range(chunk.count):
        parts = [_SHARED if column is None else column[k] for column in own]
        body = b"".join([part[0] for part in parts] + [part[1] for part in parts])
        length, decoded = HEADER.size + len(body), sum([part[2] for part in parts])
        if max(length, decoded) > max_bytes:
            raise too_large("the record", max(length, decoded), max_bytes)
        out.append(HEADER.pack(KIND, 0, len(layout.keys), length, layout.id) + body)
    return out


def _parts(field: Field, count: int, mode: str) -> Parts:
    if isinstance(field, ChangedRows):
        return _changed(field, count) if mode == "delta" else [_raw(_row(field, k)) for k in range(count)]
    if isinstance(field, StackedField):
        return _stacked(field)
    assert isinstance(field, ListedField)
    return [_raw(payload) for payload in field.payloads]


def _descriptor(encoding: int, dtype: int, shape: Sequence[int], length: int) -> bytes:
    assert len(shape) <= MAX_NDIM
    return FIELD.pack(encoding, dtype, len(shape), 0, length) + struct.pack(f"<{len(shape)}q", *shape)


def _raw(payload: Payload) -> tuple[bytes, bytes, int]:
    if isinstance(payload, bytes):
        return _descriptor(RAW, 0, (), len(payload)), padded(payload), len(payload)
    assert payload.dtype != BOOL
    data = payload.array.astype(DTYPES[payload.dtype].carrier, copy=False).tobytes()
    return _descriptor(RAW, payload.dtype, payload.array.shape, len(data)), padded(data), len(data)


def _stacked(field: StackedField) -> Parts:
    """One buffer with every sample's elements at multiples of 8, cut into slices."""
    assert field.dtype != BOOL
    carrier, count = DTYPES[field.dtype].carrier, len(field.array)
    shape = field.array.shape[1:]
    length = int(np.prod(shape, dtype=np.int64)) * carrier.itemsize
    step = -(-length // 8) * 8
    buffer = np.zeros((count, step), dtype=np.uint8)
    rows = np.ascontiguousarray(field.array, dtype=carrier).reshape(count, -1)
    if length:
        buffer[:, :length] = rows.view(np.uint8)
    data, descriptor = buffer.tobytes(), _descriptor(RAW, field.dtype, shape, length)
    return [(descriptor, data[k * step : (k + 1) * step], length) for k in range(count)]


def _row(field: ChangedRows, k: int) -> TensorValue:
    """The whole tensor of one sample."""
    array = field.base.array.copy()
    start, stop = field.ptr[k], field.ptr[k + 1]
    array.reshape(-1)[field.positions[start:stop]] = field.values[start:stop]
    return TensorValue(field.base.dtype, array)


def _changed(field: ChangedRows, count: int) -> Parts:
    """DIFF payloads of a whole chunk in one buffer; a sample for which RAW is no longer takes that instead."""
    carrier, shape = DTYPES[field.base.dtype].carrier, field.base.array.shape
    size, plain = carrier.itemsize, field.base.array.size * carrier.itemsize
    assert size <= 8
    words, word_ptr = encode_gaps_ragged(field.positions, field.ptr)
    num_words, num_values = np.diff(word_ptr), np.diff(field.ptr)
    first = _DIFF_HEAD.size + (2 * num_words + 7) // 8 * 8
    lengths = first + size * num_values
    starts = np.zeros(count + 1, dtype=np.int64)
    np.cumsum((lengths + 7) // 8 * 8, out=starts[1:])
    buffer = np.zeros(int(starts[-1]), dtype=np.uint8)
    buffer.view("<u4")[starts[:-1] // 4] = num_words
    buffer.view("<u2")[_places((starts[:-1] + _DIFF_HEAD.size) // 2, word_ptr)] = words
    elements = np.ascontiguousarray(field.values, dtype=carrier).view(f"<u{size}")
    buffer.view(f"<u{size}")[_places((starts[:-1] + first) // size, field.ptr)] = elements
    data, out = buffer.tobytes(), []
    spans = zip(starts.tolist(), starts[1:].tolist(), lengths.tolist(), num_values.tolist(), strict=False)
    for k, (start, stop, length, changed) in enumerate(spans):
        if changed == 0:
            out.append(_SHARED)
        elif length >= plain:
            out.append(_raw(_row(field, k)))
        else:
            descriptor = _descriptor(DIFF, field.base.dtype, shape, length)
            out.append((descriptor, data[start:stop], plain))
    return out


def _places(starts: Int64Array, ptr: Int64Array) -> Int64Array:
    """Where ragged elements go: element ``j`` of sample ``k`` to ``starts[k] + j``, ``[ptr[-1]] int64``."""
    return np.repeat(starts - ptr[:-1], np.diff(ptr)) + np.arange(int(ptr[-1]))
