"""The synthetic "yeast-scale" workload: one big graph and many samples of three deleted genes.

Everything comes from one seed, so two runs, two machines and all peers see the same bytes. The sizes are
those of the graphs that the library is made for: 6,607 genes, nine gene-gene edge types with 2,552,000
directed edges, 7,110 reactions, 2,806 metabolites. Degrees are heavy tailed (log-normal gene weights, shared
by all edge types): three distinct genes remove about 2,300 gene-gene edges on average, the median is about 10
% lower and the 99th percentile 2.8 times the mean.

Edges are stored in random order. That is the worst case for building the index (every write misses the cache)
and for storing removed positions (no runs to compress); ``edge_order="source"`` gives the kinder order of an
adjacency walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch_geometric.data import HeteroData

EDGE_COUNTS = {
    "physical": 144_000,
    "regulatory": 44_000,
    "tflink": 200_000,
    "string_neighborhood": 150_000,
    "string_fusion": 12_000,
    "string_cooccurence": 12_000,
    "string_coexpression": 1_400_000,
    "string_experimental": 500_000,
    "string_database": 90_000,
}
NUM_GENES, NUM_REACTIONS, NUM_METABOLITES = 6_607, 7_110, 2_806
NUM_GPR, NUM_RMR, NUM_METABOLIC_GENES = 4_881, 16_000, 1_161
NUM_FEATURES, NUM_SAMPLES, GENES_PER_SAMPLE = 64, 300_000, 3
LARGE_INDEX_EDGES = 21_600_000
# Spread of log(gene weight): the value at which the median and the 99th percentile of the number of edges
# that a triple removes come out at 0.90 and 2.77 times the mean.
DEGREE_SIGMA = 0.77


@dataclass(frozen=True)
class Samples:
    """What a source table holds: three genes and two labels per sample.

    Attributes:
        perturbed: Gene ids, ascending and distinct within a row, ``[num_samples, 3] int32``.
        labels: Fitness and interaction, ``[num_samples, 2] float32``.
    """

    perturbed: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.perturbed)

    def head(self, count: int) -> Samples:
        """The first ``count`` samples."""
        return Samples(self.perturbed[:count], self.labels[:count])

    @property
    def ids(self) -> np.ndarray:
        """All perturbed ids behind each other, ``[3 * num_samples] int64``."""
        return self.perturbed.reshape(-1).astype(np.int64)

    @property
    def ptr(self) -> np.ndarray:
        """Offsets into ``ids``, ``[num_samples + 1] int64``."""
        return np.arange(len(self) + 1, dtype=np.int64) * self.perturbed.shape[1]


@dataclass(frozen=True)
class Workload:
    """A base graph and its samples."""

    base_graph: HeteroData
    samples: Samples
    seed: int

    @cached_property
    def num_edges(self) -> int:
        """Gene-gene edges over all types."""
        return sum(self.base_graph[t].num_edges for t in gene_edge_types(self.base_graph))


def gene_edge_types(base_graph: HeteroData) -> list[tuple[str, str, str]]:
    """The gene-gene edge types, in the graph's order."""
    return [t for t in base_graph.edge_types if t[0] == "gene" and t[2] == "gene"]


def make_workload(
    seed: int = 0,
    scale: float = 1.0,
    num_samples: int = NUM_SAMPLES,
    total_edges: int | None = None,
    edge_order: str = "random",
) -> Workload:
    """Makes graph and samples.

    Args:
        seed: The only source of randomness.
        scale: Multiplies the numbers of genes, reactions, metabolites and edges; 0.01 is a graph for tests.
        num_samples: Number of samples.
        total_edges: Gene-gene edges over all types instead of ``scale`` times the usual number
            (:data:`LARGE_INDEX_EDGES` for the large index build).
        edge_order: ``"random"`` or ``"source"``.
    """
    base_graph = make_base_graph(seed, scale, total_edges, edge_order)
    return Workload(base_graph, make_samples(seed, int(base_graph["gene"].num_nodes), num_samples), seed)


def make_samples(seed: int, num_genes: int, num_samples: int) -> Samples:
    """Draws distinct triples of genes and two labels each."""
    rng = np.random.default_rng([seed, 1])
    rows = np.sort(rng.integers(0, num_genes, (num_samples, GENES_PER_SAMPLE), dtype=np.int32), axis=1)
    while True:
        repeated = np.flatnonzero((rows[:, 1:] == rows[:, :-1]).any(axis=1))
        if len(repeated) == 0:
            break
        redrawn = rng.integers(0, num_genes, (len(repeated), GENES_PER_SAMPLE), dtype=np.int32)
        rows[repeated] = np.sort(redrawn, axis=1)
    labels = np.stack([rng.normal(0.8, 0.2, num_samples), rng.normal(0.0, 0.05, num_samples)], axis=1)
    return Samples(rows, labels.astype(np.float32))


def make_base_graph(
    seed: int = 0, scale: float = 1.0, total_edges: int | None = None, edge_order: str = "random"
) -> HeteroData:
    """Makes the base graph alone."""
    if edge_order not in ("random", "source"):
        raise ValueError(f"edge_order={edge_order!r}: choose 'random' or 'source'")
    rng = np.random.default_rng([seed, 0])
    num_genes = max(8, round(NUM_GENES * scale))
    edge_scale = scale if total_edges is None else total_edges / sum(EDGE_COUNTS.values())
    graph = HeteroData()
    graph["gene"].node_ids = [f"Y{i:05d}" for i in range(num_genes)]
    graph["gene"].num_nodes = num_genes
    graph["gene"].x = torch.from_numpy(rng.standard_normal((num_genes, NUM_FEATURES), dtype=np.float32))
    num_reactions = max(4, round(NUM_REACTIONS * scale))
    num_metabolites = max(4, round(NUM_METABOLITES * scale))
    graph["reaction"].num_nodes = num_reactions
    graph["reaction"].node_ids = [f"r_{i:04d}" for i in range(num_reactions)]
    graph["metabolite"].num_nodes = num_metabolites
    graph["metabolite"].node_ids = [f"s_{i:04d}" for i in range(num_metabolites)]
    weights = rng.lognormal(0.0, DEGREE_SIGMA, num_genes)
    weights /= weights.sum()
    for name, count in EDGE_COUNTS.items():
        edge_index = _draw_edges(rng, weights, max(1, round(count * edge_scale)), edge_order)
        graph["gene", name, "gene"].edge_index = torch.from_numpy(edge_index)
        graph["gene", name, "gene"].num_edges = edge_index.shape[1]
    _add_metabolism(rng, graph, scale)
    return graph


def _draw_edges(rng: np.random.Generator, weights: np.ndarray, count: int, order: str) -> np.ndarray:
    """Edges whose ends follow ``weights``, without self loops, ``[2, count] int64``."""
    nodes = np.arange(len(weights), dtype=np.int64)
    source = np.repeat(nodes, rng.multinomial(count, weights))
    target = rng.permutation(np.repeat(nodes, rng.multinomial(count, weights)))
    loops = source == target
    target[loops] = (target[loops] + 1) % len(weights)
    if order == "random":
        shuffled = rng.permutation(count)
        source, target = source[shuffled], target[shuffled]
    return np.stack([source, target])


def _add_metabolism(rng: np.random.Generator, graph: HeteroData, scale: float) -> None:
    """Adds gene-reaction and reaction-metabolite entries; most genes take part in no reaction."""
    num_genes, num_reactions = graph["gene"].num_nodes, graph["reaction"].num_nodes
    num_metabolites = graph["metabolite"].num_nodes
    metabolic = rng.choice(
        num_genes, max(2, min(num_genes, round(NUM_METABOLIC_GENES * scale))), replace=False
    )
    pairs = rng.choice(len(metabolic) * num_reactions, max(2, round(NUM_GPR * scale)), replace=False)
    pairs.sort()
    gpr = np.stack([metabolic[pairs % len(metabolic)], pairs // len(metabolic)]).astype(np.int64)
    store = graph["gene", "gpr", "reaction"]
    store.hyperedge_index, store.num_edges = torch.from_numpy(gpr), gpr.shape[1]

    num_rmr = max(num_reactions, round(NUM_RMR * scale))
    extra = rng.integers(0, num_reactions, num_rmr - num_reactions)
    reaction = np.sort(np.concatenate([np.arange(num_reactions), extra]))
    metabolite = rng.integers(0, num_metabolites, num_rmr)
    store = graph["reaction", "rmr", "metabolite"]
    store.hyperedge_index = torch.from_numpy(np.stack([reaction, metabolite]).astype(np.int64))
    signs = rng.choice(np.array([-2, -1, 1, 2], dtype=np.float32), num_rmr)
    store.stoichiometry = torch.from_numpy(signs)
    store.num_edges = num_rmr
