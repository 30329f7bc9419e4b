"""Reactions, metabolites and the genes of reactions in a base graph, from tables or a bipartite networkx graph."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchcell_cache.core.ragged import Float32Array
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.rules import parse_rule, rewritten_rule, rule_genes
from torchcell_cache.sources.bipartite import bipartite_tables
from torchcell_cache.sources.columns_of import columns_of, is_missing
from torchcell_cache.sources.names import NodeNames, as_texts

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

_TABLES = ("reactions", "metabolites", "gene_rules", "rmr", "gpr", "w_growth")
_JOINT = re.compile(r"['\"/\\=:]")
"""What stands in the names of some models and between the names of others."""


def set_metabolism(graph: HeteroData, network: Any, genes: NodeNames) -> str:
    """Set reactions, metabolites and their hyperedges; what was kept and left out, in a line.

    Raises:
        SettingError: If it is no metabolism, or lacks a table.
        SourceContractError: If an entry is wrong, naming it, or no gene of it is one of the cell.
    """
    tables = _tables(network)
    row, column = (_positions(tables[f"{what}s"], what) for what in ("reaction", "metabolite"))
    rules = tables.get("gene_rules")
    if rules is not None:
        rules = [
            _rule(rule, reaction, genes)
            for reaction, rule in _per_reaction(rules, row, "gene_rules", "").items()
        ]
    gpr = tables.get("gpr")
    if gpr is None:
        entries = [
            (gene, reaction)
            for reaction, rule in zip(row, rules or (), strict=False)
            for gene in rule_genes(rule)
        ]
        gpr = tuple(zip(*entries, strict=True)) or ((), ())
    graph["reaction"].node_ids = list(row)
    graph["reaction"].num_nodes = len(row)
    if rules is not None:
        graph["reaction"].gene_rules = rules
    growth = tables.get("w_growth")
    growth = {} if growth is None else _per_reaction(growth, row, "w_growth", 0.0)
    weights = _numbers([growth.get(reaction, 0.0) for reaction in row], "w_growth", list(row))
    graph["reaction"].w_growth = torch.from_numpy(weights)
    graph["metabolite"].node_ids = list(column)
    graph["metabolite"].num_nodes = len(column)
    note = _set_gpr(graph["gene", "gpr", "reaction"], gpr, row, genes)
    _set_rmr(graph["reaction", "rmr", "metabolite"], tables["rmr"], row, column)
    return f"metabolism: {len(row):,} reactions, {len(column):,} metabolites; {note}"


def _tables(network: Any) -> dict[str, Any]:
    """A metabolism as tables."""
    if isinstance(network, Mapping) and not hasattr(network, "edges"):
        unknown = sorted(set(network) - set(_TABLES))
        missing = sorted({"reactions", "metabolites", "rmr"} - set(network))
        if unknown or missing:
            raise SettingError(
                f"metabolism: missing {missing}, unknown {unknown}; tables are {', '.join(_TABLES)}"
            )
        return dict(network)
    if not (callable(getattr(network, "edges", None)) and callable(getattr(network, "nodes", None))):
        raise SettingError(
            f"metabolism is {type(network).__name__}, expected a networkx graph or a mapping of tables"
        )
    return bipartite_tables(network)


def _positions(ids: Any, what: str) -> dict[str, int]:
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise SettingError(f"metabolism: {what}s is {ids!r}, expected a list of ids")
    names = [name.strip() for name in as_texts(ids, f"metabolism: {what}")]
    position = {name: k for k, name in enumerate(names)}
    if len(position) != len(names):
        name = next(name for k, name in enumerate(names) if position[name] != k)
        raise SourceContractError(f"metabolism: {what} ids repeat: {name!r}")
    return position


def _per_reaction(values: Any, row: Mapping[str, int], what: str, default: Any) -> dict[str, Any]:
    """A value of each reaction, from a sequence in their order or a mapping by id."""
    if isinstance(values, Mapping):
        named = dict(zip(as_texts(values, f"metabolism: {what} of reaction"), values.values(), strict=True))
        for name in named:
            _at(row, name, what, "reaction")
        return {reaction: named.get(reaction, default) for reaction in row}
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise SettingError(
            f"metabolism: {what} is {values!r}, expected one per reaction, or a mapping by reaction"
        )
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(values) != len(row):
        raise SourceContractError(f"metabolism: {len(values)} {what} for {len(row)} reactions")
    return dict(zip(row, values, strict=True))


def _rule(rule: Any, reaction: str, genes: NodeNames) -> str:
    """A gene rule with the names that the cell has for its genes; blank where there is none."""
    if is_missing(rule):
        return ""
    try:
        with contextlib.suppress(SettingError):  # too large to evaluate, but its genes can be named
            parse_rule(rule)
        found = {name: genes.find(name) for name in rule_genes(rule)}
    except SourceContractError as error:
        raise SourceContractError(f"metabolism: reaction {reaction!r}: {error}") from None
    for name in (name for name, at in found.items() if at < 0):
        if part := next((part for part in _JOINT.split(name) if genes.find(part) >= 0), None):
            raise SourceContractError(
                f"metabolism: reaction {reaction!r}: the gene rule names {name!r}, which is no gene, but {part!r} is",
                fix='join names by "and" and "or", without quotes',
            )
    return rewritten_rule(rule, {name: genes.names[at] for name, at in found.items() if at >= 0})


def _set_gpr(store: Any, gpr: Any, row: Mapping[str, int], genes: NodeNames) -> str:
    gene, reaction = columns_of(gpr, 2, "metabolism: gpr", "(gene names, reaction ids)")
    entries = as_texts(gene, "metabolism: gpr: gene")
    names = list(dict.fromkeys(name.strip() for name in entries))
    positions = genes.positions(names)
    at = dict(zip(names, positions.tolist(), strict=True))
    pairs = [
        (at[name.strip()], _at(row, r, "gpr", "reaction")) for name, r in zip(entries, reaction, strict=True)
    ]
    known = [pair for pair in pairs if pair[0] >= 0]
    met = genes.report(names, positions)
    if pairs and not known:
        raise SourceContractError(
            f"metabolism: none of the {len(pairs):,} gpr entries names a gene of the cell: {met}",
            fix='correct the names, or pass aliases={"name": "gene"}; gpr=[] for a metabolism without genes',
        )
    _set_hyperedges(store, known)
    return f"gpr: {len(known):,} of {len(pairs):,} entries kept" + (
        f": {met}" if len(known) < len(pairs) else ""
    )


def _set_rmr(store: Any, rmr: Any, row: Mapping[str, int], column: Mapping[str, int]) -> None:
    reaction, metabolite, coefficients = columns_of(
        rmr, 3, "metabolism: rmr", "(reaction ids, metabolite ids, coefficients)"
    )
    _set_hyperedges(
        store,
        [
            (_at(row, r, "rmr", "reaction"), _at(column, m, "rmr", "metabolite"))
            for r, m in zip(reaction, metabolite, strict=True)
        ],
    )
    names = [f"{r}, {m}" for r, m in zip(reaction, metabolite, strict=True)]
    store.stoichiometry = torch.from_numpy(_numbers(coefficients, "rmr", names))


def _set_hyperedges(store: Any, pairs: list[tuple[int, int]]) -> None:
    entries = np.ascontiguousarray(np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
    store.hyperedge_index = torch.from_numpy(entries)
    store.num_edges = entries.shape[1]


def _numbers(values: Sequence[Any], what: str, names: Sequence[str]) -> Float32Array:
    """Finite numbers, ``float32``."""
    out = np.empty(len(values), dtype=np.float32)
    for k, value in enumerate(values):
        try:
            with np.errstate(over="ignore"):
                out[k] = value
        except (TypeError, ValueError):
            out[k] = np.nan
        if not np.isfinite(out[k]):
            raise SourceContractError(
                f"metabolism: {what} of ({names[k]}) is {value!r}, expected a finite number"
            )
    return out


def _at(position: Mapping[str, int], name: Any, table: str, what: str) -> int:
    found = position.get(str(name).strip())
    if found is None:
        raise SourceContractError(
            f"metabolism: {table} names {what} {name!r}, which is not one of the {what}s"
        )
    return found
