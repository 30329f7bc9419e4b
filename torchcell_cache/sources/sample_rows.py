"""Rows of a table as samples: perturbed nodes and measurements meet, and the policies say what becomes of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import Replicates
from torchcell_cache.core.ragged import Int64Array, offsets, segments
from torchcell_cache.core.ragged import means as column_means
from torchcell_cache.core.samples import SampleTable, without_names
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.columns import named_columns, texts
from torchcell_cache.sources.interactions import with_scores
from torchcell_cache.sources.measurements import NAN, Measurements
from torchcell_cache.sources.names import UNKNOWN, Resolved
from torchcell_cache.sources.perturbed_ids import RaggedIds
from torchcell_cache.sources.perturbed_nodes import Nodes


@dataclass(frozen=True, slots=True)
class Policies:
    """What becomes of rows that are not plain samples; see ``PerturbationTable``."""

    unknown: str = "error"
    duplicate: str = "error"
    empty: str = "keep"
    nan: str = "keep"
    replicates: str = "keep"
    interactions: bool | str = False

    def __post_init__(self) -> None:
        choice("unknown", self.unknown, UNKNOWN)
        choice("duplicate", self.duplicate, ("error", "unique"))
        choice("empty", self.empty, ("keep", "error"))
        choice("nan", self.nan, NAN)
        choice("replicates", self.replicates, REPLICATES)


def make_table(
    nodes: Nodes,
    perturbations: Any,
    phenotypes: Any,
    statistics: Any,
    source_ids: Any,
    policies: Policies,
) -> tuple[SampleTable, tuple[str, ...]]:
    """The samples, and lines on what was left out or changed.

    Raises:
        SourceContractError: Naming the row and the value that break a rule.
        SettingError: If an argument is none of what it may be.
    """
    labels, others = named_columns(phenotypes, "phenotypes"), named_columns(statistics, "statistics")
    if overlap := sorted(set(labels) & set(others)):
        raise SettingError(f"{overlap} are given as phenotype and as statistic")
    found, resolved, total = nodes.found(perturbations, policies.unknown)
    rows = np.arange(total) if resolved is None or resolved.rows is None else resolved.rows
    given = sorted_unique(found.given, rows, found.names, policies.duplicate)
    measured = Measurements.of({**labels, **others}, total)
    names = texts(source_ids, total, "source_ids")
    notes = [*_on_names(resolved, total, policies.unknown), *measured.note_on_values()]
    if policies.nan == "error":
        measured.refuse_odd(rows)
    elif policies.nan == "skip":
        kept = ~measured.odd_rows()[rows]
        if not kept.all():
            notes.append(_left_out(len(rows) - int(kept.sum()), total, "a value is NaN or infinite"))
        given, rows = RaggedIds(*segments(given.ids, given.ptr, np.flatnonzero(kept))), rows[kept]
    if policies.empty == "error" and bool((np.diff(given.ptr) == 0).any()):
        row = int(rows[int(np.argmin(np.diff(given.ptr)))])
        raise SourceContractError(f"row {row} perturbs nothing", fix='drop the row, or pass empty="keep"')
    if len(rows) < total:
        measured = measured.take(rows)
        names = None if names is None else [names[row] for row in rows.tolist()]
    table, more = joined(given, measured, names, rows, (tuple(labels), tuple(others)), policies)
    ids, ptr, unknown = without_names(table.ids, table.ptr, found.first, found.names[found.first :])
    return replace(table, ids=ids, ptr=ptr, unknown=unknown), (*notes, *more)


def joined(
    given: RaggedIds,
    measured: Measurements,
    names: list[str] | None,
    rows: Int64Array,
    columns: tuple[tuple[str, ...], tuple[str, ...]],
    policies: Policies,
    conditions: Int64Array | None = None,
) -> tuple[SampleTable, Sequence[str]]:
    """One sample per set of nodes (and condition) where replicates are to be one, and the scores of the labels."""
    phenotypes, statistics = columns
    values, value_ptr, notes = measured.values, measured.ptr, []
    if policies.replicates != "keep":
        number = set_numbers(given.ids, given.ptr)
        if conditions is not None:
            pairs = np.stack([number, conditions], axis=1).reshape(-1)
            number = set_numbers(pairs, 2 * np.arange(len(number) + 1, dtype=np.int64))
        _, first = np.unique(number, return_index=True)
        if policies.replicates == "error" and len(first) < len(number):
            again = int(np.setdiff1d(np.arange(len(number)), first)[0])
            both = [int(first[number[again]]), again]
            called = "" if names is None else f" ({' and '.join(repr(names[k]) for k in both)})"
            raise SourceContractError(
                f"rows {rows[both[0]]} and {rows[again]} perturb the same nodes{called}",
                fix='remove one, or pass replicates="mean", "group" or "keep"',
            )
        owner = number[np.repeat(np.arange(len(number)), np.diff(value_ptr))]
        if len(first) < len(number):
            notes.append(
                f"{len(number):,} rows perturb {len(first):,} different sets of nodes, a sample each "
                f"(replicates={policies.replicates!r})"
            )
        given, rows = RaggedIds(*segments(given.ids, given.ptr, first)), rows[first]
        names = None if names is None else [names[k] for k in first.tolist()]
        if policies.replicates == "mean":
            added = count_names(phenotypes, statistics)
            averaged, counts = means(values, owner, len(first), len(phenotypes))
            values, statistics = np.concatenate([averaged, counts], axis=1), (*statistics, *added)
            value_ptr = np.arange(len(first) + 1, dtype=np.int64)
        else:
            values = values[np.argsort(owner, kind="stable")]
            value_ptr = offsets(np.bincount(owner, minlength=len(first)))
    if policies.interactions:
        values, phenotypes = with_scores(
            given.ids, given.ptr, values, value_ptr, phenotypes, policies.interactions, rows
        )
    with np.errstate(under="ignore"):  # each was found to be within float32
        single = values.astype(np.float32)
    table = SampleTable(given.ids, given.ptr, single, value_ptr, phenotypes, statistics, names)
    return table, notes


def sorted_unique(given: RaggedIds, rows: Int64Array, names: Sequence[str], duplicate: str) -> RaggedIds:
    """Ids ascending within a sample; one that is given twice is refused or, with ``duplicate="unique"``, one."""
    owner = np.repeat(np.arange(len(given)), np.diff(given.ptr))
    width = int(given.ids.max(initial=0)) + 1
    keys = owner * width + given.ids  # sorting one number per id takes a third of the time of sorting two
    keys.sort()
    ids = keys % width
    repeat = np.zeros(len(ids), dtype=bool)
    repeat[1:] = (ids[1:] == ids[:-1]) & (owner[1:] == owner[:-1])
    if not repeat.any():
        return RaggedIds(ids, given.ptr)
    if duplicate == "error":
        at = int(np.argmax(repeat))
        name = names[ids[at]] if names else ids[at]
        raise SourceContractError(
            f"row {rows[owner[at]]}: {name!r:.80} is given twice", fix='remove it, or pass duplicate="unique"'
        )
    return RaggedIds(ids[~repeat], offsets(np.bincount(owner[~repeat], minlength=len(given))))


def _left_out(count: int, total: int, why: str) -> str:
    return f"{count:,} of {total:,} rows are left out: {why}"


def _on_names(resolved: Resolved | None, total: int, unknown: str) -> list[str]:
    """What became of names that no node has."""
    if resolved is None or not (resolved.report.unmatched or resolved.report.renamed):
        return []
    said = [str(resolved.report)]
    if resolved.rows is not None:
        said.append(_left_out(total - len(resolved.rows), total, "a name is no node"))
    elif resolved.changed and unknown == "keep":
        said.append(
            f"{resolved.changed:,} of {total:,} samples perturb a name that is no node: it stays with them and removes "
            f"nothing, {resolved.emptied:,} of them perturb no node at all (unknown={unknown!r})"
        )
    elif resolved.changed:
        said.append(
            f"{resolved.changed:,} of {total:,} samples perturb fewer nodes than their row names, "
            f"{resolved.emptied:,} of them none at all (unknown={unknown!r})"
        )
    return said


# Samples that perturb the same nodes: kept apart, grouped, averaged or refused

Float64Array = npt.NDArray[np.float64]
REPLICATES = get_args(Replicates)
"""Keep each as a sample; make one sample of several measurements, or of their mean; refuse them."""


def set_numbers(ids: Int64Array, ptr: Int64Array) -> Int64Array:
    """Number of each sample's set of nodes, ``[num_samples] int64``, in order of first appearance.

    Args:
        ids: Nodes, ascending and unique within a sample.
        ptr: Offsets of the samples.
    """
    data, bounds = ids.astype(np.int64).tobytes(), (8 * ptr).tolist()
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(data[a:b], len(known)) for a, b in pairwise(bounds)], dtype=np.int64)


def means(
    values: Float64Array, owner: Int64Array, num_samples: int, num_labels: int
) -> tuple[Float64Array, Float64Array]:
    """Mean of every column over the values there are, and how many there were for each label."""
    out = np.empty((num_samples, values.shape[1]))
    counts = np.empty((num_samples, num_labels))
    for k, column in enumerate(values.T):
        out[:, k] = column_means(column, owner, num_samples)
        if k < num_labels:
            counts[:, k] = np.bincount(owner[~np.isnan(column)], minlength=num_samples)
    return out, counts


def count_names(phenotypes: tuple[str, ...], statistics: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the statistics that say how many values a mean is of.

    Raises:
        SourceContractError: If one of them is a column already.
    """
    names = tuple(f"{name}_count" for name in phenotypes)
    if taken := sorted({*phenotypes, *statistics}.intersection(names)):
        raise SourceContractError(
            f"{taken} are columns already; means add statistics of these names",
            fix='rename them, or pass replicates="group"',
        )
    return names
