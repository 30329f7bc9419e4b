"""Base graph of a genome-scale metabolic model: genes, reactions, metabolites and what links them.

The model is duck typed after cobra's ``Model`` (``genes``, ``reactions``, ``metabolites``), which this file
never imports. Three gene-gene edge types follow from the model; each holds both directions, sorted, unique:

- ``same_complex``: both genes are in one complex of some reaction's rule;
- ``isozyme``: both genes serve one reaction in different complexes, and no complex of the model holds both;
- ``consecutive``: a reaction of one gene produces a metabolite that another reaction, one of the other gene,
  consumes. Metabolites in more than ``currency_degree`` reactions (water, ATP, protons, ...) link nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch_geometric.data import HeteroData

from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets, ragged_arange
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.rules import GeneRules, rule_genes
from torchcell_cache.sources.columns_of import float32_numbers, number_of

CURRENCY_DEGREE = 30

_MODEL = "pass a model as cobra reads it: cobra.io.read_sbml_model(path)"

GENE_FEATURES = (
    "log1p_reactions",
    "log1p_complexes",
    "log1p_metabolites",
    "share_of_reactions_lost_without_it",
)
"""Columns of ``gene.x``: how many reactions name the gene, how many enzyme complexes it is part of, how many
metabolites its reactions touch, and the share of its reactions that stop when it alone is deleted."""


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Ragged lists: group ``k`` is ``items[ptr[k]:ptr[k + 1]]``, ascending and unique."""

    ptr: Int64Array
    items: Int64Array

    @classmethod
    def of(cls, group: Int64Array, item: Int64Array, num_groups: int, num_items: int) -> _Groups:
        """From (group, item) pairs in any order, repeats allowed."""
        group, item = np.divmod(np.unique(group * max(num_items, 1) + item), max(num_items, 1))
        return cls(offsets(np.bincount(group, minlength=num_groups)), item)

    def cross(self, mine: Int64Array, other: _Groups, theirs: Int64Array) -> tuple[Int64Array, Int64Array]:
        """All (item, other's item) pairs of the groups ``mine[k]`` and ``theirs[k]``, for all ``k``."""
        rows = self.ptr[mine + 1] - self.ptr[mine]
        columns = other.ptr[theirs + 1] - other.ptr[theirs]
        counts = rows * columns
        row, column = np.divmod(ragged_arange(np.zeros_like(counts), counts), np.repeat(columns, counts))
        return (
            self.items[np.repeat(self.ptr[mine], counts) + row],
            other.items[np.repeat(other.ptr[theirs], counts) + column],
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """The model as index arrays.

    Attributes:
        genes: Names, sorted.
        texts: Gene rule per reaction.
        rules: The same, parsed.
        gpr: Gene and reaction of each entry, ``[2, num_gpr] int64``, by reaction, then gene.
        rmr: Reaction and metabolite of each entry, ``[2, num_rmr] int64``, by reaction, then metabolite.
        stoichiometry: Negative for what the reaction consumes as written, ``[num_rmr] float32``.
    """

    genes: list[str]
    texts: list[str]
    rules: GeneRules
    gpr: Int64Array
    rmr: Int64Array
    stoichiometry: Float32Array


def metabolic_base_graph(
    model: Any, *, self_loops: bool = False, currency_degree: int = CURRENCY_DEGREE
) -> HeteroData:
    """Base graph of a model.

    Genes are ordered by name, reactions and metabolites as in the model, so equal models give equal graphs.

    Args:
        model: A cobra ``Model`` or anything that looks like one.
        self_loops: Append one self loop per gene after the edges of each gene-gene edge type, as torchcell
            does.
        currency_degree: Metabolites in more reactions than this make no ``consecutive`` edge.

    Returns:
        Node types ``gene`` (``x [num_genes, 4] float32``, see :data:`GENE_FEATURES`), ``reaction``
        (``gene_rules``; ``w_growth [num_reactions] float32``, 1 for the objective reaction) and
        ``metabolite``, all with ``node_ids``; the three edge types; hyperedges ``gpr`` and ``rmr``
        (``stoichiometry [num_rmr] float32``).

    Raises:
        SourceContractError: If ids repeat, or a gene rule is malformed or names an unknown gene.
    """
    self_loops = truth("self_loops", self_loops)
    currency_degree = whole_number("currency_degree", currency_degree, 0)
    if not all(hasattr(model, part) for part in ("genes", "reactions", "metabolites")):
        raise SettingError(f"model is {type(model).__name__}, expected a cobra Model", fix=_MODEL)
    tables = _read(model)
    num_genes = len(tables.genes)
    graph = HeteroData()
    graph["gene"].node_ids = tables.genes
    graph["gene"].num_nodes = num_genes
    graph["gene"].x = torch.from_numpy(_gene_features(tables, len(model.metabolites)))
    graph["reaction"].node_ids = _ids(model.reactions, "reaction")
    graph["reaction"].num_nodes = len(tables.texts)
    graph["reaction"].gene_rules = tables.texts
    growth = [float(reaction.objective_coefficient not in (0, None)) for reaction in model.reactions]
    graph["reaction"].w_growth = torch.tensor(growth, dtype=torch.float32, device="cpu")
    graph["metabolite"].node_ids = _ids(model.metabolites, "metabolite")
    graph["metabolite"].num_nodes = len(model.metabolites)

    for name, edges in _gene_edges(
        tables, _directions(model), len(model.metabolites), currency_degree
    ).items():
        if self_loops:
            loops = np.arange(num_genes, dtype=np.int64)
            edges = np.concatenate([edges, np.stack([loops, loops])], axis=1)
        graph["gene", name, "gene"].edge_index = torch.from_numpy(edges)
        graph["gene", name, "gene"].num_edges = edges.shape[1]
    _set_hyperedges(graph, tables)
    return graph


def model_rules(model: Any) -> tuple[list[str], GeneRules]:
    """Gene names in the order of the base graph, and the model's rules over them."""
    genes = sorted(_ids(model.genes, "gene"))
    texts = [reaction.gene_reaction_rule for reaction in model.reactions]
    return genes, GeneRules.from_strings(texts, genes, reaction_ids=[item.id for item in model.reactions])


def _set_hyperedges(graph: HeteroData, tables: _Tables) -> None:
    gpr, rmr = graph["gene", "gpr", "reaction"], graph["reaction", "rmr", "metabolite"]
    gpr.hyperedge_index = torch.from_numpy(tables.gpr)
    gpr.num_edges = tables.gpr.shape[1]
    rmr.hyperedge_index = torch.from_numpy(tables.rmr)
    rmr.stoichiometry = torch.from_numpy(tables.stoichiometry)
    rmr.num_edges = tables.rmr.shape[1]


def _read(model: Any) -> _Tables:
    genes, rules = model_rules(model)
    texts = [str(reaction.gene_reaction_rule) for reaction in model.reactions]
    position = {name: k for k, name in enumerate(genes)}
    gpr = [(position[name], k) for k, text in enumerate(texts) for name in rule_genes(text)]
    column = {item.id: k for k, item in enumerate(model.metabolites)}
    rmr: list[tuple[int, int]] = []
    coefficients: list[Any] = []
    for k, reaction in enumerate(model.reactions):
        named = {item.id: value for item, value in reaction.metabolites.items()}
        if unknown := [name for name in named if name not in column]:
            raise SourceContractError(
                f"reaction '{reaction.id}' names the metabolite {unknown[0]!r}, which the model does not have",
                fix=_MODEL,
            )
        rmr.extend((k, column[name]) for name in sorted(named, key=column.__getitem__))
        coefficients.extend(named[name] for name in sorted(named, key=column.__getitem__))
    return _Tables(
        genes=genes,
        texts=texts,
        rules=rules,
        gpr=_pairs(gpr),
        rmr=_pairs(rmr),
        stoichiometry=float32_numbers(
            coefficients, lambda k: f"reaction '{model.reactions[rmr[k][0]].id}' has the coefficient", _MODEL
        )[0],
    )


def _directions(model: Any) -> tuple[Int64Array, Int64Array]:
    """Whether each reaction runs as written and in reverse, ``[num_reactions] int64`` of 0 and 1.

    A reaction that the medium blocks (both bounds 0) is taken as written.
    """
    lower, upper = (
        np.array([number_of(getattr(item, bound)) for item in model.reactions])
        for bound in ("lower_bound", "upper_bound")
    )
    if (odd := np.isnan(lower) | np.isnan(upper)).any():
        item = model.reactions[int(np.argmax(odd))]
        raise SourceContractError(
            f"reaction '{item.id}' has the bounds {item.lower_bound!r} and {item.upper_bound!r}, expected numbers",
            fix=_MODEL,
        )
    forward = (upper > 0) | ((lower == 0) & (upper == 0))
    return forward.astype(np.int64), (lower < 0).astype(np.int64)


def _gene_edges(
    tables: _Tables, directions: tuple[Int64Array, Int64Array], num_metabolites: int, currency_degree: int
) -> dict[str, Int64Array]:
    rules, num_genes, num_reactions = tables.rules, len(tables.genes), len(tables.texts)
    gene = np.repeat(np.arange(num_genes, dtype=np.int64), np.diff(rules.gene_ptr))
    num_complexes = len(rules.complex_reaction)
    complexes = _Groups.of(rules.gene_complexes, gene, num_complexes, num_genes)
    serving = _Groups.of(rules.complex_reaction[rules.gene_complexes], gene, num_reactions, num_genes)
    catalysts = _Groups.of(tables.gpr[1], tables.gpr[0], num_reactions, num_genes)
    every, whole = np.arange(num_reactions), np.arange(num_complexes)
    first, second = _consecutive_reactions(tables, directions, num_metabolites, currency_degree)

    same_complex = _codes(*complexes.cross(whole, complexes, whole), num_genes)
    isozyme = np.setdiff1d(_codes(*serving.cross(every, serving, every), num_genes), same_complex)
    consecutive = _codes(*catalysts.cross(first, catalysts, second), num_genes)
    edges = {"same_complex": same_complex, "isozyme": isozyme, "consecutive": consecutive}
    return {name: np.stack(np.divmod(code, max(num_genes, 1))) for name, code in edges.items()}


def _consecutive_reactions(
    tables: _Tables, directions: tuple[Int64Array, Int64Array], num_metabolites: int, currency_degree: int
) -> tuple[Int64Array, Int64Array]:
    """Pairs (producing reaction, consuming reaction) over non-currency metabolites, unique."""
    reaction, metabolite = tables.rmr
    num_reactions = len(tables.texts)
    forward, reverse = (flag[reaction] > 0 for flag in directions)
    degree = np.bincount(metabolite, minlength=num_metabolites)
    linking = degree[metabolite] <= currency_degree
    gains, loses = tables.stoichiometry > 0, tables.stoichiometry < 0
    produced = linking & ((gains & forward) | (loses & reverse))
    consumed = linking & ((loses & forward) | (gains & reverse))
    producers = _Groups.of(metabolite[produced], reaction[produced], num_metabolites, num_reactions)
    consumers = _Groups.of(metabolite[consumed], reaction[consumed], num_metabolites, num_reactions)
    every = np.arange(num_metabolites)
    first, second = producers.cross(every, consumers, every)
    pairs = np.unique((first * num_reactions + second)[first != second])
    first, second = np.divmod(pairs, max(num_reactions, 1))
    return first, second


def _gene_features(tables: _Tables, num_metabolites: int) -> Float32Array:
    num_genes = len(tables.genes)
    reactions = np.bincount(tables.gpr[0], minlength=num_genes)
    substances = _Groups.of(tables.rmr[0], tables.rmr[1], len(tables.texts), num_metabolites)
    names, named = tables.gpr
    counts = substances.ptr[named + 1] - substances.ptr[named]
    touched = substances.items[ragged_arange(substances.ptr[named], counts)]
    touches = _Groups.of(np.repeat(names, counts), touched, num_genes, num_metabolites)
    alone = np.arange(num_genes + 1, dtype=np.int64)
    _, lost_ptr = tables.rules.removed_reactions(alone[:-1], alone)
    columns = [
        np.log1p(reactions),
        np.log1p(np.diff(tables.rules.gene_ptr)),
        np.log1p(np.diff(touches.ptr)),
        np.diff(lost_ptr) / np.maximum(reactions, 1),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _codes(source: Int64Array, target: Int64Array, num_genes: int) -> Int64Array:
    """``source * num_genes + target`` of both directions, ascending, unique, without self loops."""
    apart = source != target
    source, target = source[apart], target[apart]
    return np.unique(np.concatenate([source * num_genes + target, target * num_genes + source]))


def _pairs(rows: list[tuple[int, int]]) -> Int64Array:
    return np.ascontiguousarray(np.array(rows, dtype=np.int64).reshape(-1, 2).T)


def _ids(items: Any, what: str) -> list[str]:
    ids = [str(item.id) for item in items]
    if len(set(ids)) != len(ids):
        repeated = sorted({name for name in ids if ids.count(name) > 1})
        raise SourceContractError(f"the model has {what} '{repeated[0]}' more than once")
    return ids
