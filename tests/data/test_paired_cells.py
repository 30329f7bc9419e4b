"""Cells with controls drawn as they are read: what is drawn, and that every way to read gives the same pairs."""

from __future__ import annotations

import itertools
import pickle
from types import SimpleNamespace

import cells
import numpy as np
import pytest
import torch
from oracle import assert_value_equal
from torch.utils.data import ConcatDataset, Subset
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

import torchcell_cache as tc
from torchcell_cache.errors import SettingError

if not cells.INSTALLED:
    pytest.skip(cells.REASON, allow_module_level=True)

GENES = [f"G{k}" for k in range(30)]
CONDITIONS = ("ctrl", "G1+ctrl", "G2+G3", "G9+ctrl")
VALUES = {
    "pert_idx": {"ctrl": [-1], "G1+ctrl": [1], "G2+G3": [2, 3], "G9+ctrl": [9]},
    "de_idx": {name: np.array([k, k + 4]) for k, name in enumerate(CONDITIONS)},
    "pert": str,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of 90 cells, a third of them controls; shards of 16."""
    data = cells.made_up(90, GENES, seed=3)
    draw = np.random.default_rng(5)
    data.obs["condition"] = draw.choice(CONDITIONS, 90, p=[0.34, 0.22, 0.22, 0.22])
    data.obs["donor"] = draw.choice(["D0", "D1", "D2"], 90)
    data.obs["plate"] = draw.integers(0, 2, 90)
    graph = cells.gene_graph(GENES)
    source = tc.AnnDataSource(
        data, graph, categories=["condition", "donor", "batch"], phenotypes=["plate", "n"]
    )
    root = tmp_path_factory.mktemp("pairs") / "store"
    ds = tc.build(root, source=source, processor=None, storage="delta", shard_size=16, progress=False)
    return SimpleNamespace(
        ds=ds, obs=data.obs, dense=cells.dense_on(data, GENES), source=source, graph=graph, data=data
    )


def paired(made, view=None, **settings):
    given = {"control": "condition == 'ctrl'", "per_category": VALUES, "category": "condition", "seed": 4}
    return tc.PairedCells(made.ds if view is None else view, **{**given, **settings})


def drawn(seed, epoch, position, number, several, sizes):
    """The generator's definition, number by number: SplitMix64 from the first word of a Philox stream."""
    key = np.array([seed, epoch], dtype=np.uint64)
    start = int(np.random.Philox(key=key, counter=np.array([0, 0, 0, 31], dtype=np.uint64)).random_raw(1)[0])
    state = (start + (position * several + number + 1) * 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return (state ^ state >> 31) % sizes


def expected(made, positions, controls):
    """GEARS's own kind of list, from the dense matrix."""
    out = []
    for cell, others in zip(positions, np.reshape(controls, (len(positions), -1)), strict=True):
        name = made.obs["condition"].iloc[cell]
        for other in others:
            out.append(
                Data(
                    x=torch.from_numpy(made.dense[other])[:, None],
                    y=torch.from_numpy(made.dense[cell])[None],
                    pert_idx=VALUES["pert_idx"][name],
                    de_idx=VALUES["de_idx"][name],
                    pert=name,
                )
            )
    return out


def assert_same(got, want, where):
    """Equal to the bit, inside lists, mappings and arrays too."""
    assert type(got) is type(want), where
    if isinstance(want, np.ndarray):
        assert np.array_equal(got, want), where
    elif isinstance(want, dict):
        assert list(got) == list(want), where
        for name in want:
            assert_same(got[name], want[name], where)
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for one, other in zip(got, want, strict=True):
            assert_same(one, other, where)
    else:
        assert_value_equal(got, want, where)


def assert_same_batch(got, want):
    assert type(got) is type(want)
    assert list(got._store._mapping) == list(want._store._mapping)
    for name, value in want._store._mapping.items():
        assert_same(got._store._mapping[name], value, name)
    assert got.num_graphs == want.num_graphs
    for kind in ("_slice_dict", "_inc_dict"):
        ours, theirs = getattr(got, kind), getattr(want, kind)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_same(ours[name], theirs[name], f"{kind} {name}")


def pairs_of(batches):
    """What each cell was given, by position; the batches in their order."""
    return [(b.indices.tolist(), b.controls.tolist()) for b in batches]


@pytest.mark.parametrize("several", [1, 3])
def test_controls_are_the_generator_s_and_controls_are_their_own(made, several):
    pool = np.flatnonzero(made.obs["condition"] == "ctrl")
    pairs = paired(made, num_controls=several)
    for epoch in (0, 7):
        pairs.set_epoch(epoch)
        want = [
            [p] * several
            if p in pool
            else [pool[drawn(4, epoch, p, k, several, len(pool))] for k in range(several)]
            for p in range(90)
        ]
        assert pairs.controls().tolist() == want
        assert pairs[[5, 2, 5]].controls([0, 2]).tolist() == [want[5], want[5]]
        assert pairs.table().dtype == np.int32


def test_every_control_is_as_likely(made):
    pairs = paired(made)
    pool = np.flatnonzero(pairs.pairing.is_control)
    one = int(np.flatnonzero(~pairs.pairing.is_control)[0])
    counts = np.bincount(
        [pairs.pairing.controls(np.array([one]), e)[0, 0] for e in range(3000)], minlength=90
    )
    assert set(np.flatnonzero(counts)) == set(pool)
    expectation = 3000 / len(pool)
    assert ((counts[pool] - expectation) ** 2 / expectation).sum() < 2.5 * len(pool)


@pytest.mark.parametrize("within", ["donor", "plate", ["donor", "plate"]])
def test_a_control_is_of_the_same_stratum(made, within):
    try:
        pairs = paired(made, within=within, num_controls=4)
    except SettingError as error:  # a stratum that has cells only
        pytest.fail(str(error))
    columns = (
        made.obs[[within] if isinstance(within, str) else within].astype(str).agg(" ".join, axis=1).to_numpy()
    )
    controls = pairs.controls()
    assert (columns[controls] == columns[:, None]).all()
    assert (made.obs["condition"].to_numpy()[controls] == "ctrl").all()
    free = np.flatnonzero(made.obs["condition"] != "ctrl")
    assert len(np.unique(controls[free])) > 15


def test_a_stratum_without_controls_is_named(made):
    donor = made.obs["donor"].to_numpy()
    is_control = (made.obs["condition"] == "ctrl").to_numpy() & (donor != "D1")
    count = int((donor == "D1").sum())
    with pytest.raises(SettingError, match=rf"no control for {count} cells, those of donor 'D1'"):
        paired(made, control=is_control, within="donor")
    view = made.ds[donor != "D1"]  # whose cells are not those
    assert len(paired(made, view, within="donor")) == 90 - count
    plain = [k for k in range(90) if not (made.obs["plate"].iloc[k] == 0 and is_control[k])]
    with pytest.raises(SettingError, match="those of plate 0"):
        paired(made, made.ds[plain], control=is_control[plain], within="plate")


def test_cells_without_a_value_have_no_stratum(made, tmp_path):
    data = made.data.copy()
    data.obs.loc[data.obs.index[3:5], "donor"] = None
    source = tc.AnnDataSource(data, made.graph, categories=["condition", "donor"])
    ds = tc.build(tmp_path / "s", source=source, processor=None, progress=False)
    with pytest.raises(SettingError, match="2 cells have no donor"):
        tc.PairedCells(ds, "condition == 'ctrl'", within="donor")
    with pytest.raises(SettingError, match="2 cells have no donor"):
        tc.PairedCells(ds, "condition == 'ctrl'", per_category={"d": str}, category="donor")
    known = ds[np.r_[:3, 5:90]]
    assert tc.PairedCells(
        known, "condition == 'ctrl'", within="donor", per_category={"d": str}, category="donor"
    )


@pytest.mark.parametrize("several", [1, 2])
def test_items_and_batches_are_what_the_dense_matrix_says(made, several):
    pairs = paired(made, num_controls=several)
    controls = pairs.controls()
    want = expected(made, range(90), controls)
    for k in (0, 17, -1):
        ours = pairs[k] if several > 1 else [pairs[k]]
        for got, graph in zip(ours, want[k % 90 * several :][:several], strict=True):
            assert list(got._store._mapping) == list(graph._store._mapping)
            for name in graph._store._mapping:
                assert_same(got[name], graph[name], name)
    rows = [40, 3, 3, 88]
    batch = pairs.read_batch(rows)
    shape = (4, 30) if several == 1 else (4, several, 30)
    assert batch.x.shape == shape
    assert np.array_equal(batch.x.numpy().reshape(4, several, 30), made.dense[controls[rows]])
    assert np.array_equal(batch.y.numpy(), made.dense[rows])
    assert batch.controls.tolist() == controls[rows].tolist()
    assert batch.pert == made.obs["condition"].iloc[rows].tolist()
    assert batch.names("donor") == made.obs["donor"].iloc[rows].tolist()
    assert batch.labels("n").tolist() == made.obs["n"].iloc[rows].tolist()
    graphs = list(itertools.chain.from_iterable(want[k * several :][:several] for k in rows))
    assert_same_batch(batch.to_pyg(), Batch.from_data_list(graphs))
    assert_same_batch(Batch.from_data_list(batch.graphs()), Batch.from_data_list(graphs))
    follow = {"follow_batch": ["x", "pert_idx"], "exclude_keys": ["de_idx"]}
    assert_same_batch(batch.to_pyg(**follow), Batch.from_data_list(graphs, **follow))
    for got, graph in zip(batch.to_pyg().to_data_list(), graphs, strict=True):
        assert torch.equal(got.x, graph.x)
        assert got.pert_idx == graph.pert_idx


ODD = {
    "tensors": lambda name: torch.arange(len(name) % 2 + 2),
    "numbers": len,
    "floats": lambda name: len(name) / 3,
    "numpy numbers": lambda name: np.float64(len(name)),
    "nothing": lambda name: None,
    "lists of tensors": lambda name: [torch.ones(2), torch.zeros(1)],
    "mappings": lambda name: {"a": torch.ones(1), "b": name},
    "empty lists": lambda name: [],
    "tuples": lambda name: (name, 1),
    "bools": lambda name: name == "ctrl",
}


@pytest.mark.parametrize("kind", ODD)
def test_whatever_belongs_to_a_category_is_collated_as_pyg_does(made, kind):
    pairs = paired(made, per_category={"odd": ODD[kind], "pert": str})
    batch = pairs.read_batch(range(9))
    assert_same_batch(batch.to_pyg(), Batch.from_data_list(batch.graphs()))
    assert len(batch.odd) == 9


# Every way to read


@pytest.mark.parametrize("settings", [{}, {"num_workers": 2}])
def test_a_loader_gives_the_pairs_of_its_epochs(made, settings):
    pairs = paired(made, num_controls=2)
    loader = tc.CacheLoader(pairs, batch_size=16, shuffle=True, seed=9, **settings)
    for epoch in range(1 if settings else 3):
        seen = {}
        for batch in loader:
            assert np.array_equal(batch.y.numpy(), made.dense[batch.indices.numpy()])
            assert np.array_equal(batch.x.numpy(), made.dense[batch.controls.numpy()])
            assert batch.pert == made.obs["condition"].iloc[batch.indices.numpy()].tolist()
            seen |= dict(zip(batch.indices.tolist(), batch.controls.tolist(), strict=True))
        pairs.set_epoch(epoch)
        assert [seen[k] for k in range(90)] == pairs.controls().tolist()


def test_epochs_differ_and_seeds_too(made):
    def given(seed, epoch):
        pairs = paired(made, seed=seed)
        pairs.set_epoch(epoch)
        return pairs.controls().reshape(-1)

    free = (made.obs["condition"] != "ctrl").to_numpy()
    for one, other in itertools.combinations([(0, 0), (0, 1), (1, 0), (2**40, 3)], 2):
        assert (given(*one) != given(*other))[free].mean() > 0.8
        assert np.array_equal(given(*one)[~free], given(*other)[~free])


@pytest.mark.parametrize("several", [1, 3])
def test_expanded_batches_and_pyg_s_own_loader_agree(made, several):
    pairs, order = paired(made, num_controls=several), [list(range(k, k + 9)) for k in range(0, 90, 9)]
    want = [Batch.from_data_list(expected(made, rows, pairs.controls(rows))) for rows in order]
    ours = tc.CacheLoader(pairs, batch_sampler=order, expand=True)
    for got, batch in zip(ours, want, strict=True):
        assert_same_batch(got, batch)
    collating = tc.CacheLoader(pairs, batch_sampler=order, collate_fn=Batch.from_data_list, num_workers=1)
    for got, batch in zip(collating, want, strict=True):
        assert_same_batch(got, batch)
    if several == 1:
        for workers in (0, 2):
            for got, batch in zip(DataLoader(pairs, batch_size=9, num_workers=workers), want, strict=True):
                assert_same_batch(got, batch)
    second = next(iter(ours))  # the next epoch of a sampler that does not count them
    pairs.set_epoch(1)
    assert_same_batch(second, Batch.from_data_list(expected(made, order[0], pairs.controls(order[0]))))
    ours.set_epoch(0)
    assert_same_batch(next(iter(ours)), want[0])


def test_views_subsets_and_joined_subsets_keep_the_controls(made):
    pairs = paired(made)
    table = pairs.controls()
    chosen = np.flatnonzero(made.obs["condition"] != "ctrl")[::-1]
    views = [pairs[chosen], Subset(pairs, chosen.tolist())]
    views.append(ConcatDataset([Subset(pairs, chosen[:5].tolist()), Subset(pairs, chosen[5:].tolist())]))
    for view in views:
        for batch in tc.CacheLoader(view, batch_size=20):
            assert np.array_equal(batch.controls, table[batch.indices])
        assert sum(len(b) for b in tc.CacheLoader(view, batch_size=20)) == len(chosen)
    assert tc.select(pairs, "donor == 'D1'").tolist() == np.flatnonzero(made.obs["donor"] == "D1").tolist()
    again = pickle.loads(pickle.dumps(pairs[chosen]))
    assert np.array_equal(again.controls(), table[chosen])
    other = ConcatDataset([pairs, paired(made, seed=5)])
    with pytest.raises(SettingError, match="reads one store"):
        tc.CacheLoader(other)


@pytest.mark.parametrize("kind", ["order", "weighted", "shards", "stream"])
def test_samplers_ranks_and_resuming(made, kind):
    pairs = paired(made)

    def loader(rank=0, world_size=1, size=8):
        ranks = {"rank": rank, "world_size": world_size, "seed": 3}
        if kind == "order":
            return tc.CacheLoader(pairs, batch_size=size, shuffle=True, **ranks)
        if kind == "weighted":
            sampler = tc.WeightedCacheSampler(pairs, size, weights=np.arange(1.0, 91.0), **ranks)
            return tc.CacheLoader(pairs, sampler=sampler)
        if kind == "shards":
            return tc.CacheLoader(pairs, sampler=tc.DistributedShardSampler(pairs, size, **ranks))
        return tc.StreamingCacheDataset(pairs, size, shuffle_buffer_size=32, chunk_size=4, **ranks).batches()

    one = loader()
    epochs = [pairs_of(one) for _ in range(2)]
    for epoch, batches in enumerate(epochs):
        pairs.set_epoch(epoch)
        for positions, controls in batches:
            assert controls == pairs.controls(positions).tolist()
    half = loader()
    list(half)
    running = iter(half)
    begun = pairs_of(itertools.islice(running, 4))
    state = half.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert begun + pairs_of(resumed) == epochs[1]
    if kind == "order":
        parts = [pairs_of(loader(rank, 2, 4)) for rank in range(2)]
        joined = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*parts, strict=True)]
        assert joined[:11] == epochs[0][:11]
    other = tc.CacheLoader(paired(made, seed=99), batch_size=8, shuffle=True, seed=3)
    with pytest.raises(SettingError, match="another dataset or order"):
        other.load_state_dict(
            loader().state_dict() if kind == "order" else {**other.state_dict(), "content": "x"}
        )


def test_streams_give_pairs_too(made):
    pairs = paired(made, num_controls=2)
    stream = tc.StreamingCacheDataset(pairs, 16, shuffle=True, seed=1)
    for batch in stream:
        assert np.array_equal(batch.x.numpy(), made.dense[batch.controls.numpy()])
    pairs.set_epoch(1)  # the stream's second pass
    want = {k: pairs.controls([k])[0].tolist() for k in range(90)}
    assert {
        k: v for b in stream for k, v in zip(b.indices.tolist(), b.controls.tolist(), strict=True)
    } == want
    singles = list(tc.StreamingCacheDataset(pairs, shuffle=False))
    pairs.set_epoch(0)
    for got, graphs in zip(singles, [pairs[k] for k in range(90)], strict=True):
        assert [
            torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(got, graphs, strict=True)
        ] == [True] * 2


def test_padding_is_marked(made):
    pairs = paired(made, num_controls=2)[:10]
    settings = {"batch_size": 4, "uneven": "pad", "rank": 2, "world_size": 3}
    last = list(tc.CacheLoader(pairs, **settings))[-1]
    graphs = list(tc.CacheLoader(pairs, **settings, expand=True))[-1]
    assert last.is_padding.any()
    assert graphs.is_padding.tolist() == last.is_padding.repeat_interleave(2).tolist()
    assert last.to("cpu").is_padding is not None


def test_a_transform_gets_a_pair_of_its_own(made):
    def spoil(pair):
        pair.x.zero_()
        pair.pert_idx.append(7)
        return pair

    pairs = paired(made)
    pairs.transform = spoil
    assert pairs[4].x.sum() == 0
    with pytest.warns(UserWarning, match="has a transform"):
        loader = tc.CacheLoader(pairs, batch_size=30)
    assert all(batch.x.sum() == 0 and batch.pert_idx[0][-1] == 7 for batch in loader)
    pairs.transform = None
    assert pairs[4].x.sum() > 0
    assert 7 not in pairs[4].pert_idx


def test_a_table_takes_the_place_of_draws(made, tmp_path):
    pairs = paired(made, num_controls=2)
    table = pairs.table()
    np.save(tmp_path / "table.npy", table)
    for given in (table, torch.from_numpy(table), tmp_path / "table.npy", str(tmp_path / "table.npy")):
        for settings in ({}, {"control": None}):
            again = paired(made, table=given, seed=77, **settings)
            again.set_epoch(5)
            assert np.array_equal(again.controls(), table)
    view = made.ds[[7, 3, 80, 81]]  # indices are those of the view
    own = tc.PairedCells(view, table=np.array([1, 1, 0, 2], dtype=np.int32))
    assert own.controls().tolist() == [[3], [3], [7], [80]]
    assert own[[2]].controls().tolist() == [[7]]


def test_expression_in_a_column_of_its_own_and_in_a_plain_graph(made, tmp_path):
    graph = Data(x=torch.randn(30, 2), edge_index=torch.randint(0, 30, (2, 40)))
    graph.node_ids = GENES
    for name, where in {"own": {"field": "counts"}, "first": {"column": 0}, "last": {}}.items():
        source = tc.AnnDataSource(made.data, graph, categories="condition", **where)
        ds = tc.build(tmp_path / name, source=source, processor=None, storage="delta", progress=False)
        batch = tc.PairedCells(ds, "condition == 'ctrl'").read_batch(range(20))
        assert np.array_equal(batch.y.numpy(), made.dense[:20])
        assert batch.to_pyg().x.shape == (600, 1)


def test_which_column_a_mapping_is_about_follows_from_its_names(made):
    pairs = paired(
        made, category=None, per_category={"a": VALUES["pert_idx"], "b": {"D0": 0, "D1": 1, "D2": 2}}
    )
    batch = pairs.read_batch(range(90))
    assert batch.b == [int(name[1]) for name in made.obs["donor"]]
    assert batch.a == [VALUES["pert_idx"][name] for name in made.obs["condition"]]


WRONG = {
    "no control": ({"control": None}, "needs to know which cells are controls"),
    "none holds": ({"control": "n < 0"}, "holds for none of 90 cells"),
    "a number": ({"control": "n"}, "is a number, not a condition"),
    "no such name": ({"control": "condition == 'control'"}, "which is no condition"),
    "a short mask": ({"control": [True, False]}, "a mask of 2 bools for 90"),
    "out of range": ({"control": [90]}, "out of range"),
    "no controls": ({"num_controls": 0}, "num_controls=0"),
    "a share": ({"num_controls": 1.5}, "num_controls=1.5"),
    "no seed": ({"seed": None}, "seed=None"),
    "no column": ({"within": "donors"}, "is no stored column"),
    "no columns": ({"within": []}, "names no column"),
    "a missing name": ({"per_category": {"a": {"ctrl": 1}}}, "no value for 3 names of 'condition'"),
    "no mapping": ({"per_category": ["a"]}, "expected a mapping"),
    "no values": ({"per_category": {"a": 3}}, "expected a mapping or a function"),
    "a taken name": ({"per_category": {"x": str}}, "this name is taken"),
    "a method's name": ({"per_category": {"to_pyg": str}}, "this name is taken"),
    "no category": ({"category": "cell"}, "is no column of names"),
    "which category": ({"category": None, "per_category": {"p": str}}, "may be about any of"),
    "table's shape": ({"table": np.zeros((3, 1), dtype=int)}, r"is int64 \[3, 1\]"),
    "table's dtype": ({"table": np.zeros((90, 1))}, r"is float64 \[90, 1\]"),
    "table's range": ({"table": np.full((90, 1), 90)}, r"names cells 90..90 of 90"),
    "table's cells": ({"table": np.arange(90)[:, None]}, "which control= does not hold for"),
    "no file": ({"table": "nowhere.npy"}, "cannot be read"),
    "more than the table": (
        {"table": np.zeros((90, 1), dtype=int), "num_controls": 2},
        r"is int64 \[90, 1\]",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said(made, kind):
    settings, message = WRONG[kind]
    with pytest.raises(SettingError, match=message) as caught:
        paired(made, **settings)
    assert "Traceback" not in str(caught.value)


def test_what_cannot_be_paired_is_refused(made, tmp_path):
    with pytest.raises(SettingError, match="is paired already"):
        tc.PairedCells(paired(made), "condition == 'ctrl'")
    with pytest.raises(SettingError, match="has a transform"):
        tc.PairedCells(tc.PreprocessedDataset(made.ds.generation.root, transform=str), "n > 3")
    with pytest.raises(SettingError, match="takes a store"):
        tc.PairedCells([1, 2], "n > 3")
    with pytest.raises(SettingError, match="holds for none of"):
        paired(made, made.ds[made.obs["condition"].to_numpy() != "ctrl"])
    batch = paired(made).read_batch([0])
    with pytest.raises(AttributeError, match="has no 'nothing'; it has x, y, pert_idx"):
        _ = batch.nothing
    with pytest.raises(SettingError, match="graphs"):
        batch[0]
    with pytest.raises(SettingError, match="list of names"):
        batch.to_pyg(follow_batch="x")
