"""``torchcell-cache preprocess``: a build in one go, one task of an array build, or the end of one."""

from __future__ import annotations

from typing import Any

from torchcell_cache.builder.array import build_part, check_task
from torchcell_cache.cli.registry import make_processor, make_source
from torchcell_cache.cli.settings import Settings
from torchcell_cache.data.api import build, finalize
from torchcell_cache.errors import EXIT_OK, SettingError

_SHARED = ("storage", "shard_size", "on_stale", "allow_empty", "max_record_bytes", "progress")
_WORK = ("num_workers", "scratch")


def run(settings: Settings) -> int:
    """Build the store, or a part of it, and print what is there now."""
    task, tasks, last = settings["task"], settings["tasks"], settings["finalize"]
    _check(task, tasks, last)
    _check_numbers(settings, task, tasks)  # a source may take minutes to read
    processor = make_processor(settings)
    source = make_source(settings)
    passed: dict[str, Any] = {key: settings[key] for key in (*_SHARED, *(() if last else _WORK))}
    passed |= {"source": source, "processor": processor}
    if task is not None:
        part = build_part(settings["root"], task=task, tasks=tasks, **passed)
        done = f"{len(part.shards)} shards there, {part.built} of them built now"
        state = "the store is published already" if part.published else done
        print(f"task {task} of {tasks}: {state}; generation {part.generation}")
        return EXIT_OK
    if last:
        dataset = finalize(settings["root"], tasks=tasks, script=settings["script"], **passed)
    else:
        dataset = build(settings["root"], **passed)
    manifest = dataset.generation.manifest
    print(
        f"{dataset.root}: {len(dataset):,} samples as '{dataset.storage}', {len(manifest.shards)} shards, "
        f"content digest {dataset.content_digest}"
    )
    return EXIT_OK


def _check_numbers(settings: Settings, task: int | None, tasks: int | None) -> None:
    check_task(task or 0, 1 if tasks is None else tasks)
    for key, least in (("num_workers", 0), ("shard_size", 1)):
        if settings[key] is not None and settings[key] < least:
            raise SettingError(f"{key}={settings[key]} must be at least {least}")


def _check(task: int | None, tasks: int | None, last: bool) -> None:
    if task is not None and last:
        raise SettingError(
            "task= builds a share, finalize=true publishes: one run does one of them", fix="leave out one"
        )
    if (task is not None or last) and tasks is None:
        what = "finalize=true" if last else f"task={task}"
        raise SettingError(f"{what} needs the number of tasks of the array build", fix="add tasks=...")
    if tasks is not None and task is None and not last:
        raise SettingError(
            f"tasks={tasks} needs task=... or finalize=true", fix="add one, or leave out tasks="
        )
