"""A program that changed torch's defaults, or reads under a mode of its own, gets what everybody gets.

The meta device stands for an accelerator: nothing that should be on the CPU can hide there.
"""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_cases import STATISTICS, as_pyg
from graphs import cell_graph, plain_graph, random_case
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATConv, GCNConv, GINConv

import torchcell_cache as tc
from torchcell_cache.batch.device import release
from torchcell_cache.nn import shared_conv, shared_edges

PACKAGE = Path(tc.__file__).parent
FACTORIES = {"empty", "zeros", "ones", "full", "eye", "arange", "linspace", "tensor", "as_tensor", "asarray"}
FACTORIES |= {
    "rand",
    "randn",
    "randint",
    "randperm",
    "scalar_tensor",
    "sparse_coo_tensor",
    "sparse_csr_tensor",
}
PROCESSORS = [
    tc.LazySubgraphRepresentation(),
    tc.LazySubgraphRepresentation(gpr="rule"),
    tc.SubgraphRepresentation(),
    tc.SubgraphRepresentation(gpr="rule"),
    tc.Perturbation(),
]


def test_every_new_tensor_names_its_device() -> None:
    nameless = [
        f"{path}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in FACTORIES) == ("torch", True)
        and not any(word.arg in ("device", "out") for word in node.keywords)
    ]
    assert not nameless


@contextmanager
def other_defaults() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


MODES = pytest.mark.parametrize("mode", [other_defaults, inference])


def tensors_of(graph: Any) -> list[Tensor]:
    return [v for store in graph.stores for v in store._mapping.values() if isinstance(v, Tensor)]


def same_fields(one: Any, other: Any) -> None:
    tc.testing.assert_same_graph(one, other)
    assert {t.device.type for t in tensors_of(one)} <= {"cpu"}


@MODES
@pytest.mark.parametrize("storage", ["perturbation", "delta", "full"])
@pytest.mark.parametrize("processor", PROCESSORS, ids=repr)
def test_a_store_is_built_and_read_the_same(tmp_path: Path, processor: Any, storage: str, mode: Any) -> None:
    case = random_case(cell_graph())
    wanted = tc.build(
        tmp_path / "a", source=case.source(), processor=processor, storage=storage, progress=False
    )
    samples, batch = (
        [wanted[k] for k in range(4)],
        wanted.read_batch(range(4)).to_pyg(exclude_keys=STATISTICS),
    )
    release()
    with mode():
        built = tc.build(
            tmp_path / "b", source=case.source(), processor=processor, storage=storage, progress=False
        )
        for root in (tmp_path / "a", tmp_path / "b"):
            dataset = tc.PreprocessedDataset(root)
            for at, sample in enumerate(samples):
                same_fields(dataset[at], sample)
            same_fields(dataset.read_batch(range(4)).to_pyg(exclude_keys=STATISTICS), batch)
            assert tc.verify(root, level="full", progress=False).ok
    for at, sample in enumerate(samples):
        same_fields(built[at], sample)


@MODES
def test_graphs_of_any_kind(tmp_path: Path, mode: Any) -> None:
    graphs = [
        Data(
            x=torch.rand(3, 2), edge_index=torch.zeros(2, 0, dtype=torch.long), y=torch.tensor([k]), note=[k]
        )
        for k in range(3)
    ]
    with mode():
        dataset = tc.build(tmp_path / "s", source=graphs, storage="full", progress=False)
        samples = [dataset[k] for k in range(3)]
        batch = dataset.read_batch([2, 0, 1]).to_pyg()
    for one, other in zip(samples, graphs, strict=True):
        same_fields(one, other)
    same_fields(batch, Batch.from_data_list([graphs[k] for k in (2, 0, 1)]))


@MODES
@pytest.mark.parametrize("graph", [cell_graph, plain_graph])
def test_what_the_first_reader_leaves_serves_training(tmp_path: Path, graph: Any, mode: Any) -> None:
    """Base graph, index, masks, edge lists and the batch itself, all first asked for under the mode."""
    dataset = tc.build(
        tmp_path / "s",
        source=random_case(graph()).source(),
        processor=tc.LazySubgraphRepresentation(),
        storage="perturbation",
        progress=False,
    )
    release()
    hetero = hasattr(dataset.base_graph, "node_types")
    node, edge = ("gene", ("gene", "physical", "gene")) if hetero else (None, None)
    dataset = tc.PreprocessedDataset(tmp_path / "s")
    batch = dataset.read_batch([1, 2, 3])
    small = batch.select_nodes(node, 8, strategy="perturbed_neighbourhood")
    width = (dataset.base_graph["gene"] if hetero else dataset.base_graph).x.size(1)
    layers = GCNConv(width, 4), GATConv(width, 4), GINConv(torch.nn.Linear(width, 4))
    kept = []
    with mode():
        for each in (batch, small):
            edges = shared_edges(each)[edge]
            each.node_mask(node), each.edge_mask(edge), as_pyg(each), each.labels(each.phenotype_names[0])
            x = (each.base_graph[node] if hetero else each.base_graph).x.expand(3, -1, -1)
            if mode is inference:
                [shared_conv(layer, x, edges) for layer in layers]
            kept.append(edges)
    for each, edges in zip((batch, small), kept, strict=True):
        x = (each.base_graph[node] if hetero else each.base_graph).x.expand(3, -1, -1)
        for again in (edges, shared_edges(each)[edge]):
            for layer in layers:
                out = shared_conv(layer, x, again)
                masked = out * each.node_mask(node).unsqueeze(-1)
                masked.square().sum().backward()
        weighted = torch.ones(each.edge_mask(edge).size(1), requires_grad=True) * each.edge_mask(edge)
        weighted.sum().backward()
        pyg = as_pyg(each)
        plain = pyg[edge] if hetero else pyg
        nodes = pyg[node] if hetero else pyg
        layers[0](nodes.x, plain.edge_index).sum().backward()
    assert all(p.grad is not None for layer in layers for p in layer.parameters())


def test_masks_inside_a_functional_transform(tmp_path: Path) -> None:
    """Also large ones, whose memory is used again."""
    graph = plain_graph()
    dataset = tc.build(
        tmp_path / "s",
        source=random_case(graph).source(),
        processor=tc.LazySubgraphRepresentation(),
        storage="perturbation",
        progress=False,
    )
    size = 70_000 // graph.edge_index.size(1)
    rows = [k % len(dataset) for k in range(size)]

    def loss(weight: Tensor) -> Tensor:
        batch = dataset.read_batch(rows)
        return (
            weight * batch.edge_mask() * batch.labels(batch.phenotype_names[0]).nan_to_num().unsqueeze(1)
        ).sum()

    weight = torch.ones(graph.edge_index.size(1))
    leaf = weight.clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    release()
    torch.testing.assert_close(torch.func.grad(loss)(weight), expected)
    torch.testing.assert_close(torch.func.grad(loss)(weight), expected)
    torch.testing.assert_close(loss(weight), (expected * weight).sum())
