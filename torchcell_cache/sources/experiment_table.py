"""Experiments as ragged columns: unknown genes, malformed records and several experiments of one genotype."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from torchcell_cache.columns import offsets
from torchcell_cache.errors import SourceContractError
from torchcell_cache.processors.base import choice
from torchcell_cache.record import Float32Array, Int64Array, SampleTable
from torchcell_cache.sources.experiments import DUPLICATES, POLICIES, Malformed, Parsed
from torchcell_cache.sources.names import NodeNames

Float64Array = npt.NDArray[np.float64]


class TableBuilder:
    """Collects experiments one by one.

    Args:
        names: Node names of the base graph; the position is the id.
        duplicates: ``keep`` every experiment as a sample; ``group`` those of one genotype in one environment into a
            sample with several measurements; ``mean`` into one measurement, with the statistic ``<label>_count``.
        unknown: ``error``, or ``skip`` experiments with a gene that the base graph does not have.
        malformed: ``error``, or ``skip`` records that are not experiments.

    Attributes:
        skipped: Number of records passed over, by reason.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        duplicates: str = "keep",
        unknown: str = "error",
        malformed: str = "error",
    ) -> None:
        self.duplicates = choice("duplicates", duplicates, DUPLICATES)
        self.unknown = choice("unknown", unknown, POLICIES)
        self.malformed = choice("malformed", malformed, POLICIES)
        self.nodes = NodeNames(names)
        self.skipped = {"unknown": 0, "malformed": 0}
        self._ids, self._counts = array("q"), array("q")
        self._sample_of: array[int] = array("q")
        self._known: dict[tuple[tuple[int, ...], str], int] = {}
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
        lost = next((gene for gene in parsed.genes if self.nodes.find(gene) < 0), None)
        if lost is not None:
            if self.unknown == "error":
                raise self.nodes.unknown(
                    lost,
                    f"experiment {name!r}",
                    'restrict the query with $gene_set, add the gene to gene_set, or pass unknown="skip"',
                )
            self.skipped["unknown"] += 1
            return
        ids = tuple(sorted({self.nodes.find(gene) for gene in parsed.genes}))
        self._note(self._sample(name, ids, parsed.condition), parsed)

    def _sample(self, name: str, ids: tuple[int, ...], condition: str) -> int:
        sample = len(self._counts)
        if self.duplicates != "keep":
            sample = self._known.setdefault((ids, condition), sample)
        if name in self._source_ids:
            raise SourceContractError(
                f"experiment {name!r} is returned more than once",
                fix="write RETURN DISTINCT, or WITH DISTINCT e, ref",
            )
        self._source_ids[name] = sample
        if sample == len(self._counts):
            self._ids.extend(ids)
            self._counts.append(len(ids))
        return sample

    def _note(self, sample: int, parsed: Parsed) -> None:
        row = len(self._sample_of)
        self._sample_of.append(sample)
        for is_statistic, values in ((False, parsed.labels), (True, parsed.statistics)):
            for name, value in values.items():
                column = self._columns.setdefault((is_statistic, name), len(self._columns))
                if value is not None:
                    self._at.append(row)
                    self._column.append(column)
                    self._value.append(value)

    def table(self) -> SampleTable:
        """All samples.

        Raises:
            SourceContractError: If a name is a label of one experiment and a statistic of another.
        """
        order = sorted(self._columns, key=lambda key: (key[0], self._columns[key]))
        phenotypes = [name for is_statistic, name in order if not is_statistic]
        statistics = [name for is_statistic, name in order if is_statistic]
        if both := sorted(set(phenotypes) & set(statistics)):
            raise SourceContractError(f"{both} are labels of some experiments and statistics of others")
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
        if self.duplicates == "mean":
            values, counts = _means(values, owner, len(self._counts), len(phenotypes))
            values = np.concatenate([values, counts], axis=1)
            statistics += [f"{name}_count" for name in phenotypes]
            owner = np.arange(len(self._counts))
        by_sample = np.argsort(owner, kind="stable")
        return SampleTable(
            ids=np.asarray(self._ids, dtype=np.int64),
            ptr=offsets(np.asarray(self._counts, dtype=np.int64)),
            values=_float32(values[by_sample]),
            value_ptr=offsets(np.bincount(owner, minlength=len(self._counts))),
            phenotypes=tuple(phenotypes),
            statistics=tuple(statistics),
            source_ids=[first[sample] for sample in range(len(self._counts))],
        )


def _float32(values: Float64Array) -> Float32Array:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _means(
    values: Float64Array,
    owner: Int64Array,
    num_samples: int,
    num_labels: int,
) -> tuple[Float64Array, Float64Array]:
    """Mean of every column over the values there are, and how many there were for each label."""
    means = np.full((num_samples, values.shape[1]), np.nan)
    counts = np.zeros((num_samples, num_labels))
    for k in range(values.shape[1]):
        known = ~np.isnan(values[:, k])
        total = np.bincount(owner[known], weights=values[known, k], minlength=num_samples)
        count = np.bincount(owner[known], minlength=num_samples)
        np.divide(total, count, out=means[:, k], where=count > 0)
        if k < num_labels:
            counts[:, k] = count
    return means, counts
