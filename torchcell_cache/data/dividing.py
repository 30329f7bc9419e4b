"""How samples are divided: strata, shares, seeded draws, and which samples perturb the same set of nodes.

The same on every machine and numpy version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import seed_number, whole_number
from torchcell_cache.core.ragged import Int64Array, ascends, unique_ragged
from torchcell_cache.data.index_file import of_store
from torchcell_cache.data.samplers.order import epoch_order
from torchcell_cache.data.samplers.weighted import MOST_BINS, Float64Array
from torchcell_cache.data.view import column_of
from torchcell_cache.errors import SettingError

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


# Parts


def checked_fractions(
    fractions: Sequence[float], length: int | None = None, key: str = "fractions"
) -> tuple[float, float, float]:
    """Three shares that sum to 1; of two, the second is that of the test part."""
    wanted = (2, 3) if length is None else (length,)
    try:
        values = [float(share) for share in fractions] if len(fractions) in wanted else []
    except (TypeError, ValueError, OverflowError):
        values = []
    if not all(0 <= v <= 1 for v in values) or not math.isclose(sum(values), 1, abs_tol=1e-6):
        raise SettingError(
            f"{key}={fractions!r:.200}: expected {' or '.join(map(str, wanted))} shares from 0 to 1 that sum to 1",
            fix=f"{key}={'(0.8, 0.2)' if length == 2 else '(0.8, 0.1, 0.1)'}",
        )
    return (values[0], 0.0, values[1]) if len(values) == 2 else (values[0], values[1], values[2])


def planned(
    dataset: Any, function: str, fractions: Sequence[float], seed: int, stratify: str | None, bins: int
) -> tuple[dict[str, Any], Float64Array]:
    """How the split is made, as JSON values, checked, and the values to stratify by, all 0 for one stratum."""
    parts = checked_fractions(fractions)
    of_store(function, dataset)
    listed = [parts[0], parts[2]] if len(fractions) == 2 else list(parts)
    how = {"function": function, "fractions": listed, "seed": seed_number(seed), "stratify": stratify}
    how["bins"] = whole_number("bins", bins, 1, most=MOST_BINS)
    if stratify is None:
        return how, np.zeros(len(dataset))
    return how, column_of(dataset, stratify, "stratify", numbers=True).astype(np.float64)


def named_parts(part: Int64Array, how: dict[str, Any]) -> dict[str, Int64Array]:
    """Indices of each part by name, of ``part``, ``[n] int64``; no ``val`` where two shares were given."""
    names = PARTS if len(how["fractions"]) == 3 else (PARTS[0], PARTS[2])
    return {name: np.flatnonzero(part == PARTS.index(name)) for name in names}


# Perturbed sets: replicates, reciprocal crosses, the cells of one condition


def first_of_set(ids: Int64Array, ptr: Int64Array) -> Int64Array:
    """The first sample that perturbs the same set of nodes, ``[n] int64``; order and repeats of ids do not matter.

    A sample that perturbs nothing is its own: controls are no replicates of each other.
    """
    if not ascends(ids, ptr):
        ids, ptr = unique_ragged(ids.copy(), ptr)
    sizes, base = np.diff(ptr), int(ids.max(initial=0)) + 1
    prefix = np.zeros(len(sizes), dtype=np.int64)  # a number for the first k nodes of each sample
    for k in range(int(sizes.max(initial=0))):
        longer = np.flatnonzero(sizes > k)
        known = prefix[longer] * base + ids[ptr[longer] + k]
        prefix[longer] = np.unique(known, return_inverse=True)[1].reshape(-1)
    first = first_of(sizes * (len(sizes) + 1) + prefix)
    return np.where(sizes == 0, np.arange(len(sizes)), first)


def first_of(numbers: Int64Array) -> Int64Array:
    """The first sample that has the same number, ``[n] int64``: views may repeat a sample of the store."""
    _, first, which = np.unique(numbers, return_index=True, return_inverse=True)
    return first[which.reshape(-1)].astype(np.int64)
