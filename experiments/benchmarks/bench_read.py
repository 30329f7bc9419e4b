"""Reading: one sample, ``__getitems__`` and whole batches, ours and everybody else's, in random order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch_geometric.data import Batch

from experiments.benchmarks import ours
from experiments.benchmarks.context import Context
from experiments.benchmarks.harness import Timing, Way, alternate
from experiments.benchmarks.records import to_typed_object
from experiments.benchmarks.report import OTHER, OURS, SCHEME, Row
from experiments.benchmarks.workload import gene_edge_types

# Stock batching of 28 samples takes seconds and 1.3 GB; of 256 it would take 12 GB.
SCHEME_BATCH_LIMIT = 28
OWN_ORDER = "in its own chunk-wise shuffled order, not a free choice of indices"
LIGHT = ("delta", "perturbation")
STREAM_BUFFER = 8_192
Ways = dict[str, Way | Callable[[int], object]]


class Picker:
    """Random indices, the same for every way in the same round."""

    def __init__(self, ctx: Context, size: int) -> None:
        rng = np.random.default_rng([ctx.seed, size])
        self.rows = rng.integers(0, ctx.sizes.peers, (512, size)).tolist()

    def __call__(self, number: int, limit: int) -> list[int]:
        return [i % limit for i in self.rows[number % len(self.rows)]]


def run(ctx: Context) -> None:
    """Adds all reading rows."""
    ctx.scheme.open()
    for peer in ctx.peers.values():
        peer.open()
    _one_sample(ctx)
    _one_record(ctx)
    for size in (28, 256):
        _getitems(ctx, size)
    for size in (28, 256):
        _batches(ctx, size)
    _own_order(ctx, 28)
    _objects(ctx)
    _typed_objects(ctx)
    ctx.scheme.close()
    for peer in ctx.peers.values():
        peer.close()


def _ours(ctx: Context, pick: Picker, read: Callable[[Any, list[int]], object], only: Iterable[str]) -> Ways:
    """One way per storage, named by the storage."""
    stores = [(s, ctx.datasets[s], ctx.limit(s)) for s in only if s in ctx.datasets]
    return {s: lambda k, d=dataset, n=limit: read(d, pick(k, n)) for s, dataset, limit in stores}


def _our_batches(ctx: Context, pick: Picker) -> Ways:
    return _ours(ctx, pick, ours.read_batch, LIGHT)


def _one_sample(ctx: Context) -> None:
    pick, count = Picker(ctx, 16), 16
    scheme, samples = ctx.scheme, ctx.workload.samples
    ways = _ours(ctx, pick, lambda d, indices: [d[i] for i in indices], ours.STORAGES)
    ways["stored"] = lambda k: [scheme.get(i) for i in pick(k, ctx.sizes.scheme)]

    def live(number: int) -> object:
        rows = pick(number, len(samples))
        return [scheme.rebuild(scheme.process(samples.perturbed[i], samples.labels[i])) for i in rows]

    ways["live"] = live
    timings = {name: t.per(count) for name, t in alternate(ways, ctx.budget).items()}
    work, first = "`dataset[i]`: one full PyG sample with masks", "torchcell_cache `delta`"
    row = ctx.report.row("getitem", work, "us", 300, first)
    _add_ours(row, timings)
    row.add(scheme.name, SCHEME, timings["stored"], "unpickle, rebuild masks")
    row.add(f"{scheme.name}, no cache", SCHEME, timings["live"], "processed on the fly")


def _one_record(ctx: Context) -> None:
    pick, wide = Picker(ctx, 16), Picker(ctx, 256)
    ways: Ways = {
        name: lambda k, p=peer: [p.get_raw(i) for i in pick(k, ctx.sizes.peers)]
        for name, peer in ctx.peers.items()
    }
    ways["scheme"] = lambda k: [ctx.scheme.get_record(i) for i in pick(k, ctx.sizes.scheme)]
    timings = {name: t.per(16) for name, t in alternate(ways, ctx.budget).items()}
    inside = alternate(_our_batches(ctx, wide), ctx.budget)
    row = ctx.report.row("compact", "one compact sample, random order", "us", 5, "torchcell_cache `delta`")
    _add_ours(row, {s: t.per(256) for s, t in inside.items()}, "inside a shuffled batch of 256")
    _add_peers(ctx, row, timings, "by index, raw arrays, not collated")
    row.add(ctx.scheme.name, SCHEME, timings["scheme"], "`pickle.loads`")


def _getitems(ctx: Context, size: int) -> None:
    pick = Picker(ctx, size)
    ways = _ours(ctx, pick, ours.read_samples, ours.STORAGES if size <= 28 else LIGHT)
    ways["scheme"] = Way(lambda k: [ctx.scheme.get(i) for i in pick(k, ctx.sizes.scheme)], max_rounds=10)
    timings = alternate(ways, ctx.budget)
    work, first = f"`__getitems__` of {size}: full PyG samples with masks", "torchcell_cache `delta`"
    row = ctx.report.row(f"getitems_{size}", work, "ms", None, first)
    _add_ours(row, timings)
    row.add(ctx.scheme.name, SCHEME, timings["scheme"])


def _batches(ctx: Context, size: int) -> None:
    pick = Picker(ctx, size)
    ways = _our_batches(ctx, pick)
    for name, peer in ctx.peers.items():
        ways[name] = lambda k, p=peer: p.batch_raw(pick(k, ctx.sizes.peers))
        own = peer.own_order(size)
        if own is not None:
            ways[f"{name}, own order"] = lambda _k, own=own: own()
    if size <= SCHEME_BATCH_LIMIT:
        ways["scheme"] = Way(lambda k: ctx.scheme.batch(pick(k, ctx.sizes.scheme)), max_rounds=3)
    timings = alternate(ways, ctx.budget)
    for storage, target in (("delta", 150), ("perturbation", 100)):
        work = f"shuffled batch of {size}, ready to send to the device, `{storage}`"
        row = ctx.report.row(f"batch_{size}_{storage}", work, "us", target if size == 28 else None)
        if storage in timings:
            _add_ours(row, {storage: timings[storage]}, _size_note(ctx, storage, size))
        _add_peers(ctx, row, timings, "raw arrays, collated")
        if "scheme" in timings:
            row.add(ctx.scheme.name, SCHEME, timings["scheme"], "stock PyG batch")


def _own_order(ctx: Context, size: int) -> None:
    """Everybody's next batch in the shuffled order that suits its files; ours is the stream."""
    streams = {
        s: Forever(
            ours.stream(ctx.datasets[s].index_select(range(ctx.limit(s))), size, STREAM_BUFFER).batches()
        )
        for s in LIGHT
        if s in ctx.datasets
    }
    ways: Ways = {s: lambda _k, f=stream: f.next().pack() for s, stream in streams.items()}
    for name, peer in ctx.peers.items():
        own = peer.own_order(size)
        if own is not None:
            ways[name] = lambda _k, own=own: own()
    timings = alternate(ways, ctx.budget)
    for storage in streams:
        work = f"batch of {size} in each reader's own shuffled order, `{storage}`"
        row = ctx.report.row(f"own_order_{size}_{storage}", work, "us")
        note = f"`StreamingCacheDataset`, windows of {STREAM_BUFFER:,}"
        _add_ours(row, {storage: timings[storage]}, note)
        _add_peers(ctx, row, timings, "raw arrays, collated")


class Forever:
    """Batches of a stream, epoch after epoch."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self._now: Iterator[Any] = iter(())

    def next(self) -> Any:
        """The next one."""
        batch = next(self._now, None)
        if batch is None:
            self._now = iter(self.batches)
            batch = next(self._now)
        return batch


def _size_note(ctx: Context, storage: str, size: int) -> str:
    """Bytes of a batch on their way to the device."""
    batch = ours.read_batch(ctx.datasets[storage], list(range(min(size, ctx.limit(storage)))))
    return f"one buffer of {batch.num_bytes:,} bytes"


def _objects(ctx: Context) -> None:
    pick = Picker(ctx, 28)
    ways = _our_batches(ctx, pick)
    for name, peer in ctx.peers.items():
        if peer.get_objects([0]) is not None:
            ways[name] = lambda k, p=peer: _collate(p.get_objects(pick(k, ctx.sizes.peers)))
    timings = alternate(ways, ctx.budget)
    work = "the same batch of 28 where peers hand out PyG objects"
    _both(ctx, "objects_28", work, timings, "compact HeteroData, then `Batch.from_data_list`")


def _typed_objects(ctx: Context) -> None:
    """As :func:`_objects`, with removed positions in the edge type they belong to, where a model looks for them."""
    pick = Picker(ctx, 28)
    edge_types = gene_edge_types(ctx.workload.base_graph)
    starts = np.cumsum([0] + [ctx.workload.base_graph[t].num_edges for t in edge_types])
    ways = _our_batches(ctx, pick)
    for name, peer in ctx.peers.items():
        if peer.get_objects([0]) is not None:
            ways[name] = lambda k, p=peer: _collate(
                [to_typed_object(p.get_raw(i), edge_types, starts) for i in pick(k, ctx.sizes.peers)]
            )
    timings = alternate(ways, ctx.budget)
    work = "the same batch of 28, PyG objects with a store per edge type"
    _both(
        ctx, "objects_28_typed", work, timings, "HeteroData with nine edge types, then `Batch.from_data_list`"
    )


def _both(ctx: Context, key: str, work: str, timings: dict[str, Timing], note: str) -> None:
    """A row for each of our storages, against the same peers."""
    for storage in LIGHT:
        row = ctx.report.row(f"{key}_{storage}", f"{work}, `{storage}`", "us")
        _add_ours(row, {k: v for k, v in timings.items() if k == storage})
        _add_peers(ctx, row, timings, note)


def _collate(objects: Sequence[Any] | None) -> object:
    return Batch.from_data_list(list(objects or []))


def _add_ours(row: Row, timings: dict[str, Timing], note: str = "") -> None:
    for storage in ours.STORAGES:
        if storage in timings:
            row.add(f"torchcell_cache `{storage}`", OURS, timings[storage], note)


def _add_peers(ctx: Context, row: Row, timings: dict[str, Timing], note: str) -> None:
    for name, peer in ctx.peers.items():
        if name in timings:
            row.add(name, peer.role, timings[name], note)
        own = f"{name}, own order"
        if own in timings:  # shown, but no peer where indices are given
            row.add(own, OTHER, timings[own], OWN_ORDER)
