"""A processor runs once on each sample, on a copy of its own; whatever it changes reaches neither source nor base graph.

The oracle is the processor applied by hand to samples made afresh.
"""

import copy
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset
from torch_geometric.data import Data, Dataset, HeteroData, InMemoryDataset
from torch_geometric.transforms import BaseTransform

import torchcell_cache as tc
from torchcell_cache.builder.generic import GenericMaker
from torchcell_cache.core.locks import STATUS_NAME, read_status
from torchcell_cache.graph.fields import graph_digest
from torchcell_cache.processors.base import Processing
from torchcell_cache.store.manifest import processed_dir

COUNT = 7
same = tc.testing.assert_same_graph


def graphs(count: int = COUNT) -> list[Data]:
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    out = []
    for k in range(count):
        both = torch.arange(24.0).view(4, 6) + 100 * k
        out.append(
            Data(
                x=both[:, :2],
                edge_index=edges.clone(),
                y=torch.ones(1, 3) * k,
                pos=both[:, 1:3],  # shares a column with x
                names=["a", ["b", k]],
                facts={"k": {"deep": torch.ones(2) * k}, "n": np.arange(3) + k},
            )
        )
    return out


class _Kept(Dataset):  # type: ignore[misc]
    def __init__(self, count: int = COUNT) -> None:
        super().__init__()
        self.kept = graphs(count)

    def len(self) -> int:
        return len(self.kept)

    def get(self, idx: int) -> Data:
        return self.kept[idx]


class _InMemory(InMemoryDataset):  # type: ignore[misc]
    def __init__(self, count: int = COUNT) -> None:
        super().__init__()
        self.data, self.slices = self.collate(graphs(count))


SOURCES: dict[str, Callable[[], Any]] = {
    "list": graphs,
    "tuple": lambda: tuple(graphs()),
    "subset": lambda: Subset(graphs(), range(COUNT)),
    "concat": lambda: ConcatDataset([graphs()[:3], graphs()[3:]]),
    "kept": _Kept,
    "in memory": _InMemory,
}


def in_place(data: Data) -> Data:
    data.x += 4.0
    return data


def rebind(data: Data) -> Data:
    data.x = data.x / 2
    return data


def widen(data: Data) -> Data:
    data.pos = torch.cat([data.pos, torch.zeros(4, 1)], dim=-1)
    data.edge_index = torch.cat([data.edge_index, data.edge_index.flip(0)], dim=1)
    return data


def nested(data: Data) -> Data:
    data.names[1].append("c")
    data.facts["k"]["deep"].mul_(3)
    data.facts["new"] = len(data.facts)
    return data


def by_numpy(data: Data) -> Data:
    data.y.numpy()[...] *= 10
    data.facts["n"] += 1
    return data


def drops(data: Data) -> Data:
    del data.pos
    data.y = data.y[:, 1]
    return data


class Counted:
    """Counts its calls in a file, one byte each, also from other processes."""

    cache_version = 1

    def __init__(self, path: Path, function: Callable[[Any], Any]) -> None:
        self.path, self.function = path, function
        path.write_bytes(b"")

    def __call__(self, data: Any) -> Any:
        with self.path.open("ab") as file:
            file.write(b".")
        return self.function(data)

    def settings(self) -> dict[str, Any]:
        return {"function": self.function.__name__}

    @property
    def calls(self) -> int:
        return self.path.stat().st_size


WAYS = [in_place, rebind, widen, nested, by_numpy, drops]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", SOURCES)
def test_once_each_and_the_source_stays(tmp_path: Path, kind: str, way: Callable[[Data], Data]) -> None:
    source, wanted = SOURCES[kind](), [way(graph) for graph in graphs()]
    if kind == "in memory":  # PyG's own slices of the joined storage
        wanted = [way(_InMemory().get(k)) for k in range(COUNT)]
    before = [graph_digest(source[k]) for k in range(COUNT)]
    for storage, workers in (("full", 0), ("delta", 2), ("auto", 0)):
        processor = Counted(tmp_path / f"calls {storage}", way)
        dataset = tc.build(
            tmp_path / storage,
            source=source,
            processor=processor,
            storage=storage,
            shard_size=3,
            num_workers=workers,
            progress=False,
        )
        for got, want in zip(dataset, wanted, strict=True):
            same(got, want)
        assert processor.calls == COUNT * (2 if storage == "auto" else 1)
        assert [graph_digest(source[k]) for k in range(COUNT)] == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_whose_map_was_too_small_keeps_its_records(tmp_path: Path, workers: int) -> None:
    """Records beyond the first map of 64 MB."""
    samples = [Data(x=torch.full((1, 2), float(k))) for k in range(5)]
    grow = Counted(tmp_path / "calls", lambda data: Data(x=data.x.repeat(5_000_000, 1)))
    dataset = tc.build(
        tmp_path / "s",
        source=samples * 2,
        processor=grow,
        storage="full",
        shard_size=5,
        num_workers=workers,
        progress=False,
    )
    assert grow.calls == 10
    status = read_status(processed_dir(tmp_path / "s") / STATUS_NAME)  # what the progress counted
    assert status is not None
    assert (status["samples"], status["total"]) == (10, 10)
    assert [int(dataset[k].x[-1, 0]) for k in range(10)] == [*range(5)] * 2


class _Hiccup:
    """Fails once, after it has changed its sample."""

    cache_version = 1

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, data: Data) -> Data:
        data.x *= 10
        if data.y[0, 0] == 4 and not self.failed:
            self.failed = True
            raise ValueError("hiccup")
        return data

    def settings(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("storage", ["full", "delta", "auto"])
def test_the_same_again_after_a_failed_build(tmp_path: Path, storage: str) -> None:
    source, processor = graphs(), _Hiccup()
    settings: dict[str, Any] = {"source": source, "processor": processor, "storage": storage}
    with pytest.raises(tc.errors.SampleError, match="sample 4: ValueError"):
        tc.build(tmp_path, **settings, shard_size=2, progress=False)
    dataset = tc.build(tmp_path, **settings, shard_size=2, progress=False)
    for got, fresh in zip(dataset, graphs(), strict=True):
        fresh.x *= 10
        same(got, fresh)


class _OnTable:
    """Works in place on what a row of a table consists of."""

    def process(self, base_graph: Any, sample: Any) -> HeteroData:
        graph = HeteroData()
        graph["gene"].x = base_graph["gene"].x
        graph.y = torch.from_numpy(sample.values[:1, 0])
        graph.y *= 10
        ids = torch.from_numpy(sample.perturbed)
        ids += 100
        graph.ids = ids
        return graph

    def settings(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("storage", ["full", "delta", "auto"])
@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_a_table(tmp_path: Path, storage: str, workers: int) -> None:
    values = [float(k) for k in range(6)]
    table = tc.PerturbationTable(
        tc.testing.tiny_graph(), [[f"G{k}"] for k in range(6)], phenotypes={"fitness": values}
    )
    ids = [int(table[k].perturbed[0]) for k in range(6)]
    dataset = tc.build(
        tmp_path,
        source=table,
        processor=_OnTable(),
        storage=storage,
        shard_size=2,
        num_workers=workers,
        progress=False,
    )
    assert [graph.y.item() for graph in dataset] == [10 * value for value in values]
    assert [graph.ids.item() for graph in dataset] == [100 + k for k in ids]
    assert [float(table[k].values[0, 0]) for k in range(6)] == values
    assert all(graph["gene"].x is dataset.base_graph["gene"].x for graph in dataset)


def test_a_sample_of_a_table_is_nobody_elses() -> None:
    table = tc.PerturbationTable(tc.testing.tiny_graph(), [["G0"]], phenotypes={"fitness": [1.5]})
    for sample in (table[0], table.table.sample(0), table.table.slice(0, 1).sample(0)):
        sample.values[...] = 7
        sample.perturbed[...] = 3
    assert table[0].values.tolist() == [[1.5]]


# The base graph


class _Spoils:
    def __init__(self, how: str) -> None:
        self.how = how

    def process(self, base_graph: Any, sample: Any) -> HeteroData:
        if self.how == "tensor":
            base_graph["gene"].x += 1
        elif self.how == "numpy":
            base_graph["gene"].x.numpy()[0, 0] += 1
        elif self.how == "list":
            base_graph["gene"].node_ids[0] = "other"
        elif self.how == "new field":
            base_graph["gene"].extra = torch.ones(1)
        else:
            sample.base_graph["gene"].x.zero_()
        graph = HeteroData()
        graph["gene"].x = base_graph["gene"].x
        return graph

    def settings(self) -> dict[str, Any]:
        return {"how": self.how}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["tensor", "numpy", "list", "new field", "of the sample"])
def test_a_processor_that_changes_the_base_graph_is_refused_by_name(
    tmp_path: Path, how: str, workers: int
) -> None:
    source = tc.testing.tiny_source(4)
    before = graph_digest(source.base_graph)
    for storage in ("full", "auto"):
        with pytest.raises(tc.errors.CacheError, match=r"_Spoils changes the base graph.*gene\."):
            tc.build(
                tmp_path,
                source=source,
                processor=_Spoils(how),
                storage=storage,
                shard_size=2,
                num_workers=workers,
                progress=False,
            )
    assert graph_digest(source.base_graph) == before
    with pytest.raises(tc.errors.CacheNotFoundError):
        tc.PreprocessedDataset(tmp_path)


def test_a_processor_with_a_hold_of_its_own_on_the_base_graph(tmp_path: Path) -> None:
    source = tc.testing.tiny_source(4)
    graph = source.base_graph

    def spoils(sample: Any) -> Data:
        graph["gene"].x.mul_(2)
        return Data(x=torch.ones(1))

    spoils.cache_version = 1  # type: ignore[attr-defined]
    with pytest.raises(tc.errors.CacheError, match="spoils changes the base graph"):
        tc.build(tmp_path, source=source, processor=spoils, storage="full", progress=False)


def test_fields_of_the_base_graph_in_samples_stay_shared(tmp_path: Path) -> None:
    """Also seen through a view, and with a processor in between."""
    base = Data(pos=torch.arange(12.0).view(4, 3), names=["a", "b"], edge_index=torch.zeros(2, 3).long())
    samples = [
        Data(pos=base.pos, first=base.pos[:2], names=base.names, y=torch.tensor([float(k)])) for k in range(4)
    ]

    def scale(data: Data) -> Data:
        data.y.mul_(3)
        return data

    scale.cache_version = 1  # type: ignore[attr-defined]
    source = tc.sources.PygSource(samples, base_graph=base)
    dataset = tc.build(tmp_path, source=source, processor=scale, storage="full", progress=False)
    for k, graph in enumerate(dataset):
        assert graph.pos is dataset.base_graph.pos
        assert graph.names is dataset.base_graph.names
        assert (graph.y.item(), graph.first.tolist()) == (3.0 * k, base.pos[:2].tolist())


# Elsewhere


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stream_from_the_source(shuffle: bool) -> None:
    source = graphs()
    stream = tc.StreamingCacheDataset.from_source(source, in_place, shuffle=shuffle, shuffle_buffer_size=4)
    wanted = {int(graph.y[0, 0]): in_place(graph) for graph in graphs()}
    for _ in range(3):
        for got in stream:
            same(got, wanted[int(got.y[0, 0])])
    assert [graph_digest(graph) for graph in source] == [graph_digest(graph) for graph in graphs()]


def test_a_stream_refuses_a_processor_that_changes_the_base_graph() -> None:
    stream = tc.StreamingCacheDataset.from_source(tc.testing.tiny_source(4), _Spoils("tensor"))
    with pytest.raises(tc.errors.CacheError, match="_Spoils changes the base graph"):
        list(stream)


def test_verify_and_append(tmp_path: Path) -> None:
    source = graphs()
    tc.build(tmp_path, source=source[:3], processor=in_place, storage="full", progress=False)
    for _ in range(2):
        assert tc.verify(tmp_path, source=source[:3], processor=in_place, progress=False).ok
    tail = source[3:]
    tc.append(tmp_path, tail, in_place, progress=False)
    for got, fresh in zip(tc.PreprocessedDataset(tmp_path), graphs(), strict=True):
        same(got, in_place(fresh))
    assert [graph_digest(graph) for graph in source] == [graph_digest(graph) for graph in graphs()]


# Copies


def test_a_copy_is_as_the_original_and_nothing_of_it() -> None:
    for graph in (*graphs(2), tc.testing.tiny_graph()):
        own = Processing(in_place, None).own(graph)
        same(own, graph)
        before = graph_digest(graph)
        for store in own.stores:
            for value in store.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
                elif isinstance(value, list):
                    value.clear()
        assert graph_digest(graph) == before


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(6.0).expand(3, 6),
        lambda: torch.arange(12.0).view(3, 4).t(),
        lambda: torch.arange(12.0)[::2],
        lambda: torch.empty(0, 3),
        lambda: torch.tensor(3.5),
        lambda: torch.ones(2, requires_grad=True),
        lambda: torch.ones(2, dtype=torch.complex64).conj(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.nn.Parameter(torch.ones(2)),
    ],
)
def test_tensors_of_all_kinds(make: Callable[[], torch.Tensor]) -> None:
    value = make()
    own = Processing(in_place, None).own(Data(value=value)).value
    assert own is not value
    assert (own.dtype, own.shape, own.layout) == (value.dtype, value.shape, value.layout)
    assert (own.requires_grad, own.is_leaf) == (value.requires_grad, value.is_leaf)
    dense = [t.detach().to_dense() if t.layout != torch.strided else t.detach() for t in (own, value)]
    assert torch.equal(*dense)


def test_what_lies_in_the_same_memory_does_so_in_the_copy() -> None:
    graph = graphs(1)[0]
    graph.again = graph.x
    own = Processing(in_place, None).own(graph)
    own.x[:, 1] = -1
    assert own.again is own.x
    assert own.pos[:, 0].tolist() == [-1.0] * 4
    assert own.pos[:, 1].tolist() == graphs(1)[0].pos[:, 1].tolist()


def _both_kinds(k: int) -> Data:
    """Tensors and arrays that show the same memory, some of it several times."""
    flat = np.arange(24.0) + k
    column = torch.arange(4.0).view(4, 1) + k
    return Data(
        array=flat,
        tensor=torch.from_numpy(flat),
        tail=torch.from_numpy(flat[5:]),
        back=flat[::-1],
        table=flat.reshape(4, 6).T,
        wide=column.expand(4, 3),
        windows=(torch.arange(6.0) + k).unfold(0, 3, 1),
        inside=[{"half": flat[:12]}, ("a", flat.view(np.uint64))],
    )


SAME_MEMORY: dict[str, Callable[[Data], Any]] = {
    "array": lambda d: d.array.__iadd__(1),
    "tensor": lambda d: d.tensor.mul_(3),
    "tail": lambda d: d.tail.zero_(),
    "back": lambda d: d.back.sort(),
    "table": lambda d: d.table.__setitem__((1, slice(None)), 8),
    "wide": lambda d: d.wide[:, 0].add_(5),
    "windows": lambda d: d.windows[1].mul_(2),
    "inside": lambda d: d.inside[0]["half"].fill(2),
}


@pytest.mark.parametrize("name", SAME_MEMORY)
def test_arrays_and_tensors_of_the_same_memory(name: str) -> None:
    for k in range(3):
        original, by_hand = _both_kinds(k), _both_kinds(k)
        own = Processing(in_place, None).own(original)
        SAME_MEMORY[name](own)
        SAME_MEMORY[name](by_hand)
        same(own, by_hand)
        same(original, _both_kinds(k))


def test_an_array_of_the_base_graphs_memory_is_the_base_graphs() -> None:
    base = Data(x=torch.zeros(4, 2))
    processing = Processing(in_place, base)
    own = processing.own(Data(seen=base.x.numpy()[1:]))
    own.seen[:] = 1
    assert base.x.sum() == 0
    with pytest.raises(tc.errors.SettingError, match="x"):
        processing.check_base_graph()


class _Reused:
    """Writes every label to the same memory."""

    def __init__(self) -> None:
        self.label = torch.zeros(1)

    def process(self, base_graph: Any, data: Data) -> Data:
        return Data(x=data.x, y=self.label.copy_(data.y[:, 0]))

    def settings(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("storage", ["full", "auto"])
def test_a_label_in_memory_that_is_used_again(tmp_path: Path, storage: str) -> None:
    ds = tc.build(
        tmp_path, source=graphs(), processor=_Reused(), storage=storage, shard_size=3, progress=False
    )
    assert [graph.y.item() for graph in ds] == ds.columns["y"].tolist() == [float(k) for k in range(COUNT)]


def test_a_slice_of_a_large_storage_is_copied_alone() -> None:
    big = torch.zeros(1_000_000)
    own = Processing(in_place, None).own(Data(x=big[:4]))
    assert own.x.untyped_storage().nbytes() == 16


def test_odd_members_are_copied_where_that_can_be_done() -> None:
    class Odd:
        def __init__(self) -> None:
            self.parts = [1]

    odd = Odd()
    graph = Data(odd=odd, kinds={1, 2}, file=sys.stdout)
    own = Processing(in_place, None).own(graph)
    own.odd.parts.append(2)
    own.kinds.add(3)
    assert (odd.parts, graph.kinds) == ([1], {1, 2})


class _Center(BaseTransform):  # type: ignore[misc]
    def forward(self, data: Data) -> Data:
        data.pos -= data.pos.mean(dim=0, keepdim=True)
        return data


def test_a_subclass_of_a_built_in_processor_is_not_passed_over(tmp_path: Path) -> None:
    """A quicker way to the same graphs exists for ``KHopSubgraph`` itself."""

    class Marked(tc.KHopSubgraph):
        def process(self, base_graph: Any, sample: Any) -> Any:
            graph = super().process(base_graph, sample)
            graph.mark = torch.tensor([sample.index])
            return graph

    source = tc.testing.tiny_source(3)
    maker = GenericMaker(source, Marked(1), "full")
    assert [int(graph.mark) for _, graph in maker.graphs(0, 3)] == [0, 1, 2]
    dataset = tc.build(tmp_path, source=graphs(), processor=_Center(), storage="full", progress=False)
    for got, fresh in zip(dataset, graphs(), strict=True):
        same(got, _Center()(copy.copy(fresh)))


def _toggled(base: Any, data: Any) -> Any:
    base.x.neg_()
    return data


def _toggled_by_numpy(base: Any, data: Any) -> Any:
    base.x.numpy()[...] *= -1
    return data


def _toggled_list(base: Any, data: Any) -> Any:
    base.names.reverse()
    return data


def _toggled_late(base: Any, data: Any) -> Any:
    if data.k in (2, 3):
        base.x.neg_()
    return data


def _asks_for_gradients(base: Any, data: Any) -> Any:
    base.x.requires_grad_(True)
    return Data(k=data.k)


def _puts_back(base: Any, data: Any) -> Any:
    kept = base.x[0].clone()
    base.x[0] = 0
    data.total = base.x.sum()
    base.x[0] = kept
    return data


class OnBase:
    """A processor made of a function of base graph and sample."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def process(self, base_graph: Any, sample: Any) -> Any:
        return self.function(base_graph, sample)

    def settings(self) -> dict[str, Any]:
        return {"function": self.function.__name__}


def _on_base() -> tc.sources.PygSource:
    base = Data(x=torch.arange(1.0, 9.0).view(4, 2), names=["a", "b"])
    return tc.sources.PygSource([Data(x=base.x, names=base.names, k=k) for k in range(6)], base)


@pytest.mark.parametrize("storage", ["full", "delta", "auto"])
@pytest.mark.parametrize(
    "function",
    [_toggled, _toggled_by_numpy, _toggled_list, _toggled_late, _asks_for_gradients],
    ids=lambda function: function.__name__,
)
def test_a_base_graph_changed_and_changed_back(tmp_path: Path, function: Any, storage: str) -> None:
    """After an even number of samples it is as it was; the samples in between were stored as if it always had been."""
    with pytest.raises(tc.errors.SettingError, match="OnBase changes the base graph"):
        tc.build(
            tmp_path,
            source=_on_base(),
            processor=OnBase(function),
            storage=storage,
            shard_size=6,
            progress=False,
        )
    assert any(
        "changes the base graph" in p for p in tc.testing.check_processor(OnBase(function), _on_base())
    )


def test_a_base_graph_put_back_within_the_sample(tmp_path: Path) -> None:
    ds = tc.build(tmp_path, source=_on_base(), processor=OnBase(_puts_back), storage="full", progress=False)
    source = _on_base()
    for k, got in enumerate(ds):
        same(got, _puts_back(source.base_graph, source[k]))


class _Draws:
    """Draws from three generators, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def process(self, base_graph: Any, data: Data) -> Data:
        self.calls += 1
        drawn = [torch.rand(1).item(), float(np.random.rand()), random.random()]
        return Data(drawn=torch.tensor(drawn), calls=self.calls)

    def settings(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("storage", ["full", "auto"])
def test_random_numbers_are_drawn_as_by_hand(tmp_path: Path, storage: str) -> None:
    """Measuring what storages cost neither draws from the caller's generators nor counts."""

    def seeded() -> _Draws:
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        return _Draws()

    ds = tc.build(
        tmp_path, source=graphs(), processor=seeded(), storage=storage, shard_size=2, progress=False
    )
    by_hand = seeded()
    for got, graph in zip(ds, graphs(), strict=True):
        same(got, by_hand.process(None, graph))


def test_every_shard_of_every_worker_draws_numbers_of_its_own(tmp_path: Path) -> None:
    drawn = {}
    for workers in (2, 3):
        torch.manual_seed(4)
        ds = tc.build(
            tmp_path / str(workers),
            source=graphs(),
            processor=_Draws(),
            storage="full",
            num_workers=workers,
            shard_size=1,
            progress=False,
        )
        drawn[workers] = [graph.drawn.tolist() for graph in ds]
    assert len({number for row in drawn[2] for number in row}) == 3 * COUNT
    assert drawn[2] == drawn[3]


LABELS: dict[str, Callable[[int], torch.Tensor]] = {
    "float8": lambda k: torch.ones(1).mul(k).to(torch.float8_e5m2),
    "bfloat16": lambda k: torch.ones(1, dtype=torch.bfloat16) * k,
    "complex": lambda k: torch.ones(1, dtype=torch.complex64) * k,
    "negative view": lambda k: torch._neg_view(-torch.ones(1) * k),
    "imaginary part": lambda k: torch.complex(torch.ones(1), -torch.ones(1) * k).conj().imag,
    "unsigned": lambda k: torch.tensor([k], dtype=torch.uint16),
    "bool": lambda k: torch.tensor([k > 3]),
    "no elements": lambda k: torch.empty(0),
    "scalar": lambda k: torch.tensor(k),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_all_kinds(tmp_path: Path, kind: str) -> None:
    """Those that numpy knows are a column too."""
    samples = [Data(x=torch.ones(1), y=LABELS[kind](k)) for k in range(COUNT)]
    ds = tc.build(tmp_path, source=samples, storage="full", shard_size=3, progress=False)
    for got, sample in zip(ds, samples, strict=True):
        same(got, sample)
    column = ds.columns.get("y")
    if kind in ("float8", "bfloat16", "complex"):
        assert column is None
    elif kind != "no elements":
        assert column.tolist() == [sample.y.item() for sample in samples]
