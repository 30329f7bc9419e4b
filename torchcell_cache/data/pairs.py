"""``PairedCells``: each cell of a store with controls to compare it with, drawn when it is read; no pair is stored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.batch import SharedGraphBatch
from torchcell_cache.batch.pairs import PairedBatch
from torchcell_cache.core.checks import seed_number, whole_number
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.index_file import of_store
from torchcell_cache.data.pairing import by_category, controls_of, read_table, stored_table, strata_of
from torchcell_cache.data.samplers.order import raw_numbers
from torchcell_cache.errors import SettingError
from torchcell_cache.store.generation import Generation

_STREAM = 31
_GOLDEN, _FIRST, _SECOND = (
    np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_MOST = 1 << 16


@lru_cache(64)
def _start(seed: int, epoch: int) -> np.uint64:
    """Where an epoch's row of numbers starts."""
    return np.uint64(raw_numbers(1, seed, epoch, _STREAM)[0])


@dataclass(frozen=True, eq=False)
class Pairing:
    """Which controls belong to a cell, and what belongs to its category. All positions are those of the store.

    Attributes:
        num_controls: Controls per cell.
        seed: Of the draws.
        is_control: ``[num_samples] bool``; a control is its own.
        pool: Controls, stratum after stratum, ``[k] int64``.
        ptr: Where each stratum starts in ``pool``, ``[num_strata + 1] int64``.
        stratum: Of each sample, ``[num_samples] int64``; ``None`` if there is one.
        table: Controls of each sample, ``[num_samples, num_controls]``, in place of draws.
        codes: Category of each sample, per field ``[num_samples]`` integers.
        values: Per field the value of each category.
    """

    num_controls: int
    seed: int
    is_control: npt.NDArray[np.bool_]
    pool: Int64Array
    ptr: Int64Array
    stratum: Int64Array | None
    table: npt.NDArray[Any] | None
    codes: dict[str, npt.NDArray[Any]]
    values: dict[str, list[Any]]

    def controls(self, positions: Int64Array, epoch: int) -> Int64Array:
        """Controls of some cells, ``[n, num_controls] int64``: a function of seed, epoch, position and number alone."""
        if self.table is not None:
            return np.asarray(self.table[positions], dtype=np.int64)
        # SplitMix64, entered at the cell's own place in the epoch's row of numbers.
        numbers = np.arange(1, self.num_controls + 1)
        place = (positions[:, None] * self.num_controls + numbers).astype(np.uint64)
        drawn = _start(self.seed, epoch) + place * _GOLDEN
        drawn = (drawn ^ (drawn >> np.uint64(30))) * _FIRST
        drawn = (drawn ^ (drawn >> np.uint64(27))) * _SECOND
        drawn ^= drawn >> np.uint64(31)
        first, size = self.ptr[0], self.ptr[1]
        if self.stratum is not None:
            which = self.stratum[positions, None]
            first, size = self.ptr[which], self.ptr[which + 1] - self.ptr[which]
        at = first + (drawn % size.astype(np.uint64)).astype(np.int64)
        return np.where(self.is_control[positions, None], positions[:, None], self.pool[at])

    def rows(self, positions: Int64Array, epoch: int) -> Int64Array:
        """What to read for a batch: its cells, then the controls of each."""
        return np.concatenate([positions, self.controls(positions, epoch).reshape(-1)])

    def batch(self, samples: SharedGraphBatch) -> PairedBatch:
        """The batch of what :meth:`rows` said to read."""
        cells = samples.sections["indices"][: len(samples) // (1 + self.num_controls)]
        fields = {
            name: [values[code] for code in self.codes[name][cells].tolist()]
            for name, values in self.values.items()
        }
        return PairedBatch(samples, self.num_controls, fields)

    def graphs(
        self, generation: Generation, rows: Int64Array, per_cell: bool
    ) -> tuple[Int64Array, list[Any]]:
        """For :meth:`rows` the graph of each pair, and of which cell it is.

        With ``per_cell`` a cell with several controls has the list of its graphs.
        """
        graphs: list[Any] = self.batch(SharedGraphBatch.read(generation, rows)).graphs()
        k = self.num_controls
        cells = rows[: len(graphs) // k]
        if k == 1 or not per_cell:
            return np.repeat(cells, k), graphs
        return cells, [graphs[at : at + k] for at in range(0, len(graphs), k)]

    @cached_property
    def digest(self) -> str:
        """What pairs are made, in hexadecimal."""
        digest = xxhash.xxh3_128(f"{self.num_controls} {self.seed}".encode())
        for part in (self.is_control, self.pool, self.ptr, self.stratum, self.table):
            if part is not None:
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


class PairedCells(PreprocessedDataset):
    """Cells of a store, each with controls to compare it with; every cell is stored once, and no pair is.

    Which controls a cell gets is drawn when it is read, by (seed, epoch, store position): the same on every rank, in
    every view, in whatever order and batch. A control is paired with itself. Everything a dataset can do, this can:
    views, columns, samplers, splits; a view keeps the controls, also where it has none of them itself.

    A :class:`~torchcell_cache.CacheLoader` over it gives :class:`~torchcell_cache.batch.pairs.PairedBatch`: ``x`` of the
    controls and ``y`` of the cells on the device, what belongs to a cell's category, and with ``expand=True`` PyG's
    batches. A single item is a ``Data`` with ``x [num_genes, 1]``, ``y [1, num_genes]`` and these fields, as GEARS has
    them (a list of such with several controls). In torch's or PyG's own loader call :meth:`set_epoch` before each epoch.

    Args:
        dataset: A store of cells (:class:`~torchcell_cache.AnnDataSource`), or of graphs with a dense node field ``x``, or
            a view of one.
        control: Which cells of ``dataset`` are controls: an expression over its columns, a mask, or indices.
        num_controls: Controls per cell; those of ``table`` or one, if left out.
        per_category: What belongs to a cell by its category: per name a mapping from the category's name to a value, or
            a function of that name (``str`` gives the name itself).
        category: The column of names that ``per_category`` is about; by default the only one, or the one whose names a
            mapping has.
        within: A column, or several, in which cell and control agree: donor, batch, plate.
        table: Controls of each cell, ``[len(dataset), num_controls]``, as indices into ``dataset``: an array, or an
            ``.npy`` file of one; :meth:`table` makes it. Nothing is drawn then.
        seed: Of the draws.

    Raises:
        SettingError: If there are no controls, a stratum has none, a category no value, or an argument is wrong.

    Example:
        >>> cells = tc.build("stores/cells", source=[Data(x=torch.rand(3, 1)) for _ in range(4)], progress=False)
        >>> tc.PairedCells(cells, control=[0, 1])[3]
        Data(x=[3, 1], y=[1, 3]...)
        >>> tc.PairedCells(  # doctest: +SKIP
        ...     ds, control="condition == 'ctrl'", per_category={"pert": str, "de_idx": top_genes}
        ... )
    """

    pairing: Pairing

    def __init__(
        self,
        dataset: PreprocessedDataset,
        control: Any = None,
        *,
        num_controls: int | None = None,
        per_category: Mapping[str, Mapping[str, Any] | Callable[[str], Any]] | None = None,
        category: str | None = None,
        within: str | Sequence[str] | None = None,
        table: Any = None,
        seed: int = 0,
    ) -> None:
        of_store("PairedCells", dataset)
        generation = dataset.generation
        if generation.is_structured:
            raise SettingError(
                f"{generation.root} holds node deletions, and pairs are made of expression",
                fix="a store of AnnDataSource, or of graphs with a node field x",
            )
        if dataset.transform is not None or dataset.pairing is not None:
            what = "is paired already" if dataset.pairing is not None else "has a transform of single cells"
            raise SettingError(f"the dataset {what}", fix="PairedCells(PreprocessedDataset(root), ...)")
        if control is None and table is None:
            raise SettingError(
                "PairedCells needs to know which cells are controls", fix="control=\"condition == 'ctrl'\""
            )
        self.__dict__.update(dataset.__dict__)
        self.epoch = 0
        table = None if table is None else read_table(table)
        if num_controls is None:
            num_controls = 1 if table is None or table.ndim != 2 else table.shape[1]
        count = whole_number("num_controls", num_controls, 1, most=_MOST)
        is_control = np.zeros(len(generation), dtype=np.bool_)
        if control is not None:
            is_control[controls_of(dataset, control)] = True
        pool, ptr, stratum = np.flatnonzero(is_control), np.array([0, int(is_control.sum())]), None
        if within is not None:
            pool, ptr, stratum = strata_of(dataset, is_control, within, drawn=table is None)
        stored = (
            None if table is None else stored_table(dataset, table, count, is_control, control is not None)
        )
        codes, values = by_category(dataset, per_category or {}, category)
        self.pairing = Pairing(
            count, seed_number(seed), is_control, pool, ptr, stratum, stored, codes, values
        )

    def set_epoch(self, epoch: int) -> None:
        """Draw the controls of this epoch where no ``CacheLoader`` counts epochs: items, torch's and PyG's own loaders."""
        self.epoch = whole_number("epoch", epoch, 0)

    def controls(self, indices: Any = None) -> Int64Array:
        """Store positions of the controls of cells of this view in this epoch, ``[n, num_controls] int64``.

        Args:
            indices: Anything that indexes the dataset; all cells if ``None``.
        """
        return self.pairing.controls(self.positions(indices), self.epoch)

    def table(self) -> npt.NDArray[np.int32]:
        """This epoch's controls as a table for ``PairedCells(ds, table=...)`` of the whole store.

        Returns:
            ``[len(self), num_controls] int32``.
        """
        return self.controls().astype(np.int32)

    def get(self, idx: int) -> Any:
        """Sample ``idx`` of the store with its controls, before ``transform``."""
        return self._pairs(np.array([idx], dtype=np.int64))[0]

    def _pairs(self, positions: Int64Array) -> list[Any]:
        rows = self.pairing.rows(positions, self.epoch)
        return self.pairing.graphs(self.generation, rows, per_cell=True)[1]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many cells with their controls at once; what ``DataLoader`` calls."""
        found = self._pairs(self.positions(indices))
        return found if self.transform is None else list(map(self._transformed, found))

    def _transformed(self, graph: Any) -> Any:
        return self.transform(copy.deepcopy(graph))  # what categories share is the transform's own copy

    def read_batch(self, indices: Any) -> PairedBatch:  # type: ignore[override]
        """Cells and their controls as one :class:`~torchcell_cache.batch.pairs.PairedBatch`."""
        return self._batch(SharedGraphBatch.read(self.generation, self._rows(indices, self.epoch)))

    def _rows(self, indices: Any, epoch: int) -> Int64Array:
        return self.pairing.rows(self.positions(indices), epoch)

    def _batch(self, read: Any) -> PairedBatch:
        return self.pairing.batch(read)
