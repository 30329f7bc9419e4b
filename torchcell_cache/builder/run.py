"""``build``: from a source to a published store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torchcell_cache.builder.auto import choose_storage
from torchcell_cache.builder.generation import GenerationBuild
from torchcell_cache.builder.plan import checked_plan, make_plan, make_shard_plan
from torchcell_cache.builder.publishing import Publisher, StoreRequest, begun_storage, compared, insist_same
from torchcell_cache.builder.workers import StopRequest
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.core.checks import choice, rank_and_world_size, truth, whole_number
from torchcell_cache.core.choices import OnStale, Storage
from torchcell_cache.core.files import make_dirs_durable
from torchcell_cache.core.progress import Console
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import BuildInProgressError
from torchcell_cache.processors.base import ProcessorLike, asked
from torchcell_cache.sources.pyg import SourceLike, as_source
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import Manifest

ON_STALE = get_args(OnStale)


def build(
    root: str | os.PathLike[str],
    *,
    source: SourceLike,
    processor: ProcessorLike = None,
    storage: Storage = "auto",
    num_workers: int = 0,
    shard_size: int | None = None,
    on_stale: OnStale = "error",
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

    Example:
        >>> source = tc.testing.tiny_source(4)
        >>> tc.build("stores/four", source=source, processor=tc.LazySubgraphRepresentation(), storage="delta", progress=False)
        PreprocessedDataset(4)
    """
    place = None if scratch is None else local_path(scratch, "scratch")
    workers = whole_number("num_workers", num_workers, 0)
    request = BuildRequest.from_arguments(
        root, source, processor, storage, shard_size, on_stale, allow_empty, max_record_bytes, progress
    )
    plan, console = request.plan, request.console

    def begin() -> None:
        console.notes(plan.notes)
        if place is not None:
            make_dirs_durable(place)

    def make(publisher: Publisher) -> Manifest:
        # Ranks that call ``build`` together take turns by the lock; without locks only rank 0 may build.
        rank, world_size = (0, 1) if publisher.lock.exclusive else rank_and_world_size()
        if rank != 0:
            where = publisher.lock.path
            raise BuildInProgressError(
                f"rank {rank} of {world_size} would build what rank 0 builds: {where} is on a file system without locks",
                path=where,
                fix="build in a job of its own, and open the store with PreprocessedDataset(root, wait=...)",
            )
        chosen: str = storage
        if chosen == "auto":
            chosen = begun_storage(request.root, plan) or choose_storage(plan, console)
        work = request.work(chosen, publisher.lock.exclusive)
        with StopRequest().listening() as stop:
            return work.run(workers, place, stop, console.enabled)

    return request.opened_or_made(make, begin)


@dataclass(frozen=True, slots=True)
class BuildRequest(StoreRequest):
    """What a build, a task of an array build and its end are asked for, checked: the arguments they have in common."""

    shard_size: int | None
    max_record_bytes: int

    @classmethod
    def from_arguments(
        cls,
        root: Any,
        source: Any,
        processor: Any,
        storage: str,
        shard_size: int | None,
        on_stale: str,
        allow_empty: bool,
        max_record_bytes: int,
        progress: bool,
    ) -> BuildRequest:
        """Check the arguments and look at the source.

        Raises:
            SettingError: If an argument has no such value.
            SourceContractError: If the source breaks its contract.
        """
        where, console = local_path(root), Console(truth("progress", progress))
        choice("on_stale", on_stale, ON_STALE)
        size = None if shard_size is None else whole_number("shard_size", shard_size, 1)
        most = whole_number("max_record_bytes", max_record_bytes, 1)
        empty = truth("allow_empty", allow_empty)
        with asked("the source or the processor, asked what it is,"):
            plan = checked_plan(make_plan(as_source(source), processor), storage, empty)
        return cls(where, plan, storage, on_stale, console, size, most)

    def work(self, storage: str, exclusive: bool) -> GenerationBuild:
        """The work on the generation that ``storage`` makes."""
        shards = make_shard_plan(self.plan, storage, self.shard_size, self.max_record_bytes)
        return GenerationBuild(self.root, self.plan, shards, storage, exclusive, self.console)


def check_source(manifest: Manifest, source: Any, root: Path) -> None:
    """Refuse a store that does not stand for ``source``; the processor is not compared.

    Raises:
        StaleCacheError: Naming each part that differs.
    """
    load = Generation(root, manifest)
    stored, wanted = compared(manifest.fingerprint, lambda: load.base_graph, as_source(source))
    fix = "build(..., on_stale='rebuild'), or open the store without source_dataset"
    insist_same(stored, wanted, f"the store at {root} was built from another source", root, fix)
