"""Layers under what surrounds training: precision, inference mode, derivatives, transforms, compilation."""

from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as G
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn import NODES, OUT, WIDTH, Drawn, as_one_graph, draw, mlp
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from torchcell_cache.errors import SettingError
from torchcell_cache.nn import SharedEdges, product, shared_conv, shared_hetero_conv
from torchcell_cache.nn.adjacency import Adjacency

FAST = {
    "gcn": lambda: G.GCNConv(WIDTH, OUT),
    "gcn without loops": lambda: G.GCNConv(WIDTH, OUT, add_self_loops=False),
    "sage": lambda: G.SAGEConv(WIDTH, OUT),
    "sage projected": lambda: G.SAGEConv(WIDTH, OUT, project=True),
    "graph": lambda: G.GraphConv(WIDTH, OUT),
    "gin": lambda: G.GINConv(mlp(), train_eps=True),
}
LAYERS = {**FAST, "gat": lambda: G.GATConv(WIDTH, OUT), "both": lambda: G.DirGNNConv(G.GCNConv(WIDTH, OUT))}
WEIGHTED = {
    "graph": lambda: G.GraphConv(WIDTH, OUT),
    "gcn": lambda: G.GCNConv(WIDTH, OUT, add_self_loops=False),
    "gcn plain": lambda: G.GCNConv(WIDTH, OUT, normalize=False),
}
layers = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def _sample_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """As features of real graphs are multiplied; test_nn.py has both ways."""
    monkeypatch.setattr(product, "WIDE_BELOW", 0)


def both(layer: nn.Module, drawn: Drawn, fields: dict[str, Tensor] | None = None) -> list[Callable]:
    """The layer on a batch as a function of features, shared and as one graph of PyG."""

    def shared(x: Tensor) -> Tensor:
        return shared_conv(layer, x, drawn.edges, **(fields or {}))

    def plain(x: Tensor) -> Tensor:
        return as_one_graph(layer, Drawn(drawn.edge_index, drawn.kept, drawn.mask, x, {}), fields or {})

    return [shared, plain]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.dtype == expected.dtype
    scale = expected.abs().max().clamp(min=1)
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=tolerance)


@layers
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("features", [torch.float32, "half"])
def test_autocast(name: str, half: torch.dtype, features: object) -> None:
    """Values, their type and gradients as PyG's, also for features that come in half precision from a layer before."""
    torch.manual_seed(0)
    layer, drawn = LAYERS[name](), draw(1, dtype=torch.float32)
    grads = []
    for run in both(layer, drawn):
        with torch.autocast("cpu", half):
            out = run(drawn.x.to(half) if features == "half" else drawn.x)
        grads.append((out, *torch.autograd.grad(out.float().square().sum(), [drawn.x, *layer.parameters()])))
    for mine, pyg in zip(*grads, strict=True):
        assert_near(mine, pyg, 0.03)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_with_weights(name: str, half: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, drawn = WEIGHTED[name](), draw(2, dtype=torch.float32)
    shared, plain = both(layer, drawn, {"edge_weight": drawn.fields["edge_weight"]})
    with torch.autocast("cpu", half):
        assert_near(shared(drawn.x), plain(drawn.x), 0.03)


@layers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_modules_of_other_types(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, drawn = LAYERS[name]().to(dtype), draw(3, dtype=dtype)
    grads = []
    for run in both(layer, drawn):
        out = run(drawn.x)
        grads.append((out, *torch.autograd.grad(out.square().sum(), [drawn.x, *layer.parameters()])))
    for mine, pyg in zip(*grads, strict=True):
        assert_near(mine, pyg, 1e-9 if dtype == torch.float64 else 0.05)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_another_type_decide_the_type_as_in_pyg(name: str) -> None:
    layer, drawn = WEIGHTED[name](), draw(4, dtype=torch.float32)
    for dtype in (torch.float64, torch.float16, torch.int64):
        fields = {"edge_weight": drawn.fields["edge_weight"].mul(3).ceil().to(dtype)}
        shared, plain = both(layer, drawn, fields)
        try:
            expected = plain(drawn.x)
        except RuntimeError:  # PyG's linear layer wants one type
            with pytest.raises(RuntimeError):
                shared(drawn.x)
            continue
        assert_near(shared(drawn.x), expected, 1e-3 if dtype == torch.float16 else 1e-5)


def test_whole_numbers_as_features() -> None:
    drawn = draw(5)
    layer, x = G.GINConv(nn.Identity()), torch.arange(3 * NODES * 2).view(3, NODES, 2)
    shared, plain = both(layer, drawn)
    torch.testing.assert_close(shared(x), plain(x))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(0, 12), st.sampled_from(list(FAST)))
def test_second_derivatives(seed: int, nodes: int, edges: int, name: str) -> None:
    """A penalty on the gradient, with respect to features and parameters."""
    torch.manual_seed(seed)
    layer, drawn = FAST[name]().double(), draw(seed, nodes=nodes, edges=edges)
    found = []
    for run in both(layer, drawn):
        (first,) = torch.autograd.grad(run(drawn.x).pow(3).sum(), drawn.x, create_graph=True)
        wanted = [drawn.x, *layer.parameters()]
        grads = torch.autograd.grad(first.square().sum(), wanted, allow_unused=True)
        found.append([torch.zeros(()) if g is None else g for g in grads])
    for mine, pyg in zip(*found, strict=True):
        torch.testing.assert_close(mine, pyg)


@pytest.mark.parametrize("name", FAST)
def test_numerical_derivatives(name: str) -> None:
    torch.manual_seed(0)
    layer, drawn = FAST[name]().double(), draw(6, nodes=3, edges=6)
    shared, _ = both(layer, drawn)
    assert torch.autograd.gradcheck(shared, drawn.x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(shared, drawn.x)


TRANSFORMS: dict[str, Callable] = {
    "grad": lambda f, x: torch.func.grad(lambda q: f(q).square().sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones(*x.shape[:2], OUT, dtype=x.dtype))[0],
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
    "vmap along another dimension": lambda f, x: torch.func.vmap(f, in_dims=3, out_dims=1)(
        torch.stack([x, -x], 3)
    ),
    "jacobian": lambda f, x: torch.func.jacrev(lambda q: f(q)[:, 0])(x),
    "hessian": lambda f, x: torch.func.hessian(lambda q: f(q).pow(3).sum())(x),
    "grad of every sample": lambda f, x: torch.func.vmap(torch.func.grad(lambda q: f(q).square().sum()))(
        torch.stack([x, 3 * x])
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FAST)
def test_functional_transforms(name: str, transform: str) -> None:
    torch.manual_seed(0)
    layer, drawn = FAST[name]().double().eval(), draw(7, nodes=5, edges=11)
    shared, plain = both(layer, drawn)
    x = drawn.x.detach()
    torch.testing.assert_close(TRANSFORMS[transform](shared, x), TRANSFORMS[transform](plain, x))
    torch.testing.assert_close(shared(x), plain(x))  # nothing that was kept belongs to the transform


def test_functional_transforms_of_weights_and_of_other_layers() -> None:
    drawn = draw(8)
    layer, gat = G.GraphConv(WIDTH, OUT).double(), G.GATConv(WIDTH, OUT).double()
    weight = drawn.fields["edge_weight"]
    x = drawn.x.detach()

    def loss(run: int, w: Tensor) -> Tensor:
        return both(layer, drawn, {"edge_weight": w})[run](x).square().sum()

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        torch.testing.assert_close(*[transform(lambda w, k=k: loss(k, w))(weight) for k in (0, 1)])
    shared, plain = both(gat, drawn)
    for name in ("grad", "jvp", "vjp"):
        torch.testing.assert_close(TRANSFORMS[name](shared, x), TRANSFORMS[name](plain, x))


def test_an_ensemble_of_parameters() -> None:
    drawn, models = draw(9), [G.GCNConv(WIDTH, OUT).double() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = drawn.x.detach()

    class Shared(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return shared_conv(self.layer, x, drawn.edges)

    named = {f"layer.{name}": value for name, value in parameters.items()}
    model = Shared(models[0])
    out = torch.func.vmap(lambda p: torch.func.functional_call(model, (p, buffers), (x,)))(named)
    torch.testing.assert_close(out, torch.stack([as_one_graph(m, drawn, {}) for m in models]))


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("make", [lambda: G.GINConv(nn.Linear(WIDTH, OUT)), lambda: G.GraphConv(WIDTH, OUT)])
def test_vmap_over_the_kept_nodes_of_several_models(make: Callable, graded: bool) -> None:
    torch.manual_seed(0)
    layer, drawn = make().double(), draw(11)
    x, index = drawn.x.detach(), drawn.edge_index

    def run(kept: Tensor) -> Tensor:
        mask = kept[:, index[0]] & kept[:, index[1]]
        edges = SharedEdges(index, mask, kept, kept, by_nodes=True)
        if not graded:
            return shared_conv(layer, x, edges)
        return torch.func.grad(lambda q: shared_conv(layer, q, edges).pow(2).sum())(x)

    masks = torch.stack([drawn.kept, ~drawn.kept])
    torch.testing.assert_close(torch.func.vmap(run)(masks), torch.stack(list(map(run, masks))))


@layers
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_evaluated_first_and_trained_on_afterwards(name: str, mode: Callable) -> None:
    torch.manual_seed(0)
    layer, drawn = LAYERS[name]().double(), draw(10)
    edges = drawn.edges
    with mode():
        first = shared_conv(layer, drawn.x, edges)
        made_there = SharedEdges(drawn.edge_index.clone(), drawn.mask.clone(), edges.source_kept.clone())
        made_there.target_kept, made_there.by_nodes = made_there.source_kept, True
        shared_conv(layer, drawn.x, made_there)
    for each in (edges, made_there):
        out = shared_conv(layer, drawn.x, each)
        torch.testing.assert_close(out, first)
        out.sum().backward()
    assert next(layer.parameters()).grad is not None


def test_edges_masked_anew_in_place_are_noticed() -> None:
    drawn = draw(11)
    edges, layers = drawn.edges, [G.GATConv(WIDTH, OUT).double(), G.GCNConv(WIDTH, OUT).double()]
    for _ in range(2):
        for layer in layers:
            torch.testing.assert_close(shared_conv(layer, drawn.x, edges), as_one_graph(layer, drawn, {}))
        drawn.kept[1] = ~drawn.kept[1]
        drawn.mask.copy_(drawn.kept[:, drawn.edge_index[0]] & drawn.kept[:, drawn.edge_index[1]])


@layers
@pytest.mark.parametrize(("batch", "nodes"), [(2, 0), (0, 4), (2, 4)])
def test_no_edges_no_nodes_no_samples(name: str, batch: int, nodes: int) -> None:
    kept = torch.ones(batch, nodes, dtype=torch.bool)
    none = torch.zeros(2, 0, dtype=torch.long)
    drawn = Drawn(none, kept, kept[:, :0], torch.randn(batch, nodes, WIDTH, requires_grad=True), {})
    layer = LAYERS[name]()
    out = shared_conv(layer, drawn.x, drawn.edges)
    torch.testing.assert_close(out.flatten(0, 1), layer(drawn.x.flatten(0, 1), none))
    out.sum().backward()


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("node", [-1, NODES, NODES + 3])
def test_edges_to_nodes_that_are_not_there_are_refused(end: int, node: int) -> None:
    """As one graph they would reach into the sample before or after."""
    for name in ("gcn", "gat"):
        drawn = draw(14, dtype=torch.float32)
        shared_conv(LAYERS[name](), drawn.x, drawn.edges)
        drawn.edge_index[end, 7] = node
        with pytest.raises(SettingError, match=f"edge 7 goes from .*{node}"):
            shared_conv(LAYERS[name](), drawn.x, drawn.edges)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "route", "fields"),
    [
        *((name, "auto", ()) for name in FAST),
        *((name, "auto", ("edge_weight",)) for name in WEIGHTED),
        ("gcn", "general", ()),
        ("gat", "auto", ()),
    ],
)
def test_compiled(name: str, route: str, fields: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers whose sum is one product without a break; the product finds its edges' matrices by their list."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer, built = {**LAYERS, **(WEIGHTED if fields else {})}[name]().double(), []
    build = Adjacency.__init__
    monkeypatch.setattr(Adjacency, "__init__", lambda *given: built.append(1) or build(*given))

    def model(x: Tensor, edges: SharedEdges, given: dict) -> Tensor:
        return shared_conv(layer, x, edges, route=route, **given).relu() + 1

    whole = name in FAST and route == "auto"
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=graphs, fullgraph=whole)
    index = draw(12).edge_index
    for seed in (12, 13, 14):  # other batches of the same graph
        drawn = draw(seed)
        mask = drawn.kept[:, index[0]] & drawn.kept[:, index[1]]
        drawn = Drawn(index, drawn.kept, mask, drawn.x, drawn.fields)
        edges = SharedEdges(index, lambda mask=mask: mask, drawn.kept, drawn.kept, by_nodes=True)
        given = {key: drawn.fields[key] for key in fields}
        out, expected = compiled(drawn.x, edges, given), as_one_graph(layer, drawn, given).relu() + 1
        torch.testing.assert_close(out, expected)
        wanted = [drawn.x, *layer.parameters()]
        grads = [torch.autograd.grad(o.square().sum(), wanted, retain_graph=True) for o in (out, expected)]
        torch.testing.assert_close(*grads)
    assert (graphs.frame_count, len(built)) == (1, 1) or not whole


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("way", ["hook", "message"])
def test_altered_layers_compiled(way: str) -> None:
    torch._dynamo.reset()
    layer, drawn = G.SAGEConv(WIDTH, OUT).double(), draw(17)
    if way == "hook":
        layer.register_forward_hook(lambda module, given, out: 2 * out)
    else:
        layer.message = lambda x_j: -x_j
    compiled = torch.compile(lambda x: shared_conv(layer, x, drawn.edges), backend="eager")
    torch.testing.assert_close(compiled(drawn.x), as_one_graph(layer, drawn, {}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_product_as_an_operator() -> None:
    drawn = draw(15)
    kept = ~drawn.kept
    for weight, hidden, transposed in (
        (None, (kept, kept), False),
        (drawn.fields["edge_weight"], (kept, None), False),
        (None, (None, kept), True),
    ):
        given = drawn.x, drawn.edge_index, weight, *hidden, NODES, True, transposed
        torch.library.opcheck(product._compiled, given)
    with pytest.raises(SettingError, match=r"edge .* goes from"):
        product._compiled(drawn.x[:, :2], drawn.edge_index, None, None, None, 2, True, False)


def test_several_networks_compiled_as_one_graph() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    drawn, types = draw(16), [("gene", name, "gene") for name in "abc"]
    layer = G.HeteroConv(
        {t: LAYERS[n]() for t, n in zip(types, ("gin", "sage", "gcn"), strict=True)}
    ).double()
    edges = {t: draw(seed).edges for seed, t in enumerate(types)}
    for each in edges.values():
        each.source_kept = each.target_kept = drawn.kept
    compiled = torch.compile(shared_hetero_conv, backend="aot_eager", fullgraph=True)
    out, expected = (run(layer, {"gene": drawn.x}, edges)["gene"] for run in (compiled, shared_hetero_conv))
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(o.square().sum(), [drawn.x, *layer.parameters()]) for o in (out, expected)]
    torch.testing.assert_close(*grads)
