"""Base graph of a genome-scale metabolic model: genes, reactions, metabolites and what links them.

The model is duck typed after cobra's ``Model`` (``genes``, ``reactions``, ``metabolites``), which this file
never imports. Three gene-gene edge types follow from the model; each holds both directions, sorted, unique:

- ``same_complex``: both genes are in one complex of some reaction's rule;
- ``isozyme``: both genes serve one reaction in different complexes, and no complex of the model holds both;
- ``consecutive``: a reaction of one gene produces a metabolite that another reaction, one of the other gene,
  consumes. Metabolites in more than ``currency_degree`` reactions (water, ATP, protons, ...) link nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch_geometric.data import HeteroData

from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets, ragged_arange, ragged_rows
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.rules import GeneRules
from torchcell_cache.sources.measurements import number_of
from torchcell_cache.sources.metabolism import positions_of, set_metabolism
from torchcell_cache.sources.names import NodeNames

CURRENCY_DEGREE = 30

_GENE_EDGES = ("same_complex", "isozyme", "consecutive")
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
    def from_pairs(cls, group: Int64Array, item: Int64Array, num_groups: int, num_items: int) -> _Groups:
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
    genes, rules = model_rules(model)
    graph = HeteroData()
    stores = [graph["gene", name, "gene"] for name in _GENE_EDGES]  # in front of the hyperedges
    set_model(graph, model, genes, rules)
    for store, edges in zip(stores, _gene_edges(graph, rules, model, currency_degree), strict=True):
        if self_loops:
            edges = np.concatenate([edges, np.tile(np.arange(len(genes)), (2, 1))], axis=1)
        store.edge_index, store.num_edges = torch.from_numpy(edges), edges.shape[1]
    return graph


def model_rules(model: Any, also: Iterable[str] = ()) -> tuple[list[str], GeneRules]:
    """Names of the model's genes and of others, ascending, and the model's rules over them."""
    genes = sorted({*positions_of([item.id for item in model.genes], "gene"), *also})
    texts = [reaction.gene_reaction_rule for reaction in model.reactions]
    return genes, GeneRules.from_strings(texts, genes, reaction_ids=[item.id for item in model.reactions])


def set_model(graph: HeteroData, model: Any, genes: list[str], rules: GeneRules) -> None:
    """Set genes and their features, reactions, metabolites and hyperedges of a model."""
    column = {item.id: k for k, item in enumerate(model.metabolites)}
    entries = [
        (k, column.get(item.id, -1), item.id, value)
        for k, reaction in enumerate(model.reactions)
        for item, value in reaction.metabolites.items()
    ]
    reactions = [reaction.id for reaction in model.reactions]
    tables = {
        "reactions": reactions,
        "metabolites": [item.id for item in model.metabolites],
        "gene_rules": [reaction.gene_reaction_rule for reaction in model.reactions],
        "rmr": [(reactions[k], name, value) for k, _, name, value in sorted(entries, key=itemgetter(0, 1))],
        "w_growth": [float(item.objective_coefficient not in (0, None)) for item in model.reactions],
    }
    graph["gene"].node_ids, graph["gene"].num_nodes = genes, len(genes)
    set_metabolism(graph, tables, NodeNames(genes, what="gene"))
    rmr = graph["reaction", "rmr", "metabolite"]._mapping
    # Last, as in stores built before: the order is part of the digest.
    rmr["num_edges"] = rmr.pop("num_edges")
    graph["gene"].x = torch.from_numpy(_gene_features(graph, rules))


def _gene_edges(
    graph: HeteroData, rules: GeneRules, model: Any, currency_degree: int
) -> Iterator[Int64Array]:
    """Edges of each gene-gene edge type, ``[2, num_edges] int64``, in the order of :data:`_GENE_EDGES`."""
    num_genes, num_reactions = graph["gene"].num_nodes, graph["reaction"].num_nodes
    gene = np.repeat(np.arange(num_genes, dtype=np.int64), np.diff(rules.gene_ptr))
    num_complexes = len(rules.complex_reaction)
    complexes = _Groups.from_pairs(rules.gene_complexes, gene, num_complexes, num_genes)
    serving = _Groups.from_pairs(rules.complex_reaction[rules.gene_complexes], gene, num_reactions, num_genes)
    catalyst, catalysed = graph["gene", "gpr", "reaction"].hyperedge_index.numpy()
    catalysts = _Groups.from_pairs(catalysed, catalyst, num_reactions, num_genes)
    every, whole = np.arange(num_reactions), np.arange(num_complexes)

    same_complex = _codes(*complexes.cross(whole, complexes, whole), num_genes)
    isozyme = np.setdiff1d(_codes(*serving.cross(every, serving, every), num_genes), same_complex)
    first, second = _consecutive_reactions(graph, model, currency_degree)
    consecutive = _codes(*catalysts.cross(first, catalysts, second), num_genes)
    return (np.stack(np.divmod(code, max(num_genes, 1))) for code in (same_complex, isozyme, consecutive))


def _consecutive_reactions(
    graph: HeteroData, model: Any, currency_degree: int
) -> tuple[Int64Array, Int64Array]:
    """Pairs (producing reaction, consuming reaction) over non-currency metabolites, unique."""
    lower, upper = (
        np.array([number_of(getattr(item, bound)) for item in model.reactions])
        for bound in ("lower_bound", "upper_bound")
    )
    if (odd := np.isnan(lower) | np.isnan(upper)).any():
        item = model.reactions[int(np.argmax(odd))]
        said = f"reaction '{item.id}' has the bounds {item.lower_bound!r} and {item.upper_bound!r}, expected numbers"
        raise SourceContractError(said, fix=_MODEL)
    rmr = graph["reaction", "rmr", "metabolite"]
    reaction, metabolite = rmr.hyperedge_index.numpy()
    num_reactions, num_metabolites = graph["reaction"].num_nodes, graph["metabolite"].num_nodes
    # One that the medium blocks (both bounds 0) is taken as written.
    forward, reverse = ((upper > 0) | ((lower == 0) & (upper == 0)))[reaction], (lower < 0)[reaction]
    linking = np.bincount(metabolite, minlength=num_metabolites)[metabolite] <= currency_degree
    gains = rmr.stoichiometry.numpy() > 0  # never 0
    produces, consumes = np.where(gains, forward, reverse), np.where(gains, reverse, forward)
    produced, consumed = (
        _Groups.from_pairs(metabolite[chosen], reaction[chosen], num_metabolites, num_reactions)
        for chosen in (linking & produces, linking & consumes)
    )
    every = np.arange(num_metabolites)
    first, second = produced.cross(every, consumed, every)
    pairs = np.unique((first * num_reactions + second)[first != second])
    first, second = np.divmod(pairs, max(num_reactions, 1))
    return first, second


def _gene_features(graph: HeteroData, rules: GeneRules) -> Float32Array:
    num_genes, num_metabolites = graph["gene"].num_nodes, graph["metabolite"].num_nodes
    names, named = graph["gene", "gpr", "reaction"].hyperedge_index.numpy()
    rmr = graph["reaction", "rmr", "metabolite"].hyperedge_index.numpy()
    reactions = np.bincount(names, minlength=num_genes)
    substances = _Groups.from_pairs(rmr[0], rmr[1], graph["reaction"].num_nodes, num_metabolites)
    at, ptr = ragged_rows(substances.ptr, named)
    touches = _Groups.from_pairs(
        np.repeat(names, np.diff(ptr)), substances.items[at], num_genes, num_metabolites
    )
    alone = np.arange(num_genes + 1, dtype=np.int64)
    _, lost_ptr = rules.removed_reactions(alone[:-1], alone)
    columns = [
        np.log1p(reactions),
        np.log1p(np.diff(rules.gene_ptr)),
        np.log1p(np.diff(touches.ptr)),
        np.diff(lost_ptr) / np.maximum(reactions, 1),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _codes(source: Int64Array, target: Int64Array, num_genes: int) -> Int64Array:
    """``source * num_genes + target`` of both directions, ascending, unique, without self loops."""
    apart = source != target
    source, target = source[apart], target[apart]
    return np.unique(np.concatenate([source * num_genes + target, target * num_genes + source]))
