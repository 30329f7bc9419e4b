"""What is taken as a source of graphs is read by position, once and for all; anything else is refused in a sentence."""

import collections
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch_geometric.transforms as T
from torch.utils.data import ChainDataset, IterableDataset
from torch_geometric.data import Batch, Data, Dataset, HeteroData, InMemoryDataset
from torch_geometric.loader import DataLoader

import torchcell_cache as tc

same = tc.testing.assert_same_graph
COUNT = 5


def graphs() -> list[Data]:
    edges = torch.tensor([[0, 1], [1, 2]])
    return [
        Data(x=torch.arange(6.0).view(3, 2) + 10 * k, edge_index=edges, y=torch.tensor([k]))
        for k in range(COUNT)
    ]


def _array() -> Any:
    array = np.empty(COUNT, dtype=object)
    array[:] = graphs()
    return array


POSITIONAL: dict[str, Callable[[], Any]] = {
    "series": lambda: pd.Series(graphs()),
    "series sorted": lambda: pd.Series(graphs()[::-1], index=range(COUNT)[::-1]),
    "series filtered": lambda: pd.Series([None, *graphs()])[1:],
    "series by name": lambda: pd.Series(graphs(), index=list("abcde")),
    "array": _array,
    "deque": lambda: collections.deque(graphs()),
    "batch": lambda: Batch.from_data_list(graphs()),
    "dict": lambda: dict(enumerate(graphs())),
}


@pytest.mark.parametrize("kind", POSITIONAL)
def test_by_position(tmp_path: Path, kind: str) -> None:
    wanted = graphs()[::-1] if kind == "series sorted" else graphs()
    ds = tc.build(tmp_path, source=POSITIONAL[kind](), storage="full", progress=False)
    assert len(ds) == COUNT
    for got, want in zip(ds, wanted, strict=True):
        same(got, want)


class _InOrder(IterableDataset):  # type: ignore[misc]
    def __iter__(self) -> Iterator[Data]:
        return iter(graphs())

    def __len__(self) -> int:
        return COUNT


class _Endless(_InOrder):
    def __len__(self) -> int:
        raise NotImplementedError


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "one graph": (lambda: graphs()[0], r"source=\[graph\]"),
    "one typed graph": (HeteroData, r"source=\[graph\]"),
    "generator": (lambda: (graph for graph in graphs()), r"list\(source\)"),
    "iterable": (_InOrder, r"list\(source\)"),
    "iterable without a length": (_Endless, "is no source: it is read in one order only"),
    "chain": (lambda: ChainDataset([_InOrder()]), r"list\(source\)"),
    "loader": (lambda: DataLoader(graphs()), "integer indexing"),
    "dict of names": (lambda: dict(zip("abcde", graphs(), strict=True)), r"source.values\(\)"),
    "dict with a gap": (lambda: {0: graphs()[0], 2: graphs()[1]}, r"source.values\(\)"),
    "data frame": (lambda: pd.DataFrame({"graph": graphs()}), "one column"),
    "scalar array": (lambda: np.array(3), "integer indexing"),
    "class": (lambda: InMemoryDataset, "integer indexing"),
    "nothing": (lambda: None, "integer indexing"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(tmp_path: Path, kind: str) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(tc.errors.SourceContractError, match=words):
        tc.build(tmp_path, source=make(), progress=False)


class _Kept(Dataset):  # type: ignore[misc]
    def __init__(self, transform: Any) -> None:
        super().__init__(None, transform)
        self.kept = graphs()

    def len(self) -> int:
        return COUNT

    def get(self, idx: int) -> Data:
        return self.kept[idx]


class _InMemory(InMemoryDataset):  # type: ignore[misc]
    def __init__(self, transform: Any) -> None:
        super().__init__(None, transform)
        self.data, self.slices = self.collate(graphs())


def _add_one(data: Data) -> Data:
    data.x += 1
    return data


def _jitter(data: Data) -> Data:
    return Data(x=torch.rand(2))


@pytest.mark.parametrize("transform", [_add_one, _jitter, T.Compose([_add_one, T.Constant()])])
@pytest.mark.parametrize("kind", [_Kept, _InMemory])
def test_a_dataset_that_gives_another_sample_each_time(tmp_path: Path, kind: Any, transform: Any) -> None:
    """PyG's own second epoch differs from the first; a store could hold any of them."""
    with pytest.raises(tc.errors.SourceContractError, match=r"read again[\s\S]*processor="):
        tc.build(tmp_path / "a", source=kind(transform), progress=False)
    if transform is _jitter:
        named = tc.sources.PygSource(kind(transform), version="one draw")
        assert len(tc.build(tmp_path / "b", source=named, progress=False)) == COUNT
        return
    ds = tc.build(tmp_path / "b", source=kind(None), processor=transform, shard_size=2, progress=False)
    for got, graph in zip(ds, graphs(), strict=True):
        same(got, transform(graph))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_a_nested_tensor_is_called_that(tmp_path: Path) -> None:
    graph = Data(parts=torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]))
    with pytest.raises(tc.errors.UnsupportedValueError, match=r"parts is a nested tensor"):
        tc.build(tmp_path, source=[graph], progress=False)
