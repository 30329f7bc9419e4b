"""``PerturbationTable``: a base graph and a table of knock-outs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.fingerprint import array_digest, sha256_json
from torchcell_cache.processors.base import choice
from torchcell_cache.processors.deletion import node_names
from torchcell_cache.record import Float32Array, Int64Array, Sample, SampleTable
from torchcell_cache.sources.label_tables import Roles, read_table
from torchcell_cache.sources.names import NameLists, NodeNames, resolve
from torchcell_cache.topology import count_nodes, perturbable_type

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData


class PerturbationTable:
    """Samples from lists of perturbed nodes and columns of labels.

    Args:
        base_graph: The graph all samples share.
        perturbations: One list of node names or ids per sample; or ``[num_samples, k]`` integers, padded with -1; or
            ``(ids, ptr)`` ragged arrays.
        phenotypes: Values per phenotype name: one number per sample (NaN: no value), or one list of numbers per sample
            for repeated measurements.
        statistics: The same for statistics (standard errors, p-values).
        source_ids: A name per sample; the position by default.
        node_type: Perturbed node type; ``gene`` or the only one by default.
        unknown: ``error``, or ``drop`` names the base graph does not have.
        duplicate: ``error``, or ``unique`` to count a name given twice in a sample once.
        empty: ``keep`` samples without a perturbation (wild type), or ``error``.
        nan: ``keep`` NaN as "no value", or ``error``.
        aliases: Other names of nodes: a mapping of name to node name, or a file of two such columns.

    Raises:
        SourceContractError: Naming the row and the value that break one of these rules.
        SettingError: If a policy is not one of its values, or a column has another length.

    Attributes:
        notes: What was read as what, and what was left out.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        base_graph: Data | HeteroData,
        perturbations: Any,
        *,
        phenotypes: Mapping[str, Any] | None = None,
        statistics: Mapping[str, Any] | None = None,
        source_ids: Sequence[str] | None = None,
        node_type: str | None = None,
        unknown: str = "error",
        duplicate: str = "error",
        empty: str = "keep",
        nan: str = "keep",
        aliases: Mapping[str, str] | str | Path | None = None,
    ) -> None:
        choice("unknown", unknown, ("error", "drop"))
        choice("duplicate", duplicate, ("error", "unique"))
        choice("empty", empty, ("keep", "error"))
        choice("nan", nan, ("keep", "error"))
        self.base_graph = base_graph
        self.node_type = perturbable_type(base_graph, node_type)
        store: Any = base_graph if self.node_type is None else base_graph[self.node_type]
        store = store._store if self.node_type is None else store
        names, num_nodes = node_names(store), count_nodes(store, f"'{self.node_type}'")
        ids, ptr = _ragged_ids(perturbations, names, unknown, aliases)
        ids, ptr = _sorted_unique(ids, ptr, num_nodes, names, duplicate)
        if empty == "error" and bool((np.diff(ptr) == 0).any()):
            row = int(np.argmin(np.diff(ptr)))
            raise SourceContractError(f"row {row} perturbs nothing", fix='drop the row, or pass empty="keep"')
        values, value_ptr = _measurements({**(phenotypes or {}), **(statistics or {})}, len(ptr) - 1, nan)
        if overlap := set(phenotypes or {}) & set(statistics or {}):
            raise SettingError(f"{sorted(overlap)} are given as phenotype and as statistic")
        if source_ids is not None:
            _check_source_ids(source_ids, len(ptr) - 1)
        self._table = SampleTable(
            ids, ptr, values, value_ptr, tuple(phenotypes or {}), tuple(statistics or {}), source_ids
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
            **policies: ``unknown``, ``aliases``, ``duplicate``, ``empty``, ``nan`` as for the class, but ``empty`` and
                ``nan`` default to ``error`` here.

        Raises:
            SourceContractError: Naming the file, the row (from 0, without the header) and the value.
            SettingError: If a setting is none.

        Example:
            ``tc.PerturbationTable.from_csv("screen.csv", graph, phenotypes=["fitness"], nan="keep")``
        """
        roles = Roles(
            *(_several(perturbed), separator, None if phenotypes is None else _several(phenotypes)),
            *(_several(statistics), id_column),
        )
        table = read_table(Path(path), roles, delimiter=delimiter, encoding=encoding)
        try:
            source = cls(
                base_graph,
                table.perturbed,
                phenotypes=table.phenotypes,
                statistics=table.statistics,
                source_ids=table.source_ids,
                **{"empty": "error", "nan": "error", **policies},
            )
        except SourceContractError as error:
            raise SourceContractError(f"{path}: {error}", path=path) from None
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
        """
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._table.sample(position, self.base_graph)

    def report(self) -> str:
        """What was read as what, and what was left out; a line each."""
        return "\n".join(self.notes)

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
        }


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _ragged_ids(
    perturbations: Any, names: list[str] | None, unknown: str, aliases: Any
) -> tuple[Int64Array, Int64Array]:
    if isinstance(perturbations, NameLists):
        found = resolve(perturbations, NodeNames(names, aliases), unknown)
        return found.ids, found.ptr
    if (
        isinstance(perturbations, tuple)
        and len(perturbations) == 2
        and hasattr(perturbations[1], "__array__")
    ):
        ids, ptr = (np.asarray(part, dtype=np.int64) for part in perturbations)
        return ids.copy(), ptr.copy()
    if hasattr(perturbations, "__array__"):
        grid = np.asarray(perturbations)
        if grid.ndim != 2 or not np.issubdtype(grid.dtype, np.integer):
            raise SourceContractError(
                f"perturbations as an array must be [num_samples, k] integers, got {grid.shape} {grid.dtype}"
            )
        used = grid >= 0
        return grid[used].astype(np.int64), _ptr(used.sum(axis=1))
    nodes: NodeNames | None = None  # ids need no names, and names of nodes may then repeat
    flat: list[int] = []
    counts: list[int] = []
    for row, entries in enumerate(perturbations):
        if isinstance(entries, str):
            raise SourceContractError(f"row {row}: {entries!r} is one text, expected a list of names or ids")
        before = len(flat)
        for entry in entries:
            if not isinstance(entry, str):
                flat.append(int(entry))
                continue
            nodes = NodeNames(names, aliases) if nodes is None else nodes
            node = nodes.find(entry)
            if node < 0 and unknown == "error":
                raise nodes.unknown(entry, f"row {row}")
            if node >= 0:
                flat.append(node)
        counts.append(len(flat) - before)
    return np.asarray(flat, dtype=np.int64), _ptr(np.asarray(counts, dtype=np.int64))


def _ptr(counts: npt.NDArray[Any]) -> Int64Array:
    out = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=out[1:])
    return out


def _sorted_unique(
    ids: Int64Array, ptr: Int64Array, num_nodes: int, names: list[str] | None, duplicate: str
) -> tuple[Int64Array, Int64Array]:
    rows = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    outside = (ids < 0) | (ids >= num_nodes)
    if outside.any():
        at = int(np.argmax(outside))
        raise SourceContractError(f"row {rows[at]}: id {ids[at]} is outside 0..{num_nodes - 1}")
    ids = ids[np.lexsort((ids, rows))]
    repeat = np.zeros(len(ids), dtype=bool)
    repeat[1:] = (ids[1:] == ids[:-1]) & (rows[1:] == rows[:-1])
    if not repeat.any():
        return ids, ptr
    if duplicate == "error":
        at = int(np.argmax(repeat))
        name = ids[at] if names is None else names[ids[at]]
        raise SourceContractError(
            f"row {rows[at]}: {name!r} is given twice", fix='remove it, or pass duplicate="unique"'
        )
    return ids[~repeat], _ptr(np.bincount(rows[~repeat], minlength=len(ptr) - 1))


def _measurements(columns: dict[str, Any], num_samples: int, nan: str) -> tuple[Float32Array, Int64Array]:
    for name, column in columns.items():
        if len(column) != num_samples:
            raise SettingError(f"column '{name}' has {len(column)} values for {num_samples} samples")
    ragged = any(
        isinstance(c[0], list | tuple | np.ndarray) and np.ndim(c[0]) > 0 for c in columns.values() if len(c)
    )
    if not ragged:
        values = np.empty((num_samples, len(columns)), dtype=np.float32)
        for k, column in enumerate(columns.values()):
            values[:, k] = np.asarray(column, dtype=np.float32)
        value_ptr = np.arange(num_samples + 1, dtype=np.int64)
    else:
        lists = [
            [np.atleast_1d(np.asarray(v, dtype=np.float32)) for v in column] for column in columns.values()
        ]
        value_ptr = _ptr(np.array([max(map(len, row)) for row in zip(*lists, strict=True)], dtype=np.int64))
        values = np.full((int(value_ptr[-1]), len(columns)), np.nan, dtype=np.float32)
        for k, column in enumerate(lists):
            for row, measured in enumerate(column):
                values[value_ptr[row] : value_ptr[row] + len(measured), k] = measured
    if nan == "error" and np.isnan(values).any():
        at, k = (int(v[0]) for v in np.nonzero(np.isnan(values)))
        row = int(np.searchsorted(value_ptr, at, side="right")) - 1
        raise SourceContractError(
            f"row {row}: '{list(columns)[k]}' is NaN", fix='drop the row, or pass nan="keep" (no value)'
        )
    return values, value_ptr


def _check_source_ids(source_ids: Sequence[str], num_samples: int) -> None:
    if len(source_ids) != num_samples:
        raise SettingError(f"{len(source_ids)} source_ids for {num_samples} samples")
    seen: dict[str, int] = {}
    for row, name in enumerate(source_ids):
        if not isinstance(name, str):
            raise SourceContractError(f"row {row}: source id {name!r} is not text")
        if name in seen:
            raise SourceContractError(f"duplicate id {name!r} at rows {seen[name]} and {row}")
        seen[name] = row
