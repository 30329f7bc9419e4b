"""Bodies of structured records: perturbed ids, measurements and, in delta storage, removed positions.

Little-endian throughout; ``wide`` is a property of the store (some sample has more than 65,535 perturbed nodes or more
than 255 measurements) and stands in its schema::

    narrow  u8 0x11 | u8 num_measurements | u16 num_perturbed
    wide    u8 0x12 | u8 0 | u16 num_measurements | u32 num_perturbed
    then    f32[num_measurements, num_columns]    NaN = no value
            u16|u32[num_perturbed]                ascending ids, u16 when the node type has at most 65,536 nodes
            u16[...]                              gap code of the removed positions, to the end of the record
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.delta_code import UInt16Array
from torchcell_cache.codec.envelope import CHECKSUM_BYTES, Buffer
from torchcell_cache.core.ragged import Float32Array, Int64Array, ascends, offsets
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import CorruptRecordError, FormatError

_NARROW = np.dtype([("kind", "u1"), ("measurements", "u1"), ("perturbed", "<u2")])
_WIDE = np.dtype([("kind", "u1"), ("zero", "u1"), ("measurements", "<u2"), ("perturbed", "<u4")])


@dataclass(frozen=True, slots=True)
class StructuredSchema:
    """What all structured records of a store have in common.

    Attributes:
        num_nodes: Number of perturbable nodes of the base graph.
        num_columns: Number of phenotypes plus statistics.
        has_removed: Whether records carry removed positions (delta storage).
        wide: Whether records use the wide header.
    """

    num_nodes: int
    num_columns: int
    has_removed: bool
    wide: bool = False

    @property
    def id_dtype(self) -> np.dtype[Any]:
        """Dtype of the stored ids."""
        return np.dtype("<u2") if self.num_nodes <= 1 << 16 else np.dtype("<u4")

    @property
    def header(self) -> np.dtype[Any]:
        """Dtype of the header."""
        return _WIDE if self.wide else _NARROW

    @property
    def kind(self) -> int:
        """First byte of every body."""
        return 0x12 if self.wide else 0x11

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StructuredSchema:
        """Read the JSON form back, strictly.

        Raises:
            FormatError: If a key is missing, unknown or of another type.
        """
        wanted: dict[str, type] = {"num_nodes": int, "num_columns": int, "has_removed": bool, "wide": bool}
        if set(data) != set(wanted) or any(type(data[key]) is not kind for key, kind in wanted.items()):
            raise FormatError(f"structured schema must hold {sorted(wanted)}, got {data}")
        return cls(**data)


@dataclass(frozen=True, slots=True, eq=False)
class StructuredColumns:
    """Decoded records of one batch, as ragged columns.

    Attributes:
        ids: Perturbed ids, ``[sum of counts] uint16 | uint32``.
        ptr: Offsets into ``ids``, ``[batch + 1] int64``.
        values: Measurements, ``[num_measurements, num_columns] float32``.
        value_ptr: Offsets into ``values``, ``[batch + 1] int64``.
        words: Gap code of the removed positions, ``[num_words] uint16``.
        word_ptr: Offsets into ``words``, ``[batch + 1] int64``.
    """

    ids: npt.NDArray[Any]
    ptr: Int64Array
    values: Float32Array
    value_ptr: Int64Array
    words: UInt16Array
    word_ptr: Int64Array

    def __len__(self) -> int:
        return len(self.ptr) - 1


def encode(
    schema: StructuredSchema,
    table: SampleTable,
    words: UInt16Array | None = None,
    word_ptr: Int64Array | None = None,
) -> list[bytes]:
    """Encode a table of samples to record bodies."""
    header = np.zeros(len(table), dtype=schema.header)
    header["kind"] = schema.kind
    header["measurements"] = np.diff(table.value_ptr)
    header["perturbed"] = np.diff(table.ptr)
    ids = table.ids.astype(schema.id_dtype)
    parts = [
        (header, np.arange(len(table) + 1) * schema.header.itemsize),
        (np.ascontiguousarray(table.values, dtype="<f4"), table.value_ptr * 4 * schema.num_columns),
        (ids, table.ptr * ids.itemsize),
    ]
    if words is not None and word_ptr is not None:
        parts.append((words.astype("<u2", copy=False), word_ptr * 2))
    columns = []
    for array, ptr in parts:
        data = memoryview(array.tobytes())
        columns.append([data[a:b] for a, b in pairwise(ptr.tolist())])
    return [b"".join(row) for row in zip(*columns, strict=True)]


def decode(schema: StructuredSchema, records: Sequence[Buffer]) -> StructuredColumns:
    """Decode sealed records (checksum included, already verified) of one batch.

    Raises:
        CorruptRecordError: If a record's kind, counts and length do not fit together.
    """
    size = schema.header.itemsize
    start = CHECKSUM_BYTES + size
    lengths = np.fromiter(map(len, records), dtype=np.int64, count=len(records))
    if len(records) and int(lengths.min()) < start:
        raise CorruptRecordError(
            f"a structured record has {int(lengths.min())} bytes, its header alone has {start}"
        )
    heads = b"".join([r[CHECKSUM_BYTES:start] for r in records])
    header = np.frombuffer(heads, dtype=schema.header)
    row, item = 4 * schema.num_columns, schema.id_dtype.itemsize
    join = bytearray().join  # what is decoded can be written to
    if records and heads == heads[:size] * len(records):
        # Knock-outs of one size with one measurement each: every part lies at the same place in every record.
        counts = int(header["measurements"][0]), int(header["perturbed"][0])
        value_end = start + counts[0] * row
        id_end = value_end + counts[1] * item
        rest = lengths - id_end
        _validate(schema, header[:1], rest)
        values = join([r[start:value_end] for r in records])
        ids = join([r[value_end:id_end] for r in records])
        words = join([r[id_end:] for r in records]) if schema.has_removed else bytearray()
        steps = np.arange(len(records) + 1, dtype=np.int64)
        ptr, value_ptr = steps * counts[1], steps * counts[0]
    else:
        measurements = header["measurements"].astype(np.int64)
        perturbed = header["perturbed"].astype(np.int64)
        value_ends = start + measurements * row
        id_ends = value_ends + perturbed * item
        rest = lengths - id_ends
        _validate(schema, header, rest)
        a, b = value_ends.tolist(), id_ends.tolist()
        values = join([r[start : a[k]] for k, r in enumerate(records)])
        ids = join([r[a[k] : b[k]] for k, r in enumerate(records)])
        words = join([r[b[k] :] for k, r in enumerate(records)]) if schema.has_removed else bytearray()
        ptr, value_ptr = offsets(perturbed), offsets(measurements)
    found = np.frombuffer(ids, dtype=schema.id_dtype)
    _check_ids(schema, found, ptr)
    return StructuredColumns(
        ids=found,
        ptr=ptr,
        values=np.frombuffer(values, dtype="<f4").reshape(int(value_ptr[-1]), schema.num_columns),
        value_ptr=value_ptr,
        words=np.frombuffer(words, dtype="<u2"),
        word_ptr=offsets(rest >> 1) if schema.has_removed else np.zeros(len(records) + 1, dtype=np.int64),
    )


def words_of(
    schema: StructuredSchema, records: Sequence[Buffer], ptr: Int64Array, value_ptr: Int64Array
) -> tuple[UInt16Array, Int64Array]:
    """The gap code of sealed records (already verified) whose ids and measurements are known, in one copy.

    Raises:
        CorruptRecordError: If a record is too short or ends within a word.
    """
    first = CHECKSUM_BYTES + schema.header.itemsize
    heads = first + schema.id_dtype.itemsize * np.diff(ptr) + 4 * schema.num_columns * np.diff(value_ptr)
    rest = np.fromiter(map(len, records), dtype=np.int64, count=len(records)) - heads
    wrong = (rest < 0) | (rest & 1 == 1)
    if wrong.any():
        bad = int(np.argmax(wrong))
        raise CorruptRecordError(
            f"record {bad} of this read: {int(ptr[bad + 1] - ptr[bad])} ids leave {int(rest[bad])} bytes, expected whole "
            "16-bit words"
        )
    code = bytearray().join([r[head:] for r, head in zip(records, heads.tolist(), strict=True)])
    return np.frombuffer(code, dtype="<u2"), offsets(rest >> 1)


def _check_ids(schema: StructuredSchema, found: npt.NDArray[Any], ptr: Int64Array) -> None:
    if len(found) and int(found.max()) >= schema.num_nodes:
        bad = int(np.searchsorted(ptr, int(found.argmax()), side="right")) - 1
        raise CorruptRecordError(
            f"record {bad} of this read perturbs node {int(found.max())} of {schema.num_nodes} nodes"
        )
    if not ascends(found, ptr):
        raise CorruptRecordError("perturbed nodes of a record of this read do not ascend")


def _validate(schema: StructuredSchema, header: npt.NDArray[Any], rest: Int64Array) -> None:
    """Kind and lengths; ``header`` may be one row that stands for all."""
    lengths_fit = (rest >= 0) & (rest % 2 == 0) if schema.has_removed else rest == 0
    good = (header["kind"] == schema.kind) & lengths_fit
    if not good.all():
        bad = int(np.argmin(good))
        head = header[min(bad, len(header) - 1)]
        raise CorruptRecordError(
            f"record {bad} of this read: kind 0x{int(head['kind']):02x}, {int(head['perturbed'])} ids, "
            f"{int(head['measurements'])} measurements leave {int(rest[bad])} bytes; expected kind "
            f"0x{schema.kind:02x} and {'whole 16-bit words' if schema.has_removed else 'none'}"
        )
