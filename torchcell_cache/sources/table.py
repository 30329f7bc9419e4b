"""``PerturbationTable``: a base graph and a table of knock-outs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchcell_cache.core.choices import Duplicate, Empty, Nan, Replicates, Unknown
from torchcell_cache.core.fingerprint import array_digest, sha256_json
from torchcell_cache.core.indexing import position
from torchcell_cache.core.markup import Shown
from torchcell_cache.core.samples import Sample, SampleTable
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.topology import count_nodes, perturbable_type
from torchcell_cache.sources.base import notes_of
from torchcell_cache.sources.columns import column_list
from torchcell_cache.sources.delimited import errors_of
from torchcell_cache.sources.label_tables import Roles, read_table
from torchcell_cache.sources.perturbed_nodes import Nodes
from torchcell_cache.sources.sample_rows import Policies, make_table

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData


class PerturbationTable(Shown):
    """Samples from lists of perturbed nodes and columns of labels.

    Args:
        base_graph: The graph all samples share.
        perturbations: One list of node names or ids per sample; or ``[num_samples, k]`` integers, padded with -1; or a
            frame with one node per column (query and array) and cells without a value where there are fewer; or
            ``(ids, ptr)`` ragged arrays of positions. A whole number is a position, unless another node has it as its name:
            such names go in as text.
        phenotypes: A column per phenotype name, or a frame: one number per sample (NaN: no value), or one list of numbers
            per sample for repeated measurements. Columns of pandas, polars, Arrow, numpy and torch count by position;
            the index of a pandas object means nothing.
        statistics: The same for statistics (standard errors, p-values).
        source_ids: A name per sample; the position by default.
        node_type: Perturbed node type; ``gene`` or the only one by default.
        unknown: Names that no node has: ``error``; ``skip`` the sample; ``drop`` the name, which makes a double
            knock-out a single one; or ``keep`` it as torchcell does: nothing is removed for it, it stands in ``ids_pert``
            behind the names of nodes, in the order of the alphabet, and tells samples apart. How many stands in ``notes``.
        duplicate: ``error``, or ``unique`` to count a name given twice in a sample once.
        empty: ``keep`` samples without a perturbation (wild type), or ``error``.
        nan: Values that are NaN or infinite: ``keep`` them, NaN as "no value"; ``error``; or ``skip`` the sample.
        aliases: Other names of nodes: a mapping of name to node name, or a file of two such columns.
        name: Regular expression whose one group is the name of the node in what the table has; searched first, as by
            pandas' ``str.extract``. ``^([^_]+)_`` takes ``YAL001C`` out of ``YAL001C_sn12``; a name it does not find
            is looked up as it stands.
        replicates: Samples that perturb the same nodes: ``keep`` each; ``group`` them into one sample with several
            measurements; take their ``mean``, with the statistic ``<label>_count``; or ``error``.
        interactions: Add the labels ``epsilon`` (of doubles) and ``tau`` (of triples), which follow from the label
            ``fitness``, the only label, or the one named here; see :mod:`.interactions`.

    Raises:
        SourceContractError: Naming the row and the value that break one of these rules.
        SettingError: If a policy is not one of its values, or a column has another length.

    Attributes:
        notes: What was read as what, and what was left out.

    Example:
        >>> cell = tc.testing.tiny_graph()
        >>> tc.PerturbationTable(cell, [["G0"], ["G3", "G5"]], phenotypes={"fitness": [0.9, 0.4]})
        PerturbationTable(2, phenotypes=['fitness'])
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        base_graph: Data | HeteroData,
        perturbations: Any,
        *,
        phenotypes: Any = None,
        statistics: Any = None,
        source_ids: Any = None,
        node_type: str | None = None,
        unknown: Unknown = "error",
        duplicate: Duplicate = "error",
        empty: Empty = "keep",
        nan: Nan = "keep",
        aliases: Mapping[str, str] | str | Path | None = None,
        name: str | None = None,
        replicates: Replicates = "keep",
        interactions: bool | str = False,
    ) -> None:
        policies = Policies(unknown, duplicate, empty, nan, replicates, interactions)
        _check_graph(base_graph)
        self.base_graph = base_graph
        self.node_type = perturbable_type(base_graph, node_type)
        store: Any = base_graph._store if self.node_type is None else base_graph[self.node_type]
        names = store._mapping.get("node_ids")
        names = None if names is None else column_list(names, "node_ids of the base graph")
        nodes = Nodes(names, count_nodes(store, f"'{self.node_type}'"), aliases, name)
        self._table, self.notes = make_table(
            nodes, perturbations, phenotypes, statistics, source_ids, policies
        )

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        base_graph: Data | HeteroData,
        *,
        perturbed: str | Sequence[str] = "genes",
        phenotypes: str | Sequence[str] | None = None,
        statistics: str | Sequence[str] = (),
        id_column: str | None = None,
        separator: str = "|",
        delimiter: str | None = None,
        encoding: str | None = None,
        **policies: Any,
    ) -> PerturbationTable:
        """Read a CSV, TSV (also ``.gz``) or Parquet table.

        Without named labels all columns of numbers are labels and columns of text are none; which were which stands in
        ``notes``. A column that mixes both is refused. No value is an empty cell, ``NA``, ``N/A``, ``#N/A``, ``NaN``,
        ``nan``, ``null``, ``NULL`` or ``None``.

        Args:
            path: The file.
            base_graph: The graph all samples share.
            perturbed: Column or columns of perturbed names, joined by ``separator``.
            phenotypes: Label columns; ``[]`` for none. ``None``: all columns of numbers, unless ``statistics`` are named.
            statistics: Statistic columns.
            id_column: Column of sample names.
            separator: What joins the names in a cell.
            delimiter: What separates the cells; tab for ``.tsv`` and ``.tab``, else a comma, if ``None``.
            encoding: Encoding of the text, such as ``latin-1``; UTF-8 if ``None``.
            **policies: ``unknown``, ``aliases``, ``name``, ``duplicate``, ``replicates``, ``interactions``, ``empty``
                and ``nan`` as for the class, but ``empty`` and ``nan`` default to ``error`` here.

        Raises:
            SourceContractError: Naming the file, the row (from 0, without the header) and the value.
            SettingError: If a setting is none.

        Example:
            >>> tc.PerturbationTable.from_csv("screen.csv", graph, phenotypes=["fitness"], nan="keep")  # doctest: +SKIP
        """
        if not isinstance(path, str | os.PathLike):
            raise SettingError(
                f"path is {type(path).__name__}, expected the path of a file",
                fix='PerturbationTable(base_graph, frame["genes"].str.split("|"), phenotypes=frame[["fitness"]])',
            )
        local_path(path, "path")
        _check_graph(base_graph)
        roles = Roles.from_arguments(perturbed, separator, phenotypes, statistics, id_column)
        table = read_table(Path(path), roles, delimiter=delimiter, encoding=encoding)
        with errors_of(path):
            source = cls(
                base_graph,
                table.perturbed,
                phenotypes=table.phenotypes,
                statistics=table.statistics,
                source_ids=table.source_ids,
                **{"empty": "error", "nan": "error", **policies},
            )
        source.notes = (*table.notes, *source.notes)
        return source

    @classmethod
    def of_table(
        cls, base_graph: Data | HeteroData, table: SampleTable, node_type: str | None
    ) -> PerturbationTable:
        """A source from columns that were a source's before; nothing is checked again.

        Args:
            base_graph: The graph all samples share.
            table: The samples.
            node_type: Perturbed node type.
        """
        source = cls.__new__(cls)
        source.base_graph, source.node_type, source._table = base_graph, node_type, table
        return source

    @property
    def table(self) -> SampleTable:
        """All samples as ragged columns."""
        return self._table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index`` with its base graph.

        Raises:
            IndexError: If it is out of range.
            SettingError: If it is no whole number.
        """
        return self._table.sample(position(index, len(self)), self.base_graph)

    def report(self) -> str:
        """What was read as what, and what was left out, of the base graph too; a line each."""
        return "\n".join(notes_of(self))

    def __repr__(self) -> str:
        return f"PerturbationTable({len(self)}, phenotypes={list(self._table.phenotypes)})"

    @property
    def cell_graph(self) -> Data | HeteroData:
        """Torchcell's name of ``base_graph``."""
        return self.base_graph

    @property
    def phenotype_info(self) -> list[str]:
        """Names of the phenotypes."""
        return list(self._table.phenotypes)

    def identity(self) -> dict[str, Any]:
        """Digests of every column."""
        table = self._table
        return {
            "class": "PerturbationTable",
            "num_samples": len(table),
            "perturbed": array_digest(table.ids.astype(np.int64)),
            "perturbed_ptr": array_digest(table.ptr),
            "phenotypes": list(table.phenotypes),
            "statistics": list(table.statistics),
            "values": array_digest(table.values),
            "value_ptr": array_digest(table.value_ptr),
            "source_ids": None if table.source_ids is None else sha256_json(list(table.source_ids)),
            **({} if table.unknown is None else {"unknown": table.unknown.digest()}),
        }


def _check_graph(graph: Any) -> None:
    """Refuse what is no graph of PyG, and say how it becomes one."""
    from torch_geometric.data import Data, HeteroData

    if isinstance(graph, Data | HeteroData):
        return
    if hasattr(graph, "base_graph"):
        fix = "pass its .base_graph"
    elif isinstance(graph, str | os.PathLike):
        fix = "tc.load_base_graph(path)"
    else:
        fix = 'tc.sources.cell_graph(graphs={"physical": edges}) makes one of networkx graphs, pairs, frames, files'
    raise SettingError(f"base_graph is {type(graph).__name__}, expected Data or HeteroData", fix=fix)
