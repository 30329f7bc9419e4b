"""The fast route: layers whose sum over edges is one product of the shared adjacency with all samples at once.

``GINConv``, ``SAGEConv`` and ``GraphConv`` (sum or mean) and ``GCNConv`` send a neighbour's features times a constant.
When edges go only because their ends go, leaving edges out equals hiding the deleted sources' features and emptying the
deleted targets' sums, so neither edges nor messages are ever copied per sample. Hidden features add exact zeros:
nothing is subtracted, so nothing cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch_geometric.nn import GCNConv, GINConv, GraphConv, MessagePassing, SAGEConv
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation

from torchcell_cache.nn.adjacency import adjacency_of
from torchcell_cache.nn.again import run_rowwise
from torchcell_cache.nn.edges import Ends, SharedEdges
from torchcell_cache.nn.modules import DTYPES, Seen, in_transform, is_autocast, is_rowwise, why_not_plain
from torchcell_cache.nn.product import linear_map, multiply
from torchcell_cache.nn.shared_input import Differing, Touched

_LINEAR = (GINConv, SAGEConv, GraphConv, GCNConv)
SHARED_ABOVE = 1 << 17
"""Numbers in a batch's features below which there is nothing to be gained from samples that enter alike."""
_WEIGHTED = (GraphConv, GCNConv)


def why_not_linear(layer: Any, x: Ends, edges: SharedEdges, fields: Mapping[str, Any]) -> str | None:
    """Why the fast route would not be exact here, or ``None`` if it is.

    Args:
        layer: The layer.
        x: Source and target features.
        edges: The batch's edges.
        fields: The layer's arguments besides these.
    """
    aggrs = (SumAggregation,) if isinstance(layer, GCNConv) else (SumAggregation, MeanAggregation)
    reason = why_not_plain(layer, x, edges, _LINEAR, aggrs, -2)
    name, weight = type(layer).__name__, fields.get("edge_weight")
    if reason is not None:
        return reason
    if set(fields) - {"edge_weight"} or (weight is not None and type(layer) not in _WEIGHTED):
        return f"{name} takes {sorted(fields)} in a way of its own"
    if weight is None:
        return None
    traced = False  # a derivative or a further batch dimension may hide in a tensor that looks constant
    if not torch.compiler.is_compiling():
        traced = torch._C._functorch.is_functorch_wrapped_tensor(weight) or forward_ad._current_level >= 0
    if weight.requires_grad or weight.dim() != 1 or weight.dtype not in DTYPES or traced:
        return "the edge weights are learned or not one floating point number per edge"
    if isinstance(layer, GCNConv) and layer.add_self_loops:
        kept = None if torch.compiler.is_compiling() else edges.source_kept
        num_nodes = -1 if kept is None else kept.size(1)
        if num_nodes < 0 or adjacency_of(edges.edge_index, num_nodes, num_nodes).has_loops:
            return "GCNConv gives weighted self loops a place of their own"
    return None


def run_linear(layer: MessagePassing, x: Ends, edges: SharedEdges, fields: Mapping[str, Any]) -> Tensor:
    """Run the layer's own forward with ``propagate`` replaced by the shared product.

    Args:
        layer: A layer for which :func:`why_not_linear` is ``None``.
        x: Source and target features, ``[batch, num_nodes, num_features]``; one object twice unless bipartite.
        edges: The batch's edges.
        fields: ``edge_weight [num_edges]`` or nothing.

    Returns:
        ``[batch * num_target, num_out]``.
    """
    product = _Product(layer, edges, x)
    flat = x[0].flatten(0, 1)
    both: Any = flat if x[0] is x[1] else (flat, x[1].flatten(0, 1))
    instead: dict[str, Any] = {"propagate": product.propagate}
    in_pieces = flat.device.type == "cpu" and not in_transform() and not is_autocast(flat)
    if isinstance(layer, GINConv) and in_pieces and is_rowwise(layer.nn):
        instead["nn"] = partial(run_rowwise, layer.nn)
    if isinstance(layer, GCNConv):
        instead["normalize"] = False
    elif isinstance(layer, GINConv) and x[0] is x[1] and isinstance(layer.aggr_module, SumAggregation):
        eps = layer.eps
        if (
            not eps.requires_grad
            and eps.dtype == flat.dtype
            and eps.device.type == "cpu"
            and not in_transform()
        ):
            product.root, both = (
                1 + float(eps),
                (flat, None),
            )  # a plain number weights the layer's own features
    out: Tensor = type(layer).forward(Seen(layer, **instead), both, edges.edge_index, **fields)
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run_shared(
    layer: MessagePassing, x: Ends, edges: SharedEdges, fields: Mapping[str, Any], bases: dict[int, Tensor]
) -> Differing | None:
    """The layer where all samples enter with the same features, if that is so and pays.

    Args:
        layer: A layer for which :func:`why_not_linear` is ``None``.
        x: As for :func:`run_linear`.
        edges: The batch's edges.
        fields: As for :func:`run_linear`.
        bases: One sample's features by ``id`` of the features: taken once, so that gradients meet before they are
            spread over the batch.
    """
    batch, num_target = x[1].shape[:2]
    parts = [m for m in layer.children() if m is not layer.aggr_module]
    weight, is_mean = fields.get("edge_weight"), isinstance(layer.aggr_module, MeanAggregation)
    if (
        batch < 2
        or x[1].numel() < SHARED_ABOVE
        or any(end.stride(0) or end.device.type != "cpu" or is_autocast(end) for end in x)
        or in_transform()
        or isinstance(layer, GCNConv)
        or (is_mean and weight is not None)  # divided by edges, not by their weight
        or not all(map(is_rowwise, parts))
    ):
        return None
    adjacency = adjacency_of(edges.edge_index, x[0].size(1), num_target)

    def find() -> Touched:
        matrices = adjacency.matrices(weight, torch.float64)
        return Touched(matrices, edges.source_kept, edges.target_kept, batch)

    touched = find() if weight is not None else edges.remember("touched", find)
    if num_target + len(touched.at) > batch * num_target // 2:
        return None
    source, target = (bases.setdefault(id(end), end[0]) for end in x)

    def propagate(edge_index: Tensor, *, x: Any, **_: Any) -> Tensor:
        sent = x[0] if weight is None else x[0].to(torch.promote_types(x[0].dtype, weight.dtype))
        total: Tensor = linear_map((touched.sums, touched.sums_t), sent)
        return total if not is_mean else total / touched.degrees().clamp(min=1).to(total.dtype)

    rows = torch.cat([target, target[touched.row]])
    out = type(layer).forward(Seen(layer, propagate=propagate), (source, rows), edges.edge_index, **fields)
    return Differing(out, touched)


class _Product:
    """Stands in for ``MessagePassing.propagate`` of a layer, on ``[batch * num_nodes, num_features]``."""

    def __init__(self, layer: MessagePassing, edges: SharedEdges, x: Ends) -> None:
        self.layer, self.edges, self.root, self.dtype = layer, edges, 0.0, x[0].dtype
        self.ends = *x[0].shape[:2], x[1].size(1)

    def propagate(
        self, edge_index: Tensor, *, x: Any, edge_weight: Tensor | None = None, size: Any = None
    ) -> Tensor:
        """Sum over kept edges, or their mean: 0 where there is none."""
        x = x[0] if isinstance(x, tuple) else x
        if isinstance(self.layer, GCNConv) and self.layer.normalize:
            return self._normalised(x, edge_weight)
        total = self._sum(x, edge_weight, root=self.root)
        if not isinstance(self.layer.aggr_module, MeanAggregation):
            return total
        return total / self._degree(None, True, total.dtype).clamp(min=1).to(total.dtype)

    def _normalised(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """GCN's: degrees of the kept edges, a self loop per node (also a deleted one) if asked for.

        PyG normalises in the dtype of the layer's input; under autocast the messages have another.
        """
        loop, add_loops = 0.0, bool(self.layer.add_self_loops)
        if add_loops:  # PyG counts 1 for a self loop without weights, also with `improved`
            loop = 2.0 if self.layer.improved and weight is not None else 1.0
        degree = self._degree(weight, not add_loops, self.dtype) + loop
        scale = degree.pow(-0.5)
        scale = scale.masked_fill(scale == float("inf"), 0)
        scale = scale.to(self.dtype if weight is None else weight.dtype)
        out = scale * self._sum(scale * x, weight, loops=not add_loops)
        return out + loop * scale * scale * x if add_loops else out

    def _sum(self, x: Tensor, weight: Tensor | None, **how: Any) -> Tensor:
        batch, num_source, num_target = self.ends
        x = x if weight is None else x.to(torch.promote_types(x.dtype, weight.dtype))
        x = x.view(batch, num_source, x.size(-1))
        return multiply(self.edges, num_target, x, weight, **how).flatten(0, 1)

    def _degree(self, weight: Tensor | None, loops: bool, dtype: torch.dtype) -> Tensor:
        """Kept edges (or their weight) into each target, ``[batch * num_target, 1]``, at least float32."""
        dtype = torch.promote_types(dtype if weight is None else weight.dtype, torch.float32)

        def make() -> Tensor:
            ones = torch.ones((*self.ends[:2], 1), dtype=dtype, device=self.edges.edge_index.device)
            return self._sum(ones, weight, loops=loops, constant=True)

        if weight is not None or torch.compiler.is_compiling():
            return make()
        return self.edges.remember(f"degree {loops} {dtype}", make)
