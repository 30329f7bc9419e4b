"""One to four processes that read shuffled batches from the same store at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.context import Context
from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.processes import TIMEOUT, in_processes
from experiments.benchmarks.report import OURS

READERS, QUICK_READERS, SIZE = (1, 2, 3, 4), (1, 4), 28
LIGHT = ("delta", "perturbation")


def run(ctx: Context) -> None:
    """Adds one row per number of readers: samples per second of all of them together."""
    stores = [(storage, str(ctx.root / f"ours-{storage}"), ctx.limit(storage)) for storage in LIGHT]
    peers = [(name, type(peer), peer.root, ctx.sizes.peers) for name, peer in ctx.peers.items()]
    single: dict[str, float] = {}
    for count in QUICK_READERS if ctx.quick else READERS:
        results = in_processes(count, _rates, stores, peers, min(ctx.budget.seconds, 1.0))
        work = f"samples read by {count} process{'es' * (count > 1)} at once, batches of {SIZE}"
        row = ctx.report.row(f"readers_{count}", work, "/s", None, "torchcell_cache `delta`")
        total = {name: sum(result[name] for result in results) for name in results[0]}
        for name, rate in total.items():
            note = "" if count == 1 else f"{rate / single[name]:.2f} times one reader"
            single.setdefault(name, rate)
            if name in LIGHT:
                row.add(f"torchcell_cache `{name}`", OURS, rate, note)
            else:
                row.add(name, ctx.peers[name].role, rate, note)


def _rates(
    barrier: Barrier,
    stores: list[tuple[str, str, int]],
    peers: list[tuple[str, type[Peer], Path, int]],
    seconds: float,
) -> dict[str, float]:
    """Samples per second of this process, by way; all processes do the same way at the same time."""
    from experiments.benchmarks import ours

    rates: dict[str, float] = {}
    for name, root, limit in stores:
        dataset = ours.open_store(Path(root))
        rates[name] = _rate(barrier, lambda rows, d=dataset: ours.read_batch(d, rows), limit, seconds)
        dataset.close()
    for name, peer_class, root, limit in peers:
        peer = peer_class(root)
        peer.open()
        rates[name] = _rate(barrier, peer.batch_raw, limit, seconds)
        peer.close()
    return rates


def _rate(barrier: Barrier, read: Callable[[list[int]], Any], limit: int, seconds: float) -> float:
    rows = np.random.default_rng().integers(0, limit, (512, SIZE)).tolist()
    for row in rows[:20]:
        read(row)
    barrier.wait(TIMEOUT)
    start, batches = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        read(rows[batches % len(rows)])
        batches += 1
    barrier.wait(TIMEOUT)
    return batches * SIZE / elapsed
