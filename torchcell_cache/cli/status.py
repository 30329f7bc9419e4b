"""``torchcell-cache status``: how far a build is, seen from outside."""

from __future__ import annotations

import json as json_
import shlex
from pathlib import Path
from typing import Any

from torchcell_cache.builder.generations import generation_dirs, own_manifest
from torchcell_cache.cli.array_status import array_facts, array_lines, numbers_of
from torchcell_cache.core.locks import LOCK_NAME, STATUS_NAME, BuilderLock, read_status
from torchcell_cache.core.progress import human_seconds
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import EXIT_INTERRUPTED, EXIT_OK, CacheError, CacheNotFoundError
from torchcell_cache.store.manifest import Manifest, manifest_path, processed_dir, read_manifest
from torchcell_cache.store.status import unfinished

_WAITS = ("dead", "interrupted", "failed")


def status(root: str, json: bool = False) -> int:
    """How far a build is, from any process or node.

    Exit code 0 if it runs or is complete, 75 if it waits to be resumed, 65 if there is nothing.

    Args:
        root: Directory of the store.
        json: Print as JSON.

    Example:
        torchcell-cache status root=demo/ecoli
    """
    place = local_path(root)
    facts = build_status(place)
    print(json_.dumps(facts, indent=1) if json else "\n".join(_lines(facts, place)))
    waits = facts["build"] is not None and facts["build"]["state"] in _WAITS and bool(facts["unfinished"])
    arrays = [work["array"] for work in facts["unfinished"] if work["array"] is not None]
    waits = waits or any(not array["running"] for array in arrays)
    return EXIT_INTERRUPTED if waits else EXIT_OK


def build_status(root: Path) -> dict[str, Any]:
    """What is published and what is being built at ``root``.

    Raises:
        CacheNotFoundError: If there is neither.
        CorruptManifestError: If the manifest is damaged.
    """
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
