"""Which samples of which store a dataset stands for: stores, their views, torch's subsets of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from torch.utils.data import ConcatDataset, Subset

from torchcell_cache.core.checks import suggestion
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.errors import SettingError
from torchcell_cache.store.columns import is_number, single_columns


def content_of(dataset: Any) -> str | None:
    """What the samples are and in which order, in hexadecimal; ``None`` where they are not one store's."""
    view = view_of(dataset)
    if view is None:
        return None
    digest = xxhash.xxh3_128(view.generation.manifest.content_digest.encode())
    if view.pairing is not None:
        digest.update(view.pairing.digest.encode())
    if view._indices is not None and not np.array_equal(view.positions(), np.arange(len(view.generation))):
        digest.update(np.ascontiguousarray(view.positions()).tobytes())
    return digest.hexdigest()


def view_of(dataset: Any) -> PreprocessedDataset | None:
    """The samples a dataset stands for as a view of a store; ``None`` if they are not all of one with one transform."""
    if isinstance(dataset, PreprocessedDataset):
        return dataset
    if isinstance(dataset, Subset):
        inner = view_of(dataset.dataset)
        return None if inner is None else inner.index_select(np.asarray(dataset.indices, dtype=np.int64))
    if not isinstance(dataset, ConcatDataset):
        return None
    views = [view for view in map(view_of, dataset.datasets) if view is not None]
    if len(views) < len(dataset.datasets):
        return None
    first = views[0]
    for view in views:
        if view.transform is not first.transform or view.pairing is not first.pairing:
            return None
        if view.generation.directory != first.generation.directory:
            return None
    return first._at(np.concatenate([view.positions() for view in views]))


def store_view(dataset: Any, what: str) -> PreprocessedDataset:
    """The samples of a store that a dataset stands for; refuses what is no one store's."""
    view = view_of(dataset)
    if view is None:
        raise SettingError(
            f"{what} one store: a PreprocessedDataset, a view of one, or torch's Subset or ConcatDataset of such views "
            f"with one transform; got {dataset!r:.200}",
            fix="stream.batches(num_workers=...) if it is a stream; torch_geometric.loader.DataLoader reads anything "
            "else, and DistributedCacheSampler takes anything with a length",
        )
    return view


def restricted(dataset: Any, indices: Any) -> PreprocessedDataset:
    """The samples of a dataset that an index file of its store lists, or that ``indices`` index.

    Raises:
        SettingError: If the dataset is no ``PreprocessedDataset``, or a view that lacks one of the samples.
        StaleCacheError: If the file was made for another store.
    """
    if not isinstance(dataset, PreprocessedDataset):
        raise SettingError(
            f"indices= chooses samples of a PreprocessedDataset, got {type(dataset).__name__}",
            fix="make the view before: dataset[indices]",
        )
    return dataset.index_select(dataset._listed(indices))


def column_of(dataset: Any, name: str, key: str, numbers: bool = False) -> npt.NDArray[Any]:
    """A stored column of a dataset, ``[num_samples]`` or ``[num_samples, width]``; with ``numbers`` one of single numbers."""
    columns = getattr(dataset, "columns", None)
    if columns is None and hasattr(dataset, "dataset") and hasattr(dataset, "indices"):  # torch's Subset
        return column_of(dataset.dataset, name, key)[np.asarray(dataset.indices, dtype=np.int64)]
    if not isinstance(columns, dict):
        raise SettingError(
            f"{type(dataset).__name__} has no stored columns, so {key}={name!r} is unknown",
            fix="pass a PreprocessedDataset or a view of one, or numbers of your own (weights=, costs=)",
        )
    known = single_columns(columns)
    known = {n: c for n, c in known.items() if is_number(c)} if numbers else {**known, **columns}
    if not isinstance(name, str) or name not in known:
        raise SettingError(f"{key}={name!r} is no stored column{suggestion(str(name), sorted(known))}")
    return known[name]
