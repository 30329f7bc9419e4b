"""Memory, in processes of its own: what a build needs on top of the base graph, what a reader needs."""

from __future__ import annotations

import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.context import Context
from experiments.benchmarks.harness import memory_mb
from experiments.benchmarks.processes import TIMEOUT, in_processes
from experiments.benchmarks.report import OURS, SCHEME

NUM_READERS, NUM_WORKERS, NUM_BATCHES = 4, 2, 200
STORAGES = ("delta", "perturbation")
WORKER_FIELDS = {
    "Pss": ("PSS", "its share of what processes share"),
    "Private_Dirty": ("private", "pages of its own"),
}
TARGET_BUILD_MB, TARGET_READER_MB = 300, 50


def run(ctx: Context, scale: float) -> None:
    """Adds the rows; needs the stores of the build section."""
    _builds(ctx, scale)
    readers = {
        storage: in_processes(NUM_READERS, _reader, str(ctx.root / f"ours-{storage}"), ctx.sizes.peers)
        for storage in STORAGES
    }
    scheme = in_processes(1, _scheme, ctx.seed, scale, str(ctx.scheme.root), ctx.sizes.scheme)[0]
    first = "torchcell_cache `delta`"
    work = f"memory per reading process ({NUM_READERS} of them, PSS)"
    row = ctx.report.row("memory_reader", work, "MB", TARGET_READER_MB, first)
    for storage, results in readers.items():
        note = "base graph, index and record pages included; mean"
        row.add(f"torchcell_cache `{storage}`", OURS, float(np.mean([pss for pss, _ in results])), note)
    row.add(ctx.scheme.name, SCHEME, scheme[0], "list-of-tensors index only, its base graph not counted")
    work = "peak RSS of a process that reads batches of 28, on top of its imports"
    row = ctx.report.row("memory_peak", work, "MB", None, first)
    for storage, results in readers.items():
        note = f"{NUM_BATCHES} batches; pages of mapped files count in full"
        row.add(f"torchcell_cache `{storage}`", OURS, max(peak for _, peak in results), note)
    row.add(ctx.scheme.name, SCHEME, scheme[1], "one stock batch; index and base graph not counted")
    _workers(ctx)


def _builds(ctx: Context, scale: float) -> None:
    for storage in STORAGES:
        work = f"peak memory of a build on top of the base graph, `{storage}`, one process"
        largest = f"torchcell_cache, {ctx.sizes.samples:,} samples"
        row = ctx.report.row(f"memory_build_{storage}", work, "MB", TARGET_BUILD_MB, largest)
        for count in (ctx.sizes.samples,) if ctx.quick else (ctx.sizes.samples // 4, ctx.sizes.samples):
            job = (_build_peak, ctx.seed, scale, count, storage, str(ctx.root / "memory"))
            row.add(f"torchcell_cache, {count:,} samples", OURS, in_processes(1, *job)[0])


def _workers(ctx: Context) -> None:
    work = f"memory of each of {NUM_WORKERS} loader workers (forked), on top of one that reads nothing"
    row = ctx.report.row("memory_worker", work, "MB", TARGET_READER_MB, "torchcell_cache `delta`, PSS")
    roots = {storage: str(ctx.root / f"ours-{storage}") for storage in STORAGES}
    for storage, extra in in_processes(1, _worker_memory, roots, ctx.sizes.peers)[0].items():
        for field, value in extra.items():
            kind, note = WORKER_FIELDS[field]
            row.add(f"torchcell_cache `{storage}`, {kind}", OURS, value, note)


def _high_water_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    raise KeyError("VmHWM")


def _build_peak(_: Barrier, seed: int, scale: float, count: int, storage: str, root: str) -> float:
    """High-water mark of a build minus what the process held before (source table and base graph)."""
    from experiments.benchmarks import ours
    from experiments.benchmarks.workload import make_workload

    workload = make_workload(seed, scale, count)
    source = ours.make_source(workload, workload.samples)
    before = _reset_peak()
    ours.build(Path(root), source, storage, 0)
    return _high_water_mb() - before


def _reader(barrier: Barrier, root: str, limit: int) -> tuple[float, float]:
    """PSS and peak RSS after many shuffled batches, minus what the process held with everything imported."""
    from experiments.benchmarks import ours

    ours.warm_imports()
    barrier.wait(TIMEOUT)
    before = memory_mb("Pss")
    peak_before = _reset_peak()
    barrier.wait(TIMEOUT)
    dataset = ours.open_store(Path(root))
    rng = np.random.default_rng(0)
    for _ in range(NUM_BATCHES):
        ours.read_batch(dataset, rng.integers(0, min(limit, len(dataset)), 28).tolist())
    barrier.wait(TIMEOUT)
    found = memory_mb("Pss") - before, _high_water_mb() - peak_before
    barrier.wait(TIMEOUT)
    return found


def _scheme(_: Barrier, seed: int, scale: float, root: str, limit: int) -> tuple[float, float]:
    """PSS of the scheme's index, and what one stock batch adds to the peak RSS."""
    from experiments.benchmarks.peers.torchcell_scheme import TorchcellScheme
    from experiments.benchmarks.workload import make_base_graph

    graph = make_base_graph(seed, scale)
    before = memory_mb("Pss")
    scheme = TorchcellScheme(graph, Path(root))
    extra = memory_mb("Pss") - before
    scheme.open()
    before = _reset_peak()
    scheme.batch([i % limit for i in range(28)])
    return extra, _high_water_mb() - before


def _worker_memory(_: Barrier, roots: dict[str, str], limit: int) -> dict[str, dict[str, float]]:
    """Mean memory of the workers of a loader while they read, minus that of workers of torch's own that do nothing."""
    from torch.utils.data import DataLoader

    from experiments.benchmarks import ours

    ours.warm_imports()
    # Forked by name: in a process that was itself spawned, torch would spawn its workers.
    idle = DataLoader(range(10_000), None, num_workers=NUM_WORKERS, multiprocessing_context="fork")
    nothing = _memory_of_workers(idle)
    extra = {}
    for storage, root in roots.items():
        dataset = ours.open_store(Path(root))
        loader = ours.loader(dataset, min(limit, len(dataset)), 28, NUM_WORKERS, "fork")
        extra[storage] = {
            field: value - nothing[field] for field, value in _memory_of_workers(loader).items()
        }
    return extra


def _memory_of_workers(loader: Any) -> dict[str, float]:
    before, batches = set(_children()), iter(loader)
    for _ in range(100):
        next(batches)
    workers = [pid for pid in _children() if pid not in before]
    assert len(workers) == NUM_WORKERS
    found = {field: float(np.mean([memory_mb(field, pid) for pid in workers])) for field in WORKER_FIELDS}
    for _ in batches:  # to the end: the workers then have nothing to do
        pass
    return found


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return _high_water_mb()
