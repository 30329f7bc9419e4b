"""Reactions, metabolites and the genes of reactions in a base graph, from tables or a bipartite networkx graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, KeysView, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchcell_cache.core.ragged import Float32Array
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.rules import rewritten_rule, rule_genes
from torchcell_cache.sources.bipartite import KINDS, TABLES_FIX, bipartite_tables, genes_of_rule
from torchcell_cache.sources.columns import check_order, column_list, columns_of, is_missing
from torchcell_cache.sources.measurements import float32_numbers
from torchcell_cache.sources.name_lists import coded
from torchcell_cache.sources.names import NodeNames, as_texts
from torchcell_cache.sources.network_columns import is_nameless

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
    row, column = (positions_of(tables[f"{kind}s"], kind) for kind in KINDS)
    rules, gpr, growth = (tables.get(name) for name in ("gene_rules", "gpr", "w_growth"))
    graph["reaction"].node_ids, graph["reaction"].num_nodes = list(row), len(row)
    if rules is not None:
        rules = _per_reaction(rules, row, "gene_rules", "")
        rules = {reaction: _rule(rule, reaction, genes) for reaction, rule in rules.items()}
        graph["reaction"].gene_rules = list(rules.values())
        ruled = [(gene, reaction) for reaction, rule in rules.items() for gene in rule_genes(rule)]
    growth = {} if growth is None else _per_reaction(growth, row, "w_growth", 0.0)
    weights = _numbers([growth.get(reaction, 0.0) for reaction in row], "w_growth", list(row))
    graph["reaction"].w_growth = torch.from_numpy(weights)
    graph["metabolite"].node_ids, graph["metabolite"].num_nodes = list(column), len(column)
    named = (ruled if rules is not None else []) if gpr is None else _entries(gpr, row)
    known, note = _known(named, genes)
    if gpr is not None and rules is not None and (odd := set(known) ^ set(_known(ruled, genes)[0])):
        gene, reaction = min(odd)
        raise SourceContractError(
            f"metabolism: gpr and gene_rules differ on gene {genes.names[gene]!r} and reaction {list(row)[row[reaction]]!r}",
            fix="leave gpr out: it follows from the rules",
        )
    _set_hyperedges(graph["gene", "gpr", "reaction"], [(gene, row[reaction]) for gene, reaction in known])
    _set_rmr(graph["reaction", "rmr", "metabolite"], tables["rmr"], row, column)
    return f"metabolism: {len(row):,} reactions, {len(column):,} metabolites; {note}"


def _tables(network: Any) -> dict[str, Any]:
    """A metabolism as tables."""
    if isinstance(network, Mapping) and not hasattr(network, "edges"):
        unknown = sorted(map(str, set(network) - set(_TABLES)))
        missing = sorted({"reactions", "metabolites", "rmr"} - set(network))
        if not (unknown or missing):
            return dict(network)
        said = f"missing {missing}, unknown {unknown}; tables are {', '.join(_TABLES)}"
        raise SettingError(f"metabolism: {said}", fix=TABLES_FIX)
    if callable(getattr(network, "edges", None)) and callable(getattr(network, "nodes", None)):
        return bipartite_tables(network)
    said = f"metabolism is {type(network).__name__}, expected a networkx graph or a mapping of tables"
    raise SettingError(said, fix=TABLES_FIX)


def positions_of(ids: Any, what: str) -> dict[str, int]:
    """Position of each id, all of them different."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        said = f"metabolism: {what}s is {ids!r}, expected a list of ids"
        raise SettingError(said, fix=f'{what}s=["{what[0]}1", ...]')
    ids = list(ids) if isinstance(ids, Mapping | KeysView) else column_list(ids, f"metabolism: {what}s")
    names = [name.strip() for name in as_texts(ids, f"metabolism: {what}")]
    position: dict[str, int] = {}
    for k, name in enumerate(names):
        if not name or position.setdefault(name, k) != k:
            said = f"{what} ids repeat: {name!r}" if name else f"a {what} has no id"
            raise SourceContractError(f"metabolism: {said}", fix=f"give each {what} an id of its own")
    return position


def _per_reaction(values: Any, row: Mapping[str, int], what: str, default: Any) -> dict[str, Any]:
    """A value of each reaction, from a sequence in their order or a mapping by id."""
    where, fix = f"metabolism: {what}", f"{what}={{reaction: value, ...}}"
    if isinstance(values, Mapping):
        names = [name.strip() for name in as_texts(values, f"{where} of reaction")]
        for name in names:
            _at(row, name, what, "reaction")
        if len({*names}) < len(names):
            raise SourceContractError(f"{where} names a reaction twice", fix="give it one value")
        return dict.fromkeys(row, default) | dict(zip(names, values.values(), strict=True))
    if isinstance(values, str) or not isinstance(values, Iterable):
        said = f"{where} is {values!r}, expected one per reaction, or a mapping by reaction"
        raise SettingError(said, fix=fix)
    check_order(values, list(row), where)
    values = column_list(values, where)
    if len(values) != len(row):
        raise SourceContractError(f"metabolism: {len(values)} {what} for {len(row)} reactions", fix=fix)
    return dict(zip(row, values, strict=True))


def _rule(rule: Any, reaction: str, genes: NodeNames) -> str:
    """A gene rule with the names that the cell has for its genes; blank where there is none."""
    if is_missing(rule) or (isinstance(rule, str) and is_nameless(rule.strip()) and genes.find(rule) < 0):
        return ""
    where = f"metabolism: reaction {reaction!r}"
    found = {name: genes.find(name) for name in genes_of_rule(rule, where)}
    lost = [(name, part) for name, at in found.items() if at < 0 for part in _JOINT.split(name)]
    for name, part in lost:
        if genes.find(part) >= 0:
            raise SourceContractError(
                f"{where}: the gene rule names {name!r}, which is no gene, but {part!r} is",
                fix='join names by "and" and "or", without quotes',
            )
    return rewritten_rule(str(rule), {name: genes.names[at] for name, at in found.items() if at >= 0})


def _entries(gpr: Any, row: Mapping[str, int]) -> list[tuple[str, str]]:
    """Gene and reaction of each entry of a table."""
    sides = columns_of(gpr, 2, "metabolism: gpr", "(gene names, reaction ids)")
    genes, reactions = (
        [name.strip() for name in as_texts(side, f"metabolism: gpr: {what}")]
        for side, what in zip(sides, ("gene", "reaction"), strict=True)
    )
    for reaction in reactions:
        _at(row, reaction, "gpr", "reaction")
    return list(zip(genes, reactions, strict=True))


def _known(named: list[tuple[str, str]], genes: NodeNames) -> tuple[list[tuple[int, str]], str]:
    """The entries of genes of the cell, each once, and what was kept and left out."""
    names, codes = coded(name for name, _ in named)
    positions = genes.positions(names)
    at = positions[codes].tolist() if names else []
    known = [(k, reaction) for k, (_, reaction) in zip(at, named, strict=True) if k >= 0]
    met = genes.report(names, positions)
    if named and not known:
        raise SourceContractError(
            f"metabolism: none of the {len(named):,} gpr entries names a gene of the cell: {met}",
            fix='correct the names, or pass aliases={"name": "gene"}; gpr=[] for a metabolism without genes',
        )
    once = list(dict.fromkeys(known))
    said = f"gpr: {len(known):,} of {len(named):,} entries kept"
    said += f": {met}" if len(known) < len(named) else ""
    said += f"; {len(known) - len(once):,} listed more than once" if len(once) < len(known) else ""
    return once, said


def _set_rmr(store: Any, rmr: Any, row: Mapping[str, int], column: Mapping[str, int]) -> None:
    *ends, values = columns_of(rmr, 3, "metabolism: rmr", "(reaction ids, metabolite ids, coefficients)")
    ends = [as_texts(side, f"metabolism: rmr: {kind}") for side, kind in zip(ends, KINDS, strict=True)]
    names = [", ".join(pair) for pair in zip(*ends, strict=True)]
    at = [
        [_at(position, name, f"rmr: ({entry})", kind) for name, entry in zip(side, names, strict=True)]
        for position, side, kind in zip((row, column), ends, KINDS, strict=True)
    ]
    pairs = list(zip(*at, strict=True))
    numbers = _numbers(values, "rmr", names)
    seen: dict[tuple[Any, bool], int] = {}
    for k, (pair, value) in enumerate(zip(pairs, numbers.tolist(), strict=True)):
        if value == 0 or seen.setdefault((pair, value > 0), k) != k:
            what = "has the coefficient 0" if value == 0 else "stands there twice"
            raise SourceContractError(
                f"metabolism: rmr: ({names[k]}) {what}",
                fix="one entry with a coefficient for each metabolite that a reaction consumes or produces",
            )
    _set_hyperedges(store, pairs)
    store.stoichiometry = torch.from_numpy(numbers)


def _set_hyperedges(store: Any, pairs: Sequence[Any]) -> None:
    entries = np.ascontiguousarray(np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
    store.hyperedge_index, store.num_edges = torch.from_numpy(entries), entries.shape[1]


def _numbers(values: Sequence[Any], what: str, names: Sequence[str]) -> Float32Array:
    return float32_numbers(
        values, lambda k: f"metabolism: {what} of ({names[k]}) is", "correct it, or leave it out"
    )[0]


def _at(position: Mapping[str, int], name: str, table: str, what: str) -> int:
    found = position.get(name.strip())
    if found is None:
        raise SourceContractError(
            f"metabolism: {table} names {what} {name!r}, which is not one of the {what}s",
            fix=f"correct it, or add it to {what}s; columns stand in the order of the documentation",
        )
    return found
