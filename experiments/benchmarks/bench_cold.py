"""The same shuffled batch right after the kernel has forgotten the files: what the first epoch pays."""

from __future__ import annotations

import gc
from collections.abc import Callable

from experiments.benchmarks import ours
from experiments.benchmarks.bench_read import OWN_ORDER, Picker
from experiments.benchmarks.context import Context
from experiments.benchmarks.harness import Budget, Way, alternate, drop_page_cache
from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.report import OURS

ROUNDS = Budget(min_rounds=7, max_rounds=7, seconds=0)


def run(ctx: Context) -> None:
    """Adds one row. Every round closes the store, drops its pages and opens it again, untimed."""
    pick = Picker(ctx, 28)
    ways: dict[str, Way] = {}
    for name, peer in ctx.peers.items():
        peer.open()
        ways[name] = Way(lambda k, p=peer: p.batch_raw(pick(k, ctx.sizes.peers)), _cold_peer(peer))
        own = peer.own_order(28)
        if own is not None:
            ways[f"{name}, own order"] = Way(lambda _k, own=own: own(), _cold_peer(peer))
    light = ("delta", "perturbation")
    limits = {storage: ctx.limit(storage) for storage in light}
    for storage, limit in limits.items():
        ways[storage] = Way(
            lambda k, s=storage, n=limit: ours.read_batch(ctx.datasets[s], pick(k, n)),
            _cold_dataset(ctx, storage),
        )
    timings = alternate(ways, ROUNDS)
    work = "shuffled batch of 28, cold page cache"
    row = ctx.report.row("batch_28_cold", work, "ms", None, "torchcell_cache `delta`")
    for storage in limits:
        row.add(f"torchcell_cache `{storage}`", OURS, timings[storage])
    for name, peer in ctx.peers.items():
        for way, note in ((name, ""), (f"{name}, own order", OWN_ORDER)):
            if way in timings:
                row.add(way, peer.role, timings[way], note)
        peer.close()


def _cold_peer(peer: Peer) -> Callable[[int], None]:
    def prepare(_: int) -> None:
        peer.close()
        gc.collect()
        drop_page_cache(peer.root)
        peer.open()

    return prepare


def _cold_dataset(ctx: Context, storage: str) -> Callable[[int], None]:
    root = ctx.root / f"ours-all-{storage}"

    def prepare(_: int) -> None:
        ctx.datasets[storage].close()
        gc.collect()
        drop_page_cache(root)
        ctx.datasets[storage] = ours.open_store(root)

    return prepare
