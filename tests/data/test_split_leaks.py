"""No two parts of a split have a perturbed set in common: brute force over Python's own sets."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from graphs import cell_graph
from hypothesis import given, settings
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.data.dividing import first_of_set
from torchcell_cache.errors import SettingError

CELL = cell_graph(9)


class Plain:
    """Stands for an opened store: its columns and nothing else, so that many can be tried."""

    def __init__(self, perturbed, categories=None, **labels):
        self.table = tc.PerturbationTable(CELL, perturbed, phenotypes=labels).table
        self.generation, self.categories = self, categories or {}
        self.columns = {name: np.array(values, dtype=np.float32) for name, values in labels.items()}
        self.label_columns = {name: name for name in labels}
        self.sets = [frozenset(row) for row in perturbed]

    def __len__(self):
        return len(self.sets)

    def positions(self, rows=None):
        return np.arange(len(self)) if rows is None else np.asarray(rows)


def shared_sets(splits):
    """Non-empty perturbed sets that stand in more than one part."""
    parts = defaultdict(set)
    for name, rows in splits.parts.items():
        for k in rows.tolist():
            parts[splits.dataset.sets[k]].add(name)
    return {found for found, names in parts.items() if found and len(names) > 1}


# Few nodes, short lists: nearly every example has replicates, reciprocal orders and controls.
rows = st.lists(
    st.lists(st.integers(0, 8), max_size=3, unique=True)
    | st.sampled_from([[], [1], [1, 2], [2, 1], [3, 1, 2]]),
    min_size=1,
    max_size=40,
)
shares = st.sampled_from(
    [(0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (1, 0, 0), (0, 0.5, 0.5), (0.7, 0.3), (0.5, 0, 0.5)]
)


@settings(max_examples=250, deadline=None)
@given(perturbed=rows, fractions=shares, data=st.data())
def test_no_part_shares_a_perturbed_set_with_another(perturbed, fractions, data) -> None:
    value = st.sampled_from([np.nan, -1.0, 0.0, 0.5, 1.0])
    fitness = data.draw(st.lists(value, min_size=len(perturbed), max_size=len(perturbed)))
    ds = Plain(perturbed, fitness=fitness)
    of_size = shares.filter(lambda shares: len(shares) == len(fractions))
    splits = tc.split_by_perturbation(
        ds,
        fractions,
        seen_fractions=data.draw(st.none() | of_size),
        seed=data.draw(st.integers(-3, 2**65)),
        stratify=data.draw(st.sampled_from([None, "fitness"])),
        bins=data.draw(st.integers(1, 5)),
        names=data.draw(st.sampled_from(["unseen", "gears"])),
        controls=(controls := data.draw(st.sampled_from(["random", "train"]))),
        progress=False,
    )
    assert shared_sets(splits) == set()
    assert sorted(k for part in splits.parts.values() for k in part.tolist()) == list(range(len(ds)))
    seen = set().union(*(ds.sets[k] for k in splits.train.tolist()))
    of = {name: set().union(*(ds.sets[k] for k in part.tolist())) for name, part in splits.parts.items()}
    assert not (of.get("val", set()) - seen) & (of["test"] - seen)
    assert all(ds.sets[k] - seen for k in splits["mixed"].tolist())
    empty = {k for k, found in enumerate(ds.sets) if not found}
    assert not empty & set(splits["mixed"].tolist())
    if controls == "train":
        assert empty <= set(splits.train.tolist())


@settings(max_examples=150, deadline=None)
@given(perturbed=rows, data=st.data())
def test_replicates_go_where_one_sample_of_each_set_goes(perturbed, data) -> None:
    """A split with replicates is the split of the table without them, each sample added to its set's part."""
    kept = [k for k, row in enumerate(perturbed) if not row or set(row) not in map(set, perturbed[:k])]
    once = Plain([perturbed[k] for k in kept], fitness=[0.0] * len(kept))
    ds = Plain(perturbed, fitness=[0.0] * len(perturbed))
    seed = data.draw(st.integers(0, 99))
    few, all_of_them = (
        tc.split_by_perturbation(d, (0.5, 0.25, 0.25), seed=seed, progress=False) for d in (once, ds)
    )
    for name, part in few.parts.items():
        wanted = {once.sets[k] for k in part.tolist()} - {frozenset()}
        assert {ds.sets[k] for k in all_of_them[name].tolist()} - {frozenset()} == wanted


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 5), max_size=5), max_size=25))
def test_first_sample_of_each_set(rows) -> None:
    """Also of ids in any order, with repeats."""
    ids = np.array([k for row in rows for k in row], dtype=np.int64)
    ptr = np.cumsum([0, *map(len, rows)])
    sets = [frozenset(row) for row in rows]
    wanted = [sets.index(found) if found else k for k, found in enumerate(sets)]
    assert first_of_set(ids, ptr).tolist() == wanted


PAIRS = [list(pair) for pair in itertools.combinations(range(9), 2)]


def test_a_set_is_stratified_by_the_mean_over_its_replicates() -> None:
    """Each set measured as 0 and as 1 but for some that are 1 twice: the parts have the same share of those."""
    high = [k % 4 == 0 for k in range(len(PAIRS))]
    fitness = [value for h in high for value in ((1.0, 1.0) if h else (0.0, 1.0))]
    ds = Plain([row for pair in PAIRS for row in (pair, pair[::-1])], fitness=fitness)
    splits = tc.split_by_perturbation(
        ds, (1, 0, 0), seen_fractions=(0.5, 0.25, 0.25), stratify="fitness", progress=False
    )
    counts = {name: sum(high[k // 2] for k in part.tolist()) / 2 for name, part in splits.parts.items()}
    assert counts["train"] in (4, 5)
    assert counts["val"] in (2, 3)
    assert counts["test"] in (2, 3)


def test_controls_are_dealt_one_by_one_or_kept_for_training() -> None:
    ds = Plain([[]] * 200 + PAIRS * 2, fitness=[0.0] * (200 + 2 * len(PAIRS)))
    dealt = tc.split_by_perturbation(ds, (0.6, 0.2, 0.2), progress=False)
    counts = {name: int((rows < 200).sum()) for name, rows in dealt.parts.items()}
    assert 100 < counts["train"] < 140
    assert 20 < counts["val"] < 60
    assert 20 < counts["test"] < 60
    kept = tc.split_by_perturbation(ds, (0.6, 0.2, 0.2), controls="train", progress=False)
    assert (kept.train < 200).sum() == 200
    assert kept.made_by["controls"] == "train"
    with pytest.raises(SettingError, match="'random', 'train'"):
        tc.split_by_perturbation(ds, controls="test")


def test_environments_cells_and_repeated_views_stay_together(tmp_path) -> None:
    """On real stores, of the table and of a view that repeats samples."""
    knockouts = [[f"G{a}", f"G{b}"] for a, b in PAIRS for _ in range(3)]
    labels = {
        "fitness": [0.01 * k for k in range(len(knockouts))],
        "temperature": [30.0, 33.5, 37.0] * len(PAIRS),
    }
    source = tc.PerturbationTable(tc.testing.tiny_graph(num_genes=9), knockouts, phenotypes=labels)
    for storage, processor in (("perturbation", tc.Perturbation()), ("full", tc.SubgraphRepresentation())):
        ds = tc.build(tmp_path / storage, source=source, processor=processor, storage=storage, progress=False)
        for view in (ds, ds[[5, 5, 0, 1, 40, 41, 40, 99, 98]], ds[::-1]):
            splits = tc.split_by_perturbation(view, (0.6, 0.2, 0.2), seed=1, progress=False)
            sets = [frozenset(ids.tolist()) for ids in view.perturbed]
            parts = [{sets[k] for k in part.tolist()} for part in splits.parts.values()]
            assert not any(a & b for a, b in itertools.combinations(parts, 2))


# Groups


@settings(max_examples=150, deadline=None)
@given(
    donors=st.lists(st.sampled_from([np.nan, -1.0, 0.0, 1.0, 2.0, 3.0, 30.1]), min_size=1, max_size=40),
    data=st.data(),
)
def test_groups_stay_whole(donors, data) -> None:
    ds = Plain([[0]] * len(donors), donor=donors, fitness=[k / 40 for k in range(len(donors))])
    fractions = data.draw(shares)
    splits = tc.split_by_group(
        ds,
        "donor",
        fractions,
        seed=data.draw(st.integers(0, 2**40)),
        stratify=data.draw(st.sampled_from([None, "fitness"])),
        progress=False,
    )
    parts = defaultdict(set)
    for name, rows in splits.parts.items():
        for k in rows.tolist():
            parts[str(donors[k])].add(name)  # nan as one donor
    assert all(len(names) == 1 for names in parts.values())
    assert sum(map(len, splits.parts.values())) == len(donors)
    wanted = [name for name, share in zip(splits.parts, fractions, strict=True) if share > 0]
    filled = [name for name in wanted if len(splits[name])]
    assert len(filled) == min(len(wanted), len(parts))
    assert all(len(splits[name]) == 0 for name in splits.parts if name not in wanted)


def test_groups_by_name_or_number() -> None:
    donors = [k % 5 for k in range(40)]
    ds = Plain(
        [[0]] * 40, {"donor": ["D1", "D2", "D3", "D4", "D5"]}, donor=donors, plate=[k / 10 for k in donors]
    )
    for splits in (
        tc.split_by_group(ds, "donor", test=["D3"], val="D1", progress=False),
        tc.split_by_group(ds, "plate", test=[0.2], val=(0,), progress=False),
        tc.split_by_group(ds, "plate", test=["0.2"], val=np.float32(0), progress=False),
    ):
        found = {name: {donors[k] for k in rows.tolist()} for name, rows in splits.parts.items()}
        assert found == {"train": {1, 3, 4}, "val": {0}, "test": {2}}
    for arguments, message in (
        ({"test": ["D6"]}, "'D6' is no donor of these samples; did you mean"),
        ({"test": [2]}, "test=2 is no donor"),
        ({"test": ["D3"], "train": ["D3"]}, "named for train and for test"),
        ({"train": ["D1"], "val": ["D2"], "test": ["D3"]}, "2 of 5 groups are named for no part"),
        ({"val": ["D2"], "fractions": (0.8, 0.2)}, "leave out validation"),
    ):
        with pytest.raises(SettingError, match=message):
            tc.split_by_group(ds, "donor", progress=False, **arguments)
    with pytest.raises(SettingError, match="'doner' is no stored column"):
        tc.split_by_group(ds, "doner")


def test_a_sample_measured_in_two_batches_belongs_to_neither(tmp_path) -> None:
    measurements = {"fitness": [[0.5, 0.7], [0.1], []], "batch": [[1.0, 2.0], [2.0], []]}
    source = tc.PerturbationTable(CELL, [[0], [1], [2]], phenotypes=measurements, nan="keep")
    ds = tc.build(tmp_path, source=source, processor=tc.Perturbation(), progress=False)
    with pytest.raises(SettingError, match="sample 0 has measurements of several batch: 1 to 2"):
        tc.split_by_group(ds, "batch")
    assert tc.split_by_group(ds[1:], "batch", (0.5, 0.5), progress=False).dataset is not ds


def test_only_stores_and_their_views_are_divided(tmp_path) -> None:
    ds = tc.build(tmp_path, source=tc.testing.tiny_source(6), processor=tc.Perturbation(), progress=False)
    for other in (torch.utils.data.Subset(ds, [0, 1]), torch.utils.data.ConcatDataset([ds, ds]), [1, 2]):
        for ask in (
            tc.split_random,
            tc.split_by_perturbation,
            tc.select,
            lambda d: tc.split_by_group(d, "fitness"),
        ):
            with pytest.raises(SettingError, match="a store or a view of one"):
                ask(other)
    with pytest.raises(SettingError, match="the name of one column"):
        tc.split_by_group(ds, ["fitness"])


# What is said


def test_samples_without_a_group_are_said() -> None:
    ds = Plain([[0]] * 6, donor=[0.0, 1.0, 2.0, np.nan, np.nan, 2.0])
    splits = tc.split_by_group(ds, "donor", progress=False)
    assert "2 samples have no donor and are one group" in splits.notes


def test_empty_parts_and_divided_sets_are_said_once(capsys, recwarn) -> None:
    ds = Plain([[0], [0], [1]], fitness=[0.0, 1.0, 2.0])
    splits = tc.split_random(ds)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == list(splits.notes)
    assert [line.split()[0] for line in splits.notes] == ["val", "test"]
    assert all(line in splits.report() for line in splits.notes)
    divided = tc.split_random(ds, (0.4, 0.3, 0.3), progress=False)
    together = len(shared_sets(divided))
    assert together == sum("perturbed set" in line for line in divided.notes)
    assert capsys.readouterr().err == ""
    assert tc.split_by_perturbation(ds, (1, 0, 0)).notes == ()  # no share asked for, nothing to say
    assert not recwarn


def test_only_the_first_rank_says_it(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert tc.split_random(Plain([[0]], fitness=[0.0])).notes
    assert capsys.readouterr().err == ""


@settings(max_examples=60, deadline=None)
@given(perturbed=rows)
def test_a_random_split_says_how_many_sets_it_divides(perturbed) -> None:
    splits = tc.split_random(Plain(perturbed, fitness=[0.0] * len(perturbed)), (0.5, 0.5), progress=False)
    numbers = [int(line.split()[0]) for line in splits.notes if "several parts" in line]
    assert sum(numbers) == len(shared_sets(splits))


def test_the_same_split_saved_again_is_left_as_it_is(tmp_path) -> None:
    ds = tc.build(
        tmp_path / "s", source=tc.testing.tiny_source(30), processor=tc.Perturbation(), progress=False
    )
    where = tmp_path / "split"
    tc.split_by_perturbation(ds, seed=1, progress=False).save(where)
    before = {p.name: p.stat().st_mtime_ns for p in where.iterdir()}
    tc.split_by_perturbation(ds, seed=1, progress=False).save(where)
    assert {p.name: p.stat().st_mtime_ns for p in where.iterdir()} == before
    for other in (
        tc.split_by_perturbation(ds, seed=2, progress=False),
        tc.split_random(ds, seed=1, progress=False),
    ):
        with pytest.raises(SettingError, match="holds another split"):
            other.save(where)
    (where / "test.npy").unlink()  # no longer the split it was
    with pytest.raises(SettingError, match="holds another split"):
        tc.split_by_perturbation(ds, seed=1, progress=False).save(where)


def test_groups_on_the_command_line(tmp_path, capsys) -> None:
    from torchcell_cache.cli import main

    table = {"fitness": [0.1 * k for k in range(12)], "batch": [float(k % 3) for k in range(12)]}
    source = tc.PerturbationTable(CELL, [[k % 4] for k in range(12)], phenotypes=table)
    ds = tc.build(tmp_path / "s", source=source, processor=tc.Perturbation(), progress=False)
    common = ["split", f"root={tmp_path}/s", "by=group"]
    for _ in range(2):  # again: the same split, no conflict
        assert main([*common, "column=batch", "test=['2']", f"out={tmp_path}/split"]) == 0
    assert "4 perturbed sets have samples in several parts" in capsys.readouterr().err
    loaded = tc.Splits.load(tmp_path / "split", ds)
    assert Counter(ds.columns["batch"][loaded.test].tolist()) == {2.0: 4}
    assert main([*common, "column=batch", "progress=false"]) == 0
    assert capsys.readouterr().err == ""
    assert main(common) == 2
    assert "column=donor" in capsys.readouterr().err
    assert main(["split", f"root={tmp_path}/s", "by=random", "column=batch"]) == 2
    assert "by=group" in capsys.readouterr().err


@pytest.mark.parametrize("with_sets", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_a_sample_that_a_view_repeats_is_in_one_part(tmp_path, with_sets, seed) -> None:
    """Oversampling before the split: also of controls, and in a store that knows no perturbed sets."""
    source = tc.PerturbationTable(CELL, [[1], [], [2], [], [1, 2]], phenotypes={"y": np.arange(5.0)})
    kind = {"processor": tc.Perturbation()} if with_sets else {"processor": None}
    graphs = source if with_sets else [tc.testing.tiny_graph() for _ in range(5)]
    ds = tc.build(tmp_path / "s", source=graphs, progress=False, **kind)
    rng = np.random.default_rng(seed)
    view = ds[rng.integers(0, 5, 40).tolist()]
    splits = [tc.split_random(view, (0.4, 0.3, 0.3), seed=seed, progress=False)]
    if with_sets:
        splits.append(tc.split_by_perturbation(view, (0.4, 0.3, 0.3), seed=seed, progress=False))
    for number, split in enumerate(splits):
        parts = [set(view.positions(rows).tolist()) for rows in split.parts.values()]
        assert sum(map(len, parts)) == len(set().union(*parts)) == len(set(view.positions().tolist()))
        assert sum(map(len, split.parts.values())) == 40
        split.save(tmp_path / f"{number}")
        split.save(tmp_path / f"{number}")  # the same again is no replacement


@pytest.mark.parametrize("make", [tc.split_random, tc.split_by_perturbation])
@pytest.mark.parametrize("stratify", [["fitness"], {"fitness"}, 5, None.__class__])
def test_what_is_no_name_of_a_column_is_answered(make, stratify) -> None:
    with pytest.raises(SettingError, match="stratify="):
        make(Plain([[1], [2]], fitness=[0.0, 1.0]), stratify=stratify, progress=False)


def test_the_share_that_is_wrong_is_named() -> None:
    with pytest.raises(SettingError, match=r"^seen_fractions=\(1, 0\).*3 shares(.|\n)*fix: seen_fractions="):
        tc.split_by_perturbation(Plain([[1]]), seen_fractions=(1, 0))
    with pytest.raises(SettingError, match=r"^seen_fractions='x'(.|\n)*2 shares"):
        tc.split_by_perturbation(Plain([[1]]), (0.5, 0.5), seen_fractions="x")
    ds = Plain([[1], [2]], g=[0.0, 1.0])
    with pytest.raises(SettingError, match="no g of these samples"):
        tc.split_by_group(ds, "g", test=[10**400], progress=False)


def test_samples_without_a_value_are_a_group_with_a_name(tmp_path) -> None:
    plate = [0.0, 1.0, np.nan, 2.0, np.nan, 1.0]
    source = tc.PerturbationTable(cell_graph(), [[k] for k in range(6)], phenotypes={"plate": plate})
    ds = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    for name in (float("nan"), "nan", np.float32("nan")):
        assert tc.split_by_group(ds, "plate", test=[name], progress=False).test.tolist() == [2, 4]


def test_a_part_that_no_group_is_left_for_is_said(tmp_path) -> None:
    source = tc.PerturbationTable(cell_graph(), [[0], [1]], phenotypes={"plate": [3.0, 3.0]})
    ds = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    notes = tc.split_by_group(ds, "plate", progress=False).notes
    assert notes == ("val is empty: no plate is left for it", "test is empty: no plate is left for it")
    assert tc.split_random(ds, progress=False).notes[0].startswith("val is empty: its share of 2 samples")
