"""``Neo4jCellDataset``: experiments of a graph database as a source, fetched once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.choices import OnMalformed, Replicates, Unknown
from torchcell_cache.core.fingerprint import explain, sha256_json
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import CacheNotFoundError, SettingError, SourceContractError, StaleCacheError
from torchcell_cache.graph.topology import perturbable_type
from torchcell_cache.sources.gene_lists import gene_names
from torchcell_cache.sources.names import NodeNames
from torchcell_cache.sources.neo4j.experiments import TableBuilder, parse_row
from torchcell_cache.sources.neo4j.raw import Columns, RawRecords, raw_dir
from torchcell_cache.sources.table import PerturbationTable

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

TORCHCELL_QUERY = """\
MATCH (e:Experiment)<-[:ExperimentReferenceOf]-(ref:ExperimentReference)
MATCH (e)<-[:GenotypeMemberOf]-(g:Genotype)
WHERE e.id > $after
  AND ALL(p IN [(g)<-[:PerturbationMemberOf]-(pert:Perturbation) | pert]
          WHERE p.perturbation_type ENDS WITH 'deletion' AND p.systematic_gene_name IN $gene_set)
  AND SIZE([(g)<-[:PerturbationMemberOf]-(pert:Perturbation) | pert]) > 0
WITH DISTINCT e, ref ORDER BY e.id
RETURN e, ref
"""
"""The query if none is given: every experiment in which nothing but genes of ``$gene_set`` was deleted.

Older databases call that ``deletion``, newer ones ``sga_kanmx_deletion``, ``sga_natmx_deletion`` and the like.
"""


class Neo4jCellDataset(PerturbationTable):
    """Experiments from Neo4j, or any database that speaks Bolt, and a base graph.

    The first call runs the query and stores its rows under ``root/raw``; an interrupted one goes on when it is called
    again. From then on only ``root/raw`` is read and no server is needed. Nothing of the login is stored anywhere.

    Args:
        root: Directory of the store; the preprocessed store may have the same root.
        uri: Address, ``NEO4J_URI`` if ``None``. Used only while rows are missing.
        query: Cypher, or a ``Path`` to a file of it. It returns ``e, ref`` (torchcell's schema) or the columns that
            ``columns`` names. If it takes ``$after``, it must return ids above it in ascending order, and an
            interrupted fetch continues there; if it takes ``$limit`` too, it is asked page by page. ``None`` opens
            what is stored, or fetches with :data:`TORCHCELL_QUERY`.
        gene_set: Names of all genes, or the path of a file with one per line, sent as ``$gene_set``; those of the base
            graph by default.
        graphs: Gene-gene networks by name, see :func:`torchcell_cache.sources.networks.cell_graph`.
        incidence_graphs: Metabolism, see there.
        base_graph: A finished base graph instead of ``graphs`` and ``incidence_graphs``.
        self_loops: Append one self loop per gene to each network, as torchcell does.
        parameters: Further parameters of the query. ``after`` is the first ``$after``, ``""`` by default.
        columns: For queries that do not return ``e, ref``: ``id``, ``perturbed``, ``phenotypes``, ``statistics``.
        replicates: Experiments of one genotype in one environment: ``keep`` each as a sample, ``group`` them into one
            sample with several measurements, take their ``mean`` (with the statistic ``<label>_count``), or ``error``.
        duplicates: Older name of ``replicates``.
        unknown: Experiments with a gene the base graph does not have: ``error``, ``skip``, ``drop`` the gene, or ``keep``
            its name, as torchcell does: it stands in ``ids_pert`` and nothing is removed for it.
        malformed: Records that are not experiments: ``error`` or ``skip``.
        username: User, ``NEO4J_USER`` if ``None``.
        password: Password, ``NEO4J_PASSWORD`` if ``None``.
        database: Database, ``NEO4J_DATABASE`` if ``None``, else the user's home database.
        page_size: Rows the server sends at a time, and the value of ``$limit``.
        retries: How often to reconnect, in a row and without a new row, before giving up.
        refresh: Throw away what is stored and fetch again.
        progress: Whether to print progress.

    Attributes:
        skipped: Number of records passed over: ``{"unknown": ..., "malformed": ...}``.

    Raises:
        SettingError: Wrong address, user, password, database, query or argument.
        SourceUnavailableError: The server does not answer; the same call goes on.
        StaleCacheError: ``root/raw`` holds the rows of another query.
        SourceContractError: No rows, or a record that is not an experiment; the message names it.

    Example:
        >>> source = tc.Neo4jCellDataset("raw", "bolt://host:7687", query="trigenic.cql")  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        uri: str | None = None,
        query: str | os.PathLike[str] | None = None,
        *,
        gene_set: Iterable[str] | str | Path | None = None,
        graphs: Mapping[str, Any] | None = None,
        incidence_graphs: Mapping[str, Any] | None = None,
        base_graph: HeteroData | None = None,
        self_loops: bool = False,
        parameters: Mapping[str, Any] | None = None,
        columns: Mapping[str, Any] | None = None,
        replicates: Replicates = "keep",
        duplicates: Replicates | None = None,
        unknown: Unknown = "error",
        malformed: OnMalformed = "error",
        username: str | None = None,
        password: str | None = None,
        database: str | None = None,
        page_size: int = 2000,
        retries: int = 5,
        refresh: bool = False,
        progress: bool = True,
    ) -> None:
        page_size, retries = whole_number("page_size", page_size, 1), whole_number("retries", retries, 1)
        refresh, self_loops = truth("refresh", refresh), truth("self_loops", self_loops)
        if duplicates is not None and replicates not in ("keep", duplicates):
            raise SettingError(
                f"{duplicates=} and {replicates=} are two names of one setting", fix="pass replicates="
            )
        self.root = local_path(root)
        genes = None if gene_set is None else gene_names(gene_set)
        if base_graph is None:
            from torchcell_cache.sources.networks import cell_graph

            base_graph = cell_graph(genes, graphs, incidence_graphs, self_loops=self_loops)
        elif graphs or incidence_graphs or self_loops:
            raise SettingError("base_graph is given, and so are graphs, incidence_graphs or self_loops")
        self.base_graph, self.node_type = base_graph, perturbable_type(base_graph, None)
        nodes = NodeNames.from_graph(base_graph, self.node_type)
        replicates = replicates if duplicates is None else duplicates
        builder = TableBuilder(nodes, replicates=replicates, unknown=unknown, malformed=malformed)
        wanted, text = Columns.from_given(columns), _query_text(query)
        given = {"gene_set": sorted(nodes.names) if genes is None else genes, **_sendable(parameters)}
        raw = None if refresh else RawRecords.open(self.root)
        if raw is None or query is not None or wanted is not None:
            plan = _plan(text or TORCHCELL_QUERY, given, wanted)
            if raw is not None and raw.plan != plan:
                raise StaleCacheError(
                    "\n    ".join(
                        [f"{raw.directory.parent} holds the rows of another query:", *explain(raw.plan, plan)]
                    ),
                    path=self.root,
                    fix="take another root, or pass refresh=True to fetch again",
                )
        if raw is None:
            from torchcell_cache.sources.neo4j.driver import Login
            from torchcell_cache.sources.neo4j.fetch import fetch

            login = Login.from_settings(uri, username, password, database)
            options: dict[str, Any] = {"page_size": page_size, "retries": retries, "progress": progress}
            asked = text or TORCHCELL_QUERY, given, wanted
            raw = fetch(self.root, plan, login, *asked, **options, refresh=refresh)
        named = None if raw.plan["columns"] is None else Columns(*raw.plan["columns"])
        for row_id, *values in map(json.loads, raw):
            builder.add(str(row_id), partial(parse_row, named, values))
        self.skipped = builder.skipped
        self._table, self.notes = builder.table(), builder.notes()
        if not len(self._table):
            raise SourceContractError(
                "no experiment is left: " + "; ".join(self.notes),
                fix='unknown="error" or malformed="error" shows the first',
            )

    def __repr__(self) -> str:
        return f"Neo4jCellDataset({len(self)}, phenotypes={list(self._table.phenotypes)}, root={str(self.root)!r})"

    @classmethod
    def from_csv(cls, *args: Any, **settings: Any) -> PerturbationTable:
        """Not of this class: a table needs no database.

        Raises:
            SettingError: Always.
        """
        raise SettingError("a table is no database", fix="PerturbationTable.from_csv(...)")

    def identity(self) -> dict[str, Any]:
        """Digests of every column."""
        return {**super().identity(), "class": "Neo4jCellDataset"}


def _query_text(query: str | os.PathLike[str] | None) -> str | None:
    if query is None:
        return None
    if isinstance(query, str):
        text, fix = query, "leave it out for torchcell's experiments"
        if query.endswith((".cql", ".cypher")) or Path(query).is_file():
            raise SettingError(
                f"query={query!r} is text, and looks like a path", fix=f"query=Path({query!r})"
            )
    else:
        path = local_path(query, "query")
        fix = f"write a query into {path}"
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise SettingError(f"{path} is not UTF-8: {error}", path=path, fix="save it as UTF-8") from None
        except OSError as error:
            raise SettingError(f"the query file cannot be read: {error}", path=path) from None
    if not text.strip():
        raise SettingError("the query is empty", fix=fix)
    return text


def _sendable(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters as plain values, those of numpy and torch too, that a server can be sent."""
    if parameters is not None and not isinstance(parameters, Mapping):
        raise SettingError(
            f"parameters is {type(parameters).__name__}, expected a mapping", fix="parameters={'name': value}"
        )
    return {str(key): _plain(f"${key}", value) for key, value in (parameters or {}).items()}


def _plain(name: str, value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(name, item) for key, item in value.items()}
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SettingError(f"parameters: {name} holds {value}, a server's integers have 64 bits")
    return value


def _plan(query: str, parameters: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    """What is fetched, without a word about from where: a moved database is the same database."""
    from torchcell_cache.sources.neo4j.driver import parameters_of

    taken = parameters_of(query)
    try:
        digests = {key: sha256_json(parameters[key]) for key in sorted(taken & parameters.keys())}
    except (TypeError, ValueError) as error:
        raise SettingError(f"parameters must be plain JSON values: {error}") from None
    return {"query": query, "parameters": digests, "columns": None if columns is None else [*columns]}


def raw_references(root: str | os.PathLike[str]) -> dict[str, Any]:
    """Reference (wild-type) records of torchcell's experiments by experiment id, from ``root/raw``.

    Raises:
        CacheNotFoundError: If nothing is stored there.
    """
    raw = RawRecords.open(local_path(root))
    if raw is None or raw.plan["columns"] is not None:
        raise CacheNotFoundError(f"{raw_dir(root)} holds no experiments with references")
    rows = (json.loads(body) for body in raw)
    return {str(row[0]): None if row[2] is None else json.loads(row[2]) for row in rows}
