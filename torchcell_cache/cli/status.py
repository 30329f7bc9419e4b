"""``torchcell-cache status``: how far a build is, seen from outside."""

from __future__ import annotations

import json as json_
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchcell_cache.cli.words import painted
from torchcell_cache.core.checks import real_number
from torchcell_cache.core.hints import ranges
from torchcell_cache.core.locks import LOCK_NAME, STATUS_NAME, BuilderLock, read_status
from torchcell_cache.core.progress import human_seconds
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import EXIT_INTERRUPTED, EXIT_OK, CacheError, CacheNotFoundError
from torchcell_cache.store.manifest import (
    Manifest,
    generation_dirs,
    manifest_path,
    own_manifest,
    processed_dir,
    read_manifest,
)
from torchcell_cache.store.status import Unfinished, process_of, task_states, unfinished

_WAITS = ("dead", "interrupted", "failed")


def status(root: str, *, json: bool = False, watch: bool = False, seconds: float = 2.0) -> int:
    """How far a build is, from any process or node.

    Exit code 0 if it runs or is complete, 75 if it waits to be resumed, 65 if there is nothing.

    Args:
        root: Directory of the store.
        json: Print as JSON; with watch a line for each change.
        watch: Look again and again until nothing is being built any more.
        seconds: Time between two looks.

    Example:
        torchcell-cache status demo/ecoli
        torchcell-cache status demo/ecoli watch=true
    """
    place, shown = local_path(root), ""
    real_number("seconds", seconds, "seconds above 0", above=True)
    clear = "\x1b[H\x1b[2J" if watch and not json and sys.stdout.isatty() else ""
    while True:
        facts = build_status(place)
        text = json_.dumps(facts, indent=None if watch else 1) if json else "\n".join(_lines(facts, place))
        if text != shown:
            shown = text
            print(f"{clear}{painted(text, sys.stdout)}", flush=True)
        if not watch or not _runs(facts):
            break
        time.sleep(seconds)
    waits = facts["build"] is not None and facts["build"]["state"] in _WAITS and bool(facts["unfinished"])
    arrays = [work["array"] for work in facts["unfinished"] if work["array"] is not None]
    waits = waits or any(not array["running"] for array in arrays)
    return EXIT_INTERRUPTED if waits else EXIT_OK


def _runs(facts: Mapping[str, Any]) -> bool:
    """Whether somebody builds."""
    build, arrays = facts["build"], [work["array"] for work in facts["unfinished"]]
    return any(array and array["running"] for array in arrays) or (
        build is not None and build["state"] in ("building", "starting", "building elsewhere")
    )


def build_status(root: Path) -> dict[str, Any]:
    """What is published and what is being built at ``root``."""
    published: Manifest | None = None
    missing: CacheError | None = None
    try:
        published = read_manifest(root)
    except CacheNotFoundError as error:
        missing = error
    begun = [_unfinished(root, path) for path in generation_dirs(root) if own_manifest(path) is None]
    build = _build(root)
    if published is None and not begun and build is None and missing is not None:
        raise missing
    return {
        "root": str(root),
        "published": published
        and {
            "generation": published.generation,
            "samples": published.num_samples,
            "storage": published.storage,
            "content_digest": published.content_digest,
        },
        "build": build,
        "unfinished": begun,
    }


def _unfinished(root: Path, directory: Path) -> dict[str, Any]:
    """Shards finished so far and, of an array build, its tasks."""
    work = unfinished(directory)
    return {
        "generation": work.name,
        "shards_done": len(work.done),
        "shards": work.num_shards,
        "array": array_facts(root, work),
    }


def _build(root: Path) -> dict[str, Any] | None:
    """The last progress written, and whether its writer lives."""
    status = read_status(processed_dir(root) / STATUS_NAME)
    owner = BuilderLock(processed_dir(root) / LOCK_NAME).owner()
    if status is None and owner is None:
        return None
    said = status if status is not None and isinstance(status.get("state"), str) else {"state": "starting"}
    facts: dict[str, Any] = {"state": said["state"], **numbers_of(said)}
    alive = None if owner is None else owner.process.is_alive()
    facts |= {"builder": None if owner is None else str(owner), "alive": alive}
    if owner is not None and alive:
        if facts["state"] != "building":
            facts["state"] = "starting"  # what stands there is the last word of an earlier run
    elif facts["state"] in ("building", "starting"):
        facts["state"] = "dead" if owner is None or alive is False else "building elsewhere"
    seconds, made = facts["seconds"], facts["samples"] - facts["initial"]
    facts["rate"] = round(made / seconds, 1) if seconds > 0 and made > 0 else 0.0
    return facts


def _lines(facts: dict[str, Any], root: Path) -> list[str]:
    published, build = facts["published"], facts["build"]
    lines = []
    if published is None:
        lines.append(f"not built: {manifest_path(root)} is not there yet")
    else:
        lines.append(
            f"complete: {published['generation']}, {published['samples']:,} samples as '{published['storage']}', "
            f"content digest {published['content_digest']}"
        )
    if build is not None:
        lines += _build_lines(build, facts, root)
    for each in facts["unfinished"]:
        total = "?" if each["shards"] is None else f"{each['shards']:,}"
        lines.append(f"unfinished: {each['generation']}, {each['shards_done']:,}/{total} shards finished")
        lines += [] if each["array"] is None else array_lines(each["array"])
    return lines


def _build_lines(build: dict[str, Any], facts: dict[str, Any], root: Path) -> list[str]:
    state, done, total = build["state"], build["samples"], build["total"]
    share = f"{done:,}/{total:,} samples ({100 * done / max(total, 1):.0f} %)"
    again = f"to continue: run the same command again (torchcell-cache preprocess {shlex.quote(f'root={root}')} ...)"
    if state.startswith("building"):
        eta = human_seconds((total - done) / build["rate"]) if build["rate"] else "unknown time"
        where = f"{build['builder']}{'' if state == 'building' else ', which cannot be seen from here'}"
        return [f"building: {share}, {build['rate']:,.0f}/s, {eta} left, by {where}"]
    if state == "starting":
        return [f"building: {build['builder']} has just begun"]
    if state in _WAITS and (facts["unfinished"] or facts["published"] is None):
        who = f" ({build['builder']})" if build["builder"] else ""
        text = {"dead": f"the builder{who} is dead; it got to {share}"}.get(
            state, f"the last build {state} at {share}"
        )
        return [text, f"  {again}"]
    return []


# Array builds: which task is how far, where, and whether it lives

_SILENT_SECONDS = 300.0
"""A task on another node that has not written for this long is not counted as running."""


def numbers_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a builder wrote about its progress, 0 for what is none."""
    names = ("samples", "total", "seconds", "initial")
    return {name: v if type(v := state.get(name)) in (int, float) else 0 for name in names}


def array_facts(root: Path, work: Unfinished) -> dict[str, Any] | None:
    """State of every task of an unfinished generation, ``None`` if it is not an array build."""
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
