"""The general route in bounded memory: some samples at a time, and again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn as G
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchcell_cache.nn.arguments import Arguments, Ends
from torchcell_cache.nn.edges import SharedEdges, kept_edges
from torchcell_cache.nn.rowwise import in_transform, is_hooked, is_rowwise

EDGES_AT_ONCE = 1 << 21
"""Edges of all samples of a piece together: what a layer makes of them takes some hundred bytes each."""
_SEPARATE = (
    *(G.GATConv, G.GATv2Conv, G.TransformerConv, G.PNAConv, G.GINConv, G.GINEConv, G.SAGEConv, G.GraphConv),
    *(
        G.GCNConv,
        G.ResGatedGraphConv,
        G.NNConv,
        G.CGConv,
        G.EdgeConv,
        G.LEConv,
        G.TAGConv,
        G.SGConv,
        G.FiLMConv,
    ),
)


def is_separate(module: Any) -> bool:
    """Whether it is known of a layer that it looks at each graph of a batch by itself and remembers nothing of it."""
    if not isinstance(module, nn.Module) or is_hooked(module) or getattr(module, "explain", False):
        return False
    if is_rowwise(module) or type(module) is nn.Dropout:
        return True
    known = type(module) in (*_SEPARATE, nn.Sequential, nn.ModuleList)
    is_aggregation = type(module).__module__.removeprefix("torch_geometric.nn.aggr.") in (
        "basic",
        "multi",
        "fused",
    )
    is_scaler = type(module).__module__ == "torch_geometric.nn.aggr.scaler" and not list(module.parameters())
    is_norm = isinstance(module, nn.BatchNorm1d | G.BatchNorm) and not module.training
    return (known or is_aggregation or is_scaler or is_norm) and all(map(is_separate, module.children()))


def pieces(layer: nn.Module, x: Ends, edges: SharedEdges, arguments: Arguments) -> int:
    """How many samples to take at a time; all, unless they are too many and the layer may be given fewer."""
    batch, num_edges = x[0].size(0), edges.edge_index.size(1)
    if batch * num_edges <= EDGES_AT_ONCE or arguments.others or in_transform() or not is_separate(layer):
        return batch
    return max(EDGES_AT_ONCE // max(num_edges, 1), 1)


def run_in_pieces(
    layer: nn.Module, x: Ends, edges: SharedEdges, of_edges: dict[str, Tensor], size: int
) -> Tensor:
    """The layer on ``size`` samples at a time, ``[batch * num_target, ...]``; what it makes of edges is not kept."""
    mask, same = edges.mask(), x[0] is x[1]

    def piece(part: Tensor, source: Tensor, target: Tensor | None, *values: Tensor) -> Any:
        num_target = (source if target is None else target).size(1)
        kept = kept_edges(part, edges.edge_index, source.size(1), num_target)
        flat = source.flatten(0, 1)
        both = flat if target is None else (flat, target.flatten(0, 1))
        named = {name: value[kept.edge] for name, value in zip(of_edges, values, strict=True)}
        return layer(both, kept.index, **named)

    outs = []
    for begin in range(0, len(mask), size):
        here = slice(begin, begin + size)
        given: Any = mask[here], x[0][here], None if same else x[1][here], *of_edges.values()
        again = torch.is_grad_enabled()
        outs.append(checkpoint(piece, *given, use_reentrant=False) if again else piece(*given))
    return torch.cat(outs)
