"""Medians over rounds in which all ways take turns, so that a slow moment hits everybody."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "torch-geometric",
    "numpy",
    "lmdb",
    "safetensors",
    "xxhash",
    "pandas",
    "pyarrow",
    "litdata",
    "mosaicml-streaming",
)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and spread over all calls."""

    median: float
    p10: float
    p90: float
    calls: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        ordered = sorted(seconds)
        last = len(ordered) - 1
        return cls(
            statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered)
        )

    def per(self, items: int) -> Timing:
        """The same for one of ``items`` equal parts of a call."""
        return Timing(self.median / items, self.p10 / items, self.p90 / items, self.calls)


@dataclass
class Budget:
    """At least ``min_rounds`` rounds, then until ``seconds`` per way or ``max_rounds`` are used.

    A round calls a way up to ``burst`` times in a row, for at most ``burst_seconds``, and counts every call:
    right after another way has filled the processor's caches the first call is slower than the ones that
    follow in real use.
    """

    min_rounds: int = 5
    max_rounds: int = 200
    seconds: float = 2.0
    burst: int = 10
    burst_seconds: float = 0.02


@dataclass(frozen=True)
class Way:
    """One way of doing the work that is measured.

    Attributes:
        run: Does the work once; called with the number of the round, so that each round can take other
            indices.
        prepare: Called before each round and not timed (drop caches, pick a new directory).
        max_rounds: Fewer rounds for something that takes long.
    """

    run: Callable[[int], object]
    prepare: Callable[[int], object] | None = None
    max_rounds: int | None = None


def alternate(ways: Mapping[str, Way | Callable[[int], object]], budget: Budget) -> dict[str, Timing]:
    """Runs all ways in turns, in rotating order, and returns one :class:`Timing` per name.

    One untimed warm-up call each comes first unless a way runs in few rounds (those are long enough to be
    their own warm-up). The garbage collector is off while a call is timed.
    """
    full = {name: way if isinstance(way, Way) else Way(way) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in full}
    for way in full.values():
        if way.max_rounds is None:
            if way.prepare is not None:
                way.prepare(-1)
            way.run(0)
    names = list(full)
    for number in range(budget.max_rounds):
        # Rotated, so that nobody always comes right after the same neighbour.
        shift = number % max(1, len(names))
        turn = [
            n for n in names[shift:] + names[:shift] if not _finished(seconds[n], number, full[n], budget)
        ]
        if not turn:
            break
        for name in turn:
            seconds[name] += _burst(full[name], number, budget)
    return {name: Timing.of(values) for name, values in seconds.items()}


def _finished(seconds: list[float], rounds: int, way: Way, budget: Budget) -> bool:
    if way.max_rounds is not None and rounds >= way.max_rounds:
        return True
    return rounds >= budget.min_rounds and sum(seconds) >= budget.seconds


def _burst(way: Way, number: int, budget: Budget) -> list[float]:
    """The calls of one round; only one if every call has to be prepared."""
    calls = 1 if way.prepare is not None or way.max_rounds is not None else budget.burst
    seconds: list[float] = []
    while len(seconds) < calls and sum(seconds) < budget.burst_seconds:
        seconds.append(_timed(way, number * calls + len(seconds)))
    return seconds


def _timed(way: Way, number: int) -> float:
    if way.prepare is not None:
        way.prepare(number)
    gc.collect(0)
    gc.disable()
    start = time.perf_counter()
    result = way.run(number)
    elapsed = time.perf_counter() - start
    gc.enable()
    del result
    return elapsed


def drop_page_cache(root: Path) -> None:
    """Asks the kernel to forget the files below ``root``; works for files that no process has mapped."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def memory_mb(field_name: str = "Pss", pid: int | str = "self") -> float:
    """A field of ``/proc/<pid>/smaps_rollup`` (``Pss``, ``Rss``, ``Private_Dirty``) in MB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field_name}:"):
            return float(line.split()[1]) / 1024
    raise KeyError(field_name)


@dataclass(frozen=True)
class Machine:
    """Where the figures come from."""

    cpu: str
    cores: int
    memory_gb: float
    system: str
    python: str
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""

    @classmethod
    def here(cls) -> Machine:
        cpu = next(
            (
                line.split(":", 1)[1].strip()
                for line in _read("/proc/cpuinfo")
                if line.startswith("model name")
            ),
            platform.processor() or "unknown",
        )
        total = next(
            (int(line.split()[1]) for line in _read("/proc/meminfo") if line.startswith("MemTotal")), 0
        )
        return cls(
            cpu=cpu,
            cores=len(os.sched_getaffinity(0)),
            memory_gb=round(total / 2**20, 1),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            versions={name: v for name in PACKAGES if (v := _version(name))},
            commit=_commit(),
        )

    def describe(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        place = f"{self.cores} cores of {self.cpu}, {self.memory_gb} GB, {self.system}"
        commit = f", commit {self.commit}" if self.commit else ""
        return f"{place}, Python {self.python}, {versions}{commit}"


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def single_thread() -> None:
    """One thread for torch and BLAS: on small index arrays more threads cost time."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
