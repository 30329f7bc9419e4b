"""Samples that perturb the same nodes: kept apart, grouped, averaged or refused."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SourceContractError

Float64Array = npt.NDArray[np.float64]
REPLICATES = ("keep", "group", "mean", "error")
"""Keep each as a sample; make one sample of several measurements, or of their mean; refuse them."""


def set_numbers(ids: Int64Array, ptr: Int64Array) -> Int64Array:
    """Number of each sample's set of nodes, ``[num_samples] int64``, in order of first appearance.

    Args:
        ids: Nodes, ascending and unique within a sample.
        ptr: Offsets of the samples.
    """
    counts = np.diff(ptr)
    out = np.zeros(len(counts), dtype=np.int64)
    total = 0
    for size in np.unique(counts).tolist():
        rows = np.flatnonzero(counts == size)
        sets = np.ascontiguousarray(ids[ptr[rows][:, None] + np.arange(size)], dtype=np.int64)
        if size:
            keys = sets.view(np.dtype((np.void, 8 * size))).reshape(-1)
            found = np.unique(keys, return_inverse=True)[1].reshape(-1)
        else:
            found = np.zeros(len(rows), dtype=np.int64)
        out[rows] = total + found
        total += int(found.max(initial=-1)) + 1
    _, first, inverse = np.unique(out, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def refuse_replicates(number: Int64Array, rows: Int64Array) -> None:
    """Refuse two samples of one set.

    Args:
        number: See :func:`set_numbers`.
        rows: Their rows in what was given.

    Raises:
        SourceContractError: Naming both rows.
    """
    order = np.argsort(number, kind="stable")
    again = np.flatnonzero(np.diff(number[order]) == 0)
    if len(again):
        second = int(order[again + 1].min())
        first = int(np.argmax(number == number[second]))
        raise SourceContractError(
            f"rows {rows[first]} and {rows[second]} perturb the same nodes",
            fix='remove one, or pass replicates="mean", "group" or "keep"',
        )


def means(
    values: Float64Array, owner: Int64Array, num_samples: int, num_labels: int
) -> tuple[Float64Array, Float64Array]:
    """Mean of every column over the values there are, and how many there were for each label."""
    out = np.full((num_samples, values.shape[1]), np.nan)
    counts = np.zeros((num_samples, num_labels))
    for k in range(values.shape[1]):
        known = ~np.isnan(values[:, k])
        total = np.bincount(owner[known], weights=values[known, k], minlength=num_samples)
        count = np.bincount(owner[known], minlength=num_samples)
        np.divide(total, count, out=out[:, k], where=count > 0)
        if k < num_labels:
            counts[:, k] = count
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
