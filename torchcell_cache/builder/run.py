"""``build``: from a source to a published store."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from torchcell_cache.builder.as_stored import in_stored_words
from torchcell_cache.builder.auto import choose_storage
from torchcell_cache.builder.generation import GenerationBuild
from torchcell_cache.builder.plan import BuildPlan, check_storage, make_plan, make_shard_plan
from torchcell_cache.builder.shards import new_generation_name
from torchcell_cache.builder.steps import acquire, begun_storage, look, publish
from torchcell_cache.builder.workers import StopRequest
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.core.checks import choice, rank_and_world_size
from torchcell_cache.core.files import make_dirs_durable, remove_stale_temps
from torchcell_cache.core.fingerprint import explain, source_part
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.core.progress import Console
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import BuildInProgressError, SettingError, SourceContractError, StaleCacheError
from torchcell_cache.graph.fields import graph_digests
from torchcell_cache.sources.pyg import as_source
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import Manifest, processed_dir

ON_STALE = ("error", "rebuild", "warn")


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
) -> Generation:
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
        scratch: Node-local directory to write shards in before they move to ``root``, made if it is not there; for roots
            on network storage.
        progress: Whether to print progress.

    Raises:
        StaleCacheError: Naming each part that differs.
        SourceContractError: If the source breaks its contract.
        SampleError: If the source or the processor raised on a sample.
        StorageError: If the file system refuses.
        BuildInterruptedError: If a signal asked to stop; run the same call again.
        SettingError: If an argument has no such value.
    """
    where = local_path(root)
    place = None if scratch is None else local_path(scratch, "scratch")
    plan = plan_build(source, processor, storage, num_workers, on_stale, allow_empty)
    say = Console(progress)
    _, opened = look(where, plan, storage, on_stale, say)
    if opened is not None:
        remove_stale_temps(processed_dir(where))  # of a builder killed between publishing and tidying up
        return opened
    say.notes(plan.notes)
    make_dirs_durable(processed_dir(where))
    if place is not None:
        make_dirs_durable(place)
    lock = BuilderLock(processed_dir(where) / LOCK_NAME)
    acquire(lock, say)
    try:
        _one_rank_only(lock)
        current, opened = look(where, plan, storage, on_stale, say)
        if opened is not None:
            say(f"another builder published {opened.manifest.generation}; using it")
            return opened
        if storage == "auto":
            storage = begun_storage(where, plan) or choose_storage(plan, say)
        shard_plan = make_shard_plan(plan, storage, shard_size, max_record_bytes)
        name = new_generation_name(plan.fingerprint(storage).digest, shard_plan)
        work = GenerationBuild(where, name, plan, shard_plan, storage, lock.exclusive, say)
        with StopRequest().listening() as stop:
            manifest = work.run(num_workers, place, stop, progress)
            if stop.signal is not None:  # it came too late to stop a shard, not too late to be obeyed
                stop.raise_interrupted(shard_plan.num_shards, shard_plan.num_shards)
        return publish(where, manifest, current, say)
    finally:
        lock.release()


def plan_build(
    source: Any, processor: Any, storage: str, num_workers: int, on_stale: str, allow_empty: bool
) -> BuildPlan:
    """Check the arguments that a build and an array build have in common, and look at the source.

    Raises:
        SettingError: If an argument has no such value.
        SourceContractError: If the source breaks its contract.
    """
    choice("on_stale", on_stale, ON_STALE)
    if num_workers < 0:
        raise SettingError(f"num_workers={num_workers} must be at least 0")
    plan = make_plan(as_source(source), processor)
    if len(plan.source) == 0 and not allow_empty:
        raise SourceContractError("the source has 0 samples", fix="pass allow_empty=True if that is right")
    check_storage(plan, storage)
    return plan


def _one_rank_only(lock: BuilderLock) -> None:
    """Ranks that call ``build`` together take turns by the lock; without locks only rank 0 may build."""
    if lock.exclusive:
        return
    rank, world_size = rank_and_world_size()
    if rank != 0:
        raise BuildInProgressError(
            f"rank {rank} of {world_size} would build what rank 0 builds: {lock.path} is on a file system without locks",
            path=lock.path,
            fix="build in a job of its own, and open the store with PreprocessedDataset(root, wait=...)",
        )


def check_source(manifest: Manifest, source: Any, root: Path) -> None:
    """Refuse a store that does not stand for ``source``; the processor is not compared.

    Raises:
        StaleCacheError: Naming each part that differs.
    """
    source = as_source(source)
    graph = source.base_graph
    wanted = {"base_graph": {} if graph is None else graph_digests(graph), "source": source_part(source)}
    stored = {part: manifest.fingerprint[part] for part in wanted}
    if stored != wanted:
        load = partial(_stored_graph, root, manifest)
        wanted, _ = in_stored_words(manifest.fingerprint, wanted, None, graph, load)
    if stored != wanted:
        raise StaleCacheError(
            f"the store at {root} was built from another source:\n    "
            + "\n    ".join(explain(stored, wanted)),
            path=root,
            fix="build(..., on_stale='rebuild'), or open the store without source_dataset",
        )


def _stored_graph(root: Path, manifest: Manifest) -> Any:
    return Generation(root, manifest).base_graph
