"""Whether two graphs are the same but for the order of edges, as graphs made from Python sets are in two processes."""

from __future__ import annotations

from collections import Counter
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


def reordered_parts(one: Any, other: Any) -> list[str] | None:
    """Stores in which two graphs hold the same edges in another order; ``None`` if the graphs differ in more than that.

    An edge is its ends with everything said of it in its store. Beside edges, dicts of an edge store may have another order
    of keys, and their lists of names or numbers another order of items; lists of one key and length are rows of one table.
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
        differing = [name for name in fields if value_difference(fields[name], others[name]) is not None]
        if differing:
            if not (_same_edges(fields, others, differing) or _same_annotations(fields, others, differing)):
                return None
            parts.append(store_label(key))
    return parts


def _same_edges(fields: dict[str, Any], others: dict[str, Any], differing: list[str]) -> bool:
    """Whether fields that differ do so in the order of edges only."""
    ends = next((name for name in _ENDS if isinstance(fields.get(name), Tensor)), None)
    if ends is None or fields[ends].ndim != 2 or fields[ends].shape != others[ends].shape:
        return False
    count = int(fields[ends].size(1))
    per_edge = [name for name in fields if _is_per_edge(name, fields, count)]
    dicts = [name for name in fields if isinstance(fields[name], dict)]
    if any(name not in per_edge and name not in dicts for name in differing):
        return False
    if any(name in per_edge for name in differing):
        rows = [_rows(store, per_edge, count) for store in (fields, others)]
        if rows[0] is None or rows[1] is None or not _same_rows(rows[0], rows[1]):
            return False
    return not any(name in dicts for name in differing) or _same_dicts(
        [fields[name] for name in dicts], [others[name] for name in dicts]
    )


def _same_annotations(fields: dict[str, Any], others: dict[str, Any], differing: list[str]) -> bool:
    """Whether a gene ontology as torchcell has it differs in the order of its (term, gene) rows and lists of genes only."""
    if not {*differing} <= {*_ANNOTATIONS, _GENES_OF_TERMS}:
        return False
    names = [name for name in _ANNOTATIONS if isinstance(fields.get(name), Tensor)]
    if any(fields[name].shape != others[name].shape or fields[name].ndim != 2 for name in names):
        return False
    if names and {*differing} & {*names}:
        count = int(fields[names[0]].size(0))
        if any(fields[name].size(0) != count for name in names):
            return False
        rows = [_rows(store, names, count) for store in (fields, others)]
        if rows[0] is None or rows[1] is None or not _same_rows(rows[0], rows[1]):
            return False
    genes = [store.get(_GENES_OF_TERMS, {}) for store in (fields, others)]
    return all(type(part) is dict for part in genes) and _same_dicts(genes[:1], genes[1:])


def _is_per_edge(name: str, fields: dict[str, Any], count: int) -> bool:
    value = fields[name]
    if name in _ENDS:
        return True
    if isinstance(value, Tensor | np.ndarray):
        of_nodes = "edge" not in name and count in (_num_nodes(fields),)
        return value.ndim > 0 and len(value) == count and not of_nodes
    return isinstance(value, list) and len(value) == count and all(type(v) in _NAMES for v in value)


def _num_nodes(fields: dict[str, Any]) -> int | None:
    """Number of nodes of a graph whose nodes and edges share a store, if it says so."""
    names = ("x", "pos", "node_ids", "num_nodes")
    found = next((fields[name] for name in names if fields.get(name) is not None), None)
    return found if found is None or isinstance(found, int) else len(found)


def _rows(
    fields: dict[str, Any], names: list[str], count: int
) -> tuple[npt.NDArray[np.uint8], list[str]] | None:
    """Every edge as bytes, ``[count, width] uint8``, and as the text of what is no array."""
    columns = []
    texts = [""] * count
    for name in names:
        value = fields[name]
        if isinstance(value, list):
            texts = [f"{text}\0{item!r}" for text, item in zip(texts, value, strict=True)]
            continue
        try:
            array = to_array(value, name).array if isinstance(value, Tensor) else value
        except UnsupportedValueError:
            return None
        if array.dtype.hasobject:
            return None
        array = np.ascontiguousarray(array.T if name in _ENDS else array)
        columns.append(array.reshape(count, -1).view(np.uint8).reshape(count, -1) if count else None)
    kept = [column for column in columns if column is not None]
    return (np.concatenate(kept, axis=1) if kept else np.zeros((0, 0), np.uint8)), texts


def _same_rows(
    one: tuple[npt.NDArray[np.uint8], list[str]], other: tuple[npt.NDArray[np.uint8], list[str]]
) -> bool:
    texts = sorted(set(one[1]))
    if texts != sorted(set(other[1])) or one[0].shape != other[0].shape:
        return False
    numbers = {text: number for number, text in enumerate(texts)}
    first, second = (_sorted(array, [numbers[text] for text in found]) for array, found in (one, other))
    return np.array_equal(first, second)


def _sorted(array: npt.NDArray[np.uint8], numbers: list[int]) -> npt.NDArray[np.uint64]:
    """Rows in an order of their own, ``[count, words] uint64``."""
    padded = np.ascontiguousarray(np.pad(array, ((0, 0), (0, -array.shape[1] % 8))))
    words = padded.view(np.uint64).reshape(len(numbers), padded.shape[1] // 8)
    words = np.concatenate([words, np.array(numbers, dtype=np.uint64).reshape(-1, 1)], axis=1)
    return words[np.lexsort(words.T)]


def _same_dicts(one: list[dict[Any, Any]], other: list[dict[Any, Any]]) -> bool:
    for a, b in zip(one, other, strict=True):
        if set(a) != set(b):
            return False
    keys = dict.fromkeys(key for part in one for key in part)
    return all(_table(one, key) == _table(other, key) for key in keys)


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
