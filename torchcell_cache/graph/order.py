"""Whether two graphs are the same but for the order of edges, as graphs made from Python sets are in two processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from torchcell_cache.codec.layout import store_label
from torchcell_cache.errors import UnsupportedValueError
from torchcell_cache.graph.compare import stores_of, value_difference
from torchcell_cache.graph.values import to_array

_ENDS = ("edge_index", "hyperedge_index")
_NAMES = (str, int)
_ANNOTATIONS = ("term_gene_mapping", "go_gene_strata_state")
_GENES_OF_TERMS = "term_to_gene_dict"
Fields = dict[str, Any]


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
    if differing & {*names}:
        known: dict[str, int] = {}
        one, other = (
            _sorted_rows([store[name] for name in names], names, known) for store in (fields, others)
        )
        if one is None or other is None or not np.array_equal(one, other):
            return False
    parts = [[store[name] for name in dicts] for store in (fields, others)]
    if any(
        type(a) is not dict or type(b) is not dict or set(a) != set(b) for a, b in zip(*parts, strict=True)
    ):
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
