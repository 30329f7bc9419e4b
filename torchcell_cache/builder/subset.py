"""A view written as a store of its own: records copied, not processed again.

A record's checksum is seeded with its place and its store, so each body is checked under its old seal and sealed anew under its
new one; the bodies themselves are the same bytes. Base graph and incidence index are the same files under a second name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torchcell_cache.builder.generation import GenerationBuild
from torchcell_cache.builder.plan import SHARD_SIZES, BuildPlan, unknown_part
from torchcell_cache.builder.resume import tidy
from torchcell_cache.builder.shards import (
    CHUNK,
    COLUMNS_FILE,
    INCIDENCE_FILE,
    PLAN_FILE,
    RecordMaker,
    ShardPlan,
    new_generation_name,
)
from torchcell_cache.builder.steps import acquire, look, publish
from torchcell_cache.builder.workers import StopRequest
from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.digests import digest_of
from torchcell_cache.core.files import (
    make_dirs_durable,
    remove_stale_temps,
    share_file,
    storage_errors,
    write_atomic,
)
from torchcell_cache.core.fingerprint import Fingerprint
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.core.progress import Console
from torchcell_cache.core.ragged import Int64Array, smallest_unsigned
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.records import graph_digest
from torchcell_cache.store.columns import Arrays, columns_bytes, table_to_arrays
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import GRAPH_FILES, processed_dir

_TABLE = (
    "perturbed",
    "perturbed_count",
    "values",
    "value_count",
    "removed_edges",
    "source_ids",
    "source_id_length",
    "unknown",
    "unknown_count",
    "unknown_names",
    "unknown_name_length",
)
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
    where = local_path(root)
    if where.resolve() == generation.root.resolve():
        raise SettingError(f"store={where} is the store that is selected from", fix="another directory")
    plan, storage = _plan(generation, positions, made_by or {}), generation.manifest.storage
    shards = _shard_plan(generation, plan, len(positions), shard_size)
    say = Console(progress)
    _, opened = look(where, plan, storage, on_stale, say)
    if opened is not None:
        remove_stale_temps(processed_dir(where))
        return opened
    with storage_errors(processed_dir(where)):
        make_dirs_durable(processed_dir(where))
    lock = BuilderLock(processed_dir(where) / LOCK_NAME)
    acquire(lock, say)
    try:
        current, opened = look(where, plan, storage, on_stale, say)
        if opened is not None:
            return opened
        name = new_generation_name(plan.fingerprint(storage).digest, shards)
        work = _SubsetBuild(where, name, plan, shards, storage, lock.exclusive, say, generation, positions)
        with StopRequest().listening() as stop:
            manifest = work.run(0, None, stop, progress)
            if stop.signal is not None:
                stop.raise_interrupted(shards.num_shards, shards.num_shards)
        return publish(where, manifest, current, say)
    finally:
        lock.release()


class _Origin:
    """What the new store's plan knows of its source."""

    def __init__(self, base_graph: Any, identity: dict[str, Any], count: int) -> None:
        self.base_graph, self._identity, self.count = base_graph, identity, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)

    def identity(self) -> dict[str, Any]:
        """The old store and the selection."""
        return self._identity


def _plan(generation: Generation, positions: Int64Array, made_by: dict[str, Any]) -> BuildPlan:
    manifest, graph = generation.manifest, generation.base_graph
    identity = {
        "class": "Subset",
        "of": {
            "content_digest": manifest.content_digest,
            "fingerprint": Fingerprint(manifest.fingerprint).digest,
            "num_samples": manifest.num_samples,
            "source": manifest.fingerprint["source"],
        },
        "selection": {"count": len(positions), "xxh3": digest_of(positions), "made_by": made_by},
    }
    parts = {name: manifest.fingerprint[name] for name in ("format", "base_graph", "processor")}
    table = generation.table
    return BuildPlan(
        source=_Origin(graph, identity, len(positions)),
        processor=None,
        graph_digest="" if graph is None else graph_digest(graph),
        parts={**parts, "source": identity},
        table=None if table is None else table.take(positions),
        topology=generation.topology,
        notes=tuple(manifest.created.get("notes", [])),
    )


def _shard_plan(generation: Generation, plan: BuildPlan, count: int, shard_size: int | None) -> ShardPlan:
    manifest = generation.manifest
    size = SHARD_SIZES[manifest.storage] if shard_size is None else whole_number("shard_size", shard_size, 1)
    schema = {name: value for name, value in manifest.schema.items() if name != "unknown_names"}
    if not generation.is_structured:
        schema["layouts"] = {}
    return ShardPlan(
        num_samples=count,
        shard_size=size,
        seed=int(plan.fingerprint(manifest.storage).digest[:16], 16),
        records=manifest.schema["records"],
        schema={**schema, **unknown_part(plan.table)},
    )


def subset_columns(generation: Generation, table: SampleTable | None, rows: Int64Array) -> Arrays:
    """The columns of chosen samples, in the dtypes a build of them alone would choose."""
    stored = generation.columns
    out: Arrays = {name: column[rows] for name, column in stored.items() if name not in _TABLE}
    if table is not None:
        topology = generation.topology
        num_nodes = int(table.ids.max(initial=0)) + 1 if topology is None else topology.num_nodes
        out |= table_to_arrays(table, num_nodes)
    if "removed_edges" in stored:
        removed = stored["removed_edges"][rows]
        out["removed_edges"] = removed.astype(smallest_unsigned(int(removed.max(initial=0))))
    return out


class _CopyMaker:
    """Bodies of chosen records of another store."""

    def __init__(self, generation: Generation, positions: Int64Array) -> None:
        self.generation, self.positions = generation, positions
        sizes = sum(shard.file.size for shard in generation.manifest.shards)
        per_sample = max(sizes // max(len(generation), 1), 1)
        self.step = int(min(max(_READ_BYTES // per_sample, 1), CHUNK))
        self._layouts: set[str] = set()

    def bodies(self, start: int, stop: int) -> Iterator[list[bytes]]:
        """Bodies of samples ``start`` to ``stop`` of the new store, their old checksums verified."""
        self._layouts = set()
        for first in range(start, stop, self.step):
            records = self.generation.read(self.positions[first : min(first + self.step, stop)])
            bodies = [record[8:] for record in records]
            if not self.generation.is_structured:
                self._layouts |= {f"{int.from_bytes(body[_LAYOUT], 'little'):016x}" for body in bodies}
            yield bodies

    def extras(self, start: int, stop: int) -> dict[str, Any]:
        """Layouts of the records and, where samples have labels only there, their labels ``y``."""
        if self.generation.is_structured:
            return {"layouts": {}, "stats": {}}
        known = self.generation.manifest.schema["layouts"]
        layouts = {name: known[name] for name in sorted(self._layouts)}
        stats: dict[str, Any] = {"layouts": layouts}
        if self.generation.table is None and "y" in self.generation.columns:
            y = self.generation.columns["y"][self.positions[start:stop]]
            stats["y"] = {"dtype": y.dtype.str, "shape": list(y.shape), "hex": y.tobytes().hex()}
        return {"layouts": layouts, "stats": stats}


class _SubsetBuild(GenerationBuild):
    """A build whose records and shared files come from another generation."""

    def __init__(
        self,
        root: Path,
        name: str,
        plan: BuildPlan,
        shards: ShardPlan,
        storage: str,
        exclusive: bool,
        say: Callable[[str], None],
        origin: Generation,
        positions: Int64Array,
    ) -> None:
        super().__init__(root, name, plan, shards, storage, exclusive, say)
        self.origin, self.positions = origin, positions

    def prepare(self, scratch: Path | None, together: bool) -> None:
        """Share the old store's files, write the columns of the chosen samples and the plan."""
        make_dirs_durable(self.directory)
        tidy(self.root, self.directory, scratch, self.exclusive)
        with storage_errors(self.directory):
            for name in (*GRAPH_FILES, INCIDENCE_FILE):
                if self.origin.has_file(name):
                    share_file(self.origin.file(name), self.directory / name)
            columns = subset_columns(self.origin, self.plan.table, self.positions)
            write_atomic(self.directory / COLUMNS_FILE, columns_bytes(columns))
            write_atomic(self.directory / PLAN_FILE, self.shards.to_bytes())

    def maker(self) -> RecordMaker:
        """Copies records."""
        return _CopyMaker(self.origin, self.positions)
