"""``copy.copy`` of a ``HeteroData``, several times faster.

PyG copies store by store through ``copy.copy`` and ``__setattr__``; for a graph of fifteen stores that is a third of the
time a sample takes. This does the same to the same attributes; the equality tests compare the result with PyG's own.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch_geometric.data import HeteroData


def clone_stores(graph: HeteroData) -> tuple[HeteroData, dict[Any, dict[str, Any]]]:
    """A shallow copy of ``graph`` with stores of its own.

    Returns:
        The copy, and the mapping behind each of its node and edge stores by type.
    """
    out = HeteroData.__new__(HeteroData)
    parent = weakref.ref(out)
    mappings: dict[Any, dict[str, Any]] = {}

    def clone(store: Any, key: Any) -> Any:
        state = store.__dict__.copy()
        state.pop("_cached_attr", None)
        state["_mapping"] = mappings[key] = state["_mapping"].copy()
        state["_parent"] = parent
        copied = store.__class__.__new__(store.__class__)
        copied.__dict__.update(state)
        return copied

    out.__dict__.update(graph.__dict__)
    out.__dict__["_global_store"] = clone(graph._global_store, None)
    out.__dict__["_node_store_dict"] = {
        key: clone(store, key) for key, store in graph._node_store_dict.items()
    }
    out.__dict__["_edge_store_dict"] = {
        key: clone(store, key) for key, store in graph._edge_store_dict.items()
    }
    return out, mappings
