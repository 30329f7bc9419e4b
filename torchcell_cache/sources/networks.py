"""``cell_graph``: torchcell's base graph from gene-gene networks and a metabolism.

Networks are networkx graphs, edge tables or files; networkx itself is never imported. As in torchcell, genes are
sorted, edges keep the order of their network, edges of other genes are left out, an undirected network gives each
edge once, and self loops, if asked for, stand behind the edges, one per gene.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.record import Int64Array
from torchcell_cache.rules import rule_genes

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

_METABOLISM = ("metabolism", "metabolism_bipartite")
_TABLES = ("reactions", "metabolites", "gene_rules", "rmr", "gpr", "w_growth")
_GROWTH = "Growth"


def cell_graph(
    gene_set: Iterable[str] | None = None,
    graphs: Mapping[str, Any] | None = None,
    incidence_graphs: Mapping[str, Any] | None = None,
    *,
    self_loops: bool = False,
    features: Any = None,
    both_directions: bool = False,
) -> HeteroData:
    """Base graph of a cell.

    Args:
        gene_set: Names of the genes; if ``None``, all genes of the networks.
        graphs: Gene-gene networks by name: a networkx graph, ``(sources, targets)`` names, or the path of a CSV or
            TSV file (also ``.gz``) whose first two columns are source and target. Lines that start with ``#`` are
            comments. With a ``gene_set``, edges of other names - and so a header - are left out.
        incidence_graphs: ``{"metabolism": ...}``: torchcell's bipartite networkx graph (nodes with ``node_type``
            ``reaction`` - with ``genes`` and ``subsystem`` - or ``metabolite``; edges from reaction to metabolite with
            ``edge_type`` ``reactant`` or ``product`` and ``stoichiometry``), or a mapping of tables: ``reactions`` and
            ``metabolites`` (ids), ``rmr`` (reaction ids, metabolite ids, signed coefficients), and, optional,
            ``gene_rules`` (a boolean rule per reaction), ``gpr`` (gene names, reaction ids; from the rules if absent),
            ``w_growth`` (a number per reaction).
        self_loops: One self loop per gene behind the edges of each network, in place of those it has.
        features: ``gene.x``, ``[num_genes, d]`` in the order of the sorted genes; ``d`` is 0 if ``None``.
        both_directions: Add the reverse of each edge, behind the edges.

    Returns:
        ``gene`` (``node_ids``, ``num_nodes``, ``x float32``), an edge type ``("gene", name, "gene")`` per network,
        and, with a metabolism, ``reaction`` (``w_growth float32``), ``metabolite``, the hyperedges ``gpr`` and ``rmr``
        (``stoichiometry float32``).

    Raises:
        SettingError: If an argument is of no known kind.
        SourceContractError: If a table or file does not hold what it should.
    """
    from torch_geometric.data import HeteroData

    pairs = {str(name): _name_pairs(str(name), network) for name, network in (graphs or {}).items()}
    if gene_set is None:
        names = sorted({gene for sources, targets in pairs.values() for gene in (*sources, *targets)})
    else:
        names = sorted(set(gene_set))
    if not names:
        raise SettingError("the cell has no genes", fix="pass gene_set=[...] or graphs={...}")
    if odd := next((name for name in names if not isinstance(name, str)), None):
        raise SourceContractError(f"gene {odd!r} is {type(odd).__name__}, expected text")
    position = {name: k for k, name in enumerate(names)}
    graph = HeteroData()
    graph["gene"].node_ids = names
    graph["gene"].num_nodes = len(names)
    graph["gene"].x = _features(features, len(names))
    for name, (sources, targets) in pairs.items():
        edges = _edges(sources, targets, position, both_directions)
        if self_loops:
            loops = np.arange(len(names), dtype=np.int64)
            edges = np.concatenate([edges[:, edges[0] != edges[1]], np.stack([loops, loops])], axis=1)
        graph["gene", name, "gene"].edge_index = torch.from_numpy(np.ascontiguousarray(edges))
        graph["gene", name, "gene"].num_edges = edges.shape[1]
    for name, network in (incidence_graphs or {}).items():
        if name not in _METABOLISM:
            raise SettingError(f"incidence graph {name!r} is unknown; valid: {', '.join(_METABOLISM)}")
        _set_metabolism(graph, _tables(network), position)
    return graph


def _features(features: Any, num_genes: int) -> torch.Tensor:
    x = torch.zeros((num_genes, 0)) if features is None else torch.as_tensor(features, dtype=torch.float32)
    if x.dim() != 2 or x.size(0) != num_genes:
        raise SourceContractError(f"features have shape {tuple(x.shape)}, expected [{num_genes}, d]")
    return x


def _name_pairs(name: str, network: Any) -> tuple[Sequence[str], Sequence[str]]:
    """Source and target names of a network, in its order."""
    network = (
        getattr(network, "graph", network) if not hasattr(network, "edges") else network
    )  # torchcell's GeneGraph
    if hasattr(network, "edges") and callable(network.edges):
        pairs = list(network.edges())
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if isinstance(network, str | Path):
        return _read_pairs(Path(network).expanduser())
    if isinstance(network, tuple | list) and len(network) == 2:
        sources, targets = (part.tolist() if hasattr(part, "tolist") else list(part) for part in network)
        if len(sources) == len(targets):
            return sources, targets
        raise SourceContractError(f"graph {name!r} has {len(sources)} sources and {len(targets)} targets")
    raise SettingError(
        f"graph {name!r} is {type(network).__name__}, expected a networkx graph, (sources, targets) or a file"
    )


def _read_pairs(path: Path) -> tuple[list[str], list[str]]:
    stem = path.name.removesuffix(".gz")
    opener = gzip.open if path.name.endswith(".gz") else open
    sources: list[str] = []
    targets: list[str] = []
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file, delimiter="," if stem.endswith(".csv") else "\t")):
                if not row or row[0].startswith("#"):
                    continue
                if len(row) < 2:
                    raise SourceContractError(f"{path}, line {number + 1}: expected two columns", path=path)
                sources.append(row[0])
                targets.append(row[1])
    except (OSError, UnicodeDecodeError) as error:
        raise SourceContractError(f"{path} cannot be read: {error}", path=path) from None
    return sources, targets


def _edges(
    sources: Sequence[str], targets: Sequence[str], position: Mapping[str, int], both: bool
) -> Int64Array:
    pairs = [(position.get(a, -1), position.get(b, -1)) for a, b in zip(sources, targets, strict=True)]
    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    edges = edges[:, (edges >= 0).all(axis=0)]
    return np.concatenate([edges, edges[::-1, edges[0] != edges[1]]], axis=1) if both else edges


def _tables(network: Any) -> dict[str, Any]:
    """A metabolism as tables."""
    if isinstance(network, Mapping) and not hasattr(network, "edges"):
        unknown, missing = (
            sorted(set(network) - set(_TABLES)),
            sorted({"reactions", "metabolites", "rmr"} - set(network)),
        )
        if unknown or missing:
            raise SettingError(
                f"metabolism: missing {missing}, unknown {unknown}; tables are {', '.join(_TABLES)}"
            )
        return dict(network)
    if not (hasattr(network, "edges") and hasattr(network, "nodes")):
        raise SettingError(
            f"metabolism is {type(network).__name__}, expected a networkx graph or a mapping of tables"
        )
    nodes = dict(network.nodes(data=True))
    if odd := next(
        (n for n, data in nodes.items() if data.get("node_type") not in ("reaction", "metabolite")), None
    ):
        raise SourceContractError(f"metabolism: node {odd!r} has no node_type reaction or metabolite")
    reactions = sorted(n for n, data in nodes.items() if data["node_type"] == "reaction")
    rmr: list[tuple[str, str, float]] = []
    for source, target, data in network.edges(data=True):
        if nodes[source]["node_type"] == "reaction" and nodes[target]["node_type"] == "metabolite":
            sign = -1.0 if data.get("edge_type") == "reactant" else 1.0
            rmr.append((source, target, sign * float(data.get("stoichiometry", 1.0))))
    gpr = [(gene, reaction) for reaction in reactions for gene in sorted(nodes[reaction].get("genes") or ())]
    return {
        "reactions": reactions,
        "metabolites": sorted(n for n, data in nodes.items() if data["node_type"] == "metabolite"),
        "rmr": tuple(zip(*rmr, strict=True)) or ((), (), ()),
        "gpr": tuple(zip(*gpr, strict=True)) or ((), ()),
        "w_growth": [float(nodes[reaction].get("subsystem") == _GROWTH) for reaction in reactions],
    }


def _set_metabolism(graph: HeteroData, tables: Mapping[str, Any], genes: Mapping[str, int]) -> None:
    reactions, metabolites = ([str(item) for item in tables[key]] for key in ("reactions", "metabolites"))
    row, column = _positions(reactions, "reaction"), _positions(metabolites, "metabolite")
    rules = tables.get("gene_rules")
    for key in ("gene_rules", "w_growth"):
        if tables.get(key) is not None and len(tables[key]) != len(reactions):
            raise SourceContractError(f"metabolism: {len(tables[key])} {key} for {len(reactions)} reactions")
    gpr = tables.get("gpr")
    if gpr is None:
        named = [
            (gene, reaction)
            for reaction, rule in zip(reactions, rules or (), strict=False)
            for gene in rule_genes(rule)
        ]
        gpr = tuple(zip(*named, strict=True)) or ((), ())
    graph["reaction"].node_ids = reactions
    graph["reaction"].num_nodes = len(reactions)
    if rules is not None:
        graph["reaction"].gene_rules = [str(rule) for rule in rules]
    growth = tables.get("w_growth")
    graph["reaction"].w_growth = torch.as_tensor(
        np.zeros(len(reactions)) if growth is None else np.asarray(growth), dtype=torch.float32
    )
    graph["metabolite"].node_ids = metabolites
    graph["metabolite"].num_nodes = len(metabolites)
    known = [(genes[g], _at(row, r, "gpr", "reaction")) for g, r in zip(*gpr, strict=True) if g in genes]
    _set_hyperedges(graph["gene", "gpr", "reaction"], known)
    reaction, metabolite, coefficients = tables["rmr"]
    pairs = [
        (_at(row, r, "rmr", "reaction"), _at(column, m, "rmr", "metabolite"))
        for r, m in zip(reaction, metabolite, strict=True)
    ]
    store = graph["reaction", "rmr", "metabolite"]
    _set_hyperedges(store, pairs)
    store.stoichiometry = torch.as_tensor(np.asarray(coefficients, dtype=np.float32))
    if store.stoichiometry.shape != (len(pairs),):
        raise SourceContractError(
            f"metabolism: {len(store.stoichiometry)} coefficients for {len(pairs)} rmr entries"
        )


def _set_hyperedges(store: Any, pairs: list[tuple[int, int]]) -> None:
    entries = np.ascontiguousarray(np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
    store.hyperedge_index = torch.from_numpy(entries)
    store.num_edges = entries.shape[1]


def _positions(ids: list[str], what: str) -> dict[str, int]:
    position = {name: k for k, name in enumerate(ids)}
    if len(position) != len(ids):
        raise SourceContractError(f"metabolism: {what} ids repeat")
    return position


def _at(position: Mapping[str, int], name: Any, table: str, what: str) -> int:
    if name not in position:
        raise SourceContractError(
            f"metabolism: {table} names {what} {name!r}, which is not one of the {what}s"
        )
    return position[name]
