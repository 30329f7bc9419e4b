"""A view written as a store of its own: records copied, not processed again.

A record's checksum is seeded with its place and its store, so each body is checked under its old seal and sealed anew under its
new one; the bodies themselves are the same bytes. Base graph and incidence index are the same files under a second name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torchcell_cache.builder.generation import GenerationBuild
from torchcell_cache.builder.generations import plan_from_manifest
from torchcell_cache.builder.plan import SHARD_SIZES, BuildPlan, columns_part, table_columns
from torchcell_cache.builder.publishing import Publisher, StoreRequest
from torchcell_cache.builder.reuse import stored_facts
from torchcell_cache.builder.run import ON_STALE
from torchcell_cache.builder.shards import (
    CHUNK,
    COLUMNS_FILE,
    INCIDENCE_FILE,
    PLAN_FILE,
    Chunk,
    RecordMaker,
)
from torchcell_cache.builder.workers import StopRequest
from torchcell_cache.core.checks import choice, truth, whole_number
from torchcell_cache.core.files import share_file, write_atomic
from torchcell_cache.core.fingerprint import Fingerprint, digest_of
from torchcell_cache.core.progress import Console
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import GRAPH_FILES, Manifest

_LAYOUT = slice(8, 16)
_READ_BYTES = 32 << 20


def copy_samples(
    generation: Generation,
    positions: Int64Array,
    root: str | os.PathLike[str],
    *,
    shard_size: int | None = None,
    on_stale: str = "error",
    made_by: dict[str, Any] | None = None,
    progress: bool = True,
) -> Generation:
    """Samples of a store, ``positions`` ``[n] int64``, as a store of their own; see ``save_subset``."""
    if len(positions) == 0:
        raise SettingError("the selection is empty: no sample fulfils it")
    where, console = local_path(root), Console(truth("progress", progress))
    choice("on_stale", on_stale, ON_STALE)
    if where.resolve() == generation.root.resolve():
        raise SettingError(f"store={where} is the store that is selected from", fix="another directory")
    plan, storage = _plan(generation, positions, made_by or {}), generation.manifest.storage
    whole = plan_from_manifest(generation.manifest)
    dropped = ("unknown_names", "origins", "constants", "attributes")
    schema = {name: value for name, value in whole.schema.items() if name not in dropped}
    shards = replace(
        whole,
        num_samples=plan.num_samples,
        shard_size=SHARD_SIZES[storage] if shard_size is None else whole_number("shard_size", shard_size, 1),
        seed=plan.seed(storage),
        schema={**schema, **columns_part(plan.table)},
    )

    def make(publisher: Publisher) -> Manifest:
        work = _SubsetBuild(where, plan, shards, storage, publisher.lock.exclusive, console)
        work.origin, work.positions = generation, positions
        with StopRequest().listening() as stop:
            return work.run(stop)

    return StoreRequest(where, plan, storage, on_stale, console).opened_or_made(make)


def _plan(generation: Generation, positions: Int64Array, made_by: dict[str, Any]) -> BuildPlan:
    manifest = generation.manifest
    of: dict[str, Any] = {
        "content_digest": manifest.content_digest,
        "fingerprint": Fingerprint(manifest.fingerprint).digest,
    }
    of |= {"num_samples": manifest.num_samples, "source": manifest.fingerprint["source"]}
    chosen = {"count": len(positions), "xxh3": digest_of(positions), "made_by": made_by}
    identity = {"class": "Subset", "of": of, "selection": chosen}
    parts = {name: manifest.fingerprint[name] for name in ("format", "base_graph", "processor")}
    table = generation.table
    return BuildPlan(
        source=None,
        processor=None,
        base_graph=generation.base_graph,
        num_samples=len(positions),
        parts={**parts, "source": identity},
        table=None if table is None else table.take(positions),
        topology=generation.topology,
        notes=tuple(manifest.created.get("notes", [])),
    )


class _CopyMaker:
    """Chosen records of another store."""

    def __init__(self, generation: Generation, positions: Int64Array) -> None:
        self.generation, self.positions = generation, positions
        sizes = sum(shard.file.size for shard in generation.manifest.shards)
        per_sample = max(sizes // max(len(generation), 1), 1)
        self.step = int(min(max(_READ_BYTES // per_sample, 1), CHUNK))

    def chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        """Records of samples ``start`` to ``stop`` of the new store, their old checksums verified."""
        for first in range(start, stop, self.step):
            rows = self.positions[first : min(first + self.step, stop)]
            bodies = [record[8:] for record in self.generation.read(rows)]
            if self.generation.is_structured:
                yield Chunk(bodies)
                continue
            layouts = {f"{int.from_bytes(body[_LAYOUT], 'little'):016x}" for body in bodies}
            yield Chunk(bodies, stored_facts(self.generation, rows, layouts))


class _SubsetBuild(GenerationBuild):
    """A build whose records and shared files come from another generation."""

    origin: Generation
    positions: Int64Array

    def write_shared_files(self, together: bool) -> None:
        """Share the old store's files, write the columns of the chosen samples and the plan."""
        for name in (*GRAPH_FILES, INCIDENCE_FILE):
            if self.origin.has_file(name):
                share_file(self.origin.file(name), self.directory / name)
        if self.plan.table is not None:
            removed = self.origin.columns.get("removed_edges")
            removed = None if removed is None else removed[self.positions]
            columns = table_columns(self.plan.table, self.plan.topology, removed)
            write_atomic(self.directory / COLUMNS_FILE, columns)
        write_atomic(self.directory / PLAN_FILE, self.shards.to_bytes())

    def maker(self) -> RecordMaker:
        """Copies records."""
        return _CopyMaker(self.origin, self.positions)
