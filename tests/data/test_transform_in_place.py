"""A transform may work in place: what it changes is its own sample, not the base graph and not what others read."""

import copy
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset
from torch.utils.data import DataLoader as TorchLoader
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import DataLoader

import torchcell_cache as tc
from torchcell_cache.graph.fields import graph_digest

NODES = 9_000  # x and edge_index beyond the size up to which tensors are copied at once


def _base() -> Data:
    generator = torch.Generator().manual_seed(3)
    return Data(
        x=torch.rand(NODES, 4, generator=generator),
        edge_index=torch.randint(NODES, (2, 12_000), generator=generator),
        names=[f"n{k}" for k in range(6)],
        facts={"inner": [1, 2], "t": torch.zeros(2)},
        small=torch.arange(4.0),
    )


def _spoil(graph: Data) -> Data:
    graph.x += 1
    graph.x.numpy()[0, 0] = -5
    graph.edge_index[0, :10] = 0
    graph.names.append("more")
    graph.facts["inner"].append(3)
    graph.facts["t"] += 1
    graph.small.mul_(2)
    graph.y += 1
    return graph


@pytest.fixture(scope="module", params=["full", "delta"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, path = _base(), tmp_path_factory.mktemp("store") / request.param
    samples = [copy.copy(base) for _ in range(6)]
    for k, sample in enumerate(samples):
        sample.y = torch.tensor([float(k)])
    source = tc.sources.PygSource(samples, base_graph=base)
    tc.build(path, source=source, storage=request.param, shard_size=2, progress=False)
    return path


def _wanted(index: int) -> Data:
    graph = _base()
    graph.y = torch.tensor([float(index)])
    return _spoil(graph)


def _one_by_one(dataset: Any) -> Iterator[tuple[int, Any]]:
    for k in (1, 1, 4, 1):
        yield k, dataset[k]


def _slices(dataset: Any) -> Iterator[tuple[int, Any]]:
    yield from zip((2, 3, 4), dataset[2:5], strict=True)
    yield from zip((3, 3, 0), dataset.__getitems__([3, 3, 0]), strict=True)


def _subsets(dataset: Any) -> Iterator[tuple[int, Any]]:
    parts = ConcatDataset([Subset(dataset, [5, 1]), Subset(dataset, [5])])
    yield from zip((5, 1, 5), (parts[k] for k in range(3)), strict=True)


def _workers(dataset: Any) -> Iterator[tuple[int, Any]]:
    """Single samples through the pipe of forked workers: tensors copied on write cross it."""
    loader = TorchLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        yield from enumerate(loader)


def _threads(dataset: Any) -> Iterator[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []

    def read() -> None:
        found.extend((k, dataset[k]) for k in (0, 5, 0, 3))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    yield from found


def _stream(dataset: Any) -> Iterator[tuple[int, Any]]:
    for graph in tc.StreamingCacheDataset(dataset, shuffle=True, shuffle_buffer_size=4):
        yield int(graph.y) - 1, graph


READS = [_one_by_one, _slices, _subsets, _workers, _threads, _stream]


@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)
def test_everybody_reads_the_same(root: Path, read: Callable[[Any], Iterator[tuple[int, Any]]]) -> None:
    dataset = tc.PreprocessedDataset(root, transform=_spoil)
    for index, graph in read(dataset):
        tc.testing.assert_same_graph(graph, _wanted(index))
    assert graph_digest(dataset.base_graph) == graph_digest(_base())
    plain = tc.PreprocessedDataset(root)
    assert plain[1].x is plain[2].x is plain.base_graph.x
    assert plain[1].facts is plain.base_graph.facts


@pytest.mark.filterwarnings("ignore:the dataset has a transform")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches(root: Path, workers: int) -> None:
    def positions(graph: Data) -> Data:
        graph.x.add_(1)
        graph.edge_index.clamp_(max=5)
        return graph

    dataset = tc.PreprocessedDataset(root, transform=positions)
    for loader in (
        DataLoader(dataset, batch_size=3, num_workers=workers),
        tc.CacheLoader(dataset, 3, num_workers=workers, expand=True),
    ):
        for _ in range(2):
            for batch in loader:
                assert torch.equal(batch.x[NODES : 2 * NODES], _base().x + 1)
                assert batch.edge_index[:, :12_000].max() == 5
    assert graph_digest(dataset.base_graph) == graph_digest(_base())


def _double(graph: Any) -> Any:
    for store in graph.stores:
        for value in store.values():
            if isinstance(value, torch.Tensor):
                value.logical_not_() if value.dtype == torch.bool else value.mul_(2)
            elif isinstance(value, list):
                value.reverse()
    return graph


@pytest.mark.parametrize("storage", ["perturbation", "delta", "full"])
@pytest.mark.parametrize(
    "processor",
    [tc.LazySubgraphRepresentation(), tc.SubgraphRepresentation(), tc.Perturbation()],
    ids=lambda p: type(p).__name__,
)
@pytest.mark.parametrize("kind", ["cell", "graph"])
def test_knock_outs(tmp_path: Path, storage: str, processor: Any, kind: str) -> None:
    cell: Any = tc.testing.tiny_graph()
    if kind == "graph":
        cell = Data(
            x=torch.rand(12, 2),
            edge_index=torch.randint(12, (2, 40)),
            edge_attr=torch.rand(40, 3),
            node_ids=[f"G{k}" for k in range(12)],
        )
    source = tc.testing.tiny_source(4, cell)
    wanted = [_double(copy.deepcopy(processor.process(cell, source[k]))) for k in range(4)]
    dataset = tc.build(tmp_path, source=source, processor=processor, storage=storage, progress=False)
    dataset.transform = _double
    before = graph_digest(dataset.base_graph)
    for k in (1, 0, 1, 3, 1):
        tc.testing.assert_same_graph(dataset[k], wanted[k])
    for k, graph in enumerate(dataset[:]):
        tc.testing.assert_same_graph(graph, wanted[k])
    assert graph_digest(dataset.base_graph) == before


def test_only_what_is_written_is_copied(root: Path) -> None:
    graph = tc.PreprocessedDataset(root, transform=lambda graph: graph)[0]
    assert torch._C._is_cow_tensor(graph.x)
    assert float(graph.x.sum()) == float(_base().x.sum())
    assert torch._C._is_cow_tensor(graph.x)
    graph.x[0] = 0
    assert not torch._C._is_cow_tensor(graph.x)
    assert torch._C._is_cow_tensor(graph.edge_index)


def test_a_sample_goes_where_any_other_goes(root: Path) -> None:
    """Saved, copied, joined, moved: torch knows tensors that are copied on write."""
    dataset = tc.PreprocessedDataset(root, transform=lambda graph: graph)
    want = _base().x
    file = io.BytesIO()
    torch.save(dataset[0].x, file)
    file.seek(0)
    assert torch.equal(torch.load(file), want)
    assert torch.equal(copy.deepcopy(dataset[0]).x, want)
    assert torch.equal(dataset[0].x.clone().share_memory_(), want)
    assert torch.equal(dataset[0].x.share_memory_(), want)
    assert torch.equal(torch.from_dlpack(dataset[0].x), want)
    leaf = dataset[0].x.requires_grad_()
    (leaf * 2).sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(want, 2))
    assert torch.equal(dataset[0].x, want)


def test_evaluation_first(root: Path) -> None:
    dataset = tc.PreprocessedDataset(root, transform=_spoil)
    with torch.inference_mode():
        dataset[0]
    graph = dataset[0]
    assert not graph.x.is_inference()
    tc.testing.assert_same_graph(graph, _wanted(0))


class _Own(tc.PreprocessedDataset):
    def get(self, idx: int) -> Any:
        graph = HeteroData()
        graph["a"].x = super().get(idx).x
        return graph


def test_a_dataset_with_its_own_get(root: Path) -> None:
    def shift(graph: HeteroData) -> HeteroData:
        graph["a"].x -= 1
        return graph

    dataset = _Own(root, transform=shift)
    for _ in range(2):
        assert torch.equal(dataset[0]["a"].x, _base().x - 1)
    assert graph_digest(dataset.base_graph) == graph_digest(_base())
