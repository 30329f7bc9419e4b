"""What a root holds besides the published generation, what a published one says about its making, and ``gc``."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from torchcell_cache.builder.codehash.place import registered
from torchcell_cache.builder.shards import PLAN_FILE, ShardPlan, new_generation_name
from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import fsync_dir, remove_stale_temps, temp_path
from torchcell_cache.core.fingerprint import Fingerprint
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import CacheError, CorruptManifestError, FormatError, SettingError
from torchcell_cache.store.manifest import (
    MANIFEST_NAME,
    Manifest,
    generation_dirs,
    manifest_path,
    own_manifest,
    processed_dir,
    read_manifest,
)
from torchcell_cache.store.status import seconds_of

_REPAIRED = re.compile(r"(.+)-r([0-9]{1,6})")


def read_or_recover(root: Path) -> tuple[Manifest, CacheError | None]:
    """The published manifest; if it is damaged, the one to go on with and the error: every generation has a copy of its own.

    Raises:
        CacheNotFoundError: If there is no store.
        FormatError: If another version wrote it.
        CorruptManifestError: If it is damaged and nothing can stand in for it.
    """
    try:
        return read_manifest(root), None
    except CorruptManifestError as error:
        found = [m for m in map(own_manifest, generation_dirs(root)) if m is not None]
        if not found:
            raise
        if len({m.content_digest for m in found}) > 1:
            names = ", ".join(m.generation for m in found)
            what = f"{str(error).splitlines()[0]}; any of {names} may have been published"
            fix = "build again (preprocess ... on_stale=rebuild), or remove the directories that are not wanted and repair"
            raise CorruptManifestError(what, path=manifest_path(root), fix=fix) from None
        return max(found, key=lambda m: split_name(m.generation)[1]), error


def split_name(generation: str) -> tuple[str, int]:
    """Name without the suffix of repairs, and how often it was repaired."""
    match = _REPAIRED.fullmatch(generation)
    return (generation, 0) if match is None else (match[1], int(match[2]))


def read_plan(directory: Path, manifest: Manifest) -> ShardPlan:
    """The build's plan, if it is to the letter the one that gave the generation its name.

    Raises:
        FormatError: If it is damaged.
        FileNotFoundError: If it is missing.
    """
    data = (directory / PLAN_FILE).read_bytes()
    plan = ShardPlan.from_bytes(data)
    name = new_generation_name(Fingerprint(manifest.fingerprint).digest, plan)
    if plan.to_bytes() != data or name != split_name(manifest.generation)[0]:
        raise FormatError(f"{directory / PLAN_FILE} is not the plan of {manifest.generation}")
    return plan


def plan_from_manifest(manifest: Manifest) -> ShardPlan:
    """A plan that makes the same shards, from the manifest alone."""
    schema, seed = manifest.schema, manifest.shards[0].seed if manifest.shards else 0
    schema = {**schema, "layouts": {}} if schema["records"] == "generic" else schema
    return ShardPlan(manifest.num_samples, manifest.shard_size, seed, schema["records"], schema)


def stored_processor(manifest: Manifest) -> Any:
    """The processor a store was made with, if the store can tell: a built-in one, or ``None`` for none.

    Raises:
        SettingError: If it was made with a processor of somebody's own.
    """
    from torchcell_cache.processors import NAMED  # needs torch, which the state of a build does not

    tree = manifest.fingerprint.get("processor", {})
    if tree == {"class": "none"}:
        return None
    for cls in NAMED.values():
        if tree.get("kind") == "object" and tree.get("name") == registered(cls.__module__, cls.__qualname__):
            try:
                return cls(**tree["settings"])
            except (TypeError, KeyError) as error:
                what = f"the fingerprint's settings of {cls.__name__} do not fit it: {error}"
                raise FormatError(what) from None
    what = f"the store was made with the processor {tree.get('name', tree)!r}, which only its owner has"
    raise SettingError(what, fix="pass it: processor=...")


def gc(
    root: str | os.PathLike[str],
    keep: int = 2,
    unfinished: bool = False,
    dry_run: bool = False,
    wait: bool | float = 60,
) -> list[str]:
    """Remove old generations of a store.

    The published generation stays, and so do the ``keep`` youngest finished ones, the published one counted, and those that
    a process reads, as far as the file system tells (local disks; NFS does not). Unfinished builds stay too, because the
    same command resumes them.

    Args:
        root: Root of the store.
        keep: How many finished generations stay; at least 1.
        unfinished: Also remove what interrupted builds and repairs left. (Damaged generations count as unfinished.)
        dry_run: Only say what would be removed.
        wait: Seconds to wait for a process that writes to this store; a generation that is read is never waited for.

    Returns:
        Names of the generations removed.

    Raises:
        CacheNotFoundError: If there is no store: then nothing is safe to remove.
        CorruptManifestError: If its manifest is damaged, likewise.
        BuildInProgressError: If a build or repair is running, also after ``wait`` seconds.
        SettingError: If ``keep`` is less than 1 or ``wait`` no number of seconds.

    Example:
        >>> tc.gc("stores/cell")  # names of what was removed
        []
    """
    if whole_number("keep", keep) < 1:
        raise SettingError(f"keep={keep}, expected at least 1: the published generation always stays")
    unfinished, dry_run = truth("unfinished", unfinished), truth("dry_run", dry_run)
    where, seconds = local_path(root), seconds_of(wait)
    read_manifest(where)
    lock = BuilderLock(processed_dir(where) / LOCK_NAME)
    lock.acquire(seconds)
    with lock, storage_errors(processed_dir(where), "clean"):
        published = read_manifest(where).generation
        others = [directory for directory in generation_dirs(where) if directory.name != published]
        finished = [directory for directory in others if own_manifest(directory) is not None]
        finished.sort(key=lambda d: (d / MANIFEST_NAME).stat().st_mtime_ns, reverse=True)
        doomed = finished[keep - 1 :]
        if unfinished:
            doomed += [directory for directory in others if directory not in finished]
        from torchcell_cache.store.lease import is_in_use  # which opens stores, and so loads torch

        for directory in [directory for directory in doomed if is_in_use(directory)]:
            print(f"kept {directory.name}: a process reads it", file=sys.stderr)
            doomed.remove(directory)
        if not dry_run:
            remove_stale_temps(processed_dir(where), exclusive=lock.exclusive)
            # Under a temporary name first: what a killed gc leaves is cleared by the next writer or gc.
            moved = [directory.rename(temp_path(directory)) for directory in doomed]
            fsync_dir(processed_dir(where))
            for directory in moved:
                shutil.rmtree(directory)
    return sorted(directory.name for directory in doomed)
