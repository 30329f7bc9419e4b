"""Whether two graphs are the same, and if not, the first place where they differ, in words.

Same means: graph class, order of stores, order of keys, types, dtypes, shapes, and values bit for bit (two NaN with the
same bits are equal, 0.0 and -0.0 are not). Only the device may differ.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torchcell_cache.codec.layout import StoreKey, field_label, store_label

_BATCH_FACTS = ("_num_graphs", "_slice_dict", "_inc_dict")


def stores_of(graph: Any) -> Iterator[tuple[StoreKey, dict[str, Any]]]:
    """Stores of a ``Data``, ``HeteroData`` or batch of them with their fields, in order."""
    if isinstance(graph, HeteroData):
        yield None, graph._global_store._mapping
        yield from ((key, store._mapping) for key, store in graph._node_store_dict.items())
        yield from ((key, store._mapping) for key, store in graph._edge_store_dict.items())
    else:
        yield None, graph._store._mapping


def first_difference(actual: Any, expected: Any) -> str | None:
    """The first place where two graphs differ, or ``None`` if they are the same."""
    for graph, name in ((actual, "the first"), (expected, "the second")):
        if not hasattr(graph, "_store") and not hasattr(graph, "_global_store"):
            kind = type(graph).__name__
            return f"{name} argument is a {kind}, expected Data, HeteroData or a Batch of them"
    if type(actual) is not type(expected):
        return f"graph is a {type(actual).__name__}, expected {type(expected).__name__}"
    got, want = list(stores_of(actual)), list(stores_of(expected))
    text = _names([store_label(s) for s, _ in got], [store_label(s) for s, _ in want], "stores")
    if text is not None:
        return text
    for (store, fields), (_, wanted) in zip(got, want, strict=True):
        text = _names(list(fields), list(wanted), f"keys of {store_label(store)}")
        if text is not None:
            return text
        for name, value in wanted.items():
            text = value_difference(fields[name], value)
            if text is not None:
                return f"{field_label((store, name))}: {text}"
    return _batch_difference(actual, expected)


def _batch_difference(actual: Any, expected: Any) -> str | None:
    """Compare what a batch knows about its parts, where both know it."""
    for name in _BATCH_FACTS:
        got, want = (_own(graph).__dict__.get(name) for graph in (actual, expected))
        if got is not None and want is not None:
            text = value_difference(_plain(got), _plain(want))
            if text is not None:
                return f"{name} of the batch: {text}"
    return None


def _own(graph: Any) -> Any:
    """The store in which PyG keeps what a graph knows about itself."""
    return graph._global_store if isinstance(graph, HeteroData) else graph._store


def _plain(value: Any) -> Any:
    """Dicts sorted by key: the order in which a batch notes its slices carries no meaning."""
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value, key=str)}
    return value


def _names(got: list[str], want: list[str], what: str) -> str | None:
    if got == want:
        return None
    missing, extra = [n for n in want if n not in got], [n for n in got if n not in want]
    if missing or extra:
        parts = [f"missing {missing}" if missing else "", f"not expected {extra}" if extra else ""]
        return f"{what}: {', '.join(filter(None, parts))}"
    return f"{what}: order {got}, expected {want}"


def value_difference(got: Any, want: Any) -> str | None:
    """How two values differ, or ``None``."""
    if type(got) is not type(want):
        return f"is a {_kind(got)}, expected {_kind(want)}"
    if isinstance(want, Tensor):
        return _tensor_difference(got, want)
    if isinstance(want, np.ndarray | np.generic):
        return _array_difference(np.asarray(got), np.asarray(want))
    if isinstance(want, list | tuple):
        return _sequence_difference(got, want)
    if isinstance(want, dict):
        text = _names([repr(k) for k in got], [repr(k) for k in want], "keys")
        if text is not None:
            return text
        parts = ((repr(key), value_difference(got[key], value)) for key, value in want.items())
        return next((f"[{key}] {text}" for key, text in parts if text is not None), None)
    if isinstance(want, float):
        return None if struct.pack("<d", got) == struct.pack("<d", want) else f"is {got!r}, expected {want!r}"
    try:
        same = bool(got == want)
    except (TypeError, ValueError, RuntimeError):
        same = got is want
    return None if same else f"is {_short(got)}, expected {_short(want)}"


def _sequence_difference(got: Any, want: Any) -> str | None:
    if len(got) != len(want):
        return f"has {len(got)} items, expected {len(want)}"
    # Node names come by the thousand: one comparison for all. Types too, because True == 1.
    simple = all(type(item) in (str, int, bool) for item in want)
    if simple and list(map(type, got)) == list(map(type, want)) and list(got) == list(want):
        return None
    parts = (value_difference(a, b) for a, b in zip(got, want, strict=True))
    return next((f"item {k} {text}" for k, text in enumerate(parts) if text is not None), None)


def _tensor_difference(got: Tensor, want: Tensor) -> str | None:
    if got.layout != want.layout:
        return f"has layout {got.layout}, expected {want.layout}"
    if got.dtype != want.dtype:
        return f"has dtype {got.dtype}, expected {want.dtype}"
    if got.shape != want.shape:
        return f"has shape {list(got.shape)}, expected {list(want.shape)}"
    if want.layout != torch.strided:
        return None if bool(torch.equal(got.to_dense(), want.to_dense())) else "has other values"
    if got is want or got.numel() == 0:
        return None
    one, other = got.detach().cpu(), want.detach().cpu()
    bits = _tensor_bits(one), _tensor_bits(other)
    if torch.equal(*bits):
        return None
    differs = (bits[0] != bits[1]).any(dim=1).numpy()
    return _elements(one.flatten(), other.flatten(), differs, list(want.shape))


def _tensor_bits(tensor: Tensor) -> Tensor:
    """Bytes of each element, ``[numel, itemsize] uint8``."""
    plain = tensor.resolve_conj().resolve_neg().contiguous().flatten()
    # One element of a strided column counts as contiguous; view() still refuses it.
    if plain.stride() != (1,):
        plain = plain.clone(memory_format=torch.contiguous_format)
    if plain.dtype == torch.bool:
        return plain.to(torch.uint8).view(-1, 1)
    return plain.view(torch.uint8).view(plain.numel(), -1)


def _array_difference(got: Any, want: Any) -> str | None:
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"is {got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}"
    if want.dtype.hasobject:
        return value_difference(got.tolist(), want.tolist())
    if want.size == 0 or got.tobytes() == want.tobytes():
        return None
    one, other = (np.ascontiguousarray(a).reshape(-1) for a in (got, want))
    differs = one.view(np.uint8).reshape(len(one), -1) != other.view(np.uint8).reshape(len(other), -1)
    return _elements(one, other, differs.any(axis=1), list(want.shape))


def _elements(got: Any, want: Any, differs: Any, shape: list[int]) -> str:
    at = int(np.argmax(differs))
    place = [int(k) for k in np.unravel_index(at, shape)] if shape else []
    count, total = int(np.count_nonzero(differs)), len(differs)
    values = f"{got[at].item()!r}, expected {want[at].item()!r}"
    return f"element {place} is {values} ({count:,} of {total:,} elements differ)"


def _kind(value: Any) -> str:
    return "NoneType" if value is None else f"{type(value).__name__} {_short(value)}"


def _short(value: Any) -> str:
    text = f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor | np.ndarray) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
