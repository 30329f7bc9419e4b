"""Batches restricted to some nodes: PyG's own ``subgraph`` of the same nodes is the oracle."""

import copy
import gc
import pickle
import tempfile
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from batch_cases import STATISTICS, Case, cases, hetero_graphs, processors, pyg_batch, tiny_case
from graphs import cell_graph, random_case
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_batch_equality import _every_buffer_is_used_again, assert_same_batch, scribble  # noqa: F401
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATConv, GCNConv, GINConv
from torch_geometric.utils import k_hop_subgraph, subgraph

import torchcell_cache as tc
from torchcell_cache.errors import FormatError, SettingError
from torchcell_cache.nn import shared_conv, shared_edges
from torchcell_cache.testing import assert_same_graph

PHYSICAL, REGULATORY = ("gene", "physical", "gene"), ("gene", "regulatory", "gene")
GPR = ("gene", "gpr", "reaction")
OWN = ("ids_pert", "perturbation_indices")


def renamed(store, old, new):
    store._mapping = {new if name == old else name: value for name, value in store._mapping.items()}


def pyg_subset(graph, nodes):
    """PyG's ``subgraph``; what it does not know (lists, hyperedges, counts, a sample's own fields) is prepared for it."""
    graph = copy.copy(graph)
    homogeneous = isinstance(graph, Data)
    store = graph._store if homogeneous else graph["gene"]
    size, nodes = store.num_nodes, torch.as_tensor(nodes)
    new_id = {old: new for new, old in enumerate(nodes.tolist())}
    aside = {}
    for name, value in list(store._mapping.items()):
        if name in OWN or name.startswith("phenotype_"):
            aside[name], store._mapping[name] = value, 0
        elif isinstance(value, list):
            assert len(value) == size
            aside[name], store._mapping[name] = [value[k] for k in nodes.tolist()], 0
    if "perturbation_indices" in aside:
        ids = aside["perturbation_indices"].tolist()
        aside["perturbation_indices"] = torch.tensor([new_id[k] for k in ids], dtype=torch.int64)
    if homogeneous:
        out = graph.subgraph(nodes)
        if "num_nodes" not in graph:
            out.num_nodes = len(nodes)
        out._store._mapping.update(aside)
        if "num_edges" in out._store._mapping:  # a stored count, which PyG leaves as it was
            out._store._mapping["num_edges"] = out.edge_index.size(1)
        return out
    hyper = [t for t in graph.edge_types if "hyperedge_index" in graph[t]]
    for edge_type in hyper:
        renamed(graph[edge_type], "hyperedge_index", "edge_index")
    out = graph.subgraph({"gene": nodes})
    out["gene"]._mapping.update(aside)
    for edge_type in out.edge_types:
        if "num_edges" in out[edge_type]._mapping:
            out[edge_type]._mapping["num_edges"] = out[edge_type].edge_index.size(1)
    for edge_type in hyper:
        renamed(out[edge_type], "edge_index", "hyperedge_index")
    return out


def subset_case(case, nodes):
    """The same samples on the induced base graph."""
    new_id = {old: new for new, old in enumerate(nodes)}
    perturbed = [[new_id[k] for k in ids if k in new_id] for ids in case.perturbed]
    return Case(pyg_subset(case.base, nodes), perturbed, case.phenotypes, case.statistics)


def num_nodes_of(base):
    return base.num_nodes if isinstance(base, Data) else base["gene"].num_nodes


def node_type_of(base):
    return None if isinstance(base, Data) else "gene"


def exclude_of(graphs):
    """Statistics' fields if only some samples have them, as everywhere."""
    has = [any("phenotype_stat_values" in store._mapping for store in g.stores) for g in graphs]
    return list(STATISTICS) if any(has) and not all(has) else []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), data=st.data())
def test_a_restricted_batch_is_one_of_the_induced_base_graph(case, data):
    processor = data.draw(st.sampled_from(processors(case)), label="processor")
    storage = data.draw(st.sampled_from(("perturbation", "delta")), label="storage")
    positions = data.draw(st.lists(st.integers(0, len(case.perturbed) - 1), min_size=1, max_size=5))
    perturbed = {k for at in positions for k in case.perturbed[at]}
    others = data.draw(st.sets(st.integers(0, num_nodes_of(case.base) - 1)), label="others")
    nodes = sorted(perturbed | others)
    assume(nodes)
    part = subset_case(case, nodes)
    if isinstance(case.base, Data):  # fields of nodes and of edges are told apart by size
        sizes = {
            (g.num_nodes, g.edge_index.size(1)) for g in (case.base, part.base) if g.edge_index is not None
        }
        assume(all(n != e for n, e in sizes))
    samples = [processor(part.source()[k]) for k in positions]
    exclude = exclude_of(samples)
    with tempfile.TemporaryDirectory() as root:
        ds = tc.build(root, source=case.source(), processor=processor, storage=storage, progress=False)
        batch = ds.read_batch(positions)
        got = batch.restrict(node_type_of(case.base), data.draw(st.permutations(nodes)))
        assert_same_graph(got.base_graph, part.base)
        assert got.nodes.tolist() == nodes
        want = pyg_batch(part.source(), processor, positions, exclude_keys=exclude)
        pyg = got.to_pyg(exclude_keys=exclude)
        assert_same_batch(pyg, want)
        scribble(pyg)  # in place: must reach neither this batch nor the whole one
        del pyg
        again = pickle.loads(pickle.dumps(got))
        assert_same_batch(again.to_pyg(exclude_keys=exclude), want)
        for k in range(len(positions)):
            assert_same_graph(got[k], samples[k])
        check_against_whole(batch, got, nodes)


def check_against_whole(batch, part, nodes):
    """Masks and removed edges are those of the whole batch, looked at where the selected nodes are."""
    assert len(part) == len(batch)
    assert torch.equal(part.indices, batch.indices)
    for name in batch.phenotype_names:
        assert part.labels(name).equal(batch.labels(name)) or part.labels(name).isnan().any()
    assert torch.equal(part.node_mask(), batch.node_mask()[:, nodes])
    for domain, kept in zip(batch.generation.topology.domains, part.context.selection.kept, strict=True):
        if domain.role == "reaction":
            assert torch.equal(part.node_mask("reaction"), batch.node_mask("reaction"))
            continue
        here = slice(None) if kept is None else torch.from_numpy(kept)
        mask = part.edge_mask(domain.key)
        assert torch.equal(mask, batch.edge_mask(domain.key)[:, here])
        removed = torch.stack(part.removed_edges(domain.key), dim=1)
        assert torch.equal(removed, torch.nonzero(~mask))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(base=hetero_graphs(), data=st.data())
def test_to_pyg_is_the_batch_of_each_samples_own_subgraph(base, data):
    """Masks and all: ``HeteroData.subgraph`` of the finished sample."""
    size = base["gene"].num_nodes
    perturbed = data.draw(st.lists(st.sets(st.integers(0, size - 1)).map(sorted), min_size=1, max_size=3))
    nodes = sorted({k for ids in perturbed for k in ids} | data.draw(st.sets(st.integers(0, size - 1))))
    assume(nodes)
    case, processor = Case(base, perturbed), tc.LazySubgraphRepresentation()
    source = case.source()
    want = Batch.from_data_list([pyg_subset(processor(source[k]), nodes) for k in range(len(perturbed))])
    with tempfile.TemporaryDirectory() as root:
        ds = tc.build(root, source=source, processor=processor, progress=False)
        got = ds.read_batch(range(len(perturbed))).restrict("gene", nodes)
        assert_same_batch(got.to_pyg(), want)


def test_edges_order_and_numbers_are_pygs(tmp_path):
    case = random_case(cell_graph())
    ds = tc.build(tmp_path, source=case.source(), processor=tc.LazySubgraphRepresentation(), progress=False)
    for nodes in ([0, 3, 4, 8], [1, 2, 5, 6, 7], list(range(9)), [8]):
        got = ds.read_batch([0]).restrict("gene", nodes, allow_wild_type=True)
        for edge_type in (PHYSICAL, REGULATORY):
            index, _ = subgraph(
                torch.tensor(nodes), case.base[edge_type].edge_index, relabel_nodes=True, num_nodes=9
            )
            assert torch.equal(got.base_graph[edge_type].edge_index, index)
        assert got.base_graph["reaction"].num_nodes == 6  # other types stay whole
        assert got.base_graph["reaction", "rmr", "metabolite"] is not None
        genes = got.base_graph[GPR].hyperedge_index[0]
        assert [nodes[k] for k in genes.tolist()] == [
            k for k in case.base[GPR].hyperedge_index[0].tolist() if k in nodes
        ]


def stored(root, case, processor=None, storage="perturbation"):
    return tc.build(
        root,
        source=case.source(),
        processor=processor or tc.LazySubgraphRepresentation(),
        storage=storage,
        progress=False,
    )


def test_most_expressed_takes_the_largest_values_besides_the_perturbed(tmp_path):
    ds = stored(tmp_path, random_case(cell_graph()))
    positions = [p for p in range(len(ds)) if 0 < len(ds.perturbed[p]) <= 2][:2]
    batch = ds.read_batch(positions)
    perturbed = {int(k) for p in positions for k in ds.perturbed[p]}
    values = torch.tensor([0.5, 3.0, 3.0, 0.0, -1.0, 9.0, float("nan"), 2.0, 1.0])

    def expected(numbers, k):
        ranked = sorted(
            (n for n in range(9) if n not in perturbed),
            key=lambda n: (-(numbers[n] if numbers[n] == numbers[n] else -np.inf), n),
        )
        return sorted([*perturbed, *ranked[: k - len(perturbed)]])

    for k in range(len(perturbed), 12):
        got = batch.select_nodes("gene", k, strategy="most_expressed", values=values)
        assert got.nodes.tolist() == expected(values.tolist(), k)
    per_sample = torch.stack([values, 2 * values.flip(0)])
    mean = per_sample.mean(0).tolist()
    assert batch.select_nodes("gene", 5, values=per_sample).nodes.tolist() == expected(mean, 5)
    column = ds.base_graph["gene"].x[:, 1].tolist()
    assert batch.select_nodes("gene", 6, values=1).nodes.tolist() == expected(column, 6)


def test_a_named_field_of_the_base_graph_ranks_nodes(tmp_path):
    base = cell_graph()
    base["gene"].expression = torch.arange(9.0)
    ds = stored(tmp_path, Case(base, [[0], [1]]))
    batch = ds.read_batch([0, 1])
    assert batch.select_nodes("gene", 4, values="expression").nodes.tolist() == [0, 1, 7, 8]
    with pytest.raises(SettingError, match="expression"):
        batch.select_nodes("gene", 4, values="expresion")


def test_random_draws_expressed_nodes_and_depends_on_seed_epoch_and_step_only(tmp_path):
    ds = stored(tmp_path, Case(cell_graph(), [[0], [1], [0, 1]]))
    values = torch.tensor([0.0, 1, 1, 1, 1, 0, 1, 1, -2])
    expressed = {2, 3, 4, 6, 7}

    def drawn(positions, **key):
        batch = ds.read_batch(positions)
        return batch.select_nodes("gene", 5, strategy="random_expressed", values=values, **key).nodes.tolist()

    seen = Counter()
    for step in range(60):
        nodes = drawn([0, 1], step=step)
        assert len(nodes) == 5
        assert set(nodes) - {0, 1} <= expressed
        seen.update(set(nodes) - {0, 1})
        assert nodes == drawn([2], step=step)  # the same perturbed nodes: nothing else matters
    assert set(seen) == expressed
    assert max(seen.values()) < 60
    assert len({tuple(drawn([0], seed=s, epoch=e, step=7)) for s in range(5) for e in range(5)}) > 1
    few = ds.read_batch([0]).select_nodes("gene", 9, strategy="random_expressed", values=values, step=0)
    assert set(few.nodes.tolist()) == {0, 1} | expressed  # gene 1 is expressed, gene 0 perturbed


def test_weighted_draws_match_their_weights(tmp_path):
    """One node besides the perturbed one: drawn in proportion to its value."""
    ds = stored(tmp_path, Case(cell_graph(), [[0]]))
    batch = ds.read_batch([0])
    values = torch.tensor([0.0, 1, 2, 3, 4, 0, 0, 0, 0])
    count = 2000
    from torchcell_cache.batch.node_sampling import at_random

    first = Counter(int(at_random(values.numpy().astype(float), True, (1, 2, s))[0]) for s in range(count))
    assert set(first) == {1, 2, 3, 4}
    for node in range(1, 5):
        share = node / 10
        assert abs(first[node] / count - share) < 5 * (share * (1 - share) / count) ** 0.5
    drawn = batch.select_nodes(
        "gene", 2, strategy="random_expressed", values=values, weighted=True, seed=1, epoch=2, step=3
    )
    assert drawn.nodes[1] == at_random(values.numpy().astype(float), True, (1, 2, 3))[0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(base=hetero_graphs(), data=st.data())
def test_the_neighbourhood_grows_hop_by_hop(base, data):
    size = base["gene"].num_nodes
    perturbed = data.draw(st.lists(st.sets(st.integers(0, size - 1)).map(sorted), min_size=1, max_size=3))
    seeds = sorted({k for ids in perturbed for k in ids})
    types = [t for t in base.edge_types if t[0] == t[2] == "gene"]
    wanted = data.draw(st.one_of(st.none(), st.just(types[:1])))
    k = data.draw(st.integers(max(1, len(seeds)), size + 2))
    edges = [base[t].edge_index for t in (types if wanted is None else wanted)]
    index = torch.cat(edges, dim=1) if edges else torch.empty((2, 0), dtype=torch.int64)
    both = torch.cat([index, index.flip(0)[:, index[0] != index[1]]], dim=1)
    with tempfile.TemporaryDirectory() as root:
        ds = stored(root, Case(base, perturbed))
        batch = ds.read_batch(range(len(perturbed)))
        if not seeds:
            with pytest.raises(SettingError, match="perturb no node"):
                batch.select_nodes("gene", k, strategy="perturbed_neighbourhood", edge_types=wanted)
            return
        got = batch.select_nodes("gene", k, strategy="perturbed_neighbourhood", edge_types=wanted).nodes
    expected, hop, hops = list(seeds), set(seeds), 0
    while hop and len(expected) < k:  # whole hops by PyG, the last one by counting edges
        hops += 1
        reached = k_hop_subgraph(torch.tensor(seeds), hops, both, num_nodes=size)[0].tolist()
        links = Counter(t for s, t in both.t().tolist() if s in hop)
        hop = set(reached) - set(expected)
        expected += sorted(hop, key=lambda n: (-links[n], n))[: k - len(expected)]
    assert got.tolist() == sorted(expected)


def test_all_is_the_batch_itself(tmp_path):
    ds = stored(tmp_path, tiny_case())
    batch = ds.read_batch([0, 2, 3])
    part = batch.select_nodes("gene", strategy="all")
    assert part.nodes.tolist() == list(range(8))
    assert_same_batch(part.to_pyg(), batch.to_pyg())
    assert_same_batch(batch.select_nodes("gene", 100, values=0).to_pyg(), batch.to_pyg())


def test_a_homogeneous_base_graph(tmp_path):
    case = tiny_case(homogeneous=True)
    for number, processor in enumerate(processors(case)):
        ds = stored(tmp_path / str(number), case, processor)
        batch, nodes = ds.read_batch([2, 0, 7]), [0, 1, 3, 5, 6]
        part = batch.restrict(None, nodes)
        want = pyg_batch(subset_case(case, nodes).source(), processor, [2, 0, 7])
        assert_same_batch(part.to_pyg(), want)
        equal = batch.restrict(None, [0, 1, 3, 6])  # as many edges as nodes: whose are the edge weights?
        assert equal.edge_mask().shape == (3, 4)
        if isinstance(processor, tc.SubgraphRepresentation):
            with pytest.raises(SettingError, match="could belong to either"):
                equal.to_pyg()


def test_perturbed_nodes_are_never_left_out_unawares(tmp_path):
    ds = stored(tmp_path, Case(cell_graph(), [[0, 3], [5], []]))
    batch = ds.read_batch([0, 1])
    for strategy in ("most_expressed", "random_expressed", "perturbed_neighbourhood"):
        with pytest.raises(SettingError, match=r"k=2 nodes.*perturb 3 different"):
            batch.select_nodes("gene", 2, strategy=strategy, values=0, step=0)
        nodes = batch.select_nodes("gene", 3, strategy=strategy, values=0, step=0).nodes
        assert nodes.tolist() == [0, 3, 5]
    with pytest.raises(SettingError, match=r"\[3\] are perturbed"):
        batch.restrict("gene", [0, 5, 6])
    part = batch.restrict("gene", [0, 5, 6], allow_wild_type=True)
    assert part.perturbed.tolist() == [0, 1]
    assert part.perturbed_ptr.tolist() == [0, 1, 2]
    want = pyg_batch(
        subset_case(Case(ds.base_graph, [[0, 3], [5]]), [0, 5, 6]).source(), tc.Perturbation(), [0, 1]
    )
    assert torch.equal(part.to_pyg()["gene"].perturbation_indices, want["gene"].perturbation_indices)


def test_wrong_arguments_are_answered_with_the_valid_ones(tmp_path):
    ds = stored(tmp_path, Case(cell_graph(), [[0], [1]]))
    batch = ds.read_batch([0, 1])
    cases = [
        (("reaction", 3), {}, "'gene', the perturbed type"),
        (("gene", 3), {"strategy": "best"}, "'random_expressed'"),
        (("gene",), {"values": 0}, "k=.*a whole number from 1 on"),
        (("gene", 0), {"values": 0}, "k=.*a whole number from 1 on"),
        (("gene", 3), {}, r"column of x \(0..2\)"),
        (("gene", 3), {"values": 3}, r"column of x \(0..2\)"),
        (("gene", 3), {"values": torch.ones(4)}, r"expected \[9\] or \[2, 9\]"),
        (("gene", 3), {"strategy": "perturbed_neighbourhood", "edge_types": [GPR]}, "'physical'"),
        (
            ("gene", 3),
            {"strategy": "random_expressed", "values": 0, "seed": -1, "step": 0},
            "seed=-1: expected a whole number from 0 on",
        ),
        (("gene", 3), {"strategy": "random_expressed", "values": 0}, "step was not given"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(SettingError, match=message):
            batch.select_nodes(*arguments, **options)
    for nodes in ([], [0, 0], [0, 9], [-1, 0], [0.5], [[0]]):
        with pytest.raises(SettingError, match="expected"):
            batch.restrict("gene", nodes)
    whole = stored(tmp_path / "full", Case(cell_graph(), [[0]]), storage="full").read_batch([0])
    with pytest.raises(SettingError, match="storage="):
        whole.select_nodes("gene", 3, values=0)


@pytest.mark.parametrize(
    "processor", [tc.LazySubgraphRepresentation(), tc.LazySubgraphRepresentation(gpr="rule")]
)
def test_layers_on_the_selection_give_values_and_gradients_of_its_pyg_batch(tmp_path, processor):
    ds = stored(tmp_path, Case(cell_graph(), [[0], [1, 3], [5], []]), processor)
    part = ds.read_batch([0, 1, 2, 3]).select_nodes("gene", 6, values=2)
    pyg, edges = part.to_pyg(), shared_edges(part)
    torch.manual_seed(0)
    for layer in (GINConv(torch.nn.Linear(3, 4)), GCNConv(3, 4), GATConv(3, 4)):
        layer = layer.double()
        x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
        got = shared_conv(layer, x, edges[PHYSICAL])
        want = layer(x.flatten(0, 1), pyg[PHYSICAL].edge_index[:, pyg[PHYSICAL].mask]).view(4, 6, -1)
        torch.testing.assert_close(got, want)
        inputs = [x, *layer.parameters()]
        for a, b in zip(
            torch.autograd.grad(got.square().sum(), inputs),
            torch.autograd.grad(want.square().sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
    for edge_type, each in edges.items():  # what the fast route rests on
        kept = torch.ones_like(part.edge_mask(edge_type))
        for end, row in ((each.source_kept, 0), (each.target_kept, 1)):
            kept &= True if end is None else end[:, each.edge_index[row]]
        assert torch.equal(kept, part.edge_mask(edge_type))


def test_it_travels_like_any_batch_and_is_not_taken_for_one_of_the_store(tmp_path):
    ds = stored(tmp_path, Case(cell_graph(), [[0], [1, 3]]), storage="delta")
    batch = ds.read_batch([0, 1])
    batch.is_padding = torch.tensor([False, True])
    part = batch.select_nodes("gene", 5, values=0)
    assert part.is_padding.tolist() == [False, True]
    assert part.pin_memory().to("cpu").num_graphs == 2
    assert part.num_bytes == len(part.pack())
    with pytest.raises(FormatError, match="generation"):
        tc.SharedGraphBatch.unpack(ds.generation, part.pack())
    smaller = part.context.topology.size
    assert smaller < ds.generation.topology.size
    with pytest.raises(SettingError, match="restricted to 5 nodes already"):
        part.select_nodes("gene", 4, values=0)
    with pytest.raises(KeyError, match="physical"):
        part.edge_mask(("gene", "unknown", "gene"))


def test_what_a_selection_made_goes_with_its_batch(tmp_path):
    """One per step of a training run, each with a graph of its own: nothing waits for the garbage collector."""
    ds = stored(tmp_path, Case(cell_graph(), [[0], [1, 3]]), storage="delta")

    def used():
        batch = ds.read_batch([0, 1])
        part = batch.restrict("gene", [0, 1, 2, 3])
        part.to_pyg(), part[0], part.edge_mask(PHYSICAL)
        return [weakref.ref(made) for made in (batch, part, part.context, part.on_device, part.base_graph)]

    used()
    gc.collect()
    gc.disable()
    try:
        assert [made() for made in used()] == [None] * 5
    finally:
        gc.enable()
