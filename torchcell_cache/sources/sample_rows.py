"""Rows of a table as samples: perturbed nodes and measurements meet, and the policies say what becomes of each row."""

from __future__ import annotations

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
from torchcell_cache.sources.names import UNKNOWN, left_out
from torchcell_cache.sources.perturbed_ids import RaggedIds
from torchcell_cache.sources.perturbed_nodes import Found, Nodes


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
    found = nodes.found(perturbations, policies.unknown)
    rows, total = found.rows, found.total
    given = sorted_unique(found, policies.duplicate)
    measured = Measurements.from_columns({**labels, **others}, total)
    ids = texts(source_ids, total, "source_ids")
    notes = [*found.notes, *measured.note_on_values()]
    if policies.nan == "error":
        measured.refuse_odd(rows)
    elif policies.nan == "skip":
        kept = ~measured.odd_rows()[rows]
        if not kept.all():
            notes.append(left_out(len(rows) - int(kept.sum()), total, "a value is NaN or infinite"))
        given, rows = RaggedIds(*segments(given.ids, given.ptr, np.flatnonzero(kept))), rows[kept]
    if policies.empty == "error" and bool((np.diff(given.ptr) == 0).any()):
        row = int(rows[int(np.argmin(np.diff(given.ptr)))])
        raise SourceContractError(f"row {row} perturbs nothing", fix='drop the row, or pass empty="keep"')
    if len(rows) < total:
        measured = measured.take(rows)
        ids = None if ids is None else [ids[row] for row in rows.tolist()]
    found = replace(found, given=given, rows=rows)
    table, more = joined(found, measured, ids, len(labels), policies)
    return table, (*notes, *more)


def joined(
    found: Found,
    measured: Measurements,
    ids: list[str] | None,
    num_labels: int,
    policies: Policies,
    conditions: Int64Array | None = None,
) -> tuple[SampleTable, list[str]]:
    """One sample per set of nodes (and condition) where replicates are to be one, and the scores of the labels."""
    given, rows, notes = found.given, found.rows, list[str]()
    labels, statistics = measured.names[:num_labels], measured.names[num_labels:]
    values, value_ptr = measured.values, measured.ptr
    if policies.replicates != "keep":
        number = set_numbers(given.ids, given.ptr)
        if conditions is not None:
            pairs = np.stack([number, conditions], axis=1).reshape(-1)
            number = set_numbers(pairs, 2 * np.arange(len(number) + 1, dtype=np.int64))
        _, first = np.unique(number, return_index=True)
        if len(first) < len(number):
            if policies.replicates == "error":
                raise _same_nodes(number, first, rows, ids)
            notes.append(
                f"{len(number):,} rows perturb {len(first):,} different sets of nodes, a sample each "
                f"(replicates={policies.replicates!r})"
            )
        owner = number[np.repeat(np.arange(len(number)), np.diff(value_ptr))]
        given, rows = RaggedIds(*segments(given.ids, given.ptr, first)), rows[first]
        ids = None if ids is None else [ids[k] for k in first.tolist()]
        if policies.replicates == "mean":
            statistics = (*statistics, *_count_names(labels, statistics))
            values = _means(values, owner, len(first), num_labels)
            value_ptr = np.arange(len(first) + 1, dtype=np.int64)
        else:
            values = values[np.argsort(owner, kind="stable")]
            value_ptr = offsets(np.bincount(owner, minlength=len(first)))
    if policies.interactions:
        measured = Measurements((*labels, *statistics), values, value_ptr)
        values, labels = with_scores(given, measured, labels, policies.interactions, rows)
    with np.errstate(under="ignore"):  # each was found to be within float32
        single = values.astype(np.float32, order="C")  # rows that lie together, also of means
    nodes, ptr, unknown = without_names(given.ids, given.ptr, found.first, found.names[found.first :])
    table = SampleTable(nodes, ptr, single, value_ptr, labels, statistics, ids, unknown)
    return table, notes


def sorted_unique(found: Found, duplicate: str) -> RaggedIds:
    """Ids ascending within a sample; one that is given twice is refused or, with ``duplicate="unique"``, one."""
    given = found.given
    owner = np.repeat(np.arange(len(given)), np.diff(given.ptr))
    width = int(given.ids.max(initial=0)) + 1
    keys = owner * width + given.ids  # sorting one number per id takes a third of the time of sorting two
    keys.sort()
    ids = keys % width
    repeat = np.zeros(len(ids), dtype=bool)
    repeat[1:] = keys[1:] == keys[:-1]
    if not repeat.any():
        return RaggedIds(ids, given.ptr)
    if duplicate == "error":
        at = int(np.argmax(repeat))
        name = found.names[ids[at]] if found.names else ids[at]
        said = f"row {found.rows[owner[at]]}: {name!r:.80} is given twice"
        raise SourceContractError(said, fix='remove it, or pass duplicate="unique"')
    return RaggedIds(ids[~repeat], offsets(np.bincount(owner[~repeat], minlength=len(given))))


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


def _same_nodes(
    number: Int64Array, first: Int64Array, rows: Int64Array, ids: list[str] | None
) -> SourceContractError:
    again = int(np.setdiff1d(np.arange(len(number)), first)[0])
    both = [int(first[number[again]]), again]
    called = "" if ids is None else f" ({' and '.join(repr(ids[k]) for k in both)})"
    return SourceContractError(
        f"rows {rows[both[0]]} and {rows[again]} perturb the same nodes{called}",
        fix='remove one, or pass replicates="mean", "group" or "keep"',
    )


def _means(values: Float64Array, owner: Int64Array, count: int, num_labels: int) -> Float64Array:
    """Mean of every column over the values there are, and behind them how many there were for each label."""
    known = ~np.isnan(values[:, :num_labels])
    found = [column_means(column, owner, count) for column in values.T]
    counts = [np.bincount(owner[column], minlength=count) for column in known.T]
    return np.array([*found, *counts], dtype=np.float64).reshape(len(found) + num_labels, count).T


def _count_names(labels: tuple[str, ...], statistics: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the statistics that say how many values a mean is of.

    Raises:
        SourceContractError: If one of them is a column already.
    """
    names = tuple(f"{name}_count" for name in labels)
    if taken := sorted({*labels, *statistics}.intersection(names)):
        raise SourceContractError(
            f"{taken} are columns already; means add statistics of these names",
            fix='rename them, or pass replicates="group"',
        )
    return names
