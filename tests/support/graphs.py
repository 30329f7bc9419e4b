"""Small base graphs and sample tables, fixed and drawn by hypothesis."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

import torchcell_cache as tc

PHENOTYPES = ("fitness", "size")
STATISTICS = ("fitness_se",)


def index_of(pairs):
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t().contiguous()


def cell_graph(num_genes=9, *, features=True, seed=0, metabolism=True):
    """A small cell: parallel edges, a self loop, an isolated gene, an empty edge type, gene rules."""
    random = np.random.default_rng(seed)
    graph = HeteroData()
    names = [f"Y{k:03d}" for k in range(num_genes)]
    graph["gene"].node_ids = names
    graph["gene"].num_nodes = num_genes
    if features:
        graph["gene"].x = torch.from_numpy(random.standard_normal((num_genes, 3)).astype(np.float32))
    if metabolism:
        graph["reaction"].num_nodes = 6
        graph["reaction"].node_ids = [f"r{k}" for k in range(6)]
        graph["reaction"].w_growth = torch.tensor([0, 0, 0, 0, 0, 1.0])
        graph["reaction"].gene_rules = [
            f"{names[0]} and {names[1]}",
            f"{names[1]} or {names[2]}",
            "",
            f"({names[0]} and {names[3]}) or {names[4]}",
            names[5],
            "",
        ]
        graph["metabolite"].node_ids = [f"m{k}" for k in range(4)]
        graph["metabolite"].num_nodes = 4
    for name, count in (("physical", 20), ("regulatory", 7), ("empty", 0)):
        edges = random.integers(0, num_genes - 1, (2, count))
        if count:
            edges[:, 1] = edges[:, 0]
            edges[1, 2] = edges[0, 2]
        store = graph["gene", name, "gene"]
        store.edge_index = torch.from_numpy(edges)
        store.num_edges = count
    if metabolism:
        gpr = [(0, 0), (1, 0), (1, 1), (2, 1), (0, 3), (3, 3), (4, 3), (5, 4)]
        graph["gene", "gpr", "reaction"].hyperedge_index = index_of(gpr)
        graph["gene", "gpr", "reaction"].num_edges = len(gpr)
        rmr = [(0, 0), (0, 1), (1, 1), (2, 2), (3, 0), (3, 3), (5, 3)]
        store = graph["reaction", "rmr", "metabolite"]
        store.hyperedge_index = index_of(rmr)
        store.stoichiometry = torch.tensor([-1, 1, -2, 1, 0.5, 1, -1])
        store.num_edges = len(rmr)
    return graph


def plain_graph(num_nodes=8, seed=0):
    """A homogeneous graph with edge weights."""
    random = np.random.default_rng(seed)
    return Data(
        x=torch.from_numpy(random.standard_normal((num_nodes, 2)).astype(np.float32)),
        edge_index=torch.from_numpy(random.integers(0, num_nodes, (2, 15))),
        edge_weight=torch.arange(15, dtype=torch.float32),
        num_nodes=num_nodes,
    )


@dataclass(frozen=True)
class Case:
    """A base graph and its samples, in the oracle's terms and as a source."""

    base: object
    perturbed: list
    measurements: list
    phenotypes: tuple = PHENOTYPES
    statistics: tuple = STATISTICS

    def source(self):
        def column(name):
            return [[row[name] for row in rows] for rows in self.measurements]

        return tc.PerturbationTable(
            self.base,
            self.perturbed,
            phenotypes={name: column(name) for name in self.phenotypes},
            statistics={name: column(name) for name in self.statistics},
        )


def random_case(base, num_samples=12, seed=0):
    """Samples of none to four genes, one to three measurements, some without any value."""
    random = np.random.default_rng(seed)
    num_genes = base.num_nodes if isinstance(base, Data) else base["gene"].num_nodes
    perturbed, measurements = [], []
    for _ in range(num_samples):
        count = int(random.integers(0, min(5, num_genes + 1)))
        perturbed.append(sorted(random.choice(num_genes, count, replace=False).tolist()))
        rows = []
        for _ in range(int(random.integers(1, 4))):
            values = random.standard_normal(3).astype(np.float32)
            values[random.random(3) < 0.4] = math.nan
            rows.append(dict(zip((*PHENOTYPES, *STATISTICS), values.tolist(), strict=True)))
        measurements.append(rows)
    return Case(base, perturbed, measurements)


@st.composite
def cell_graphs(draw):
    """Base graphs of every shape the processors promise to take."""
    num_genes = draw(st.integers(1, 7))
    gene = st.integers(0, num_genes - 1)
    graph = HeteroData()
    graph["gene"].node_ids = [f"G{k}" for k in range(num_genes)]
    graph["gene"].num_nodes = num_genes
    if draw(st.booleans()):
        graph["gene"].x = torch.arange(num_genes * 2, dtype=torch.float32).reshape(num_genes, 2)
    num_reactions = draw(st.integers(0, 5)) if draw(st.booleans()) else 0
    if num_reactions:
        graph["reaction"].num_nodes = num_reactions
        if draw(st.booleans()):
            graph["reaction"].w_growth = torch.arange(num_reactions, dtype=torch.float32)
        graph["metabolite"].node_ids = ["a", "b", "c"]
        graph["metabolite"].num_nodes = 3
    for number in range(draw(st.integers(0, 3))):
        edges = draw(st.lists(st.tuples(gene, gene), max_size=12))
        graph["gene", f"e{number}", "gene"].edge_index = index_of(edges)
        graph["gene", f"e{number}", "gene"].num_edges = len(edges)
    if num_reactions:
        reaction = st.integers(0, num_reactions - 1)
        if draw(st.booleans()):
            gpr = draw(st.lists(st.tuples(gene, reaction), max_size=10))
            graph["gene", "gpr", "reaction"].hyperedge_index = index_of(gpr)
            graph["gene", "gpr", "reaction"].num_edges = len(gpr)
        rmr = draw(st.lists(st.tuples(reaction, st.integers(0, 2)), max_size=8))
        graph["reaction", "rmr", "metabolite"].hyperedge_index = index_of(rmr)
        graph["reaction", "rmr", "metabolite"].stoichiometry = torch.arange(len(rmr), dtype=torch.float32)
        graph["reaction", "rmr", "metabolite"].num_edges = len(rmr)
        rules = st.recursive(
            gene.map(lambda k: f"G{k}"),
            lambda inner: st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
                lambda t: f"({t[0]} {t[1]} {t[2]})"
            ),
            max_leaves=5,
        )
        graph["reaction"].gene_rules = draw(
            st.lists(st.one_of(st.just(""), rules), min_size=num_reactions, max_size=num_reactions)
        )
    return graph


number = st.one_of(st.just(math.nan), st.sampled_from([0.0, -0.0, math.inf, -math.inf]), st.floats(width=32))


@st.composite
def cases(draw):
    base = draw(cell_graphs())
    num_genes = base["gene"].num_nodes
    names = (*PHENOTYPES, *STATISTICS)
    rows = st.lists(st.fixed_dictionaries(dict.fromkeys(names, number)), min_size=1, max_size=3)
    samples = draw(st.integers(1, 6))
    perturbed = [sorted(draw(st.sets(st.integers(0, num_genes - 1)))) for _ in range(samples)]
    return Case(base, perturbed, [draw(rows) for _ in range(samples)])
