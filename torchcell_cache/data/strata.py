"""Draws and shares of samples that are the same on every machine: by class, or by quantile of a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.column_names import suggestion
from torchcell_cache.data.samplers.order import epoch_order
from torchcell_cache.data.samplers.weighted import Float64Array
from torchcell_cache.errors import SettingError

MAX_CLASSES = 16


def strata_of(values: npt.NDArray[Any], bins: int) -> Int64Array:
    """Stratum of each sample, ``[n] int64``: its class, or its quantile bin; samples without a value are one more.

    Up to 16 different values are classes. More are cut at ``bins - 1`` of the sorted values, without interpolation, so that
    equal values share a stratum.

    Args:
        values: One number per sample, ``[n]``.
        bins: Number of quantile bins.
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


def divide(strata: Int64Array, fractions: Sequence[float], seed: int, stream: int = 0) -> Int64Array:
    """Part of each sample, ``[n] int64``: each stratum is dealt out by ``fractions`` in a seeded random order.

    Args:
        strata: Stratum of each sample, ``[n]``.
        fractions: Shares of the parts; they sum to 1.
        seed: Seed of the order.
        stream: Another order of the same seed.
    """
    order = epoch_order(len(strata), seed, stream)
    order = order[np.argsort(strata[order], kind="stable")]
    sizes = np.bincount(strata) if len(strata) else np.zeros(0, dtype=np.int64)
    counts = shares(sizes.tolist(), fractions)
    out = np.empty(len(strata), dtype=np.int64)
    out[order] = np.repeat(np.tile(np.arange(len(fractions)), len(sizes)), counts.reshape(-1))
    return out


def draw(strata: Int64Array, count: int, seed: int) -> Int64Array:
    """``count`` of the samples, ascending, each stratum in proportion to its size, ``[count] int64``."""
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    share = count / len(strata)
    chosen: Int64Array = np.flatnonzero(divide(strata, (share, 1 - share), seed) == 0)
    return chosen


def column(dataset: Any, name: str, key: str) -> npt.NDArray[Any]:
    """A column of a dataset by name.

    Raises:
        SettingError: Naming the columns there are.
    """
    columns: dict[str, npt.NDArray[Any]] = {
        k: c for k, c in dataset.columns.items() if c.ndim == 1 and c.dtype.kind in "biuf"
    }
    if name not in columns:
        raise SettingError(f"{key}={name!r} is no column of this store{suggestion(str(name), list(columns))}")
    return columns[name]


def values_of(dataset: Any, stratify: str | None) -> Float64Array | None:
    """The column that is stratified by as ``[n] float64``, ``None`` without one."""
    return None if stratify is None else column(dataset, stratify, "stratify").astype(np.float64)


def means(values: Float64Array, owner: Int64Array, count: int) -> Float64Array:
    """Mean of the values that each owner has, ``[count] float64``; NaN is no value, and what stands for none."""
    known = ~np.isnan(values)
    total = np.bincount(owner[known], weights=values[known], minlength=count)
    with np.errstate(invalid="ignore"):
        found: Float64Array = total / np.bincount(owner[known], minlength=count)
    return found
