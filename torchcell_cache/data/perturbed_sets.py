"""Which samples perturb the same set of nodes: replicates, reciprocal crosses, the cells of one condition."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array


def first_of_set(ids: Int64Array, ptr: Int64Array) -> Int64Array:
    """The first sample that perturbs the same set of nodes, ``[n] int64``; order and repeats of ids do not matter.

    A sample that perturbs nothing is its own: controls are no replicates of each other.

    Args:
        ids: Perturbed ids of all samples.
        ptr: Offsets into ``ids``, ``[n + 1] int64``.
    """
    ids, ptr = _ascending(ids, ptr)
    base = int(ids.max(initial=0)) + 1
    counts = np.diff(ptr)
    out = np.arange(len(counts), dtype=np.int64)
    by_size = np.argsort(counts, kind="stable")
    sizes, starts = np.unique(counts[by_size], return_index=True)
    for size, rows in zip(sizes.tolist(), np.split(by_size, starts[1:]), strict=False):
        if size == 0 or len(rows) == 1:
            continue
        starts = ptr[rows]
        order, changes = _ordered([ids[starts + k] for k in range(size)], base)
        first = rows[order[np.concatenate([[True], changes])]]
        out[rows[order]] = np.repeat(first, np.diff(np.flatnonzero(np.r_[True, changes, True])))
    return out


def _ordered(columns: list[Int64Array], base: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
    """An order of rows in which equal ones are neighbours, the first of them first, and where rows change.

    Args:
        columns: The rows' numbers, column by column.
        base: What all numbers are below.
    """
    if base ** len(columns) < 1 << 63:  # one number says it all, and one sort is faster than several
        key = functools.reduce(lambda high, low: high * base + low, columns)
        order = np.argsort(key, kind="stable")
        return order, np.diff(key[order]) != 0
    order = np.lexsort(columns)
    changes = np.zeros(len(order) - 1, dtype=np.bool_)
    for column in columns:
        changes |= np.diff(column[order]) != 0
    return order, changes


def count_divided(first: Int64Array, part: Int64Array) -> int:
    """How many sets of :func:`first_of_set` have samples in several parts; ``part`` is ``[n] int64``."""
    return len(np.unique(first[part != part[first]]))


def _ascending(ids: Int64Array, ptr: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Ids ascending and unique within each sample, as a table has them by contract."""
    owner = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    if bool(((ids[1:] > ids[:-1]) | (owner[1:] != owner[:-1])).all()):
        return ids, ptr
    order = np.lexsort((ids, owner))
    ids, owner = ids[order], owner[order]
    new = np.concatenate([[True], (ids[1:] != ids[:-1]) | (owner[1:] != owner[:-1])])
    counts = np.bincount(owner[new], minlength=len(ptr) - 1)
    return ids[new], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
