"""Streams give the plain cache's samples, in the promised order, once each, in bounded memory."""

import gc
import json
import pickle
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from graphs import cell_graph, plain_graph, random_case
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import build, graphs_of, rows, stock
from torch.utils.data import DataLoader, Subset
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.data.samplers.shard_order import ShardLayout, ShardOrder, shuffle_quality
from torchcell_cache.errors import CorruptShardError, SampleError, SettingError, SourceContractError
from torchcell_cache.store import records as store

COUNT = 61
SMALL = {"chunk_size": 2, "shuffle_buffer_size": 9}


@pytest.fixture(scope="module")
def source():
    labels = np.random.default_rng(5).random(COUNT).astype(np.float32)
    perturbed = random_case(cell_graph(), num_samples=COUNT, seed=2).perturbed
    return tc.PerturbationTable(cell_graph(), perturbed, phenotypes={"fitness": labels})


@pytest.fixture(scope="module")
def ds(source, tmp_path_factory):
    return build(tmp_path_factory.mktemp("streaming"), source, storage="delta")


@pytest.fixture(scope="module")
def graphs(source):
    return graphs_of(source)


def stream(ds, batch_size=8, **arguments):
    return tc.StreamingCacheDataset(ds, batch_size, **{**SMALL, "seed": 1, **arguments})


def flat(lists):
    return [item for inner in lists for item in inner]


def order_of(stream, epoch=0):
    line = stream.sampler.order(epoch)
    return line.indices(0, len(line)).tolist()


# The order


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(0, 3),
)
def test_the_order_goes_from_shard_to_shard_in_windows(sizes, chunk, buffer, epoch) -> None:
    layout = ShardLayout(np.array(sizes))
    total, line = sum(sizes), ShardOrder(layout, 3, epoch, True, chunk, buffer)
    order = line.indices(0, total).tolist()
    assert sorted(order) == list(range(total))
    # By plain lists: the row of shards, chunks moved whole, is what windows permute.
    row, present, starts = [], [s for s in sizes if s], [0]
    for size in present:
        starts.append(starts[-1] + size)
    for shard in line.shards.tolist():
        mine = order_within(line, shard, starts, present, chunk)
        row += mine
        assert sorted(mine) == list(range(starts[shard], starts[shard + 1]))
    for at in range(0, total, buffer):
        assert sorted(order[at : at + buffer]) == sorted(row[at : at + buffer])
    cuts = sorted({0, total // 3, total // 2, total})
    assert flat(line.indices(a, b).tolist() for a, b in pairwise(cuts)) == order
    assert ShardOrder(layout, 3, epoch, False, chunk, buffer).indices(0, total).tolist() == list(range(total))


def order_within(line, shard, starts, sizes, chunk):
    """A shard's row out of the line's chunks, each of which must be consecutive."""
    places = line._shard(shard).tolist()
    first = [k for k in places if (k - starts[shard]) % chunk == 0]
    want = [k + j for k in first for j in range(chunk) if k + j < starts[shard] + sizes[shard]]
    assert places == want
    return places


def test_the_order_is_pinned() -> None:
    """The same on every machine and numpy version: a change here breaks runs that are resumed."""
    line = ShardOrder(ShardLayout(np.array([5, 4, 3])), 0, 0, True, 2, 5)
    assert line.indices(0, 12).tolist() == [2, 1, 4, 3, 0, 10, 6, 11, 9, 5, 7, 8]


def test_a_larger_buffer_is_closer_to_a_full_shuffle() -> None:
    layout = ShardLayout.from_runs(20_000, 1_000)
    found = [
        shuffle_quality(ShardOrder(layout, 0, 0, True, 10, buffer).indices(0, 20_000), 100)
        for buffer in (100, 1_000, 5_000, 20_000)
    ]
    full = shuffle_quality(np.random.default_rng(0).permutation(20_000), 100)
    for name in ("adjacency", "together"):
        values = [getattr(q, name) for q in found]
        assert values == sorted(values, reverse=True)
        assert values[-1] == pytest.approx(getattr(full, name), abs=2e-3)
    distances = [q.neighbour_distance for q in found]
    assert distances == sorted(distances)
    assert distances[-1] == pytest.approx(full.neighbour_distance, rel=0.05)
    assert full.mean_displacement == pytest.approx(1 / 3, rel=0.03)
    assert shuffle_quality(np.arange(10), 5).adjacency == 1
    assert shuffle_quality(np.arange(10), 5).together == 8 / 9
    assert shuffle_quality(np.arange(1), 5).together == 0


# Equality with the plain cache


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_batches_are_the_plain_caches(ds, graphs, workers) -> None:
    streaming = stream(ds)
    for epoch in (0, 1):
        loader = streaming.batches(num_workers=workers)
        assert len(loader) == len(streaming) == 8
        batches = list(loader)
        seen = [batch.indices.tolist() for batch in batches]
        if workers < 2:
            assert flat(seen) == order_of(streaming, epoch)
        assert sorted(flat(seen)) == list(range(COUNT))
        for batch in batches:
            assert isinstance(batch, tc.SharedGraphBatch)
            for k, sample in zip(batch.indices.tolist(), batch, strict=True):
                tc.testing.assert_same_graph(sample, graphs[k])
        streaming.set_epoch(epoch)
        if workers:  # torch's own loader gives the same batches in the same order
            other = DataLoader(streaming, batch_size=None, num_workers=workers)
            assert [batch.indices.tolist() for batch in other] == seen
        else:
            assert rows(streaming) == seen
        streaming.set_epoch(epoch + 1)


def test_workers_read_shards_of_their_own(ds) -> None:
    batches = rows(stream(ds, shuffle_buffer_size=3).batches(num_workers=2))
    owned = [set((np.array(flat(batches[k::2])) // 7).tolist()) for k in range(2)]
    assert sum(map(len, owned)) - 9 <= 1 + 1  # one cut, and a window of 3 across it


def test_single_samples_through_torchs_and_pygs_loaders(ds, graphs) -> None:
    from torch_geometric.loader import DataLoader as PygLoader

    streaming = stream(ds, None)
    assert len(streaming) == COUNT
    order = order_of(streaming)
    for k, sample in zip(order, streaming, strict=True):
        tc.testing.assert_same_graph(sample, graphs[k])
    for workers in (0, 2):
        streaming.set_epoch(0)
        batches = list(PygLoader(streaming, batch_size=7, num_workers=workers))
        assert sum(batch.num_graphs for batch in batches) == COUNT
        if workers == 0:
            for got, want in zip(batches, stock([graphs[k] for k in order], batch_size=7), strict=True):
                tc.testing.assert_same_graph(got, want)
    streaming.set_epoch(1)
    assert order_of(streaming, 1) != order
    next(iter(streaming))


def test_views_roots_and_transforms(ds, graphs) -> None:
    chosen = [60, 3, 3, 20, 1, 59, 2]
    for view in (ds[chosen], Subset(ds, chosen)):
        seen = flat(rows(tc.StreamingCacheDataset(view, 3, **SMALL)))
        assert sorted(seen) == sorted(chosen)
    assert sorted(flat(rows(tc.StreamingCacheDataset(str(ds.root), 8)))) == list(range(COUNT))
    plain = tc.StreamingCacheDataset(ds, 8, shuffle=False)
    assert flat(rows(plain)) == list(range(COUNT))
    marked = tc.PreprocessedDataset(ds.root, transform=_mark)
    for sample, graph in zip(tc.StreamingCacheDataset(marked, shuffle=False), graphs, strict=True):
        tc.testing.assert_same_graph(sample, _mark(graph.clone()))
    batch = next(iter(tc.StreamingCacheDataset(marked, 4, shuffle=False)))
    assert batch["gene"].marked.tolist() == [len(graphs[k]["gene"].ids_pert) for k in range(4)]


def _mark(graph):
    graph["gene"].marked = torch.tensor([len(graph["gene"].ids_pert)])
    return graph


@pytest.mark.parametrize("storage", ["perturbation", "full"])
def test_every_storage(tmp_path, source, graphs, storage) -> None:
    ds = build(tmp_path, source, storage=storage)
    for batch in stream(ds):
        for k, sample in zip(batch.indices.tolist(), batch, strict=True):
            tc.testing.assert_same_graph(sample, graphs[k])


# Straight from a source


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_streams_without_a_store(source, graphs, ds, workers) -> None:
    arguments = {**SMALL, "run_size": 7, "seed": 1}
    lazy = tc.LazySubgraphRepresentation()
    streaming = tc.StreamingCacheDataset.from_source(source, lazy, **arguments)
    order = order_of(streaming)
    assert order == order_of(stream(ds))  # the same order as from a store of such shards
    found = list(DataLoader(streaming, batch_size=None, num_workers=workers))
    assert len(found) == COUNT
    if workers == 0:
        for k, sample in zip(order, found, strict=True):
            tc.testing.assert_same_graph(sample, graphs[k])
    else:
        names = sorted(tuple(sample["gene"].ids_pert) for sample in found)
        assert names == sorted(tuple(graph["gene"].ids_pert) for graph in graphs)
    batched = tc.StreamingCacheDataset.from_source(source, lazy, 8, **arguments)
    assert [batch.num_graphs for batch in batched] == [8] * 7 + [5]
    counted = tc.StreamingCacheDataset.from_source(source, lazy, 8, collate_fn=len, shuffle=False)
    assert list(counted) == [8] * 7 + [5]


@pytest.mark.parametrize(
    "processor",
    [tc.LazySubgraphRepresentation(gpr="rule"), tc.SubgraphRepresentation(), tc.Perturbation()],
    ids=lambda p: type(p).__name__,
)
def test_built_in_processors_give_their_own_graphs(processor) -> None:
    """Through the incidence index, equal to the definition that scans every edge; several measurements, missing values."""
    case = random_case(cell_graph(), num_samples=30, seed=4)
    source = case.source()
    streaming = tc.StreamingCacheDataset.from_source(source, processor, **SMALL, run_size=7)
    for k, graph in zip(order_of(streaming), streaming, strict=True):
        tc.testing.assert_same_graph(graph, processor.process(source.base_graph, source[k]))


class Made:
    """A source that makes its samples when asked and knows how many are alive."""

    base_graph = None

    def __init__(self, count):
        self.count, self.alive, self.most, self.asked = count, 0, 0, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        data = Data(x=torch.full((1, 1), float(index)), num_nodes=1)
        self.alive += 1
        weakref.finalize(data, self.gone)
        self.most = max(self.most, self.alive)
        self.asked.append(index)
        return data

    def gone(self):
        self.alive -= 1

    def identity(self):
        return {"made": self.count}


@pytest.mark.parametrize("count", [300, 3000])
def test_a_source_is_held_one_window_at_a_time(count) -> None:
    made = Made(count)
    streaming = tc.StreamingCacheDataset.from_source(made, shuffle_buffer_size=50, chunk_size=5, run_size=100)
    seen = [int(sample.x) for sample in streaming]
    assert sorted(seen) == list(range(count))
    assert made.most <= 50 + 2
    # Fetched in the source's own order within a window, each once.
    assert sorted(made.asked) == list(range(count))
    assert all(made.asked[k : k + 50] == sorted(made.asked[k : k + 50]) for k in range(0, count, 50))
    assert seen != made.asked


class MadeInRuns(Made):
    """The same, read in runs."""

    ends_at = 10**9

    def items(self, start, stop):
        self.runs = [*getattr(self, "runs", []), (start, stop)]
        for index in range(start, min(stop, self.ends_at)):
            yield self[index]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_source_that_reads_runs_is_asked_for_runs(shuffle) -> None:
    """Cells are ten times quicker in runs than one by one."""
    made, plain = MadeInRuns(300), Made(300)
    settings = {"shuffle": shuffle, "shuffle_buffer_size": 100, "chunk_size": 20, "seed": 3}
    seen = [int(x.x) for x in tc.StreamingCacheDataset.from_source(made, **settings)]
    assert seen == [int(x.x) for x in tc.StreamingCacheDataset.from_source(plain, **settings)]
    assert len(made.runs) <= 300 // 20 + 3
    assert sorted(k for start, stop in made.runs for k in range(start, stop)) == list(range(300))
    assert made.most <= 100 + 2
    made.ends_at = 250
    with pytest.raises(SourceContractError, match="ended at 250, asked up to"):
        list(tc.StreamingCacheDataset.from_source(made, **settings))


def test_a_failing_sample_of_a_source_is_named(source) -> None:
    def fails(_):
        raise LookupError("no such thing")

    data = [Data(x=torch.ones(1, 1)) for _ in range(4)]
    with pytest.raises(
        SampleError, match=r"sample \d: LookupError in the source or in function: no such thing"
    ):
        list(tc.StreamingCacheDataset.from_source(data, fails))
    with pytest.raises(SettingError, match="straight from a source"):
        tc.StreamingCacheDataset.from_source(source, None, 8).batches()


# Ranks, steps, resuming


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["drop_last", "pad", "exact"]),
    st.integers(0, 8),
    st.integers(2, 9),
)
def test_each_sample_once_and_resumed_anywhere(ds, world, other, lanes, more, uneven, done, size) -> None:
    def plans_of(streams, workers):
        for one in streams:
            one.sampler.streams = max(1, workers)
        return [one.sampler.start_epoch() for one in streams]

    def ranks(count, mode):
        return [
            stream(ds, size, rank=rank, world_size=count, uneven=mode, shuffle_buffer_size=11)
            for rank in range(count)
        ]

    try:
        first = ranks(world, uneven)
        plans = plans_of(first, lanes)
    except SettingError:
        assert uneven == "exact"
        return
    steps = {len(plan) for plan in plans}
    assert len(steps) == 1
    assert all(len(one) == len(plan) for one, plan in zip(first, plans, strict=True))
    seen = []
    for step in range(min(done, len(plans[0]))):
        for one, plan in zip(first, plans, strict=True):
            indices, padding = plan.batch(step)
            assert len(indices)
            seen += indices[~padding].tolist()
            one.sampler.note_step(plan, step)
    states = [json.loads(json.dumps(one.state_dict())) for one in first]
    assert all(state == states[0] for state in states)
    second = ranks(other, "pad")
    for one in second:
        one.load_state_dict(states[0])
        one.set_epoch(0)  # by number: of a finished epoch nothing is left
    rest = []
    for plan in plans_of(second, more):
        for step in range(len(plan)):
            indices, padding = plan.batch(step)
            rest += indices[~padding].tolist()
    if done < len(plans[0]):
        assert sorted(seen + rest) == list(range(COUNT))
    else:
        assert rest == []
        assert len(seen) == len(set(seen)) >= COUNT - (world - 1) * (uneven == "drop_last")


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_in_the_middle_through_the_loader(ds, workers) -> None:
    loader = stream(ds).batches(num_workers=workers)
    seen, state = [], None
    for step, batch in enumerate(loader):
        seen += batch.indices.tolist()
        if step == 3:
            state = json.loads(json.dumps(loader.state_dict()))
            break
    other = stream(ds, 5)
    other.load_state_dict(state)
    rest = flat(rows(other.batches(num_workers=2 - workers)))
    assert sorted(seen + rest) == list(range(COUNT))
    assert other.epoch == 1
    # The same from torch's loader, whose progress only the caller knows.
    torchs = stream(ds)
    taken = iter(DataLoader(torchs, batch_size=None, num_workers=workers))
    for _ in range(4):
        next(taken)
    del taken
    if workers == 0:
        torchs.set_epoch(0)
    assert torchs.state_dict(steps=4, num_workers=workers) == state


def test_single_samples_resume(ds) -> None:
    streaming = stream(ds, None)
    order, iterator = order_of(streaming), iter(streaming)
    for _ in range(20):
        next(iterator)
    state = streaming.state_dict()
    other = stream(ds, 8)
    other.load_state_dict(state)
    assert flat(rows(other)) == order[20:]


def test_the_state_of_samples_that_torch_batches_in_workers_is_not_guessed(ds) -> None:
    streaming = stream(ds, None)
    seen = flat(taken(DataLoader(streaming, batch_size=6, num_workers=1, collate_fn=_positions), 3))
    state = streaming.state_dict(steps=18, num_workers=1)
    rest = stream(ds)
    rest.load_state_dict(state)
    assert [ids_of(ds, k) for k in order_of(stream(ds))[:18]] == seen
    assert flat(rows(rest)) == order_of(stream(ds))[18:]
    with pytest.raises(SettingError, match="give the stream its batch_size"):
        streaming.state_dict(steps=18, num_workers=2)


def taken(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def _positions(samples):
    return [tuple(sample["gene"].ids_pert) for sample in samples]


def ids_of(ds, k):
    return tuple(ds[k]["gene"].ids_pert)


def test_padding_is_marked(ds) -> None:
    streams = [stream(ds, 7, rank=r, world_size=3, uneven="pad") for r in range(3)]
    for each in (lambda s: list(s), lambda s: list(s.batches()), lambda s: list(s.batches(num_workers=2))):
        batches = [each(one) for one in streams]
        assert {len(b) for b in batches} == {3}
        kept = [k for b in flat(batches) for k in b.indices[~b.is_padding].tolist()]
        assert sorted(kept) == list(range(COUNT))
        assert sum(int(b.is_padding.sum()) for b in flat(batches)) == 2


def test_a_stream_travels(ds) -> None:
    again = pickle.loads(pickle.dumps(stream(ds)))
    assert flat(rows(again)) == order_of(stream(ds))


def test_a_spawned_worker_keeps_its_rank(ds, monkeypatch) -> None:
    """Torch's spawned workers find no process group: the rank travels, unless there is none yet."""
    alone = pickle.dumps(stream(ds))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sent = pickle.dumps(stream(ds))
    assert pickle.loads(alone).sampler.world_size == 3
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    arrived = pickle.loads(sent)
    assert (arrived.sampler.rank, arrived.sampler.world_size) == (1, 3)
    assert rows(arrived) == rows(stream(ds, rank=1, world_size=3))
    assert stream(ds).sampler.world_size == 1


# Memory


def test_shards_left_behind_are_closed(tmp_path) -> None:
    perturbed = [[k % 9] for k in range(700)]
    table = tc.PerturbationTable(cell_graph(), perturbed)
    ds = build(tmp_path, table, storage="delta")  # 100 shards of 7
    ds.close()
    streaming = stream(ds, 10, shuffle_buffer_size=14)
    gc.collect()
    before, most = store.open_count(), 0
    for way in (streaming, streaming.batches()):
        for batch in way:
            batch.pack()
            most = max(most, store.open_count() - before)
    assert 0 < most <= 6


def test_damage_is_found_while_streaming(tmp_path, source) -> None:
    ds = build(tmp_path, source, storage="delta")
    path = ds.generation.directory / ds.generation.manifest.shards[4].file.name
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with pytest.raises(CorruptShardError, match=r"digest(.|\n)*while making a batch"):
        list(stream(ds))


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"batchsize": 3},
            r"no argument 'batchsize'; did you mean 'batch_size'\?\n  it has dataset, batch_size",
        ),
        ({"shuffle_buffer": 3}, "did you mean 'shuffle_buffer_size'"),
        ({"shuffle_buffer_size": 0}, "shuffle_buffer_size=0: expected a whole number from 1 on"),
        ({"chunk_size": 1.5}, "chunk_size=1.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"uneven": "all"}, "'drop_last', 'pad', 'exact'"),
        ({"rank": 3, "world_size": 2}, "expected 0 to 1"),
        ({"batch_size": 62, "drop_last": True}, "leave no batch"),
        ({"uneven": "exact", "rank": 0, "world_size": 2, "batch_size": 1}, "uneven='pad'"),
    ],
)
def test_wrong_arguments_are_answered_with_the_valid_ones(ds, arguments, text) -> None:
    with pytest.raises(SettingError, match=text):
        tc.StreamingCacheDataset(ds, **arguments)


def test_wrong_uses_are_refused(ds, source) -> None:
    with pytest.raises(SettingError, match="shards of one store"):
        tc.StreamingCacheDataset([plain_graph()])
    with pytest.raises(SettingError, match="needs a batch size"):
        stream(ds, None).batches()
    with pytest.raises(SettingError, match=r"no argument 'num_worker'; did you mean 'num_workers'"):
        stream(ds).batches(num_worker=2)
    with pytest.raises(SettingError, match=r"num_workers=-1"):
        stream(ds).batches(-1)
    with pytest.raises(SettingError, match=r"no argument 'shard_size'(.|\n)*run_size"):
        tc.StreamingCacheDataset.from_source(source, shard_size=3)
    with pytest.raises(SettingError, match="another dataset or order: shuffle_buffer_size 9, here 8"):
        stream(ds, shuffle_buffer_size=8).load_state_dict(stream(ds).state_dict())
    with pytest.raises(SettingError, match="another dataset or order: chunk_size 2, here 3"):
        stream(ds, chunk_size=3).load_state_dict(stream(ds).state_dict())
    with pytest.raises(SettingError, match=r"batches\(num_workers"):
        tc.CacheLoader(stream(ds), 4)
