"""Layers that are altered, wrapped or remember edges, against the same layers on each sample's own kept edges."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Optional

import numpy as np
import pytest
import torch
import torch_geometric.nn as G
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn import BATCH, OUT, WIDTH, Drawn, as_one_graph, assert_same_run, draw, gradients
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from torchcell_cache.errors import SettingError
from torchcell_cache.nn import again, product, shared_conv
from torchcell_cache.nn.modules import is_separate

CACHING = {
    "gcn": lambda cached: G.GCNConv(WIDTH, WIDTH, cached=cached),
    "gcn2": lambda cached: Fed(G.GCN2Conv(WIDTH, 0.1, cached=cached), 2),
    "sg": lambda cached: G.SGConv(WIDTH, WIDTH, cached=cached),
    "ssg": lambda cached: G.SSGConv(WIDTH, WIDTH, 0.1, cached=cached),
    "appnp": lambda cached: Fed(G.APPNP(2, 0.1, cached=cached)),
    "eg": lambda cached: G.EGConv(WIDTH, WIDTH, num_heads=1, cached=cached),
    "own": lambda cached: Remembers(cached),
}
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda layer: layer,
    "both directions": lambda layer: G.DirGNNConv(layer),
    "sequential": lambda layer: G.Sequential(
        "x, edge_index", [(layer, "x, edge_index -> x"), nn.ReLU(), (nn.Linear(WIDTH, OUT), "x -> x")]
    ),
    "transformer block": lambda layer: G.GPSConv(WIDTH, layer, heads=1, attn_type="performer").eval(),
    "residual": lambda layer: Residual(nn.ModuleList([layer])),
    "twice": lambda layer: Residual(nn.ModuleDict({"inner": G.DirGNNConv(layer)})),
}
"""What can stand around a layer; each is deterministic once it is made."""


class Own(nn.Module):
    """What wrappers of PyG ask of a layer."""

    in_channels = out_channels = WIDTH

    def reset_parameters(self) -> None:
        pass


class Fed(Own):
    """A layer that wants the first features as well, or takes no width."""

    def __init__(self, layer: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.layer(*[x] * self.times, edge_index)


class Remembers(Own):
    """A layer of a user that keeps degrees from its first call."""

    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.use, self._degree_cache = cached, {}

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        degree = self._degree_cache.get("degree")
        if degree is None:
            degree = torch.bincount(edge_index[1], minlength=len(x)).to(x.dtype).unsqueeze(1)
            if self.use:
                self._degree_cache["degree"] = degree
        return x * degree


class Residual(nn.Module):
    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers.values() if isinstance(self.layers, nn.ModuleDict) else self.layers:
            x = x + layer(x, edge_index)
        return x


def same_values(layer: nn.Module, drawn: Drawn, actual: Tensor) -> None:
    torch.testing.assert_close(actual, as_one_graph(layer, drawn, {}))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(CACHING)), st.sampled_from(list(WRAPPERS)), st.booleans())
def test_no_batch_sees_the_edges_of_another(name: str, wrapper: str, cached: bool) -> None:
    """Refused, at the latest when the second batch comes, or right."""
    torch.manual_seed(0)
    layer = WRAPPERS[wrapper](CACHING[name](cached)).double()
    fresh, first, second = copy.deepcopy(layer), draw(1), draw(2)
    if cached:
        if name == "own":  # nobody can know before it has kept something
            shared_conv(layer, first.x, first.edges)
        with pytest.raises(SettingError, match="keeps edges"):
            shared_conv(layer, second.x, second.edges)
        return
    shared_conv(layer, first.x, first.edges)
    same_values(fresh, second, shared_conv(layer, second.x, second.edges))


def test_a_cache_that_was_filled_and_then_switched_off_is_still_used_by_pyg() -> None:
    layer, drawn = G.GCNConv(WIDTH, OUT, cached=True).double(), draw(3)
    layer(drawn.x[0], drawn.edge_index)
    layer.cached = False
    with pytest.raises(SettingError, match="_cached_edge_index"):
        shared_conv(layer, drawn.x, drawn.edges)
    layer.reset_parameters()
    same_values(layer, drawn, shared_conv(layer, drawn.x, drawn.edges))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("make", [lambda: G.GATConv(WIDTH, WIDTH), lambda: G.GCNConv(WIDTH, WIDTH)])
def test_wrappers_and_models_run_as_they_are(wrapper: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert_same_run(WRAPPERS[wrapper](make()).double(), draw(4), {}, "auto")


@pytest.mark.parametrize("jump", [None, "cat", "max", "lstm"])
@pytest.mark.parametrize("kind", [G.GCN, G.GraphSAGE, G.GIN, G.GAT])
def test_whole_models(kind: type, jump: str | None) -> None:
    torch.manual_seed(0)
    model = kind(WIDTH, 6, 2, OUT, jk=jump, norm="layer_norm").double()
    assert_same_run(model, draw(5), {}, "auto")


def double_messages(layer: nn.Module) -> None:
    own = layer.message
    layer.message = lambda **given: 2 * own(**given)  # type: ignore[assignment]
    layer._user_args = layer.inspector.get_flat_param_names(["message", "aggregate", "update"])


def no_aggregation(layer: nn.Module) -> None:
    own = layer.aggregate
    layer.aggregate = lambda inputs, index, ptr=None, dim_size=None: 3 * own(inputs, index, ptr, dim_size)


def update_by_half(layer: nn.Module) -> None:
    layer.update = lambda inputs: inputs / 2


def another_forward(layer: nn.Module) -> None:
    own = layer.forward
    layer.forward = lambda x, edge_index, edge_weight=None: own(x, edge_index) + 1


def another_propagate(layer: nn.Module) -> None:
    own = layer.propagate
    layer.propagate = lambda edge_index, **given: own(edge_index, **given) - 1


def another_reduction(layer: nn.Module) -> None:
    own = layer.aggr_module.forward
    layer.aggr_module.forward = lambda *given, **named: own(*given, **named).square()


ALTERED = {
    "message": double_messages,
    "aggregate": no_aggregation,
    "update": update_by_half,
    "forward": another_forward,
    "propagate": another_propagate,
    "aggregation module": another_reduction,
    "hook after": lambda layer: layer.register_forward_hook(lambda m, i, out: out * 2),
    "hook before": lambda layer: layer.register_forward_pre_hook(lambda m, i: (i[0] * 2, *i[1:])),
    "hook of the aggregation": lambda layer: layer.aggr_module.register_forward_hook(lambda m, i, out: -out),
    "hook after messages": lambda layer: layer.register_message_forward_hook(lambda m, i, out: out * 2),
    "hook before propagate": lambda layer: layer.register_propagate_forward_pre_hook(
        lambda m, i: (i[0][:, :1], *i[1:])
    ),
    "hook after aggregation": lambda layer: layer.register_aggregate_forward_hook(lambda m, i, out: out + 1),
    "gradient hook": lambda layer: layer.register_full_backward_hook(lambda m, i, o: (i[0] * 2, *i[1:])),
}


@pytest.mark.parametrize("way", ALTERED)
@pytest.mark.parametrize("kind", [G.GCNConv, G.SAGEConv, G.GraphConv])
def test_altered_layers_do_what_they_were_altered_to(kind: type, way: str) -> None:
    torch.manual_seed(0)
    layer, drawn = kind(WIDTH, OUT).double(), draw(6)
    before = shared_conv(layer, drawn.x, drawn.edges, route="fast")
    ALTERED[way](layer)
    with pytest.raises(SettingError, match="not exact here"):
        shared_conv(layer, drawn.x, drawn.edges, route="fast")
    if way in ("message", "aggregate", "hook before propagate"):  # PyG itself takes them in their own ways
        try:
            as_one_graph(layer, drawn, {})
        except Exception:
            return
    assert_same_run(layer, drawn, {}, "auto")
    if way != "gradient hook":
        assert not torch.allclose(before, shared_conv(layer, drawn.x, drawn.edges))


def test_patches_of_the_class_and_hooks_on_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, drawn = G.SAGEConv(WIDTH, OUT).double(), draw(7)
    with monkeypatch.context() as patch:
        patch.setattr(G.SAGEConv, "message", lambda self, x_j: -x_j)
        assert_same_run(layer, drawn, {}, "auto")
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, out: out * 2)
    try:
        assert_same_run(layer, drawn, {}, "auto")
    finally:
        handle.remove()
    shared_conv(layer, drawn.x, drawn.edges, route="fast")


@pytest.mark.parametrize("cached", [1, np.True_])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layer,
        lambda layer: Hidden([layer]),
        lambda layer: Hidden({"a": layer}),
        lambda layer: G.DirGNNConv(Hidden((nn.ReLU(), layer))),
    ],
)
def test_caches_in_all_writings_are_found(cached: Any, wrap: Callable[[nn.Module], nn.Module]) -> None:
    drawn = draw(17)
    for value in (cached, 0):
        layer = wrap(G.GCNConv(WIDTH, WIDTH, cached=value).double()).double()
        if value:
            with pytest.raises(SettingError, match="keeps edges"):
                shared_conv(layer, drawn.x, drawn.edges)
        else:
            shared_conv(layer, drawn.x, drawn.edges)


@pytest.mark.parametrize(
    "layer",
    [lambda x, edges: x, partial(G.GCNConv(2, 2)), G.GCNConv(2, 2).forward, G.GCNConv, None],
    ids=["function", "partial", "method", "class", "nothing"],
)
def test_what_is_no_module_is_refused(layer: Any) -> None:
    """Nobody could see whether it keeps edges."""
    with pytest.raises(SettingError, match=r"expected a torch.nn.Module"):
        shared_conv(layer, draw(18).x, draw(18).edges)


class Hidden(Own):
    """Layers that torch does not know of."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers, self.me = layers, [self]

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        last = list(self.layers.values() if isinstance(self.layers, dict) else self.layers)[-1]
        return last(x, edge_index)


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


class Louder(G.GCNConv):
    def message(self, x_j: Tensor, edge_weight: Optional[Tensor]) -> Tensor:  # noqa: UP045 (PyG reads it)
        return 2 * super().message(x_j, edge_weight)


def test_parametrised_pruned_and_derived_layers() -> None:
    drawn = draw(8)
    outer, inner, pruned = (G.GCNConv(WIDTH, OUT).double() for _ in range(3))
    parametrize.register_parametrization(outer, "bias", Doubled())
    parametrize.register_parametrization(inner.lin, "weight", Doubled())
    prune.l1_unstructured(pruned.lin, "weight", 0.5)
    for layer in (outer, inner, pruned, Louder(WIDTH, OUT).double()):
        torch.nn.init.normal_(next(layer.parameters()))
        assert_same_run(layer, drawn, {}, "auto")


def test_lazy_layers_and_layers_in_training() -> None:
    for layer in (G.GCNConv(-1, OUT), G.SAGEConv((-1, -1), OUT, project=False)):
        drawn = draw(9, dtype=torch.float32)
        shared = shared_conv(layer, drawn.x, drawn.edges)
        torch.testing.assert_close(shared, as_one_graph(layer, drawn, {}))
        assert len(gradients(shared, layer, drawn.x)) == len(list(layer.parameters())) + 1
        assert shared.shape == (BATCH, drawn.x.size(1), OUT)


# What is computed again in the backward pass is what it was in the forward pass

AGAIN: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "rows": (
        lambda: G.GINConv(nn.Sequential(nn.Linear(WIDTH, 7), nn.Dropout(0.5), nn.Linear(7, OUT))),
        1 << 21,
    ),
    "attention": (lambda: G.GATv2Conv(WIDTH, OUT, heads=2), 1 << 21),
    "samples": (
        lambda: G.GINConv(nn.Sequential(nn.Linear(WIDTH, 7), nn.Dropout(0.5), nn.Linear(7, OUT)), aggr="max"),
        1,
    ),
    "attention of some samples": (lambda: G.GATConv(WIDTH, OUT, aggr="max"), 1),
}
"""A layer, and how many edges of it are looked at together."""


@pytest.fixture(params=AGAIN)
def again_layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    make, at_once = AGAIN[request.param]
    monkeypatch.setattr(again, "EDGES_AT_ONCE", at_once)
    monkeypatch.setattr(product, "WIDE_BELOW", 0)
    torch.manual_seed(0)
    return make().double().eval()


def shared_and_plain(drawn: Drawn) -> list[Callable[[nn.Module, Tensor], Tensor]]:
    def plain(layer: nn.Module, x: Tensor) -> Tensor:
        return as_one_graph(layer, Drawn(drawn.edge_index, drawn.kept, drawn.mask, x, {}), {})

    return [lambda layer, x: shared_conv(layer, x, drawn.edges), plain]


@pytest.mark.parametrize("kind", ["attribute", "buffer", "parameter"])
@pytest.mark.parametrize("wide", [0, 1 << 30])
def test_weights_that_are_no_parameters_get_their_gradient(
    kind: str, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As inner loops of meta-learning and networks that make weights put them into modules."""
    monkeypatch.setattr(product, "WIDE_BELOW", wide)
    torch.manual_seed(0)
    drawn, found = draw(19), []
    made: list[Callable[[], tuple[nn.Module, list[nn.Module]]]] = [
        lambda: (lambda lin: (G.GINConv(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), lin)), [lin]))(
            nn.Linear(WIDTH, OUT)
        ),
        lambda: (lambda norm: (G.GINConv(norm), [norm]))(nn.LayerNorm(WIDTH)),
        *(
            lambda c=c: (lambda layer: (layer, [next(m for m in layer.modules() if hasattr(m, "weight"))]))(
                c(WIDTH, OUT)
            )
            for c in (G.GCNConv, G.SAGEConv, G.GraphConv, G.GATConv, G.GATv2Conv, G.TransformerConv)
        ),
    ]
    for make in made:
        layer, parts = make()
        layer.double()
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        for part in parts:
            weight = part.weight.detach() * scale
            del part.weight
            if kind == "attribute":
                part.weight = weight
            elif kind == "buffer":
                part.register_buffer("weight", weight)
            else:
                part._parameters["weight"] = weight
        found = [
            torch.autograd.grad(run(layer, drawn.x).square().sum(), [drawn.x, scale], retain_graph=True)
            for run in shared_and_plain(drawn)
        ]
        torch.testing.assert_close(*found)


class Called(nn.Module):
    def __init__(self, layer: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layer, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.ReLU(inplace=True),
        lambda: nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.Linear(WIDTH, OUT)),
        lambda: nn.Sequential(nn.Linear(WIDTH, OUT), nn.ELU(inplace=True)),
    ],
)
def test_parts_that_write_into_what_they_are_given(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "WIDE_BELOW", 0)
    assert_same_run(G.GINConv(make()).double(), draw(16), {}, "auto")


def test_parameters_that_are_lent_for_one_call(again_layer: nn.Module) -> None:
    """As inner loops of meta-learning do: they are gone again when the gradient is made."""
    drawn, found = draw(10), []
    lent = {f"layer.{k}": (3 * v).detach().requires_grad_() for k, v in again_layer.named_parameters()}
    for run in shared_and_plain(drawn):
        out = torch.func.functional_call(Called(again_layer, run), lent, (drawn.x,))
        found.append(torch.autograd.grad(out.square().sum(), [drawn.x, *lent.values()]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("later", ["train", "replaced", "autocast"])
def test_whatever_becomes_of_the_layer_before_the_backward_pass(again_layer: nn.Module, later: str) -> None:
    drawn, found = draw(11), []
    known = list(again_layer.parameters())
    for run in shared_and_plain(drawn):
        layer = again_layer.eval()
        total = run(layer, drawn.x).square().sum()
        if later == "train":
            layer.train()
        elif later == "replaced":
            first = next(m for m in layer.modules() if hasattr(m, "weight"))
            before, first.weight = first.weight, nn.Parameter(torch.zeros_like(first.weight))
        with torch.autocast("cpu", torch.bfloat16, enabled=later == "autocast"):
            found.append(torch.autograd.grad(total, [drawn.x, *known]))
        if later == "replaced":
            first.weight = before
    torch.testing.assert_close(*found)


def test_hooks_of_parameters_see_the_gradient_once(again_layer: nn.Module) -> None:
    drawn, found, seen = draw(12), [], []
    parameters = list(again_layer.parameters())
    for run in shared_and_plain(drawn):
        calls: list[int] = []
        handles = [
            p.register_hook(lambda g, calls=calls: calls.append(1) or g.clamp(-0.1, 0.1)) for p in parameters
        ]
        again_layer.zero_grad()
        run(again_layer, drawn.x.detach()).square().sum().backward()
        found.append([p.grad for p in parameters])
        seen.append(len(calls))
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(*found)
    assert seen == [len(parameters)] * 2


def test_parameters_changed_before_the_backward_pass_are_refused_as_by_autograd(
    again_layer: nn.Module,
) -> None:
    drawn = draw(13)
    for run in shared_and_plain(drawn):
        total = run(again_layer, drawn.x).square().sum()
        with torch.no_grad():
            for parameter in again_layer.parameters():
                parameter.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


def test_norms_that_look_at_the_whole_batch_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in evaluation, where they keep no statistics."""
    monkeypatch.setattr(again, "EDGES_AT_ONCE", 1)
    layer = G.GINConv(
        nn.Sequential(nn.Linear(WIDTH, OUT), nn.BatchNorm1d(OUT, track_running_stats=False)), aggr="max"
    )
    same_values(layer.double().eval(), draw(14), shared_conv(layer, draw(14).x, draw(14).edges))


OF_GRAPHS: dict[str, Callable[[], nn.Module]] = {
    "global attention": lambda: G.GPSConv(WIDTH, G.SAGEConv(WIDTH, WIDTH), heads=1, norm="layer"),
    "linear attention": lambda: G.GPSConv(WIDTH, None, heads=1, norm=None, attn_type="performer"),
    **{
        norm: lambda norm=norm: G.GraphSAGE(WIDTH, 6, 2, OUT, norm=norm)
        for norm in ("graph_norm", "instance_norm", "pair_norm", "layer_norm")
    },
}


@pytest.mark.parametrize("name", OF_GRAPHS)
def test_layers_that_look_at_a_whole_graph_look_at_one_sample(name: str) -> None:
    """PyG's are told by ``batch``; without it they take all samples for one graph."""
    torch.manual_seed(0)
    layer, drawn = OF_GRAPHS[name]().double().eval(), draw(15)
    actual = shared_conv(layer, drawn.x, drawn.edges)
    for k, mask in enumerate(drawn.mask):
        one = layer(drawn.x[k], drawn.edge_index[:, mask])
        torch.testing.assert_close(actual[k], one, rtol=1e-3, atol=1e-4)  # PyG adds its epsilon elsewhere
    batch = torch.arange(BATCH).repeat_interleave(drawn.x.size(1))
    torch.testing.assert_close(shared_conv(layer, drawn.x, drawn.edges, batch=batch), actual)


def test_a_module_of_a_file_named_like_one_of_pyg_is_no_aggregation_of_pyg(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Centred(nn.Module):
        """Looks at all nodes of a batch."""

    for name in ("scaler", "basic"):
        monkeypatch.setattr(Centred, "__module__", name)
        assert not is_separate(Centred())
    assert is_separate(G.DegreeScalerAggregation("mean", ["identity"], torch.tensor([1, 2])))
