"""Base graphs and samples small enough to read, with the awkward parts that real ones have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data, HeteroData

from torchcell_cache.sources.table import PerturbationTable


def tiny_graph(
    num_genes: int = 8,
    *,
    num_features: int = 2,
    metabolism: bool = True,
    homogeneous: bool = False,
    seed: int = 0,
) -> Any:
    """A base graph small enough to read, with the awkward parts real ones have.

    Parallel edges, a self loop, an isolated gene (the last), an edge type without edges and, with ``metabolism``,
    reactions with and without genes.

    Args:
        num_genes: Number of genes (of nodes, if homogeneous); at least 4.
        num_features: Width of ``x``; 0 leaves it out.
        metabolism: Add five reactions with gene rules and four metabolites.
        homogeneous: Give a ``Data`` with ``edge_index`` and ``edge_weight`` instead of a ``HeteroData``.
        seed: Seed of edges and features.

    Example:
        >>> tc.testing.tiny_graph(metabolism=False).edge_types[0]
        ('gene', 'physical', 'gene')
    """
    random = np.random.default_rng(seed)
    features = torch.from_numpy(random.standard_normal((num_genes, num_features)).astype(np.float32))
    edges = random.integers(0, num_genes - 1, (2, 3 * num_genes))
    edges[:, 1] = edges[:, 0]
    edges[1, 2] = edges[0, 2]
    names = [f"G{k}" for k in range(num_genes)]
    if homogeneous:
        data = Data(edge_index=torch.from_numpy(edges), num_nodes=num_genes, node_ids=names)
        data.edge_weight = torch.from_numpy(random.random(3 * num_genes).astype(np.float32))
        if num_features:
            data.x = features
        return data
    graph = HeteroData()
    graph["gene"].node_ids, graph["gene"].num_nodes = names, num_genes
    if num_features:
        graph["gene"].x = features
    if metabolism:
        a, b, c, d = names[:4]
        graph["reaction"].num_nodes = 5
        graph["reaction"].node_ids = [f"R{k}" for k in range(5)]
        graph["reaction"].gene_rules = [f"{a} and {b}", f"{b} or {c}", "", d, f"({a} and {d}) or {c}"]
        graph["metabolite"].node_ids = [f"M{k}" for k in range(4)]
        graph["metabolite"].num_nodes = 4
    kinds = {"physical": edges, "regulatory": edges[::-1, ::2].copy(), "genetic": edges[:, :0]}
    for name, index in kinds.items():
        graph["gene", name, "gene"].edge_index = torch.from_numpy(index)
        graph["gene", name, "gene"].num_edges = index.shape[1]
    if metabolism:
        gpr, rmr = graph["gene", "gpr", "reaction"], graph["reaction", "rmr", "metabolite"]
        gpr.hyperedge_index = torch.tensor([[0, 1, 1, 2, 3, 0, 3, 2], [0, 0, 1, 1, 3, 4, 4, 4]], device="cpu")
        rmr.hyperedge_index = torch.tensor([[0, 0, 1, 2, 3, 4], [0, 1, 1, 2, 3, 0]], device="cpu")
        sizes = [-1.0, 1.0, -2.0, 0.5, 1.0, -1.0]
        rmr.stoichiometry = torch.tensor(sizes, dtype=torch.float32, device="cpu")
        gpr.num_edges, rmr.num_edges = 8, 6
    return graph


def tiny_source(num_samples: int = 12, base_graph: Any = None, *, seed: int = 0) -> PerturbationTable:
    """Knock-outs of none to three genes with the phenotype ``fitness`` (some NaN) and the statistic ``fitness_se``.

    Args:
        num_samples: How many.
        base_graph: :func:`tiny_graph` if ``None``.
        seed: Seed of knock-outs and labels.

    Example:
        >>> tc.testing.tiny_source(4)
        PerturbationTable(4, phenotypes=['fitness'])
    """
    graph = tiny_graph() if base_graph is None else base_graph
    num_nodes = int(graph.num_nodes if isinstance(graph, Data) else graph["gene"].num_nodes)
    random = np.random.default_rng(seed)
    counts = random.integers(0, min(4, num_nodes), num_samples).tolist()
    perturbed = [random.choice(num_nodes, count, replace=False).tolist() for count in counts]
    fitness = random.random(num_samples).astype(np.float32)
    fitness[::5] = np.nan
    errors = (random.random(num_samples) / 10).astype(np.float32)
    return PerturbationTable(
        graph, perturbed, phenotypes={"fitness": fitness}, statistics={"fitness_se": errors}
    )
