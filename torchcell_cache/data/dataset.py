"""``PreprocessedDataset``: a store as a PyG dataset."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import numpy.typing as npt
import torch
from torch_geometric.data import Data, Dataset, HeteroData

from torchcell_cache.core.checks import truth
from torchcell_cache.core.choices import Download
from torchcell_cache.core.indexing import Positions, as_positions
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.urls import is_url, local_path, refuse_remote
from torchcell_cache.data.index_file import into_view, load_indices
from torchcell_cache.data.looks import Looks
from torchcell_cache.errors import CacheNotFoundError, SettingError
from torchcell_cache.store.facts import warn_of_copies
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.lease import open_with_lease
from torchcell_cache.store.records import close_all
from torchcell_cache.store.status import wait_for_store

if TYPE_CHECKING:
    from torchcell_cache.batch import SharedGraphBatch


class PreprocessedDataset(Looks, Dataset):  # type: ignore[misc]
    """Samples of a store, read in microseconds, equal to ``processor(source[i])`` field by field.

    Opening never builds. The dataset keeps reading the generation it opened, also while a new one is published, and
    pickles to a few hundred bytes.

    Args:
        root: Directory the store was built in, or the address it was pushed to (``s3://bucket/prefix``, ``gs://``,
            ``az://``, ``file://``). See ``docs/object_storage.md``.
        transform: Applied to every sample after it is read, never stored. It gets a copy of its own of what samples
            share: large tensors are copied when they are written (which takes one more copy of them per process), small
            ones, lists and dicts for each sample.
        pre_transform: Not accepted: processing happens in the build.
        pre_filter: Not accepted, likewise.
        log: Kept for PyG's signature.
        force_reload: Not accepted: building is explicit.
        wait: Seconds to wait for a store that another job is about to publish, ``True`` without limit.
        source_dataset: The source the store should stand for. A missing store is then no error until a sample is
            read, so that :meth:`preprocess_from_source` can build it (torchcell's calling style), and a store of
            another source is refused.
        indices: Only these samples of the store: an index file (``.npy``, see :func:`save_indices`), or anything that
            indexes a dataset. The dataset is then a view of them.
        cache_dir: For an address: local directory for its files, shared by the processes of a node. Default
            ``$TORCHCELL_CACHE_DIR``, else ``~/.cache/torchcell_cache``.
        cache_bytes: For an address: what ``cache_dir`` may hold, in bytes or as ``"200GB"``. No limit by default.
        download: For an address: ``"lazy"`` fetches a shard on first use, ``"all"`` all of them now.
        storage_options: For an address: options of the file system (``endpoint_url``, ``anon``), no credentials.

    Raises:
        CacheNotFoundError: If there is no store at ``root``; names the command that builds one.
        WaitTimeoutError: If ``wait`` seconds were not enough; says what was found.
        CorruptManifestError: If the manifest is damaged.
        StaleCacheError: If ``source_dataset`` is not what the store was built from, or ``indices`` is of another store.
        SettingError: If an argument belongs to the build.

    Example:
        >>> dataset = tc.PreprocessedDataset("stores/cell")
        >>> dataset[3:5], dataset[-1]["gene"].ids_pert
        (PreprocessedDataset(2), ['G0', 'G4', 'G5'])
    """

    _missing_is_error = True

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
        log: bool = True,
        force_reload: bool = False,
        *,
        wait: bool | float = False,
        source_dataset: Any = None,
        indices: Any = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | str | None = None,
        download: Download = "lazy",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if root is None:
            raise SettingError("PreprocessedDataset needs the root directory of a store", fix="pass root=...")
        if pre_transform is not None or pre_filter is not None or truth("force_reload", force_reload):
            raise SettingError(
                "pre_transform, pre_filter and force_reload do nothing on a store that is built already",
                fix="tc.build(root, source=..., processor=..., on_stale='rebuild')",
            )
        if transform is not None and not callable(transform):
            raise SettingError(
                f"transform is a {type(transform).__name__}, expected a function of a sample; a source is no transform",
                fix="tc.build(root, source=..., processor=...), or PreprocessedDataset(root, source_dataset=...)",
            )
        self._source_dataset = source_dataset
        self._opened: Generation | None = None
        remote: dict[str, Any] = {"cache_dir": cache_dir, "cache_bytes": cache_bytes}
        remote["storage_options"] = storage_options
        if is_url(root):
            from torchcell_cache.remote.opening import open_url

            opened = open_url(root, **remote, download=download, wait=wait)
            self._opened, self._root = opened, opened.root
        else:
            refuse_remote(root, {**remote, "download": None if repr(download) == "'lazy'" else download})
            self._root = local_path(root)
            wait_for_store(self._root, wait)
            try:
                self._opened = open_with_lease(self._root)
            except CacheNotFoundError:
                if self._missing_is_error and source_dataset is None:
                    raise
        if self._opened is not None and source_dataset is not None:
            from torchcell_cache.builder.run import check_source

            check_source(self._opened.manifest, source_dataset, self._root)
        super().__init__(str(self._root), transform, None, None, log=log)
        if indices is not None:
            chosen = self.positions(self._listed(indices))
            self.__dict__["_positions"], self._indices = chosen, Positions(chosen)

    def _listed(self, indices: Any) -> Any:
        """What indexes this view, or an index file that lists some of its samples, as indices."""
        if not isinstance(indices, str | os.PathLike):
            return indices
        return into_view(self, load_indices(indices, self.generation), os.fspath(indices))

    @classmethod
    def _of(cls, generation: Generation, transform: Callable[..., Any] | None = None) -> PreprocessedDataset:
        """A dataset on an open generation."""
        dataset = cls.__new__(cls)
        dataset._root, dataset._source_dataset, dataset._opened = generation.root, None, generation
        Dataset.__init__(dataset, str(generation.root), transform)
        return dataset

    def __getstate__(self) -> dict[str, Any]:
        gone = ("_positions", "_made_indices")
        return {k: v for k, v in self.__dict__.items() if k not in gone} | {"_source_dataset": None}

    @property
    def generation(self) -> Generation:
        """The generation this dataset reads.

        Raises:
            CacheNotFoundError: If the store has not been built yet.
        """
        if self._opened is None:
            self._opened = open_with_lease(self._root)
        return self._opened

    # Reading

    def len(self) -> int:
        """Number of samples in the store, whatever the view."""
        return len(self.generation)

    def get(self, idx: int) -> Any:
        """Sample ``idx`` of the store, before ``transform``."""
        return self.generation.graphs([idx])[0]

    @cached_property
    def _positions(self) -> Int64Array | None:
        """Store positions of this view, ``None`` for the whole store."""
        return None if self._indices is None else np.asarray(list(self._indices), dtype=np.int64)

    def positions(self, indices: Any = None) -> Int64Array:
        """Store positions of samples of this view, ``[n] int64``.

        Args:
            indices: Anything that indexes the dataset; all samples if ``None``.

        Raises:
            IndexError: If one is out of range.
        """
        within = np.arange(len(self)) if indices is None else as_positions(indices, len(self))
        return within if self._positions is None else self._positions[within]

    def _position(self, index: int) -> int:
        """Store position of one sample of this view; what :meth:`positions` says, without arrays."""
        chosen = self._positions
        count = len(self.generation) if chosen is None else len(chosen)
        if not -count <= index < count:
            raise IndexError(f"index {index} is out of range for {count} samples")
        return index % count if chosen is None else int(chosen[index])

    @overload
    def __getitem__(self, idx: int) -> Data | HeteroData: ...
    @overload
    def __getitem__(self, idx: slice | Sequence[int] | npt.NDArray[Any] | torch.Tensor) -> Self: ...
    def __getitem__(self, idx: Any) -> Any:
        """One sample for an integer, else a view: slices, lists, arrays, tensors; lists of bools are masks."""
        if isinstance(idx, torch.Tensor | np.ndarray) and idx.ndim == 0:
            idx = idx.item()
        if isinstance(idx, int | np.integer) and not isinstance(idx, bool | np.bool_):
            data = self.get(self._position(int(idx)))
            return data if self.transform is None else self._transformed(data)
        return self.index_select(idx)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many samples at once; what ``DataLoader`` calls. Read together, in one pass per shard."""
        warn_of_copies(self, len(indices))
        graphs = self.generation.graphs(self.positions(indices))
        return graphs if self.transform is None else list(map(self._transformed, graphs))

    def _transformed(self, graph: Any) -> Any:
        """A sample after ``transform``, which may work in place: what samples share is copied for it."""
        return self.transform(self.generation.shared_fields.separate(graph))

    def index_select(self, idx: Any) -> Self:
        """A view of the given samples, in the given order."""
        return self._at(self.positions(as_positions(idx, len(self))))

    def _at(self, chosen: Int64Array) -> Self:
        view = copy.copy(self)
        view.__dict__["_positions"], view._indices = chosen, Positions(chosen)
        return view

    def _rows(self, indices: Any, epoch: int) -> Int64Array:
        """Store positions of what is read for a batch of this view, of which :meth:`_batch` makes it."""
        return self.positions(indices)

    def _batch(self, read: Any) -> Any:
        return read

    def read_batch(self, indices: Any) -> SharedGraphBatch:
        """Samples as one :class:`SharedGraphBatch` that never copies the base graph."""
        from torchcell_cache.batch.batch import SharedGraphBatch

        return SharedGraphBatch.read(self.generation, self.positions(indices))

    def preprocess_from_source(
        self, source_dataset: Any, graph_processor: Any, num_workers: int = 0, **settings: Any
    ) -> Self:
        """Build the store from a source, then read from it: torchcell's calling style of ``build``."""
        if self._opened is not None and self._opened.fetcher is not None:
            raise SettingError(
                "a remote store cannot be built in place", fix="build it locally, then push it"
            )
        from torchcell_cache.builder.run import build

        self._opened = build(
            self._root, source=source_dataset, processor=graph_processor, num_workers=num_workers, **settings
        )
        return self

    def close(self) -> None:
        """Close this process's handles on all stores; they reopen on the next read."""
        close_all()

    close_lmdb = close
    """torchcell's name of it."""


class Neo4jPreprocessedCellDataset(PreprocessedDataset):
    """torchcell's name of :class:`PreprocessedDataset`; opens before the store is built, as torchcell's own does.

    Args:
        root: See :class:`PreprocessedDataset`.
        source_dataset: See there; second, as torchcell has it.
        transform: See there.
        settings: Other arguments of :class:`PreprocessedDataset`.

    Raises:
        SettingError: If ``source_dataset`` is a function.

    Example:
        >>> dataset = tc.Neo4jPreprocessedCellDataset("stores/torchcell")
        >>> dataset.preprocess_from_source(tc.testing.tiny_source(4), tc.Perturbation(), progress=False)
        Neo4jPreprocessedCellDataset(4)
        >>> len(dataset)
        4
    """

    _missing_is_error = False

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        source_dataset: Any = None,
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        **settings: Any,
    ) -> None:
        if callable(source_dataset) and not hasattr(source_dataset, "__getitem__"):
            raise SettingError(
                f"source_dataset is a {type(source_dataset).__name__}, expected a source; a function is a transform",
                fix="Neo4jPreprocessedCellDataset(root, transform=...)",
            )
        super().__init__(root, transform, pre_transform, source_dataset=source_dataset, **settings)
