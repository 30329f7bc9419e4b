"""Bodies of many generic records at once, for samples that differ in arrays and not in their layout.

The bytes are those of :func:`torchcell_cache.codec.generic.encode`, sample by sample; only the way there differs: positions
of a whole chunk are gap-coded in one pass, and a sample costs one join of slices.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.alone import LEAST, encode_alone
from torchcell_cache.codec.delta_code import encode_gaps_ragged
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.codec.generic import FIELD, HEADER, KIND, MAX_NDIM, MODES
from torchcell_cache.codec.layout import BOOL, DTYPES, Layout, Payload, TensorValue
from torchcell_cache.codec.values import (
    BASE,
    DIFF,
    MAX_ENTRIES,
    PALETTE,
    PALETTE_LIMIT,
    RAW,
    padded,
    too_large,
)
from torchcell_cache.core.ragged import Int64Array, offsets, ragged_arange
from torchcell_cache.errors import SettingError

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

    Raises:
        RecordTooLargeError: If a body or its decoded form exceeds ``max_bytes``.
        SettingError: If ``mode`` is none of the three.
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
        if mode == "full":
            return [_own(_row(field, k), mode) for k in range(count)]
        return _changed(field, count, mode)
    if isinstance(field, StackedField):
        if mode != "compact" or field.array[:1].nbytes <= LEAST:
            return _stacked(field)
        return [_own(TensorValue(field.dtype, row), mode) for row in np.ascontiguousarray(field.array)]
    assert isinstance(field, ListedField)
    return [_own(payload, mode) for payload in field.payloads]


def _descriptor(encoding: int, dtype: int, shape: Sequence[int], length: int) -> bytes:
    assert len(shape) <= MAX_NDIM
    return FIELD.pack(encoding, dtype, len(shape), 0, length) + struct.pack(f"<{len(shape)}q", *shape)


def _own(payload: Payload, mode: str) -> tuple[bytes, bytes, int]:
    """A field without the help of a base field."""
    if isinstance(payload, bytes):
        return _descriptor(RAW, 0, (), len(payload)), padded(payload), len(payload)
    assert payload.dtype != BOOL
    code, size = RAW, payload.array.nbytes
    data = payload.array.astype(DTYPES[payload.dtype].carrier, copy=False).tobytes()
    if mode == "compact":
        code, _, data = encode_alone(payload, size) or (RAW, 0, data)
    return _descriptor(code, payload.dtype, payload.array.shape, len(data)), padded(data), size


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


def _changed(field: ChangedRows, count: int, mode: str) -> Parts:
    """DIFF or PALETTE payloads of a whole chunk in one buffer; a sample for which neither is shorter stands alone."""
    carrier, shape = DTYPES[field.base.dtype].carrier, field.base.array.shape
    size, plain = carrier.itemsize, field.base.array.size * carrier.itemsize
    assert size <= 8
    words, word_ptr = encode_gaps_ragged(field.positions, field.ptr)
    num_words, num_values = np.diff(word_ptr), np.diff(field.ptr)
    elements = np.ascontiguousarray(field.values, dtype=carrier).view(f"<u{size}")
    first = _DIFF_HEAD.size + (2 * num_words + 7) // 8 * 8
    palette = _Palettes(elements, field.ptr, first, plain)
    lengths = np.where(palette.chosen, palette.lengths, first + size * num_values)
    starts = offsets((lengths + 7) // 8 * 8)
    buffer = np.zeros(int(starts[-1]), dtype=np.uint8)
    buffer.view("<u4")[starts[:-1] // 4] = num_words
    buffer.view("<u2")[ragged_arange((starts[:-1] + _DIFF_HEAD.size) // 2, num_words)] = words
    tails = starts[:-1] + first
    plainly = ~np.repeat(palette.chosen, num_values)
    buffer.view(f"<u{size}")[ragged_arange(tails // size, num_values)[plainly]] = elements[plainly]
    palette.write(buffer, starts[:-1], tails)
    data, out = buffer.tobytes(), []
    spans = zip(starts.tolist(), starts[1:].tolist(), lengths.tolist(), num_values.tolist(), strict=False)
    codes = np.where(palette.chosen, PALETTE, DIFF).tolist()
    for k, (start, stop, length, changed) in enumerate(spans):
        if changed == 0:
            out.append(_SHARED)
        elif length >= plain:
            out.append(_own(_row(field, k), mode))
        elif mode == "compact" and (found := encode_alone(value := _row(field, k), length)) is not None:
            data_of, size = padded(found[2]), len(found[2])
            out.append((_descriptor(found[0], value.dtype, shape, size), data_of, plain))
        else:
            out.append((_descriptor(codes[k], field.base.dtype, shape, length), data[start:stop], plain))
    return out


class _Palettes:
    """The distinct elements of every sample of a chunk, and for which samples a table of them pays."""

    def __init__(self, elements: npt.NDArray[Any], ptr: Int64Array, first: Int64Array, plain: int) -> None:
        self.size, self.ptr, counts = elements.itemsize, ptr, np.diff(ptr)
        possible = (counts > 0) & (counts <= PALETTE_LIMIT) & (self.size >= 2)
        self.entries, self.entry_ptr, self.numbers = _distinct(elements, ptr, possible)
        num_entries = np.diff(self.entry_ptr)
        self.lengths = first + (num_entries * self.size + 7) // 8 * 8 + counts
        otherwise = np.minimum(first + self.size * counts, plain)
        self.chosen = possible & (num_entries <= MAX_ENTRIES) & (self.lengths < otherwise)

    def write(self, buffer: npt.NDArray[np.uint8], heads: Int64Array, tails: Int64Array) -> None:
        """Number of entries to ``heads + 4``, entries and the elements' numbers to ``tails``."""
        counts, num_entries = np.diff(self.ptr), np.diff(self.entry_ptr)
        buffer.view("<u4")[heads[self.chosen] // 4 + 1] = num_entries[self.chosen]
        kept = np.repeat(self.chosen, num_entries)
        buffer.view(f"<u{self.size}")[ragged_arange(tails // self.size, num_entries)[kept]] = self.entries[
            kept
        ]
        after = tails + (num_entries * self.size + 7) // 8 * 8
        kept = np.repeat(self.chosen, counts)
        buffer[ragged_arange(after, counts)[kept]] = self.numbers[kept]


def _distinct(
    elements: npt.NDArray[Any], ptr: Int64Array, possible: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[Any], Int64Array, Int64Array]:
    """Distinct elements per sample, ascending, their offsets, and the number of each element among those of its sample."""
    counts = np.diff(ptr)
    if elements.itemsize > 4:  # no room for the sample's number beside the element
        found = [np.unique(elements[a:b], return_inverse=True) for a, b in itertools.pairwise(ptr)]
        entry_ptr = offsets(np.array([len(part[0]) for part in found], dtype=np.int64))
        numbers = [part[1].astype(np.int64) for part in found]
        return np.concatenate([part[0] for part in found]), entry_ptr, np.concatenate(numbers)
    owner = np.repeat(np.arange(len(counts), dtype=np.uint64), counts) << np.uint64(32)
    keys = owner | elements
    ordered = np.sort(keys)
    new = np.ones(len(keys), dtype=np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    ordered = ordered[new]
    entry_ptr = np.searchsorted(ordered, np.arange(len(counts) + 1, dtype=np.uint64) << np.uint64(32)).astype(
        np.int64
    )
    numbers = np.searchsorted(ordered, keys) - np.repeat(entry_ptr[:-1], counts)
    return ordered.astype(np.uint32).astype(elements.dtype), entry_ptr, numbers
