"""``build``: from a source to a published store."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from torchcell_cache.builder.auto import choose_storage
from torchcell_cache.builder.generation import GenerationBuild, generation_prefix, new_generation_name
from torchcell_cache.builder.plan import BuildPlan, check_storage, make_plan, make_shard_plan
from torchcell_cache.builder.pool import StopRequest
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.dataset import PreprocessedDataset
from torchcell_cache.durable.atomic import make_dirs_durable, remove_stale_temps, storage_errors
from torchcell_cache.durable.lock import LOCK_NAME, BuilderLock
from torchcell_cache.errors import (
    CacheNotFoundError,
    CorruptManifestError,
    FormatError,
    SettingError,
    SourceContractError,
    StaleCacheError,
)
from torchcell_cache.fingerprint import explain
from torchcell_cache.generation import Generation
from torchcell_cache.manifest import STORAGES as STORED_AS
from torchcell_cache.manifest import Manifest, processed_dir, read_manifest, write_manifest
from torchcell_cache.processors.base import choice
from torchcell_cache.sources.pyg import as_source
from torchcell_cache.verified import note_verified

ON_STALE = ("error", "rebuild", "warn")
_WAIT_SECONDS = 30.0


def build(
    root: str | os.PathLike[str],
    *,
    source: Any,
    processor: Any = None,
    storage: str = "auto",
    num_workers: int = 0,
    shard_size: int | None = None,
    on_stale: str = "error",
    allow_empty: bool = False,
    max_record_bytes: int = MAX_RECORD_BYTES,
    scratch: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> PreprocessedDataset:
    """Preprocess a source once and open the result; a matching store is opened at once.

    Interrupted or killed builds continue when the same call runs again; readers see nothing until everything is there.

    Args:
        root: Directory of the store.
        source: A ``PerturbationTable`` or other source, a PyG dataset, or a sequence of ``Data``/``HeteroData``.
        processor: A ``GraphProcessor``, any callable (a PyG transform), or ``None`` to store the samples as they are.
        storage: ``perturbation`` (ids; masks come from the incidence index), ``delta`` (removed positions), ``full``
            (every tensor), or ``auto`` (measures what each costs on the first samples). Same samples out of all.
        num_workers: Worker processes; 0 builds in this one. The result does not depend on it.
        shard_size: Samples per shard; by storage if ``None``.
        on_stale: What to do with a store built from something else: ``error``, ``rebuild`` or ``warn``.
        allow_empty: Whether a source without samples is fine.
        max_record_bytes: Largest record accepted.
        scratch: Node-local directory to write shards in before they move to ``root``; for roots on network storage.
        progress: Whether to print progress.

    Raises:
        StaleCacheError: Naming each part that differs.
        SourceContractError: If the source breaks its contract.
        SampleError: If the source or the processor raised on a sample.
        StorageError: If the file system refuses.
        BuildInterruptedError: If a signal asked to stop; run the same call again.
        SettingError: If an argument has no such value.
    """
    choice("on_stale", on_stale, ON_STALE)
    if num_workers < 0:
        raise SettingError(f"num_workers={num_workers} must be at least 0")
    where = Path(os.fspath(root)).expanduser().absolute()
    plan = make_plan(as_source(source), processor)
    if len(plan.source) == 0 and not allow_empty:
        raise SourceContractError("the source has 0 samples", fix="pass allow_empty=True if that is right")
    check_storage(plan, storage)
    say = _Say(progress)
    _, opened = _look(where, plan, storage, on_stale)
    if opened is not None:
        remove_stale_temps(processed_dir(where))  # of a builder killed between publishing and tidying up
        return opened
    with storage_errors(processed_dir(where)):
        make_dirs_durable(processed_dir(where))
    lock = BuilderLock(processed_dir(where) / LOCK_NAME)
    _acquire(lock, say)
    try:
        current, opened = _look(where, plan, storage, on_stale)
        if opened is not None:
            say(f"another builder published {opened.generation.manifest.generation}; using it")
            return opened
        if storage == "auto":
            storage = _begun_storage(where, plan) or choose_storage(plan, say)
        shard_plan = make_shard_plan(plan, storage, shard_size, max_record_bytes)
        name = new_generation_name(plan.fingerprint(storage).digest, shard_plan)
        work = GenerationBuild(where, name, plan, shard_plan, storage, lock.exclusive, say)
        with StopRequest().listening() as stop:
            manifest = work.run(
                num_workers, None if scratch is None else Path(os.fspath(scratch)), stop, progress
            )
            if stop.signal is not None:  # it came too late to stop a shard, not too late to be obeyed
                stop.raise_interrupted(shard_plan.num_shards, shard_plan.num_shards)
        return _publish(where, manifest, current, say)
    finally:
        lock.release()


class _Say:
    """Prints a line if asked to."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __call__(self, text: str) -> None:
        if self.enabled:
            print(text, file=sys.stderr, flush=True)


def _existing(root: Path, on_stale: str) -> Manifest | None:
    try:
        return read_manifest(root)
    except CacheNotFoundError:
        return None
    except (CorruptManifestError, FormatError):
        if on_stale == "rebuild":
            return None
        raise


def _look(
    root: Path, plan: BuildPlan, storage: str, on_stale: str
) -> tuple[Manifest | None, PreprocessedDataset | None]:
    """The published manifest, if any, and the opened store, if it may be used rather than built again."""
    manifest = _existing(root, on_stale)
    if manifest is None:
        return None, None
    wanted = plan.fingerprint(manifest.storage if storage == "auto" else storage).to_dict()
    if manifest.fingerprint == wanted:
        return manifest, PreprocessedDataset._of(Generation.open(root))
    if on_stale == "rebuild":
        return manifest, None
    lines = explain(manifest.fingerprint, wanted)
    message = f"the store at {root} was built from something else:\n    " + "\n    ".join(lines)
    if on_stale == "warn":
        warnings.warn(f"{message}\n  using it all the same (on_stale='warn')", stacklevel=3)
        return manifest, PreprocessedDataset._of(Generation.open(root))
    raise StaleCacheError(
        message,
        path=root,
        fix="build(..., on_stale='rebuild') or torchcell-cache preprocess ... on_stale=rebuild",
    )


def _begun_storage(root: Path, plan: BuildPlan) -> str | None:
    """What ``auto`` chose in an interrupted run: measuring again could choose otherwise and start from nothing."""
    for storage in STORED_AS:
        prefix = generation_prefix(plan.fingerprint(storage).digest)
        if any(processed_dir(root).glob(f"{prefix}*")):
            return storage
    return None


def check_source(manifest: Manifest, source: Any, root: Path) -> None:
    """Refuse a store that does not stand for ``source``; the processor is not compared.

    Raises:
        StaleCacheError: Naming each part that differs.
    """
    from torchcell_cache.graph.io import graph_digests

    source = as_source(source)
    graph = source.base_graph
    wanted = {"base_graph": {} if graph is None else graph_digests(graph), "source": source.identity()}
    stored = {part: manifest.fingerprint[part] for part in wanted}
    if stored != wanted:
        raise StaleCacheError(
            f"the store at {root} was built from another source:\n    "
            + "\n    ".join(explain(stored, wanted)),
            path=root,
            fix="build(..., on_stale='rebuild'), or open the store without source_dataset",
        )


def _acquire(lock: BuilderLock, say: _Say) -> None:
    """Wait for another builder of the same store, saying so; the kernel frees the lock of one that died."""
    if lock.acquire():
        return
    while True:
        owner = lock.owner()
        say(f"waiting for another builder of this store ({owner or 'unknown process'})")
        if lock.acquire(timeout=_WAIT_SECONDS):
            return


def _publish(root: Path, manifest: Manifest, current: Manifest | None, say: _Say) -> PreprocessedDataset:
    expect = None if current is None else current.generation
    begun = time.perf_counter()
    if not write_manifest(root, manifest, expect_generation=expect, replace_damaged=True):
        say(f"another builder published {read_manifest(root).generation}; using it")
    directory = processed_dir(root) / manifest.generation
    for entry in (*manifest.files, *(s.file for s in manifest.shards)):
        note_verified(directory / entry.name, entry.xxh3)  # digests were taken while writing
    say(f"published {manifest.generation} in {(time.perf_counter() - begun) * 1e3:.0f} ms")
    return PreprocessedDataset._of(Generation.open(root))
