"""Rows of different lengths in one array: offsets, segments, ranges, merges."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Positions: TypeAlias = npt.NDArray[Any]


def smallest_unsigned(limit: int) -> np.dtype[Any]:
    """Smallest unsigned dtype that holds ``0..limit``."""
    return np.dtype(np.min_scalar_type(max(int(limit), 0)))


def shrunk(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers that are not negative in the smallest dtype that holds them."""
    return numbers.astype(smallest_unsigned(int(numbers.max(initial=0))))


def offsets(counts: npt.NDArray[Any]) -> Int64Array:
    """``[0, cumsum(counts)]`` as int64."""
    out = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, dtype=np.int64, out=out[1:])
    return out


def ragged_arange(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """``concatenate([arange(s, s + c) for s, c in zip(starts, counts)])`` without the loop."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + counts, counts) + np.arange(total, dtype=np.int64)


def unique_ragged(flat: Positions, ptr: Int64Array) -> tuple[Positions, Int64Array]:
    """Sort each list of a ragged array in place and drop repeats."""
    bounds = ptr.tolist()
    for a, b in pairwise(bounds):
        flat[a:b].sort()
    repeat = np.zeros(len(flat), dtype=bool)
    np.equal(flat[1:], flat[:-1], out=repeat[1:])
    repeat[ptr[:-1][ptr[:-1] < ptr[1:]]] = False
    dropped = np.flatnonzero(repeat)
    if len(dropped) == 0:
        return flat, ptr
    return flat[~repeat], ptr - np.searchsorted(dropped, ptr)


def segments(
    data: npt.NDArray[Any], ptr: Int64Array, rows: Int64Array
) -> tuple[npt.NDArray[Any], Int64Array]:
    """Segments of a ragged array, one after the other, and their offsets ``[len(rows) + 1] int64``."""
    at, out = ragged_rows(ptr, rows)
    return data[at], out


def merge_ragged(
    first: tuple[Positions, Int64Array], second: tuple[Positions, Int64Array]
) -> tuple[Positions, Int64Array]:
    """Union of two ragged position lists, sample by sample, ascending and unique."""
    (a, a_ptr), (b, b_ptr) = first, second
    a_at, b_at = a_ptr.tolist(), b_ptr.tolist()
    parts = [
        part for k in range(len(a_at) - 1) for part in (a[a_at[k] : a_at[k + 1]], b[b_at[k] : b_at[k + 1]])
    ]
    flat = np.concatenate(parts).astype(a.dtype, copy=False) if parts else a[:0]
    return unique_ragged(flat, a_ptr + b_ptr)


def ragged_rows(ptr: Int64Array, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Where the items of chosen rows stand, one row behind the other, ``[sum of counts]``, and their offsets, ``[n + 1]``."""
    first, counts = ptr[rows], ptr[rows + 1] - ptr[rows]
    return ragged_arange(first, counts), offsets(counts)


def means(values: npt.NDArray[Any], owner: Int64Array, count: int) -> npt.NDArray[np.float64]:
    """Mean of the values that each owner has, ``[count] float64``; NaN is no value, and what stands for none."""
    known = ~np.isnan(values)
    total = np.bincount(owner[known], weights=values[known], minlength=count)
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.float64] = total / np.bincount(owner[known], minlength=count)
    return found


def ascends(flat: npt.NDArray[Any], ptr: Int64Array) -> bool:
    """Whether each list of a ragged array rises strictly."""
    falls = (flat[1:] <= flat[:-1]).nonzero()[0] + 1
    # Only from one list to the next.
    return len(falls) == 0 or bool((ptr[ptr.searchsorted(falls)] == falls).all())
