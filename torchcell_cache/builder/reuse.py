"""Which samples of a store are the same after its source changed, and taking them over into the generation that follows.

A structured record holds a sample's ids and measurements and, in ``delta`` storage, the positions that go with its nodes.
So it is the same if its row of the table is the same and none of its nodes has another slice in the incidence index. What
cannot be proven to be the same counts as changed; no processor runs to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.builder.appended import AppendedSource
from torchcell_cache.builder.plan import BuildPlan
from torchcell_cache.builder.shards import (
    Chunk,
    Facts,
    RecordMaker,
    ShardPlan,
    StructuredMaker,
    build_shard,
    finished_shards,
    own_sidecar,
)
from torchcell_cache.codec.deletions import StructuredSchema
from torchcell_cache.codec.envelope import CHECKSUM_BYTES
from torchcell_cache.core.files import share_file
from torchcell_cache.core.ragged import Int64Array, offsets, ragged_arange, segments
from torchcell_cache.core.samples import Sample, SampleTable
from torchcell_cache.graph.removal import Removal
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.shard_entry import ShardEntry, shard_name, write_sidecar

_RUN = 512
"""Samples of which records are read and made together."""

# What the bytes of a record depend on besides its sample.
_FORMAT = attrgetter("num_columns", "has_removed", "kind", "id_dtype")

Flags = npt.NDArray[np.bool_]


def same_samples(old: Generation, plan: BuildPlan, shards: ShardPlan, removal: Removal | None) -> Flags:
    """Samples whose stored record is what a full build would store, ``[num_samples of the new store] bool``.

    ``removal`` is of the new base graph, for ``delta`` storage; else ``None``.
    """
    same = np.zeros(shards.num_samples, dtype=bool)
    common = min(len(old), shards.num_samples)
    stored = old.manifest.fingerprint
    if old.schema["records"] != shards.records or stored.get("processor") != plan.parts["processor"]:
        return same
    graph_is_same = stored.get("base_graph") == plan.parts["base_graph"]
    structured = shards.records == "structured"
    if isinstance(plan.source, AppendedSource) and graph_is_same and not structured:
        same[:common] = True
        return same
    if plan.table is None or old.table is None or not common:
        return same
    if structured:
        schema = StructuredSchema.from_dict(shards.schema["structured"])
        if _FORMAT(old.structured) != _FORMAT(schema):
            return same
    elif not graph_is_same or plan.source is None or type(plan.source[0]) is not Sample:
        return same  # cells have expression that their labels do not show
    elif (old.table.phenotypes, old.table.statistics) != (plan.table.phenotypes, plan.table.statistics):
        return same
    tables = old.table, plan.table
    if len({table.values.shape[1] for table in tables}) > 1:
        return same
    a, b = (np.ascontiguousarray(table.values).view(np.uint32) for table in tables)
    rows = _same_segments(a, old.table.value_ptr, b, plan.table.value_ptr, common)
    rows &= _same_segments(old.table.ids, old.table.ptr, plan.table.ids, plan.table.ptr, common)
    if not structured:  # a processor may read names, also those that no node has
        rows &= _same_items(old.table.source_ids, plan.table.source_ids, None, common)
        rows &= _same_items(old.table.unknown, plan.table.unknown, (), common)
    if removal is not None and not graph_is_same:
        assert old.removal is not None
        rows &= _same_removals(old.removal, removal, plan.table, common)
    same[:common] = rows
    return same


def _same_items(old: Any, new: Any, missing: object, common: int) -> Flags:
    """Whether samples have the same texts, ``[common] bool``; ``missing`` where there are none."""
    a, b = (islice(repeat(missing) if items is None else items, common) for items in (old, new))
    return np.fromiter((x == y for x, y in zip(a, b, strict=True)), dtype=bool, count=common)


def _same_segments(
    a: npt.NDArray[Any], a_ptr: Int64Array, b: npt.NDArray[Any], b_ptr: Int64Array, count: int
) -> Flags:
    """Whether segment ``k`` of both ragged arrays is the same, ``[count] bool``."""
    a_start, b_start = a_ptr[:count].astype(np.int64), b_ptr[:count].astype(np.int64)
    lengths = a_ptr[1 : count + 1] - a_start
    same: Flags = lengths == b_ptr[1 : count + 1] - b_start
    rows = np.flatnonzero(same & (lengths > 0))
    where = [ragged_arange(start[rows], lengths[rows]) for start in (a_start, b_start)]
    differs = a[where[0]] != b[where[1]]
    if differs.ndim == 2:
        differs = differs.any(axis=1)
    ends, found = offsets(lengths[rows]), offsets(differs)
    same[rows] &= found[ends[1:]] == found[ends[:-1]]
    return same


def _same_removals(old: Removal, new: Removal, table: SampleTable, common: int) -> Flags:
    """Samples of which no node removes other positions than before, ``[common] bool``."""
    first, changed = table.slice(0, common), np.ones(new.index.topology.num_nodes, dtype=bool)
    known = min(len(changed), old.index.topology.num_nodes)
    # Slices of nodes lie one after the other, so where a node begins and ends is all the pointers say here.
    starts = (
        np.append(i.ptr[:known, 0], i.ptr[known - 1, -1] if known else 0) for i in (old.index, new.index)
    )
    one, other = ((index.positions, next(starts)) for index in (old.index, new.index))
    changed[:known] = ~_same_segments(*one, *other, known)
    touched = offsets(changed[first.ids])
    same: Flags = touched[first.ptr[1:]] == touched[first.ptr[:-1]]
    if (old.by_rule is None) != (new.by_rule is None):
        return np.zeros(common, dtype=bool)
    if old.by_rule is not None and new.by_rule is not None:  # genes may switch off other reactions together
        rows = np.flatnonzero(same)
        ids, ptr = segments(first.ids, first.ptr, rows)
        (a, a_ptr), (b, b_ptr) = old.by_rule.removed(ids, ptr), new.by_rule.removed(ids, ptr)
        same[rows] = _same_segments(a, a_ptr, b, b_ptr, len(rows))
    return same


def stored_facts(old: Generation, rows: Int64Array, layouts: Iterable[str]) -> Facts:
    """What columns and schema of a store say of generic records that use ``layouts``."""
    y = old.columns.get("y") if old.table is None else None
    said = old.attributes.take(rows) if "attributes" in old.schema else None
    known = {name: old.schema["layouts"][name] for name in layouts}
    return Facts(known, None if y is None else y[rows], old.base_fields.constants, said)


class ShardReuse:
    """Shards of a new generation that need not, or not wholly, be made again."""

    def __init__(self, old: Generation, directory: Path, shards: ShardPlan, same: Flags) -> None:
        self.old, self.directory, self.shards, self.same = old, directory, shards, same
        self.kept = self.linked = 0

    def run(
        self, maker: RecordMaker, on_progress: Callable[[int], None], stopped: Callable[[], bool]
    ) -> None:
        """Link shards that are the same, and rebuild those that are so in part from their records, until ``stopped``."""
        done = {e.index for e in finished_shards(self.directory, self.shards, range(self.shards.num_shards))}
        for shard in range(self.shards.num_shards):
            if stopped():
                return
            start, stop = self.shards.span(shard)
            kept = int(self.same[start:stop].sum())
            if not kept:
                continue
            if shard in done:  # by an earlier run of the same update
                self.kept += kept
                continue
            entry = self._entry(shard)
            if kept == stop - start and entry is not None and (entry.start, entry.stop) == (start, stop):
                share_file(self.old.directory / shard_name(shard), self.directory / shard_name(shard))
                write_sidecar(self.directory, entry)
                self.linked += 1
                self.kept += kept
                on_progress(kept)
                continue
            # Records that do not stand for themselves: the sidecar must tell what all the kept ones hold.
            count = 0 if entry is None else entry.stop - entry.start
            first = kept == count and bool(self.same[start : start + count].all())
            if isinstance(maker, StructuredMaker) or first:
                mixed = MixedMaker(self.old, maker, self.same, entry)
                build_shard(self.directory, self.shards, mixed, shard, lambda count, size: on_progress(count))
                self.kept += kept

    def _entry(self, shard: int) -> ShardEntry | None:
        """The old shard as its sidecar has it, or, where that says nothing as in a copied store, as columns and schema do."""
        if shard >= len(self.old.manifest.shards):
            return None
        old, entry = self.old, self.old.manifest.shards[shard]
        found = own_sidecar(old.directory, entry)
        if old.is_structured or (found is not None and found.stats):
            return found or entry
        said = stored_facts(old, np.arange(entry.start, entry.stop), entry.layouts)
        return replace(entry, stats=said.to_json())


class MixedMaker:
    """Records of a store where they are the same, new ones elsewhere.

    Records that are not structured are kept as the first of a shard, of which ``entry`` is the old sidecar.
    """

    def __init__(self, old: Generation, maker: RecordMaker, same: Flags, entry: ShardEntry | None) -> None:
        self.old, self.maker, self.same = old, maker, same
        self.facts = Facts.from_json({} if entry is None else entry.stats)

    def chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        """Records of samples ``start`` to ``stop``."""
        if isinstance(self.maker, StructuredMaker):
            for at in range(start, stop, _RUN):
                rows = np.arange(at, min(at + _RUN, stop))
                same = self.same[rows]
                kept = iter(self._stored(rows[same]))
                made = iter(self.maker.bodies(rows[~same]) if not same.all() else ())
                yield Chunk([next(kept if flag else made) for flag in same.tolist()])
            return
        first = start + int(self.same[start:stop].sum())
        for at in range(start, first, _RUN):
            rows = np.arange(at, min(at + _RUN, first))
            yield Chunk(self._stored(rows), self.facts.take(rows - start))
        if first < stop:
            yield from self.maker.chunks(first, stop)

    def _stored(self, rows: Int64Array) -> list[bytes]:
        return [record[CHECKSUM_BYTES:] for record in self.old.read(rows)]
