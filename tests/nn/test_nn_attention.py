"""Attention on the one edge list, and any layer in pieces, against PyG on each sample's own kept edges."""

from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as G
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nn_shared_input import TOLERANCE, assert_close, edges_of, gradients, graphs
from torch import Tensor, nn

from torchcell_cache.errors import SettingError
from torchcell_cache.nn import again, attention, shared_conv

WIDTH, OUT = 5, 4
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gat": lambda: G.GATConv(WIDTH, OUT, heads=2),
    "gat without loops": lambda: G.GATConv(
        WIDTH, OUT, heads=2, concat=False, add_self_loops=False, residual=True
    ),
    "gat v2": lambda: G.GATv2Conv(WIDTH, OUT, heads=2, negative_slope=0.1),
    "gat v2 shared": lambda: G.GATv2Conv(WIDTH, OUT, share_weights=True, add_self_loops=False),
    "transformer": lambda: G.TransformerConv(WIDTH, OUT, heads=2, beta=True),
    "transformer mean": lambda: G.TransformerConv(WIDTH, OUT, heads=2, concat=False, root_weight=False),
}
PIECES: dict[str, Callable[[], nn.Module]] = {
    "gat": lambda: G.GATConv(WIDTH, OUT, edge_dim=2),
    "pna": lambda: G.PNAConv(
        WIDTH, OUT, ["mean", "max", "std"], ["identity", "attenuation"], torch.tensor([1, 2, 3])
    ),
    "gine": lambda: G.GINEConv(nn.Sequential(nn.Linear(WIDTH, OUT), nn.BatchNorm1d(OUT).eval()), edge_dim=2),
    "nn": lambda: G.NNConv(WIDTH, OUT, nn.Sequential(nn.Linear(2, WIDTH * OUT))),
}


def plain(layer: nn.Module, x: Tensor, index: Tensor, kept: Tensor, attr: Tensor | None = None) -> Tensor:
    outs = []
    for each, k in zip(x, kept, strict=True):
        mask = k[index[0]] & k[index[1]]
        outs.append(layer(each, index[:, mask], **({} if attr is None else {"edge_attr": attr[mask]})))
    return torch.stack(outs)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=15, deadline=None)
@given(graphs(), st.integers(0, 99))
def test_attention_on_any_graph(
    name: str, dtype: torch.dtype, graph: tuple[Tensor, Tensor], seed: int
) -> None:
    index, kept = graph
    torch.manual_seed(seed)
    layer = LAYERS[name]().to(dtype)
    x = torch.randn(*kept.shape, WIDTH, dtype=dtype, requires_grad=True)
    actual = shared_conv(layer, x, edges_of(index, kept), route="fast")
    expected = plain(layer, x, index, kept)
    assert_close([actual], [expected], TOLERANCE[dtype])
    learned = x, *layer.parameters()
    assert_close(gradients(actual, *learned), gradients(expected, *learned), TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["gat", "gat v2", "transformer"])
def test_scores_far_apart_and_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores whose exponentials would overflow, and edges over several blocks."""
    monkeypatch.setattr(attention, "BLOCK", 7)
    torch.manual_seed(0)
    layer, index, kept = LAYERS[name]().double(), torch.randint(0, 20, (2, 100)), torch.rand(3, 20) > 0.1
    x = (300 * torch.randn(3, 20, WIDTH, dtype=torch.float64)).requires_grad_()
    actual, expected = (
        shared_conv(layer, x, edges_of(index, kept), route="fast"),
        plain(layer, x, index, kept),
    )
    assert_close([actual], [expected], 1e-12)
    assert_close(gradients(actual, x), gradients(expected, x), 1e-10)


@pytest.mark.parametrize("name", ["gat", "gat v2", "transformer"])
def test_derivatives_of_derivatives(name: str) -> None:
    torch.manual_seed(0)
    layer, index, kept = (
        LAYERS[name]().double(),
        torch.randint(0, 4, (2, 7)),
        torch.ones(2, 4, dtype=torch.bool),
    )
    kept[0, 1] = False
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    seconds = []
    for run in (
        lambda: shared_conv(layer, x, edges_of(index, kept), route="fast"),
        lambda: plain(layer, x, index, kept),
    ):
        first = torch.autograd.grad(
            run().pow(2).sum(), [x, *layer.parameters()], create_graph=True, allow_unused=True
        )
        total = sum(g.pow(2).sum() for g in first if g is not None)
        seconds.append(torch.autograd.grad(total, x)[0])
    assert_close(seconds[:1], seconds[1:], 1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_several_gradients_at_once(name: str) -> None:
    torch.manual_seed(0)
    layer, index, kept = LAYERS[name]().double(), torch.randint(0, 6, (2, 20)), torch.rand(2, 6) > 0.2
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    learned, found = (x, *layer.parameters()), []
    for out in (shared_conv(layer, x, edges_of(index, kept), route="fast"), plain(layer, x, index, kept)):
        seeds = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        grads = torch.autograd.grad(out, learned, seeds, is_grads_batched=True, allow_unused=True)
        found.append([torch.zeros(()) if g is None else g for g in grads])
    assert_close(*found, 1e-12)


def test_what_a_deleted_node_holds_reaches_nobody() -> None:
    index, kept = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), torch.ones(2, 4, dtype=torch.bool)
    kept[:, 0] = False
    x = torch.randn(2, 4, WIDTH)
    x[:, 0] = torch.inf
    for make in LAYERS.values():
        layer = make()
        out = shared_conv(layer, x, edges_of(index, kept))
        assert_close([out[:, 1:]], [plain(layer, x, index, kept)[:, 1:]], 1e-5)


def test_dropout_and_edge_attributes_are_left_to_the_layer() -> None:
    index, kept = torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 3, dtype=torch.bool)
    x, attr = torch.randn(2, 3, WIDTH), torch.randn(2, 2)
    for layer, more in (
        (G.GATConv(WIDTH, OUT, dropout=0.5), {}),
        (G.GATConv(WIDTH, OUT, edge_dim=2), {"edge_attr": attr}),
        (G.GATConv(WIDTH, OUT, aggr="mean"), {}),
    ):
        with pytest.raises(SettingError, match="not exact here"):
            shared_conv(layer, x, edges_of(index, kept), route="fast", **more)
        shared_conv(layer, x, edges_of(index, kept), **more)


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("at_once", [1, 130])
def test_any_layer_in_pieces(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "EDGES_AT_ONCE", at_once)
    torch.manual_seed(0)
    layer, index, kept = PIECES[name]().double(), torch.randint(0, 20, (2, 60)), torch.rand(5, 20) > 0.1
    x = torch.randn(5, 20, WIDTH, dtype=torch.float64, requires_grad=True)
    attr = torch.randn(60, 2, dtype=torch.float64, requires_grad=True) if name != "pna" else None
    edges, calls, listed = edges_of(index, kept), [], again.kept_edges
    monkeypatch.setattr(
        again, "kept_edges", lambda mask, *ends: calls.append(len(mask)) or listed(mask, *ends)
    )
    actual = shared_conv(layer, x, edges, **({} if attr is None else {"edge_attr": attr}))
    assert calls == ([1] * 5 if at_once == 1 else [2, 2, 1])
    expected = plain(layer, x, index, kept, attr)
    assert_close([actual], [expected], 1e-12)
    learned = x, *layer.parameters(), *([] if attr is None else [attr])
    assert_close(gradients(actual, *learned), gradients(expected, *learned), 1e-12)


@pytest.mark.parametrize("name", PIECES)
@settings(max_examples=10, deadline=None)
@given(graphs(), st.integers(0, 99))
def test_pieces_of_any_graph(name: str, graph: tuple[Tensor, Tensor], seed: int) -> None:
    index, kept = graph
    torch.manual_seed(seed)
    layer, x = (
        PIECES[name]().double(),
        torch.randn(*kept.shape, WIDTH, dtype=torch.float64, requires_grad=True),
    )
    attr = torch.randn(index.size(1), 2, dtype=torch.float64, requires_grad=True) if name != "pna" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(again, "EDGES_AT_ONCE", 1)
        actual = shared_conv(layer, x, edges_of(index, kept), **({} if attr is None else {"edge_attr": attr}))
    expected = plain(layer, x, index, kept, attr)
    assert_close([actual], [expected], 1e-12)
    learned = x, *layer.parameters(), *([] if attr is None else [attr])
    assert_close(gradients(actual, *learned), gradients(expected, *learned), 1e-12)


def test_layers_that_look_at_all_samples_get_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm in training, a module nobody knows, arguments that number nodes."""
    monkeypatch.setattr(again, "EDGES_AT_ONCE", 1)

    class Own(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return x - x.mean(0)

    index, kept = torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 3, dtype=torch.bool)
    x = torch.randn(2, 3, WIDTH)
    assert_close([shared_conv(Own(), x, edges_of(index, kept))], [x - x.flatten(0, 1).mean(0)], 1e-6)
    layer = G.GINConv(nn.Sequential(nn.Linear(WIDTH, OUT), nn.BatchNorm1d(OUT)), aggr="max")
    out = shared_conv(layer, x, edges_of(index, kept))
    expected = layer(x.flatten(0, 1), torch.tensor([[0, 1, 3, 4], [1, 0, 4, 3]])).view(2, 3, OUT)
    assert_close([out], [expected], 1e-5)


class Own(G.MessagePassing):
    """Messages of its own; what else it does decides whether samples may be taken apart."""

    def __init__(self, kind: str) -> None:
        super().__init__(aggr="max")
        self.kind, self.lin, self.seen = kind, nn.Linear(WIDTH, OUT), []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.kind == "keeps a list":
            self.seen.append(len(x))
        if self.kind == "counts":
            self.calls += 1
        out = self.propagate(edge_index, x=nn.functional.dropout(x, 0.5, self.training))
        return out - out.mean(0) if self.kind == "looks around" else out

    def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return self.lin(x_j).sigmoid() * x_i[:, :1]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["plain", "keeps a list", "counts", "looks around"])
def test_layers_of_ones_own_in_pieces(kind: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what gives each sample what it gives it alone, and keeps nothing, gets some samples at a time."""
    monkeypatch.setattr(again, "EDGES_AT_ONCE", 130)
    torch.manual_seed(0)
    layer, index, kept = Own(kind).double().train(training), torch.randint(0, 20, (2, 60)), torch.ones(5, 20)
    kept[1, 3] = kept[4, :2] = 0
    x, edges = (
        torch.randn(5, 20, WIDTH, dtype=torch.float64, requires_grad=True),
        edges_of(index, kept.bool()),
    )
    calls: list[int] = []
    listed = again.kept_edges
    monkeypatch.setattr(
        again, "kept_edges", lambda mask, *ends: calls.append(len(mask)) or listed(mask, *ends)
    )
    shared_conv(layer, x, edges)  # with the one look
    calls.clear()
    shared_conv(layer, x, edges)
    assert calls == ([2, 2, 1] if kind == "plain" else [])
    assert len(layer.seen) == (2 if kind == "keeps a list" else 0)
    assert layer.calls == (2 if kind == "counts" else 0)
    layer.eval()
    actual = shared_conv(layer, x, edges)
    expected = layer(x.flatten(0, 1), edges.kept(20, 20).index).view(5, 20, -1)
    assert_close([actual], [expected], 1e-12)
    learned = x, *layer.parameters()
    assert_close(gradients(actual, *learned), gradients(expected, *learned), 1e-12)
