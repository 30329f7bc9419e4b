"""Raw rows of a query as samples: torchcell's experiments, or columns that the user names."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any, get_args

import numpy as np

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import OnMalformed
from torchcell_cache.core.ragged import offsets
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.measurements import Float64Array, Measurements, float32_problem
from torchcell_cache.sources.name_lists import NameLists
from torchcell_cache.sources.names import NodeNames
from torchcell_cache.sources.neo4j.raw import Columns
from torchcell_cache.sources.perturbed_nodes import Nodes
from torchcell_cache.sources.sample_rows import Policies, joined, sorted_unique

POLICIES = get_args(OnMalformed)


class Malformed(ValueError):  # noqa: N818 - a signal between two functions, shown as SourceContractError
    """A record is not what it should be."""


@dataclass(slots=True)
class Parsed:
    """One experiment, checked: perturbed names, values by name, and what tells environments apart; ``None`` is no value."""

    genes: list[str]
    labels: dict[str, float | None]
    statistics: dict[str, float | None] = field(default_factory=dict)
    condition: str = ""


def parse_row(columns: Columns | None, values: Sequence[Any]) -> Parsed:
    """A row of columns that the user named, in the order of ``columns.names``, or else torchcell's experiment.

    Raises:
        Malformed: Saying what is wrong.
    """
    if columns is None:
        return parse_experiment(values[0])
    row = dict(zip(columns.names, values, strict=True))
    genes = row[columns.perturbed]
    genes = [genes] if isinstance(genes, str) else genes
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise Malformed(f"column {columns.perturbed!r} is {genes!r}, expected a list of names")
    found = {
        name: number(row[name], f"column {name!r}") for name in (*columns.phenotypes, *columns.statistics)
    }
    labels, statistics = (
        {name: found[name] for name in kind} for kind in (columns.phenotypes, columns.statistics)
    )
    return Parsed(genes, labels, statistics)


def parse_experiment(text: Any) -> Parsed:
    """Torchcell's ``Experiment`` from the JSON of ``serialized_data``.

    ``label_name`` and ``label_statistic_name`` name the fields that are label and statistic; ``label_names`` and
    ``label_statistic_names`` are lists of them. A label that is a dict (CalMorph, expression) gives one column
    per key, ``calmorph.A101_A``.

    Raises:
        Malformed: Saying what is wrong.
    """
    if not isinstance(text, str):
        wrong = "it has no serialized_data"
        raise Malformed(wrong if text is None else f"serialized_data is {type(text).__name__}, expected text")
    try:
        experiment = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"serialized_data is not JSON: {error}") from None
    genotype = _field(experiment, "genotype", dict, "experiment")
    perturbations = _field(genotype, "perturbations", list, "genotype")
    genes = [_field(p, "systematic_gene_name", str, f"perturbation {k}") for k, p in enumerate(perturbations)]
    phenotype = _field(experiment, "phenotype", dict, "experiment")
    labels, statistics = (_numbers(phenotype, what) for what in ("label", "label_statistic"))
    if both := labels.keys() & statistics.keys():
        raise Malformed(f"{min(both)!r} is named as label and as statistic")
    for name in (*genes, *labels, *statistics):
        if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise Malformed(f"{name!r} is not valid Unicode text")
    environment = experiment.get("environment")
    condition = _one_way(json.dumps(environment, sort_keys=True)) if environment else ""
    return Parsed(genes, labels, statistics, condition)


@lru_cache(1024)
def _one_way(environment: str) -> str:
    """An environment in which 30 degrees are 30.0, as the model of torchcell that wrote one of them makes them."""
    return json.dumps(json.loads(environment, parse_int=float))


def _field(value: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(value, dict):
        raise Malformed(f"{where} is {type(value).__name__}, expected an object")
    if key not in value:
        raise Malformed(f"{where} has no {key!r}; it has {sorted(value)[:12]}")
    if not isinstance(value[key], kind):
        raise Malformed(f"{where}.{key} is {type(value[key]).__name__}, expected {kind.__name__}")
    return value[key]


def _numbers(phenotype: Mapping[str, Any], what: str) -> dict[str, float | None]:
    """What is named under ``<what>_names``, ``<what>_name`` or, in older databases, ``<what>``."""
    key = next((k for k in (f"{what}_names", f"{what}_name", what) if phenotype.get(k) is not None), None)
    if key is None and what == "label":
        raise Malformed(f"phenotype has no 'label_name'; it has {sorted(phenotype)[:12]}")
    value = [] if key is None else phenotype[key]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise Malformed(f"phenotype.{key} is {value!r}, expected text or a list of texts")
    out: dict[str, float | None] = {}
    for name in dict.fromkeys(names):
        if name not in phenotype:
            raise Malformed(f"phenotype has no {name!r}, which it names as label or statistic")
        found = phenotype[name]
        parts = (
            {f"{name}.{part}": item for part, item in found.items()}
            if isinstance(found, dict)
            else {name: found}
        )
        if both := out.keys() & parts.keys():
            raise Malformed(f"phenotype has {min(both)!r} twice")
        out |= {part: number(item, part) for part, item in parts.items()}
    return out


def number(value: Any, name: str) -> float | None:
    """``value`` as a float; ``None`` and NaN are no value.

    Raises:
        Malformed: If it is text, a list, ..., or a number that float32 cannot hold.
    """
    if value is None:
        return None
    if not isinstance(value, int | float):  # bool is a label too: 0.0 or 1.0
        raise Malformed(f"{name} is {value!r}, expected a number")
    try:
        out = float(value)
    except OverflowError:
        raise Malformed(f"{name} is too large for a float") from None
    if problem := "is infinite" if math.isinf(out) else float32_problem(value):
        raise Malformed(f"{name} {problem}")
    return None if math.isnan(out) else out


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
        self, nodes: NodeNames, *, replicates: str = "keep", unknown: str = "error", malformed: str = "error"
    ) -> None:
        self.policies = Policies(unknown, replicates=replicates)
        self.malformed = choice("malformed", malformed, POLICIES)
        self.nodes, self._node = nodes, cache(nodes.find)
        self.skipped = {"unknown": 0, "malformed": 0}
        self._lost: dict[str, None] = {}
        self._shortened = self._samples = 0
        self._genes, self._conditions, self._source_ids = dict[str, int](), dict[str, int](), dict[str, int]()
        self._codes, self._counts, self._condition_of = array("q"), array("q"), array("q")
        self._columns: dict[tuple[bool, str], int] = {}
        self._at, self._column, self._value = array("q"), array("q"), array("d")

    def add(self, name: str, parse: Callable[[], Parsed]) -> None:
        """Note a record by its id: what ``parse`` gives, which raises :class:`Malformed` for what is no experiment.

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
        if lost := [gene for gene in parsed.genes if self._node(gene) < 0]:
            if self.policies.unknown == "error":
                fix = 'restrict the query with $gene_set, add the gene to gene_set, or pass unknown="skip"'
                raise self.nodes.unknown(lost[0], f"experiment {name!r}", fix)
            self._lost.update(dict.fromkeys(lost))
            if self.policies.unknown == "skip":
                self.skipped["unknown"] += 1
                return
            self._shortened += 1
        if name in self._source_ids:
            raise SourceContractError(
                f"experiment {name!r} is returned more than once",
                fix="write RETURN DISTINCT, or WITH DISTINCT e, ref",
            )
        row = self._source_ids[name] = len(self._source_ids)
        self._codes.extend(self._genes.setdefault(gene, len(self._genes)) for gene in parsed.genes)
        self._counts.append(len(parsed.genes))
        self._condition_of.append(self._conditions.setdefault(parsed.condition, len(self._conditions)))
        for is_statistic, values in ((False, parsed.labels), (True, parsed.statistics)):
            for label, value in values.items():
                self._at.append(row)
                self._column.append(self._columns.setdefault((is_statistic, label), len(self._columns)))
                self._value.append(np.nan if value is None else value)

    def notes(self) -> tuple[str, ...]:
        """Lines on what was passed over, left out and joined."""
        what = (
            "fewer genes than they say" if self.policies.unknown == "drop" else "a gene that removes nothing"
        )
        no = f"the graph has no {', '.join(map(repr, list(self._lost)[:3]))}"
        left = len(self._counts) - self._samples
        lines = {
            f"{self.skipped['unknown']:,} experiments are left out: {no}": self.skipped["unknown"],
            f"{self._shortened:,} experiments delete {what}: {no}": self._shortened,
            f"{self.skipped['malformed']:,} records are no experiments and are left out": self.skipped[
                "malformed"
            ],
            f"{len(self._counts):,} experiments make {self._samples:,} samples "
            f"(replicates={self.policies.replicates!r})": left,
        }
        return tuple(line for line, count in lines.items() if count)

    def table(self) -> SampleTable:
        """All samples.

        Raises:
            SourceContractError: If a name is a label of one experiment and a statistic of another.
        """
        order = sorted(self._columns, key=lambda key: (key[0], self._columns[key]))
        labels, statistics = (
            tuple(name for kind, name in order if kind is wanted) for wanted in (False, True)
        )
        at, column = (np.asarray(part, dtype=np.int64) for part in (self._at, self._column))
        names, total = list(self._source_ids), len(self._source_ids)
        if both := sorted({*labels} & {*statistics}):
            first = [names[at[np.argmax(column == self._columns[kind, both[0]])]] for kind in (False, True)]
            raise SourceContractError(
                f"{both[0]!r} is a label of experiment {first[0]!r}, a statistic of {first[1]!r}",
                fix="a query for one of the two kinds of experiments",
            )
        place = np.argsort([self._columns[key] for key in order])
        values: Float64Array = np.full((total, len(order)), np.nan, dtype=np.float64)
        values[at, place[column]] = self._value
        codes, counts, conditions = (
            np.asarray(part, dtype=np.int64) for part in (self._codes, self._counts, self._condition_of)
        )
        kept = "keep" if self.policies.unknown == "keep" else "drop"
        lists = NameLists(list(self._genes), codes, offsets(counts))
        found = Nodes(self.nodes.names, len(self.nodes)).found(lists, kept)
        measured = Measurements((*labels, *statistics), values, np.arange(total + 1))
        found = replace(found, given=sorted_unique(found, "unique"))
        table, _ = joined(found, measured, names, len(labels), self.policies, conditions)
        self._samples = len(table)
        return table
