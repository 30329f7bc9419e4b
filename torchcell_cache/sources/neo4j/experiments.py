"""Raw rows of a query as samples: torchcell's experiments, or columns that the user names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_args

from torchcell_cache.core.choices import OnMalformed
from torchcell_cache.errors import SettingError
from torchcell_cache.sources.measurements import float32_problem

_KEYS = ("id", "perturbed", "phenotypes", "statistics")
POLICIES = get_args(OnMalformed)


class Malformed(ValueError):  # noqa: N818 - a signal between two functions, shown as SourceContractError
    """A record is not what it should be."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a query's result means what.

    Attributes:
        id: Column of the experiment's id, text or integer.
        perturbed: Column of the perturbed names: a list, or one name.
        phenotypes: Columns of labels, numbers or null.
        statistics: Columns of statistics, numbers or null.
    """

    id: str
    perturbed: str
    phenotypes: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any] | Columns | None) -> Columns | None:
        """From the argument ``columns``.

        Raises:
            SettingError: If a key is missing or unknown, or two meanings share a column.
        """
        if given is None or isinstance(given, Columns):
            return given
        fix = "columns={'id': 'id', 'perturbed': 'genes', 'phenotypes': ['fitness'], 'statistics': []}"
        if not isinstance(given, Mapping):
            raise SettingError(f"columns is {type(given).__name__}, expected a mapping", fix=fix)
        unknown = sorted(map(str, given.keys() - set(_KEYS)))
        missing = [key for key in ("id", "perturbed") if not given.get(key)]
        if unknown or missing:
            raise SettingError(f"columns: missing {missing}, unknown {unknown}", fix=fix)
        names: dict[str, tuple[str, ...]] = {}
        for key, value in given.items():
            several = key in ("phenotypes", "statistics") and not isinstance(value, str | Set | Mapping)
            found = list(value) if several and isinstance(value, Iterable) else [value] * (value is not None)
            if not all(isinstance(name, str) for name in found):
                in_order = ", which has no order" if isinstance(value, Set) else ""
                raise SettingError(
                    f"columns: {key} is {value!r:.200}{in_order}, expected names of columns", fix=fix
                )
            names[key] = tuple(found)
        labels = [*names.get("phenotypes", ()), *names.get("statistics", ())]
        if len(set(labels)) != len(labels):
            raise SettingError(f"columns: {sorted(labels)} names a column twice")
        return cls(
            names["id"][0], names["perturbed"][0], names.get("phenotypes", ()), names.get("statistics", ())
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, each once, in the order in which a raw record holds them."""
        return tuple(dict.fromkeys((self.id, self.perturbed, *self.phenotypes, *self.statistics)))


@dataclass(slots=True)
class Parsed:
    """One experiment, checked.

    Attributes:
        genes: Perturbed names.
        labels: Phenotype values by name; ``None`` is no value.
        statistics: Statistic values by name.
        condition: What tells environments apart, as text.
    """

    genes: list[str]
    labels: dict[str, float | None]
    statistics: dict[str, float | None] = field(default_factory=dict)
    condition: str = ""


def parse_experiment(text: Any) -> Parsed:
    """Torchcell's ``Experiment`` from the JSON of ``serialized_data``.

    ``label_name`` and ``label_statistic_name`` name the fields that are label and statistic; ``label_names`` and
    ``label_statistic_names`` are lists of them. A label that is a dict (CalMorph, expression) gives one column
    per key, ``calmorph.A101_A``.

    Raises:
        Malformed: Saying what is wrong.
    """
    if text is None:
        raise Malformed("it has no serialized_data")
    if not isinstance(text, str):
        raise Malformed(f"serialized_data is {type(text).__name__}, expected text")
    try:
        experiment = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"serialized_data is not JSON: {error}") from None
    genotype = _field(experiment, "genotype", dict, "experiment")
    genes = [
        _field(item, "systematic_gene_name", str, f"perturbation {k}")
        for k, item in enumerate(_field(genotype, "perturbations", list, "genotype"))
    ]
    phenotype = _field(experiment, "phenotype", dict, "experiment")
    labels = _numbers(phenotype, _names(phenotype, "label", required=True))
    statistics = _numbers(phenotype, _names(phenotype, "label_statistic", required=False))
    if both := labels.keys() & statistics.keys():
        raise Malformed(f"{min(both)!r} is named as label and as statistic")
    if wrong := next((name for name in (*genes, *labels, *statistics) if not _is_unicode(name)), None):
        raise Malformed(f"{wrong!r} is not valid Unicode text")
    environment = experiment.get("environment")
    condition = _one_way(json.dumps(environment, sort_keys=True)) if environment else ""
    return Parsed(genes, labels, statistics, condition)


@lru_cache(1024)
def _one_way(environment: str) -> str:
    """An environment in which 30 degrees are 30.0, as the model of torchcell that wrote one of them makes them."""
    return json.dumps(json.loads(environment, parse_int=float))


def _is_unicode(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _field(value: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(value, dict):
        raise Malformed(f"{where} is {type(value).__name__}, expected an object")
    if key not in value:
        raise Malformed(f"{where} has no {key!r}; it has {sorted(value)[:12]}")
    if not isinstance(value[key], kind):
        raise Malformed(f"{where}.{key} is {type(value[key]).__name__}, expected {kind.__name__}")
    return value[key]


def _names(phenotype: dict[str, Any], what: str, required: bool) -> list[str]:
    """Names under ``<what>_names``, ``<what>_name`` or, in older databases, ``<what>``."""
    for key in (f"{what}_names", f"{what}_name", what):
        value = phenotype.get(key)
        if value is None:
            continue
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise Malformed(f"phenotype.{key} is {value!r}, expected text or a list of texts")
        return names
    if required:
        raise Malformed(f"phenotype has no 'label_name'; it has {sorted(phenotype)[:12]}")
    return []


def _numbers(phenotype: Mapping[str, Any], names: Sequence[str]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for name in dict.fromkeys(names):
        if name not in phenotype:
            raise Malformed(f"phenotype has no {name!r}, which it names as label or statistic")
        value = phenotype[name]
        parts = (
            {f"{name}.{key}": item for key, item in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        for key, item in parts.items():
            if key in out:
                raise Malformed(f"phenotype has {key!r} twice")
            out[key] = number(item, key)
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
    problem = "is infinite" if math.isinf(out) else float32_problem(value)
    if problem:
        raise Malformed(f"{name} {problem}")
    return None if math.isnan(out) else out


def parse_row(columns: Columns, values: Sequence[Any]) -> Parsed:
    """A row of a query whose columns the user named; values in the order of ``columns.names``.

    Raises:
        Malformed: Saying what is wrong.
    """
    row = dict(zip(columns.names, values, strict=True))
    genes = row[columns.perturbed]
    genes = [genes] if isinstance(genes, str) else genes
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
        raise Malformed(f"column {columns.perturbed!r} is {genes!r}, expected a list of names")
    return Parsed(
        genes,
        {name: number(row[name], f"column {name!r}") for name in columns.phenotypes},
        {name: number(row[name], f"column {name!r}") for name in columns.statistics},
    )
