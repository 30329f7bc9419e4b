"""Experiments as ragged columns: unknown genes, malformed records and several experiments of one genotype."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from torchcell_cache.core.checks import choice
from torchcell_cache.core.ragged import offsets
from torchcell_cache.core.samples import SampleTable, without_names
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.measurements import Float64Array, Measurements
from torchcell_cache.sources.name_lists import NameLists
from torchcell_cache.sources.names import UNKNOWN, NodeNames
from torchcell_cache.sources.neo4j.experiments import POLICIES, Malformed, Parsed
from torchcell_cache.sources.perturbed_nodes import Nodes
from torchcell_cache.sources.sample_rows import REPLICATES, Policies, joined, sorted_unique


class TableBuilder:
    """Collects experiments one by one.

    Args:
        nodes: Names of the base graph's nodes.
        replicates: ``keep`` every experiment as a sample; ``group`` those of one genotype in one environment into a
            sample with several measurements; ``mean`` into one measurement, with the statistic ``<label>_count``; or
            ``error``.
        unknown: ``error``; ``skip`` experiments with a gene that the base graph does not have; ``drop`` the gene; or
            ``keep`` its name, for which nothing is removed.
        malformed: ``error``, or ``skip`` records that are not experiments.

    Attributes:
        skipped: Number of records passed over, by reason.
    """

    def __init__(
        self,
        nodes: NodeNames,
        *,
        replicates: str = "keep",
        unknown: str = "error",
        malformed: str = "error",
    ) -> None:
        self.replicates = choice("replicates", replicates, REPLICATES)
        self.unknown = choice("unknown", unknown, UNKNOWN)
        self.malformed = choice("malformed", malformed, POLICIES)
        self.nodes = nodes
        self.skipped = {"unknown": 0, "malformed": 0}
        self._lost: dict[str, None] = {}
        self._shortened = self._samples = 0
        self._genes: dict[str, int] = {}
        self._is_node: list[bool] = []
        self._codes, self._counts, self._condition_of = array("q"), array("q"), array("q")
        self._conditions: dict[str, int] = {}
        self._source_ids: dict[str, int] = {}
        self._columns: dict[tuple[bool, str], int] = {}
        self._at, self._column, self._value = array("q"), array("q"), array("d")

    def add(self, name: str, parse: Callable[[], Parsed]) -> None:
        """Note one record.

        Args:
            name: The experiment's id.
            parse: Gives the experiment, or raises :class:`Malformed`.

        Raises:
            SourceContractError: Naming the experiment.
        """
        try:
            parsed = parse()
        except Malformed as error:
            if self.malformed == "error":
                raise SourceContractError(
                    f"experiment {name!r}: {error}", fix='correct the record, or pass malformed="skip"'
                ) from None
            self.skipped["malformed"] += 1
            return
        codes = [self._genes.setdefault(gene, len(self._genes)) for gene in parsed.genes]
        for gene, code in zip(parsed.genes, codes, strict=True):
            if code == len(self._is_node):
                self._is_node.append(self.nodes.find(gene) >= 0)
        lost = [gene for gene, code in zip(parsed.genes, codes, strict=True) if not self._is_node[code]]
        if lost:
            if self.unknown == "error":
                raise self.nodes.unknown(
                    lost[0],
                    f"experiment {name!r}",
                    'restrict the query with $gene_set, add the gene to gene_set, or pass unknown="skip"',
                )
            self._lost.update(dict.fromkeys(lost))
            if self.unknown == "skip":
                self.skipped["unknown"] += 1
                return
            self._shortened += 1
        if name in self._source_ids:
            raise SourceContractError(
                f"experiment {name!r} is returned more than once",
                fix="write RETURN DISTINCT, or WITH DISTINCT e, ref",
            )
        row = self._source_ids[name] = len(self._source_ids)
        self._codes.extend(codes)
        self._counts.append(len(codes))
        self._condition_of.append(self._conditions.setdefault(parsed.condition, len(self._conditions)))
        for is_statistic, values in ((False, parsed.labels), (True, parsed.statistics)):
            for label, value in values.items():
                self._at.append(row)
                self._column.append(self._columns.setdefault((is_statistic, label), len(self._columns)))
                self._value.append(np.nan if value is None else value)

    def notes(self) -> tuple[str, ...]:
        """Lines on what was passed over, left out and joined."""
        lines = []
        examples = ", ".join(map(repr, list(self._lost)[:3]))
        if self.skipped["unknown"]:
            lines.append(f"{self.skipped['unknown']:,} experiments are left out: the graph has no {examples}")
        if self._shortened:
            what = "fewer genes than they say" if self.unknown == "drop" else "a gene that removes nothing"
            lines.append(f"{self._shortened:,} experiments delete {what}: the graph has no {examples}")
        if self.skipped["malformed"]:
            lines.append(f"{self.skipped['malformed']:,} records are no experiments and are left out")
        if self._samples < len(self._counts):
            joined = f"{len(self._counts):,} experiments make {self._samples:,} samples"
            lines.append(f"{joined} (replicates={self.replicates!r})")
        return tuple(lines)

    def table(self) -> SampleTable:
        """All samples.

        Raises:
            SourceContractError: If a name is a label of one experiment and a statistic of another.
        """
        order = sorted(self._columns, key=lambda key: (key[0], self._columns[key]))
        phenotypes = tuple(name for is_statistic, name in order if not is_statistic)
        statistics = tuple(name for is_statistic, name in order if is_statistic)
        at, column = (np.asarray(part, dtype=np.int64) for part in (self._at, self._column))
        names, total = list(self._source_ids), len(self._source_ids)
        if both := sorted(set(phenotypes) & set(statistics)):
            first = [names[at[np.argmax(column == self._columns[kind, both[0]])]] for kind in (False, True)]
            raise SourceContractError(
                f"{both[0]!r} is a label of experiment {first[0]!r}, a statistic of {first[1]!r}",
                fix="a query for one of the two kinds of experiments",
            )
        place = np.argsort([self._columns[key] for key in order])
        values: Float64Array = np.full((total, len(order)), np.nan, dtype=np.float64)
        values[at, place[column]] = self._value
        counts = np.asarray(self._counts, dtype=np.int64)
        lists = NameLists(list(self._genes), np.asarray(self._codes, dtype=np.int64), offsets(counts))
        kept = "keep" if self.unknown == "keep" else "drop"
        found, _, _ = Nodes(self.nodes.names, len(self.nodes)).found(lists, kept)
        rows = np.arange(total)
        table, _ = joined(
            sorted_unique(found.given, rows, found.names, "unique"),
            Measurements((*phenotypes, *statistics), values, np.arange(total + 1)),
            *(names, rows, (phenotypes, statistics), Policies(replicates=self.replicates)),
            np.asarray(self._condition_of, dtype=np.int64),
        )
        self._samples = len(table)
        ids, ptr, unknown = without_names(table.ids, table.ptr, found.first, found.names[found.first :])
        return replace(table, ids=ids, ptr=ptr, unknown=unknown)
