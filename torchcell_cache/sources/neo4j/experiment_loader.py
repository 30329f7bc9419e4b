"""Rows of knock-outs into a graph database, in torchcell's schema."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from typing import Any

from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.progress import Progress
from torchcell_cache.errors import SettingError, SourceContractError

_CREATE = {
    "Dataset": "UNWIND $rows AS r CREATE (n:Dataset {id: r.id})",
    "Perturbation": (
        "UNWIND $rows AS r CREATE (n:Perturbation {id: r.id, systematic_gene_name: r.gene, "
        "perturbed_gene_name: r.gene, perturbation_type: r.type, serialized_data: r.data})"
    ),
    "Media": "UNWIND $rows AS r CREATE (n:Media {id: r.id, name: r.name, state: r.state})",
    "Temperature": "UNWIND $rows AS r CREATE (n:Temperature {id: r.id, value: r.value, unit: 'Celsius'})",
    "Environment": (
        "UNWIND $rows AS r MATCH (m:Media {id: r.media}) MATCH (t:Temperature {id: r.temperature}) "
        "CREATE (n:Environment {id: r.id, serialized_data: r.data}) "
        "CREATE (m)-[:MediaMemberOf]->(n) CREATE (t)-[:TemperatureMemberOf]->(n)"
    ),
    "ExperimentReference": "UNWIND $rows AS r CREATE (n:ExperimentReference {id: r.id, serialized_data: r.data})",
    "Genotype": (
        "UNWIND $rows AS r CREATE (n:Genotype {id: r.id, systematic_gene_names: r.genes}) "
        "WITH n, r UNWIND r.perturbations AS p MATCH (m:Perturbation {id: p}) "
        "CREATE (m)-[:PerturbationMemberOf]->(n)"
    ),
    "PhenotypicFeature": (
        "UNWIND $rows AS r CREATE (n:PhenotypicFeature {id: r.id, graph_level: r.level, label_name: r.label, "
        "serialized_data: r.data})"
    ),
    "Experiment": (
        "UNWIND $rows AS r "
        "MATCH (d:Dataset {id: r.dataset}) MATCH (g:Genotype {id: r.genotype}) "
        "MATCH (f:PhenotypicFeature {id: r.phenotype}) MATCH (v:Environment {id: r.environment}) "
        "MATCH (x:ExperimentReference {id: r.reference}) "
        "CREATE (e:Experiment {id: r.id, serialized_data: r.data, dataset_id: r.dataset}) "
        "CREATE (e)-[:ExperimentMemberOf]->(d) CREATE (g)-[:GenotypeMemberOf]->(e) "
        "CREATE (f)-[:PhenotypeMemberOf]->(e) CREATE (v)-[:EnvironmentMemberOf]->(e) "
        "CREATE (x)-[:ExperimentReferenceOf]->(e)"
    ),
}
"""Statement per label, in an order in which everything a statement refers to is there already."""

_MANY = ("Genotype", "PhenotypicFeature", "Experiment")
_TEXTS = {
    "dataset": None, "graph_level": "global", "experiment_type": "fitness", "perturbation_type": "deletion",
    "media": "YEPD", "state": "solid",
}  # fmt: skip
"""What a row may say in text, and what it says if it does not."""
_TAKEN = (
    "graph_level", "label_name", "label_statistic_name", "label_names", "label_statistic_names", "label",
    "label_statistic",
)  # fmt: skip
"""Fields of a phenotype that are no labels."""

Nodes = dict[str, dict[str, dict[str, Any]]]


def load_experiments(
    uri: str | None = None,
    rows: Iterable[Mapping[str, Any]] = (),
    *,
    username: str | None = None,
    password: str | None = None,
    database: str | None = None,
    dataset: str = "experiments",
    batch_size: int = 500,
    progress: bool = True,
) -> int:
    """Write experiments into a graph database; ids that are there already are left as they are.

    Args:
        uri: Address; this and the credentials come from the environment if ``None``, see ``Neo4jCellDataset``.
        rows: One mapping per experiment: ``id`` (text), ``genes`` (names), ``labels`` and, optionally, ``statistics``
            (numbers by name; a statistic ``<label>_...`` belongs to that label). Optional: ``dataset``,
            ``graph_level`` (``global``), ``experiment_type`` (``fitness``), ``perturbation_type`` (``deletion``),
            ``media`` (``YEPD``), ``state`` (``solid``), ``temperature`` (30.0, Celsius). Any iterable, read once.
        username: User.
        password: Password.
        database: Database.
        dataset: ``Dataset`` the experiments belong to, unless a row names another.
        batch_size: Rows sent at a time.
        progress: Whether to print progress.

    Returns:
        Number of rows written.

    Raises:
        SourceContractError: If a row lacks a key, holds a value of another type, or has the id of an earlier row.
        SettingError: If user, password or database are wrong.
        SourceUnavailableError: If the server cannot be reached.

    Example:
        >>> tc.sources.load_experiments("bolt://localhost:7687", rows)  # doctest: +SKIP
    """
    from torchcell_cache.sources.neo4j.driver import Login, writing

    if isinstance(rows, str | bytes | Mapping) or hasattr(rows, "columns") or not isinstance(rows, Iterable):
        raise SettingError(
            f"rows is {type(rows).__name__}, expected one mapping per experiment",
            fix="rows=frame.to_dict('records')" if hasattr(rows, "columns") else "rows=[row]",
        )
    batch_size, total = whole_number("batch_size", batch_size, 1), len(rows) if isinstance(rows, Sized) else 0
    remaining, first = iter(rows), dict[str, int]()
    with (
        writing(Login.from_settings(uri, username, password, database)) as run,
        Progress(total, 0, None, enabled=progress and total > 0, what="load experiments") as meter,
    ):
        known: dict[str, set[str]] = {label: set() for label in _CREATE}
        while chunk := list(islice(remaining, batch_size)):
            nodes: Nodes = {label: {} for label in _CREATE}
            for number, row in enumerate(chunk, meter.done):
                try:
                    _note_experiment(row, dataset, nodes)
                except (KeyError, TypeError, ValueError) as error:
                    raise SourceContractError(
                        f"row {number}: {type(error).__name__}: {error}",
                        fix="a row is {'id': text, 'genes': [names], 'labels': {name: number}, 'statistics': {name: number}}",
                    ) from None
                if (before := first.setdefault(row["id"], number)) != number:
                    said = f"row {number}: id {row['id']!r} is that of row {before}"
                    raise SourceContractError(said, fix="give each row an id of its own")
            for label, statement in _CREATE.items():
                if not meter.done:
                    of = f"unique_{label} IF NOT EXISTS FOR (n:{label})"
                    run(f"CREATE CONSTRAINT {of} REQUIRE n.id IS UNIQUE", optional=True)
                ids = [key for key in nodes[label] if key not in known[label]]
                which = f"MATCH (n:{label}) WHERE n.id IN $ids RETURN n.id AS id"
                there = {found["id"] for found in run(which, {"ids": ids})} if ids else set()
                if new := [nodes[label][key] for key in ids if key not in there]:
                    run(statement, {"rows": new})
                if label not in _MANY:  # what grows with the experiments is not kept in mind
                    known[label].update(nodes[label])
            meter(len(chunk))
    return meter.done


def experiment_json(row: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """A row as torchcell's ``Experiment``, the JSON in ``serialized_data``."""
    texts = {key: row.get(key, other) for key, other in {**_TEXTS, "dataset": dataset}.items()}
    if wrong := next((key for key, value in texts.items() if not isinstance(value, str)), None):
        raise TypeError(f"{wrong} is {texts[wrong]!r}, expected text")
    labels, statistics = _numbers(row["labels"], "label"), _numbers(row.get("statistics") or {}, "statistic")
    if taken := next((name for name in (*labels, *statistics) if name in _TAKEN), None):
        raise ValueError(f"{taken!r} is a field of each phenotype, rename the label")
    if both := labels.keys() & statistics.keys():
        raise ValueError(f"{min(both)!r} is a label and a statistic")
    of_label = [next((s for s in statistics if s.startswith(f"{label}_")), None) for label in labels]
    phenotype: dict[str, Any] = {"graph_level": texts["graph_level"]}
    phenotype |= {"label_name": next(iter(labels), None), "label_statistic_name": next(iter(of_label), None)}
    phenotype |= {**labels, **statistics}
    if len(labels) > 1 or len(statistics) > sum(name is not None for name in of_label):
        phenotype |= {"label_names": list(labels), "label_statistic_names": list(statistics)}
    temperature = _number(row.get("temperature", 30.0), "temperature")
    if temperature is None:
        raise TypeError(f"temperature is {row['temperature']!r}, expected a number")
    kind = {"perturbation_type": texts["perturbation_type"]}
    genes = [{"systematic_gene_name": g, "perturbed_gene_name": g, **kind} for g in sorted(row["genes"])]
    return {
        "experiment_type": texts["experiment_type"],
        "dataset_name": texts["dataset"],
        "genotype": {"perturbations": genes},
        "environment": {
            "media": {"name": texts["media"], "state": texts["state"]},
            "temperature": {"value": float(temperature), "unit": "Celsius"},
        },
        "phenotype": phenotype,
    }


def _numbers(given: Any, what: str) -> dict[str, Any]:
    try:
        items = dict(given).items()
    except (TypeError, ValueError):
        raise TypeError(f"{what}s is {given!r:.200}, expected numbers by name") from None
    return {str(name): _number(value, f"{what} {name!r}") for name, value in items}


def _number(value: Any, what: str) -> int | float | None:
    """A plain number, ``None`` for none: values of numpy, pandas and torch have no JSON, NaN and infinity neither."""
    plain = value.item() if hasattr(value, "item") else value
    if plain is None or (isinstance(plain, float) and math.isnan(plain)):
        return None
    if not isinstance(plain, int | float) or (isinstance(plain, float) and math.isinf(plain)):
        raise TypeError(f"{what} is {value!r}, expected a number or None")
    return plain


def _note_experiment(row: Mapping[str, Any], dataset: str, nodes: Nodes) -> None:
    """Note an experiment and all nodes it needs."""
    if not isinstance(row, Mapping):
        raise TypeError(f"it is {type(row).__name__}, expected a mapping")
    genes = row["genes"]
    if (
        not isinstance(row["id"], str)
        or not row["id"]
        or isinstance(genes, str)
        or not isinstance(genes, Iterable)
    ):
        raise TypeError(f"id is {row['id']!r}, genes is {genes!r:.200}, expected a text and a list of names")
    genes = sorted(genes, key=str)
    if odd := [gene for gene in genes if not isinstance(gene, str) or not gene.strip()]:
        raise TypeError(f"gene {odd[0]!r} is no {'name' if isinstance(odd[0], str) else 'text'}")

    def note(label: str, content: Any, /, **properties: Any) -> str:
        """Id of a shared node, made from its content as torchcell does."""
        key = hashlib.sha256(_text(content).encode()).hexdigest()
        nodes[label].setdefault(key, {"id": key, **properties})
        return key

    experiment = experiment_json({**row, "genes": genes}, dataset)
    environment, phenotype, name = (experiment[key] for key in ("environment", "phenotype", "dataset_name"))
    media, temperature = environment["media"], environment["temperature"]
    said = row["id"] + (data := _text(experiment))
    if wrong := next((letter for letter in said if "\ud800" <= letter <= "\udfff"), None):
        raise ValueError(f"{wrong!r} is not valid Unicode")
    perturbations = [
        note("Perturbation", p, gene=p["systematic_gene_name"], type=p["perturbation_type"], data=_text(p))
        for p in experiment["genotype"]["perturbations"]
    ]
    reference = {
        "experiment_reference_type": experiment["experiment_type"],
        "dataset_name": name,
        "environment_reference": environment,
    }
    where = {
        "media": note("Media", media, **media),
        "temperature": note("Temperature", temperature, value=temperature["value"]),
    }
    feature = {"level": phenotype["graph_level"], "label": phenotype["label_name"], "data": _text(phenotype)}
    nodes["Dataset"].setdefault(name, {"id": name})
    nodes["Experiment"][row["id"]] = {
        **{"id": row["id"], "data": data, "dataset": name},
        "genotype": note("Genotype", perturbations, perturbations=perturbations, genes=genes),
        "environment": note("Environment", environment, **where, data=_text(environment)),
        "reference": note("ExperimentReference", reference, data=_text(reference)),
        "phenotype": note("PhenotypicFeature", phenotype, **feature),
    }


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
