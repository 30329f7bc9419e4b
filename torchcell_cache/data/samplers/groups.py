"""Groups of samples by stored columns, and how rare each group is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.numbers import whole_number
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.samplers.draws import Float64Array
from torchcell_cache.errors import SettingError

Bins = int | Sequence[float]


def column_of(dataset: Any, name: str) -> npt.NDArray[Any]:
    """A stored column of a dataset, ``[num_samples]`` or ``[num_samples, width]``.

    Raises:
        SettingError: If the dataset has no columns, or none of that name; lists those it has.
    """
    columns = getattr(dataset, "columns", None)
    if columns is None and hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # torch's Subset
        return column_of(dataset.dataset, name)[np.asarray(dataset.indices, dtype=np.int64)]
    if not isinstance(columns, dict):
        raise SettingError(
            f"{type(dataset).__name__} has no stored columns, so {name!r} is unknown",
            fix="pass a PreprocessedDataset or a view of one, or numbers of your own (weights=, costs=)",
        )
    if name not in columns:
        raise SettingError(f"no stored column {name!r}; there are {', '.join(sorted(columns))}")
    found: npt.NDArray[Any] = columns[name]
    return found


def _edges(values: Float64Array, bins: Bins, name: str) -> Float64Array:
    """Inner edges of bins, ascending."""
    known = values[np.isfinite(values)]
    if np.ndim(bins) == 0:
        bins = whole_number("bins", bins, 2, fix="bins=10, or a list of edges")
        if not len(known):
            raise SettingError(f"column {name!r} has no finite value to make bins of")
        low, high = float(known.min()), float(known.max())
        return low + (high - low) * np.arange(1, bins, dtype=np.float64) / bins
    try:
        edges = np.asarray(bins, dtype=np.float64)
    except (TypeError, ValueError):
        edges = np.empty(0)
    if edges.ndim != 1 or not len(edges) or not bool((np.diff(edges) > 0).all()):
        raise SettingError(f"bins={bins!r}: expected a whole number from 2 on, or edges in ascending order")
    return edges


def groups_of(column: npt.NDArray[Any], name: str, bins: Bins | None) -> Int64Array:
    """Number of each sample's group, ``[num_samples] int64``; samples without a value are a group of their own.

    Args:
        column: A stored column.
        name: Its name, for messages.
        bins: Number of equal ranges between the smallest and the largest finite value, or the edges between ranges
            (``-inf`` and ``inf`` are understood at both ends); ``None`` makes every value a group, which takes whole
            numbers (counts, codes of names), whatever their dtype.

    Raises:
        SettingError: If a column of other numbers comes without bins, or bins make no sense.
    """
    count = len(column)
    width = column.size // count if count else 1
    if width > 1:
        if bins is not None:
            raise SettingError(f"column {name!r} has {width} values per sample, bins= need one")
        rows = column.reshape(count, width)
        return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    column = column.reshape(count)
    if bins is None:
        known = column[~np.isnan(column)] if column.dtype.kind == "f" else column
        if column.dtype.kind == "f" and not bool((known == np.floor(known)).all()):
            raise SettingError(
                f"column {name!r} holds real numbers: nearly every sample would be a group of its own",
                fix="bins=10 for ten equal ranges, or bins=[0.5, 0.9] for the edges between ranges",
            )
        return np.unique(column, return_inverse=True)[1].reshape(-1).astype(np.int64)
    values = column.astype(np.float64)
    edges = _edges(values, bins, name)
    found = np.searchsorted(edges, values, side="right").astype(np.int64)
    found[np.isnan(values)] = len(edges) + 1
    return found


def inverse_frequency(
    dataset: Any, by: str | Sequence[str], bins: Bins | dict[str, Bins] | None
) -> Float64Array:
    """One over the size of each sample's group, ``[num_samples] float64``: all groups weigh the same in total.

    Args:
        dataset: A dataset with stored columns.
        by: A column, or several: groups are then their combinations.
        bins: As in :func:`groups_of`; a dict has bins by column.

    Raises:
        SettingError: If a column does not exist or needs bins.
    """
    names = (by,) if isinstance(by, str) else tuple(by)
    if not names:
        raise SettingError("by=() names no column")
    if isinstance(bins, dict) and (unknown := sorted(set(bins) - set(names))):
        raise SettingError(f"bins for {', '.join(unknown)}, but by= names {', '.join(names)}")
    together: Int64Array | None = None
    for name in names:
        column = column_of(dataset, name)
        found = groups_of(column, name, bins.get(name) if isinstance(bins, dict) else bins)
        if together is not None:
            found = together * (int(found.max(initial=0)) + 1) + found
        together = np.unique(found, return_inverse=True)[1].reshape(-1).astype(np.int64)
    assert together is not None
    return 1.0 / np.bincount(together)[together].astype(np.float64)
