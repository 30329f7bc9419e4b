"""Digest of any sample a source may give, also of one that no record can hold: its processor may make it storable."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.data import BaseData

from torchcell_cache.core.digests import array_digest
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SettingError, UnsupportedValueError
from torchcell_cache.graph.fields import graph_digest
from torchcell_cache.graph.values import to_array

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


def item_digest(item: Any) -> str:
    """Digest of a sample's content: :func:`graph_digest` where the sample could be stored as it is.

    Raises:
        UnsupportedValueError: If it holds something whose content cannot be told.
    """
    if type(item) in (Data, HeteroData):
        try:
            return graph_digest(item)
        except UnsupportedValueError:
            pass
    hasher = xxhash.xxh3_128()
    for part in _parts(item, "the sample"):
        hasher.update(struct.pack("<Q", len(part)))
        hasher.update(part)
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
