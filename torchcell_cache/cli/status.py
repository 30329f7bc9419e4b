"""``torchcell-cache status``: how far a build is, seen from outside."""

from __future__ import annotations

import json as json_
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchcell_cache.cli.words import painted
from torchcell_cache.core.checks import real_number
from torchcell_cache.core.hints import ranges
from torchcell_cache.core.locks import LOCK_NAME, STATUS_NAME, BuilderLock, read_status
from torchcell_cache.core.process import ProcessId
from torchcell_cache.core.progress import human_seconds
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import EXIT_INTERRUPTED, EXIT_OK, CacheNotFoundError
from torchcell_cache.store.manifest import (
    generation_dirs,
    manifest_path,
    own_manifest,
    processed_dir,
    read_manifest,
)
from torchcell_cache.store.status import Unfinished, task_states, unfinished

_RUNS, _WAITS = ("building", "starting", "building elsewhere"), ("dead", "interrupted", "failed")


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
        facts = _build_status(place)
        text = json_.dumps(facts, indent=None if watch else 1) if json else "\n".join(_lines(facts, place))
        if text != shown:
            shown = text
            print(f"{clear}{painted(text, sys.stdout)}", flush=True)
        state = facts["build"] and facts["build"]["state"]
        arrays = [work["array"] for work in facts["unfinished"] if work["array"] is not None]
        if not watch or not (state in _RUNS or any(array["running"] for array in arrays)):
            break
        time.sleep(seconds)
    waits = (state in _WAITS and facts["unfinished"]) or not all(array["running"] for array in arrays)
    return EXIT_INTERRUPTED if waits else EXIT_OK


def _build_status(root: Path) -> dict[str, Any]:
    """What is published and what is being built at ``root``."""
    build, published = _build(root), None
    begun = [unfinished(path) for path in generation_dirs(root) if own_manifest(path) is None]
    try:
        manifest = read_manifest(root)
    except CacheNotFoundError:
        if not begun and build is None:
            raise
    else:
        published = {
            "generation": manifest.generation,
            "samples": manifest.num_samples,
            "storage": manifest.storage,
            "content_digest": manifest.content_digest,
        }
    works = []
    for work in begun:
        counts = {"shards_done": len(work.done), "shards": work.num_shards}
        works.append({"generation": work.name, **counts, "array": _array(root, work)})
    return {"root": str(root), "published": published, "build": build, "unfinished": works}


def _build(root: Path) -> dict[str, Any] | None:
    """The last progress written, and whether its writer lives."""
    status = read_status(processed_dir(root) / STATUS_NAME)
    owner = BuilderLock(processed_dir(root) / LOCK_NAME).owner()
    if status is None and owner is None:
        return None
    said = status if status is not None and isinstance(status.get("state"), str) else {"state": "starting"}
    state, alive = said["state"], None if owner is None else owner.is_alive()
    if alive:
        state = state if state == "building" else "starting"  # else it is the last word of an earlier run
    elif state in ("building", "starting"):
        state = "dead" if owner is None or alive is False else "building elsewhere"
    facts = {"state": state, **_numbers(said)}
    facts |= {"builder": None if owner is None else str(owner), "alive": alive}
    return facts | {"rate": round(_rate(facts), 1)}


def _numbers(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a builder wrote about its progress, 0 for what is none."""
    names = ("samples", "total", "seconds", "initial")
    return {name: v if type(v := state.get(name)) in (int, float) else 0 for name in names}


def _rate(facts: Mapping[str, Any]) -> float:
    """Samples a second, 0 where nothing was made yet."""
    made, seconds = facts["samples"] - facts["initial"], facts["seconds"]
    return float(made / seconds) if made > 0 and seconds > 0 else 0.0


def _lines(facts: dict[str, Any], root: Path) -> Iterator[str]:
    published, build = facts["published"], facts["build"]
    if published is None:
        yield f"not built: {manifest_path(root)} is not there yet"
    else:
        yield (
            f"complete: {published['generation']}, {published['samples']:,} samples as '{published['storage']}', "
            f"content digest {published['content_digest']}"
        )
    if build is not None:
        yield from _build_lines(build, bool(facts["unfinished"] or published is None), root)
    for each in facts["unfinished"]:
        total = "?" if each["shards"] is None else f"{each['shards']:,}"
        yield f"unfinished: {each['generation']}, {each['shards_done']:,}/{total} shards finished"
        if each["array"] is not None:
            yield from _array_lines(each["array"])


def _build_lines(build: dict[str, Any], open_end: bool, root: Path) -> Iterator[str]:
    state, done, total = build["state"], build["samples"], build["total"]
    share = f"{done:,}/{total:,} samples ({100 * done / max(total, 1):.0f} %)"
    if state.startswith("building"):
        eta = human_seconds((total - done) / build["rate"]) if build["rate"] else "unknown time"
        unseen = "" if state == "building" else ", which cannot be seen from here"
        yield f"building: {share}, {build['rate']:,.0f}/s, {eta} left, by {build['builder']}{unseen}"
    elif state == "starting":
        yield f"building: {build['builder']} has just begun"
    elif state in _WAITS and open_end:
        who = f" ({build['builder']})" if build["builder"] else ""
        dead = f"the builder{who} is dead; it got to {share}"
        yield dead if state == "dead" else f"the last build {state} at {share}"
        again = f"torchcell-cache preprocess {shlex.quote(f'root={root}')} ..."
        yield f"  to continue: run the same command again ({again})"


# Array builds: which task is how far, where, and whether it lives

_SILENT_SECONDS = 300.0
"""A task on another node that has not written for this long is not counted as running."""


def _array(root: Path, work: Unfinished) -> dict[str, Any] | None:
    """State of every task of an unfinished generation, ``None`` if it is not an array build."""
    states = task_states(root, work.name)
    count = max((n for state in states if type(n := state.get("tasks")) is int), default=0)
    if count < 1 or work.num_shards is None:
        return None
    tasks = [_task(state, count, work) for state in states if 0 <= state["task"] < count]
    missing = {shard % count for shard in range(work.num_shards)} - {task["task"] for task in tasks}
    stopped = (*_WAITS, "silent")
    return {
        "tasks": count,
        "complete": sum(task["state"] == "complete" for task in tasks),
        "running": [task["task"] for task in tasks if task["state"].startswith("building")],
        "not_begun": sorted(missing),
        "to_repeat": sorted(task["task"] for task in tasks if task["state"] in stopped),
        "states": tasks,
    }


def _task(state: dict[str, Any], count: int, work: Unfinished) -> dict[str, Any]:
    """One task: what it said last, its shards that are there, and whether its process lives."""
    number, process = state["task"], ProcessId.from_record(state.get("process"))
    alive = None if process is None else process.is_alive()
    silent = max(0.0, time.time() - state["written"])
    word = str(state.get("state"))[:20]
    share = len(range(number, work.num_shards or 0, count))
    done = sum(shard % count == number for shard in work.done)
    if done == share and word != "building":
        word = "complete"
    elif word == "building" and not alive:
        word = "dead" if alive is False else "silent" if silent > _SILENT_SECONDS else "building"
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
        **_numbers(state),
    }


def _array_lines(facts: dict[str, Any]) -> Iterator[str]:
    """The facts as text, one line per task."""
    count = facts["tasks"]
    yield f"array build: {facts['complete']} of {count} tasks complete, {len(facts['running'])} running"
    for task in facts["states"]:
        where = (
            " ".join(filter(None, (task["host"], task["job"] and f"(job {task['job']})"))) or "unknown host"
        )
        text = f"  task {task['task']}: {task['state']}, {task['shards_done']}/{task['shards']} shards"
        if task["state"] != "complete":
            text += f", {task['samples']:,}/{task['total']:,} samples"
            text += f", {_rate(task):,.0f}/s" if _rate(task) else ""
        yield f"{text}, {where}, last sign {human_seconds(task['silent_seconds'])} ago"
    if facts["not_begun"]:
        yield f"  not begun: {ranges(facts['not_begun'])}"
    again = sorted({*facts["to_repeat"], *([] if facts["running"] else facts["not_begun"])})
    if again:
        yield f"  to repeat: sbatch --array={ranges(again)} ..."
    elif not facts["running"] and not facts["not_begun"]:
        yield f"  all shards are there; torchcell-cache preprocess ... finalize=true tasks={count} publishes"
