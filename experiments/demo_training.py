"""A small model of growth, trained for a few steps straight from a store."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import HeteroConv, SAGEConv

import torchcell_cache as tc
from torchcell_cache.data.loader import CacheLoader
from torchcell_cache.nn import shared_edges, shared_hetero_conv

BATCH = 28
HIDDEN = 16


@dataclass(frozen=True, slots=True)
class Training:
    """What a few steps of training came to; losses are means over the first and last tenth of the steps."""

    steps: int
    first_loss: float
    last_loss: float
    step_ms: float
    wait_share: float


class GrowthModel(nn.Module):
    """One round of messages over the kept edges, then growth from what the deleted genes were."""

    def __init__(self, graph: Any) -> None:
        super().__init__()
        self.num_genes = int(graph["gene"].num_nodes)
        self.edge_types = [t for t in graph.edge_types if t[0] == t[2] == "gene"]
        self.embed = nn.Embedding(self.num_genes, HIDDEN)
        self.features = nn.Linear(graph["gene"].x.size(1), HIDDEN)
        self.conv = HeteroConv({t: SAGEConv(HIDDEN, HIDDEN) for t in self.edge_types}, aggr="sum")
        self.cost = nn.Sequential(nn.Linear(2 * HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, batch: tc.SharedGraphBatch) -> Tensor:
        """Predicted growth, ``[batch] float32``; one edge list serves all samples."""
        x = self.features(batch.base_graph["gene"].x) + self.embed.weight
        everywhere = x.expand(len(batch), -1, -1)
        state = shared_hetero_conv(self.conv, {"gene": everywhere}, shared_edges(batch))["gene"].relu()
        sample, deleted = batch.perturbed_batch, batch.perturbed
        cost = self.cost(torch.cat([x[deleted], state[sample, deleted]], dim=1)).squeeze(1)
        return 1 - x.new_zeros(len(batch)).index_add_(0, sample, cost.sigmoid())


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def train(dataset: tc.PreprocessedDataset, steps: int, seed: int) -> Training:
    """Train on shuffled batches and time what was spent waiting for data."""
    torch.manual_seed(seed)
    model = GrowthModel(dataset.base_graph)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses: list[float] = []
    waited = 0.0
    begun = asked = time.perf_counter()
    loader = CacheLoader(dataset, BATCH, shuffle=True, seed=seed)
    for batch in itertools.islice(_forever(loader), steps):
        waited += time.perf_counter() - asked
        loss = nn.functional.mse_loss(model(batch), batch.labels("fitness"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        asked = time.perf_counter()
    took = time.perf_counter() - begun
    tenth = max(1, len(losses) // 10)
    return Training(
        steps=len(losses),
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
        step_ms=1e3 * took / max(len(losses), 1),
        wait_share=waited / took,
    )
