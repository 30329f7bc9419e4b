"""What a model takes from a batch of 28: PyG's own batch, or boolean masks over the one base graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch_geometric.data import Batch

from experiments.benchmarks import ours
from experiments.benchmarks.bench_read import LIGHT, Picker
from experiments.benchmarks.context import Context
from experiments.benchmarks.harness import Way, alternate
from experiments.benchmarks.report import FLOOR, OURS, PEER, SCHEME
from experiments.benchmarks.workload import gene_edge_types

SIZE = 28
TARGET_MASKS_MS, TARGET_FASTER = 5, 4
# Each of these writes more than 1 GB.
SLOW_ROUNDS, EXPAND_ROUNDS = 3, 7


def run(ctx: Context) -> None:
    """Adds the rows for whole PyG batches and for masks."""
    ctx.scheme.open()
    _expand(ctx)
    _masks(ctx)
    ctx.scheme.close()


class _Fresh:
    """A new batch before every call, read before the clock starts unless ``reading`` is timed too."""

    def __init__(self, dataset: Any, pick: Callable[[int], list[int]], forget: bool = False) -> None:
        self.dataset, self.pick, self.forget = dataset, pick, forget
        self.batch: Any = None

    def prepare(self, number: int) -> None:
        self.batch = None
        self.batch = ours.read_batch(self.dataset, self.pick(number))
        if self.forget:
            ours.forget_buffers(self.batch)


def _expand(ctx: Context) -> None:
    pick, count = Picker(ctx, SIZE), ctx.sizes.scheme
    ways: dict[str, Way | Callable[[int], object]] = {}
    for storage in LIGHT:
        for forget in (False, True):
            state = _Fresh(ctx.datasets[storage], lambda k: pick(k, count), forget)
            name = f"{storage}, {'fresh' if forget else 'kept'}"
            ways[name] = Way(lambda _, s=state: s.batch.to_pyg(), state.prepare, EXPAND_ROUNDS)
    delta, ready = ctx.datasets["delta"], _Ready(ctx.datasets["delta"], lambda k: pick(k, count))
    ways["stock"] = Way(lambda _: Batch.from_data_list(ready.samples), ready.prepare, SLOW_ROUNDS)
    ways["both"] = Way(
        lambda k: Batch.from_data_list(ours.read_samples(delta, pick(k, count))), max_rounds=SLOW_ROUNDS
    )
    ways["scheme"] = Way(lambda k: ctx.scheme.batch(pick(k, count)), max_rounds=SLOW_ROUNDS)
    timings = alternate(ways, ctx.budget)
    target = timings["stock"].median * 1e3 / TARGET_FASTER
    first = "torchcell_cache `delta`, kept buffers"
    row = ctx.report.row("to_pyg_28", "expand a batch of 28 to PyG's batch, CPU", "ms", target, first)
    for storage in LIGHT:
        for kind in ("kept", "fresh"):
            note = "`to_pyg()`" if kind == "kept" else "`to_pyg()` into memory never used before"
            way = f"torchcell_cache `{storage}`, {kind} buffers"
            row.add(way, OURS, timings[f"{storage}, {kind}"], note)
    row.add("`Batch.from_data_list`", PEER, timings["stock"], "our samples, ready in memory")
    row.add("`dataset.__getitems__` and `Batch.from_data_list`", PEER, timings["both"], "our `delta` store")
    row.add(ctx.scheme.name, SCHEME, timings["scheme"], "unpickle, rebuild masks, `Batch.from_data_list`")


class _Ready:
    """Samples that are read before the clock starts."""

    def __init__(self, dataset: Any, pick: Callable[[int], list[int]]) -> None:
        self.dataset, self.pick = dataset, pick
        self.samples: list[Any] = []

    def prepare(self, number: int) -> None:
        self.samples = ours.read_samples(self.dataset, self.pick(number))


def _masks(ctx: Context) -> None:
    pick = Picker(ctx, SIZE)
    edge_types = gene_edge_types(ctx.workload.base_graph)
    shape = SIZE, ctx.workload.num_edges
    kept = torch.ones(shape, dtype=torch.bool)
    ways: dict[str, Way | Callable[[int], object]] = {}
    for storage in LIGHT:
        dataset, limit = ctx.datasets[storage], ctx.limit(storage)
        state = _Fresh(dataset, lambda k, n=limit: pick(k, n))
        ways[storage] = Way(lambda _, s=state: _all_masks(s.batch, edge_types), state.prepare)
        ways[f"{storage}, reading too"] = lambda k, d=dataset, n=limit: _all_masks(
            ours.read_batch(d, pick(k, n)), edge_types
        )
    ways["scheme"] = Way(lambda k: _scheme_masks(ctx, pick(k, ctx.sizes.scheme)), max_rounds=SLOW_ROUNDS)
    ways["ones"] = Way(lambda _: torch.ones(shape, dtype=torch.bool), max_rounds=SLOW_ROUNDS)
    ways["fill"] = lambda _: kept.numpy().fill(True)
    timings = alternate(ways, ctx.budget)
    work = f"boolean masks [{SIZE}, {shape[1]:,}], all edge types at once, CPU"
    row = ctx.report.row("masks_28", work, "ms", TARGET_MASKS_MS, "torchcell_cache `delta`")
    for storage in LIGHT:
        row.add(f"torchcell_cache `{storage}`", OURS, timings[storage], "`edge_mask` of every edge type")
        way = f"torchcell_cache `{storage}`, reading the batch included"
        row.add(way, OURS, timings[f"{storage}, reading too"])
    row.add(ctx.scheme.name, SCHEME, timings["scheme"], "unpickle and rebuild, one sample after the other")
    row.add("`torch.ones`, nothing removed", FLOOR, timings["ones"], "new memory each time")
    row.add("filling a kept buffer, nothing removed", FLOOR, timings["fill"])


def _all_masks(batch: Any, edge_types: Iterable[Any]) -> list[torch.Tensor]:
    return [batch.edge_mask(edge_type) for edge_type in edge_types]


def _scheme_masks(ctx: Context, indices: list[int]) -> list[torch.Tensor]:
    samples = [ctx.scheme.get(i) for i in indices]
    return [torch.stack([s[t].mask for s in samples]) for t in ctx.scheme.edge_types]
