"""A graph as an ordered list of typed fields, back again, and what identifies its content."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.data import BaseData
from torch_geometric.data.storage import EdgeStorage, NodeStorage

from torchcell_cache.codec.layout import DTYPES, TENSOR, VALUE, Layout, StoreKey, TensorValue, canonical_json
from torchcell_cache.core.fingerprint import array_digest
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SettingError, UnsupportedValueError
from torchcell_cache.graph.compare import stores_of
from torchcell_cache.graph.typed_json import MAX_JSON_BYTES, value_to_json
from torchcell_cache.graph.values import check_tensor, to_array, unsupported

_VALUES = (type(None), bool, int, float, str, bytes, list, tuple, dict, np.ndarray, np.generic)
_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


@lru_cache(maxsize=4096)
def _layout(
    graph: Literal["Data", "HeteroData"], stores: tuple[tuple[StoreKey, tuple[tuple[str, str], ...]], ...]
) -> Layout:
    # Nearly all samples of a build share a layout: checking and hashing it once saves 50 us per sample.
    for store, fields in stores:
        parts = (store,) if isinstance(store, str) else store or ()
        for name in (*parts, *(name for name, _ in fields)):
            if type(name) is not str:
                raise UnsupportedValueError(
                    f"the name {name!r} of a field or type of the graph is no plain text but a {type(name).__name__}",
                    fix="name fields, node and edge types by plain text: graph['a', '1', 'a'], str(name)",
                )
    return Layout(graph, stores)


def flatten(graph: Data | HeteroData) -> tuple[Layout, list[Any]]:
    """Layout (empty stores too) and values of a graph, in order; tensors and other values are the graph's own objects.

    Raises:
        UnsupportedValueError: If the graph is neither ``Data`` nor ``HeteroData`` itself, or an attribute is
            of a type that no record can hold. What lists, tuples and dicts contain is checked when they are
            written.
    """
    if type(graph) not in (Data, HeteroData):
        raise UnsupportedValueError(
            f"the graph is a {type(graph).__module__}.{type(graph).__qualname__}, expected torch_geometric.data.Data or "
            "HeteroData",
            fix="return one of the two (not a subclass or a batch) from the processor",
        )
    kind: Literal["Data", "HeteroData"] = "Data" if type(graph) is Data else "HeteroData"
    values: list[Any] = []
    stores = []
    for store, mapping in stores_of(graph):
        stores.append((store, tuple([(name, _kind(store, name, value)) for name, value in mapping.items()])))
        values += mapping.values()
    return _layout(kind, tuple(stores)), values


def _kind(store: StoreKey, name: str, value: Any) -> str:
    if type(value) is Tensor:
        check_tensor(value, (store, name))
        return TENSOR
    if isinstance(value, Tensor) or not isinstance(value, _VALUES):
        raise unsupported((store, name), f"a {type(value).__module__}.{type(value).__qualname__}")
    return VALUE


def unflatten(layout: Layout, given: Sequence[Any]) -> Data | HeteroData:
    """Put a graph together again: a fresh shell around the given values, in the layout's order."""
    values = iter(given)
    if layout.graph == "Data":
        data = Data()
        data._store._mapping.update((name, next(values)) for name, _ in layout.stores[0][1])
        return data
    graph = HeteroData()
    for store, names in layout.stores:
        # Straight into the mappings: setters drop None and treat num_nodes and the like specially.
        if store is None:
            mapping = graph._global_store._mapping
        elif isinstance(store, str):
            graph._node_store_dict[store] = NodeStorage(_parent=graph, _key=store)
            mapping = graph._node_store_dict[store]._mapping
        else:
            graph._edge_store_dict[store] = EdgeStorage(_parent=graph, _key=store)
            mapping = graph._edge_store_dict[store]._mapping
        mapping.update((name, next(values)) for name, _ in names)
    return graph


def graph_digests(graph: Data | HeteroData) -> dict[str, str]:
    """Content of a graph part by part, for comparing two graphs and naming what differs.

    Per field ``"gene.x": "float32[6607,64]:<xxh3_128>"`` or ``"gene.node_ids": "json:<xxh3_128>"``, and the entries
    ``(graph)``, ``(node types)``, ``(edge types)`` and ``(order of fields)``. Equal content gives equal digests whatever
    storage, strides or device hold it.
    """
    layout, values = flatten(graph)
    stores = layout.to_dict()["stores"]
    out = {
        "(graph)": layout.graph,
        "(node types)": canonical_json([key for key, _ in stores if isinstance(key, str)]).decode(),
        "(edge types)": canonical_json([key for key, _ in stores if isinstance(key, list)]).decode(),
        "(order of fields)": f"json:{xxhash.xxh3_128_hexdigest(canonical_json(stores))}",
    }
    for label, value in zip(layout.labels, values, strict=True):
        out[label] = _digest(value, label)
    return out


def _digest(value: Any, label: str) -> str:
    payload = payload_of(value, label)
    if isinstance(payload, bytes):
        return f"json:{xxhash.xxh3_128_hexdigest(payload)}"
    code, array = payload
    shape = ",".join(map(str, array.shape))
    little = array.astype(DTYPES[code].carrier, copy=False).reshape(-1).view(np.uint8)
    return f"{DTYPES[code].name}[{shape}]:{xxhash.xxh3_128_hexdigest(little.data)}"


def graph_digest(graph: Data | HeteroData) -> str:
    """SHA-256 over :func:`graph_digests`, 64 hex digits: one name for the content of a graph."""
    return digest_of_parts(graph_digests(graph))


def digest_of_parts(digests: dict[str, str]) -> str:
    """:func:`graph_digest` from :func:`graph_digests`."""
    return hashlib.sha256(canonical_json(digests)).hexdigest()


def payload_of(value: Any, label: str) -> TensorValue | bytes:
    """A field's value as the codec takes it."""
    if isinstance(value, Tensor):
        return to_array(value, label)
    return value_to_json(value, label, MAX_JSON_BYTES)


def item_digest(item: Any) -> str:
    """Digest of any sample a source may give: :func:`graph_digest` where the sample could be stored as it is.

    Its processor may make it storable where it is not.

    Raises:
        UnsupportedValueError: If it holds something whose content cannot be told.
    """
    if type(item) in (Data, HeteroData):
        try:
            return graph_digest(item)
        except UnsupportedValueError:
            pass
    hasher = xxhash.xxh3_128()
    try:
        for part in _parts(item, "the sample"):
            hasher.update(struct.pack("<Q", len(part)))
            hasher.update(part)
    except RecursionError:
        raise UnsupportedValueError(
            "the sample holds a list or dict that holds itself", fix="delete it"
        ) from None
    return f"any:{hasher.hexdigest()}"


def _parts(value: Any, where: str) -> Iterator[bytes]:
    """What makes up a value, as byte strings."""
    yield type(value).__qualname__.encode()
    if isinstance(value, BaseData):
        for store in value.stores:
            yield repr(store._key).encode()
            yield from _items(store._mapping.items(), where)
    elif isinstance(value, Tensor):
        yield from _tensor(value, where)
    elif isinstance(value, Sample):  # the graph that all samples share is told apart from them
        names = (field.name for field in dataclasses.fields(value) if field.name != "base_graph")
        yield from _items(((name, getattr(value, name)) for name in names), where)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        yield repr(value).encode("utf-8", "surrogatepass")
    elif isinstance(value, dict):
        yield from _items(value.items(), where)
    elif isinstance(value, list | tuple):
        yield from _items(enumerate(value), where)
    elif isinstance(value, set | frozenset):
        yield from sorted(item_digest(part).encode() for part in value)
    elif isinstance(value, np.ndarray):
        yield from _array(value, where)
    elif callable(getattr(value, "coo", None)) and callable(getattr(value, "sparse_sizes", None)):
        yield from _parts([*value.coo(), list(value.sparse_sizes())], where)  # torch_sparse
    else:
        raise UnsupportedValueError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, whose content cannot be told, so a change "
            "of it would go unnoticed",
            fix="name the content: PygSource(dataset, version='a text that changes with it')",
        )


def _items(items: Any, where: str) -> Iterator[bytes]:
    items = list(items)
    yield str(len(items)).encode()
    for key, value in items:
        yield repr(key).encode("utf-8", "surrogatepass")
        yield from _parts(value, f"{where}[{key!r}]")


def _array(value: Any, where: str) -> Iterator[bytes]:
    if value.dtype.hasobject:
        yield repr(value.shape).encode()
        yield from _items(enumerate(value.ravel().tolist()), where)
        return
    try:
        yield array_digest(value).encode()
    except SettingError:
        yield repr((value.dtype, value.shape)).encode() + value.tobytes()


def _tensor(value: Tensor, where: str) -> Iterator[bytes]:
    """Kind and elements of a tensor of any layout or subclass."""
    if value.is_nested:
        yield from _items(enumerate(value.unbind()), where)
    elif type(value) is not Tensor:
        plain = value.as_tensor() if hasattr(value, "as_tensor") else value.detach().as_subclass(Tensor)
        for name in ("sparse_size", "sort_order", "is_undirected"):  # of PyG's EdgeIndex
            fact = getattr(value, name, None)
            yield repr(fact() if callable(fact) else fact).encode()
        yield from _tensor(plain.detach(), where)
    elif value.layout == torch.sparse_coo:
        yield from _parts([list(value.shape), value.detach()._indices(), value.detach()._values()], where)
    elif value.layout in _COMPRESSED:
        names = _COMPRESSED[value.layout]
        yield str(value.layout).encode()
        parts = (getattr(value.detach(), name)() for name in (*names, "values"))
        yield from _parts([list(value.shape), *parts], where)
    elif value.is_quantized:
        yield from _parts([str(value.qscheme()), value.dequantize()], where)
    else:
        code, array = to_array(value.detach(), where)
        yield repr((code, array.shape, value.requires_grad)).encode()
        yield np.ascontiguousarray(array).tobytes()
