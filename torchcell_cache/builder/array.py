"""An array build: many tasks on many nodes build the shards of one generation, a last one publishes it.

Tasks share nothing but the generation's directory. Task ``k`` of ``n`` builds the shards ``k, k + n, k + 2n, ...``, whatever
the other tasks do; each finished shard is declared by its side file, as in a build in one go, and only :func:`finalize`
writes the manifest.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from torchcell_cache.builder.array_check import Finished
from torchcell_cache.builder.auto import choose_storage
from torchcell_cache.builder.generation import GenerationBuild
from torchcell_cache.builder.plan import BuildPlan, make_shard_plan
from torchcell_cache.builder.resume import tidy
from torchcell_cache.builder.run import plan_build
from torchcell_cache.builder.shards import ShardPlan, new_generation_name
from torchcell_cache.builder.steps import acquire, begun_storage, look, publish, settle_storage
from torchcell_cache.builder.workers import StopRequest
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.core.files import make_dirs_durable, remove_stale_temps, storage_errors
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.core.process import this_process
from torchcell_cache.core.progress import Console, Progress
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import processed_dir, sidecar_path
from torchcell_cache.store.status import task_status_path

SCRIPT = "slurm/preprocess_array.slurm"


@dataclass(frozen=True, slots=True)
class Part:
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


def share_of(task: int, tasks: int, num_shards: int) -> range:
    """Shards of one task: every ``tasks``-th, so that a slow stretch of the source is spread over all."""
    return range(task, num_shards, tasks)


def build_part(
    root: str | os.PathLike[str],
    *,
    source: Any,
    processor: Any = None,
    task: int,
    tasks: int,
    storage: str = "auto",
    num_workers: int = 0,
    shard_size: int | None = None,
    on_stale: str = "error",
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
    """
    check_task(task, tasks)
    where = local_path(root)
    plan = plan_build(source, processor, storage, num_workers, on_stale, allow_empty)
    say = Console(progress)
    opened = look(where, plan, storage, on_stale, say)[1]
    if opened is not None:
        say(f"task {task} of {tasks}: {opened.manifest.generation} is published, nothing to do")
        return Part(task, tasks, opened.manifest.generation, (), 0, True)
    if task == 0:
        say.notes(plan.notes)
    place = None if scratch is None else make_dirs_durable(local_path(scratch, "scratch"))
    with _locked(where, True, say):
        storage = (
            settle_storage(where, plan, partial(choose_storage, plan, say)) if storage == "auto" else storage
        )
        work = _work(where, plan, storage, shard_size, max_record_bytes, False, say)
        share = share_of(task, tasks, work.shards.num_shards)
        if not share:
            say(
                f"{work.shards.num_shards} shards for {tasks} tasks: none for task {task} (shard_size=... makes more)"
            )
            return Part(task, tasks, work.directory.name, (), 0, False)
        report = partial(
            Progress,
            status_path=_status_file(where, task),
            enabled=progress,
            what=f"task {task} of {tasks}",
            facts=_facts(task, tasks, work, len(share)),
        )
        with StopRequest().listening() as stop:
            work.prepare(place, together=True)
            _, built = work.build(share, num_workers, place, stop, report)
        if all(sidecar_path(work.directory, k).exists() for k in range(work.shards.num_shards)):
            say(f"all {work.shards.num_shards} shards are there; finalize=true publishes the store")
    return Part(task, tasks, work.directory.name, tuple(share), built, False)


def finalize(
    root: str | os.PathLike[str],
    *,
    source: Any,
    processor: Any = None,
    tasks: int,
    storage: str = "auto",
    shard_size: int | None = None,
    on_stale: str = "error",
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
    """
    check_task(0, tasks)
    where = local_path(root)
    plan = plan_build(source, processor, storage, 0, on_stale, allow_empty)
    say = Console(progress)
    opened = look(where, plan, storage, on_stale, say)[1]
    if opened is not None:
        say(f"{opened.manifest.generation} is published already")
        return opened
    if storage == "auto":
        storage = begun_storage(where, plan) or "auto"
    finished = Finished(where, tasks, script, progress)
    if storage == "auto":
        raise finished.nothing_there()
    shards = make_shard_plan(plan, storage, shard_size, max_record_bytes)
    finished.check(
        processed_dir(where) / new_generation_name(plan.fingerprint(storage).digest, shards), shards
    )
    with _locked(where, False, say) as lock:
        current, opened = look(where, plan, storage, on_stale, say)
        if opened is not None:
            return opened
        work = _work(where, plan, storage, shard_size, max_record_bytes, lock.exclusive, say)
        work.prepare(None, together=True)
        manifest = work.finish(finished.seconds(work.directory.name), shards.num_samples)
        tidy(where, work.directory, None, lock.exclusive)
        published = publish(where, manifest, current, say)
        finished.forget()
    return published


def check_task(task: int, tasks: int) -> None:
    """Raise ``SettingError`` unless ``task`` is one of ``tasks``."""
    if not all(isinstance(number, int | np.integer) for number in (task, tasks)):
        raise SettingError(f"task={task!r} of tasks={tasks!r}: expected whole numbers")
    if tasks < 1 or not 0 <= task < tasks:
        raise SettingError(f"task={task} of tasks={tasks}: expected task=0 to task={max(tasks, 1) - 1}")


@contextmanager
def _locked(root: Path, shared: bool, say: Console) -> Iterator[BuilderLock]:
    """The builder lock: shared among tasks, so that a plain build, a repair or ``gc`` waits for all of them."""
    with storage_errors(processed_dir(root)):
        make_dirs_durable(processed_dir(root))
    lock = BuilderLock(processed_dir(root) / LOCK_NAME, shared)
    acquire(lock, say)
    try:
        yield lock
    finally:
        lock.release()


def _work(
    root: Path,
    plan: BuildPlan,
    storage: str,
    shard_size: int | None,
    max_record_bytes: int,
    exclusive: bool,
    say: Console,
) -> GenerationBuild:
    shards: ShardPlan = make_shard_plan(plan, storage, shard_size, max_record_bytes)
    name = new_generation_name(plan.fingerprint(storage).digest, shards)
    return GenerationBuild(root, name, plan, shards, storage, exclusive, say)


def _status_file(root: Path, task: int) -> Path:
    path = task_status_path(root, task)
    make_dirs_durable(path.parent)
    remove_stale_temps(path.parent)
    return path


def _facts(task: int, tasks: int, work: GenerationBuild, shards: int) -> dict[str, Any]:
    """What the status file of a task says besides its progress."""
    names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    job = "_".join(os.environ.get(name, "") for name in names).strip("_") or os.environ.get(
        "SLURM_JOB_ID", ""
    )
    me = {**asdict(this_process()), "host": os.environ.get("SLURMD_NODENAME") or platform.node()}
    return {
        "task": task,
        "tasks": tasks,
        "generation": work.directory.name,
        "shards": shards,
        "job": job,
        "process": me,
    }
