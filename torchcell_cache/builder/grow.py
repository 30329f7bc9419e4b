"""``append`` and ``update``: a new generation of a store that shares with the old one what is the same."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchcell_cache.builder.appended import appended
from torchcell_cache.builder.generation import GenerationBuild
from torchcell_cache.builder.generations import stored_processor
from torchcell_cache.builder.plan import checked_plan, make_plan, make_shard_plan
from torchcell_cache.builder.publishing import (
    Publisher,
    in_stored_words,
    insist_same,
    on_stored_graph,
    publishing,
)
from torchcell_cache.builder.reuse import ShardReuse, same_samples
from torchcell_cache.builder.shards import StructuredMaker
from torchcell_cache.builder.workers import StopRequest
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.locks import STATUS_NAME
from torchcell_cache.core.markup import Shown
from torchcell_cache.core.progress import Console, Progress
from torchcell_cache.core.urls import local_path
from torchcell_cache.graph.fields import graph_digests
from torchcell_cache.processors.base import asked
from torchcell_cache.sources.base import Source, notes_of
from torchcell_cache.sources.pyg import SourceLike, as_source
from torchcell_cache.sources.torchcell_processors import paired
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.lease import open_with_lease
from torchcell_cache.store.manifest import COMPACT, GROUPED, processed_dir

STORED = object()
"""Stands for the processor that the store was built with."""


@dataclass(frozen=True, slots=True)
class Growth(Shown):
    """What an update did.

    Attributes:
        generation: The store as it is now.
        num_samples: Its samples.
        recomputed: How many of them were made again or anew; the records of the others were taken over.
        linked_shards: Shards that are the old generation's own files under a second name.
        num_shards: Shards of the store.
    """

    generation: Generation
    num_samples: int
    recomputed: int
    linked_shards: int
    num_shards: int

    @property
    def share(self) -> float:
        """Samples recomputed as a share of all."""
        return self.recomputed / max(self.num_samples, 1)

    def __str__(self) -> str:
        return (
            f"{self.recomputed:,} of {self.num_samples:,} samples computed ({self.share:.1%}), "
            f"{self.linked_shards} of {self.num_shards} shards shared with the generation before"
        )


def append(
    root: str | os.PathLike[str],
    tail: SourceLike,
    processor: Any = STORED,
    *,
    num_workers: int = 0,
    progress: bool = True,
) -> Growth:
    """Add samples at the end of a store, as a new generation that shares the old one's files.

    Readers of the old generation are not disturbed; ``gc`` removes it later, and the files both share stay.

    Args:
        root: Root of the store.
        tail: Source of the samples to add, on the store's base graph.
        processor: The processor the store was built with; only needed if it is one of your own.
        num_workers: Worker processes for shards that are new.
        progress: Whether to print progress.

    Raises:
        CacheNotFoundError: If there is no store.
        StaleCacheError: If the tail stands on another base graph, or the processor is not the store's.
        SourceContractError: If the tail's samples are of another kind.
        BuildInterruptedError: If a signal asked to stop; run the same call again.

    Example:
        >>> tc.build("stores/grows", source=tc.testing.tiny_source(4), processor=tc.Perturbation(), progress=False)
        PreprocessedDataset(4)
        >>> print(tc.append("stores/grows", tc.testing.tiny_source(2, seed=1), progress=False))
        2 of 6 samples computed (33.3%), 0 of 1 shards shared with the generation before
    """
    return _grow(local_path(root), as_source(tail), processor, True, num_workers, progress)


def update(
    root: str | os.PathLike[str],
    source: SourceLike,
    processor: Any = STORED,
    *,
    num_workers: int = 0,
    progress: bool = True,
) -> Growth:
    """Bring a store up to date with a source that changed, recomputing only samples that can differ.

    Sample ``i`` of the source is compared with sample ``i`` of the store: its perturbed nodes, its measurements and, in
    ``delta`` storage, what the incidence index says goes with its nodes. The result has the content digest of a full
    build. Sources without a table of samples, and changed processors, are rebuilt whole.

    Args:
        root: Root of the store.
        source: The source as it is now, all of it.
        processor: The processor; by default the one the store was built with, if that is a built-in one.
        num_workers: Worker processes for shards that are new.
        progress: Whether to print progress.

    Raises:
        CacheNotFoundError: If there is no store.
        SettingError: If the store's processor is needed and only its owner has it.
        BuildInterruptedError: If a signal asked to stop; run the same call again.

    Example:
        >>> tc.build("stores/new", source=tc.testing.tiny_source(4), processor=tc.Perturbation(), progress=False)
        PreprocessedDataset(4)
        >>> print(tc.update("stores/new", tc.testing.tiny_source(4, seed=1), progress=False))
        4 of 4 samples computed (100.0%), 0 of 1 shards shared with the generation before
    """
    return _grow(local_path(root), as_source(source), processor, False, num_workers, progress)


def _grow(
    root: Path, given: Source, processor: Any, is_append: bool, num_workers: int, progress: bool
) -> Growth:
    workers, console = whole_number("num_workers", num_workers, 0), Console(truth("progress", progress))
    Generation.open(root)  # nothing to grow is an error before a lock is taken
    with publishing(root, console) as publisher:
        old = Generation.open(root)
        stored, storage = old.manifest.fingerprint, old.manifest.storage
        used = stored_processor(old.manifest) if processor is STORED else processor
        with asked("the source, asked what it is,"):
            digests = None if given.base_graph is None else graph_digests(given.base_graph)
        source, order = on_stored_graph(given, old, digests)
        digests = digests if source is given else stored["base_graph"]
        if is_append:
            with asked("the source or the processor, asked what it is,"):
                source, used, _ = paired(source, used)
            source, digests = appended(old, source, digests), stored["base_graph"]
        with asked("the source or the processor, asked what it is,"):
            plan = checked_plan(make_plan(source, used, digests), storage)
        words = {"processor": plan.parts["processor"]}
        words, _ = in_stored_words(old, words, used, None)
        plan = replace(plan, parts={**plan.parts, **words})
        if is_append:
            what = f"the store at {old.root} was built with another processor"
            fix = "append with that processor, or update with the whole source"
            insist_same({"processor": stored["processor"]}, words, what, old.root, fix)
        if plan.fingerprint(storage).to_dict() == stored:
            console(f"{old.manifest.generation} is up to date")
            count = len(old.manifest.shards)
            return Growth(open_with_lease(root), len(old), 0, count, count)
        notes = notes_of(given)
        console.notes([*notes, *order])
        before = old.manifest.created.get("notes", []) if is_append else []
        plan = replace(plan, notes=tuple(dict.fromkeys([*before, *notes])))
        shards = make_shard_plan(plan, storage, old.manifest.shard_size, MAX_RECORD_BYTES)
        written = {name: old.schema[name] for name in (COMPACT, GROUPED) if name in old.schema}
        schema = {k: v for k, v in shards.schema.items() if k not in (COMPACT, GROUPED)}
        seed = old.manifest.shards[0].seed if old.manifest.shards else shards.seed
        shards = replace(shards, schema={**schema, **written}, seed=seed)  # as the store that grows
        work = GenerationBuild(root, plan, shards, storage, publisher.lock.exclusive, console, workers)
        work.has_constants = "constants" in old.schema  # another store stays in the form that it has
        return _build(work, old, publisher)


def _build(work: GenerationBuild, old: Generation, publisher: Publisher) -> Growth:
    begun, console, count = time.perf_counter(), publisher.console, work.shards.num_shards
    with StopRequest().listening() as stop:
        work.prepare()
        maker = work.maker()
        removal = maker.removal if isinstance(maker, StructuredMaker) else None
        same, total = same_samples(old, work.plan, work.shards, removal), work.shards.num_samples
        kept = int(same.sum())
        console(f"{kept:,} of {total:,} samples are the same as in {old.manifest.generation}")
        status = processed_dir(work.root) / STATUS_NAME
        reuse = ShardReuse(old, work.directory, work.shards, same)
        with Progress(kept, 0, status, enabled=console.enabled, what="take over samples") as on_progress:
            reuse.run(maker, on_progress, lambda: stop.signal is not None)
        if stop.signal is not None:
            stop.raise_interrupted(reuse.linked, count)
        work.build(range(count), stop)
        recomputed = total - reuse.kept
        manifest = work.finish(time.perf_counter() - begun, recomputed, stop)
    now = publisher.publish(manifest, old.manifest)
    growth = Growth(now, len(now), recomputed, reuse.linked, len(manifest.shards))
    console(str(growth))
    return growth
