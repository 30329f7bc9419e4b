"""PyG's layers as their own ``forward`` sees them, and whether they are still what PyG made them."""

from __future__ import annotations

from typing import Any

import torch
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GINConv, GraphConv, SAGEConv, TransformerConv

from torchcell_cache.nn.rowwise import is_hooked

_KNOWN = (GINConv, SAGEConv, GraphConv, GCNConv, GATConv, GATv2Conv, TransformerConv)
_METHODS = ("forward", "message", "aggregate", "update", "message_and_aggregate", "edge_update")
_AS_PYG_HAS_THEM = {kind: [getattr(kind, name, None) for name in _METHODS] for kind in _KNOWN}


def is_altered(module: torch.nn.Module) -> bool:
    """Whether hooks or patches make a module do other things than its class says."""
    own, known = vars(module), _AS_PYG_HAS_THEM.get(type(module), [])
    return bool(
        is_hooked(module)
        or any(callable(getattr(type(module), name, None)) for name in own)
        or any(getattr(type(module), name, None) is not it for name, it in zip(_METHODS, known, strict=False))
    )


class Seen:
    """A layer as its own ``forward`` sees it, some attributes replaced."""

    def __init__(self, layer: torch.nn.Module, **instead: Any) -> None:
        self._layer = layer
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)
