"""Experiments as ragged columns: unknown genes, malformed records and several experiments of one genotype."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np

from torchcell_cache.core.checks import choice
from torchcell_cache.core.ragged import offsets
from torchcell_cache.core.samples import SampleTable, UnknownNames
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.measurements import Float64Array, as_float32
from torchcell_cache.sources.names import UNKNOWN, NodeNames
from torchcell_cache.sources.neo4j.experiments import POLICIES, Malformed, Parsed
from torchcell_cache.sources.replicates import REPLICATES, count_names, means


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
        self._shortened = 0
        self._ids, self._counts = array("q"), array("q")
        self._sample_of: array[int] = array("q")
        self._known: dict[tuple[tuple[int, ...], tuple[str, ...], str], int] = {}
        self._kept: list[tuple[str, ...]] = []
        self._source_ids: dict[str, int] = {}
        self._columns: dict[tuple[bool, str], int] = {}
        self._first_with: dict[tuple[bool, str], str] = {}
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
        found = {gene: self.nodes.find(gene) for gene in parsed.genes}
        lost = [gene for gene, node in found.items() if node < 0]
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
        ids = tuple(sorted({node for node in found.values() if node >= 0}))
        kept = tuple(sorted({gene.strip() for gene in lost})) if self.unknown == "keep" else ()
        self._note(name, self._sample(name, ids, kept, parsed.condition), parsed)

    def _sample(self, name: str, ids: tuple[int, ...], kept: tuple[str, ...], condition: str) -> int:
        sample = len(self._counts)
        if self.replicates != "keep":
            sample = self._known.setdefault((ids, kept, condition), sample)
            if self.replicates == "error" and sample < len(self._counts):
                first = next(known for known, at in self._source_ids.items() if at == sample)
                raise SourceContractError(
                    f"experiments {first!r} and {name!r} delete the same genes in one environment",
                    fix='replicates="mean", "group" or "keep"',
                )
        if name in self._source_ids:
            raise SourceContractError(
                f"experiment {name!r} is returned more than once",
                fix="write RETURN DISTINCT, or WITH DISTINCT e, ref",
            )
        self._source_ids[name] = sample
        if sample == len(self._counts):
            self._ids.extend(ids)
            self._counts.append(len(ids))
            self._kept.append(kept)
        return sample

    def _note(self, experiment: str, sample: int, parsed: Parsed) -> None:
        row = len(self._sample_of)
        self._sample_of.append(sample)
        for is_statistic, values in ((False, parsed.labels), (True, parsed.statistics)):
            for name, value in values.items():
                self._first_with.setdefault((is_statistic, name), experiment)
                column = self._columns.setdefault((is_statistic, name), len(self._columns))
                if value is not None:
                    self._at.append(row)
                    self._column.append(column)
                    self._value.append(value)

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
        if len(self._counts) < len(self._sample_of):
            lines.append(
                f"{len(self._sample_of):,} experiments make {len(self._counts):,} samples "
                f"(replicates={self.replicates!r})"
            )
        return tuple(lines)

    def table(self) -> SampleTable:
        """All samples.

        Raises:
            SourceContractError: If a name is a label of one experiment and a statistic of another.
        """
        order = sorted(self._columns, key=lambda key: (key[0], self._columns[key]))
        phenotypes = [name for is_statistic, name in order if not is_statistic]
        statistics = [name for is_statistic, name in order if is_statistic]
        if both := sorted(set(phenotypes) & set(statistics)):
            label, statistic = (self._first_with[kind, both[0]] for kind in (False, True))
            raise SourceContractError(
                f"{both[0]!r} is a label of experiment {label!r}, a statistic of {statistic!r}",
                fix="a query for one of the two kinds of experiments",
            )
        place = np.empty(len(order), dtype=np.int64)
        place[[self._columns[key] for key in order]] = np.arange(len(order))
        values: Float64Array = np.full((len(self._sample_of), len(order)), np.nan, dtype=np.float64)
        values[np.asarray(self._at, dtype=np.int64), place[np.asarray(self._column, dtype=np.int64)]] = (
            self._value
        )
        owner = np.asarray(self._sample_of, dtype=np.int64)
        first: dict[int, str] = {}
        for name, sample in self._source_ids.items():
            first.setdefault(sample, name)
        if self.replicates == "mean":
            added = count_names(tuple(phenotypes), tuple(statistics))
            values, counts = means(values, owner, len(self._counts), len(phenotypes))
            values = np.concatenate([values, counts], axis=1)
            statistics += added
            owner = np.arange(len(self._counts))
        by_sample = np.argsort(owner, kind="stable")
        return SampleTable(
            ids=np.asarray(self._ids, dtype=np.int64),
            ptr=offsets(np.asarray(self._counts, dtype=np.int64)),
            values=as_float32(values[by_sample]),
            value_ptr=offsets(np.bincount(owner, minlength=len(self._counts))),
            phenotypes=tuple(phenotypes),
            statistics=tuple(statistics),
            source_ids=[first[sample] for sample in range(len(self._counts))],
            unknown=UnknownNames.from_rows(self._kept),
        )
