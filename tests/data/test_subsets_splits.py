"""Splits without leaks, by set operations on the perturbed nodes."""

import json
import math
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from graphs import cell_graph, plain_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.data.dividing import divide, shares, strata_of
from torchcell_cache.data.split_nodes import gears_name
from torchcell_cache.errors import CacheNotFoundError, CorruptManifestError, SettingError, StaleCacheError

NUM_GENES = 60


def make(root, perturbed, fitness, num_genes=NUM_GENES):
    source = tc.PerturbationTable(
        cell_graph(num_genes), perturbed, phenotypes={"fitness": np.asarray(fitness, dtype=np.float32)}
    )
    return tc.build(
        root, source=source, processor=tc.LazySubgraphRepresentation(), storage="perturbation", progress=False
    )


def many(count=900, seed=0, num_genes=NUM_GENES):
    """Knock-outs of none to three genes; the label depends on the first of them."""
    random = np.random.default_rng(seed)
    perturbed = [
        sorted(random.choice(num_genes, int(random.integers(0, 4)), replace=False).tolist())
        for _ in range(count)
    ]
    fitness = [p[0] / num_genes + random.random() / 10 if p else 1.0 for p in perturbed]
    fitness[::17] = [math.nan] * len(fitness[::17])
    return perturbed, fitness


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return make(tmp_path_factory.mktemp("splits"), *many())


def assert_no_leak(splits, names="unseen"):
    """What the split promises, with Python sets and no code of the library."""
    nodes = [set(ids.tolist()) for ids in splits.dataset.perturbed]
    parts = {name: set(rows.tolist()) for name, rows in splits.parts.items()}
    assert sum(map(len, parts.values())) == len(nodes)
    assert set().union(*parts.values()) == set(range(len(nodes)))
    of = defaultdict(
        set, {name: set().union(set(), *(nodes[k] for k in rows)) for name, rows in parts.items()}
    )
    seen = of["train"]
    held = {name: of[name] - seen for name in ("val", "test")}
    assert not held["val"] & held["test"]
    assert all(nodes[k] - seen for k in parts["mixed"])
    groups = defaultdict(set)
    for part in ("val", "test"):
        for k in parts.get(part, ()):
            unseen = len(nodes[k] - seen)
            name = f"unseen{unseen}" if names == "unseen" else gears_name(len(nodes[k]), unseen)
            groups[f"{part}_{name}"].add(k)
    assert {name: set(rows.tolist()) for name, rows in splits.groups.items()} == dict(groups)
    for rows in (*splits.parts.values(), *splits.groups.values()):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


samples = st.lists(st.sets(st.integers(0, 8), max_size=4).map(sorted), min_size=1, max_size=30)
three = st.sampled_from(
    [(0.8, 0.1, 0.1), (1, 0, 0), (0, 0.5, 0.5), (0.34, 0.33, 0.33), (0.7, 0.3), (0.5, 0.0, 0.5)]
)


class Plain:
    """Stands for an opened store: its columns and nothing else, so that many can be tried."""

    def __init__(self, perturbed, fitness):
        source = tc.PerturbationTable(CELL, perturbed, phenotypes={"fitness": fitness})
        self.generation = type(
            "Generation", (), {"table": source.table, "__len__": lambda _: len(perturbed)}
        )()
        self.columns = {"fitness": np.array(fitness, dtype=np.float32)}
        self.perturbed = [np.array(row, dtype=np.int64) for row in perturbed]

    def __len__(self):
        return len(self.perturbed)

    def positions(self):
        return np.arange(len(self))


CELL = cell_graph(9)


@settings(max_examples=120, deadline=None)
@given(perturbed=samples, fractions=three, seed=st.integers(0, 2**40), data=st.data())
def test_no_training_sample_has_a_held_out_node(perturbed, fractions, seed, data) -> None:
    value = st.sampled_from([math.nan, 0.0, 0.5, 1.0])
    fitness = data.draw(st.lists(value, min_size=len(perturbed), max_size=len(perturbed)))
    stratify = data.draw(st.sampled_from([None, "fitness"]))
    names = data.draw(st.sampled_from(["unseen", "gears"]))
    splits = tc.split_by_perturbation(
        Plain(perturbed, fitness), fractions, seed=seed, stratify=stratify, names=names
    )
    assert_no_leak(splits, names)
    assert ("val" in splits.parts) == (len(fractions) == 3)


@pytest.mark.parametrize("stratify", [None, "fitness"])
@pytest.mark.parametrize("names", ["unseen", "gears"])
def test_a_split_of_a_store_and_of_a_view(ds, stratify, names) -> None:
    for dataset in (ds, ds[::-2]):
        splits = tc.split_by_perturbation(dataset, (0.6, 0.2, 0.2), seed=5, stratify=stratify, names=names)
        assert_no_leak(splits, names)
        assert all(len(splits[name]) for name in ("train", "val", "test", "mixed"))
        assert len(splits.view("val")) == len(splits.val)
        assert splits.view("test").positions().tolist() == dataset.positions(splits["test"]).tolist()
    if names == "gears":
        assert {"test_unseen_single", "test_combo_seen0", "test_combo_seen1"} <= set(splits.groups)
    else:
        assert {"test_unseen0", "test_unseen1", "test_unseen2"} <= set(splits.groups)


def test_validation_and_test_share_no_held_out_node(ds) -> None:
    splits = tc.split_by_perturbation(ds, (0.6, 0.2, 0.2), seed=2)
    nodes = [set(ids.tolist()) for ids in ds.perturbed]
    seen = set().union(*(nodes[k] for k in splits.train.tolist()))
    val, test = (set().union(*(nodes[k] for k in splits[p].tolist())) - seen for p in ("val", "test"))
    assert val
    assert test
    assert not val & test
    assert len(seen) + len(val) + len(test) == NUM_GENES
    assert (len(val), len(test)) == (12, 12)


def test_seen_fractions_keep_new_combinations_in_training(ds) -> None:
    splits = tc.split_by_perturbation(ds, (0.8, 0.1, 0.1), seen_fractions=(1, 0, 0))
    assert not {"val_unseen0", "test_unseen0"} & set(splits.groups)
    assert_no_leak(splits)


def test_random_splits_have_the_shares_asked_for(ds) -> None:
    for fractions in ((0.8, 0.1, 0.1), (0.5, 0.5), (0.9, 0, 0.1), (1 / 3, 1 / 3, 1 / 3)):
        splits = tc.split_random(ds, fractions, seed=1)
        names = ["train", "val", "test"] if len(fractions) == 3 else ["train", "test"]
        assert list(splits.parts) == names
        assert np.sort(np.concatenate(list(splits.parts.values()))).tolist() == list(range(len(ds)))
        for name, share in zip(names, fractions, strict=True):
            assert abs(len(splits[name]) - share * len(ds)) < 1
    assert tc.split_random(ds, seed=1)["test"].tolist() != tc.split_random(ds, seed=2)["test"].tolist()


def test_stratified_parts_have_the_same_labels(ds) -> None:
    fitness = ds.columns["fitness"]
    splits = tc.split_random(ds, (0.5, 0.25, 0.25), stratify="fitness", bins=20)
    for part in splits.parts.values():
        assert abs(np.isnan(fitness[part]).mean() - np.isnan(fitness).mean()) < 0.01
        for q in (10, 25, 50, 75, 90):
            assert abs(np.nanpercentile(fitness[part], q) - np.nanpercentile(fitness, q)) < 0.05
    classes = tc.split_random(ds, (0.5, 0.5), stratify="perturbed_count")
    counts = ds.columns["perturbed_count"]
    for value in range(4):
        for part in classes.parts.values():
            assert abs((counts[part] == value).sum() - (counts == value).sum() / 2) <= 1


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    weights=st.lists(st.integers(0, 9), min_size=2, max_size=4).filter(sum),
)
def test_shares_add_up_and_stray_by_less_than_two(sizes, weights) -> None:
    fractions = [w / sum(weights) for w in weights]
    counts = shares(sizes, fractions)
    assert counts.sum(axis=1).tolist() == sizes
    assert (counts >= 0).all()
    for row, size in zip(counts, sizes, strict=True):
        assert all(abs(c - size * f) < 2 for c, f in zip(row, fractions, strict=True))
    assert all(abs(c - sum(sizes) * f) <= 1 for c, f in zip(counts.sum(axis=0), fractions, strict=True))
    assert not counts[:, [f == 0 for f in fractions]].any()


def test_strata_are_classes_or_quantiles() -> None:
    assert strata_of(np.array([3, 1, 3, 2]), 10).tolist() == [2, 0, 2, 1]
    assert strata_of(np.array([0.5, np.nan, 0.1], np.float32), 10).tolist() == [1, 2, 0]
    values = np.random.default_rng(0).permutation(1000) / 1000
    strata = strata_of(values, 10)
    assert np.bincount(strata).tolist() == [100] * 10
    assert all(values[strata == k].max() < values[strata == k + 1].min() for k in range(9))
    assert divide(np.zeros(12, np.int64), (0.5, 0.5), 7).tolist() == PINNED


PINNED = [1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1]


def test_a_saved_split_belongs_to_its_store(ds, tmp_path) -> None:
    splits = tc.split_by_perturbation(ds[:600], stratify="fitness", names="gears", seed=9)
    where = splits.save(tmp_path / "split")
    view = tc.Splits.load(where, ds[:600])
    whole = tc.Splits.load(where, ds)
    backwards = tc.Splits.load(where, ds[::-1])
    assert view.names == splits.names
    assert view.made_by == splits.made_by
    for name in splits.names:
        assert view[name].tolist() == splits[name].tolist() == whole[name].tolist()
        assert backwards.view(name).positions().tolist() == splits[name].tolist()
        assert tc.load_indices(where / f"{name}.npy", ds).tolist() == splits[name].tolist()
    assert tc.PreprocessedDataset(ds.root, indices=where / "train.npy").label_df.equals(
        ds[splits.train].label_df
    )
    with pytest.raises(SettingError, match="not in this view"):
        tc.Splits.load(where, ds[:100])
    with pytest.raises(SettingError, match="holds another split already"):
        tc.split_random(ds, (0.5, 0.5)).save(where)
    tc.split_random(ds, (0.5, 0.5)).save(where, overwrite=True)
    assert sorted(p.name for p in where.glob("*.npy")) == ["test.npy", "train.npy"]
    other = make(tmp_path / "other", *many(seed=1))
    with pytest.raises(StaleCacheError, match=r"source\.perturbed"):
        tc.Splits.load(where, other)
    np.save(where / "test.npy", np.arange(5))
    with pytest.raises(StaleCacheError, match="changed or damaged"):
        tc.Splits.load(where, ds)
    document = (where / "splits.json").read_bytes()
    (where / "splits.json").write_bytes(document.replace(b"train", b"brain"))
    with pytest.raises(CorruptManifestError):
        tc.Splits.load(where, ds)
    (where / "splits.json").unlink()
    with pytest.raises(CacheNotFoundError, match=r"no split(.|\n)*torchcell-cache split"):
        tc.Splits.load(where, ds)


def test_the_summary_counts_every_part_and_group(ds) -> None:
    splits = tc.split_by_perturbation(ds, stratify="fitness")
    lines = [line.split() for line in splits.summary().splitlines()]
    assert lines[0] == ["part", "samples", "share", "mean", "fitness"]
    assert {line[0]: int(line[1]) for line in lines[1:]} == {name: len(splits[name]) for name in splits.names}
    mean = float(np.nanmean(ds.columns["fitness"][splits.train].astype(np.float64)))
    assert float(lines[1][3]) == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": (0.5, 0.6)}, "sum to 1"),
        ({"fractions": (1.5, -0.5)}, "from 0 to 1"),
        ({"fractions": (1.0,)}, "2 or 3 shares"),
        ({"fractions": "ab"}, "expected 2 or 3 shares"),
        ({"fractions": (math.nan, 0.5, 0.5)}, "sum to 1"),
        ({"seen_fractions": (0.5, 0.5)}, "expected 3 shares"),
        ({"stratify": "fitnes"}, "did you mean 'fitness'"),
        ({"bins": 0}, "bins=0"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"names": "seen"}, "'unseen', 'gears'"),
    ],
)
def test_wrong_arguments_are_answered_with_the_valid_ones(ds, arguments, message) -> None:
    with pytest.raises(SettingError, match=message):
        tc.split_by_perturbation(ds, **arguments)


def test_unknown_parts_and_stores_without_nodes(ds, tmp_path) -> None:
    with pytest.raises(SettingError, match=r"no part 'tset'; did you mean 'test'"):
        _ = tc.split_random(ds)["tset"]
    base = plain_graph()
    data = [Data(x=base.x, edge_index=base.edge_index, y=torch.tensor([k % 3])) for k in range(9)]
    graphs = tc.build(tmp_path, source=data, progress=False)
    assert len(tc.split_random(graphs, (2 / 3, 1 / 3), stratify="y").train) == 6
    with pytest.raises(SettingError, match=r"knows no perturbed nodes(.|\n)*split_random"):
        tc.split_by_perturbation(graphs)


def test_split_on_the_command_line(ds, tmp_path, capsys) -> None:
    from torchcell_cache.cli import main

    root, out = f"root={ds.root}", f"out={tmp_path}/split"
    assert main(["split", root, out, "fractions=[0.7,0.3]", "stratify=fitness", "names=gears", "seed=3"]) == 0
    wanted = tc.split_by_perturbation(ds, (0.7, 0.3), stratify="fitness", names="gears", seed=3)
    assert wanted.summary() in capsys.readouterr().out
    loaded = tc.Splits.load(tmp_path / "split", ds)
    assert all(loaded[name].tolist() == wanted[name].tolist() for name in wanted.names)
    assert main(["split", root, "by=random", out]) == 2
    assert "holds another split already" in capsys.readouterr().err
    assert main(["split", root, "by=random", out, "overwrite=true"]) == 0
    assert main(["split", root, "by=randm"]) == 2
    assert main(["split", root, "fractions=[a,b]"]) == 2
    assert "a list of numbers" in capsys.readouterr().err


# Ranks


def work(rank, world, root, split, place):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{place}/init", timeout=timedelta(seconds=60), rank=rank, world_size=world
    )
    splits = tc.Splits.load(split, tc.PreprocessedDataset(root))
    out = {}
    for name in ("train", "test"):
        loader = tc.CacheLoader(splits.view(name), 8, shuffle=name == "train", uneven="exact", seed=4)
        out[name] = [batch.indices.tolist() for batch in loader]
    (Path(place) / f"{rank}.json").write_text(json.dumps(out))
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_share_a_part_each_sample_once(ds, tmp_path) -> None:
    splits = tc.split_by_perturbation(ds, seed=1)
    splits.save(tmp_path / "split")
    arguments = (2, str(ds.root), str(tmp_path / "split"), str(tmp_path))
    mp.start_processes(
        work, arguments, nprocs=2, start_method="fork"
    )  # spawned ones would import torch again
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for name in ("train", "test"):
        assert len(ranks[0][name]) == len(ranks[1][name])
        seen = [k for rank in ranks for batch in rank[name] for k in batch]
        assert sorted(seen) == splits[name].tolist()
