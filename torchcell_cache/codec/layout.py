"""What a generic record needs to know besides its bytes: element types and the order of its fields.

A :class:`Layout` is the shape of one kind of sample: graph class, stores (empty ones too) and, per store, the
field names in order. Nearly all samples of a dataset share one or two layouts, so they stand once in the
manifest and a record carries only the 64-bit id. The id is a hash of the content, so it does not depend on
workers or shards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.core.lazy import cached_property
from torchcell_cache.errors import FormatError

StoreKey: TypeAlias = str | tuple[str, str, str] | None
"""``None`` (``Data`` itself or the global store of ``HeteroData``), a node type or an edge type."""

FieldKey: TypeAlias = tuple[StoreKey, str]
"""Store and name of one field."""

TENSOR = "tensor"
VALUE = "value"
MAX_FIELDS = 0xFFFF


class DType(NamedTuple):
    """One element type: its name in torch and the little-endian numpy dtype that carries its bits."""

    name: str
    carrier: np.dtype[Any]


DTYPES: dict[int, DType] = {
    code: DType(name, np.dtype(carrier))
    for code, name, carrier in (
        (1, "bool", "?"), (2, "uint8", "u1"), (3, "int8", "i1"), (4, "int16", "<i2"), (5, "int32", "<i4"),
        (6, "int64", "<i8"), (7, "uint16", "<u2"), (8, "uint32", "<u4"), (9, "uint64", "<u8"),
        (10, "float16", "<f2"), (11, "float32", "<f4"), (12, "float64", "<f8"), (13, "complex64", "<c8"),
        (14, "complex128", "<c16"), (15, "bfloat16", "<u2"), (16, "float8_e4m3fn", "u1"),
        (17, "float8_e5m2", "u1"), (18, "float8_e4m3fnuz", "u1"), (19, "float8_e5m2fnuz", "u1"),
        (20, "float8_e8m0fnu", "u1"),
    )
}  # fmt: skip
"""Dtype codes of format version 1; a code is never given to another type. 0 means "not a tensor"."""

BOOL = 1


class TensorValue(NamedTuple):
    """A tensor as numpy sees it: dtype code and C-contiguous array of that code's carrier dtype."""

    dtype: int
    array: npt.NDArray[Any]


Payload: TypeAlias = TensorValue | bytes
"""A field's value: a tensor, or the typed JSON of anything else."""


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def field_label(key: FieldKey) -> str:
    r"""Readable and unique name of a field: ``gene.x``, ``gene|regulatory|gene.edge_index``, ``edge_index``.

    Separators inside names are escaped with a backslash, so two fields never share a label.
    """
    store, name = key
    prefix = "" if store is None else f"{store_label(store)}."
    return prefix + _escape(name)


def store_label(store: StoreKey) -> str:
    """Readable name of a store."""
    if store is None:
        return "(global)"
    return _escape(store) if isinstance(store, str) else "|".join(map(_escape, store))


def _escape(name: str) -> str:
    name = str(name)  # an error may have to name what is no text
    for special in "\\.|(":
        name = name.replace(special, "\\" + special)
    return name


@dataclass(frozen=True)
class Layout:
    """Graph class, stores and fields of a sample, in order.

    Attributes:
        graph: ``"Data"`` or ``"HeteroData"``.
        stores: Per store its key and its fields as ``(name, kind)``, kind ``"tensor"`` or ``"value"``.
            ``Data`` has the one store ``None``; ``HeteroData`` the store ``None``, then node types, then edge
            types.

    Raises:
        FormatError: If it is none of that, or has more than 65,535 fields.
    """

    graph: str
    stores: tuple[tuple[StoreKey, tuple[tuple[str, str], ...]], ...]

    def __post_init__(self) -> None:
        ranks = [0 if store is None else 1 if isinstance(store, str) else 2 for store, _ in self.stores]
        in_order = ranks == sorted(ranks) and ranks.count(0) == 1
        if self.graph not in ("Data", "HeteroData") or not in_order:
            raise FormatError(f"layout of graph {self.graph!r} has stores {[s for s, _ in self.stores]}")
        if self.graph == "Data" and len(ranks) != 1:
            raise FormatError(f"layout of a Data object must have one store, got {len(ranks)}")
        if len({store for store, _ in self.stores}) != len(self.stores):
            raise FormatError("layout names a store twice")
        for store, fields in self.stores:
            names = [name for name, _ in fields]
            if len(set(names)) != len(names) or any(kind not in (TENSOR, VALUE) for _, kind in fields):
                raise FormatError(
                    f"layout of store {store_label(store)} has a double field or an unknown kind"
                )
        if len(self.keys) > MAX_FIELDS:
            raise FormatError(f"layout has {len(self.keys):,} fields, at most {MAX_FIELDS:,} are possible")

    @cached_property
    def keys(self) -> tuple[FieldKey, ...]:
        """Store and name of each field, in the order of the record."""
        return tuple((store, name) for store, fields in self.stores for name, _ in fields)

    @cached_property
    def tensors(self) -> tuple[bool, ...]:
        """Whether each field is a tensor."""
        return tuple(kind == TENSOR for _, fields in self.stores for _, kind in fields)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Readable name of each field."""
        return tuple(map(field_label, self.keys))

    @cached_property
    def id(self) -> int:
        """64-bit id: ``xxh3_64`` of the canonical JSON of :meth:`to_dict`."""
        return xxhash.xxh3_64_intdigest(canonical_json(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest."""
        stores = [[store_to_json(store), [list(field) for field in fields]] for store, fields in self.stores]
        return {"graph": self.graph, "stores": stores}

    @classmethod
    def from_dict(cls, data: Any) -> Layout:
        """Read the JSON form back, strictly.

        Raises:
            FormatError: If anything is missing, unknown, double or of another type.
        """
        if not isinstance(data, dict) or set(data) != {"graph", "stores"} or type(data["graph"]) is not str:
            raise FormatError("a layout must be an object with the keys 'graph' and 'stores'")
        stores = []
        for store, fields in _pairs(data["stores"]):
            named = tuple([(name, kind) for name, kind in _pairs(fields)])
            if any(not isinstance(part, str) for field in named for part in field):
                raise FormatError("a layout's field must be two strings, name and kind")
            stores.append((store_from_json(store), named))
        return cls(data["graph"], tuple(stores))


def store_to_json(store: StoreKey) -> Any:
    """A store key as JSON: null, a string or three strings."""
    return list(store) if isinstance(store, tuple) else store


def store_from_json(data: Any) -> StoreKey:
    """Read a store key back: null, a string or three strings.

    Raises:
        FormatError: If it is anything else.
    """
    if data is None or isinstance(data, str):
        return data
    if isinstance(data, list) and len(data) == 3 and all(isinstance(part, str) for part in data):
        return (data[0], data[1], data[2])
    raise FormatError(f"a store must be null, a node type or three strings, got {str(data)[:80]}")


def _pairs(data: Any) -> list[list[Any]]:
    if not isinstance(data, list) or any(not isinstance(each, list) or len(each) != 2 for each in data):
        raise FormatError(f"stores and fields of a layout must be lists of pairs, got {str(data)[:80]}")
    return data
