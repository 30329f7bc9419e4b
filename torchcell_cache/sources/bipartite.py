"""A bipartite networkx graph of reactions and metabolites as tables, whatever convention it was written in.

What an edge is - consumed or produced - may be said by a word (``edge_type``), by the sign of its stoichiometry or, in
a graph that has both, by its direction (metabolite to reaction is consumed). What says nothing is refused, and so is
what contradicts itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.rules import parse_rule, rule_genes
from torchcell_cache.sources.columns import is_missing
from torchcell_cache.sources.measurements import number_of
from torchcell_cache.sources.names import as_texts
from torchcell_cache.sources.network_columns import is_nameless

TABLES_FIX = (
    'metabolism={"reactions": [...], "metabolites": [...], "rmr": [(reaction, metabolite, coefficient), ...]}'
)
_WORDS = dict.fromkeys(
    ("reactant", "substrate", "educt", "consumed", "consumes", "input"), -1
) | dict.fromkeys(("product", "produced", "produces", "output"), 1)
KINDS = ("reaction", "metabolite")
_GROWTH = "Growth"
_EDGE_TYPE = 'edge_type="reactant" or "product" on each edge'


class _Edge(NamedTuple):
    """An edge between a reaction and a metabolite; what it says of itself is -1 for consumed, 1 for produced, else 0."""

    reaction: Any
    metabolite: Any
    amount: float
    word: int
    way: int

    def __str__(self) -> str:
        return f"metabolism: edge between {self.reaction!r} and {self.metabolite!r}"


def bipartite_tables(network: Any) -> dict[str, Any]:
    """Tables of a networkx graph; see :func:`torchcell_cache.sources.networks.cell_graph`."""
    try:
        nodes = {node: dict(data) for node, data in network.nodes(data=True)}
        edges = [(source, target, dict(data)) for source, target, data in network.edges(data=True)]
    except (TypeError, ValueError) as error:
        raise SourceContractError(
            f"metabolism is {type(network).__name__}, which does not give nodes and edges as networkx does: {error}",
            fix=TABLES_FIX,
        ) from None
    for node, data in nodes.items():
        if data.get("node_type") not in KINDS:
            raise SourceContractError(
                f"metabolism: node {node!r} has no node_type reaction or metabolite, it has {data!r}",
                fix='node_type="reaction" or "metabolite" on each node',
            )
    kinds = {node: data["node_type"] for node, data in nodes.items()}
    is_directed = getattr(network, "is_directed", None)
    directed = is_directed is None or bool(is_directed())
    entries = _signed([_edge(source, target, data, kinds, directed) for source, target, data in edges])
    reactions, metabolites = (_sorted(node for node in nodes if kinds[node] == kind) for kind in KINDS)
    genes = {node: nodes[node].get("genes", nodes[node].get("gene_reaction_rule")) for node in reactions}
    return {
        "reactions": reactions,
        "metabolites": metabolites,
        "rmr": entries,
        "gpr": [(gene, node) for node in reactions for gene in _genes(node, genes[node])],
        "w_growth": [float(nodes[node].get("subsystem") == _GROWTH) for node in reactions],
    }


def _sorted(names: Iterable[Any]) -> list[Any]:
    names = list(names)
    try:
        return sorted(names)
    except TypeError:  # numbers and text
        return sorted(names, key=str)


def _edge(
    source: Any, target: Any, data: Mapping[str, Any], kinds: Mapping[Any, str], directed: bool
) -> _Edge:
    if kinds[source] == kinds[target]:
        raise SourceContractError(
            f"metabolism: edge between {source!r} and {target!r} joins two {kinds[source]}s",
            fix="an edge joins a reaction and a metabolite",
        )
    forward = kinds[source] == "reaction"
    reaction, metabolite = (source, target) if forward else (target, source)
    told = data.get("edge_type")
    word = "" if is_missing(told) else str(told).strip().lower()
    numbers = {key: number_of(value) for key, value in data.items()}
    # Without any it is 1; what something else may hold is asked for.
    amount = numbers.get("stoichiometry", np.nan if any(n == n for n in numbers.values()) else 1.0)
    edge = _Edge(reaction, metabolite, amount, _WORDS.get(word, 0), (1 if forward else -1) * directed)
    if word and not edge.word:
        said = f"{edge} has edge_type {told!r}, expected reactant (substrate) or product"
        raise SourceContractError(said, fix=_EDGE_TYPE)
    if not np.isfinite(amount):
        other = {key: value for key, value in data.items() if key != "edge_type"}
        said = f"{edge} has no stoichiometry that is a number: {other!r}"
        raise SourceContractError(said, fix="stoichiometry=2.0 on each edge")
    return edge


def _signed(edges: list[_Edge]) -> list[tuple[Any, Any, float]]:
    """Each edge with its coefficient, negative for what is consumed."""
    signs = any(edge.amount < 0 for edge in edges)
    ways = {-1, 1} <= {edge.way for edge in edges}
    seen: dict[tuple[Any, Any], int] = {}
    entries: list[tuple[Any, Any, float]] = []
    for edge in edges:
        sign = (edge.amount > 0) - (edge.amount < 0) if signs else 0
        said = {"edge_type": edge.word, "the sign of stoichiometry": sign, "the direction": edge.way * ways}
        told = {what: role for what, role in said.items() if role}
        if len(set(told.values())) != 1:
            why = "nothing says" if not told else f"{' and '.join(told)} contradict each other on"
            raise SourceContractError(
                f"{edge}: {why} whether the metabolite is consumed or produced (stoichiometry {edge.amount})",
                fix=_EDGE_TYPE,
            )
        role = next(iter(told.values()))
        if ways and not edge.word and seen.setdefault((edge.reaction, edge.metabolite), role) != role:
            raise SourceContractError(
                f"{edge} goes both ways: is the reaction reversible, or does it consume and produce the metabolite?",
                fix='edge_type="reactant" or "product" on both edges, or one edge only',
            )
        entries.append((edge.reaction, edge.metabolite, role * abs(edge.amount)))
    return entries


def _genes(reaction: Any, genes: Any) -> list[str]:
    """Names of a reaction's genes, ascending; text is a gene rule."""
    what = f"metabolism: reaction {reaction!r}"
    if is_missing(genes):
        return []
    if isinstance(genes, str):
        return [] if is_nameless(genes.strip()) else list(genes_of_rule(genes, what))
    if not isinstance(genes, Iterable):
        raise SourceContractError(f"{what} has genes={genes!r}", fix='genes={"YAL001C", ...}')
    return sorted({name.strip() for name in as_texts(genes, f"{what}: gene")})


def genes_of_rule(rule: Any, where: str) -> tuple[str, ...]:
    """Names of a gene rule."""
    try:
        with contextlib.suppress(SettingError):  # too large to evaluate, but its genes can be named
            parse_rule(rule)
        return rule_genes(rule)
    except SourceContractError as error:
        raise error.within(where) from None
