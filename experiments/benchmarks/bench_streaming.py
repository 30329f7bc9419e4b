"""Streaming: shuffled batches of 256 from shard to shard, memory at one and ten times the samples, how well it shuffles.

Alone: ``python -m experiments.benchmarks.cache_bench --sections streaming``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import ours
from experiments.benchmarks.bench_memory import _high_water_mb, _reset_peak
from experiments.benchmarks.context import Context
from experiments.benchmarks.harness import Budget, Way, alternate, drop_page_cache
from experiments.benchmarks.peers.streams import STREAMS
from experiments.benchmarks.processes import in_processes
from experiments.benchmarks.report import FLOOR, OURS

SIZE, BUFFER, STRETCH = 256, 8192, 8
# A window far smaller than a tenth of the samples, so that both sizes fill it; samples straight from a source.
MEMORY_BUFFER, SOURCE_SAMPLES = 1024, 10_000
COLD_ROUNDS = Budget(min_rounds=3, max_rounds=3, seconds=0)
LIGHT = ("delta", "perturbation")
BUFFERS = (256, 1024, 8192, 65536)
QUALITY = {
    "together": "samples in one batch of 256 with the next of the dataset",
    "adjacency": "samples followed by a direct neighbour of the dataset",
    "neighbour_distance": "mean distance between samples that follow each other",
    "mean_displacement": "mean way of a sample from its place in the dataset",
    "median_displacement": "median way of a sample from its place in the dataset",
}


class Endless:
    """Batches without end, epoch after epoch; packed where a batch is not one buffer yet."""

    def __init__(self, batches: Any, pack: bool) -> None:
        self.batches, self.pack = batches, pack
        self._now: Iterator[Any] = iter(())

    def run(self, _: int) -> None:
        """One timed stretch; starting an epoch is part of it."""
        for _ in range(STRETCH):
            batch = next(self._now, None)
            if batch is None:
                self._now = iter(self.batches)
                batch = next(self._now)
            if self.pack:
                batch.pack()

    def close(self) -> None:
        self._now = iter(())
        if hasattr(self.batches, "close"):
            self.batches.close()
        self.batches = None


def run(ctx: Context, scale: float) -> None:
    """Adds the rows; needs the stores of the build section."""
    _throughput(ctx)
    _cold(ctx)
    _memory(ctx)
    _source_memory(ctx, scale)
    _quality(ctx)


def _throughput(ctx: Context) -> None:
    ways: dict[str, Endless] = {}
    for storage in LIGHT:
        dataset = ctx.datasets[storage].index_select(range(ctx.limit(storage)))
        ways[storage] = Endless(ours.stream(dataset, SIZE, BUFFER).batches(), pack=True)
        full = ours.loader(ctx.datasets[storage], ctx.limit(storage), SIZE, 0)
        ways[f"{storage}, full shuffle"] = Endless(full, pack=True)
    roles: dict[str, tuple[str, str]] = {}
    for peer in ctx.peers.values():
        for kind in STREAMS.get(type(peer), ()):
            ways[kind.name] = Endless(kind(peer, ctx.sizes.peers, SIZE), pack=False)
            roles[kind.name] = (peer.role, kind.note)
    try:
        timings = alternate({name: Way(way.run) for name, way in ways.items()}, ctx.budget)
    finally:
        for way in ways.values():
            way.close()
        gc.collect()
    work = f"samples streamed into shuffled batches of {SIZE}, one process"
    row = ctx.report.row("streaming", work, "/s", None, "torchcell_cache `delta`")
    for name, timing in timings.items():
        rate = STRETCH * SIZE / timing.median
        if name in roles:
            row.add(name, roles[name][0], rate, roles[name][1])
        else:
            storage, _, rest = name.partition(", ")
            note = f"`CacheLoader`, {rest}" if rest else f"buffer of {BUFFER:,}"
            row.add(f"torchcell_cache `{storage}`" + (f", {rest}" if rest else ""), OURS, rate, note)


def _cold(ctx: Context) -> None:
    """An epoch right after the kernel has forgotten the shards; opening the store is not timed."""
    dataset = ctx.datasets["delta"]
    orders = {
        f"buffer of {BUFFER:,}": ours.stream(dataset, SIZE, BUFFER).batches(),
        "shards to ranks": ours.by_shard(dataset, SIZE),
        "full shuffle": ours.loader(dataset, len(dataset), SIZE, 0),
    }

    def forget(_: int) -> None:
        dataset.close()
        gc.collect()
        drop_page_cache(Path(dataset.root))

    def epoch(batches: Any) -> Any:
        def read(_: int) -> None:
            for batch in batches:
                batch.pack()

        return Way(read, forget, COLD_ROUNDS.max_rounds)

    timings = alternate({name: epoch(batches) for name, batches in orders.items()}, COLD_ROUNDS)
    work = f"an epoch of {len(dataset):,} samples, `delta`, cold page cache"
    row = ctx.report.row("streaming_cold", work, "s", None, f"buffer of {BUFFER:,}")
    for name, timing in timings.items():
        row.add(name, OURS, timing)


def _source_memory(ctx: Context, scale: float) -> None:
    """Peak of a process that streams straight from a source."""
    most = min(SOURCE_SAMPLES, ctx.sizes.samples)
    work = "peak memory of streaming straight from a source, on top of the source"
    row = ctx.report.row("streaming_memory_source", work, "MB", None, f"{most:,} samples")
    for count in (most // 10, most):
        row.add(f"{count:,} samples", OURS, in_processes(1, _source_peak, ctx.seed, scale, count)[0])


def _source_peak(_: Barrier, seed: int, scale: float, count: int) -> float:
    from experiments.benchmarks.workload import make_workload

    workload = make_workload(seed, scale, count)
    source = ours.make_source(workload, workload.samples)
    ours.warm_imports()
    before = _reset_peak()
    for _sample in ours.stream_source(source, MEMORY_BUFFER):
        pass
    return _high_water_mb() - before


def _memory(ctx: Context) -> None:
    """Peak of a process that streams a whole epoch, on top of its imports, at a tenth of the samples and at all."""
    for storage in LIGHT:
        many = len(ctx.datasets[storage])
        few = many // 10
        root = ctx.root / f"ours-tenth-{storage}"
        source = ours.make_source(ctx.workload, ctx.workload.samples.head(few))
        ours.build(root, source, storage, ctx.workers)[0].close()
        work = f"peak memory of streaming an epoch, `{storage}`"
        row = ctx.report.row(f"streaming_memory_{storage}", work, "MB", None, f"streaming, {many:,} samples")
        for count, where in ((few, root), (many, ctx.datasets[storage].root)):
            for name, buffer in (("streaming", MEMORY_BUFFER), ("full shuffle", 0)):
                total, own = in_processes(1, _peak, str(where), buffer)[0]
                note = f"{own:,.0f} MB without mapped files"
                row.add(f"{name}, {count:,} samples", OURS if buffer else FLOOR, total, note)


def _peak(_: Barrier, root: str, buffer: int) -> tuple[float, float]:
    """Peak RSS while an epoch is read, and the largest anonymous part of it seen, minus what was there before."""
    ours.warm_imports()
    dataset = ours.open_store(Path(root))
    if buffer:
        batches = ours.stream(dataset, SIZE, buffer).batches()
    else:
        batches = ours.loader(dataset, len(dataset), SIZE, 0)
    before, own_before, own = _reset_peak(), _anonymous_mb(), 0.0
    for number, batch in enumerate(batches):
        batch.pack()
        if number % 16 == 0:
            own = max(own, _anonymous_mb())
    return _high_water_mb() - before, own - own_before


def _anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return float(line.split()[1]) / 1024
    raise KeyError("RssAnon")


def _quality(ctx: Context) -> None:
    from torchcell_cache.data.samplers.shard_order import shuffle_quality

    dataset = ctx.datasets["delta"]
    found = {buffer: ours.stream(dataset, SIZE, buffer).shuffle_quality() for buffer in BUFFERS}
    full = shuffle_quality(np.random.default_rng(ctx.seed).permutation(len(dataset)), SIZE)
    shards = len(dataset.generation.manifest.shards)
    for name, work in QUALITY.items():
        text = f"{work}, {len(dataset):,} samples in {shards} shards"
        row = ctx.report.row(f"streaming_{name}", text, "%", None, f"buffer of {BUFFER:,}")
        for buffer, quality in found.items():
            row.add(f"buffer of {buffer:,}", OURS, 100 * getattr(quality, name))
        row.add("full shuffle", FLOOR, 100 * getattr(full, name))
