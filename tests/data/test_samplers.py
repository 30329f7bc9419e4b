"""Samplers that draw from stored columns: against plain counting, for every number of ranks, without a record read."""

import gc
import json
import pickle
import weakref

import numpy as np
import pytest
import torch
from graphs import cell_graph, random_case
from hypothesis import assume, given
from hypothesis import strategies as st
from loading import build, graphs_of, rows
from torch.utils.data import DataLoader, Subset
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.data.samplers.weighted import (
    draw_with_replacement,
    draw_without_replacement,
    inverse_frequency,
    minus_log,
)
from torchcell_cache.errors import SettingError

COUNT = 61
KINDS = ("shard", "whole shards", "weighted", "cost", "max cost")
# 99.9 % points of the chi-square distribution, from a table.
CHI_SQUARE = {2: 13.82, 3: 16.27, 4: 18.47, 8: 26.12, 9: 27.88, 19: 43.82}


@pytest.fixture(scope="module")
def source():
    labels = np.random.default_rng(5).random(COUNT).astype(np.float32)
    labels[:3] = np.nan
    perturbed = random_case(cell_graph(), num_samples=COUNT, seed=2).perturbed
    return tc.PerturbationTable(cell_graph(), perturbed, phenotypes={"fitness": labels})


@pytest.fixture(scope="module")
def ds(source, tmp_path_factory):
    return build(tmp_path_factory.mktemp("samplers"), source, storage="delta")


def flat(lists):
    return [item for inner in lists for item in inner]


def make(kind, dataset, size=4, **settings):
    if kind == "shard":
        return tc.DistributedShardSampler(dataset, size, **settings)
    if kind == "whole shards":
        return tc.DistributedShardSampler(dataset, size, whole_shards=True, **settings)
    if kind == "weighted":
        return tc.WeightedCacheSampler(dataset, size, by="perturbed_count", **settings)
    limit = {"max_cost": 60.0} if kind == "max cost" else {}
    return tc.BalancedCostBatchSampler(dataset, size, by="removed_edges", base_cost=1, **limit, **settings)


def ranks(kind, dataset, world, **settings):
    return [make(kind, dataset, rank=rank, world_size=world, **settings) for rank in range(world)]


def epoch_of(samplers, steps=None):
    """``[step][rank]`` lists of (index, is padding) of the next epoch; notes what was read."""
    plans = [sampler.start_epoch() for sampler in samplers]
    assert len({len(plan) for plan in plans}) == 1
    out = []
    for step in range(len(plans[0]) if steps is None else min(steps, len(plans[0]))):
        out.append([list(zip(*map(np.ndarray.tolist, plan.batch(step)), strict=True)) for plan in plans])
        for sampler, plan in zip(samplers, plans, strict=True):
            sampler.note_step(plan, step)
    return out


def real(steps):
    return [index for step in steps for batch in step for index, padding in batch if not padding]


# What all samplers promise


@given(
    st.sampled_from(KINDS),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sampled_from(["drop_last", "pad", "exact"]),
    st.integers(0, 3),
    st.integers(0, 12),
    st.integers(5, COUNT),
)
def test_equal_steps_and_resumed_on_any_number_of_ranks(
    ds, kind, world, other, size, uneven, epoch, done, count
) -> None:
    view = ds[np.random.default_rng(count).permutation(COUNT)[:count]]
    settings = {"size": size, "seed": 3}
    try:
        first = ranks(kind, view, world, uneven=uneven, **settings)
        for sampler in first:
            sampler.set_epoch(epoch)
        begun = epoch_of(first, done)
    except SettingError:
        assume(False)
    states = [json.loads(json.dumps(sampler.state_dict())) for sampler in first]
    assert all(state == states[0] for state in states)
    over = first[0].steps_left == 0
    assert all(len(batch) > 0 for step in begun for batch in step)
    if over and uneven != "drop_last" and kind != "weighted":
        assert sorted(real(begun)) == list(range(count))
    second = ranks(kind, view, other, uneven="pad", **settings)
    for sampler in second:
        sampler.load_state_dict(states[0])
        sampler.set_epoch(epoch)
    rest = epoch_of(second)
    assert bool(rest) != over
    together = real(begun) + real(rest)
    if kind == "weighted":
        plain = real(epoch_of(ranks(kind, view, 1, **settings))) if epoch == 0 else None
        assert plain is None or together == plain[: len(together)]
    elif not over:
        assert sorted(together) == list(range(count))


@pytest.mark.parametrize("kind", KINDS)
def test_the_draw_is_the_same_for_every_world_size_and_new_each_epoch(ds, kind) -> None:
    drawn = {}
    for world in (1, 2, 3, 4):
        samplers = ranks(kind, ds, world, uneven="exact" if kind != "whole shards" else "pad", seed=8)
        for epoch in range(3):
            drawn[world, epoch] = real(epoch_of(samplers))
    for epoch in range(3):
        for world in (2, 3, 4):
            if kind == "weighted":
                assert drawn[world, epoch] == drawn[1, epoch]
            assert sorted(drawn[world, epoch]) == sorted(drawn[1, epoch])
    assert len({tuple(drawn[1, epoch]) for epoch in range(3)}) == 3
    assert real(epoch_of(ranks(kind, ds, 1, uneven="pad", seed=9))) != drawn[1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_while_sampling(tmp_path, source, kind) -> None:
    ds = build(tmp_path / "store", source, storage="delta")
    for path in ds.generation.directory.glob("shard-*.lmdb"):
        path.unlink()
    sampler = make(kind, ds)
    assert len(list(sampler)) == len(sampler)
    with pytest.raises(tc.errors.CorruptShardError, match="is missing"):
        list(tc.CacheLoader(ds, sampler=make(kind, ds)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_takes_them_and_resumes(ds, source, kind, workers) -> None:
    graphs = graphs_of(source)
    loader = tc.CacheLoader(ds, sampler=make(kind, ds, seed=2), num_workers=workers)
    want = list(make(kind, ds, seed=2))
    assert len(loader) == len(want)
    seen, state = [], None
    for step, batch in enumerate(loader):
        seen.append(batch.indices.tolist())
        tc.testing.assert_same_graph(batch[0], graphs[seen[-1][0]])
        if step == 1:
            state = loader.state_dict()
    assert seen == want
    again = tc.CacheLoader(ds, sampler=make(kind, ds))
    again.load_state_dict(state)
    assert again.steps_left == len(want) - 2
    assert sorted(flat(seen[:2] + rows(again))) == sorted(flat(want))
    assert again.epoch == 1


@pytest.mark.parametrize("kind", KINDS)
def test_they_serve_torchs_loader_and_travel(ds, kind) -> None:
    sampler = pickle.loads(pickle.dumps(make(kind, ds, seed=4)))
    want = list(make(kind, ds, seed=4))
    assert list(DataLoader(range(COUNT), batch_sampler=sampler, collate_fn=list)) == want


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_marked_in_batches(ds, kind) -> None:
    loaders = [
        tc.CacheLoader(ds, sampler=make(kind, ds, 7, rank=r, world_size=3, uneven="pad")) for r in range(3)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    batches = [batch for loader in loaders for batch in loader]
    kept = [k for b in batches for k in b.indices[~b.is_padding].tolist()]
    total = sum(len(b) for b in batches)
    assert sum(int(b.is_padding.sum()) for b in batches) == total - len(kept)
    if kind != "weighted":
        assert sorted(kept) == list(range(COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_other_samplers_and_settings_are_refused(ds, kind) -> None:
    state = make(kind, ds).state_dict()
    for other in {*KINDS} - {kind}:
        if {kind, other} != {"shard", "whole shards"}:
            with pytest.raises(SettingError, match="another dataset or order"):
                make(other, ds).load_state_dict(state)
    with pytest.raises(SettingError, match="another dataset or order: sampler"):
        tc.DistributedCacheSampler(ds, 4, True).load_state_dict(state)
    with pytest.raises(SettingError, match="sampler None, here"):
        make(kind, ds).load_state_dict(tc.DistributedCacheSampler(ds, 4, True).state_dict())
    with pytest.raises(SettingError, match="samples 61, here 60"):
        make(kind, ds[:-1]).load_state_dict(state)
    with pytest.raises(SettingError, match="not a loader's state"):
        make(kind, ds).load_state_dict({"epoch": 1})
    name = next(n for n in state if n in ("left", "samples_seen", "batches_seen"))
    with pytest.raises(SettingError, match="not a loader's state"):
        make(kind, ds).load_state_dict({**state, name: [[5, 3]]})


# Shards


def shards_of(ds, indices):
    return {int(k) for k in ds.generation.files.shard_of(np.asarray(indices, dtype=np.int64))}


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_shard_is_one_ranks_but_for_those_that_are_cut(ds, world) -> None:
    samplers = ranks("shard", ds, world, uneven="exact", seed=1)
    mine = [[k for step in epoch_of([s]) for k, _ in step[0]] for s in samplers]
    assert max(map(len, mine)) - min(map(len, mine)) <= 1
    assert sorted(flat(mine)) == list(range(COUNT))
    owners = [sum(shard in shards_of(ds, part) for part in mine) for shard in range(9)]
    assert sum(owners) - 9 <= world - 1
    for part in mine:  # shard after shard
        order = ds.generation.files.shard_of(np.array(part))
        assert int((np.diff(order) != 0).sum()) == len(shards_of(ds, part)) - 1


@pytest.mark.parametrize("world", [2, 3, 4])
def test_whole_shards_are_never_shared(ds, world) -> None:
    found = []
    for epoch in range(4):
        samplers = ranks("whole shards", ds, world, uneven="pad", seed=1)
        for sampler in samplers:
            sampler.set_epoch(epoch)
        steps = epoch_of(samplers)
        parts = [[k for step in steps for k, padding in step[rank] if not padding] for rank in range(world)]
        owned = [shards_of(ds, part) for part in parts]
        assert sorted(flat(parts)) == list(range(COUNT))
        assert sum(map(len, owned)) == 9
        # No rank could give its last shard away and be better off: at most one shard of 7 apart.
        assert max(map(len, parts)) - min(map(len, parts)) <= 7
        found.append(tuple(map(frozenset, owned)))
    assert len(set(found)) > 1


def test_workers_have_shards_of_their_own(ds) -> None:
    sampler = tc.DistributedShardSampler(ds, 4, num_workers=3, uneven="exact")
    batches = list(sampler)
    owned = [shards_of(ds, flat(batches[k::3])) for k in range(3)]
    assert sum(map(len, owned)) - 9 <= 2
    assert sorted(flat(batches)) == list(range(COUNT))


def test_views_keep_their_samples_and_order_by_shard(ds) -> None:
    view = ds[[60, 3, 3, 20, 1, 59, 2]]
    batches = list(tc.DistributedShardSampler(view, 2, uneven="exact"))
    assert sorted(flat(batches)) == list(range(7))
    assert list(tc.DistributedShardSampler(view, 7, shuffle=False)) == [[4, 6, 1, 2, 3, 5, 0]]
    assert len(list(tc.DistributedShardSampler(Subset(ds, [5, 50]), 1))) == 2


# Weights


def chi_square(drawn, weights):
    counts = np.bincount(drawn, minlength=len(weights))
    expected = len(drawn) * weights / weights.sum()
    return float((((counts - expected) ** 2)[weights > 0] / expected[weights > 0]).sum())


def test_draws_with_replacement_follow_their_weights() -> None:
    weights = np.arange(20.0)[::-1].copy()
    sampler = tc.WeightedCacheSampler(20, 50, weights=weights, num_samples=20_000, seed=11)
    drawn = np.array(flat(sampler))
    assert len(drawn) == 20_000
    assert chi_square(drawn, weights) < CHI_SQUARE[19]
    assert chi_square(drawn, np.ones(20)) > 10 * CHI_SQUARE[19]
    assert 19 not in drawn


def test_draws_without_replacement_follow_their_weights() -> None:
    weights = np.array([1.0, 2.0, 3.0, 0.0, 4.0])
    first, pairs = [], np.zeros((5, 5))
    for epoch in range(6000):
        a, b = draw_without_replacement(weights, 2, 1, epoch).tolist()
        first.append(a)
        pairs[a, b] += 1
    assert chi_square(np.array(first), weights) < CHI_SQUARE[3]
    # By hand: the second is drawn in proportion to the weights of those left.
    for a in (0, 1, 2, 4):
        left = weights.copy()
        left[a] = 0
        seen = np.repeat(np.arange(5), pairs[a].astype(int))
        assert chi_square(seen, left) < CHI_SQUARE[2]
    whole = draw_without_replacement(np.ones(30), 30, 2, 0)
    assert sorted(whole.tolist()) == list(range(30))


def test_draws_are_pinned() -> None:
    """The same on every machine and numpy version: a change here breaks runs that are resumed."""
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    assert draw_with_replacement(weights, 12, 0, 0).tolist() == [2, 2, 0, 3, 0, 1, 1, 0, 0, 1, 1, 2]
    assert draw_without_replacement(weights, 4, 0, 0).tolist() == [2, 3, 0, 1]
    numbers = np.array([2.0**-53, 1e-9, 0.1, 0.25, 0.5, 0.7, 0.999999, 1 - 2.0**-53])
    np.testing.assert_allclose(minus_log(numbers), -np.log(numbers), rtol=1e-12)


@pytest.mark.parametrize("by", ["perturbed_count", "removed_edges", ("perturbed_count", "removed_edges")])
def test_inverse_frequency_gives_every_group_the_same_weight(ds, by) -> None:
    names = [by] if isinstance(by, str) else by
    keys = list(zip(*(ds.columns[name].tolist() for name in names), strict=True))
    weights = inverse_frequency(ds, by, None)
    assert weights.tolist() == [1 / keys.count(key) for key in keys]
    sampler = tc.WeightedCacheSampler(ds, 100, by=by, num_samples=4000, seed=3)
    groups = sorted(set(keys))
    drawn = np.array([groups.index(keys[k]) for k in flat(sampler)])
    if len(groups) - 1 in CHI_SQUARE:
        assert chi_square(drawn, np.ones(len(groups))) < CHI_SQUARE[len(groups) - 1]
    assert set(drawn) == set(range(len(groups)))


def test_labels_are_binned(ds) -> None:
    values = ds.columns["fitness"]
    weights = inverse_frequency(ds, "fitness", [0.5, 0.9])
    group = [3 if np.isnan(v) else int(v >= 0.5) + int(v >= 0.9) for v in values]
    assert weights.tolist() == [1 / group.count(g) for g in group]
    known = values[~np.isnan(values)].astype(float)
    edges = np.linspace(known.min(), known.max(), 5)[1:-1]
    assert np.array_equal(
        inverse_frequency(ds, "fitness", 4), inverse_frequency(ds, "fitness", edges.tolist())
    )
    both = tc.WeightedCacheSampler(ds, 4, by=("fitness", "perturbed_count"), bins={"fitness": [0.5, 0.9]})
    keys = list(zip(group, ds.columns["perturbed_count"].tolist(), strict=True))
    assert both.weights.tolist() == [1 / keys.count(key) for key in keys]
    part = Subset(ds[10:], [0, 5, 7])
    assert inverse_frequency(part, "perturbed_count", None).tolist() == [
        1 / ds.columns["perturbed_count"][[10, 15, 17]].tolist().count(v)
        for v in ds.columns["perturbed_count"][[10, 15, 17]].tolist()
    ]


def test_a_sampler_of_other_samples_is_refused(ds) -> None:
    """As many samples, but the weights of others."""
    sampler = tc.WeightedCacheSampler(ds[:30], 4, by="perturbed_count")
    assert len(list(tc.CacheLoader(ds[:30], sampler=sampler))) == len(sampler)
    with pytest.raises(SettingError, match="other samples than the dataset's"):
        tc.CacheLoader(ds[30:60], sampler=sampler)
    with pytest.raises(SettingError, match="for 30 samples, the dataset has 61"):
        tc.CacheLoader(ds, sampler=sampler)


def test_codes_of_names_need_no_bins(tmp_path) -> None:
    """A label of whole numbers is a class, though labels are stored as float32."""
    codes = [2.0, 0.0, 2.0, float("nan"), 2.0, float("nan"), 1.0]
    labels = {"cell_type": codes}
    source = tc.PerturbationTable(cell_graph(), [[k % 9] for k in range(7)], phenotypes=labels)
    weights = inverse_frequency(build(tmp_path, source, storage="perturbation"), "cell_type", None)
    np.testing.assert_allclose(weights, [1 / 3, 1, 1 / 3, 1 / 2, 1 / 3, 1 / 2, 1])


def test_classes_of_generic_stores_are_labels(tmp_path) -> None:
    kinds = [0, 0, 0, 0, 1, 2, 2, 0, 0]
    one = [Data(x=torch.ones(2, 1), y=torch.tensor([k])) for k in kinds]
    two = [Data(x=torch.ones(2, 1), y=torch.tensor([[k, k % 2]])) for k in kinds]
    for number, graphs in enumerate((one, two)):
        ds = tc.build(tmp_path / str(number), source=graphs, progress=False)
        sampler = tc.WeightedCacheSampler(ds, 9, by="y")
        assert sampler.weights.tolist() == [1 / kinds.count(k) for k in kinds]
    with pytest.raises(SettingError, match="2 values per sample, bins= need one"):
        tc.WeightedCacheSampler(ds, 9, by="y", bins=2)


def test_warm_up_goes_from_equal_to_given_weights() -> None:
    weights = np.array([1.0, 3.0, 0.0, 4.0])
    sampler = tc.WeightedCacheSampler(4, 50, weights=weights, num_samples=8000, warmup_epochs=2, seed=5)
    even, given_ = np.array([1, 1, 0, 1]) / 3, weights / 8
    for want in (even, (even + given_) / 2, given_, given_):
        np.testing.assert_allclose(sampler.weights_of(sampler.epoch), want, rtol=1e-12)
        assert chi_square(np.array(flat(sampler)), want) < CHI_SQUARE[2]


# Costs


@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_of_a_step_cost_the_same(world) -> None:
    costs = np.random.default_rng(0).lognormal(0, 1, 4000)
    samplers = [
        tc.BalancedCostBatchSampler(4000, 20, costs=costs, rank=r, world_size=world) for r in range(world)
    ]
    steps = epoch_of(samplers)
    per_step = np.array([[costs[[k for k, _ in batch]].sum() for batch in step] for step in steps])
    assert {len(batch) for step in steps[:-4] for batch in step} == {20}
    plain = np.random.default_rng(1).permutation(costs).reshape(-1, 20).sum(1)
    assert per_step.std() / per_step.mean() < 0.25 * plain.std() / plain.mean()
    apart = (per_step.max(1) - per_step.min(1)) / per_step.mean(1)
    assert np.median(apart) < 0.05
    first = samplers[0].batches(0)
    again = samplers[0].batches(1)
    assert sorted(sorted(rows.tolist()) for rows in first) != sorted(sorted(rows.tolist()) for rows in again)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=200), st.integers(9, 40), st.integers(1, 9))
def test_no_batch_costs_more_than_max_cost(costs, limit, most) -> None:
    sampler = tc.BalancedCostBatchSampler(len(costs), most, costs=costs, max_cost=limit)
    batches = list(sampler)
    assert sorted(flat(batches)) == list(range(len(costs)))
    assert all(0 < len(b) <= most and sum(costs[k] for k in b) <= limit for b in batches)
    # Two of Graham's batches that fit into one would mean a needless step; allow for what cannot be filled.
    assert len(batches) <= 2 * max(-(-sum(costs) // limit), -(-len(costs) // most)) + 1
    alone = tc.BalancedCostBatchSampler(len(costs), costs=costs, max_cost=limit)
    assert sorted(flat(alone)) == list(range(len(costs)))
    assert alone.batch_size is None


def test_stored_sizes_are_costs(ds) -> None:
    costs = ds.columns["removed_edges"].astype(float)
    sampler = tc.BalancedCostBatchSampler(ds, by="removed_edges", max_cost=60, base_cost=0.5)
    assert np.array_equal(sampler.costs, costs + 0.5)
    assert sorted(flat(sampler)) == list(range(COUNT))
    assert list(tc.BalancedCostBatchSampler(ds[:4], 4, costs=np.ones(4), shuffle=False)) == [[0, 1, 2, 3]]


# Wrong arguments


@pytest.mark.parametrize(
    ("make_it", "text"),
    [
        (lambda ds: tc.WeightedCacheSampler(ds, 4), "give by="),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, by="fitness", weights=[1]), "one of the two"),
        (
            lambda ds: tc.WeightedCacheSampler(ds, 4, by="fitnes"),
            "by='fitnes' is no stored column; did you mean 'fitness'. valid: fitness, perturbed_count, removed_edges",
        ),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, by="fitness"), r"real numbers(.|\n)*bins=10"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, by="fitness", bins=1), "bins=1: expected"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, by="fitness", bins=[2, 1]), "ascending"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, by="fitness", bins={"size": 3}), "bins for size"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, by=()), "names no column"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, weights=np.ones(61), bins=3), "belongs to by="),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, weights=np.ones(60)), r"shape \(60,\), expected \(61,\)"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, weights=-np.ones(61)), r"weights\[0\] is -1"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, weights=np.zeros(61)), "all weights are 0"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, weights=["a"] * 61), "must be numbers"),
        (lambda ds: tc.WeightedCacheSampler(61, 4, by="fitness"), "no stored columns"),
        (
            lambda ds: tc.WeightedCacheSampler(
                ds, 4, weights=[0] * 60 + [1], num_samples=2, replacement=False
            ),
            "only 1 of 61",
        ),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, by="perturbed_count", warmup_epochs=-1), "from 0 on"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, by="perturbed_count", num_samples=0), "num_samples=0"),
        (lambda ds: tc.WeightedCacheSampler(ds, 4, by="perturbed_count", uneven="all"), "'exact'"),
        (lambda ds: tc.DistributedShardSampler(61, 4), "needs the shards of one store"),
        (lambda ds: tc.DistributedShardSampler(ds, 0), "batch_size=0"),
        (lambda ds: tc.DistributedShardSampler(ds, 4, num_workers=-1), "num_workers=-1"),
        (lambda ds: tc.DistributedShardSampler(ds, 62, drop_last=True), "leave no batch"),
        (
            lambda ds: tc.DistributedShardSampler(
                ds, 4, rank=0, world_size=2, whole_shards=True, uneven="exact"
            ),
            "uneven='pad'",
        ),
        (lambda ds: tc.BalancedCostBatchSampler(ds, by="removed_edges"), "give batch_size="),
        (lambda ds: tc.BalancedCostBatchSampler(ds, 4), "give by="),
        (lambda ds: tc.BalancedCostBatchSampler(ds, 4, by="edges"), "did you mean 'removed_edges'"),
        (lambda ds: tc.BalancedCostBatchSampler(ds, 4, by="fitness"), r"fitness\[0\] costs nan"),
        (lambda ds: tc.BalancedCostBatchSampler(ds, by="removed_edges", max_cost=0), "above 0"),
        (
            lambda ds: tc.BalancedCostBatchSampler(ds, by="removed_edges", max_cost=1),
            "cost more than max_cost=1",
        ),
        (
            lambda ds: tc.BalancedCostBatchSampler(ds, 61, by="removed_edges", rank=0, world_size=2),
            "1 batches on 2 ranks",
        ),
    ],
)
def test_wrong_arguments_are_answered_with_the_valid_ones(ds, make_it, text) -> None:
    with pytest.raises(SettingError, match=text):
        make_it(ds)


@pytest.mark.parametrize("kind", ["order", *KINDS])
def test_a_loop_that_is_left_lets_go_of_its_store(kind, ds) -> None:
    store = tc.PreprocessedDataset(ds.root)
    sampler = tc.DistributedCacheSampler(store, 4) if kind == "order" else make(kind, store)
    gc.disable()
    try:
        next(iter(tc.CacheLoader(store, sampler=sampler)))
        held = weakref.ref(store.generation)
        del store, sampler
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["order", *KINDS])
def test_a_pickled_sampler_is_of_the_rank_that_reads_it(kind, ds, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sampler = tc.DistributedCacheSampler(ds, 4) if kind == "order" else make(kind, ds)
    sampler.load_state_dict(sampler.state_dict())
    saved = pickle.dumps(sampler)
    monkeypatch.setenv("RANK", "2")
    assert sampler.rank == pickle.loads(saved).rank == 2
