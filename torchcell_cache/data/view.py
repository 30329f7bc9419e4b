"""Which samples of which store a dataset stands for: stores, their views, torch's subsets of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from torch.utils.data import ConcatDataset, Subset

from torchcell_cache.core.checks import suggestion
from torchcell_cache.core.indexing import as_positions
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.errors import SettingError
from torchcell_cache.store.columns import is_number, single_columns
from torchcell_cache.store.generation import Generation


@dataclass(frozen=True, slots=True, eq=False)
class StoreView:
    """Samples of one store, in an order of their own.

    Attributes:
        generation: The store's generation.
        chosen: Store positions, ``[n] int64``; ``None`` for the whole store as it is.
        transform: What the dataset applies to every sample it reads, or ``None``.
        pairing: Which controls are read with the samples, of a ``PairedCells``.
    """

    generation: Generation
    chosen: Int64Array | None
    transform: Callable[..., Any] | None
    pairing: Any = None

    def __len__(self) -> int:
        return len(self.generation) if self.chosen is None else len(self.chosen)

    def positions(self, indices: Any) -> Int64Array:
        """Store positions of samples of this view.

        Raises:
            IndexError: If one is out of range.
        """
        within = as_positions(indices, len(self))
        return within if self.chosen is None else self.chosen[within]

    def rows(self, indices: Any, epoch: int) -> Int64Array:
        """Store positions of what is read for a batch: its samples, behind them what they are paired with."""
        positions: Int64Array = self.positions(indices)
        return positions if self.pairing is None else self.pairing.rows(positions, epoch)

    def batch(self, read: Any) -> Any:
        """The batch of a shared batch of :meth:`rows`."""
        return read if self.pairing is None else self.pairing.batch(read)

    @property
    def digest(self) -> str:
        """What the samples are and in which order, in hexadecimal."""
        digest = xxhash.xxh3_128(self.generation.manifest.content_digest.encode())
        if self.pairing is not None:
            digest.update(self.pairing.digest.encode())
        if self.chosen is not None and not np.array_equal(self.chosen, np.arange(len(self.generation))):
            digest.update(np.ascontiguousarray(self.chosen).tobytes())
        return digest.hexdigest()


def view_of(dataset: Any) -> StoreView | None:
    """The samples a dataset stands for, or ``None`` if they are not all of one store with one transform."""
    if isinstance(dataset, PreprocessedDataset):
        whole = dataset._indices is None
        chosen = None if whole else dataset.positions()
        return StoreView(dataset.generation, chosen, dataset.transform, dataset.pairing)
    if isinstance(dataset, Subset):
        inner = view_of(dataset.dataset)
        if inner is None:
            return None
        chosen = inner.positions(np.asarray(dataset.indices, dtype=np.int64))
        return replace(inner, chosen=chosen)
    if isinstance(dataset, ConcatDataset):
        return _joined([view_of(part) for part in dataset.datasets])
    return None


def store_view(dataset: Any, what: str) -> StoreView:
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


def _joined(views: list[StoreView | None]) -> StoreView | None:
    first, parts = views[0], []
    for view in views:
        if first is None or view is None or view.transform is not first.transform:
            return None
        if view.pairing is not first.pairing or view.generation.directory != first.generation.directory:
            return None
        parts.append(view.positions(np.arange(len(view))))
    assert first is not None
    return replace(first, chosen=np.concatenate(parts))


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
