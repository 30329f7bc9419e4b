"""What a build in one go and an array build have in common: look at what is there, take the lock, publish."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from torchcell_cache.builder.as_stored import in_stored_words
from torchcell_cache.builder.plan import BuildPlan
from torchcell_cache.builder.shards import generation_prefix
from torchcell_cache.core.files import write_atomic
from torchcell_cache.core.fingerprint import explain, sha256_json
from torchcell_cache.core.locks import BuilderLock, read_status
from torchcell_cache.core.progress import Console
from torchcell_cache.errors import (
    BuildFailedError,
    CacheNotFoundError,
    CorruptManifestError,
    FormatError,
    StaleCacheError,
)
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.lease import open_with_lease
from torchcell_cache.store.manifest import STORAGES as STORED_AS
from torchcell_cache.store.manifest import Manifest, processed_dir, read_manifest, write_manifest
from torchcell_cache.store.stamps import stamp

_WAIT_SECONDS = 30.0


def _existing(root: Path, on_stale: str) -> Manifest | None:
    try:
        return read_manifest(root)
    except CacheNotFoundError:
        return None
    except (CorruptManifestError, FormatError):
        if on_stale == "rebuild":
            return None
        raise


def look(
    root: Path, plan: BuildPlan, storage: str, on_stale: str, say: Console
) -> tuple[Manifest | None, Generation | None]:
    """The published manifest, if any, and the opened store, if it may be used rather than built again."""
    manifest = _existing(root, on_stale)
    if manifest is None:
        return None, None
    wanted = plan.fingerprint(manifest.storage if storage == "auto" else storage).to_dict()
    if manifest.fingerprint != wanted:
        graph = plan.source.base_graph
        wanted, notes = in_stored_words(
            manifest.fingerprint, wanted, plan.processor, graph, lambda: Generation.open(root).base_graph
        )
        if manifest.fingerprint == wanted:
            say.notes(notes)
    if manifest.fingerprint == wanted:
        return manifest, open_with_lease(root)
    if on_stale == "rebuild":
        return manifest, None
    lines = explain(manifest.fingerprint, wanted)
    message = f"the store at {root} was built from something else:\n    " + "\n    ".join(lines)
    if on_stale == "warn":
        warnings.warn(f"{message}\n  using it all the same (on_stale='warn')", stacklevel=3)
        return manifest, open_with_lease(root)
    raise StaleCacheError(
        message,
        path=root,
        fix="build(..., on_stale='rebuild') or torchcell-cache preprocess ... on_stale=rebuild",
    )


def begun_storage(root: Path, plan: BuildPlan) -> str | None:
    """What ``auto`` chose in an interrupted run: measuring again could choose otherwise and start from nothing."""
    noted = (read_status(_storage_note(root, plan)) or {}).get("storage")
    if noted in STORED_AS:
        return str(noted)
    for storage in STORED_AS:
        prefix = generation_prefix(plan.fingerprint(storage).digest)
        if any(processed_dir(root).glob(f"{prefix}*")):
            return storage
    return None


def settle_storage(root: Path, plan: BuildPlan, choose: Callable[[], str]) -> str:
    """What ``auto`` means for all tasks of an array build: the first to measure writes it down, the others follow."""
    known = begun_storage(root, plan)
    if known is not None:
        return known
    note = _storage_note(root, plan)
    write_atomic(note, json.dumps({"storage": choose()}).encode(), replace=False)
    settled = begun_storage(root, plan)
    if settled is None:
        raise BuildFailedError(
            f"{note} does not hold a storage", path=note, fix=f"remove {note}, or pass storage=..."
        )
    return settled


def _storage_note(root: Path, plan: BuildPlan) -> Path:
    return processed_dir(root) / f".storage-{sha256_json(plan.parts)[:16]}.json"


def acquire(lock: BuilderLock, say: Console) -> None:
    """Wait for another builder of the same store, saying so; the kernel frees the lock of one that died."""
    if lock.acquire():
        return
    while True:
        owner = lock.owner()
        say(
            f"waiting for another builder of this store ({owner or 'tasks of an array build, or an unknown process'})"
        )
        if lock.acquire(timeout=_WAIT_SECONDS):
            return


def publish(root: Path, manifest: Manifest, current: Manifest | None, say: Console) -> Generation:
    """Make a finished generation the store, unless somebody else was first, and open what is published."""
    expect = None if current is None else current.generation
    begun = time.perf_counter()
    if not write_manifest(root, manifest, expect_generation=expect, replace_damaged=True):
        say(f"another builder published {read_manifest(root).generation}; using it")
    directory = processed_dir(root) / manifest.generation
    for entry in (*manifest.files, *(s.file for s in manifest.shards)):
        stamp(directory / entry.name, entry.xxh3)  # digests were taken while writing
    say(f"published {manifest.generation} in {(time.perf_counter() - begun) * 1e3:.0f} ms")
    return open_with_lease(root)
