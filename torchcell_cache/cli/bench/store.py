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

from torchcell_cache.cli.bench import stages
from torchcell_cache.cli.bench.stages import Stopwatch, times
from torchcell_cache.cli.bench.step import time_steps
from torchcell_cache.core.checks import real_number, whole_number
from torchcell_cache.core.markup import Shown
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.loader import CacheLoader
from torchcell_cache.errors import CacheError, SettingError
from torchcell_cache.store import records as store

_SWEEP_SHARE = 0.35
_LIGHT_SHARE = 0.04
_FEWEST_BATCHES = 5
_LONGEST, _MOST_BATCHES = 10**7, 10**5


@dataclass(slots=True)
class BenchReport(Shown):
    """All that was measured, as JSON values.

    Attributes:
        facts: The store, the machine and the settings.
        stages: Timings by stage, as :func:`times` makes them.
        skipped: Why a stage could not be timed, by stage.
        steps: Where a step goes, on shared batches and on PyG's, if a width was given.
        stayed_in_memory: Share of the shards that did when they should have been cold, ``None`` if unknown.
        workers: What a training loop waits for, by number of workers: for the first batch, workers started; for each later
            one, taken as fast as they come; and the same while every batch is followed by a training step.
    """

    facts: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    stayed_in_memory: float | None = None
    workers: list[dict[str, Any]] = field(default_factory=list)

    def cost(self, *names: str) -> float | None:
        """Median milliseconds of a whole batch over these stages, ``None`` if one is missing."""
        found = [self.stages[name] for name in names if name in self.stages]
        parts = [stage["p50_ms"] * self.facts["batch_size"] / stage["samples"] for stage in found]
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
    if not workers:
        raise SettingError("workers=[], expected numbers from 0 on, such as [0,1,2,4]")
    for name, number in (("step_ms", step_ms), ("seconds", seconds)):
        if number is not None and real_number(name, number, "a number above 0", above=True) > _LONGEST:
            raise SettingError(f"{name}={number}: expected at most {_LONGEST:,}")
    dataset = PreprocessedDataset(root)
    if len(dataset) == 0:
        raise SettingError(f"the store at {dataset.root} has no samples, so there is nothing to time")
    size = min(batch_size, len(dataset))
    draws = np.random.default_rng(seed).integers(0, len(dataset), (num_batches, size))
    watch = Stopwatch(dataset, draws, _device(device))
    facts: dict[str, Any] = {"batch_size": size, "asked": batch_size, "num_batches": num_batches}
    facts |= {"step_ms": step_ms, "seed": seed, "seconds": seconds, "exclude_keys": list(exclude_keys)}
    facts |= {"hidden": hidden, "layers": layers, "epochs": epochs}
    report = BenchReport(_facts(watch) | facts)
    begun, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker; and threads would blur what a stage costs
    try:
        _time_stages(report, watch, cold, begun, on_progress)
        if hidden is not None:
            on_progress("steps")
            with _skipping(report, "steps"):
                report.steps = time_steps(watch, hidden, layers, exclude_keys, seconds / 4)
        # At least a little for each, should the stages have taken longer than they were given.
        left = max(begun + seconds - time.monotonic(), 0.1 * seconds) / len(workers)
        for count in workers:
            on_progress(f"loader, {count} workers")
            report.workers.append(_time_loader(report, watch, count, left))
    finally:
        torch.set_num_threads(threads)
    report.facts["took_seconds"] = round(time.monotonic() - begun, 2)
    return report


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from None
    return target


def _facts(watch: Stopwatch) -> dict[str, Any]:
    generation, device = watch.generation, watch.device
    manifest, records = generation.manifest, sum(shard.file.size for shard in generation.manifest.shards)
    return {
        "root": str(generation.root),
        "samples": manifest.num_samples,
        "storage": manifest.storage,
        "record_bytes": records,
        "shards": len(manifest.shards),
        "store_bytes": records + sum(file.size for file in manifest.files),
        "build_seconds": manifest.created.get("seconds"),
        "content_digest": manifest.content_digest,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.__version__,
    }


@contextlib.contextmanager
def _skipping(report: BenchReport, name: str) -> Iterator[None]:
    """What cannot be timed is said in one line, unless the reason is that the store is damaged."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CacheError) and not isinstance(error, SettingError):
            raise
        text = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        report.skipped[name] = text if isinstance(error, SettingError) else f"{type(error).__name__}: {text}"


def _time_stages(
    report: BenchReport, watch: Stopwatch, cold: bool, begun: float, on_progress: Callable[[str], None]
) -> None:
    """Time the stages; then the samples that are drawn are in memory."""
    generation, seconds = watch.generation, report.facts["seconds"]
    structured = generation.is_structured and not generation.structured.has_removed
    if cold and structured and generation.table_reader is not None:
        report.skipped["batch, cold"] = "batches of this store are read from memory, which is filled once"
    elif cold and not stages.CAN_DROP:
        report.skipped["batch, cold"] = "this system cannot be asked to forget files"
    elif cold:
        on_progress("batch, cold")
        store.close_all()
        stages.drop_pages(generation.files.paths)
        report.stayed_in_memory = stages.resident_share(generation.files.paths)
        report.stages["batch, cold"] = watch.time(stages.cold_read(generation), _LIGHT_SHARE * seconds)
    watch.warm_up(2 * _LIGHT_SHARE * seconds)
    todo = list(stages.stages(generation, watch.device, report.facts["exclude_keys"]))
    weights = sum(stage.weight for stage in todo)
    for stage in todo:
        on_progress(stage.name)
        left = begun + (1 - _SWEEP_SHARE) * seconds - time.monotonic()
        share = left * stage.weight / weights if stage.weight else _LIGHT_SHARE * seconds
        weights -= stage.weight
        with _skipping(report, stage.name):
            report.stages[stage.name] = watch.time(stage, max(share, 0.0))


def _time_loader(report: BenchReport, watch: Stopwatch, count: int, seconds: float) -> dict[str, Any]:
    """Waits for batches taken as they come, and beside the training step if there is one."""
    step, size = report.facts["step_ms"], watch.draws.shape[1]
    expected = (report.cost("batch") or 0.0) / 1e3
    first, *waits = _waits(watch, count, 0.0, seconds if step is None else seconds / 3, expected)
    row = {"num_workers": count, "first_ms": first * 1e3, "wait": times(size, waits)}
    if step is None:
        return {**row, "step_wait": None, "data_wait_share": None}
    beside = times(size, _waits(watch, count, step / 1e3, 2 * seconds / 3, expected)[1:])
    share = beside["mean_ms"] / (beside["mean_ms"] + step)
    return {**row, "step_wait": beside, "data_wait_share": share}


def _waits(watch: Stopwatch, count: int, step: float, seconds: float, expected: float) -> list[float]:
    """Wait for the first batch and for each later one, in seconds."""
    draws = watch.draws
    number = max(_FEWEST_BATCHES, min(len(draws), int(seconds / max(expected + step, 1e-9)))) + 1
    batches = [draws[k % len(draws)].tolist() for k in range(number)]
    loader = CacheLoader(watch.dataset, batch_sampler=batches, num_workers=count, device=watch.device)
    found: list[float] = []
    with warnings.catch_warnings():
        # The sweep may exceed the cores.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        start = begun = time.perf_counter()
        iterator: Any = iter(loader)
        for _ in iterator:
            found.append(time.perf_counter() - start)
            if len(found) > _FEWEST_BATCHES and time.perf_counter() - begun > 2 * seconds + found[0]:
                break
            time.sleep(step)
            start = time.perf_counter()
        iterator.close()
    return found
