"""Which shards of an array build are there and whole, which tasks have to run again, and what the tasks say of themselves."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torchcell_cache.builder.shards import ShardPlan
from torchcell_cache.core.progress import Progress
from torchcell_cache.errors import BuildIncompleteError, CorruptManifestError, CorruptShardError, FormatError
from torchcell_cache.store.manifest import processed_dir, read_sidecar, shard_name
from torchcell_cache.store.stamps import ensure_verified
from torchcell_cache.store.status import TASKS_NAME, task_states

_THREADS = 4
_LONGEST_LIST = 20


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as ``sbatch --array`` takes them, such as ``3,7-9``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


class Finished:
    """The check before an array build is published.

    Args:
        root: Root of the store.
        tasks: Number of tasks.
        script: The array's batch script.
        progress: Whether to print progress.
    """

    def __init__(self, root: Path, tasks: int, script: str, progress: bool) -> None:
        self.root, self.tasks, self.script, self.progress = root, tasks, script, progress

    def check(self, directory: Path, plan: ShardPlan) -> None:
        """Look at every shard's side file, size and digest.

        Raises:
            BuildIncompleteError: If one is missing or damaged.
        """
        with contextlib.suppress(OSError):
            os.listdir(directory)  # noqa: PTH208 - asks a network file system for names it may still believe missing
        meter = Progress(plan.num_samples, 0, None, enabled=self.progress, what="check shards")
        problems: dict[int, str] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            for shard, text in enumerate(
                pool.map(lambda k: problem_of(directory, plan, k), range(plan.num_shards))
            ):
                start, stop = plan.span(shard)
                meter(stop - start)
                if text is not None:
                    problems[shard] = text
        meter.close("complete")
        if problems:
            raise self._incomplete(problems, plan.num_shards, directory)

    def nothing_there(self) -> BuildIncompleteError:
        """The error for a root where no task has begun."""
        return BuildIncompleteError(
            f"no task has begun at {self.root} with this source and processor",
            path=self.root,
            fix=self._line(range(self.tasks)),
        )

    def seconds(self, generation: str) -> float:
        """Seconds of the task that took longest, for the manifest's information."""
        found = [state.get("seconds") for state in task_states(self.root, generation)]
        return max((float(s) for s in found if isinstance(s, int | float)), default=0.0)

    def forget(self) -> None:
        """Remove what tasks said of themselves, once the store is published."""
        shutil.rmtree(processed_dir(self.root) / TASKS_NAME, ignore_errors=True)

    def _line(self, tasks: Iterable[int]) -> str:
        return f"sbatch --array={ranges(tasks)} {shlex.quote(self.script)}"

    def _incomplete(self, problems: dict[int, str], num_shards: int, directory: Path) -> BuildIncompleteError:
        lines = [f"{len(problems)} of {num_shards} shards are missing or damaged"]
        listed = list(problems.items())
        for shard, text in listed[:_LONGEST_LIST]:
            lines.append(f"    shard {shard} (task {shard % self.tasks}): {text}")
        if len(listed) > _LONGEST_LIST:
            lines.append(f"    and {len(listed) - _LONGEST_LIST} more")
        return BuildIncompleteError(
            "\n".join(lines), path=directory, fix=self._line(shard % self.tasks for shard in problems)
        )


def problem_of(directory: Path, plan: ShardPlan, shard: int) -> str | None:
    """What is wrong with a shard, ``None`` if nothing is; a digest found right is remembered on this node."""
    try:
        entry = read_sidecar(directory, shard)
        if entry is None:
            return "missing"
        if (entry.start, entry.stop) != plan.span(shard) or entry.seed != plan.seed:
            return "its side file is of another build"
        ensure_verified(directory / shard_name(shard), entry.file.size, entry.file.xxh3)
    except (CorruptManifestError, CorruptShardError, FormatError) as error:
        return str(error).splitlines()[0]
    return None
