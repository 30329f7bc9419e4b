"""Every kind of index a PyG user knows, as positions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError


def as_positions(index: Any, count: int) -> Int64Array:
    """Positions that ``index`` selects from ``count`` samples.

    Args:
        index: A slice (also with floats, as shares of ``count``), or a sequence, array, tensor or pandas column of
            integers or of ``count`` bools.
        count: Number of samples.

    Returns:
        Positions, ``[n] int64``, negative ones counted from the end.

    Raises:
        IndexError: If a position is out of range, a mask has another length, or ``index`` is none of these.
    """
    if type(index) is np.ndarray and index.dtype == np.int64 and index.ndim == 1 and all_within(index, count):
        return index.copy()  # what loaders ask for, in the fewest steps
    given = type(index).__name__
    if isinstance(index, slice):
        # Float ends stand for shares of the dataset, as PyG has it.
        start, stop = (
            round(end * count) if isinstance(end, float) else end for end in (index.start, index.stop)
        )
        return np.arange(count)[start : stop : index.step]
    if isinstance(index, range):
        index = np.arange(index.start, index.stop, index.step)
    elif hasattr(index, "detach"):
        index = index.detach().cpu().numpy()
    elif getattr(index, "ndim", None) == 1 and hasattr(index, "to_numpy"):  # a pandas column: by position
        index = index.to_numpy()
    elif isinstance(index, Sequence) and not isinstance(index, str | bytes):
        try:
            index = np.asarray(index) if len(index) else np.empty(0, dtype=np.int64)
        except ValueError:  # lists of lists of different lengths
            index = None
    if not isinstance(index, np.ndarray):
        raise IndexError(
            f"a dataset is indexed by integers, slices, lists, tuples, arrays and tensors, got {given}"
        )
    index = index.reshape(-1)
    if index.dtype == np.bool_:
        if len(index) != count:
            raise IndexError(f"a mask of {len(index)} bools for {count} samples")
        return np.flatnonzero(index)
    if not np.issubdtype(index.dtype, np.integer):
        raise IndexError(f"a dataset is indexed by integers or bools, got an array of {index.dtype}")
    positions: Int64Array = index.astype(np.int64)
    if len(positions):
        # As given: large unsigned numbers would become negative.
        low, high = int(index.min()), int(index.max())
        if low < -count or high >= count:
            raise IndexError(f"index {high if high >= count else low} is out of range for {count} samples")
        if low < 0:
            positions = np.where(positions < 0, positions + count, positions)
    return positions


def position(index: Any, count: int, what: str = "sample") -> int:
    """Where a source's sample is, counted from the end if negative.

    Raises:
        SettingError: If it is no whole number: sources take no slices, stores do.
        IndexError: If there is no such sample.
    """
    try:
        at = operator.index(index)
    except TypeError:
        raise SettingError(
            f"a source gives one {what} at a time, {index!r:.80} is no position",
            fix="build a store, which takes slices, lists and masks: dataset[:100]",
        ) from None
    at += count if at < 0 else 0
    if not 0 <= at < count:
        raise IndexError(f"{what} {index} of {count}")
    return at


def all_within(positions: Int64Array, count: int) -> bool:
    """Whether all positions are from 0 to ``count - 1``: negative ones are huge when read as unsigned."""
    return len(positions) > 0 and int(positions.view(np.uint64).max()) < count


class Positions(Sequence[int]):
    """Store positions of a view as PyG expects them, kept as one array."""

    def __init__(self, positions: Int64Array) -> None:
        self.array = positions

    def __reduce__(self) -> Any:
        """Slices travel to workers as three numbers; only arbitrary choices as an array."""
        if len(self.array) > 1:
            step = int(self.array[1] - self.array[0])
            if step != 0 and bool((np.diff(self.array) == step).all()):
                first = int(self.array[0])
                return _every, (first, step, len(self.array))
        return Positions, (self.array,)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> Any:
        found = self.array[index]
        return found.tolist() if isinstance(index, slice) else int(found)


def _every(first: int, step: int, count: int) -> Positions:
    return Positions(first + step * np.arange(count, dtype=np.int64))
