"""Which samples perturb the same set of nodes: replicates, reciprocal crosses, the cells of one condition."""

from __future__ import annotations

import numpy as np

from torchcell_cache.record import Int64Array


def first_of_set(ids: Int64Array, ptr: Int64Array) -> Int64Array:
    """The first sample that perturbs the same set of nodes, ``[n] int64``; order and repeats of ids do not matter.

    A sample that perturbs nothing is its own: controls are no replicates of each other.

    Args:
        ids: Perturbed ids of all samples.
        ptr: Offsets into ``ids``, ``[n + 1] int64``.
    """
    ids, ptr = _ascending(ids, ptr)
    counts = np.diff(ptr)
    out = np.arange(len(counts), dtype=np.int64)
    by_size = np.argsort(counts, kind="stable")
    sizes, starts = np.unique(counts[by_size], return_index=True)
    for size, rows in zip(sizes.tolist(), np.split(by_size, starts[1:]), strict=False):
        if size == 0 or len(rows) == 1:
            continue
        table = ids[ptr[rows][:, None] + np.arange(size)]
        order = np.lexsort(table.T)  # stable: the first of equal rows is the first sample
        changes = (table[order[1:]] != table[order[:-1]]).any(axis=1)
        group = np.concatenate([[0], np.cumsum(changes)])
        first = rows[order[np.concatenate([[True], changes])]]
        out[rows[order]] = first[group]
    return out


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
