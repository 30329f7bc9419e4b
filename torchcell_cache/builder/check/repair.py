"""``repair``: build only what is damaged, into a new generation that shares every other file.

Published files are never touched: readers of the old generation keep what they have. Undamaged files are hard links,
damaged ones are made again - shards from the columns and the incidence index, the index from the base graph, columns from
the records - and must come out as the manifest says, byte for byte. Only base graphs, and the records and labels of
processors of somebody's own, take the source.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchcell_cache.builder.check.parts import BUILD_AGAIN, PartMaker
from torchcell_cache.builder.check.report import file_problem
from torchcell_cache.builder.generations import (
    plan_from_manifest,
    read_or_recover,
    read_plan,
    split_name,
)
from torchcell_cache.builder.publishing import publishing
from torchcell_cache.builder.shards import (
    COLUMNS_FILE,
    INCIDENCE_FILE,
    PLAN_FILE,
    Report,
    build_shard,
    own_sidecar,
)
from torchcell_cache.builder.workers import StopRequest, run_here
from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import (
    fsync_dir,
    make_dirs_durable,
    remove_stale_temps,
    share_file,
    write_atomic,
)
from torchcell_cache.core.markup import Shown
from torchcell_cache.core.progress import Console, Progress
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import CacheError, SettingError, StaleCacheError
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import (
    GRAPH_FILES,
    MANIFEST_NAME,
    Manifest,
    own_manifest,
    processed_dir,
)
from torchcell_cache.store.shard_entry import FileEntry, ShardEntry, sidecar_path, write_sidecar
from torchcell_cache.store.stamps import stamp


@dataclass(slots=True)
class RepairReport(Shown):
    """What ``repair`` did.

    Attributes:
        root: Root of the store.
        previous: The generation that was published before.
        generation: The generation that is published now; the same one if nothing was damaged.
        damaged: Names of the files that were not what the manifest says.
        rebuilt: Those made again.
        linked: Number of files shared with the previous generation.
        seconds: How long it took.
    """

    root: str
    previous: str
    generation: str
    damaged: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    linked: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if not self.damaged:
            return f"repair {self.root}: nothing is damaged"
        names, more = ", ".join(self.damaged[:8]), len(self.damaged) - 8
        names += f" and {more} more" if more > 0 else ""
        if self.generation == self.previous:
            return f"repair {self.root}: damaged {names}; {self.generation} published again in {self.seconds:.1f} s"
        return (
            f"repair {self.root}: damaged {names}; made {len(self.rebuilt)} files again, shared {self.linked}, "
            f"published {self.generation} in place of {self.previous} in {self.seconds:.1f} s"
        )


def repair(
    root: str | os.PathLike[str],
    source: Any = None,
    processor: Any = None,
    progress: bool = True,
    shard: int | None = None,
) -> RepairReport:
    """Find damaged files by their digests, make them again and publish the result.

    Args:
        root: Root of the store.
        source: The source the store was built from. Needed for a damaged base graph, for damaged columns of named
            samples, and for damaged shards of a processor of your own; must be what the fingerprint says.
        processor: Your own processor, for its damaged shards.
        progress: Whether to print progress.
        shard: Look at the shared files and at this shard only.

    Returns:
        What was damaged and what was done.

    Raises:
        CacheNotFoundError: If there is no store.
        CorruptShardError: If something can only be made again with a source that was not given.
        StaleCacheError: If source or processor are not the ones the store was built from.
        BuildInProgressError: If another process builds or repairs this store.
        StorageError: If the file system refuses.

    Example:
        >>> print(tc.repair("stores/cell", progress=False))  # doctest: +ELLIPSIS
        repair ...stores/cell: nothing is damaged
    """
    begun = time.perf_counter()
    where, progress = local_path(root), truth("progress", progress)
    shard = None if shard is None else whole_number("shard", shard)
    read_or_recover(where)  # a missing store is said before anything is written
    turn = publishing(where, Console(progress), wait=False)
    with turn as publisher, storage_errors(processed_dir(where)):
        remove_stale_temps(processed_dir(where), exclusive=publisher.lock.exclusive)
        manifest, damage = read_or_recover(where)
        if shard is not None and not 0 <= shard < len(manifest.shards):
            raise SettingError(f"shard={shard}, the store has shards 0 to {len(manifest.shards) - 1}")
        work = _Repair(where, manifest, shard, progress)
        work.find_damage()
        report = work.report
        if damage is not None:
            report.damaged.insert(0, MANIFEST_NAME)
        published = manifest
        if report.damaged != [MANIFEST_NAME][: damage is not None]:
            published = work.build(source, processor, publisher.lock.exclusive)
        if report.damaged and not publisher.replace(published, manifest if damage is None else None):
            what = f"another process published a generation at {where} meanwhile"
            raise StaleCacheError(what, fix="verify it")
    report.seconds = round(time.perf_counter() - begun, 3)
    return report


class _Repair:
    def __init__(self, root: Path, manifest: Manifest, shard: int | None, progress: bool) -> None:
        self.root, self.manifest, self.only, self.progress = root, manifest, shard, progress
        self.old = processed_dir(root) / manifest.generation
        self.report = RepairReport(str(root), manifest.generation, manifest.generation)
        self.bad: set[str] = set()

    def find_damage(self) -> None:
        """Read every file once and compare it with the manifest."""
        damaged, what = self.report.damaged, "repair, looking for damage"
        with Progress(self.manifest.num_samples, 0, None, enabled=self.progress, what=what) as on_progress:
            for entry in self.manifest.files:
                self._look(entry)
            for shard in self.manifest.shards:
                if self.only in (None, shard.index):
                    self._look(shard.file)
                    if own_sidecar(self.old, shard) is None:
                        damaged.append(sidecar_path("", shard.index).name)
                on_progress(shard.stop - shard.start)
            if own_manifest(self.old) != self.manifest:
                damaged.append(MANIFEST_NAME)
            if (self.old / PLAN_FILE).exists() and self._plan_bytes() is None:
                damaged.append(PLAN_FILE)

    def _look(self, entry: FileEntry) -> None:
        with contextlib.suppress(OSError, CacheError):
            if file_problem(self.old / entry.name, entry, lambda size: None) is None:
                return
        self.bad.add(entry.name)
        self.report.damaged.append(entry.name)

    def _plan_bytes(self) -> bytes | None:
        with contextlib.suppress(OSError, CacheError):
            return read_plan(self.old, self.manifest).to_bytes()
        return None

    # The new generation

    def build(self, source: Any, processor: Any, exclusive: bool) -> Manifest:
        """Fill the new generation and return its manifest."""
        # What a repair left under the next name that was interrupted before it published is made again.
        name, number = split_name(self.manifest.generation)
        new = replace(self.manifest, generation=f"{name}-r{number + 1}")
        generation = Generation(self.root, new)
        directory = generation.directory
        make_dirs_durable(directory)
        remove_stale_temps(directory, exclusive=exclusive)
        for entry in (*self.manifest.files, *(s.file for s in self.manifest.shards)):
            if entry.name in self.bad:
                continue
            if self.only is None or (self.old / entry.name).exists():  # else other damage stays as it is
                share_file(self.old / entry.name, directory / entry.name)
                self.report.linked += 1
            if self.only is None:
                stamp(directory / entry.name, entry.xxh3)
        parts = PartMaker(self.root, generation, source, processor)
        shards = self._make(parts)
        Console(self.progress).notes(parts.notes)
        for shard in self.manifest.shards:
            if shard.file.name not in self.bad:
                write_sidecar(directory, own_sidecar(self.old, shard) or shard)
        if (plan := self._plan_bytes()) is not None:
            write_atomic(directory / PLAN_FILE, plan)
        new = replace(new, shards=tuple(shards))
        write_atomic(directory / MANIFEST_NAME, new.to_bytes())
        fsync_dir(directory)
        self.report.generation = new.generation
        return new

    def _make(self, parts: PartMaker) -> list[ShardEntry]:
        """Make every damaged file, each after those it is made from; returns all shards."""
        graph = [name for name in GRAPH_FILES if name in self.bad]
        if graph:
            parts.base_graph(graph)
        if INCIDENCE_FILE in self.bad:
            parts.incidence()
        columns_first = parts.generation.is_structured
        todo = [shard for shard in self.manifest.shards if shard.file.name in self.bad]
        bad_columns = COLUMNS_FILE in self.bad
        if bad_columns and columns_first:
            parts.columns(whole_shards=not todo)
        shards = list(self.manifest.shards)
        if todo:
            self._build_shards(todo, shards, parts, columns_first or not bad_columns)
        if bad_columns and not columns_first:
            parts.columns(whole_shards=True)
        self.report.rebuilt += sorted(self.bad - {shard.file.name for shard in todo})
        return shards

    def _build_shards(
        self, todo: list[ShardEntry], shards: list[ShardEntry], parts: PartMaker, whole_columns: bool
    ) -> None:
        plan = plan_from_manifest(self.manifest)
        maker = parts.shard_maker(plan, whole_columns)

        def one(index: int, report: Report) -> None:
            entry, before = build_shard(parts.directory, plan, maker, index, report), shards[index]
            if (entry.sums, entry.seed, entry.layouts) != (before.sums, before.seed, before.layouts):
                what = f"shard {index} made again holds other records than the manifest says"
                raise StaleCacheError(what, path=self.root, fix=BUILD_AGAIN)
            # Equal records in other bytes mean another LMDB: then the file is described as it is now.
            shards[index] = replace(entry, stats=before.stats)
            stamp(parts.directory / entry.file.name, entry.file.xxh3)
            self.report.rebuilt.append(entry.file.name)

        total, numbers = sum(s.stop - s.start for s in todo), [s.index for s in todo]
        progress = Progress(total, 0, None, enabled=self.progress, what="repair")
        with progress as on_progress, StopRequest().listening() as stop:
            run_here(numbers, one, lambda count, size: on_progress(count), stop, len(todo))
