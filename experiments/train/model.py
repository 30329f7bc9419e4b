"""A small heterogeneous GIN: genes pass messages to genes, reactions and metabolites; the readout predicts a phenotype.

One model, one set of parameters, two ways to feed it: a ``SharedGraphBatch`` keeps one edge list for all samples, a PyG
batch of the mask representation (``LazySubgraphRepresentation``) has its own copy of everything. Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GINConv, GraphConv, HeteroConv

import torchcell_cache as tc
from torchcell_cache.nn import shared_edges, shared_hetero_conv

GPR, RMR = ("gene", "gpr", "reaction"), ("reaction", "rmr", "metabolite")


def _unheard(_: str) -> None:
    """Nobody listens."""


class HeteroGin(nn.Module):
    """Predicts one number per sample.

    Args:
        base_graph: The graph all samples share; gives node counts, feature width and edge types.
        hidden: Width.
        layers: Number of message passing layers.

    Attributes:
        mark: Told what has just been done: ``expansion``, ``layer 1``, ..., ``read-out``.
    """

    def __init__(self, base_graph: Any, hidden: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.mark: Callable[[str], None] = _unheard
        self.counts = {name: int(base_graph[name].num_nodes) for name in base_graph.node_types}
        self.edge_types = list(base_graph.edge_types)
        self.weighted = RMR in self.edge_types and "stoichiometry" in base_graph[RMR]
        self.place = nn.ModuleDict({name: nn.Embedding(n, hidden) for name, n in self.counts.items()})
        width = base_graph["gene"].x.size(1) if "x" in base_graph["gene"] else 0
        self.features = nn.Linear(width, hidden) if width else None
        self.convs = nn.ModuleList(self._layer(hidden) for _ in range(layers))
        self.norms = nn.ModuleList(
            nn.ModuleDict({name: nn.LayerNorm(hidden) for name in self._targets()}) for _ in range(layers)
        )
        pooled = hidden * sum(2 if name != "metabolite" else 1 for name in self.counts)
        self.head = nn.Sequential(nn.Linear(pooled, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def _targets(self) -> list[str]:
        return sorted({edge_type[2] for edge_type in self.edge_types})

    def _layer(self, hidden: int) -> HeteroConv:
        def gin() -> GINConv:
            return GINConv(nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden)))

        return HeteroConv(
            {t: gin() if t[0] == t[2] else GraphConv(hidden, hidden, aggr="mean") for t in self.edge_types}
        )

    def forward(self, batch: Any) -> Tensor:
        """Predictions of a batch of either kind, ``[batch] float32``."""
        if isinstance(batch, tc.SharedGraphBatch):
            return self._shared(batch)
        return self._pyg(batch)

    def _shared(self, batch: tc.SharedGraphBatch) -> Tensor:
        size, base = len(batch), batch.base_graph
        edges = shared_edges(batch)
        weights = {RMR: base[RMR].stoichiometry} if self.weighted else {}
        x = self._embedded(base["gene"].x if self.features is not None else None)
        x = {name: value.expand(size, -1, -1) for name, value in x.items()}
        self.mark("expansion")
        for number, (conv, norms) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            x = self._update(x, norms, shared_hetero_conv(conv, x, edges, edge_weight_dict=weights))
            self.mark(f"layer {number}")
        return self._read_out(x, {name: batch.node_mask(name) for name in self.counts})

    def _pyg(self, batch: Any) -> Tensor:
        size = batch.num_graphs
        index = {
            t: (batch[t].edge_index if "edge_index" in batch[t] else batch[t].hyperedge_index)[
                :, batch[t].mask
            ]
            for t in self.edge_types
        }
        weights = {RMR: batch[RMR].stoichiometry[batch[RMR].mask]} if self.weighted else {}
        x = {name: self.place[name].weight.repeat(size, 1) for name in self.counts}
        if self.features is not None:
            x["gene"] = x["gene"] + self.features(batch["gene"].x)
        self.mark("expansion")
        for number, (conv, norms) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            x = self._update(x, norms, conv(x, index, edge_weight_dict=weights))
            self.mark(f"layer {number}")
        x = {name: value.view(size, self.counts[name], -1) for name, value in x.items()}
        return self._read_out(x, {name: batch[name].mask.view(size, -1) for name in self.counts})

    def _embedded(self, features: Tensor | None) -> dict[str, Tensor]:
        x = {name: self.place[name].weight for name in self.counts}
        if features is not None:
            assert self.features is not None
            x["gene"] = x["gene"] + self.features(features)
        return x

    @staticmethod
    def _update(x: dict[str, Tensor], norms: nn.ModuleDict, new: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**x, **{name: x[name] + norms[name](value).relu() for name, value in new.items()}}

    def _read_out(self, x: dict[str, Tensor], kept: dict[str, Tensor]) -> Tensor:
        """Mean of what is kept and sum of what is lost, per node type; one lost gene among thousands must be heard."""
        parts = []
        for name, value in x.items():
            keep = kept[name].unsqueeze(-1)
            parts.append((value * keep).sum(1) / keep.sum(1).clamp(min=1))
            if name != "metabolite":
                parts.append((value * ~keep).sum(1))
        out: Tensor = self.head(torch.cat(parts, dim=-1)).squeeze(-1)
        self.mark("read-out")
        return out
