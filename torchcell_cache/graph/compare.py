"""Whether two graphs are the same, and if not, the first place where they differ, in words.

Same means: graph class, order of stores, order of keys, types, dtypes, shapes, and values bit for bit (two NaN with the
same bits are equal, 0.0 and -0.0 are not). Only the device may differ.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torchcell_cache.codec.layout import StoreKey, field_label, store_label
from torchcell_cache.errors import UnsupportedValueError
from torchcell_cache.graph.values import to_array

_BATCH_FACTS = ("_num_graphs", "_slice_dict", "_inc_dict")
_ENDS = ("edge_index", "hyperedge_index")
_NAMES = (str, int)
_ANNOTATIONS = ("term_gene_mapping", "go_gene_strata_state")
_GENES_OF_TERMS = "term_to_gene_dict"
Fields = dict[str, Any]


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
    # The store in which PyG keeps what a graph knows about itself.
    own = "_global_store" if isinstance(expected, HeteroData) else "_store"
    for name in _BATCH_FACTS:
        got, want = (getattr(graph, own).__dict__.get(name) for graph in (actual, expected))
        if got is not None and want is not None:
            text = value_difference(_plain(got), _plain(want))
            if text is not None:
                return f"{name} of the batch: {text}"
    return None


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


# The same but for the order of edges, as graphs made from Python sets are in two processes


def reordered_parts(one: Any, other: Any) -> list[str] | None:
    """Stores in which two graphs hold the same edges in another order; ``None`` if the graphs differ in more than that.

    An edge is its ends with everything said of it in its store. Beside edges, dicts of an edge store may have another order
    of keys, and their lists of names or numbers another order of items; lists of one key and length are rows of one table.
    A gene ontology as torchcell has it may have another order of its (term, gene) rows and lists of genes.
    """
    if type(one) is not type(other):
        return None
    first, second = list(stores_of(one)), list(stores_of(other))
    if [key for key, _ in first] != [key for key, _ in second]:
        return None
    parts = []
    for (key, fields), (_, others) in zip(first, second, strict=True):
        if list(fields) != list(others):
            return None
        differing = {name for name in fields if value_difference(fields[name], others[name]) is not None}
        if differing:
            if not any(_same_rows(fields, others, differing, *table) for table in _tables(fields)):
                return None
            parts.append(store_label(key))
    return parts


def _tables(fields: Fields) -> Iterator[tuple[list[str], list[str]]]:
    """Fields that have a row for each edge (or annotation), and the dicts beside them."""
    ends = next((name for name in _ENDS if isinstance(fields.get(name), Tensor)), None)
    if ends is not None and fields[ends].ndim == 2:
        count = int(fields[ends].size(1))
        per_edge = [name for name in fields if _is_per_edge(name, fields, count)]
        yield per_edge, [name for name in fields if isinstance(fields[name], dict)]
    annotations = [name for name in _ANNOTATIONS if isinstance(fields.get(name), Tensor)]
    yield annotations, [_GENES_OF_TERMS] if _GENES_OF_TERMS in fields else []


def _is_per_edge(name: str, fields: Fields, count: int) -> bool:
    value = fields[name]
    if name in _ENDS:
        return True
    if isinstance(value, Tensor | np.ndarray):
        of_nodes = "edge" not in name and count == _num_nodes(fields)
        return value.ndim > 0 and len(value) == count and not of_nodes
    return isinstance(value, list) and len(value) == count and all(type(v) in _NAMES for v in value)


def _num_nodes(fields: Fields) -> int | None:
    """Number of nodes of a graph whose nodes and edges share a store, if it says so."""
    names = ("x", "pos", "node_ids", "num_nodes")
    found = next((fields[name] for name in names if fields.get(name) is not None), None)
    return found if found is None or isinstance(found, int) else len(found)


def _same_rows(
    fields: Fields, others: Fields, differing: set[str], names: list[str], dicts: list[str]
) -> bool:
    """Whether fields differ in the order of rows and of what their dicts list only."""
    if not differing <= {*names, *dicts}:
        return False
    both = [(fields[name], others[name]) for name in names]
    if any(getattr(a, k, type(a)) != getattr(b, k, type(b)) for k in ("dtype", "shape") for a, b in both):
        return False
    if differing & {*names}:
        known: dict[str, int] = {}
        one, other = (
            _sorted_rows([store[name] for name in names], names, known) for store in (fields, others)
        )
        if one is None or other is None or not np.array_equal(one, other):
            return False
    parts = [[store[name] for name in dicts] for store in (fields, others)]
    if any(not (type(a) is type(b) is dict and set(a) == set(b)) for a, b in zip(*parts, strict=True)):
        return False
    keys = dict.fromkeys(key for part in parts[0] for key in part)
    return all(_table(parts[0], key) == _table(parts[1], key) for key in keys)


def _sorted_rows(values: list[Any], names: list[str], known: dict[str, int]) -> npt.NDArray[Any] | None:
    """Rows of all columns as bytes, in an order of their own, ``[count, words] uint64``; texts by numbers that ``known`` has."""
    columns = []
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list):
            value = np.array([known.setdefault(repr(item), len(known)) for item in value], dtype=np.int64)
        try:
            array = to_array(value, name).array if isinstance(value, Tensor) else np.asarray(value)
        except UnsupportedValueError:
            return None
        if array.dtype.hasobject or array.ndim < 1 + (name in _ENDS):
            return None
        columns.append(np.ascontiguousarray(array.T if name in _ENDS else array))
    counts = {len(column) for column in columns}
    if len(counts) != 1 or 0 in counts:
        return np.zeros(0, dtype=np.uint64) if counts == {0} else None
    rows = np.concatenate([column.reshape(len(column), -1).view(np.uint8) for column in columns], axis=1)
    words = np.ascontiguousarray(np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))).view(np.uint64)
    return words[np.lexsort(words.T)]


def _table(parts: list[dict[Any, Any]], key: Any) -> Any:
    """What dicts say of a key: lists of one length row by row, in any order; everything else as it is."""
    lists: dict[int, list[list[Any]]] = {}
    plain = []
    for part in parts:
        value = part.get(key)
        if isinstance(value, list) and all(type(item) in _NAMES for item in value):
            lists.setdefault(len(value), []).append(value)
            plain.append(f"{len(value)} items")
        else:
            plain.append(repr(value))
    return plain, {size: Counter(zip(*columns, strict=True)) for size, columns in lists.items()}
