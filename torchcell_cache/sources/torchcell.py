"""torchcell's own dataset as a source, recognised by what it offers; torchcell itself is never imported.

Its raw records are read once, as plain JSON: perturbed names, labels by phenotype class, statistics, and what torchcell's
indices are made of.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from torchcell_cache.core.origins import Origins
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.core.samples import SampleTable, UnknownNames, without_names
from torchcell_cache.errors import SourceContractError
from torchcell_cache.processors.deletion import node_names
from torchcell_cache.sources.table import PerturbationTable

_METHODS = (
    "_init_lmdb_read",
    "_read_from_lmdb",
    "_deserialize_json",
    "_reconstruct_experiments",
    "close_lmdb",
)
_read: WeakKeyDictionary[Any, tuple[Any, TorchcellSource]] = WeakKeyDictionary()


def torchcell_source(dataset: Any) -> TorchcellSource | None:
    """The source of a dataset that offers what torchcell's does, read once; ``None`` for anything else."""
    if not all(callable(getattr(type(dataset), name, None)) for name in _METHODS):
        return None
    state = dataset.cell_graph, [*dataset.phenotype_info], len(dataset)
    known = _read.get(dataset)
    if known is None or known[0][0] is not state[0] or known[0][1:] != state[1:]:
        known = _read[dataset] = state, TorchcellSource(dataset)
    return known[1]


class TorchcellSource(PerturbationTable):
    """Samples of torchcell's ``Neo4jCellDataset``, measurements of one genotype each; names that no node has are kept.

    Args:
        dataset: torchcell's dataset; a processor of its own is not used.

    Attributes:
        unlike: Why one number per label does not tell all of a sample, or ``None``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.base_graph, self.node_type = dataset, dataset.cell_graph, "gene"
        reader = _Reader(dataset)
        self._table, self.unlike = reader.table(dataset), reader.unlike
        if (unknown := self._table.unknown) is not None:
            count, name = int((np.diff(unknown.ptr) > 0).sum()), unknown.names[unknown.codes[0]]
            self.notes = (
                f"{count:,} samples perturb a gene that removes nothing: the graph has no {name!r}",
            )

    def __repr__(self) -> str:
        return f"TorchcellSource({len(self)}, phenotypes={list(self._table.phenotypes)})"

    @property
    def phenotype_info(self) -> list[Any]:
        """Torchcell's phenotype classes."""
        return list(self.dataset.phenotype_info)

    def in_order(self, phenotypes: Sequence[str], statistics: Sequence[str]) -> TorchcellSource:
        """With labels and statistics in a store's order: ``phenotype_info`` may have another one in each process."""
        table = self._table
        if {*phenotypes} != {*table.phenotypes} or {*statistics} != {*table.statistics}:
            return self
        moved = TorchcellSource.__new__(TorchcellSource)
        vars(moved).update(vars(self), _table=_in_order(table, phenotypes, statistics))
        return moved

    def identity(self) -> dict[str, Any]:
        """Digests of every column, whatever the order of labels."""
        table = _in_order(self._table, sorted(self._table.phenotypes), sorted(self._table.statistics))
        assert table.origins is not None
        columns = PerturbationTable.of_table(self.base_graph, table, self.node_type).identity()
        return {**columns, "class": "TorchcellSource", "origins": table.origins.digest()}


def _in_order(table: SampleTable, phenotypes: Sequence[str], statistics: Sequence[str]) -> SampleTable:
    at, width = [table.phenotypes.index(name) for name in phenotypes], len(table.phenotypes)
    columns = [*at, *(width + table.statistics.index(name) for name in statistics)]
    return replace(
        table,
        values=np.ascontiguousarray(table.values[:, columns]),
        phenotypes=tuple(phenotypes),
        statistics=tuple(statistics),
        origins=None if table.origins is None else table.origins.in_order(at),
    )


def records_of(dataset: Any, index: int) -> list[dict[str, Any]]:
    """A sample's records as plain JSON. Opened only if it is not: LMDB refuses a path a second time in one process."""
    if dataset.env is None:
        dataset._init_lmdb_read()
    data = dataset._read_from_lmdb(index)
    if data is None:
        raise SourceContractError(f"{type(dataset).__name__} has no record of sample {index}")
    records: list[dict[str, Any]] = dataset._deserialize_json(data)
    return records


def placed(
    words: Sequence[str], codes: Int64Array, owner: Int64Array, count: int, base_graph: Any
) -> tuple[Int64Array, Int64Array, UnknownNames | None]:
    """Nodes of each of ``count`` samples, ascending, their offsets, and the names that no node has.

    Args:
        words: Names.
        codes: Positions in ``words``, ``[n] int64``.
        owner: Sample of each, ascending, ``[n] int64``.
        count: Number of samples.
        base_graph: The graph with ``gene.node_ids``.
    """
    known = node_names(base_graph["gene"]) or []
    nodes = {name: k for k, name in enumerate(known)}
    others, first = sorted({*words} - nodes.keys()), len(known)
    nodes |= {name: first + k for k, name in enumerate(others)}
    width = first + len(others)
    found = np.unique(owner * width + np.array([nodes[word] for word in words], dtype=np.int64)[codes])
    ptr = offsets(np.bincount(found // max(width, 1), minlength=count))
    return without_names(found % max(width, 1), ptr, first, others)


class _Reader:
    """All records of a dataset as columns."""

    def __init__(self, dataset: Any) -> None:
        self.phenotypes = [cls.model_fields["label_name"].default for cls in dataset.phenotype_info]
        named = [cls.model_fields["label_statistic_name"].default for cls in dataset.phenotype_info]
        self.statistics = list(dict.fromkeys(name for name in named if name))
        self.unlike = (
            None if len(self.statistics) == sum(map(bool, named)) else "two labels share a statistic"
        )
        self.words: dict[str, int] = {}
        self.codes = {name: array("q") for name in ("dataset", "label", "gene", "kind")}
        self.measured, self.perturbed, self.values = array("q"), array("q"), array("d")
        count = len(dataset)  # closes the environment, so before the first read
        try:
            for index in range(count):
                self._sample(index, records_of(dataset, index))
        finally:
            dataset.close_lmdb()

    def _sample(self, index: int, records: list[dict[str, Any]]) -> None:
        for record in records:
            experiment = record["experiment"]
            try:
                perturbations = experiment["genotype"]["perturbations"]
            except TypeError:
                raise SourceContractError(f"sample {index}: an experiment has several genotypes") from None
            for perturbation in perturbations:
                self._code("gene", perturbation["systematic_gene_name"])
                self._code("kind", perturbation["perturbation_type"])
            self.perturbed.append(len(perturbations))
            self._code("dataset", experiment["dataset_name"])
            self._code("label", experiment["phenotype"]["label_name"])
            for name in (*self.phenotypes, *self.statistics):
                value = experiment["phenotype"].get(name)
                is_number = isinstance(value, int | float)
                if value is not None and (value != value or not is_number):
                    what = "NaN" if is_number else f"a {type(value).__name__}"
                    self.unlike = self.unlike or f"{name!r} is {what} in some record"
                self.values.append(float(value) if is_number else float("nan"))
        self.measured.append(len(records))

    def _code(self, field: str, word: str) -> None:
        self.codes[field].append(self.words.setdefault(word, len(self.words)))

    def table(self, dataset: Any) -> SampleTable:
        """What was read."""
        count, labels = len(self.measured), len(self.phenotypes)
        values = np.array(self.values).reshape(sum(self.measured), labels + len(self.statistics))
        measured, perturbed = (np.array(part, dtype=np.int64) for part in (self.measured, self.perturbed))
        last = np.full((count, labels), np.nan)
        owner = np.repeat(np.arange(count), measured)
        for k in range(labels):
            known = ~np.isnan(values[:, k])
            last[owner[known], k] = values[known, k]  # of several, the last one stays
        genes = np.array(self.codes["gene"], dtype=np.int64)
        ids, ptr, unknown = placed(
            [*self.words], genes, np.repeat(owner, perturbed), count, dataset.cell_graph
        )
        texts = {
            "classes": [cls.__name__ for cls in dataset.phenotype_info],
            "gene_set": sorted({*map(str, dataset.gene_set)}),
        }
        codes: dict[str, Any] = dict(self.codes)
        codes |= {f: [self.words.setdefault(w, len(self.words)) for w in part] for f, part in texts.items()}
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float32)
        return SampleTable(
            *(ids, ptr, numbers, offsets(measured), tuple(self.phenotypes), tuple(self.statistics)),
            unknown=unknown,
            origins=Origins.from_words(list(self.words), codes, offsets(perturbed), last),
        )
