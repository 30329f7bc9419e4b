"""Layers on the batches of a store, against the same layers on ``to_pyg()``."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_cases import as_pyg
from graphs import cases, cell_graph, plain_graph, random_case
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, GraphConv, HeteroConv, SAGEConv

import torchcell_cache as tc
from torchcell_cache.errors import SettingError
from torchcell_cache.nn import SharedConv, SharedEdges, shared_conv, shared_edges, shared_hetero_conv

GPR, RMR = ("gene", "gpr", "reaction"), ("reaction", "rmr", "metabolite")
PHYSICAL, REGULATORY, EMPTY = (("gene", name, "gene") for name in ("physical", "regulatory", "empty"))
PROCESSORS = [
    tc.LazySubgraphRepresentation(),
    tc.LazySubgraphRepresentation(gpr="rule"),
    tc.SubgraphRepresentation(),
    tc.SubgraphRepresentation(gpr="rule"),
]
WIDTH, OUT = 3, 4


def stored(root: Path, case: Any, processor: Any, storage: str = "perturbation") -> tc.PreprocessedDataset:
    return tc.build(root, source=case.source(), processor=processor, storage=storage, progress=False)


def hetero(aggr: str | None) -> HeteroConv:
    def gin() -> GINConv:
        return GINConv(nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.Linear(7, OUT)))

    return HeteroConv(
        {
            PHYSICAL: gin(),
            REGULATORY: GATConv(WIDTH, OUT),
            EMPTY: GCNConv(WIDTH, OUT),
            GPR: SAGEConv((WIDTH, WIDTH), OUT, aggr="max"),
            RMR: GraphConv((WIDTH, WIDTH), OUT, aggr="mean"),
        },
        aggr=aggr,
    ).double()


def features(dataset: tc.PreprocessedDataset, size: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    graph = dataset.base_graph
    return {
        name: torch.randn(
            (size, graph[name].num_nodes, WIDTH), generator=random, dtype=torch.float64
        ).requires_grad_()
        for name in graph.node_types
    }


def masked_index(pyg: Any, edge_type: Any) -> Tensor:
    store = pyg[edge_type]
    index = store.edge_index if "edge_index" in store else store.hyperedge_index
    return index[:, store.mask]


def compare(actual: dict[str, Tensor], expected: dict[str, Tensor], inputs: list[Tensor]) -> None:
    assert list(actual) == list(expected)
    torch.testing.assert_close(actual, expected)
    grads = []
    for outs in (actual, expected):
        total = sum(out.square().sum() for out in outs.values())
        grads.append(torch.autograd.grad(total, inputs, allow_unused=True))
    for got, wanted in zip(*grads, strict=True):
        if got is None or wanted is None:  # unused by one route, without effect in the other
            assert all(grad is None or not grad.any() for grad in (got, wanted))
        else:
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "cat", None])
@pytest.mark.parametrize("route", ["auto", "general"])
def test_hetero_conv_is_that_of_the_pyg_batch(tmp_path: Path, aggr: str | None, route: str) -> None:
    dataset = stored(tmp_path, random_case(cell_graph()), PROCESSORS[0])
    batch = dataset.read_batch([3, 0, 7, 3])
    torch.manual_seed(0)
    layer, x = hetero(aggr), features(dataset, 4)
    pyg = as_pyg(batch)
    weight = dataset.base_graph[RMR].stoichiometry.double()
    expected = layer(
        {name: value.flatten(0, 1) for name, value in x.items()},
        {t: masked_index(pyg, t) for t in dataset.base_graph.edge_types},
        edge_weight_dict={RMR: pyg[RMR].stoichiometry[pyg[RMR].mask].double()},
    )
    expected = {name: value.view(4, -1, *value.shape[1:]) for name, value in expected.items()}
    edges = shared_edges(batch)
    actual = shared_hetero_conv(layer, x, edges, route=route, edge_weight_dict={RMR: weight})
    compare(actual, expected, [*x.values(), *layer.parameters()])
    module = SharedConv(layer, route)
    assert len(list(module.parameters())) == len(list(layer.parameters()))
    torch.testing.assert_close(module(x, edges, edge_weight_dict={RMR: weight}), actual)


@pytest.mark.parametrize("processor", PROCESSORS, ids=repr)
@pytest.mark.parametrize("storage", ["perturbation", "delta"])
def test_an_edge_is_kept_iff_its_ends_are(tmp_path: Path, processor: Any, storage: str) -> None:
    """What the fast route rests on, for every kind of edge, processor and rule."""
    dataset = stored(tmp_path, random_case(cell_graph()), processor, storage)
    batch = dataset.read_batch(range(len(dataset)))
    edges = shared_edges(batch)
    assert set(edges) == set(dataset.base_graph.edge_types)
    for edge_type, each in edges.items():
        assert torch.equal(kept_by_ends(each, len(batch)), batch.edge_mask(edge_type)), edge_type


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_so_it_is_on_drawn_graphs(tmp_path_factory: pytest.TempPathFactory, case: Any) -> None:
    for processor in PROCESSORS[1:3]:
        dataset = stored(tmp_path_factory.mktemp("store"), case, processor)
        batch = dataset.read_batch(range(len(dataset)))
        for edge_type, each in shared_edges(batch).items():
            assert torch.equal(kept_by_ends(each, len(batch)), batch.edge_mask(edge_type)), edge_type


def kept_by_ends(edges: SharedEdges, size: int) -> Tensor:
    keep = torch.ones((size, edges.edge_index.size(1)), dtype=torch.bool)
    for kept, end in ((edges.source_kept, 0), (edges.target_kept, 1)):
        if kept is not None:
            keep &= kept[:, edges.edge_index[end]]
    return keep


def test_on_a_filtered_store_the_kept_nodes_get_the_same(tmp_path: Path) -> None:
    dataset = stored(tmp_path, random_case(cell_graph()), tc.SubgraphRepresentation())
    batch = dataset.read_batch([1, 4, 5])
    x = dataset.base_graph["gene"].x.expand(3, -1, -1)
    kept = batch.node_mask("gene")
    pyg = as_pyg(batch)
    torch.manual_seed(0)
    for layer in (GINConv(nn.Linear(3, OUT)), GCNConv(3, OUT), GATConv(3, OUT)):
        shared = shared_conv(layer, x, shared_edges(batch)[PHYSICAL])
        torch.testing.assert_close(shared[kept], layer(pyg["gene"].x, pyg[PHYSICAL].edge_index))


def test_a_homogeneous_store_with_edge_weights(tmp_path: Path) -> None:
    base = plain_graph()
    dataset = stored(tmp_path, random_case(base), tc.LazySubgraphRepresentation())
    batch = dataset.read_batch([2, 8, 2])
    pyg = as_pyg(batch)
    x = base.x.expand(3, -1, -1)
    torch.manual_seed(0)
    for layer in (GraphConv(2, OUT), GCNConv(2, OUT)):
        wanted = layer(pyg.x, pyg.edge_index[:, pyg.edge_mask], pyg.edge_weight[pyg.edge_mask])
        shared = shared_conv(layer, x, shared_edges(batch)[None], edge_weight=dataset.base_graph.edge_weight)
        torch.testing.assert_close(shared, wanted.view(3, 8, OUT))


def test_graphs_stored_whole_bring_their_own_masks(tmp_path: Path) -> None:
    case = random_case(cell_graph())
    whole = stored(tmp_path / "full", case, PROCESSORS[0], "full").read_batch([1, 4])
    light = stored(tmp_path / "ids", case, PROCESSORS[0]).read_batch([1, 4])
    x = light.base_graph["gene"].x.expand(2, -1, -1)
    torch.manual_seed(0)
    for layer in (GINConv(nn.Linear(3, OUT)), GATConv(3, OUT)):
        outs = [shared_conv(layer, x, shared_edges(batch)[PHYSICAL]) for batch in (whole, light)]
        torch.testing.assert_close(*outs)


def test_masks_are_made_when_an_edge_type_is_looked_up(tmp_path: Path) -> None:
    batch = stored(tmp_path, random_case(cell_graph()), PROCESSORS[0]).read_batch([0, 1])
    edges = shared_edges(batch)
    assert edges[PHYSICAL] is edges[PHYSICAL]
    assert ("gene", "unknown", "gene") not in edges
    with pytest.raises(KeyError, match="physical"):
        edges["gene", "unknown", "gene"]


def test_edges_of_any_processor_are_not_guessed(tmp_path: Path) -> None:
    graphs = [tc.testing.tiny_graph() for _ in range(3)]
    batch = tc.build(tmp_path, source=graphs, progress=False).read_batch([0, 1])
    with pytest.raises(SettingError, match="to_pyg"):
        shared_edges(batch)


def test_names_of_edge_arguments_are_checked(tmp_path: Path) -> None:
    dataset = stored(tmp_path, random_case(cell_graph()), PROCESSORS[0])
    batch = dataset.read_batch([0])
    with pytest.raises(SettingError, match="edge_weight_dict"):
        shared_hetero_conv(hetero("sum"), features(dataset, 1), shared_edges(batch), edge_weight={})


def test_layers_of_a_type_share_one_list_of_kept_edges(tmp_path: Path) -> None:
    dataset = stored(tmp_path, random_case(cell_graph()), PROCESSORS[0])
    edges = shared_edges(dataset.read_batch([0, 1]))[PHYSICAL]
    x = dataset.base_graph["gene"].x.expand(2, -1, -1)
    lists = []
    for layer in (GATConv(3, OUT), SAGEConv(3, OUT, aggr="max")):
        shared_conv(layer, x, edges)
        lists.append(edges.kept(9, 9))
    assert all(a is b for a, b in pairwise(lists))


def test_a_profiler_names_what_a_step_does(tmp_path: Path) -> None:
    dataset = stored(tmp_path, random_case(cell_graph()), PROCESSORS[0])
    x, layer, other = features(dataset, 2), hetero("sum"), SAGEConv(WIDTH, OUT).double()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        batch = dataset.read_batch([3, 0]).to("cpu")
        batch.edge_mask(PHYSICAL)
        as_pyg(batch)
        edges = shared_edges(batch)
        out = shared_hetero_conv(layer, x, edges)
        shared_conv(other, x["gene"], edges[PHYSICAL])
        out["gene"].sum().backward()
    spent = {event.key.removeprefix("torchcell_cache::"): event for event in profile.key_averages()}
    counts = {name: spent[name].count for name in ("read", "copy", "expand", "layer", "/".join(PHYSICAL))}
    assert counts == {"read": 1, "copy": 1, "expand": 1, "layer": 2, "/".join(PHYSICAL): 1}
    assert spent["masks"].count >= 2
    assert all(spent[name].cpu_time_total > 0 for name in (*counts, "masks", "product"))
