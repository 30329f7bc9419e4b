"""Layers for heterogeneous graphs on the batches of a store, against PyG on each sample's kept edges."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn as G
from batch_cases import as_pyg
from graphs import cell_graph, random_case
from test_nn_batches import GPR, OUT, PHYSICAL, REGULATORY, RMR, WIDTH, features, masked_index, stored
from torch import Tensor, nn

import torchcell_cache as tc
from torchcell_cache.errors import SettingError
from torchcell_cache.nn import SharedConv, shared_conv, shared_edges, shared_hetero_conv

METADATA = (["gene", "reaction", "metabolite"], [PHYSICAL, REGULATORY, GPR, RMR])


@pytest.fixture
def dataset(tmp_path: Path) -> tc.PreprocessedDataset:
    torch.manual_seed(0)
    return stored(tmp_path / "s", random_case(cell_graph()), tc.LazySubgraphRepresentation())


def flat(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.flatten(0, 1) for name, value in x.items()}


def kept(batch: Any, wanted: Any = None) -> dict[Any, Tensor]:
    pyg = as_pyg(batch)
    return {t: masked_index(pyg, t) for t in wanted or pyg.edge_types}


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == [name for name, value in expected.items() if value is not None]
    for name, value in actual.items():
        torch.testing.assert_close(value.flatten(0, 1), expected[name])


def node_arguments(batch: Any, x: dict[str, Tensor]) -> dict[str, Any]:
    size, genes = x["gene"].shape[:2]
    return {
        "batch_dict": {"gene": torch.arange(size).repeat_interleave(genes)},
        "lambda_max_dict": {"gene": torch.linspace(1.5, 3, size, dtype=torch.float64)},
    }


def test_arguments_by_node_type_are_handed_on(dataset: tc.PreprocessedDataset) -> None:
    batch, x = dataset.read_batch([3, 0, 7]), features(dataset, 3)
    layer = G.HeteroConv({PHYSICAL: G.ChebConv(WIDTH, OUT, K=3), REGULATORY: G.ChebConv(WIDTH, OUT, K=2)})
    given = node_arguments(batch, x)
    expected = layer.double()(flat(x), kept(batch), **given)
    same(shared_hetero_conv(layer, x, shared_edges(batch), **given), expected)
    without = shared_hetero_conv(layer, x, shared_edges(batch))
    assert not torch.allclose(without["gene"].flatten(0, 1), expected["gene"])


class WithPlaces(G.MessagePassing):
    """Messages over edges between two kinds of nodes, which have places."""

    def forward(self, x: Any, edge_index: Tensor, pos: Any) -> Tensor:
        return self.propagate(edge_index, x=x, pos=pos)

    def message(self, x_j: Tensor, pos_i: Tensor, pos_j: Tensor) -> Tensor:
        return x_j * (pos_i - pos_j)


def test_arguments_of_both_ends_and_of_edges(dataset: tc.PreprocessedDataset) -> None:
    batch, x = dataset.read_batch([1, 4]), features(dataset, 2)
    layer = G.HeteroConv(
        {GPR: WithPlaces(), PHYSICAL: WithPlaces(), RMR: G.GraphConv((WIDTH, WIDTH), OUT).double()}
    )
    pos = {name: torch.randn(value.size(0) * value.size(1), 1) for name, value in x.items()}
    del pos["metabolite"]
    layer.convs[RMR].forward = ignoring_pos(layer.convs[RMR])
    pyg, weight = as_pyg(batch), dataset.base_graph[RMR].stoichiometry.double()
    of_kept = {RMR: pyg[RMR].stoichiometry[pyg[RMR].mask].double()}
    expected = layer(flat(x), kept(batch), pos_dict=pos, edge_weight_dict=of_kept)
    edges = shared_edges(batch)
    same(shared_hetero_conv(layer, x, edges, pos_dict=pos, edge_weight_dict={RMR: weight}), expected)


def ignoring_pos(layer: nn.Module) -> Any:
    own = layer.forward
    return lambda x, edge_index, edge_weight=None, pos=None: own(x, edge_index, edge_weight)


@pytest.mark.parametrize(
    "name", [("gene", "phsical", "gene"), ("gene", "physical", "Gene"), "genes", "physical", 3, ("gene",)]
)
@pytest.mark.parametrize("argument", ["edge_weight_dict", "batch_dict"])
def test_names_that_nothing_has_are_refused(
    dataset: tc.PreprocessedDataset, name: Any, argument: str
) -> None:
    batch, x = dataset.read_batch([1, 4]), features(dataset, 2)
    layers = G.HeteroConv({PHYSICAL: G.GCNConv(WIDTH, OUT)}), G.HGTConv(WIDTH, OUT, METADATA)
    for layer in layers:
        given = {argument: {name: torch.rand(dataset.base_graph[PHYSICAL].edge_index.size(1))}}
        with pytest.raises(
            SettingError, match=str(name[1] if isinstance(name, tuple) and name[1:] else name)
        ):
            shared_hetero_conv(layer.double(), x, shared_edges(batch), **given)


def test_weights_of_types_that_the_layer_does_not_use_are_fine(dataset: tc.PreprocessedDataset) -> None:
    batch, x = dataset.read_batch([1, 4]), features(dataset, 2)
    layer = G.HeteroConv({PHYSICAL: G.GATConv(WIDTH, OUT)}).double()
    weights = {RMR: dataset.base_graph[RMR].stoichiometry.double()}
    expected = layer(flat(x), kept(batch))
    same(shared_hetero_conv(layer, x, shared_edges(batch), edge_weight_dict=weights), expected)


@pytest.mark.parametrize("missing", ["gene", "reaction"])
def test_an_edge_type_needs_features_at_both_ends(dataset: tc.PreprocessedDataset, missing: str) -> None:
    batch, x = dataset.read_batch([1, 4]), features(dataset, 2)
    del x[missing]
    layers = {
        GPR: G.SAGEConv((WIDTH, WIDTH), OUT, root_weight=False),
        ("reaction", "back", "gene"): G.SAGEConv((WIDTH, WIDTH), OUT),
    }
    layer = G.HeteroConv(layers).double()
    with pytest.raises(SettingError, match=f"needs features of '{missing}'"):
        shared_hetero_conv(layer, x, shared_edges(batch))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": {"genes": torch.zeros(2, 9, WIDTH)}}, "there are features of \\['genes'\\]"),
        ({"edges": {}}, "none of the layer's edge types"),
        ({"x": torch.zeros(2, 8, WIDTH)}, "x is Tensor, expected a dictionary"),
        ({"edges": None}, "edges is NoneType, expected a dictionary"),
        ({"edges": {PHYSICAL: torch.zeros(2, 3, dtype=torch.long)}}, "edges is Tensor"),
        ({"edge_weight_dict": torch.zeros(3)}, "expected a dictionary by type"),
        ({"edge_weight_dict": {PHYSICAL: torch.zeros(3)}}, "one row for each"),
        ({"route": "fast", "layer": G.HGTConv(WIDTH, OUT, METADATA)}, "HGTConv has no fast route"),
        ({"layer": G.HeteroConv({PHYSICAL: G.GCNConv(WIDTH, OUT, cached=True)})}, "cached=False"),
    ],
)
def test_what_does_not_fit_is_refused(dataset: tc.PreprocessedDataset, change: dict, text: str) -> None:
    batch, x = dataset.read_batch([1, 4]), features(dataset, 2)
    call = {"layer": G.HeteroConv({PHYSICAL: G.GCNConv(WIDTH, OUT)}), "x": x, "edges": shared_edges(batch)}
    with pytest.raises(SettingError, match=text):
        shared_hetero_conv(**{**call, **change})
    for other in (batch.to_pyg(), dataset, dataset[0]):
        with pytest.raises(SettingError, match="SharedGraphBatch, got"):
            shared_edges(other)


class Halved(G.HeteroConv):
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {name: value / 2 for name, value in super().forward(*args, **kwargs).items()}


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.layer(WIDTH), self.layer(OUT)])

    def layer(self, width: int) -> G.HeteroConv:
        types = {t: G.SAGEConv((width, width), OUT) for t in (PHYSICAL, GPR, RMR)}
        return G.HeteroConv(types, aggr="mean")

    def forward(self, x: dict[str, Tensor], edge_index: dict[Any, Tensor]) -> dict[str, Tensor]:
        for layer in self.layers:
            x = {
                **{name: value.new_zeros(len(value), OUT) for name, value in x.items()},
                **layer(x, edge_index),
            }
        return x


def to_hetero() -> nn.Module:
    model = G.Sequential("x, edge_index", [(G.SAGEConv((-1, -1), OUT), "x, edge_index -> x"), nn.ReLU()])
    return G.to_hetero(model, METADATA, debug=False)


MODELS = {
    "HGTConv": lambda: G.HGTConv(WIDTH, OUT, METADATA, heads=2),
    "HGTConv of one type": lambda: G.HGTConv(WIDTH, OUT, (["gene", "reaction", "metabolite"], [PHYSICAL])),
    "HANConv": lambda: G.HANConv(WIDTH, OUT, METADATA),
    "to_hetero": to_hetero,
    "subclass": lambda: Halved({PHYSICAL: G.GCNConv(WIDTH, OUT), GPR: G.SAGEConv((WIDTH, WIDTH), OUT)}),
    "model": TwoLayers,
}


@pytest.mark.parametrize("name", MODELS)
def test_other_models_of_dictionaries_run_as_they_are(dataset: tc.PreprocessedDataset, name: str) -> None:
    batch, x = dataset.read_batch([3, 0, 7]), features(dataset, 3)
    model = MODELS[name]().double().eval()
    wanted = [PHYSICAL] if name == "HGTConv of one type" else METADATA[1]
    expected = model(flat(x), kept(batch, wanted))
    edges = {t: shared_edges(batch)[t] for t in wanted}
    same(shared_hetero_conv(model, x, edges), expected)
    same(SharedConv(model)(x, edges), expected)
    if name.startswith("HGTConv") or name == "subclass":  # these say which types they know
        same(shared_hetero_conv(model, x, shared_edges(batch)), expected)


def test_hooks_of_a_hetero_layer_run(dataset: tc.PreprocessedDataset) -> None:
    batch, x = dataset.read_batch([3, 0]), features(dataset, 2)
    layer = G.HeteroConv({PHYSICAL: G.GCNConv(WIDTH, OUT)}).double()
    layer.register_forward_hook(lambda module, given, out: {name: 2 * v for name, v in out.items()})
    weight = torch.rand(dataset.base_graph[PHYSICAL].edge_index.size(1), dtype=torch.float64)
    of_kept = {PHYSICAL: weight.repeat(2)[as_pyg(batch)[PHYSICAL].mask]}
    expected = layer(flat(x), kept(batch), edge_weight_dict=of_kept)
    same(shared_hetero_conv(layer, x, shared_edges(batch), edge_weight_dict={PHYSICAL: weight}), expected)


class Pooled(nn.Module):
    """Takes which sample each node is of, and a number per edge, under any names."""

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, strength: Any = None) -> Tensor:
        out = torch.zeros_like(x)
        messages = x[edge_index[0]] * (1 if strength is None else strength.unsqueeze(1))
        out.index_add_(0, edge_index[1], messages)
        return out - G.global_mean_pool(x, batch)[batch]


def test_arguments_of_nodes_and_of_edges_are_told_apart() -> None:
    from test_nn import as_one_graph, draw

    for edges in (60, 36):  # 36: as many edges as there are nodes in the batch
        drawn = draw(1, edges=edges)
        batch = torch.arange(3).repeat_interleave(12)
        expected = as_one_graph(partial(Pooled(), batch=batch), drawn, {})
        torch.testing.assert_close(shared_conv(Pooled(), drawn.x, drawn.edges, batch=batch), expected)
        strength = torch.rand(edges, dtype=torch.float64)
        if edges == 36:
            with pytest.raises(SettingError, match="not clear"):
                shared_conv(Pooled(), drawn.x, drawn.edges, batch=batch, strength=strength)
            continue
        each = torch.cat([strength[m] for m in drawn.mask])
        expected = as_one_graph(partial(Pooled(), batch=batch, strength=each), drawn, {})
        actual = shared_conv(Pooled(), drawn.x, drawn.edges, batch=batch, strength=strength)
        torch.testing.assert_close(actual, expected)
    with pytest.raises(SettingError, match="not clear"):
        shared_conv(Pooled(), drawn.x, drawn.edges, batch=batch, strength=strength[:7])
