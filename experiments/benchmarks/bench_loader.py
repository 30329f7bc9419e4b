"""Batches as a training loop gets them: through each library's loader, with up to four workers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from experiments.benchmarks import ours
from experiments.benchmarks.context import Context
from experiments.benchmarks.harness import Timing, Way, alternate
from experiments.benchmarks.peers.loading import peer_loader, scheme_loader, stop_workers
from experiments.benchmarks.report import OURS, SCHEME

WORKERS, QUICK_WORKERS = (0, 1, 2, 4), (0, 2)
# Batches per timed stretch: long enough that a queue between processes is in its steady state.
STRETCH = {28: 40, 256: 8}
# Stock batches are 1.3 GB each.
SCHEME_WORKERS, SCHEME_BATCH = (0, 2), 28
LIGHT = ("delta", "perturbation")


class Stream:
    """Batches of a loader without end, in stretches that never cross the start of an epoch.

    Args:
        loader: Any loader with a length.
        length: Batches per stretch.
        ahead: Batches that workers may have read before the clock starts; they are taken first.
        closing: Closed with the stream, or ``None``.
        packed: Whether a batch still has to be laid into the one buffer that goes to the device.
    """

    def __init__(
        self, loader: Any, length: int, ahead: int, closing: Any = None, packed: bool = True
    ) -> None:
        self.loader, self.length, self.ahead, self.closing, self.packed = (
            loader,
            length,
            ahead,
            closing,
            packed,
        )
        self.left = 0
        self.batches: Iterator[Any] = iter(())

    def prepare(self, _: int) -> None:
        """Takes what was read ahead, so that the stretch pays for all of its batches."""
        if self.left < self.ahead + self.length:
            self.batches = iter(())  # lets go of the old epoch first
            self.batches, self.left = iter(self.loader), len(self.loader)
        self._take(self.ahead)

    def run(self, _: int) -> None:
        """The timed stretch."""
        self._take(self.length)

    def _take(self, count: int) -> None:
        for _ in range(count):
            batch = next(self.batches)
            if not self.packed:
                batch.pack()
        self.left -= count

    def close(self) -> None:
        self.batches = iter(())
        stop_workers(self.loader)
        self.loader = None
        if self.closing is not None:
            self.closing.close()


def run(ctx: Context) -> None:
    """Adds one row per batch size and number of workers."""
    alone: dict[int, float] = {}
    for size in STRETCH:
        for workers in QUICK_WORKERS if ctx.quick else WORKERS:
            timings = _measure(ctx, size, workers)
            if workers == 0:
                alone[size] = timings["delta"].median * 1e6
            where = "without workers" if workers == 0 else f"through {workers} worker{'s' * (workers > 1)}"
            # Workers are there for slow disks and user code: they must not cost anything.
            target = alone[size] if workers == 2 else None
            work = f"batch of {size} from the loader, {where}"
            row = ctx.report.row(f"loader_{size}_{workers}", work, "us", target, "torchcell_cache `delta`")
            for storage in LIGHT:
                row.add(f"torchcell_cache `{storage}`", OURS, timings[storage], "`CacheLoader`, one buffer")
            for name, peer in ctx.peers.items():
                note = (
                    "`StreamingDataLoader`, own order" if name == "LitData" else "`DataLoader`, numpy arrays"
                )
                row.add(name, peer.role, timings[name], note)
            if "scheme" in timings:
                row.add(ctx.scheme.name, SCHEME, timings["scheme"], "stock PyG `DataLoader`")


def _measure(ctx: Context, size: int, workers: int) -> dict[str, Timing]:
    streams: dict[str, Stream] = {}
    length, ahead = STRETCH[size], 2 * workers
    for storage in LIGHT:
        loader = ours.loader(ctx.datasets[storage], ctx.limit(storage), size, workers)
        streams[storage] = Stream(loader, length, ahead, packed=workers > 0)
    for name, peer in ctx.peers.items():
        loader, closing = peer_loader(peer, ctx.sizes.peers, size, workers)
        streams[name] = Stream(loader, length, ahead, closing)
    ways = {name: Way(stream.run, stream.prepare) for name, stream in streams.items()}
    try:
        timings = {name: t.per(length) for name, t in alternate(ways, ctx.budget).items()}
    finally:
        for stream in streams.values():
            stream.close()
        gc.collect()
    if size == SCHEME_BATCH and workers in SCHEME_WORKERS:
        timings["scheme"] = _measure_scheme(ctx, size, workers)
    return timings


def _measure_scheme(ctx: Context, size: int, workers: int) -> Timing:
    loader, closing = scheme_loader(ctx.scheme, ctx.sizes.scheme, size, workers)
    length = max(1, workers)
    stream = Stream(loader, length, workers, closing)
    try:
        return alternate({"scheme": Way(stream.run, stream.prepare, max_rounds=2)}, ctx.budget)["scheme"].per(
            length
        )
    finally:
        stream.close()
        gc.collect()
