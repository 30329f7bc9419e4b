"""What a dataset knows without reading a record: base graph, names, columns, labels."""

from __future__ import annotations

import abc
import mmap
import warnings
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.progress import human_bytes
from torchcell_cache.core.ragged import Int64Array, means
from torchcell_cache.errors import SettingError
from torchcell_cache.store.attributes import Attribute, is_attribute
from torchcell_cache.store.columns import ORIGIN, categories_of, named, names_apart, names_in

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

    from torchcell_cache.store.generation import Generation


_RAGGED = {"perturbed", "values", "value_count", "source_ids", "source_id_length"}
_RAGGED |= {"unknown", "unknown_names", "unknown_name_length"}
_ORIGINS = {"dataset": "dataset", "perturbation_type": "kind"}
_made: WeakKeyDictionary[Generation, dict[str, tuple[Int64Array, list[str]]]] = WeakKeyDictionary()


def _of_origins(generation: Generation) -> dict[str, tuple[Int64Array, list[str]]]:
    """What a database said of each sample, as codes and their names, made once; empty where it said nothing."""
    table = generation.table
    if table is None or table.origins is None:
        return {}
    if generation not in _made:
        made = {name: table.origins.by_sample(field, table.value_ptr) for name, field in _ORIGINS.items()}
        _made[generation] = made
    return _made[generation]


def _per_sample(name: str) -> bool:
    """Whether a stored array has one value or row per sample, and does not say how others are divided."""
    return name not in _RAGGED and not name.startswith(ORIGIN) and not is_attribute(name)


def attributes_of(generation: Generation) -> dict[str, Attribute]:
    """Texts and single numbers of graphs by the names of their columns: kept apart from the store's own, as labels are."""
    found = generation.attributes.shown()
    apart = names_apart(found, filter(_per_sample, generation.columns))
    return {apart[name]: column for name, column in found.items()}


class StoredFacts(abc.ABC):
    """The part of :class:`~torchcell_cache.PreprocessedDataset` that answers from columns and manifest alone."""

    pairing: Any = None
    """Which controls the samples are read with, of a ``PairedCells``."""

    @property
    @abc.abstractmethod
    def generation(self) -> Generation:
        """The generation that is read."""

    @abc.abstractmethod
    def positions(self, indices: Any = None) -> Int64Array:
        """Store positions of samples of this view, ``[n] int64``."""

    @property
    def base_graph(self) -> Data | HeteroData:
        """The graph all samples share, ``None`` if they share none; its tensors map the store's file."""
        return self.generation.base_graph

    @property
    def cell_graph(self) -> Data | HeteroData:
        """Torchcell's name of :attr:`base_graph`."""
        return self.base_graph

    @property
    def statistic_info(self) -> list[str]:
        """Names of the statistics."""
        return list(self.generation.schema["statistics"])

    @property
    def content_digest(self) -> str:
        """SHA-256 of what is stored, whatever the number of workers or shards."""
        return self.generation.manifest.content_digest

    @property
    def storage(self) -> str:
        """``perturbation``, ``delta`` or ``full``."""
        return self.generation.manifest.storage

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Per-sample columns of this view that have one value or row per sample.

        The store's own columns (``perturbed_count``, ``removed_edges``, ...), where torchcell's records said so the
        ``dataset`` and ``perturbation_type``, as codes of :attr:`categories` (several joined by ``|``), and the labels, the
        latter under the names of :attr:`label_columns`. Of graphs that are samples themselves, what they have as a text
        (codes of :attr:`categories`) or a single number: int64, bool, float32 or float64, NaN where a sample has none.
        """
        rows = self.positions()
        own = {name: column[rows] for name, column in self.generation.columns.items() if _per_sample(name)}
        said = {name: codes[rows] for name, (codes, _) in _of_origins(self.generation).items()}
        made = {name: column.at(rows) for name, column in attributes_of(self.generation).items()}
        return {**own, **said, **made, **self._labels(rows)}

    @property
    def label_columns(self) -> dict[str, str]:
        """Name of the column of each phenotype and statistic.

        Its own, but ``label.<name>`` where that is the name of a column of the store (``label.removed_edges``) or
        ``index``, the position.
        """
        own = [name for name in self.generation.columns if _per_sample(name)]
        own += _ORIGINS if "origins" in self.generation.schema else ()
        return names_apart((*self.generation.schema["phenotypes"], *self.statistic_info), own)

    @property
    def categories(self) -> dict[str, list[str]]:
        """The names behind the codes of columns of names (cell type, batch), by column; empty if there are none."""
        apart, said = self.label_columns, _of_origins(self.generation)
        named = {apart.get(label, label): names for label, names in categories_of(self.base_graph).items()}
        made = attributes_of(self.generation).items()
        texts = {name: list(column.names) for name, column in made if column.names is not None}
        return {**{name: names for name, (_, names) in said.items()}, **named, **texts}

    @property
    def category_tables(self) -> dict[str, dict[str, list[Any]]]:
        """Side tables of cells (``AnnDataSource(uns=...)``): by table and category its genes or numbers; empty if there are none.

        As ``per_category`` of ``PairedCells`` has them: ``{"de": {**ds.category_tables["de"], "ctrl": []}}``.
        """
        return dict(getattr(self.base_graph, "obs_tables", None) or {})

    def names(self, column: str) -> npt.NDArray[np.object_]:
        """A column of names as text, where :attr:`columns` has its codes.

        Args:
            column: Name of the column, one of :attr:`categories`.

        Returns:
            ``[n] object``: a text per sample of this view, ``None`` where it has none.

        Raises:
            SettingError: If there is no such column of names.

        Example:
            >>> ds[ds.names("cell_type") == "NK"]  # doctest: +SKIP
        """
        apart = self.label_columns
        if not isinstance(column, str):
            raise SettingError(f"column={column!r:.200}: expected the name of a column of names")
        if column in (known := self.categories):
            return named(self.columns[column], known[column])
        label = next((label for label, name in apart.items() if name == column), column)
        names = names_in({**known, **categories_of(self.base_graph)}, label)
        return named(self.columns[apart.get(label, label)], names)

    @property
    def source_ids(self) -> list[str] | None:
        """The source's own names of the samples of this view (barcodes of cells), ``None`` if it gave none."""
        table = self.generation.table
        if table is None or table.source_ids is None:
            return None
        return [table.source_ids[k] for k in self.positions().tolist()]

    @property
    def perturbed(self) -> list[Int64Array]:
        """Perturbed node ids of every sample of this view."""
        table = self.generation.table
        if table is None:
            return []
        rows = self.positions()
        ends = zip(table.ptr[rows].tolist(), table.ptr[rows + 1].tolist(), strict=True)
        return [table.ids[start:stop].astype(np.int64) for start, stop in ends]

    def _labels(self, rows: Int64Array) -> dict[str, npt.NDArray[Any]]:
        table = self.generation.table
        if table is None or not (table.phenotypes or table.statistics):
            return {}
        names = self.label_columns.values()
        if len(table.values) == len(table) and "value_count" not in self.generation.columns:
            return {name: table.values[rows, k] for k, name in enumerate(names)}
        owner = np.repeat(np.arange(len(table)), np.diff(table.value_ptr))
        labels = ((name, means(table.values[:, k], owner, len(table))) for k, name in enumerate(names))
        return {name: mean[rows].astype(np.float32) for name, mean in labels}

    @property
    def num_classes(self) -> int:
        """Number of classes by PyG's rule, from the stored ``y`` column; 0 without one."""
        y = self.generation.columns.get("y")
        if y is None or y.size == 0:
            return 0
        if np.issubdtype(y.dtype, np.floating):
            return len(np.unique(y)) if y.ndim == 1 or y.shape[-1] == 1 else int(y.shape[-1])
        return int(y.max()) + 1 if y.ndim == 1 or y.shape[-1] == 1 else int(y.shape[-1])


_LARGE_GRAPH, _LARGE_BATCH = 2**20, 2**25
_said = mmap.mmap(-1, 1)  # shared with forked workers, which each epoch starts anew


def warn_of_copies(dataset: StoredFacts, batch_size: int) -> None:
    """Say once that PyG's collate is about to copy a large base graph into every sample, and what the shared way brings."""
    if batch_size < 2 or _said[0] or getattr(dataset, "transform", None) is not None:
        return
    manifest = dataset.generation.manifest
    graph = sum(file.size for file in manifest.files if file.name.startswith("base_graph"))
    if graph < _LARGE_GRAPH or graph * batch_size < _LARGE_BATCH:
        return
    _said[0] = 1
    records = sum(shard.file.size for shard in manifest.shards) * batch_size // max(manifest.num_samples, 1)
    warnings.warn(
        f"PyG's collate copies the base graph ({human_bytes(graph)}) into each of {batch_size} samples, "
        f"{human_bytes(graph * batch_size)} per batch; tc.CacheLoader(dataset, batch_size={batch_size}) reads about "
        f"{human_bytes(records)} for it and leaves the graph shared (docs/tutorial.md), with expand=True it makes the same PyG "
        "batch on the device",
        stacklevel=3,
    )
