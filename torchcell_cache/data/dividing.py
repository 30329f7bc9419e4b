"""How samples are divided: strata, shares, seeded draws, and which samples perturb the same set of nodes.

The same on every machine and numpy version.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import seed_number, suggestion, whole_number
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.data.index_file import of_store
from torchcell_cache.data.samplers.order import epoch_order
from torchcell_cache.data.samplers.weighted import MOST_BINS, Float64Array
from torchcell_cache.errors import SettingError
from torchcell_cache.store.columns import is_number, single_columns

PARTS = ("train", "val", "test")
MAX_CLASSES = 16


def strata_of(values: npt.NDArray[Any], bins: int) -> Int64Array:
    """Stratum of each sample, ``[n] int64``: its class, or its quantile bin; samples without a value are one more.

    Up to 16 different values are classes. More are cut at ``bins - 1`` of the sorted values, without interpolation, so that
    equal values share a stratum.
    """
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise SettingError(f"strata need one number per sample, got {values.dtype} {list(values.shape)}")
    known = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(len(values), dtype=bool)
    ordered = np.sort(values[known])
    different = np.unique(ordered)
    edges = (
        different[1:] if len(different) <= MAX_CLASSES else ordered[np.arange(1, bins) * len(ordered) // bins]
    )
    out = np.full(len(values), len(edges) + 1, dtype=np.int64)
    out[known] = np.searchsorted(edges, values[known], side="right")
    return out


def strata(values: Float64Array | None, count: int, bins: int) -> Int64Array:
    """:func:`strata_of` values, or one stratum for all where there are none."""
    return np.zeros(count, dtype=np.int64) if values is None else strata_of(values, bins)


def shares(sizes: Sequence[int], fractions: Sequence[float]) -> Int64Array:
    """How many of each stratum go to each part, ``[strata, parts] int64``.

    Largest remainders, what a stratum rounds off carried to the next, so the totals are right to one sample.
    """
    parts = np.asarray(fractions, dtype=np.float64)
    carry = np.zeros(len(parts))
    out = np.zeros((len(sizes), len(parts)), dtype=np.int64)
    for row, size in enumerate(sizes):
        quota = size * parts + carry
        counts = np.floor(np.maximum(quota, 0) + 1e-9).astype(np.int64)
        order = np.argsort(np.where(parts > 0, counts - quota, np.inf), kind="stable")
        counts[order[: size - int(counts.sum())]] += 1
        carry = quota - counts
        out[row] = counts
    return out


def divide(stratum: Int64Array, fractions: Sequence[float], seed: int, stream: int = 0) -> Int64Array:
    """Part of each sample, ``[n] int64``: each stratum is dealt out by ``fractions`` in a seeded random order."""
    order = epoch_order(len(stratum), seed, stream)
    order = order[np.argsort(stratum[order], kind="stable")]
    sizes = np.bincount(stratum) if len(stratum) else np.zeros(0, dtype=np.int64)
    counts = shares(sizes.tolist(), fractions)
    out = np.empty(len(stratum), dtype=np.int64)
    out[order] = np.repeat(np.tile(np.arange(len(fractions)), len(sizes)), counts.reshape(-1))
    return out


def draw(stratum: Int64Array, count: int, seed: int) -> Int64Array:
    """``count`` of the samples, ascending, each stratum in proportion to its size, ``[count] int64``."""
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    share = count / len(stratum)
    chosen: Int64Array = np.flatnonzero(divide(stratum, (share, 1 - share), seed) == 0)
    return chosen


def column(dataset: Any, name: str, key: str) -> npt.NDArray[Any]:
    """A column of numbers of a dataset by name."""
    columns: dict[str, npt.NDArray[Any]] = {
        name: each for name, each in single_columns(dataset.columns).items() if is_number(each)
    }
    if not isinstance(name, str) or name not in columns:
        raise SettingError(f"{key}={name!r} is no column of this store{suggestion(str(name), list(columns))}")
    return columns[name]


# Parts


def checked_fractions(
    fractions: Sequence[float], length: int | None = None, key: str = "fractions"
) -> tuple[float, float, float]:
    """Three shares that sum to 1; of two, the second is that of the test part."""
    wanted = (2, 3) if length is None else (length,)
    try:
        values = [float(share) for share in fractions]
        if len(fractions) != len(values):
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise SettingError(
            f"{key}={fractions!r:.200}: expected numbers, {' or '.join(map(str, wanted))} of them in a list"
        ) from None
    good = (
        len(values) in wanted
        and all(0 <= v <= 1 for v in values)
        and math.isclose(sum(values), 1, abs_tol=1e-6)
    )
    if not good:
        raise SettingError(
            f"{key}={fractions!r:.200}: expected {' or '.join(map(str, wanted))} shares from 0 to 1 that sum to 1",
            fix=f"{key}={'(0.8, 0.2)' if length == 2 else '(0.8, 0.1, 0.1)'}",
        )
    return (values[0], 0.0, values[1]) if len(values) == 2 else (values[0], values[1], values[2])


def planned(
    dataset: Any, function: str, fractions: Sequence[float], seed: int, stratify: str | None, bins: int
) -> tuple[tuple[float, float, float], dict[str, Any], Float64Array | None]:
    """Checked shares, how the split is made as JSON values, and the values to stratify by."""
    parts = checked_fractions(fractions)
    of_store(function, dataset)
    listed = [parts[0], parts[2]] if len(fractions) == 2 else list(parts)
    numbers = {
        "seed": seed_number(seed),
        "stratify": stratify,
        "bins": whole_number("bins", bins, 1, most=MOST_BINS),
    }
    values = None if stratify is None else column(dataset, stratify, "stratify").astype(np.float64)
    return parts, {"function": function, "fractions": listed, **numbers}, values


def named_parts(part: Int64Array, how: dict[str, Any]) -> dict[str, Int64Array]:
    """Indices of each part by name, of ``part``, ``[n] int64``; no ``val`` where two shares were given."""
    names = PARTS if len(how["fractions"]) == 3 else (PARTS[0], PARTS[2])
    return {name: np.flatnonzero(part == PARTS.index(name)) for name in names}


# Perturbed sets: replicates, reciprocal crosses, the cells of one condition


def first_of_set(ids: Int64Array, ptr: Int64Array) -> Int64Array:
    """The first sample that perturbs the same set of nodes, ``[n] int64``; order and repeats of ids do not matter.

    A sample that perturbs nothing is its own: controls are no replicates of each other.
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


def first_of(positions: Int64Array) -> Int64Array:
    """The first sample of a view that is the same sample of the store, ``[n] int64``: views may repeat samples."""
    _, first, which = np.unique(positions, return_index=True, return_inverse=True)
    return first[which.reshape(-1)].astype(np.int64)


def _ordered(columns: list[Int64Array], base: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
    """An order of rows in which equal ones are neighbours, the first of them first, and where rows change."""
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
    return ids[new], offsets(counts)
