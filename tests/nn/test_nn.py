"""Layers on the shared graph against the same layers on each sample's own kept edges."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import (
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GINEConv,
    GraphConv,
    PNAConv,
    SAGEConv,
    TransformerConv,
)

from torchcell_cache.errors import SettingError
from torchcell_cache.nn import SharedEdges, product, shared_conv

WIDTH, OUT, BATCH, NODES, EDGES = 5, 4, 3, 12, 60


def mlp(norm: bool = False) -> nn.Sequential:
    extra = [nn.BatchNorm1d(7)] if norm else []
    return nn.Sequential(nn.Linear(WIDTH, 7), *extra, nn.ReLU(), nn.Linear(7, OUT))


@dataclass(frozen=True)
class Way:
    """A layer, the edge arguments it takes, and whether the fast route is exact for it."""

    make: Callable[[], nn.Module]
    fields: tuple[str, ...] = ()
    fast: bool = True


WAYS = {
    "gin": Way(lambda: GINConv(mlp(), train_eps=True)),
    "gin with batch norm": Way(lambda: GINConv(mlp(norm=True))),
    "gin max": Way(lambda: GINConv(mlp(), aggr="max"), fast=False),
    "sage mean": Way(lambda: SAGEConv(WIDTH, OUT)),
    "sage sum": Way(lambda: SAGEConv(WIDTH, OUT, aggr="sum", root_weight=False)),
    "sage max": Way(lambda: SAGEConv(WIDTH, OUT, aggr="max"), fast=False),
    "sage projected": Way(lambda: SAGEConv(WIDTH, OUT, project=True, normalize=True)),
    "graph sum": Way(lambda: GraphConv(WIDTH, OUT), ("edge_weight",)),
    "graph mean": Way(lambda: GraphConv(WIDTH, OUT, aggr="mean"), ("edge_weight",)),
    "graph max": Way(lambda: GraphConv(WIDTH, OUT, aggr="max"), ("edge_weight",), fast=False),
    "gcn": Way(lambda: GCNConv(WIDTH, OUT)),
    "gcn improved": Way(lambda: GCNConv(WIDTH, OUT, improved=True)),
    "gcn without loops": Way(lambda: GCNConv(WIDTH, OUT, add_self_loops=False), ("edge_weight",)),
    "gcn not normalised": Way(lambda: GCNConv(WIDTH, OUT, normalize=False), ("edge_weight",)),
    "gcn weighted loops": Way(lambda: GCNConv(WIDTH, OUT), ("edge_weight",), fast=False),
    "gcn backwards": Way(lambda: GCNConv(WIDTH, OUT, flow="target_to_source"), fast=False),
    "gat": Way(lambda: GATConv(WIDTH, OUT, heads=2, edge_dim=2), ("edge_attr",), fast=False),
    "gat plain": Way(lambda: GATConv(WIDTH, OUT, heads=3)),
    "gat without loops": Way(
        lambda: GATConv(WIDTH, OUT, heads=2, concat=False, add_self_loops=False, residual=True)
    ),
    "gat v2": Way(lambda: GATv2Conv(WIDTH, OUT, heads=2)),
    "gat v2 shared": Way(lambda: GATv2Conv(WIDTH, OUT, share_weights=True, add_self_loops=False)),
    "transformer plain": Way(lambda: TransformerConv(WIDTH, OUT, heads=2, beta=True)),
    "gine": Way(lambda: GINEConv(mlp(), edge_dim=2), ("edge_attr",), fast=False),
    "transformer": Way(lambda: TransformerConv(WIDTH, OUT, edge_dim=2), ("edge_attr",), fast=False),
    "pna": Way(
        lambda: PNAConv(WIDTH, OUT, ["mean", "max", "std"], ["identity"], torch.tensor([1, 2, 3])), fast=False
    ),
}


@dataclass(frozen=True)
class Drawn:
    """One edge list with self loops and parallel edges, and the nodes each sample keeps."""

    edge_index: Tensor
    kept: Tensor
    mask: Tensor
    x: Tensor
    fields: dict[str, Tensor]

    @property
    def edges(self) -> SharedEdges:
        return SharedEdges(self.edge_index, self.mask, self.kept, self.kept, by_nodes=True)


def draw(
    seed: int, *, nodes: int = NODES, edges: int = EDGES, loops: bool = True, dtype=torch.float64
) -> Drawn:
    random = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, nodes, (2, edges), generator=random)
    if not loops:
        edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    kept = torch.rand((BATCH, nodes), generator=random) > 0.2
    kept[0] = True
    x = torch.randn((BATCH, nodes, WIDTH), generator=random, dtype=dtype, requires_grad=True)
    count = edge_index.size(1)
    fields = {
        "edge_weight": torch.rand(count, generator=random, dtype=dtype) + 0.1,
        "edge_attr": torch.randn((count, 2), generator=random, dtype=dtype),
    }
    return Drawn(edge_index, kept, kept[:, edge_index[0]] & kept[:, edge_index[1]], x, fields)


def as_one_graph(layer: nn.Module, drawn: Drawn, fields: dict[str, Tensor]) -> Tensor:
    """What PyG does with a batch: disjoint copies of the nodes, kept edges only; plain loops."""
    nodes = drawn.x.size(1)
    index = torch.cat([drawn.edge_index[:, m] + k * nodes for k, m in enumerate(drawn.mask)], dim=1)
    each = {name: torch.cat([value[m] for m in drawn.mask]) for name, value in fields.items()}
    if "batch" in signature(getattr(layer, "forward", layer)).parameters:
        each.setdefault("batch", torch.arange(len(drawn.x)).repeat_interleave(nodes))
    return torch.stack(layer(torch.cat(list(drawn.x)), index, **each).split(nodes))


def gradients(out: Tensor, layer: nn.Module, x: Tensor) -> list[Tensor]:
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    found = torch.autograd.grad(out, [x, *layer.parameters()], seed, allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def assert_same_run(layer: nn.Module, drawn: Drawn, fields: dict[str, Tensor], route: str) -> None:
    expected = as_one_graph(layer, drawn, fields)
    actual = shared_conv(layer, drawn.x, drawn.edges, route=route, **fields)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, layer, drawn.x), gradients(expected, layer, drawn.x))


@pytest.fixture(params=["side by side", "sample by sample"], autouse=True)
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of multiplying, whatever the size."""
    monkeypatch.setattr(product, "WIDE_BELOW", 0 if request.param == "sample by sample" else 10**9)


@pytest.mark.parametrize("route", ["general", "auto", "fast"])
@pytest.mark.parametrize("name", WAYS)
def test_values_and_gradients_are_those_of_the_kept_edges(name: str, route: str) -> None:
    way = WAYS[name]
    torch.manual_seed(0)
    layer, drawn = way.make().double(), draw(1)
    fields = {key: drawn.fields[key] for key in way.fields}
    if route == "fast" and not way.fast:
        with pytest.raises(SettingError, match="not exact here"):
            shared_conv(layer, drawn.x, drawn.edges, route=route, **fields)
        return
    assert_same_run(layer, drawn, fields, route)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(0, 12),
    st.sampled_from([n for n, w in WAYS.items() if w.fast and "norm" not in n]),
)
def test_small_graphs_of_any_shape(seed: int, nodes: int, edges: int, name: str) -> None:
    way = WAYS[name]
    torch.manual_seed(seed)
    drawn = draw(seed, nodes=nodes, edges=edges)
    fields = {key: drawn.fields[key] for key in way.fields}
    assert_same_run(way.make().double(), drawn, fields, "auto")


def test_weighted_gcn_is_fast_where_there_are_no_self_loops() -> None:
    drawn = draw(2, loops=False)
    assert_same_run(GCNConv(WIDTH, OUT).double(), drawn, {"edge_weight": drawn.fields["edge_weight"]}, "fast")


def test_edges_masked_one_by_one() -> None:
    drawn = draw(3)
    mask = torch.rand(BATCH, EDGES, generator=torch.Generator().manual_seed(0)) > 0.5
    drawn = Drawn(drawn.edge_index, drawn.kept, mask, drawn.x, drawn.fields)
    for layer in (GINConv(mlp()).double(), GATConv(WIDTH, OUT).double()):
        expected = as_one_graph(layer, drawn, {})
        edges = SharedEdges(drawn.edge_index, mask)
        torch.testing.assert_close(shared_conv(layer, drawn.x, edges), expected)
        with pytest.raises(SettingError, match="not exact here"):
            shared_conv(layer, drawn.x, edges, route="fast")


def test_a_learned_edge_weight_gets_its_gradient() -> None:
    drawn = draw(4)
    weight = drawn.fields["edge_weight"].requires_grad_()
    layer = GraphConv(WIDTH, OUT).double()
    shared = shared_conv(layer, drawn.x, drawn.edges, edge_weight=weight).square().sum()
    plain = as_one_graph(layer, drawn, {"edge_weight": weight}).square().sum()
    torch.testing.assert_close(torch.autograd.grad(shared, weight), torch.autograd.grad(plain, weight))


def test_a_node_that_lost_all_its_edges_gets_exactly_nothing() -> None:
    drawn = draw(5, dtype=torch.float32)
    drawn.x.data.mul_(1e6)
    out = shared_conv(SAGEConv(WIDTH, OUT, bias=False, root_weight=False), drawn.x, drawn.edges, route="fast")
    assert bool((out[~drawn.kept] == 0).all())
    assert bool((~drawn.kept).any())


def test_what_deleted_nodes_hold_reaches_nobody() -> None:
    """Also not by ``0 * inf``."""
    drawn = draw(6)
    layer = GINConv(nn.Identity()).double()
    x = drawn.x.detach().masked_fill(~drawn.kept.unsqueeze(-1), torch.inf)
    for route in ("fast", "general"):
        out = shared_conv(layer, x, drawn.edges, route=route)
        assert bool(out[drawn.kept].isfinite().all())


def test_an_edge_list_changed_in_place_is_noticed() -> None:
    drawn = draw(7)
    layer = GINConv(mlp()).double()
    shared_conv(layer, drawn.x, drawn.edges)
    drawn.edge_index.copy_(drawn.edge_index.flip(0))
    assert_same_run(layer, drawn, {}, "auto")


def test_on_processors_without_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, compressed rows have no products; coordinates do."""
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    drawn = draw(10)
    for layer in (SAGEConv(WIDTH, OUT), GCNConv(WIDTH, OUT)):
        assert_same_run(layer.double(), drawn, {}, "fast")


def test_half_precision_and_single_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        drawn = draw(8, dtype=dtype)
        out = shared_conv(SAGEConv(WIDTH, OUT).to(dtype), drawn.x, drawn.edges, route="fast")
        assert out.dtype == dtype


def test_two_nodes_sets_and_their_messages() -> None:
    random = torch.Generator().manual_seed(0)
    index = torch.stack([torch.randint(0, n, (20,), generator=random) for n in (6, 9)])
    kept = torch.rand((BATCH, 6), generator=random) > 0.3
    x = torch.randn((BATCH, 6, WIDTH), generator=random), torch.randn((BATCH, 9, WIDTH), generator=random)
    edges = SharedEdges(index, kept[:, index[0]], source_kept=kept, by_nodes=True)
    gat = GATConv((WIDTH, WIDTH), OUT, add_self_loops=False)
    for layer in (GraphConv(WIDTH, OUT), SAGEConv((WIDTH, WIDTH), OUT, aggr="max"), gat):
        expected = [layer((a, b), index[:, m]) for a, b, m in zip(*x, kept[:, index[0]], strict=True)]
        torch.testing.assert_close(shared_conv(layer, x, edges), torch.stack(expected))


class TwoThings(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        return x, edge_index


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": torch.zeros(BATCH, WIDTH)}, "expected \\[batch, num_nodes, num_features\\]"),
        ({"x": torch.zeros(BATCH + 1, NODES, WIDTH)}, "for 4 samples"),
        ({"x": torch.zeros(BATCH, NODES + 1, WIDTH)}, "expected bool\\[3, 13\\]"),
        ({"edge_weight": torch.zeros(3)}, "one row for each of the 60 shared edges"),
        ({"route": "quick"}, "not one of 'auto', 'fast', 'general'"),
        ({"layer": GCNConv(WIDTH, OUT, cached=True)}, "cached=False"),
        ({"layer": TwoThings()}, "gave tuple"),
        ({"layer": GraphConv}, "the class GraphConv"),
        ({"x": {"gene": torch.zeros(BATCH, NODES, WIDTH)}}, "features are dict(?s:.*)shared_hetero_conv"),
        ({"x": (torch.zeros(BATCH, NODES, WIDTH),) * 3}, "features are tuple"),
        ({"x": np.zeros((BATCH, NODES, WIDTH))}, "features are ndarray"),
        ({"edges": torch.zeros(2, 60, dtype=torch.long)}, "edges is Tensor(?s:.*)shared_edges"),
        ({"edges": {}}, "edges is dict"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, text: str) -> None:
    drawn = draw(9, dtype=torch.float32)
    call = {"layer": GraphConv(WIDTH, OUT), "x": drawn.x, "edges": drawn.edges, **change}
    with pytest.raises(SettingError, match=text):
        shared_conv(**call)


@pytest.mark.parametrize("route", ["auto", "general"])
@pytest.mark.parametrize(
    ("made", "text"),
    [
        (
            torch.ones(BATCH - 1, 60, dtype=torch.bool),
            f"bool\\[{BATCH - 1}, 60\\], expected bool\\[{BATCH}, 60\\]",
        ),
        (torch.ones(BATCH, 59, dtype=torch.bool), "expected bool"),
        (torch.ones(BATCH, 60, dtype=torch.uint8), "uint8"),
        (torch.ones(60, dtype=torch.bool), "bool\\[60\\]"),
        (np.ones((BATCH, 60), dtype=bool), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_masks_are_checked_when_they_are_made(made: Any, text: str, route: str) -> None:
    """Also one that a function makes when it is needed."""
    drawn = draw(9, dtype=torch.float32)
    for mask in (made, lambda: made):
        with pytest.raises(SettingError, match=text):
            shared_conv(GATConv(WIDTH, OUT), drawn.x, SharedEdges(drawn.edge_index, mask), route=route)


@pytest.mark.parametrize(
    "index", [np.zeros((2, 3), dtype=int), [[0], [1]], torch.zeros(3, 2), torch.zeros(4)], ids=repr
)
def test_an_edge_index_is_two_rows(index: Any) -> None:
    with pytest.raises(SettingError, match=r"expected a tensor \[2, num_edges\]"):
        SharedEdges(index, torch.ones(2, 3, dtype=torch.bool))
