"""``cell_graph``: torchcell's base graph from gene-gene networks and a metabolism.

Networks are networkx graphs, edge tables or files; networkx itself is never imported. As in torchcell, genes are
sorted, edges keep the order of their network, edges of other genes are left out, an undirected network gives each
edge once, and self loops, if asked for, stand behind the edges, one per gene.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchcell_cache.core.checks import real_numbers, truth
from torchcell_cache.core.ragged import Float32Array, Int64Array
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.columns import check_order
from torchcell_cache.sources.gene_lists import gene_names
from torchcell_cache.sources.measurements import float32_numbers
from torchcell_cache.sources.metabolism import set_metabolism
from torchcell_cache.sources.name_lists import coded
from torchcell_cache.sources.names import NodeNames, read_aliases
from torchcell_cache.sources.network_tables import Pairs, read_network

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

_METABOLISM = ("metabolism", "metabolism_bipartite")


def cell_graph(
    gene_set: Iterable[str] | str | Path | None = None,
    graphs: Mapping[str, Any] | None = None,
    incidence_graphs: Mapping[str, Any] | None = None,
    *,
    self_loops: bool = False,
    features: Any = None,
    both_directions: bool = False,
    aliases: Mapping[str, str] | str | Path | None = None,
    header: bool | Mapping[str, bool | None] | None = None,
    weights: str | int | Mapping[str, str | int | None] | None = None,
) -> HeteroData:
    """Base graph of a cell.

    What was kept and left out of each network stands in ``notes``, a tuple of lines, of the graph that is returned
    (``for note in graph.notes: print(note)``); a build says them and keeps them in the store. Names are compared without the
    blanks around them and as they stand otherwise. A network that has edges and keeps none is refused.

    Args:
        gene_set: Names of the genes, or the path of a file with one name per line; if ``None``, all genes of the
            networks.
        graphs: Gene-gene networks by name: a networkx graph; ``(sources, targets)`` names; a list of pairs; a pandas
            frame; or the path of a file (also ``.gz``): CSV or TSV whose first two columns - or two columns whose names
            differ as in ``source``, ``target`` or ``gene_a``, ``gene_b`` - are the ends of an edge, STRING's links
            (without their taxon), BioGRID's tables, or SIF. Lines that start with ``#`` are comments. An edge that a
            file lists again is one edge.
        incidence_graphs: ``{"metabolism": ...}``: torchcell's bipartite networkx graph (nodes with ``node_type``
            ``reaction`` - with ``genes`` and ``subsystem`` - or ``metabolite``; edges with ``edge_type`` ``reactant`` or
            ``product`` and ``stoichiometry``; or edges in the direction of flow, or signed stoichiometry), or a
            mapping of tables: ``reactions`` and ``metabolites`` (ids), ``rmr`` (reaction ids, metabolite ids, signed
            coefficients), and, optional, ``gene_rules`` (a boolean rule per reaction), ``gpr`` (gene names, reaction
            ids; from the rules if absent), ``w_growth`` (a number per reaction).
        self_loops: One self loop per gene behind the edges of each network, in place of those it has.
        features: ``gene.x``, ``[num_genes, d]`` in the order of the sorted genes; ``d`` is 0 if ``None``.
        both_directions: Add the reverse of each edge, behind the edges, where it is not among them; each edge once.
        aliases: Other names of genes: a mapping of name to gene, or a file of two such columns. Used for
            networks, gene rules and ``gpr``.
        header: Whether the first row of a file names its columns, for all files or by network. ``None``: a header if no
            cell of it is a gene and others are, or if it reads like one.
        weights: Column (name or position, from 0) or networkx attribute that is kept as ``edge_weight``, for all
            networks or by network. Self loops weigh 1.

    Returns:
        ``gene`` (``node_ids``, ``num_nodes``, ``x float32``), an edge type ``("gene", name, "gene")`` per network
        (``edge_index int64``, with ``weights`` also ``edge_weight [num_edges] float32``), and, with a metabolism,
        ``reaction`` (``w_growth float32``), ``metabolite``, the hyperedges ``gpr`` and ``rmr``
        (``stoichiometry float32``).

    Raises:
        SettingError: If an argument is of no known kind.
        SourceContractError: If a table or file does not hold what it should, or no name of it is a gene.

    Example:
        >>> cell_graph(["A", "B", "C"], {"physical": [("A", "B"), ("A", "C")]}).notes
        ('network physical: 2 of 2 edges kept',)
    """
    from torch_geometric.data import HeteroData

    self_loops, both = truth("self_loops", self_loops), truth("both_directions", both_directions)
    graphs = {str(name): network for name, network in _by_name(graphs, "graphs").items()}
    other = read_aliases(aliases)
    genes = None if gene_set is None else NodeNames(gene_names(gene_set), other, "gene")
    known = None if genes is None else genes.__contains__
    headers, columns = (
        _each(value, what, graphs) for value, what in ((header, "header"), (weights, "weights"))
    )
    pairs = {
        name: read_network(f"network {name!r}", network, known, headers[name], columns[name])
        for name, network in graphs.items()
    }
    if genes is None:
        named = {other.get(name, name) for part in pairs.values() for name in (*part.sources, *part.targets)}
        genes = NodeNames(sorted(named), other, "gene")
    if not len(genes):
        raise SettingError("the cell has no genes", fix="pass gene_set=[...] or graphs={...}")
    graph = HeteroData()
    graph["gene"].node_ids = genes.names
    graph["gene"].num_nodes = len(genes)
    graph["gene"].x = _features(features, genes.names)
    notes = [
        _set_network(graph["gene", name, "gene"], name, part, genes, both, self_loops)
        for name, part in pairs.items()
    ]
    folded: dict[str, str] = {}
    for name in genes.names if gene_set is None else ():
        if (twin := folded.setdefault(name.casefold(), name)) != name:
            notes.append(f"{twin!r} and {name!r} differ in letter case only, and are two genes")
            break  # one says enough
    incidence = _by_name(incidence_graphs, "incidence_graphs")
    if len(incidence) > 1:
        raise SettingError(f"incidence_graphs has {', '.join(map(repr, incidence))}, expected one metabolism")
    for name, network in incidence.items():
        if name not in _METABOLISM:
            raise SettingError(f"incidence graph {name!r} is unknown; valid: {', '.join(_METABOLISM)}")
        notes.append(set_metabolism(graph, network, genes))
    graph.__dict__["notes"] = tuple(notes)  # beside the content: what is stored and hashed stays as it was
    return graph


def _by_name(graphs: Any, what: str) -> dict[Any, Any]:
    if graphs is None or callable(getattr(graphs, "items", None)):  # a mapping, or torchcell's GeneMultiGraph
        return {} if graphs is None else dict(graphs.items())
    said = f"{what} is {type(graphs).__name__}, expected a mapping"
    raise SettingError(said, fix=f'{what}={{"name": network, ...}}')


def _each(value: Any, what: str, graphs: Mapping[str, Any]) -> dict[str, Any]:
    """A setting of each network, from one value for all or a mapping."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(graphs, value)
    if unknown := [name for name in value if name not in graphs]:
        said = f"{what} names {unknown[0]!r}, which is not one of the graphs: {', '.join(graphs)}"
        raise SettingError(said)
    return {name: value.get(name) for name in graphs}


def _features(features: Any, genes: list[str]) -> torch.Tensor:
    check_order(features, genes, "features")
    exact = np.zeros((len(genes), 0)) if features is None else real_numbers("features", features)
    if exact.ndim != 2 or len(exact) != len(genes):
        raise SourceContractError(
            f"features have shape {exact.shape}, expected [{len(genes)}, d]",
            fix="one row per gene, in the order of their names",
        )
    with np.errstate(over="ignore"):
        x = exact.astype(np.float32)
    if (odd := np.isinf(x) & np.isfinite(exact)).any():
        raise SourceContractError(f"features hold {exact[odd][0]}, which float32 does not", fix="scale them")
    return torch.from_numpy(x)


def _set_network(store: Any, name: str, pairs: Pairs, genes: NodeNames, both: bool, self_loops: bool) -> str:
    """Set the edges of a network; what was kept and left out, in a line."""
    names, codes = coded(chain(pairs.sources, pairs.targets))
    positions = genes.positions(names)
    edges = positions[codes].reshape(2, -1) if names else np.empty((2, 0), dtype=np.int64)
    kept = np.flatnonzero((edges >= 0).all(axis=0))
    met = genes.report(names, positions)
    total, left = edges.shape[1], edges.shape[1] - len(kept)
    if total and not len(kept):
        some = "; no edge joins two of these" if met.matched else ""
        raise SourceContractError(
            f"network {name!r} ({pairs.origin}) keeps none of its {total:,} edges: {met}{some}",
            fix='correct the names, pass aliases={"name": "gene"}, or leave the network out',
        )
    edges, weight = edges[:, kept], None
    if pairs.weights is not None:
        ends = list(zip(pairs.sources, pairs.targets, strict=True))
        weight, vanished = float32_numbers(
            [pairs.weights[k] for k in kept.tolist()],
            lambda k: f"network {name!r}: edge {kept[k]} ({', '.join(ends[kept[k]])}) has the weight",
            "correct it, or keep no weights of this network",
        )
        pairs.remarks += [f"{vanished:,} weights too small for float32 are 0"] * bool(vanished)
    if pairs.listed or both:
        edges, weight, repeated = _distinct(name, edges, weight, genes)
        pairs.remarks += [f"{repeated:,} listed more than once"] * bool(repeated)
    elif again := edges.shape[1] - len(np.unique(edges[0] * len(genes) + edges[1])):
        pairs.remarks.append(f"{again:,} are there more than once, each kept")
    if both:  # behind the edges the reverse of those that have none among them
        alone = ~np.isin(edges[1] * len(genes) + edges[0], edges[0] * len(genes) + edges[1])
        edges = np.concatenate([edges, edges[::-1, alone]], axis=1)
        weight = None if weight is None else np.concatenate([weight, weight[alone]])
    if self_loops:
        apart = edges[0] != edges[1]
        edges = np.concatenate([edges[:, apart], np.tile(np.arange(len(genes)), (2, 1))], axis=1)
        ones = np.ones(len(genes), dtype=np.float32)
        weight = None if weight is None else np.concatenate([weight[apart], ones])
    store.edge_index = torch.from_numpy(np.ascontiguousarray(edges))
    store.num_edges = edges.shape[1]
    if weight is not None:
        store.edge_weight = torch.from_numpy(weight)
    line = f"network {name}: {len(kept):,} of {total:,} edges kept"
    return "; ".join([line + (f", {left:,} left out: {met}" if left else ""), *pairs.remarks])


def _distinct(
    name: str, edges: Int64Array, weight: Float32Array | None, genes: NodeNames
) -> tuple[Int64Array, Float32Array | None, int]:
    """Each edge once, where it stands first; and how many stood there again."""
    _, first, inverse = np.unique(edges[0] * len(genes) + edges[1], return_index=True, return_inverse=True)
    if len(first) == edges.shape[1]:
        return edges, weight, 0
    if weight is not None and (odd := np.flatnonzero(weight != weight[first][inverse])).size:
        k = int(odd[0])
        one, other = (genes.names[end] for end in edges[:, k].tolist())
        raise SourceContractError(
            f"network {name!r} has the edge ({one}, {other}) with the weights {weight[first][inverse][k]} and {weight[k]}",
            fix="give each edge once",
        )
    order = np.sort(first)
    return edges[:, order], None if weight is None else weight[order], edges.shape[1] - len(order)
