"""The first layer, where all samples enter with the same features, against PyG on each sample's own kept edges."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch_geometric.nn as G
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchcell_cache.nn import SharedEdges, linear, product, shared_conv, shared_hetero_conv, shared_input

WIDTH, OUT = 5, 4


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, OUT))


LAYERS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "gin": (lambda: G.GINConv(mlp()), False),
    "gin, learned eps": (lambda: G.GINConv(mlp(), train_eps=True), False),
    "gin mean": (lambda: G.GINConv(mlp(), aggr="mean"), False),
    "sage": (lambda: G.SAGEConv(WIDTH, OUT), False),
    "sage projected": (lambda: G.SAGEConv(WIDTH, OUT, project=True, normalize=True, aggr="sum"), False),
    "graph": (lambda: G.GraphConv(WIDTH, OUT), True),
    "graph mean": (lambda: G.GraphConv(WIDTH, OUT, aggr="mean"), True),
    "gcn not normalised": (lambda: G.GCNConv(WIDTH, OUT, normalize=False), True),
    "gcn": (lambda: G.GCNConv(WIDTH, OUT), False),
}


@pytest.fixture(autouse=True, scope="module")
def _small_graphs_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "SHARED_ABOVE", 0)
        patch.setattr(product, "WIDE_BELOW", 0)
        yield


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def plain(layer: nn.Module, x: Tensor, index: Tensor, kept: Tensor, weight: Tensor | None = None) -> Tensor:
    """One sample after another, all with the same features or with their own."""
    outs = []
    for each, k in zip(x.expand(len(kept), *x.shape[-2:]), kept, strict=True):
        mask = k[index[0]] & k[index[1]]
        outs.append(layer(each, index[:, mask], **({} if weight is None else {"edge_weight": weight[mask]})))
    return torch.stack(outs)


def edges_of(index: Tensor, kept: Tensor) -> SharedEdges:
    return SharedEdges(index, lambda: kept[:, index[0]] & kept[:, index[1]], kept, kept, by_nodes=True)


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        scale = b.abs().max().clamp(min=1) if b.numel() else 1
        torch.testing.assert_close(a / scale, b / scale, rtol=tolerance, atol=tolerance)


def gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    found = torch.autograd.grad(out, inputs, seed, allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def took_shared(edges: SharedEdges) -> bool:
    return "touched" in edges._memo


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """An edge list with loops, parallel edges and hubs, or none; nodes that samples keep, a few lost, hubs among them."""
    nodes, batch = draw(st.integers(1, 12)), draw(st.integers(2, 6))
    node = st.one_of(st.integers(0, nodes - 1), st.just(0))
    pairs = draw(st.lists(st.tuples(node, node), max_size=40))
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    kept = torch.ones(batch, nodes, dtype=torch.bool)
    for row in kept:
        row[draw(st.lists(node, max_size=2))] = False
    return index, kept


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=15, deadline=None)
@given(graphs(), st.integers(0, 99), st.booleans())
def test_any_graph(
    name: str, dtype: torch.dtype, graph: tuple[Tensor, Tensor], seed: int, alike: bool
) -> None:
    index, kept = graph
    make, weighted = LAYERS[name]
    torch.manual_seed(seed)
    layer, encode = make().to(dtype), nn.Linear(3, WIDTH).to(dtype)
    x = torch.randn(*kept.shape[1 if alike else 0 :], 3, dtype=dtype, requires_grad=True)
    weight = torch.rand(index.size(1), dtype=dtype) if weighted and seed % 2 else None
    arguments = {} if weight is None else {"edge_weight": weight}
    edges = edges_of(index, kept)
    each = encode(x).relu()
    actual = shared_conv(layer, shared_input(each, len(kept)) if alike else each, edges, **arguments)
    expected = plain(layer, encode(x).relu(), index, kept, weight)
    assert_close([actual], [expected], TOLERANCE[dtype])
    learned = x, *layer.parameters(), *encode.parameters()
    assert_close(gradients(actual, *learned), gradients(expected, *learned), TOLERANCE[dtype])


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "cat", None])
def test_several_networks_at_once(aggr: str | None) -> None:
    random = torch.Generator().manual_seed(0)
    types = [("gene", name, "gene") for name in "abc"]
    index = {t: torch.randint(0, 40, (2, 80), generator=random) for t in types}
    kept = torch.ones(6, 40, dtype=torch.bool)
    kept[torch.arange(6), torch.randint(0, 40, (6,), generator=random)] = False
    layer = G.HeteroConv(
        {types[0]: G.GINConv(mlp()), types[1]: G.GATConv(WIDTH, OUT), types[2]: G.SAGEConv(WIDTH, OUT)}, aggr
    )
    layer = layer.double()
    x = torch.randn(40, WIDTH, generator=random, dtype=torch.float64, requires_grad=True)
    edges = {t: edges_of(index[t], kept) for t in types}
    actual = shared_hetero_conv(layer, {"gene": x.expand(6, -1, -1)}, edges)["gene"]
    masked = [{t: i[:, k[i[0]] & k[i[1]]] for t, i in index.items()} for k in kept]
    expected = torch.stack([layer({"gene": x}, each)["gene"] for each in masked])
    assert took_shared(edges[types[0]])
    assert_close([actual], [expected], 1e-12)
    learned = x, *layer.parameters()
    assert_close(gradients(actual, *learned), gradients(expected, *learned), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_nothing_is_lost_where_almost_all_of_a_sum_goes(dtype: torch.dtype) -> None:
    """A deleted hub's features, or a gradient at what it touches, a million million times as large as all others."""
    index = torch.tensor([[0] * 6 + [1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 0]])
    kept = torch.ones(3, 7, dtype=torch.bool)
    kept[1, 0] = False
    layer = G.GraphConv(2, 2, bias=False).to(dtype)
    x = (1 + torch.rand(7, 2, dtype=dtype)).index_fill_(0, torch.tensor(0), 1e12).requires_grad_()
    edges = edges_of(index, kept)
    actual = shared_conv(layer, x.expand(3, -1, -1), edges)
    expected = plain(layer, x, index, kept)
    for sample in range(3):
        assert_close([actual[sample, 1:]], [expected[sample, 1:]], TOLERANCE[dtype])
    seed = torch.ones_like(actual)
    seed[1] = 1e12
    a, b = (torch.autograd.grad(out, x, seed)[0] for out in (actual, expected))
    torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=0)
    assert took_shared(edges)


@pytest.mark.parametrize("rubbish", [torch.inf, torch.nan])
def test_what_nobody_keeps_reaches_nobody(rubbish: float) -> None:
    """Neither values nor gradients, also by ``0 * inf``; and a node without neighbours left receives exactly nothing."""
    index = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 2, 3, 0]])
    kept = torch.ones(4, 8, dtype=torch.bool)
    kept[:, 0] = False
    layer = G.SAGEConv(2, 2, aggr="sum", root_weight=False, bias=False)
    x = torch.randn(8, 2).index_fill_(0, torch.tensor(0), rubbish).requires_grad_()
    edges = edges_of(index, kept)
    out = shared_conv(layer, x.expand(4, -1, -1), edges)
    assert took_shared(edges)
    assert_close([out], [plain(layer, x, index, kept)], 1e-5)
    assert bool((out[:, 1] == 0).all())
    found = gradients(out, *layer.parameters())
    assert_close(found, gradients(plain(layer, x, index, kept), *layer.parameters()), 1e-5)


def test_derivatives_of_derivatives() -> None:
    torch.manual_seed(0)
    layer = G.GINConv(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))).double()
    index, kept = torch.tensor([[0, 1, 2, 3, 4, 4], [1, 2, 3, 0, 4, 5]]), torch.ones(4, 9, dtype=torch.bool)
    kept[0, 1] = kept[1, 4] = False
    x = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    edges = edges_of(index, kept)

    def run(x: Tensor) -> Tensor:
        return shared_conv(layer, x.expand(4, -1, -1), edges)

    assert torch.autograd.gradcheck(run, x, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, x)
    assert took_shared(edges)


def test_what_is_not_known_of_a_layer_is_not_shared() -> None:
    """Dropout draws for every sample, batch norm looks at all of them, hooks see rows: as without sharing."""
    index, kept = torch.tensor([[0, 1], [1, 2]]), torch.ones(3, 9, dtype=torch.bool)
    kept[0, 0] = False
    x = torch.randn(9, WIDTH)
    hooked, seen = G.GINConv(mlp()), []
    hooked.nn[0].register_forward_hook(lambda _, __, out: seen.append(len(out)))
    for layer in (
        G.GINConv(nn.Sequential(nn.Linear(WIDTH, OUT), nn.Dropout(0.5))),
        G.GINConv(nn.Sequential(nn.Linear(WIDTH, OUT), nn.BatchNorm1d(OUT))),
        hooked,
    ):
        edges = edges_of(index, kept)
        shared_conv(layer, shared_input(x, 3), edges)
        assert not took_shared(edges)
    assert seen == [27]
    resting = G.GINConv(nn.Sequential(nn.Linear(WIDTH, OUT), nn.Dropout(0.5))).eval()
    edges = edges_of(index, kept)
    assert_close([shared_conv(resting, shared_input(x, 3), edges)], [plain(resting, x, index, kept)], 1e-5)
    assert took_shared(edges)


def test_under_inference_transforms_and_compilation() -> None:
    torch.manual_seed(0)
    layer = G.SAGEConv(WIDTH, OUT).double()
    index, kept = torch.randint(0, 9, (2, 20)), torch.ones(3, 9, dtype=torch.bool)
    kept[0, 0] = False
    x, edges = torch.randn(9, WIDTH, dtype=torch.float64), edges_of(index, kept)

    def run(x: Tensor) -> Tensor:
        return shared_conv(layer, shared_input(x, 3), edges)

    expected = plain(layer, x, index, kept)
    with torch.inference_mode():
        assert_close([run(x)], [expected], 1e-12)
    assert_close([torch.func.jvp(run, (x,), (x,))[0]], [expected], 1e-12)
    wanted = torch.autograd.functional.jacobian(lambda x: plain(layer, x, index, kept), x)
    assert_close([torch.func.jacrev(run)(x)], [wanted], 1e-12)
    assert_close([torch.compile(run, backend="eager")(x)], [expected], 1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            shared_conv(layer.float(), shared_input(x.float(), 3), edges).double(),
            expected,
            rtol=0.05,
            atol=0.05,
        )
