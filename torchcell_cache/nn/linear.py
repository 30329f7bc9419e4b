"""The fast route: layers whose sum over edges is one product of the shared adjacency with all samples at once.

``GINConv``, ``SAGEConv`` and ``GraphConv`` (sum or mean) and ``GCNConv`` send a neighbour's features times a constant.
When edges go only because their ends go, leaving edges out equals hiding the deleted sources' features and emptying the
deleted targets' sums, so neither edges nor messages are ever copied per sample. Hidden features add exact zeros:
nothing is subtracted, so nothing cancels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv, GINConv, GraphConv, MessagePassing, SAGEConv
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation

from torchcell_cache.nn.adjacency import Adjacency, adjacency_of, multiply
from torchcell_cache.nn.edges import SharedEdges

_LINEAR = (GINConv, SAGEConv, GraphConv, GCNConv)
_WEIGHTED = (GraphConv, GCNConv)
_HOOKS = ("_propagate", "_message", "_aggregate", "_message_and_aggregate")


def why_not_linear(layer: torch.nn.Module, edges: SharedEdges, fields: Mapping[str, Any]) -> str | None:
    """Why the fast route would not be exact here, or ``None`` if it is.

    Args:
        layer: The layer.
        edges: The batch's edges.
        fields: The layer's edge arguments.
    """
    name = type(layer).__name__
    if type(layer) not in _LINEAR or not isinstance(layer, MessagePassing):
        return f"{name} is not one of {', '.join(t.__name__ for t in _LINEAR)}"
    if not edges.by_nodes:
        return "edges are masked one by one, not by their ends"
    allowed = (SumAggregation,) if isinstance(layer, GCNConv) else (SumAggregation, MeanAggregation)
    if type(layer.aggr_module) not in allowed:
        return f"{name} aggregates by {type(layer.aggr_module).__name__}"
    if layer.flow != "source_to_target" or layer.explain or layer.decomposed_layers > 1:
        return f"{name} has flow={layer.flow!r}, explain={layer.explain} or several decomposed layers"
    if any(
        getattr(layer, f"{hooks}_{when}")
        for hooks in _HOOKS
        for when in ("forward_pre_hooks", "forward_hooks")
    ):
        return f"{name} has hooks inside propagate"
    weight = fields.get("edge_weight")
    if set(fields) - {"edge_weight"} or (weight is not None and type(layer) not in _WEIGHTED):
        return f"{name} takes edge arguments {sorted(fields)} in a way of its own"
    if weight is not None and (weight.requires_grad or weight.dim() != 1):
        return "the edge weights are learned or not one number per edge"
    if isinstance(layer, GCNConv) and layer.add_self_loops and weight is not None:
        num_nodes = -1 if edges.source_kept is None else edges.source_kept.size(1)
        if num_nodes < 0 or adjacency_of(edges.edge_index, num_nodes, num_nodes).has_loops:
            return "GCNConv gives weighted self loops a place of their own"
    return None


def run_linear(
    layer: MessagePassing, x: tuple[Tensor, Tensor], edges: SharedEdges, fields: Mapping[str, Any]
) -> Tensor:
    """Run the layer's own forward with ``propagate`` replaced by the shared product.

    Args:
        layer: A layer for which :func:`why_not_linear` is ``None``.
        x: Source and target features, ``[batch, num_nodes, num_features]``; one object twice unless bipartite.
        edges: The batch's edges.
        fields: ``edge_weight [num_edges]`` or nothing.

    Returns:
        ``[batch * num_target, num_out]``.
    """
    batch, num_source = x[0].shape[:2]
    adjacency = adjacency_of(edges.edge_index, num_source, x[1].size(1))
    product = _Product(edges, adjacency, batch)
    runner = copy.copy(layer)  # shares parameters, buffers and hooks; only `propagate` is its own
    if isinstance(layer, GCNConv):
        runner.propagate = product.normalised(layer) if layer.normalize else product.summed
        runner.normalize = False
    else:
        mean = isinstance(layer.aggr_module, MeanAggregation)
        runner.propagate = product.averaged if mean else product.summed
    flat = x[0].flatten(0, 1)
    both = flat if x[0] is x[1] else (flat, x[1].flatten(0, 1))
    out: Tensor = runner(both, edges.edge_index, **fields)
    return out


class _Product:
    """Stand-ins for ``MessagePassing.propagate`` on ``[batch * num_nodes, num_features]``."""

    def __init__(self, edges: SharedEdges, adjacency: Adjacency, batch: int) -> None:
        self.edges, self.adjacency, self.batch = edges, adjacency, batch

    def summed(
        self, edge_index: Tensor, *, x: Any, edge_weight: Tensor | None = None, size: Any = None
    ) -> Tensor:
        """Sum over kept edges."""
        return self._sum(x[0] if isinstance(x, tuple) else x, edge_weight)

    def averaged(
        self, edge_index: Tensor, *, x: Any, edge_weight: Tensor | None = None, size: Any = None
    ) -> Tensor:
        """Mean over kept edges, 0 where there is none."""
        total = self.summed(edge_index, x=x, edge_weight=edge_weight)
        return total / self._degree(None, True, total.dtype).clamp(min=1).to(total.dtype)

    def normalised(self, layer: GCNConv) -> Any:
        """GCN's ``propagate``: degrees of the kept edges, a self loop per node (also a deleted one) if asked for."""
        add_loops = bool(layer.add_self_loops)

        def propagate(edge_index: Tensor, *, x: Tensor, edge_weight: Tensor | None = None) -> Tensor:
            loop = 0.0
            if add_loops:  # PyG counts 1 for a self loop without weights, also with `improved`
                loop = 2.0 if layer.improved and edge_weight is not None else 1.0
            degree = self._degree(edge_weight, not add_loops, x.dtype) + loop
            scale = degree.pow(-0.5)
            scale = scale.masked_fill(scale == float("inf"), 0).to(x.dtype)
            out = scale * self._sum(scale * x, edge_weight, loops=not add_loops)
            return out + loop * scale * scale * x if add_loops else out

        return propagate

    def _sum(self, x: Tensor, weight: Tensor | None, *, loops: bool = True) -> Tensor:
        kept = {"source_kept": self.edges.source_kept, "target_kept": self.edges.target_kept}
        x = x.view(self.batch, self.adjacency.num_source, -1)
        return multiply(self.adjacency, x, weight, loops=loops, **kept).flatten(0, 1)

    def _degree(self, weight: Tensor | None, loops: bool, dtype: torch.dtype) -> Tensor:
        """Kept edges (or their weight) into each target, ``[batch * num_target, 1]``, at least float32."""
        dtype = torch.promote_types(dtype, torch.float32)

        def make() -> Tensor:
            shape = (self.batch * self.adjacency.num_source, 1)
            ones = torch.ones(shape, dtype=dtype, device=self.adjacency.column.device)
            return self._sum(ones, weight, loops=loops)

        with torch.no_grad():
            return make() if weight is not None else self.edges.remember(f"degree {loops} {dtype}", make)
