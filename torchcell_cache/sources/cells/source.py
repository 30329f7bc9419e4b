"""``AnnDataSource``: cells of H5AD files on one gene graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch_geometric.data.data import BaseData

from torchcell_cache.codec.chunks import ChangedRows, FieldChunk
from torchcell_cache.codec.layout import TensorValue
from torchcell_cache.core.checks import choice, truth, whole_number
from torchcell_cache.core.choices import Flavor, Unknown
from torchcell_cache.core.fingerprint import array_digest
from torchcell_cache.core.indexing import position
from torchcell_cache.core.markup import Shown
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import SourceContractError
from torchcell_cache.graph.topology import perturbable_type
from torchcell_cache.sources.cells import asked
from torchcell_cache.sources.cells.expression import FLAVORS, CellRows, float32_target
from torchcell_cache.sources.cells.files import CellsInMemory, cell_files
from torchcell_cache.sources.cells.genes import Perturbations, align
from torchcell_cache.sources.cells.labels import read_labels
from torchcell_cache.sources.cells.rows import Matrix
from torchcell_cache.sources.cells.samples import CellSamples
from torchcell_cache.sources.names import UNKNOWN, NodeNames, read_aliases
from torchcell_cache.store.columns import categories_of

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData


class AnnDataSource(Shown):
    """Cells of H5AD files or ``AnnData`` objects, each a sample on the base graph. Needs the packages anndata and h5py.

    Files stay on disk and are read in runs of cells; what is held in memory per cell is its labels. A sample is the base
    graph with the node field ``field`` in which one column is the cell's expression, and in the global store ``obs_values``
    (``[1, num_phenotypes] float32``), ``obs_codes`` (``[1, num_categorical] int64``, -1 for none) and ``y``, as far as asked
    for; names of cells are their ``source_ids``. With ``perturbation`` columns the nodes also have ``ids_pert`` and
    ``perturbation_indices``. The source's base graph has the same field with that column zero, ``measured``
    (``[num_nodes] bool``: which nodes can have expression) and ``obs_categories`` (the names behind the codes).

    Args:
        files: Path, URL or pattern (``plates/*.h5ad``) of H5AD files, an ``AnnData`` in memory, or several of these; cells
            are numbered file after file, those of a pattern by name. What is in memory must not change while it is read.
        base_graph: The gene graph, with ``node_ids``.
        layer: Layer to take; ``X`` if ``None``.
        raw: Take ``raw.X`` and its variables.
        gene_column: Column of ``var`` with gene names as in ``node_ids``; the index of ``var`` if ``None``.
        field: Node field that holds the expression.
        column: Column of an existing ``field`` to put it in; appended as the last one if ``None``.
        phenotypes: Numeric columns of ``obs``.
        categories: Columns of ``obs`` that hold names (cell type, batch), stored as codes.
        y: One of these columns that samples carry as ``y`` (``[1]``, int64 for a column of names).
        perturbation: Column or columns of ``obs`` with the perturbed genes of a cell.
        separator: What joins several genes there.
        control: What stands for no perturbation there; an empty entry does too.
        unknown: What to do with perturbed genes that the base graph does not have: ``error``; ``skip`` leaves the cell out
            (one without any entry too); ``drop`` leaves the gene out, which makes a cell look less perturbed than it is;
            ``keep`` leaves its name in ``ids_pert``.
        target_sum: Scale each cell to this total (``scanpy.pp.normalize_total``).
        log1p: Then take ``log(1 + value)`` (``scanpy.pp.log1p``).
        n_top_genes: Keep the expression of so many highly variable genes, chosen by scanpy among those that files and base
            graph share; the others are zero.
        flavor: scanpy's way to choose: ``seurat``, ``cell_ranger`` or ``seurat_v3``.
        hvg_cells: Cells that the choice looks at, evenly spaced runs of them if there are more.
        node_type: Node type of the genes; ``gene`` or the only one by default.
        version: A text that names the files' content, instead of reading each file once to digest it.
        storage_options: Passed to fsspec for URLs.
        aliases: Other names of genes, for variables and perturbed genes: a mapping of name to node name, or a file of two
            such columns.
        rows: Only these cells: an expression over columns of ``obs`` (``"n_genes > 200 and batch in ('b1', 'b2')"``), or a
            mask, or numbers of cells as all files have them one after the other. They keep their order.
        uns: Side tables to keep, of names or numbers by category (differentially expressed genes): a key of ``uns``, several,
            or a mapping of own name to key, or to ``(key, how many of each)``; in ``obs_tables`` of the base graph.
        vocabulary: Names that perturbed genes are numbered by where those are not the nodes, as GEARS's of the gene ontology:
            samples also have ``vocabulary_indices`` (``[k] int64``, ascending), the base graph ``perturbation_vocabulary``. A
            gene in it that is no node stays by name; one that is not in it is ``unknown``, a node or not.

    Raises:
        SourceContractError: If files, columns and base graph do not fit together, or float32 cannot hold a value; says
            what was found.
        SettingError: If an argument has no such value, or a library is missing.
        RemoteAccessError: If a server does not let us in.

    Example:
        >>> cells = tc.AnnDataSource("plates/*.h5ad", graph, categories=["cell_type"], log1p=True)  # doctest: +SKIP
    """

    gives_graphs = True

    def __init__(
        self,
        files: Any,
        base_graph: Data | HeteroData,
        *,
        layer: str | None = None,
        raw: bool = False,
        gene_column: str | None = None,
        field: str = "x",
        column: int | None = None,
        phenotypes: str | Sequence[str] = (),
        categories: str | Sequence[str] = (),
        y: str | None = None,
        perturbation: str | Sequence[str] = (),
        separator: str = "+",
        control: str | Sequence[str] = "ctrl",
        unknown: Unknown = "error",
        target_sum: float | None = None,
        log1p: bool = False,
        n_top_genes: int | None = None,
        flavor: Flavor = "seurat",
        hvg_cells: int = 20_000,
        node_type: str | None = None,
        version: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | str | Path | None = None,
        rows: Any = None,
        uns: Any = None,
        vocabulary: Sequence[str] | None = None,
    ) -> None:
        choice("unknown", unknown, UNKNOWN)
        choice("flavor", flavor, FLAVORS)
        phenotypes = asked.in_order("phenotypes", phenotypes)
        categories = asked.in_order("categories", categories)
        columns, control = asked.in_order("perturbation", perturbation), asked.in_order("control", control)
        words = asked.read_vocabulary(vocabulary, columns)
        self._how = Perturbations(columns, separator, control, unknown, words)
        raw, log1p = truth("raw", raw), truth("log1p", log1p)
        target_sum = None if target_sum is None else float32_target(target_sum)
        column = None if column is None else whole_number("column", column)
        asked.check(layer, raw, (*phenotypes, *categories), y, field, separator, version)
        self.phenotypes = phenotypes
        self._seen = whole_number("hvg_cells", hvg_cells, 2)
        top = None if n_top_genes is None else whole_number("n_top_genes", n_top_genes, 1)
        self._variable = None if top is None else {"n_top_genes": top, "flavor": flavor}
        if not isinstance(base_graph, BaseData):
            got = "None: cells need a graph of genes" if base_graph is None else type(base_graph).__name__
            raise SourceContractError(f"base_graph is {got}, expected a Data or HeteroData with node_ids")
        self._graph, self.node_type = base_graph, perturbable_type(base_graph, node_type)
        self._aliases = read_aliases(aliases) or None
        named = NodeNames.from_graph(base_graph, self.node_type, self._aliases)
        self._names = named.names
        self.files = cell_files(files, storage_options)
        matrices = [Matrix(file, layer, raw) for file in self.files]
        self.alignments = [align(matrix, named, gene_column) for matrix in matrices]
        lengths = [matrix.shape[0] for matrix in matrices]
        chosen = asked.chosen_rows(rows, self.files, lengths)
        self._labels = read_labels(self.files, lengths, named, phenotypes, categories, self._how, chosen)
        self.tables, self._in_part = asked.side_tables(uns, self.files), chosen is not None
        nodes, kept = [found.node_of for found in self.alignments], self._labels.rows
        cells = CellRows(matrices, kept, nodes, named.names, target_sum, log1p)
        if sum(lengths) and not len(cells):
            raise SourceContractError(
                f"no cell of {len(self.files)} files is left: " + "; ".join(self._labels.notes),
                fix='unknown="error" shows the first name; perturbation=..., separator=..., control=... say how names stand',
            )
        self._version = version
        perturbed = [*columns, separator, *control, unknown] if columns else None
        self._settings: dict[str, Any] = {
            **{"layer": layer, "raw": raw, "gene_column": gene_column, "node_type": self.node_type},
            **{"field": field, "column": column, "phenotypes": list(phenotypes), "y": y},
            **{"categories": list(categories), "perturbation": perturbed},
            **{"target_sum": target_sum, "log1p": log1p},
        }
        if top is not None:
            cells = replace(cells, nodes=cells.highly_variable(top, flavor, self._seen))
        self._cells = cells
        self._make_samples(np.isin(np.arange(len(self._names)), np.concatenate(cells.nodes)))

    def _make_samples(self, measured: npt.NDArray[np.bool_]) -> None:
        graph, labels = (self._graph, self.node_type, self._names), (self._labels, self._how, self.tables)
        self._samples = CellSamples(*graph, self._settings, measured, *labels)
        self.base_graph = self._samples.base_graph

    def continued(self, graph: Any) -> AnnDataSource:
        """These cells as more of a store: its codes for categories, its measured genes, of which ours may be a part.

        Args:
            graph: The store's base graph.

        Raises:
            StaleCacheError: If a column has names that the store does not know.
        """
        stored = categories_of(graph)
        if stored.keys() != self._labels.categories.keys():
            return self  # other settings, which are compared next
        out = copy.copy(self)
        out._labels = self._labels.recoded(stored)
        tables = getattr(graph, "obs_tables", None) or {}
        out.tables = tables if tables.keys() == self.tables.keys() else self.tables
        store = graph._store if self.node_type is None else graph[self.node_type]
        measured, all_measured = self._samples.measured, store.get("measured")
        fits = self._variable is None and all_measured is not None and len(all_measured) == len(measured)
        wider = fits and not bool((measured & ~all_measured.numpy()).any())
        out._make_samples(all_measured.numpy() if wider else measured)
        return out

    def __len__(self) -> int:
        return len(self._cells)

    def __repr__(self) -> str:
        return f"AnnDataSource({len(self):,} cells of {len(self.files)} files)"

    @property
    def notes(self) -> tuple[str, ...]:
        """What matched between the files and the base graph, what was left out and what is missing, line by line."""
        lines = [str(found) for found in self.alignments]
        if self._variable is not None:
            chosen = int(self._samples.measured.sum())
            lines.append(f"{chosen:,} highly variable genes keep their expression")
        lost = asked.unmeasured(self._labels, self.alignments, self._names)
        return (*lines, *self._labels.notes, *lost)

    def report(self) -> str:
        """:attr:`notes` as one text."""
        return "\n".join(self.notes)

    @property
    def table(self) -> SampleTable:
        """Perturbed nodes and labels of all cells; columns of names as codes."""
        return self._labels.table(self.phenotypes)

    @property
    def categories(self) -> dict[str, list[str]]:
        """The names behind the codes, by column."""
        return self._labels.categories

    def __getitem__(self, index: int) -> Data | HeteroData:
        """The graph of one cell, by opening its file: the slow and obvious way.

        Raises:
            IndexError: If it is out of range.
            SettingError: If it is no whole number.
        """
        at = position(index, len(self), "cell")
        return next(self.items(at, at + 1))

    def items(self, start: int, stop: int) -> Iterator[Data | HeteroData]:
        """The graphs of cells ``start`` to ``stop``, files read in runs."""
        at = start
        for found in self._cells.read(start, stop):
            for k in range(len(found.ptr) - 1):
                part = slice(int(found.ptr[k]), int(found.ptr[k + 1]))
                yield self._samples.graph(at, found.columns[part], found.values[part])
                at += 1

    def field_chunks(self, start: int, stop: int) -> Iterator[FieldChunk]:
        """The same cells, fields of a whole run at once, ready to be encoded."""
        at, samples = start, self._samples
        base = TensorValue(11, samples.base_field.numpy())
        for found in self._cells.read(start, stop):
            positions = found.columns * samples.width + samples.column
            yield samples.chunk(at, ChangedRows(base, found.ptr, positions, found.values))
            at += len(found.ptr) - 1

    def settings(self) -> dict[str, Any]:
        """How samples are made of cells; cells that are appended to a store must be made the same way."""
        return {**self._settings, "aliases": self._aliases}

    def identity(self) -> dict[str, Any]:
        """Content of the files, and every setting that changes a sample."""
        out: dict[str, Any] = {"class": "AnnDataSource", "num_samples": len(self), **self._settings}
        if self._aliases is not None:
            out["aliases"] = self._aliases
        if self._version is not None:
            out["version"] = self._version
        else:
            out["files"] = [file.digest() for file in self.files]
            if any(isinstance(file, CellsInMemory) for file in self.files):
                out["cells"] = self._labels.digest(self._cells.nodes)
        if self._in_part:
            out["rows"] = array_digest(np.concatenate(self._labels.rows))
        if self._variable is not None:
            chosen = {"cells": min(self._seen, len(self)), "chosen": array_digest(self._samples.measured)}
            out["highly_variable"] = {**self._variable, **chosen}
        return out
