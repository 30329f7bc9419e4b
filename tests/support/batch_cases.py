"""Small stores for the batch tests: base graphs with every awkward part, and what PyG itself makes of their samples."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data, HeteroData

import torchcell_cache as tc

STORAGES = ("perturbation", "delta", "full")
STATISTICS = (
    "phenotype_stat_values",
    "phenotype_stat_type_indices",
    "phenotype_stat_sample_indices",
    "phenotype_stat_types",
)


@dataclass
class Case:
    """A base graph and its samples, as lists."""

    base: object
    perturbed: list
    phenotypes: dict = field(default_factory=dict)
    statistics: dict = field(default_factory=dict)

    def source(self):
        return tc.PerturbationTable(
            self.base, self.perturbed, phenotypes=self.phenotypes, statistics=self.statistics
        )


def processors(case):
    """Every built-in processor that the base graph allows."""
    out = [tc.LazySubgraphRepresentation(), tc.SubgraphRepresentation(), tc.Perturbation()]
    if isinstance(case.base, HeteroData) and "reaction" in case.base.node_types:
        out += [tc.LazySubgraphRepresentation(gpr="rule"), tc.SubgraphRepresentation(gpr="rule")]
    return out


def pyg_batch(source, processor, positions, **options):
    """What the store's batch has to equal: PyG's own, of samples made from scratch."""
    return Batch.from_data_list([processor(source[k]) for k in positions], **options)


def index_of(pairs, dtype=torch.int64):
    return torch.tensor(pairs, dtype=dtype).reshape(-1, 2).t().contiguous()


def add_edges(store, draw, source, target, num_features=True):
    """Edges with repeats; often none; weights and attributes now and then."""
    pairs = draw(st.lists(st.tuples(source, target), max_size=10))
    store.edge_index = index_of(pairs)
    if draw(st.booleans()):
        store.num_edges = len(pairs)
    if num_features and draw(st.booleans()):
        store.edge_weight = torch.arange(len(pairs), dtype=torch.float64)
        store.edge_attr = torch.arange(len(pairs) * 2, dtype=torch.int32).reshape(-1, 2)


def node(count):
    return st.integers(0, count - 1)


@st.composite
def hetero_graphs(draw):
    genes = draw(st.integers(1, 6))
    graph = HeteroData()
    graph["gene"].num_nodes = genes
    graph["gene"].node_ids = [f"G{k}" for k in range(genes)]
    if draw(st.booleans()):
        graph["gene"].x = torch.arange(genes * 2, dtype=torch.float32).reshape(genes, 2)
    if draw(st.booleans()):
        graph["gene"].essential = torch.arange(genes) % 2 == 0
    reactions = draw(st.integers(1, 5)) if draw(st.booleans()) else 0
    if reactions:
        graph["reaction"].num_nodes = reactions
        if draw(st.booleans()):
            graph["reaction"].w_growth = torch.arange(reactions, dtype=torch.float32)
        graph["metabolite"].num_nodes = 3
        graph["metabolite"].node_ids = ["a", "b", "c"]
        if draw(st.booleans()):
            graph["metabolite"].charge = torch.tensor([1.0, -1.0, 0.0])
        names = st.sampled_from(graph["gene"].node_ids)
        rule = st.one_of(
            st.just(""), names, st.tuples(names, st.sampled_from(["and", "or"]), names).map(" ".join)
        )
        graph["reaction"].gene_rules = draw(st.lists(rule, min_size=reactions, max_size=reactions))
    for name in draw(st.lists(st.sampled_from(["physical", "regulatory"]), unique=True)):
        add_edges(graph["gene", name, "gene"], draw, node(genes), node(genes))
    if reactions:
        if draw(st.booleans()):
            gpr = draw(st.lists(st.tuples(node(genes), node(reactions)), max_size=8))
            graph["gene", "gpr", "reaction"].hyperedge_index = index_of(gpr)
        if draw(st.booleans()):
            rmr = draw(st.lists(st.tuples(node(reactions), node(3)), max_size=8))
            graph["reaction", "rmr", "metabolite"].hyperedge_index = index_of(rmr)
            graph["reaction", "rmr", "metabolite"].stoichiometry = torch.arange(len(rmr), dtype=torch.float32)
        if draw(st.booleans()):
            add_edges(graph["gene", "binds", "metabolite"], draw, node(genes), node(3))
            add_edges(graph["reaction", "next", "reaction"], draw, node(reactions), node(reactions))
    return graph


@st.composite
def plain_graphs(draw):
    nodes = draw(st.integers(1, 6))
    data = Data(num_nodes=nodes)
    if draw(st.booleans()):
        data.node_ids = [f"N{k}" for k in range(nodes)]
    if draw(st.booleans()):
        data.x = torch.arange(nodes * 2, dtype=torch.float32).reshape(nodes, 2)
    if draw(st.booleans()):
        data.level = torch.arange(nodes, dtype=torch.int16)
    if draw(st.booleans()):
        add_edges(data, draw, node(nodes), node(nodes))
    return data


number = st.one_of(st.just(math.nan), st.sampled_from([0.0, -0.0, math.inf]), st.floats(-9, 9, width=32))


def columns(names, samples):
    one_each = st.lists(number, min_size=samples, max_size=samples)
    several = st.lists(st.lists(number, min_size=1, max_size=3), min_size=samples, max_size=samples)
    return st.one_of(
        st.just({}), *(st.fixed_dictionaries(dict.fromkeys(names, c)) for c in (one_each, several))
    )


@st.composite
def cases(draw):
    base = draw(st.one_of(hetero_graphs(), hetero_graphs(), plain_graphs()))
    nodes = base["gene"].num_nodes if isinstance(base, HeteroData) else base.num_nodes
    samples = draw(st.integers(1, 5))
    some = st.sets(node(nodes)).map(sorted)
    perturbed = draw(
        st.lists(
            st.one_of(some, st.just([]), st.just(list(range(nodes)))), min_size=samples, max_size=samples
        )
    )
    phenotypes = draw(columns(("fitness", "growth"), samples))
    statistics = draw(columns(("se",), samples))
    if phenotypes and statistics:  # all columns of a table have one number per sample, or all have lists
        ragged = [isinstance(next(iter(c.values()))[0], list) for c in (phenotypes, statistics)]
        if ragged[0] != ragged[1]:
            statistics = {}
    return Case(base, perturbed, phenotypes, statistics)


def wide_graph(num_edges=150_000, num_genes=40):
    """Edges so many that removed positions lie further apart than one 16-bit word can say."""
    random = np.random.default_rng(0)
    graph = HeteroData()
    graph["gene"].num_nodes = num_genes
    graph["gene"].node_ids = [f"G{k}" for k in range(num_genes)]
    graph["gene"].x = torch.from_numpy(random.standard_normal((num_genes, 3)).astype(np.float32))
    for name in ("physical", "regulatory"):
        edges = random.integers(3, num_genes, (2, num_edges))
        edges[0, [5, num_edges // 2, num_edges - 1]] = [0, 1, 2]  # genes 0 to 2 have one edge each
        graph["gene", name, "gene"].edge_index = torch.from_numpy(edges)
    return graph


def tiny_case(homogeneous=False):
    """Samples that remove nothing, something and everything; one to three measurements, some missing."""
    base = tc.testing.tiny_graph(homogeneous=homogeneous)
    perturbed = [[0], [], [1, 3], [7], [0, 2, 5], list(range(8)), [4], [0]]
    nan = math.nan
    fitness = [[1.0], [0.5, 0.25], [nan], [2.0], [nan, 3.0], [1.5], [4.0, 5.0, 6.0], [0.0]]
    growth = [[nan], [0.1, nan], [nan], [0.3], [0.4, 0.5], [0.6], [nan, nan, nan], [0.8]]
    error = [[0.01 * k] * len(row) for k, row in enumerate(fitness)]
    return Case(base, perturbed, {"fitness": fitness, "growth": growth}, {"se": error})


def as_pyg(batch: tc.SharedGraphBatch):
    """The PyG batch without statistics, which only some of the samples have."""
    return batch.to_pyg(exclude_keys=STATISTICS)
