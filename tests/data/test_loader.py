"""``CacheLoader`` gives what torch's and PyG's loaders give, from arguments that mean the same."""

import warnings

import numpy as np
import pytest
import torch
from graphs import plain_graph
from loading import COUNT, build, graphs_of, make_source, rows, stock
from torch.utils.data import ConcatDataset, Subset, WeightedRandomSampler, random_split
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.data.samplers.order import epoch_order
from torchcell_cache.errors import CorruptRecordError, CorruptShardError, SettingError


@pytest.fixture(scope="module")
def source():
    return make_source()


@pytest.fixture(scope="module")
def ds(source, tmp_path_factory):
    return build(tmp_path_factory.mktemp("loader"), source, storage="delta")


@pytest.fixture(scope="module")
def graphs(source):
    return graphs_of(source)


def assert_same_batches(got, want):
    got, want = list(got), list(want)
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        tc.testing.assert_same_graph(mine, theirs)
        assert mine._slice_dict.keys() == theirs._slice_dict.keys()
        assert mine.num_graphs == theirs.num_graphs
        for k in range(theirs.num_graphs):
            tc.testing.assert_same_graph(mine.get_example(k), theirs.get_example(k))


def views(ds):
    first, second = random_split(ds, [14, COUNT - 14], generator=torch.Generator().manual_seed(0))
    return {
        "whole": (ds, range(COUNT)),
        "slice": (ds[5:], range(5, COUNT)),
        "list": (ds[[7, 7, 0]], [7, 7, 0]),
        "subset": (Subset(ds, [4, 1, 9]), [4, 1, 9]),
        "subset of subset of view": (Subset(Subset(ds[2:], [0, 3, 5]), [2, 0]), [7, 2]),
        "split": (first, first.indices),
        "other split": (second, second.indices),
        "concatenated": (ConcatDataset([ds[:2], Subset(ds, [20])]), [0, 1, 20]),
    }


@pytest.mark.parametrize(
    "name",
    ["whole", "slice", "list", "subset", "subset of subset of view", "split", "other split", "concatenated"],
)
def test_expanded_batches_equal_stock_loading(ds, graphs, name) -> None:
    dataset, chosen = views(ds)[name]
    want = stock([graphs[k] for k in chosen], batch_size=4)
    assert_same_batches(tc.CacheLoader(dataset, batch_size=4, expand=True), want)
    flat = [k for batch in rows(tc.CacheLoader(dataset, 4)) for k in batch]
    assert flat == list(chosen)


@pytest.mark.parametrize("storage", ["perturbation", "delta", "full"])
@pytest.mark.parametrize(
    "processor",
    [tc.LazySubgraphRepresentation(), tc.SubgraphRepresentation(), tc.Perturbation()],
    ids=lambda p: type(p).__name__,
)
def test_every_storage_and_processor_across_a_process_boundary(tmp_path, source, storage, processor) -> None:
    ds = build(tmp_path, source, storage=storage, processor=processor)
    loader = tc.CacheLoader(
        ds,
        batch_size=5,
        num_workers=1,
        expand=True,
        follow_batch=["x", "mask"]
        if storage == "delta" and isinstance(processor, tc.LazySubgraphRepresentation)
        else None,
    )
    assert_same_batches(
        loader, stock(graphs_of(source, processor), batch_size=5, follow_batch=loader.follow_batch)
    )


def test_generic_records_and_homogeneous_graphs(tmp_path) -> None:
    base = plain_graph()
    data = [Data(x=base.x + k, edge_index=base.edge_index, y=torch.tensor([float(k)])) for k in range(9)]
    ds = tc.build(tmp_path, source=data, shard_size=4, progress=False)
    for workers in (0, 1):
        assert_same_batches(
            tc.CacheLoader(ds, 4, num_workers=workers, expand=True), stock(data, batch_size=4)
        )


def test_exclude_keys(ds, graphs) -> None:
    settings = {"batch_size": 4, "exclude_keys": ["x", "ids_pert"], "follow_batch": ["mask"]}
    assert_same_batches(tc.CacheLoader(ds, expand=True, **settings), stock(graphs, **settings))


def kept_only(graph):
    """Every field of edges as ``[mask]`` gives it."""
    for store in graph.edge_stores:
        mask = store.mask
        for name, value in list(store.items()):
            if isinstance(value, torch.Tensor) and value.size(-1) == len(mask):
                store[name] = value[..., mask]
        if "num_edges" in store:
            store.num_edges = int(mask.sum())
    return graph


def unit_x(graph):
    graph["gene"].x = torch.ones_like(graph["gene"].x)
    return graph


@pytest.mark.filterwarnings("ignore:the dataset has a transform")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("way", ["loader", "transform", "stream"])
def test_kept_edges_only(ds, source, way, workers) -> None:
    """As ``edge_index[:, mask]`` of each sample's graph, made before PyG's own loader collates."""
    want = [kept_only(graph) for graph in graphs_of(source)]
    keys = {"exclude_keys": ["ids_pert"], "follow_batch": ["mask"]}
    arguments = {"expand": True, "drop_removed": True, "num_workers": workers, **keys}
    if way == "stream":
        got = tc.StreamingCacheDataset(ds, batch_size=4, shuffle=False).batches(**arguments)
    else:
        transform = unit_x if way == "transform" else None
        want = [graph if transform is None else transform(graph) for graph in want]
        got = tc.CacheLoader(tc.PreprocessedDataset(ds.root, transform=transform), 4, **arguments)
    want = stock(want, batch_size=4, **keys)
    assert_same_batches(got, want)


def test_kept_edges_only_of_what_has_edges(ds) -> None:
    for arguments in ({}, {"expand": True, "collate_fn": list}):
        with pytest.raises(SettingError, match=r"drop_removed=True(.|\n)*expand=True, without collate_fn"):
            tc.CacheLoader(ds, 4, drop_removed=True, **arguments)


def test_shared_batches_hold_the_same_samples(ds, graphs) -> None:
    loader = tc.CacheLoader(ds, 6)
    assert (len(loader), loader.batch_size, loader.dataset, loader.drop_last) == (4, 6, ds, False)
    seen = 0
    for batch in loader:
        assert isinstance(batch, tc.SharedGraphBatch)
        for sample in batch:
            tc.testing.assert_same_graph(sample, graphs[seen])
            seen += 1
    assert seen == COUNT


def test_shuffles_anew_each_epoch_by_seed_and_epoch(ds) -> None:
    loader = tc.CacheLoader(ds, 4, shuffle=True, seed=5)
    epochs = [[k for batch in rows(loader) for k in batch] for _ in range(3)]
    assert epochs == [epoch_order(COUNT, 5, epoch).tolist() for epoch in range(3)]
    loader.sampler.set_epoch(1)
    assert [k for batch in rows(loader) for k in batch] == epochs[1]
    loader.set_epoch(0)
    assert [k for batch in rows(loader) for k in batch] == epochs[0]


def test_leaves_the_callers_random_numbers_alone(ds) -> None:
    for workers in (0, 1):
        before = torch.get_rng_state()
        list(tc.CacheLoader(ds, 4, True, workers))
        assert torch.equal(torch.get_rng_state(), before)


def test_drop_last(ds) -> None:
    loader = tc.CacheLoader(ds, 4, drop_last=True)
    assert rows(loader) == [list(range(k, k + 4)) for k in range(0, 20, 4)]
    assert len(loader) == 5


def test_padding_is_flagged(ds, graphs) -> None:
    for expand in (False, True):
        loaders = [
            tc.CacheLoader(ds, 4, rank=r, world_size=3, uneven="pad", expand=expand, num_workers=r % 2)
            for r in range(3)
        ]
        assert [len(loader) for loader in loaders] == [2, 2, 2]
        batches = [list(loader) for loader in loaders]
        flags = [[batch.is_padding.tolist() for batch in rank] for rank in batches]
        assert flags[:2] == [[[False] * 4] * 2] * 2
        assert flags[2] == [[False] * 4, [False] * 3 + [True]]
    repeated = batches[2][1].get_example(3)["gene"].perturbation_indices
    assert torch.equal(repeated, graphs[0]["gene"].perturbation_indices)


def test_a_users_collate_fn_gets_the_list_of_samples(ds, graphs) -> None:
    def collate(samples):
        assert isinstance(samples, list)
        return {"ids": [s["gene"].perturbation_indices for s in samples], "count": len(samples)}

    want = [g["gene"].perturbation_indices.tolist() for g in graphs]
    for workers in (0, 1):
        got = list(tc.CacheLoader(ds[3:], 5, num_workers=workers, collate_fn=collate))
        assert [batch["count"] for batch in got] == [5, 5, 5, 5]
        assert [ids.tolist() for batch in got for ids in batch["ids"]] == want[3:]


def test_a_transform_is_honoured_and_its_price_said(ds, graphs) -> None:
    marked = tc.PreprocessedDataset(ds.root, transform=_mark)
    with pytest.warns(UserWarning, match=r"has a transform.*copies the base graph") as said:
        loaders = [tc.CacheLoader(marked[4:], 5, num_workers=workers) for workers in (0, 1)]
    assert len(said) == 2
    assert {w.filename for w in said} == {__file__}
    want = stock([_mark(graph.clone()) for graph in graphs[4:]], batch_size=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loader in loaders:
            assert_same_batches(loader, want)
            assert_same_batches(loader, want)
        tc.CacheLoader(marked, collate_fn=len)


def _mark(graph):
    graph["gene"].marked = torch.tensor([len(graph["gene"].ids_pert)])
    return graph


def test_any_sampler_and_batch_sampler(ds) -> None:
    weights = np.arange(COUNT, dtype=float)
    sampler = WeightedRandomSampler(weights, 9, generator=torch.Generator().manual_seed(1))
    want = list(WeightedRandomSampler(weights, 9, generator=torch.Generator().manual_seed(1)))
    loader = tc.CacheLoader(ds, 4, sampler=sampler, num_workers=1)
    assert [len(b) for b in rows(loader)] == [4, 4, 1]
    sampler.generator.manual_seed(1)
    assert [k for batch in rows(loader) for k in batch] == want
    assert loader.sampler is sampler
    batches = [[3, 1], [2], torch.tensor([0, 0, 4])]
    for workers in (0, 1):
        loader = tc.CacheLoader(ds[2:], batch_sampler=batches, num_workers=workers)
        assert rows(loader) == [[5, 3], [4], [2, 2, 6]]
    assert (len(loader), loader.batch_size) == (3, None)
    with pytest.raises(SettingError, match="not known with a sampler of another kind"):
        loader.state_dict()
    loader.set_epoch(3)
    own = tc.DistributedCacheSampler(ds, 5, shuffle=True, seed=2)
    for name in ("sampler", "batch_sampler"):
        loader = tc.CacheLoader(ds, **{name: own})
        own.set_epoch(0)
        assert (rows(loader)[0], loader.batch_size) == (epoch_order(COUNT, 2, 0)[:5].tolist(), 5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"batchsize": 3},
            r"no argument 'batchsize'; did you mean 'batch_size'\?\n  it has dataset, batch_size, ",
        ),
        ({"colate": len}, "it has dataset, "),
        ({"uneven": "padded"}, "'drop_last', 'pad', 'exact'"),
        ({"multiprocessing_context": "frok"}, "'fork'"),
        ({"num_workers": -1}, "num_workers=-1: expected a whole number from 0 on"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"prefetch_factor": 0}, "prefetch_factor=0"),
        ({"sampler": range(3), "shuffle": True}, "sampler decides the order itself and excludes shuffle"),
        ({"sampler": range(3), "seed": 3}, "excludes seed"),
        ({"sampler": range(3), "batch_size": 0}, "batch_size=0"),
        ({"batch_sampler": [[0]], "batch_size": 3}, "excludes batch_size"),
        ({"batch_sampler": [[0]], "sampler": range(3), "drop_last": True}, "excludes drop_last, sampler"),
        ({"sampler": tc.DistributedCacheSampler(COUNT + 1)}, "for 24 samples, the dataset has 23"),
        ({"rank": 1}, "both or neither"),
        ({"rank": 2, "world_size": 2}, "expected 0 to 1"),
    ],
)
def test_wrong_arguments_name_the_valid_ones(ds, arguments, text) -> None:
    with pytest.raises(SettingError, match=text):
        tc.CacheLoader(ds, **arguments)


@pytest.mark.parametrize("dataset", [[1, 2, 3], None, Subset([1, 2], [0])], ids=["list", "none", "subset"])
def test_other_datasets_are_refused(dataset) -> None:
    with pytest.raises(SettingError, match=r"torch_geometric\.loader\.DataLoader"):
        tc.CacheLoader(dataset)


def test_indices_out_of_range_are_errors(ds) -> None:
    with pytest.raises(IndexError, match="30"):
        list(tc.CacheLoader(ds, batch_sampler=[[0], [30]]))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resumes_in_the_middle_of_an_epoch(ds, workers) -> None:
    loader = tc.CacheLoader(ds, 4, True, workers, seed=3)
    order = [epoch_order(COUNT, 3, epoch).tolist() for epoch in range(3)]
    list(loader)
    assert (loader.epoch, loader.steps_left) == (1, 6)
    seen = []
    for batch in loader:
        seen += batch.indices.tolist()
        if len(seen) == 8:
            break
    state = loader.state_dict()
    assert (loader.epoch, loader.steps_left, state["samples_seen"]) == (1, 4, 8)
    other = tc.CacheLoader(ds, 7, True, 2 - workers)
    other.load_state_dict(state)
    assert (other.epoch, other.steps_left, len(other)) == (1, 3, 4)
    other.set_epoch(1)
    assert seen + [k for batch in rows(other) for k in batch] == order[1]
    assert [k for batch in rows(other) for k in batch] == order[2]


def test_abandoned_epochs_are_not_resumed_by_accident(ds) -> None:
    loader = tc.CacheLoader(ds, 4, True, 1, seed=3, persistent_workers=True)
    orders = [epoch_order(COUNT, 3, epoch).tolist() for epoch in range(3)]
    assert next(iter(loader)).indices.tolist() == orders[0][:4]
    assert [k for batch in rows(loader) for k in batch] == orders[1]
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    loader.set_epoch(2)
    assert [k for batch in rows(loader) for k in batch] == orders[2]


def test_epoch_may_be_set_between_iter_and_the_first_batch(ds) -> None:
    loader = tc.CacheLoader(ds, COUNT, True)
    iterator = iter(loader)
    loader.set_epoch(4)
    assert next(iterator).indices.tolist() == epoch_order(COUNT, 0, 4).tolist()
    assert loader.state_dict()["epoch"] == 4


def test_states_of_another_dataset_are_refused(ds, tmp_path, source) -> None:
    state = tc.CacheLoader(ds, 4, True).state_dict()
    tc.CacheLoader(tc.PreprocessedDataset(ds.root)[:], 5, True).load_state_dict(state)
    again = build(tmp_path / "again", source, storage="delta", num_workers=1)
    tc.CacheLoader(again, 5, True).load_state_dict(state)
    with pytest.raises(SettingError, match=r"another dataset.*content digest"):
        tc.CacheLoader(ds[::-1], 4, True).load_state_dict(state)
    other = build(tmp_path / "other", make_source(seed=8), storage="delta")
    with pytest.raises(SettingError, match="content digest"):
        tc.CacheLoader(other, 4, True).load_state_dict(state)
    with pytest.raises(SettingError, match="samples 23, here 22"):
        tc.CacheLoader(ds[1:], 4, True).load_state_dict(state)


def test_a_damaged_record_is_named(tmp_path, source) -> None:
    ds = build(tmp_path, source, storage="delta")
    path = ds.generation.directory / ds.generation.manifest.shards[1].file.name
    at = path.read_bytes().index(ds.generation.read([9])[0]) + 9
    with path.open("r+b") as file:
        file.seek(at)
        flipped = bytes([file.read(1)[0] ^ 1])
        file.seek(at)
        file.write(flipped)
    with pytest.raises(
        CorruptRecordError, match=r"sample 9[^0-9](.|\n)*while making a batch of samples 8, 9, 10, 11 "
    ):
        list(tc.CacheLoader(ds, 4))
    with pytest.raises(CorruptShardError, match=r"digest(.|\n)*while making a batch of samples 4, 5, 6, 7 "):
        list(tc.CacheLoader(ds, 4, num_workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_sample_that_a_transform_fails_on_is_named(ds, workers) -> None:
    calls = iter(range(COUNT))

    def fails_on_nine(graph):
        if next(calls) == 9:
            raise LookupError("no such thing")
        return graph

    with pytest.warns(UserWarning, match="transform"):
        loader = tc.CacheLoader(
            tc.PreprocessedDataset(ds.root, transform=fails_on_nine), 4, num_workers=workers
        )
    with pytest.raises(LookupError, match=r"no such thing(.|\n)*in the dataset's transform of sample 9\n"):
        list(loader)


def test_the_cpu_is_a_device_too(ds) -> None:
    batches = list(tc.CacheLoader(ds, 9, device="cpu", pin_memory=True, collate_fn=_nested))
    assert batches[0]["count"].tolist() == [9]
    assert batches[0]["names"][0] is None
    assert rows(tc.CacheLoader(ds, 20, device="cpu")) == [list(range(20)), [20, 21, 22]]


def _nested(samples):
    return {"count": torch.tensor([len(samples)]), "names": [None, (torch.ones(2), "a")]}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_the_gpu(ds, graphs, workers) -> None:
    want = [batch.to("cuda") for batch in stock(graphs, batch_size=4)]
    loader = tc.CacheLoader(ds, 4, num_workers=workers, device="cuda", expand=True)
    for _ in range(3):
        assert_same_batches(loader, want)
    padded = tc.CacheLoader(ds, 4, device="cuda", uneven="pad")
    assert [batch.device.type + batch.is_padding.device.type for batch in padded] == ["cudacuda"] * 6
