"""Where the time of a batch goes, on this machine and with this store; what :mod:`.advice` makes of it."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from torchcell_cache.cli.bench.page_cache import CAN_DROP
from torchcell_cache.cli.bench.stages import (
    Stopwatch,
    Timing,
    cold_read,
    graph_bytes,
    reason,
    stages,
    still_in_memory,
)
from torchcell_cache.cli.bench.step import StepTiming, time_steps
from torchcell_cache.core.checks import real_number, whole_number
from torchcell_cache.core.markup import Shown
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.loader import CacheLoader
from torchcell_cache.errors import SettingError

_SWEEP_SHARE = 0.35
_LIGHT_SHARE = 0.04
_FEWEST_BATCHES = 5
_LONGEST, _MOST_BATCHES = 10**7, 10**5


@dataclass(frozen=True, slots=True)
class WorkerTiming:
    """What a training loop waits for, with one number of workers.

    Attributes:
        num_workers: Reading processes; 0 reads in the loop itself.
        first_ms: Wait for the first batch, workers started.
        wait: Wait for each later batch, batches taken as fast as they come.
        step_wait: The same while every batch is followed by a training step; ``None`` without ``step_ms``.
    """

    num_workers: int
    first_ms: float
    wait: Timing
    step_wait: Timing | None

    def share(self, step_ms: float) -> float | None:
        """Share of the time that the loop waits for data, 0 to 1."""
        if self.step_wait is None:
            return None
        waited = float(np.mean(self.step_wait.seconds)) * 1e3
        return waited / (waited + step_ms)


@dataclass(slots=True)
class BenchReport(Shown):
    """All that was measured.

    Attributes:
        facts: The store, the machine and the settings, JSON values.
        stages: Timings by stage.
        skipped: Why a stage could not be timed, by stage.
        sweep: Timings of the loader by number of workers.
        steps: Where a step goes, on shared batches and on PyG's, if a width was given.
        stayed: Share of the shards that stayed in memory when they should have been cold, ``None`` if unknown.
    """

    facts: dict[str, Any]
    stages: dict[str, Timing] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    sweep: list[WorkerTiming] = field(default_factory=list)
    steps: list[StepTiming] = field(default_factory=list)
    stayed: float | None = None

    @property
    def batch_size(self) -> int:
        """Samples per batch."""
        return int(self.facts["batch_size"])

    @property
    def step_ms(self) -> float | None:
        """The user's training step, in milliseconds."""
        given: float | None = self.facts["step_ms"]
        return given

    def cost(self, *names: str) -> float | None:
        """Median milliseconds of a whole batch over these stages, ``None`` if one is missing."""
        parts = [self.stages[name].batch_ms(self.batch_size) for name in names if name in self.stages]
        return sum(parts) if len(parts) == len(names) else None


def bench_store(
    root: str | os.PathLike[str],
    *,
    batch_size: int = 28,
    num_batches: int = 200,
    workers: Sequence[int] = (0, 1, 2, 4),
    step_ms: float | None = None,
    cold: bool = True,
    seconds: float = 20.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    exclude_keys: Sequence[str] = (),
    hidden: int | None = None,
    layers: int = 2,
    epochs: int | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Time every stage from the store to the model, with one thread.

    Closes this process's handles on all stores; they reopen on the next read.

    Args:
        root: Directory of the store.
        batch_size: Samples per batch; the whole store if it is smaller.
        num_batches: Batches per stage, fewer if time is up.
        workers: Numbers of workers to try.
        step_ms: Your training step per batch, in milliseconds; the loop then sleeps that long after each batch.
        cold: Also read right after the kernel has forgotten the shards.
        seconds: Time for all of it, roughly.
        seed: Seed of the samples drawn.
        device: Where batches go; a GPU if there is one, by default.
        exclude_keys: Fields to leave out of PyG batches, as a loader's ``exclude_keys``.
        hidden: Width of your model: also time a step of GIN layers over all edge types between perturbed nodes, part by
            part, on shared batches and on PyG's.
        layers: Their number.
        epochs: Epochs you mean to train: also say what they cost in hours of one core without the cache and with it.
        on_progress: Called with a few words before each part of the work.

    Raises:
        SettingError: If a setting makes no sense, or the store is empty.
        CacheNotFoundError: If there is no store at ``root``.
    """
    batch_size = whole_number("batch_size", batch_size, 1)
    num_batches = min(whole_number("num_batches", num_batches, 1), _MOST_BATCHES)
    workers, seed = [whole_number("workers", count, 0) for count in workers], whole_number("seed", seed, 0)
    hidden = hidden if hidden is None else whole_number("hidden", hidden, 1)
    layers = whole_number("layers", layers, 1)
    epochs = epochs if epochs is None else whole_number("epochs", epochs, 1, most=_LONGEST)
    _check(workers, step_ms, seconds)
    dataset = PreprocessedDataset(root)
    if len(dataset) == 0:
        raise SettingError(f"the store at {dataset.root} has no samples, so there is nothing to time")
    size = min(batch_size, len(dataset))
    draws = np.random.default_rng(seed).integers(0, len(dataset), (num_batches, size))
    watch = Stopwatch(draws, _device(device))
    facts: dict[str, Any] = {"batch_size": size, "asked": batch_size, "num_batches": num_batches}
    facts |= {"step_ms": step_ms, "seed": seed, "seconds": seconds, "exclude_keys": list(exclude_keys)}
    facts |= {"hidden": hidden, "layers": layers, "epochs": epochs}
    report = BenchReport(_facts(dataset, watch.device) | facts)
    begun = time.monotonic()
    with _one_thread():
        _time_stages(report, dataset, watch, cold, begun, on_progress)
        if hidden is not None:
            on_progress("steps")
            try:
                given = hidden, layers, exclude_keys, seconds / 4
                report.steps = time_steps(dataset, watch.draws, watch.device, *given)
            except Exception as error:
                report.skipped["steps"] = reason(error)
        # At least a little for each, should the stages have taken longer than they were given.
        left = max(begun + seconds - time.monotonic(), 0.1 * seconds) / len(workers)
        for count in workers:
            on_progress(f"loader, {count} workers")
            report.sweep.append(_time_loader(report, dataset, watch, count, left))
    report.facts["took_seconds"] = round(time.monotonic() - begun, 2)
    return report


def _check(workers: Sequence[int], step_ms: float | None, seconds: float) -> None:
    if not workers:
        raise SettingError("workers=[], expected numbers from 0 on, such as [0,1,2,4]")
    for name, number in (("step_ms", step_ms), ("seconds", seconds)):
        if number is not None and real_number(name, number, "a number above 0", above=True) > _LONGEST:
            raise SettingError(f"{name}={number}: expected at most {_LONGEST:,}")


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from None
    return target


def _facts(dataset: PreprocessedDataset, device: torch.device) -> dict[str, Any]:
    manifest = dataset.generation.manifest
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "root": str(dataset.generation.root),
        "samples": len(dataset),
        "storage": manifest.storage,
        "record_bytes": sum(shard.file.size for shard in manifest.shards),
        "shards": len(manifest.shards),
        "store_bytes": sum(s.file.size for s in manifest.shards) + sum(f.size for f in manifest.files),
        "build_seconds": manifest.created.get("seconds"),
        "content_digest": manifest.content_digest,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cores": cores,
        "torch": torch.__version__,
    }


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As in a loader's worker; and threads would blur what a stage costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _time_stages(
    report: BenchReport,
    dataset: PreprocessedDataset,
    watch: Stopwatch,
    cold: bool,
    begun: float,
    on_progress: Callable[[str], None],
) -> None:
    """Time the stages; then the samples that are drawn are in memory."""
    generation, seconds, sample_bytes = (
        dataset.generation,
        report.facts["seconds"],
        graph_bytes(dataset.get(0)),
    )
    from_table = generation.is_structured and not generation.structured.has_removed
    if cold and from_table and generation.table_reader is not None:
        report.skipped["batch, cold"] = "batches of this store are read from memory, which is filled once"
    elif cold and CAN_DROP:
        on_progress("batch, cold")
        report.stayed = still_in_memory(generation)
        report.stages["batch, cold"] = watch.time(cold_read(generation), _LIGHT_SHARE * seconds, 0)
    elif cold:
        report.skipped["batch, cold"] = "this system cannot be asked to forget files"
    watch.warm_up(generation, 2 * _LIGHT_SHARE * seconds)
    todo = list(stages(generation, watch.device, report.facts["exclude_keys"]))
    weights = sum(stage.weight for stage in todo)
    for stage in todo:
        on_progress(stage.name)
        left = begun + (1 - _SWEEP_SHARE) * seconds - time.monotonic()
        share = left * stage.weight / weights if stage.weight else _LIGHT_SHARE * seconds
        weights -= stage.weight
        try:
            report.stages[stage.name] = watch.time(stage, max(share, 0.0), sample_bytes)
        except Exception as error:
            if not stage.may_fail:
                raise
            report.skipped[stage.name] = reason(error)


def _time_loader(
    report: BenchReport, dataset: PreprocessedDataset, watch: Stopwatch, count: int, seconds: float
) -> WorkerTiming:
    """Waits for batches taken as they come, and beside the training step if there is one."""
    step, size, expected = report.step_ms, watch.draws.shape[1], (report.cost("batch") or 0.0) / 1e3
    flat = seconds if step is None else seconds / 3
    first, waits = _waits(dataset, watch, count, 0.0, flat, expected)
    stepped = None
    if step is not None:
        _, times = _waits(dataset, watch, count, step / 1e3, seconds - flat, expected)
        stepped = Timing(f"{count} workers, {step:g} ms step", size, times)
    return WorkerTiming(count, first * 1e3, Timing(f"{count} workers", size, waits), stepped)


def _waits(
    dataset: PreprocessedDataset, watch: Stopwatch, count: int, step: float, seconds: float, expected: float
) -> tuple[float, tuple[float, ...]]:
    """Wait for the first batch and for each later one, in seconds."""
    draws = watch.draws
    number = max(_FEWEST_BATCHES, min(len(draws), int(seconds / max(expected + step, 1e-9)))) + 1
    batches = [draws[k % len(draws)].tolist() for k in range(number)]
    loader = CacheLoader(dataset, batch_sampler=batches, num_workers=count, device=watch.device)
    times: list[float] = []
    with warnings.catch_warnings():
        # The sweep may exceed the cores.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        start = begun = time.perf_counter()
        iterator: Any = iter(loader)
        for _ in iterator:
            times.append(time.perf_counter() - start)
            if len(times) > _FEWEST_BATCHES and time.perf_counter() - begun > 2 * seconds + times[0]:
                break
            time.sleep(step)
            start = time.perf_counter()
        iterator.close()
    return times[0], tuple(times[1:])
