"""Running PyG layers on the shared graph: ``x [batch, num_nodes, num_features]`` and one edge list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import HeteroConv
from torch_geometric.nn.conv.hetero_conv import group

from torchcell_cache.errors import SettingError
from torchcell_cache.nn.edges import SharedEdges
from torchcell_cache.nn.linear import run_linear, why_not_linear
from torchcell_cache.processors.base import choice
from torchcell_cache.topology import EdgeType

ROUTES = ("auto", "fast", "general")


def shared_conv(
    layer: torch.nn.Module,
    x: Tensor | tuple[Tensor, Tensor],
    edges: SharedEdges,
    *,
    route: str = "auto",
    **edge_fields: Tensor | None,
) -> Tensor:
    """Run a layer on every sample of a batch, each with its own kept edges of one shared edge list.

    Equal, in values and gradients, to the layer on ``batch.to_pyg()`` with ``edge_index[:, mask]``: all nodes are there,
    only kept edges send messages.

    Args:
        layer: Any ``MessagePassing`` layer, or a module that is called like one: ``layer(x, edge_index, **fields)``.
        x: Node features, ``[batch, num_nodes, num_features]``; source and target features if the edges are bipartite.
        edges: The batch's edges, from :func:`shared_edges`.
        route: ``fast`` multiplies the shared adjacency with all samples at once and copies nothing per sample: exact for
            ``GINConv``, ``SAGEConv`` and ``GraphConv`` with sum or mean and ``GCNConv``, with constant weights.
            ``general`` lists the kept edges of all samples and runs the layer as it is: any layer, any aggregation.
            ``auto`` is fast where that is exact.
        **edge_fields: The layer's edge arguments (``edge_weight [num_edges]``, ``edge_attr [num_edges, k]``, ...), one row
            per edge of the shared list.

    Returns:
        ``[batch, num_target, ...]``.

    Raises:
        SettingError: If a shape does not fit, the layer caches what differs from sample to sample, or ``route="fast"``
            is not exact here.
    """
    choice("route", route, ROUTES)
    pair = (x, x) if isinstance(x, Tensor) else (x[0], x[1])
    fields = {name: value for name, value in edge_fields.items() if value is not None}
    _check(layer, pair, edges, fields)
    batch, num_target = pair[1].shape[:2]
    reason = "route='general'" if route == "general" else why_not_linear(layer, edges, fields)
    if reason is None and pair[0].dim() == 3:
        return run_linear(layer, pair, edges, fields).view(batch, num_target, -1)
    if route == "fast":
        raise SettingError(f"the fast route is not exact here: {reason}", fix='use route="auto"')
    kept = edges.kept(pair[0].size(1), num_target)
    flat = pair[0].flatten(0, 1)
    both = flat if pair[0] is pair[1] else (flat, pair[1].flatten(0, 1))
    out = layer(both, kept.index, **{name: value[kept.edge] for name, value in fields.items()})
    if not isinstance(out, Tensor) or out.size(0) != batch * num_target:
        raise SettingError(
            f"{type(layer).__name__} gave {type(out).__name__}, expected a tensor with one row per target node"
        )
    return out.view(batch, num_target, *out.shape[1:])


def shared_hetero_conv(
    layer: HeteroConv,
    x: Mapping[str, Tensor],
    edges: Mapping[EdgeType, SharedEdges],
    *,
    route: str = "auto",
    **edge_field_dicts: Mapping[EdgeType, Tensor],
) -> dict[str, Tensor]:
    """Run a ``HeteroConv`` on every sample of a batch; see :func:`shared_conv`.

    Args:
        layer: The layer; edge types that ``edges`` does not have are skipped, as PyG does.
        x: Features per node type, ``[batch, num_nodes, num_features]``.
        edges: Edges per edge type, from :func:`shared_edges`.
        route: As for :func:`shared_conv`, for every edge type.
        **edge_field_dicts: Edge arguments per edge type, named as for ``HeteroConv``: ``edge_weight_dict={...}``.

    Returns:
        Features per target node type, ``[batch, num_nodes, ...]``.

    Raises:
        SettingError: If a shape or a name does not fit.
    """
    for name in edge_field_dicts:
        if not name.endswith("_dict"):
            raise SettingError(f"edge argument '{name}' is per edge type", fix=f"name it '{name}_dict'")
    outs: dict[str, list[Tensor]] = {}
    for edge_type, conv in layer.convs.items():
        source, _, target = edge_type
        if edge_type not in edges or source not in x or target not in x:
            continue
        fields = {
            n.removesuffix("_dict"): d[edge_type] for n, d in edge_field_dicts.items() if edge_type in d
        }
        features = x[source] if source == target else (x[source], x[target])
        out = shared_conv(conv, features, edges[edge_type], route=route, **fields)
        outs.setdefault(target, []).append(out.flatten(0, 1))
    grouped = {target: group(parts, layer.aggr) for target, parts in outs.items()}
    return {target: value.view(*x[target].shape[:2], *value.shape[1:]) for target, value in grouped.items()}


class SharedConv(torch.nn.Module):
    """A layer or ``HeteroConv`` as a module that takes the shared graph.

    Args:
        layer: The PyG layer; its parameters are this module's.
        route: As for :func:`shared_conv`.

    Example:
        >>> conv = SharedConv(GINConv(mlp))
        >>> y = conv(x, shared_edges(batch)["gene", "physical", "gene"])  # [batch, num_genes, num_out]
    """

    def __init__(self, layer: torch.nn.Module, route: str = "auto") -> None:
        super().__init__()
        self.layer, self.route = layer, choice("route", route, ROUTES)

    def forward(self, x: Any, edges: Any, **edge_fields: Any) -> Any:
        """See :func:`shared_conv` and :func:`shared_hetero_conv`."""
        run: Any = shared_hetero_conv if isinstance(self.layer, HeteroConv) else shared_conv
        return run(self.layer, x, edges, route=self.route, **edge_fields)


def _check(
    layer: torch.nn.Module, x: tuple[Tensor, Tensor], edges: SharedEdges, fields: Mapping[str, Tensor]
) -> None:
    if getattr(layer, "cached", False):
        raise SettingError(
            f"{type(layer).__name__}(cached=True) would keep the first batch's degrees for all others",
            fix="make the layer with cached=False",
        )
    for end in x:
        if not isinstance(end, Tensor) or end.dim() < 3 or end.size(0) != x[0].size(0):
            got = list(end.shape) if isinstance(end, Tensor) else type(end).__name__
            raise SettingError(
                f"node features are {got}, expected [batch, num_nodes, num_features] on both ends"
            )
    edges.check(x[0].size(0), x[0].size(1), x[1].size(1))
    for name, value in fields.items():
        if not isinstance(value, Tensor) or value.dim() == 0 or value.size(0) != edges.edge_index.size(1):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SettingError(
                f"{name} is {got}, expected one row for each of the {edges.edge_index.size(1)} shared edges"
            )
