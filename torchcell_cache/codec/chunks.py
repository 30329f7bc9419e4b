"""Bodies of many generic records at once, for samples that differ in arrays and not in their layout.

The bytes are those of :func:`torchcell_cache.codec.generic.encode`, sample by sample; only the way there differs: positions
of a whole chunk are gap-coded in one pass, and nothing of the base graph is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

from torchcell_cache.codec.delta_code import encode_gaps_ragged
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.codec.generic import SHARED, check_mode, described, record
from torchcell_cache.codec.layout import Layout, Payload, TensorValue
from torchcell_cache.codec.values import differences, encode_field, too_large
from torchcell_cache.core.ragged import Int64Array

Part: TypeAlias = tuple[bytes, bytes, int]
"""Descriptor, padded payload, decoded bytes of a field of one sample."""


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


Field: TypeAlias = ChangedRows | Sequence[Payload] | None
"""What changes in a base field, one payload per sample without one (no bool), or ``None``: the base graph's own."""


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

    Raises:
        RecordTooLargeError: If a body or its decoded form exceeds ``max_bytes``.
        SettingError: If ``mode`` is none of the three.
    """
    check_mode(mode)
    columns = [_parts(field, chunk.count, mode) for field in chunk.fields]
    out = []
    for parts in zip(*columns, strict=True):
        decoded = sum([part[2] for part in parts])
        if decoded > max_bytes:
            raise too_large("the record", decoded, max_bytes)
        out.append(record(chunk.layout, [part[0] for part in parts] + [part[1] for part in parts], max_bytes))
    return out


def _parts(field: Field, count: int, mode: str) -> list[Part]:
    if field is None:
        return [(SHARED, b"", 0)] * count
    if not isinstance(field, ChangedRows):
        return [_own(payload, mode) for payload in field]
    if mode == "full":
        return [_own(_row(field, k), mode) for k in range(count)]
    words, word_ptr = encode_gaps_ragged(field.positions, field.ptr)
    return [_changed(field, k, words[word_ptr[k] : word_ptr[k + 1]].tobytes(), mode) for k in range(count)]


def _own(payload: Payload, mode: str) -> Part:
    """A field without the help of a base field."""
    size = len(payload) if isinstance(payload, bytes) else payload.array.nbytes
    return (*described(payload, encode_field(payload, None, mode), mode), size)


def _row(field: ChangedRows, k: int) -> TensorValue:
    """The whole tensor of one sample."""
    array = field.base.array.copy()
    start, stop = field.ptr[k], field.ptr[k + 1]
    array.reshape(-1)[field.positions[start:stop]] = field.values[start:stop]
    return TensorValue(field.base.dtype, array)


def _changed(field: ChangedRows, k: int, words: bytes, mode: str) -> Part:
    """What differs in one sample, at gap-coded positions; the whole tensor where that is no longer."""
    new = field.values[field.ptr[k] : field.ptr[k + 1]].astype(field.base.array.dtype, copy=False)
    plain = field.base.array.nbytes
    if len(new) == 0:
        return SHARED, b"", 0
    found = differences(TensorValue(field.base.dtype, new), words, plain)
    if found is None:
        return _own(_row(field, k), mode)
    return (*described(_row(field, k) if mode == "compact" else field.base, found, mode), plain)
