"""Which samples of a store are the same after its source changed, without running the processor on them.

A structured record holds a sample's ids and measurements and, in ``delta`` storage, the positions that go with its nodes.
So it is the same if its row of the table is the same and none of its nodes has another slice in the incidence index. What
cannot be proven to be the same counts as changed.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.builder.appended import AppendedSource
from torchcell_cache.builder.plan import BuildPlan
from torchcell_cache.builder.shards import ShardPlan
from torchcell_cache.codec.deletions import StructuredSchema
from torchcell_cache.core.ragged import Int64Array, offsets, ragged_arange
from torchcell_cache.core.samples import Sample, SampleTable
from torchcell_cache.graph.incidence import IncidenceIndex
from torchcell_cache.graph.removal import ReactionRemoval, Removal
from torchcell_cache.store.generation import Generation

Flags = npt.NDArray[np.bool_]


def same_samples(old: Generation, plan: BuildPlan, shards: ShardPlan, removal: Removal | None) -> Flags:
    """Samples whose stored record is what a full build would store.

    Args:
        old: The store's generation.
        plan: What the store should become.
        shards: Its shards.
        removal: Incidence index and rules of the new base graph, for ``delta`` storage; else ``None``.

    Returns:
        ``[num_samples of the new store] bool``.
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
        if _format(old.structured) != _format(StructuredSchema.from_dict(shards.schema["structured"])):
            return same
    elif not graph_is_same or not _tells_all(plan, old.table):
        return same
    rows = _same_rows(old.table, plan.table, common)
    if not structured:
        rows &= _same_names(old.table, plan.table, common) & _same_unknown(old.table, plan.table, common)
    if removal is not None and not graph_is_same:
        assert old.removal is not None
        rows &= _same_removals(old.removal, removal, plan.table, common)
    same[:common] = rows
    return same


def _format(schema: StructuredSchema) -> tuple[Any, ...]:
    """What the bytes of a record depend on besides its sample."""
    return schema.num_columns, schema.has_removed, schema.kind, schema.id_dtype


def _tells_all(plan: BuildPlan, old: SampleTable) -> bool:
    """Whether rows of the table say everything a processor gets. Cells have expression that their labels do not show."""
    assert plan.table is not None
    if type(plan.source[0]) is not Sample:
        return False
    return (old.phenotypes, old.statistics) == (plan.table.phenotypes, plan.table.statistics)


def _same_names(old: SampleTable, new: SampleTable, common: int) -> Flags:
    """Whether samples have the same ``source_id``, which a processor may read, ``[common] bool``."""
    if old.source_ids is None or new.source_ids is None:
        return np.full(common, old.source_ids is new.source_ids)
    pairs = zip(islice(old.source_ids, common), islice(new.source_ids, common), strict=True)
    return np.fromiter((a == b for a, b in pairs), dtype=bool, count=common)


def _same_unknown(old: SampleTable, new: SampleTable, common: int) -> Flags:
    """Whether samples perturb the same names that no node has, ``[common] bool``."""
    if old.unknown is None and new.unknown is None:
        return np.ones(common, dtype=bool)
    a, b = (table.unknown or [()] * common for table in (old, new))
    return np.array([a[k] == b[k] for k in range(common)], dtype=bool)


def _same_rows(old: SampleTable, new: SampleTable, common: int) -> Flags:
    ids = _same_segments(old.ids, old.ptr, new.ids, new.ptr, common)
    if old.values.shape[1] != new.values.shape[1]:
        return np.zeros(common, dtype=bool)
    bits = [np.ascontiguousarray(t.values).view(np.uint32) for t in (old, new)]
    return ids & _same_segments(bits[0], old.value_ptr, bits[1], new.value_ptr, common)


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
    ends = offsets(lengths[rows])
    found = np.zeros(len(differs) + 1, dtype=np.int64)
    np.cumsum(differs, out=found[1:])
    same[rows] &= found[ends[1:]] == found[ends[:-1]]
    return same


def _same_removals(old: Removal, new: Removal, table: SampleTable, common: int) -> Flags:
    """Samples of which no node removes other positions than before, ``[common] bool``."""
    node_is_same = same_nodes(old.index, new.index)
    first = table.slice(0, common)
    touched = np.zeros(len(first.ids) + 1, dtype=np.int64)
    np.cumsum(~node_is_same[first.ids], out=touched[1:])
    same: Flags = touched[first.ptr[1:]] == touched[first.ptr[:-1]]
    if (old.by_rule is None) != (new.by_rule is None):
        return np.zeros(common, dtype=bool)
    if old.by_rule is not None and new.by_rule is not None:
        rows = np.flatnonzero(same)
        same[rows] = _same_by_rule(old.by_rule, new.by_rule, first, rows)
    return same


def same_nodes(old: IncidenceIndex, new: IncidenceIndex) -> Flags:
    """Nodes of the new base graph that take the same positions with them as before, ``[num_nodes] bool``."""
    same = np.zeros(new.topology.num_nodes, dtype=bool)
    common = min(len(same), old.topology.num_nodes)
    # Slices lie one after the other, so where a node begins and ends is all the pointers say here.
    ptrs = [
        np.append(index.ptr[:common, 0], index.ptr[common - 1, -1] if common else 0) for index in (old, new)
    ]
    same[:common] = _same_segments(old.positions, ptrs[0], new.positions, ptrs[1], common)
    return same


def _same_by_rule(old: ReactionRemoval, new: ReactionRemoval, table: SampleTable, rows: Int64Array) -> Flags:
    """Samples whose genes switch off the same reactions with the same entries, ``[len(rows)] bool``."""
    counts = table.ptr[rows + 1] - table.ptr[rows]
    ids, ptr = table.ids[ragged_arange(table.ptr[rows], counts)], offsets(counts)
    (a, a_ptr), (b, b_ptr) = old.removed(ids, ptr), new.removed(ids, ptr)
    return _same_segments(a, a_ptr, b, b_ptr, len(rows))
