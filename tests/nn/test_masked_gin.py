"""A GINConv with a mask of edges, as torchcell has one, takes the fast route; what only looks like it does not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from graphs import cell_graph
from torch import Tensor, nn
from torch_geometric.nn import GINConv
from torch_geometric.typing import OptPairTensor, OptTensor  # noqa: F401 - PyG reads comments

import torchcell_cache as tc
from torchcell_cache.errors import SettingError
from torchcell_cache.nn import shared_conv, shared_edges, unmasked

EDGE = ("gene", "physical", "gene")


class Masked(GINConv):
    """What torchcell's layer does, in other words."""

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_mask: Tensor | None = None, size: Any = None
    ) -> Tensor:
        # propagate_type: (x: OptPairTensor, edge_mask: OptTensor)
        total = self.propagate(edge_index, x=(x, x), edge_mask=edge_mask, size=size)
        return self.nn(total + (1 + self.eps) * x)

    def message(self, x_j: Tensor, edge_mask: Tensor | None) -> Tensor:
        return x_j if edge_mask is None else x_j * edge_mask.view(-1, 1).to(x_j.dtype)


class Doubled(Masked):
    """Looks the same and is another sum."""

    def message(self, x_j: Tensor, edge_mask: Tensor | None) -> Tensor:
        return 2 * super().message(x_j, edge_mask)


class WithoutOwnRow(Masked):
    def forward(
        self, x: Tensor, edge_index: Tensor, edge_mask: Tensor | None = None, size: Any = None
    ) -> Tensor:
        # propagate_type: (x: OptPairTensor, edge_mask: OptTensor)
        return self.nn(self.propagate(edge_index, x=(x, x), edge_mask=edge_mask, size=size))


def layer_of(kind: type[GINConv], **settings: Any) -> GINConv:
    torch.manual_seed(3)
    settings = {"train_eps": True, "eps": 0.25, **settings}
    return kind(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), **settings)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    graph = cell_graph()
    source = tc.PerturbationTable(graph, [[0, 3], [], [5], [1, 2, 8]])
    root = tmp_path_factory.mktemp("store")
    ds = tc.build(root, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    return ds.read_batch(range(4))


def both(layer: GINConv, batch: Any, route: str) -> tuple[Any, Any]:
    """Output and gradients: shared, and on PyG's batch with its mask."""
    torch.manual_seed(4)
    size = batch.base_graph["gene"].num_nodes
    features = torch.randn(4, size, 4)
    out = []
    for shared in (True, False):
        one, x = copy.deepcopy(layer), features.clone().requires_grad_()
        if shared:
            y = shared_conv(one, x, shared_edges(batch)[EDGE], route=route).flatten(0, 1)
        else:
            pyg = batch.to_pyg()
            y = one(x.flatten(0, 1), pyg[EDGE].edge_index, edge_mask=pyg[EDGE].mask)
        (y.sin().sum()).backward()
        out.append([y, x.grad, *(p.grad for p in one.parameters())])
    return out[0], out[1]


@pytest.mark.parametrize("settings", [{}, {"train_eps": False}, {"train_eps": False, "eps": 0.0}])
def test_fast_is_the_masked_layer(batch: Any, settings: dict[str, Any]) -> None:
    for got, want in zip(*both(layer_of(Masked, **settings), batch, "fast"), strict=True):
        assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("kind", [Doubled, WithoutOwnRow])
def test_what_only_looks_like_it_runs_as_it_is(batch: Any, kind: type[GINConv]) -> None:
    layer = layer_of(kind)
    for got, want in zip(*both(layer, batch, "auto"), strict=True):
        assert (got is want is None) or torch.allclose(got, want, atol=1e-5)
    with pytest.raises(SettingError, match="fast route"):
        both(layer, batch, "fast")
    with pytest.raises(SettingError, match="no GINConv with a mask"):
        unmasked(layer)


def test_a_trained_layers_parameters_stay_as_they_are() -> None:
    layer = layer_of(Masked)
    before = copy.deepcopy(layer.state_dict())
    plain = unmasked(layer)
    assert type(plain) is GINConv
    assert plain.nn is layer.nn
    assert plain.eps is layer.eps
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    layer.nn = nn.Linear(4, 2)
    assert unmasked(layer).nn is layer.nn


def test_a_look_leaves_no_trace() -> None:
    """Neither random numbers nor running statistics are used up by it."""
    layer = Masked(nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)), train_eps=True)
    state, seed = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    unmasked(layer)
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    handle = layer.register_forward_hook(lambda *_: None)
    with pytest.raises(SettingError):
        unmasked(layer)
    handle.remove()


def test_plain_layers_are_none_of_them() -> None:
    for layer in (layer_of(GINConv), nn.Linear(2, 2)):
        with pytest.raises(SettingError):
            unmasked(layer)
