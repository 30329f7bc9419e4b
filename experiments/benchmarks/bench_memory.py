"""Memory, in processes of its own: what a build needs on top of the base graph, what a reader needs."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.context import Context
from experiments.benchmarks.harness import memory_mb, single_thread
from experiments.benchmarks.report import OURS, SCHEME

NUM_READERS = 4
TARGET_BUILD_MB, TARGET_READER_MB = 300, 50


def run(ctx: Context, scale: float) -> None:
    """Adds the rows; needs the stores of the build section."""
    for storage in ("delta", "perturbation"):
        work = f"peak memory of a build on top of the base graph, `{storage}`, one process"
        largest = f"torchcell_cache, {ctx.sizes.samples:,} samples"
        row = ctx.report.row(f"memory_build_{storage}", work, "MB", TARGET_BUILD_MB, largest)
        for count in sorted({ctx.sizes.samples // 4, ctx.sizes.samples}):
            job = (_build_peak, ctx.seed, scale, count, storage, str(ctx.root / "memory"))
            row.add(f"torchcell_cache, {count:,} samples", OURS, _in_processes(1, *job)[0])
    first = "torchcell_cache `delta`"
    work = f"memory per reading process ({NUM_READERS} of them, PSS)"
    row = ctx.report.row("memory_reader", work, "MB", TARGET_READER_MB, first)
    for storage in ("delta", "perturbation"):
        job = (_reader_pss, str(ctx.root / f"ours-{storage}"), ctx.sizes.peers, 200)
        note = "base graph, index and record pages included; mean"
        row.add(f"torchcell_cache `{storage}`", OURS, float(np.mean(_in_processes(NUM_READERS, *job))), note)
    job = (_scheme_pss, ctx.seed, scale)
    note = "list-of-tensors index only, its base graph not counted"
    row.add(ctx.scheme.name, SCHEME, _in_processes(1, *job)[0], note)


def _in_processes(count: int, function: Any, *arguments: Any) -> list[float]:
    """Runs ``function`` in fresh processes at the same time and returns what each one reports."""
    spawn = multiprocessing.get_context("spawn")
    barrier, queue = spawn.Barrier(count), spawn.Queue()
    processes = [
        spawn.Process(target=_call, args=(barrier, queue, function, arguments)) for _ in range(count)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    for result in results:
        if isinstance(result, str):
            raise RuntimeError(f"measuring memory failed in its process: {result}")
    return results


def _call(barrier: Barrier, queue: Any, function: Any, arguments: tuple[Any, ...]) -> None:
    single_thread()
    try:
        queue.put(function(barrier, *arguments))
    except BaseException as error:
        barrier.abort()
        queue.put(repr(error))
        raise


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
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_mb()
    ours.build(Path(root), source, storage, 0)
    return _high_water_mb() - before


def _reader_pss(barrier: Barrier, root: str, limit: int, batches: int) -> float:
    """PSS after many shuffled batches minus PSS with everything imported."""
    from experiments.benchmarks import ours

    ours.warm_imports()
    barrier.wait(600)
    before = memory_mb("Pss")
    barrier.wait(600)
    dataset = ours.open_store(Path(root))
    rng = np.random.default_rng(0)
    for _ in range(batches):
        indices = rng.integers(0, min(limit, len(dataset)), 28).tolist()
        if ours.has_batches():
            ours.read_batch(dataset, indices)
        else:
            dataset[indices[0]]
    barrier.wait(600)
    extra = memory_mb("Pss") - before
    barrier.wait(600)
    return extra


def _scheme_pss(_: Barrier, seed: int, scale: float) -> float:
    from experiments.benchmarks.peers.torchcell_scheme import TorchcellScheme
    from experiments.benchmarks.workload import make_base_graph

    graph = make_base_graph(seed, scale)
    before = memory_mb("Pss")
    scheme = TorchcellScheme(graph, Path())
    extra = memory_mb("Pss") - before
    del scheme
    return extra
