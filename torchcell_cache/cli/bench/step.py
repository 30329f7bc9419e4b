"""Where a training step goes on this store: layers of a given width on shared batches, and on PyG's of the same samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import GINConv, HeteroConv

from torchcell_cache.cli.bench.stages import MEMORY_SHARE, Stopwatch, available_memory, now
from torchcell_cache.errors import SettingError
from torchcell_cache.nn import shared_edges, shared_hetero_conv, shared_input
from torchcell_cache.store.generation import Generation

_FEWEST, _MOST = 2, 20
_COPIES = 3
"""Messages of an edge that PyG's layers hold at once for the backward pass, roughly."""


class Marks:
    """Milliseconds from mark to mark, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ms, self._last = device, dict[str, float](), now(device)

    def __call__(self, part: str) -> None:
        """All since the last mark was this part."""
        before, self._last = self._last, now(self.device)
        self.ms[part] = self.ms.get(part, 0.0) + 1e3 * (self._last - before)


class _Layers(nn.Module):
    def __init__(self, generation: Generation, hidden: int, layers: int) -> None:
        super().__init__()
        topology = generation.topology
        if topology is None:
            raise SettingError("the store's processor removes nothing that a layer could leave out")
        self.node = topology.node_type
        domains = [d for d in topology.domains if d.role == "edge"]
        self.keys = [d.key for d in domains if d.key is None or d.key[0] == d.key[2] == self.node]
        self.num_edges = sum(d.size for d in domains if d.key in self.keys)
        if not self.num_edges:
            raise SettingError("the base graph has no edges between perturbed nodes")
        self.genes = nn.Embedding(topology.num_nodes, hidden)
        names = [self._name(key) for key in self.keys]
        self.convs = nn.ModuleList()
        for _ in range(layers):
            mlps = [
                nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden)) for _ in names
            ]
            self.convs.append(HeteroConv(dict(zip(names, map(GINConv, mlps), strict=True))))

    def _name(self, key: Any) -> Any:
        return ("node", "edge", "node") if key is None else key

    def step(self, batch: Any, excluded: Sequence[str], shared: bool, mark: Callable[[str], None]) -> None:
        """Forwards and backwards, told to ``mark`` part by part."""
        index: dict[Any, Any]
        if shared:
            edges = shared_edges(batch)
            index = {self._name(key): edges[key] for key in self.keys}
            x = shared_input(self.genes.weight, batch)
        else:
            pyg = batch.to_pyg(None, excluded, drop_removed=True)
            index = {self._name(key): (pyg if key is None else pyg[key]).edge_index for key in self.keys}
            nodes = (pyg if self.keys[0] is None else pyg[self.node]).num_nodes
            x = self.genes.weight[torch.arange(nodes, device=batch.device) % self.genes.num_embeddings]
        mark("expansion")
        for number, conv in enumerate(self.convs, 1):
            node = self._name(self.keys[0])[0]
            outs = shared_hetero_conv(conv, {node: x}, index) if shared else conv({node: x}, index)
            x = outs[node].relu() / len(self.keys)
            mark(f"layer {number}")
        loss: Tensor = x.square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.zero_grad(set_to_none=True)
        mark("backward")


def time_steps(
    watch: Stopwatch, hidden: int, layers: int, excluded: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    """Steps of ``layers`` GIN layers of width ``hidden``, both ways; PyG's batches no larger than memory is meant for.

    Raises:
        SettingError: If the store removes nothing, has no edges between perturbed nodes, or cannot be expanded.
    """
    draws, model = watch.draws, _Layers(watch.generation, hidden, layers).to(watch.device)
    found = []
    for way in ("shared", "pyg"):
        samples = draws.shape[1]
        free = available_memory()
        if way == "pyg" and free is not None:
            bytes_each = 4 * hidden * layers * _COPIES * model.num_edges
            samples = min(samples, max(free // MEMORY_SHARE // bytes_each, 1))
        runs: list[dict[str, float]] = []
        begun = time.monotonic()
        while len(runs) < _FEWEST or (len(runs) < _MOST and time.monotonic() - begun < seconds / 2):
            marks = Marks(watch.device)
            batch = watch.dataset.read_batch(draws[len(runs) % len(draws), :samples]).to(watch.device)
            marks("data")
            model.step(batch, excluded, way == "shared", marks)
            runs.append(marks.ms)
        parts = {part: float(np.median([run[part] for run in runs[1:]])) for part in runs[0]}
        sample_ms = sum(parts.values()) / samples
        found.append({"way": way, "samples": samples, "parts_ms": parts, "sample_ms": sample_ms})
    return found
