"""An array build: many tasks on many nodes build the shards of one generation, a last one publishes it.

Tasks share nothing but the generation's directory. Task ``k`` of ``n`` builds the shards ``k, k + n, k + 2n, ...``, whatever
the other tasks do; each finished shard is declared by its sidecar, as in a build in one go, and only :func:`finalize`
writes the manifest.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torchcell_cache.builder.generation import GenerationBuild
from torchcell_cache.builder.publishing import Publisher, begun_storage, publishing, settle_storage
from torchcell_cache.builder.run import BuildRequest
from torchcell_cache.builder.shards import ShardPlan
from torchcell_cache.builder.workers import StopRequest
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.choices import OnStale, Storage
from torchcell_cache.core.files import make_dirs_durable, remove_stale_temps
from torchcell_cache.core.hints import ranges
from torchcell_cache.core.markup import Shown
from torchcell_cache.core.process import this_process
from torchcell_cache.core.progress import Progress
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import (
    BuildIncompleteError,
    CorruptManifestError,
    CorruptShardError,
    FormatError,
    SettingError,
)
from torchcell_cache.processors.base import ProcessorLike
from torchcell_cache.sources.pyg import SourceLike
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import Manifest, processed_dir
from torchcell_cache.store.shard_entry import read_sidecar, shard_name, sidecar_path
from torchcell_cache.store.stamps import ensure_verified
from torchcell_cache.store.status import TASKS_NAME, task_states, task_status_path

SCRIPT = "slurm/preprocess_array.slurm"
_THREADS = 4
_LONGEST_LIST = 20


@dataclass(frozen=True, slots=True)
class Part(Shown):
    """What a task of an array build did.

    Attributes:
        task: Its number.
        tasks: Number of tasks.
        generation: Directory of the generation.
        shards: Numbers of the shards of its share.
        built: How many of them it built now; the others were there.
        published: Whether the store is published already, so that nothing was left to do.
    """

    task: int
    tasks: int
    generation: str
    shards: tuple[int, ...]
    built: int
    published: bool


def build_part(
    root: str | os.PathLike[str],
    *,
    source: SourceLike,
    processor: ProcessorLike = None,
    task: int,
    tasks: int,
    storage: Storage = "auto",
    num_workers: int = 0,
    shard_size: int | None = None,
    on_stale: OnStale = "error",
    allow_empty: bool = False,
    max_record_bytes: int = MAX_RECORD_BYTES,
    scratch: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Part:
    """Build one task's share of the shards; :func:`finalize` publishes the store once all are there.

    Tasks run at the same time on any nodes, in any order, again after they were killed, and twice at once. Arguments other
    than ``task`` have the same values in all of them.

    Args:
        root: Directory of the store, on storage that all nodes see.
        source: See :func:`torchcell_cache.build`.
        processor: Likewise.
        task: Number of the task, from 0.
        tasks: Number of tasks. Not the size of a job array that repeats a few of them.
        storage: See :func:`torchcell_cache.build`; what ``auto`` means is settled by the first task.
        num_workers: Worker processes of this task; 0 builds in this one.
        shard_size: Samples per shard; by storage if ``None``.
        on_stale: What to do with a published store built from something else: ``error``, ``rebuild`` or ``warn``.
        allow_empty: Whether a source without samples is fine.
        max_record_bytes: Largest record accepted.
        scratch: Node-local directory to write shards in before they move to ``root``; made if it is not there.
        progress: Whether to print progress.

    Raises:
        SettingError: If an argument has no such value.
        BuildFailedError: If this task makes other shared files than another one did.
        BuildInterruptedError: If a signal asked to stop; run the same call again.
        CacheError: Whatever else :func:`torchcell_cache.build` raises.

    Example:
        >>> setup = {"source": tc.testing.tiny_source(4), "processor": tc.Perturbation(), "storage": "delta", "tasks": 2}
        >>> for task in range(2):  # each on a node of its own
        ...     _ = tc.build_part("stores/array", **setup, task=task, progress=False)
        >>> tc.finalize("stores/array", **setup, progress=False)
        PreprocessedDataset(4)
    """
    task, tasks = check_task(task, tasks)
    workers = whole_number("num_workers", num_workers, 0)
    request = BuildRequest.from_arguments(
        root, source, processor, storage, shard_size, on_stale, allow_empty, max_record_bytes, progress
    )
    where, plan, console = request.root, request.plan, request.console
    opened = request.find_existing()[1]
    if opened is not None:
        console(f"task {task} of {tasks}: {opened.manifest.generation} is published, nothing to do")
        return Part(task, tasks, opened.manifest.generation, (), 0, True)
    if task == 0:
        console.notes(plan.notes)
    place = None if scratch is None else make_dirs_durable(local_path(scratch, "scratch"))
    with publishing(where, console, shared=True):
        chosen: str = storage
        if chosen == "auto":
            chosen = settle_storage(where, plan, request.cheapest)
        work = request.work(chosen, False, workers, place)
        count, name = work.shards.num_shards, work.directory.name
        share = range(task, count, tasks)  # so that a slow stretch of the source is spread over all
        if not share:
            console(f"{count} shards for {tasks} tasks: none for task {task} (shard_size=... makes more)")
            return Part(task, tasks, name, (), 0, False)
        status = task_status_path(where, task)
        remove_stale_temps(make_dirs_durable(status.parent))
        what, said = f"task {task} of {tasks}", os.environ.get
        job = f"{said('SLURM_ARRAY_JOB_ID', '')}_{said('SLURM_ARRAY_TASK_ID', '')}".strip("_")
        me = {**asdict(this_process()), "host": said("SLURMD_NODENAME") or platform.node()}
        facts: dict[str, Any] = {"task": task, "tasks": tasks, "generation": name, "shards": len(share)}
        facts |= {"job": job or said("SLURM_JOB_ID", ""), "process": me}
        report = partial(Progress, status_path=status, enabled=console.enabled, what=what, facts=facts)
        with StopRequest().listening() as stop:
            work.prepare(together=True)
            _, built = work.build(share, stop, report)
        if all(sidecar_path(work.directory, k).exists() for k in range(count)):
            console(f"all {count} shards are there; finalize=true publishes the store")
    return Part(task, tasks, name, tuple(share), built, False)


def finalize(
    root: str | os.PathLike[str],
    *,
    source: SourceLike,
    processor: ProcessorLike = None,
    tasks: int,
    storage: Storage = "auto",
    shard_size: int | None = None,
    on_stale: OnStale = "error",
    allow_empty: bool = False,
    max_record_bytes: int = MAX_RECORD_BYTES,
    script: str = SCRIPT,
    progress: bool = True,
) -> Generation:
    """Check every shard of an array build and publish the store; a published one is opened at once.

    Args:
        root: Directory of the store.
        source: As passed to the tasks, like all arguments that :func:`build_part` has too.
        processor: Likewise.
        tasks: Number of tasks.
        storage: See :func:`build_part`.
        shard_size: Likewise.
        on_stale: Likewise.
        allow_empty: Likewise.
        max_record_bytes: Likewise.
        script: The array's batch script, for the line that repeats tasks.
        progress: Whether to print progress.

    Raises:
        BuildIncompleteError: Naming the shards that are missing or damaged, their tasks, and the line that repairs them.
        CacheError: Whatever else :func:`torchcell_cache.build` raises.

    Example:
        >>> setup = {"source": tc.testing.tiny_source(4), "processor": tc.Perturbation(), "storage": "delta", "tasks": 1}
        >>> _ = tc.build_part("stores/parts", **setup, task=0, progress=False)
        >>> tc.finalize("stores/parts", **setup, progress=False)
        PreprocessedDataset(4)
    """
    _, tasks = check_task(0, tasks)
    request = BuildRequest.from_arguments(
        root, source, processor, storage, shard_size, on_stale, allow_empty, max_record_bytes, progress
    )

    def generation(exclusive: bool) -> GenerationBuild:
        begun = begun_storage(request.root, request.plan) if storage == "auto" else storage
        if begun is None:
            what = f"no task has begun at {request.root} with this source and processor"
            raise _incomplete(what, request.root, range(tasks), script)
        return request.work(begun, exclusive)

    def begin() -> None:  # without the lock, so that it waits for no task
        work = generation(False)
        check_shards(work.directory, work.shards, tasks, script, request.console.enabled)

    def make(publisher: Publisher) -> Manifest:
        work = generation(publisher.lock.exclusive)
        work.prepare(together=True)
        # Seconds of the task that took longest, for the manifest's information.
        said = [state.get("seconds") for state in task_states(request.root, work.directory.name)]
        seconds = max((float(s) for s in said if isinstance(s, int | float)), default=0.0)
        manifest = work.finish(seconds, work.shards.num_samples)
        work.tidy()
        shutil.rmtree(processed_dir(request.root) / TASKS_NAME, ignore_errors=True)
        return manifest

    return request.opened_or_made(make, begin)


def check_task(task: int, tasks: int) -> tuple[int, int]:
    """``task`` and ``tasks``, unless the one is not one of the other: a ``SettingError``."""
    try:
        task, tasks = whole_number("task", task), whole_number("tasks", tasks)
    except SettingError:
        raise SettingError(f"task={task!r} of tasks={tasks!r}: expected whole numbers") from None
    if tasks < 1 or not 0 <= task < tasks:
        raise SettingError(f"task={task} of tasks={tasks}: expected task=0 to task={max(tasks, 1) - 1}")
    return task, tasks


def check_shards(directory: Path, plan: ShardPlan, tasks: int, script: str, progress: bool) -> None:
    """Look at every shard's sidecar, size and digest: a ``BuildIncompleteError`` if one is missing or damaged."""
    with contextlib.suppress(OSError):
        os.listdir(directory)  # noqa: PTH208 - asks a network file system for names it may still believe missing
    found: list[str | None] = []
    on_progress = Progress(plan.num_samples, 0, None, enabled=progress, what="check shards")
    with on_progress, ThreadPoolExecutor(_THREADS) as pool:
        for text in pool.map(partial(_problem, directory, plan), range(plan.num_shards)):
            on_progress(len(range(*plan.span(len(found)))))
            found.append(text)
    problems = [(shard, text) for shard, text in enumerate(found) if text is not None]
    if not problems:
        return
    lines = [f"{len(problems)} of {plan.num_shards} shards are missing or damaged"]
    lines += [f"    shard {k} (task {k % tasks}): {text}" for k, text in problems[:_LONGEST_LIST]]
    lines += [f"    and {len(problems) - _LONGEST_LIST} more"] * (len(problems) > _LONGEST_LIST)
    raise _incomplete("\n".join(lines), directory, (shard % tasks for shard, _ in problems), script)


def _incomplete(message: str, path: Path, tasks: Iterable[int], script: str) -> BuildIncompleteError:
    """The error that names the tasks to run again."""
    return BuildIncompleteError(
        message, path=path, fix=f"sbatch --array={ranges(tasks)} {shlex.quote(str(script))}"
    )


def _problem(directory: Path, plan: ShardPlan, shard: int) -> str | None:
    """What is wrong with a shard, ``None`` if nothing is; a digest found right is remembered on this node."""
    try:
        entry = read_sidecar(directory, shard)
        if entry is None:
            return "missing"
        if (entry.start, entry.stop) != plan.span(shard) or entry.seed != plan.seed:
            return "its sidecar is of another build"
        ensure_verified(directory / shard_name(shard), entry.file.size, entry.file.xxh3)
    except (CorruptManifestError, CorruptShardError, FormatError) as error:
        return str(error).splitlines()[0]
    return None
