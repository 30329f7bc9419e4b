"""The part of ``status`` about an array build: which task is how far, where, and whether it lives."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchcell_cache.core.hints import ranges
from torchcell_cache.core.progress import human_seconds
from torchcell_cache.store.status import Unfinished, process_of, task_states

_SILENT_SECONDS = 300.0
"""A task on another node that has not written for this long is not counted as running."""


def numbers_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a builder wrote about its progress, 0 for what is none."""
    names = ("samples", "total", "seconds", "initial")
    return {name: v if type(v := state.get(name)) in (int, float) else 0 for name in names}


def array_facts(root: Path, work: Unfinished) -> dict[str, Any] | None:
    """State of every task of an unfinished generation, ``None`` if it is not an array build.

    Args:
        root: Root of the store.
        work: The generation.
    """
    states = task_states(root, work.name)
    numbers = [n for state in states if type(n := state.get("tasks")) is int and n > 0]
    if not numbers or work.num_shards is None:
        return None
    count = max(numbers)
    tasks = [_task(state, count, work) for state in states if 0 <= state["task"] < count]
    missing = {shard % count for shard in range(work.num_shards)} - {task["task"] for task in tasks}
    return {
        "tasks": count,
        "complete": sum(task["state"] == "complete" for task in tasks),
        "running": [task["task"] for task in tasks if task["state"].startswith("building")],
        "not_begun": sorted(missing),
        "to_repeat": sorted(
            task["task"] for task in tasks if task["state"] in ("dead", "silent", "interrupted", "failed")
        ),
        "states": tasks,
    }


def _task(state: dict[str, Any], count: int, work: Unfinished) -> dict[str, Any]:
    """One task: what it said last, its shards that are there, and whether its process lives."""
    number, process = state["task"], process_of(state)
    alive = None if process is None else process.is_alive()
    silent = max(0.0, time.time() - state["written"])
    word = str(state.get("state"))[:20]
    share = len(range(number, work.num_shards or 0, count))
    done = sum(shard % count == number for shard in work.done)
    if done == share and word != "building":
        word = "complete"
    elif word == "building" and alive is False:
        word = "dead"
    elif word == "building" and alive is None:
        word = "silent" if silent > _SILENT_SECONDS else "building"
    elif word == "complete":
        word = "failed"  # a shard it had finished is gone
    return {
        "task": number,
        "state": word,
        "shards_done": done,
        "shards": share,
        "host": "" if process is None else str(process.host)[:100],
        "job": str(state.get("job", ""))[:100],
        "silent_seconds": round(silent, 1),
        **numbers_of(state),
    }


def array_lines(facts: dict[str, Any]) -> list[str]:
    """The facts as text, one line per task."""
    count = facts["tasks"]
    lines = [f"array build: {facts['complete']} of {count} tasks complete, {len(facts['running'])} running"]
    for task in facts["states"]:
        where = " ".join(filter(None, (task["host"], f"(job {task['job']})" if task["job"] else "")))
        text = f"  task {task['task']}: {task['state']}, {task['shards_done']}/{task['shards']} shards"
        if task["state"] != "complete":
            text += f", {task['samples']:,}/{task['total']:,} samples"
            made, seconds = task["samples"] - task["initial"], task["seconds"]
            text += f", {made / seconds:,.0f}/s" if made > 0 and seconds > 0 else ""
        lines.append(
            f"{text}, {where or 'unknown host'}, last sign {human_seconds(task['silent_seconds'])} ago"
        )
    if facts["not_begun"]:
        lines.append(f"  not begun: {ranges(facts['not_begun'])}")
    again = sorted({*facts["to_repeat"], *([] if facts["running"] else facts["not_begun"])})
    if again:
        lines.append(f"  to repeat: sbatch --array={ranges(again)} ...")
    elif not facts["running"] and not facts["not_begun"]:
        lines.append(
            f"  all shards are there; torchcell-cache preprocess ... finalize=true tasks={count} publishes"
        )
    return lines
