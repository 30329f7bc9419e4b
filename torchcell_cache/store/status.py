"""What is being built at a root, seen from outside: any process or node may ask, and nothing it reads is trusted.

Waiting for it is looking for the published manifest, without any collective call.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torchcell_cache.core.hints import root_argument
from torchcell_cache.core.locks import LOCK_NAME, STATUS_NAME, BuilderLock, read_status
from torchcell_cache.errors import CacheError, CacheNotFoundError, SettingError, WaitTimeoutError
from torchcell_cache.store.manifest import manifest_path, processed_dir, read_manifest
from torchcell_cache.store.shard_entry import GENERATION

_LINE_SECONDS = 30.0
T = TypeVar("T")
PLAN_NAME = "build.json"
TASKS_NAME = ".tasks"
"""Directory in ``processed`` where the tasks of an array build write their progress."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A generation that is not published.

    Attributes:
        name: Its directory's name.
        done: Numbers of its finished shards.
        num_shards: Shards it will have, ``None`` if its plan cannot be read.
    """

    name: str
    done: tuple[int, ...]
    num_shards: int | None

    def __str__(self) -> str:
        total = "?" if self.num_shards is None else f"{self.num_shards:,}"
        return f"{self.name} with {len(self.done):,}/{total} shards finished"


def unfinished(directory: Path) -> Unfinished:
    """How far a generation is: every finished shard has a sidecar."""
    done = []
    with contextlib.suppress(OSError):
        names = (path.stem.removeprefix("shard-") for path in directory.glob("shard-*.json"))
        done = sorted(int(name) for name in names if name.isdecimal())
    plan = read_status(directory / PLAN_NAME) or {}
    count, size = plan.get("num_samples"), plan.get("shard_size")
    known = type(count) is int and type(size) is int and count >= 0 and size > 0
    return Unfinished(directory.name, tuple(done), -(-count // size) if known else None)  # type: ignore[operator]


def task_status_path(root: Path, task: int) -> Path:
    """Where a task of an array build writes its progress."""
    return processed_dir(root) / TASKS_NAME / f"{task:05d}.json"


def task_states(root: Path, generation: str) -> list[dict[str, Any]]:
    """Last words of the tasks that worked on a generation, by number; checked as far as messages need it."""
    directory = processed_dir(root) / TASKS_NAME
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(directory.glob("[0-9]*.json")):
            state = read_status(path)
            if state is not None and state.get("generation") == generation and type(state.get("task")) is int:
                found.append({**state, "written": path.stat().st_mtime})
    return found


def found_at(root: Path) -> str:
    """What there is of a store that is not published, in one line; asks the file system for names again.

    Network file systems remember for a while that a file was missing; listing its directory makes them look again.
    """
    if manifest_path(root).exists():
        return ""
    names: list[str] = []
    for place in (root.parent, root, processed_dir(root)):
        with contextlib.suppress(OSError):
            names = os.listdir(place)  # noqa: PTH208 - only the names
    if not processed_dir(root).is_dir():
        return f"{root} is not there" if not root.is_dir() else f"{root} holds no build"
    parts = [str(unfinished(processed_dir(root) / n)) for n in sorted(names) if GENERATION.fullmatch(n)]
    status = read_status(processed_dir(root) / STATUS_NAME) or {}
    if type(status.get("samples")) is int and type(status.get("total")) is int:
        parts.append(f"{str(status.get('state'))[:20]} at {status['samples']:,}/{status['total']:,} samples")
    owner = BuilderLock(processed_dir(root) / LOCK_NAME).owner()
    if owner is not None:
        parts.append(f"builder {owner}{', which is dead' * (owner.is_alive() is False)}")
    return ", ".join(parts) or "no build has begun"


def wait_for_store(root: Path, wait: bool | float) -> None:
    """Return once a store is published at ``root``; at once if there is nothing to wait for.

    Raises:
        WaitTimeoutError: If it is not there in time; says what is.
        CorruptManifestError: If a damaged manifest is there.
        SettingError: If ``wait`` is no such value.
    """

    def missing(waited: float, found: str) -> CacheError:
        return WaitTimeoutError(
            f"no complete store at {root} after waiting {waited:,.0f} s: {found}",
            path=root,
            fix=f"torchcell-cache status {root_argument(root)}, then build it or wait longer",
        )

    if seconds_of(wait) > 0:
        found = functools.partial(found_at, root)
        waiting(str(root), wait, functools.partial(read_manifest, root), missing, found)


def waiting(
    place: str,
    wait: bool | float,
    read: Callable[[], T],
    missing: Callable[[float, str], CacheError],
    found: Callable[[], str] = str,
    pauses: tuple[float, float] = (0.1, 3.0),
) -> T:
    """What ``read`` gives, tried until it is there; says what it waits for at once and every 30 s, on rank 0 only.

    ``missing`` makes the error for whoever waited so many seconds; ``found`` says what there is meanwhile,
    ``pauses`` are the first and the longest between two tries.
    """
    seconds, begun = seconds_of(wait), time.monotonic()
    last_line, pause = -_LINE_SECONDS, pauses[0]
    while True:
        there = found()
        try:
            return read()
        except (CacheNotFoundError, FileNotFoundError):
            waited = time.monotonic() - begun
        if waited >= seconds:
            raise missing(waited, there) from None
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
        if waited - last_line >= _LINE_SECONDS and rank == "0":
            last_line = waited
            text = f"waiting for {place} since {waited:,.0f} s{there and ': '}{there}"
            print(text, file=sys.stderr, flush=True)
        time.sleep(min(pause, seconds - waited))
        pause = min(1.5 * pause, pauses[1])


def seconds_of(wait: bool | float) -> float:
    """How long to wait, infinity for ``True``; raises ``SettingError`` for what is no time."""
    if isinstance(wait, bool):
        return float("inf") if wait else 0.0
    if not isinstance(wait, int | float) or not wait >= 0:
        raise SettingError(
            f"wait={wait!r}: expected seconds, True (no limit) or False (not at all)", fix="wait=3600"
        )
    return float(wait)
