"""Rows of knock-outs into a graph database, in torchcell's schema."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from typing import Any

from torchcell_cache.core.progress import Progress
from torchcell_cache.errors import SourceContractError

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

_THERE = {label: f"MATCH (n:{label}) WHERE n.id IN $ids RETURN n.id AS id" for label in _CREATE}
_UNIQUE = {
    label: f"CREATE CONSTRAINT unique_{label} IF NOT EXISTS FOR (n:{label}) REQUIRE n.id IS UNIQUE"
    for label in _CREATE
}
_MANY = ("Genotype", "PhenotypicFeature", "Experiment")

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
    """
    from torchcell_cache.sources.neo4j.driver import Login, writing

    login = Login.of(uri, username, password, database)
    total = len(rows) if isinstance(rows, Sized) else 0
    with writing(login) as run:
        for statement in _UNIQUE.values():
            run(statement, optional=True)
        meter = Progress(total, 0, None, enabled=progress and total > 0, what="load experiments")
        first: dict[str, int] = {}
        known: dict[str, set[str]] = {label: set() for label in _CREATE}
        source = iter(rows)
        while chunk := list(islice(source, batch_size)):
            nodes: Nodes = {label: {} for label in _CREATE}
            for k, row in enumerate(chunk):
                number = meter.done + k
                _note_experiment(row, dataset, nodes, number)
                if (before := first.setdefault(row["id"], number)) != number:
                    raise SourceContractError(
                        f"row {number}: id {row['id']!r} is that of row {before}",
                        fix="give each row an id of its own",
                    )
            for label, statement in _CREATE.items():
                new = [node for key, node in nodes[label].items() if key not in known[label]]
                there = (
                    {row["id"] for row in run(_THERE[label], {"ids": [n["id"] for n in new]})}
                    if new
                    else set()
                )
                if new := [node for node in new if node["id"] not in there]:
                    run(statement, {"rows": new})
                if label not in _MANY:  # what grows with the experiments is not kept in mind
                    known[label].update(nodes[label])
            meter(len(chunk))
        meter.close("complete")
    return meter.done


def experiment_json(row: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """A row as torchcell's ``Experiment``, the JSON in ``serialized_data``."""
    labels, statistics = _numbers(row["labels"], "label"), _numbers(row.get("statistics") or {}, "statistic")
    kind = row.get("perturbation_type", "deletion")
    names, of_label = list(labels), {}
    for label in names:
        of_label[label] = next((s for s in statistics if s.startswith(f"{label}_")), None)
    phenotype: dict[str, Any] = {
        "graph_level": row.get("graph_level", "global"),
        "label_name": names[0] if names else None,
        "label_statistic_name": of_label[names[0]] if names else None,
        **labels,
        **statistics,
    }
    if len(names) > 1 or len(statistics) > sum(name is not None for name in of_label.values()):
        phenotype["label_names"], phenotype["label_statistic_names"] = names, list(statistics)
    return {
        "experiment_type": row.get("experiment_type", "fitness"),
        "dataset_name": row.get("dataset", dataset),
        "genotype": {
            "perturbations": [
                {"systematic_gene_name": gene, "perturbed_gene_name": gene, "perturbation_type": kind}
                for gene in sorted(row["genes"])
            ]
        },
        "environment": _environment(row),
        "phenotype": phenotype,
    }


def _numbers(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Values by name as plain numbers: those of numpy, pandas and torch have no JSON."""
    out = {}
    for name, value in dict(given).items():
        plain = value.item() if hasattr(value, "item") else value
        if plain is not None and not isinstance(plain, int | float):
            raise TypeError(f"{what} {name!r} is {value!r}, expected a number or None")
        out[str(name)] = plain
    return out


def _environment(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "media": {"name": row.get("media", "YEPD"), "state": row.get("state", "solid")},
        "temperature": {"value": float(row.get("temperature", 30.0)), "unit": "Celsius"},
    }


def _note_experiment(row: Mapping[str, Any], dataset: str, nodes: Nodes, number: int) -> None:
    """Note an experiment and all nodes it needs."""
    try:
        if not isinstance(row["id"], str) or isinstance(row["genes"], str):
            raise TypeError("id is text, genes is a list of names")
        if wrong := [gene for gene in row["genes"] if not isinstance(gene, str)]:
            raise TypeError(f"gene {wrong[0]!r} is no text")
        experiment = experiment_json(row, dataset)
        data = _text(experiment)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceContractError(
            f"row {number}: {type(error).__name__}: {error}",
            fix="a row is {'id': text, 'genes': [names], 'labels': {name: number}, 'statistics': {name: number}}",
        ) from None
    environment, phenotype = experiment["environment"], experiment["phenotype"]
    media, temperature = environment["media"], environment["temperature"]
    perturbations = [
        _note(
            nodes["Perturbation"],
            p,
            gene=p["systematic_gene_name"],
            type=p["perturbation_type"],
            data=_text(p),
        )
        for p in experiment["genotype"]["perturbations"]
    ]
    reference = {
        "experiment_reference_type": experiment["experiment_type"],
        "dataset_name": experiment["dataset_name"],
        "environment_reference": environment,
    }
    where = {
        "media": _note(nodes["Media"], media, **media),
        "temperature": _note(nodes["Temperature"], temperature, value=temperature["value"]),
    }
    feature = {"level": phenotype["graph_level"], "label": phenotype["label_name"], "data": _text(phenotype)}
    nodes["Dataset"].setdefault(experiment["dataset_name"], {"id": experiment["dataset_name"]})
    nodes["Experiment"][row["id"]] = {
        "id": row["id"],
        "data": data,
        "dataset": experiment["dataset_name"],
        "genotype": _note(
            nodes["Genotype"], perturbations, perturbations=perturbations, genes=sorted(row["genes"])
        ),
        "environment": _note(nodes["Environment"], environment, **where, data=_text(environment)),
        "reference": _note(nodes["ExperimentReference"], reference, data=_text(reference)),
        "phenotype": _note(nodes["PhenotypicFeature"], phenotype, **feature),
    }


def _note(nodes: dict[str, dict[str, Any]], content: Any, **properties: Any) -> str:
    """Id of a shared node, made from its content as torchcell does."""
    key = hashlib.sha256(_text(content).encode()).hexdigest()
    nodes.setdefault(key, {"id": key, **properties})
    return key


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
