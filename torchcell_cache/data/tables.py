"""Columns in users' own tools: Arrow, pandas, polars, Parquet; samples as PyG's in-memory dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch_geometric.data import InMemoryDataset

from torchcell_cache.core.files import make_dirs_durable, write_atomic
from torchcell_cache.core.package import optional
from torchcell_cache.core.progress import human_bytes
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.torchcell import TorchcellNames, named_ids
from torchcell_cache.errors import SettingError
from torchcell_cache.store.columns import single_columns

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from torchcell_cache.core.samples import SampleTable


class Collated:
    """What ``.data`` of a dataset answers: ``y``; a store keeps no concatenation of its samples."""

    def __init__(self, dataset: Tables) -> None:
        self._dataset = dataset

    @property
    def y(self) -> torch.Tensor:
        """Labels, see :attr:`Tables.y`."""
        return self._dataset.y

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"data.{name}: a store does not concatenate its samples; dataset.base_graph is what they share, dataset[i] is "
            f"one, dataset.columns has what is known of all, dataset.to_in_memory().data.{name} holds them side by side"
        )


class Tables(TorchcellNames):
    """The part of :class:`~torchcell_cache.PreprocessedDataset` that hands columns and samples to other tools."""

    transform: Any

    @property
    def y(self) -> torch.Tensor:
        """The stored labels ``y`` as ``InMemoryDataset.y`` has them, one after the other: ``[n]`` or ``[n, k]``, a copy.

        Raises:
            AttributeError: If samples have no such field; says where their labels are.
        """
        column = self.generation.columns.get("y")
        if column is None:
            labels = list(self.label_columns.values())
            fix = f"dataset.columns[{labels[0]!r}]" if labels else "[sample.y for sample in dataset]"
            raise AttributeError(f"dataset.y: this store has no column y; labels are {fix}")
        rows = torch.from_numpy(column[self.positions()])
        return rows if rows.ndim == 1 else rows.reshape(-1, *rows.shape[2:])

    @property
    def data(self) -> Collated:
        """For ``dataset.data.y``, as code for PyG's in-memory datasets writes it."""
        return Collated(self)

    def to_arrow(self, *, measurements: bool = False) -> pa.Table:
        """What is known of the samples of this view, a row each, as a table of Arrow.

        Args:
            measurements: A row per measurement instead, labels as they were measured rather than their means.

        Returns:
            ``index`` (position in the store); ``source_id`` where the source named its samples; ``perturbed``, the list of
            perturbed names; then :attr:`columns`,
            those of names as categories, those of several values per sample as ``y[0]``, ``y[1]``, ... With ``measurements``
            also ``measured`` where the source said, and ``dataset`` and ``perturbation_type`` of each. Where a
            column has such a name itself, ours is ``sample.<name>``.

        Raises:
            SettingError: If pyarrow is not installed, or samples have no measurements.

        Example:
            >>> ds[:3].to_arrow().column("perturbed").to_pylist()
            [['G3', 'G4', 'G7'], ['G3', 'G4'], ['G1', 'G6']]
        """
        pa = optional("pyarrow", "to_arrow", "table")
        rows, table, columns = self.positions(), self.generation.table, self.columns
        labels, own = set(self.label_columns.values()), {"index": pa.array(rows)}
        known = None if table is None else table.take(rows)
        at: Int64Array | None = None
        if measurements:
            if known is None or not known.phenotypes:
                raise SettingError("measurements=True: the samples of this store have no measurements")
            at = np.repeat(np.arange(len(rows)), np.diff(known.value_ptr))
            columns = {name: column for name, column in columns.items() if name not in labels}
            columns |= {name: known.values[:, k] for k, name in enumerate(self.label_columns.values())}
        if known is not None:
            if known.source_ids is not None:
                own["source_id"] = pa.array(list(known.source_ids), pa.string())
            ids, ptr, names = named_ids(known, self._node_names())
            own["perturbed"] = pa.LargeListArray.from_arrays(
                pa.array(ptr),
                pa.array(names if known.unknown is None else list(map(str, names))).take(pa.array(ids)),
            )
        out = {name: column if at is None else column.take(pa.array(at)) for name, column in own.items()}
        if measurements and known is not None and known.origins is not None:
            out |= _of_origins(pa, known)
            columns = {name: column for name, column in columns.items() if name not in out}
        for name in [name for name in out if name in columns]:
            other = name
            while other in columns or other in out:
                other = f"sample.{other}"
            out = {other if key == name else key: column for key, column in out.items()}
        for name, column in single_columns(columns).items():
            values = column if at is None or name in labels else column[at]
            if name not in self.categories:
                out[name] = pa.array(values)
                continue
            none = ~np.asarray(values >= 0)  # no code, no name
            codes = pa.array(np.where(none, 0, values).astype(np.int32), mask=none)
            names = pa.array(self.categories[name], pa.string())
            out[name] = pa.DictionaryArray.from_arrays(codes, names)
        return pa.table(out)

    def to_pandas(self, *, measurements: bool = False) -> pd.DataFrame:
        """:meth:`to_arrow` as a table of pandas: perturbed names as tuples, categories as ``category``.

        Raises:
            SettingError: If pandas or pyarrow is not installed.

        Example:
            >>> ds.to_pandas().groupby("perturbed_count").size().to_dict()
            {0: 4, 1: 2, 2: 3, 3: 3}
        """
        optional("pandas", "to_pandas", "table")
        frame = self.to_arrow(measurements=measurements).to_pandas()
        for name in frame.select_dtypes(object):
            if len(frame) and isinstance(frame[name].iloc[0], np.ndarray):
                frame[name] = [tuple(row.tolist()) for row in frame[name]]
        return frame

    def to_polars(self, *, measurements: bool = False) -> pl.DataFrame:
        """:meth:`to_arrow` as a table of polars.

        Raises:
            SettingError: If polars or pyarrow is not installed.

        Example:
            >>> ds.to_polars().shape[0]  # doctest: +SKIP
            4
        """
        polars = optional("polars", "to_polars", "polars")
        frame: pl.DataFrame = polars.from_arrow(self.to_arrow(measurements=measurements))
        return frame

    def to_parquet(self, path: str | os.PathLike[str], *, measurements: bool = False) -> Path:
        """:meth:`to_arrow` as a Parquet file, written whole or not at all.

        Returns:
            The file.

        Raises:
            SettingError: If pyarrow is not installed.
            StorageError: If it cannot be written.

        Example:
            >>> ds.to_parquet("labels.parquet").name
            'labels.parquet'
        """
        where, table = local_path(path, "path"), self.to_arrow(measurements=measurements)
        import pyarrow.parquet

        out = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, out)
        make_dirs_durable(where.parent)
        write_atomic(where, out.getvalue(), mode=0o644)
        return where

    def to_in_memory(self) -> InMemoryDataset:
        """The samples of this view as PyG's ``InMemoryDataset``, with this dataset's ``transform``.

        Each sample is held whole, also what all share: for small graphs, and for code that insists on ``.data`` and ``.slices``.

        Raises:
            SettingError: If that would take more than this machine's memory, or there is no sample.

        Example:
            >>> len(ds.to_in_memory())
            12
        """
        at = self.positions()
        if not len(at):
            raise SettingError("to_in_memory: no samples, and PyG cannot hold none")
        first = self.generation.graphs(at[:1].tolist())[0]
        tensors = [value for store in first.stores for value in store.values() if torch.is_tensor(value)]
        wanted = 2 * len(at) * sum(value.numel() * value.element_size() for value in tensors)
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if wanted > has:
            raise SettingError(
                f"to_in_memory: {len(at):,} whole samples and their concatenation take about {human_bytes(wanted)}, this "
                f"machine has {human_bytes(has)}",
                fix="dataset[:1000].to_in_memory(), or CacheLoader, which never copies what samples share",
            )
        whole = InMemoryDataset(None, self.transform)
        whole.data, whole.slices = whole.collate(self.generation.graphs(at.tolist()))
        return whole


def _of_origins(pa: Any, table: SampleTable) -> dict[str, Any]:
    """What a database said of each measurement: dataset, what it measured, and its perturbations."""
    origins = table.origins
    assert origins is not None
    words = pa.array(list(origins.words), pa.string())
    lists = (("perturbed", origins.gene), ("perturbation_type", origins.kind))
    return {
        "dataset": words.take(pa.array(origins.dataset)).dictionary_encode(),
        "measured": words.take(pa.array(origins.label)).dictionary_encode(),
        **{
            n: pa.LargeListArray.from_arrays(pa.array(origins.ptr), words.take(pa.array(c))) for n, c in lists
        },
    }
