"""Numbers that samplers, splits and loaders are given: numpy's and torch's count as Python's, others get one sentence."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.core.checks import whole_number
from torchcell_cache.errors import SettingError

INTEGERS = [np.int8, np.int64, np.uint64, torch.tensor, np.array]
NO_INTEGERS = [
    None,
    "3",
    1.0,
    2.5,
    math.nan,
    True,
    np.True_,
    torch.tensor(True),
    torch.tensor(1.5),
    [3],
    b"3",
    3j,
]


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    root = tmp_path_factory.mktemp("numbers") / "s"
    source = tc.testing.tiny_source(24)
    return tc.build(root, source=source, processor=tc.Perturbation(), shard_size=6, progress=False)


MADE = {
    "DistributedCacheSampler": lambda ds, **own: tc.DistributedCacheSampler(ds, shuffle=True, **own),
    "WeightedCacheSampler": lambda ds, **own: tc.WeightedCacheSampler(ds, weights=range(1, 25), **own),
    "BalancedCostBatchSampler": lambda ds, **own: tc.BalancedCostBatchSampler(
        ds, by="perturbed_count", **own
    ),
    "DistributedShardSampler": lambda ds, **own: tc.DistributedShardSampler(ds, **own),
    "CacheLoader": lambda ds, **own: tc.CacheLoader(ds, shuffle=True, **own).batch_sampler,
    "StreamingCacheDataset": lambda ds, **own: tc.StreamingCacheDataset(ds, **own).sampler,
}


def batches(sampler):
    return [list(map(int, batch)) for batch in sampler]


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("of", INTEGERS, ids=lambda of: of.__name__)
def test_integers_of_any_library(ds, name, of) -> None:
    make = MADE[name]
    given = make(ds, seed=of(7), batch_size=of(5), rank=of(1), world_size=of(2))
    plain = make(ds, seed=7, batch_size=5, rank=1, world_size=2)
    assert batches(given) == batches(plain)
    assert json.loads(json.dumps(given.state_dict())) == plain.state_dict()
    given.set_epoch(of(3))
    plain.set_epoch(3)
    assert batches(given) == batches(plain)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("wrong", NO_INTEGERS, ids=repr)
def test_anything_else_is_answered_in_a_sentence(ds, name, wrong) -> None:
    with pytest.raises(SettingError, match=r"seed=.*expected a whole number"):
        MADE[name](ds, batch_size=4, seed=wrong)
    if wrong is not None:
        with pytest.raises(SettingError, match=r"batch_size=.*expected a whole number"):
            MADE[name](ds, batch_size=wrong)
    with pytest.raises(SettingError, match=r"epoch=.*expected a whole number"):
        MADE[name](ds, batch_size=4).set_epoch(wrong)


@pytest.mark.parametrize("split", [tc.split_random, tc.split_by_perturbation])
def test_splits_and_draws(ds, split) -> None:
    for of in INTEGERS:
        found = split(
            ds, np.array([0.5, 0.25, 0.25]), seed=of(7), bins=of(3), stratify="fitness", progress=False
        )
        assert (
            found.train.tolist()
            == split(ds, (0.5, 0.25, 0.25), seed=7, bins=3, stratify="fitness", progress=False).train.tolist()
        )
        assert tc.select(ds, n=of(3), seed=of(7)).tolist() == tc.select(ds, n=3, seed=7).tolist()
        assert isinstance(found.made_by["seed"], int)
    for wrong in NO_INTEGERS:
        with pytest.raises(SettingError, match="seed="):
            split(ds, seed=wrong)
        with pytest.raises(SettingError, match="seed="):
            tc.select(ds, n=3, seed=wrong)
    for fractions in (
        None,
        0.8,
        "abc",
        [None],
        [0.5, "x"],
        (k for k in (0.5, 0.5)),
        [10**400, 0],
        [[0.5], [0.5]],
    ):
        with pytest.raises(SettingError, match="fractions="):
            split(ds, fractions)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**70), 2**70))
def test_whole_numbers_stay_what_they_are(number) -> None:
    assert whole_number("n", number) == number
    if -(2**63) <= number < 2**63:
        assert whole_number("n", np.int64(number)) == number


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1.0, 1e300, 8e307])
@pytest.mark.parametrize("replacement", [True, False])
def test_weights_of_any_size_draw_alike(scale, replacement) -> None:
    """Only ratios count; the largest weight is drawn about as often as its share says."""
    weights = np.array([1.0, 2.0, 1.0, 2.0]) * scale
    sampler = tc.WeightedCacheSampler(
        4, 4, weights=weights, num_samples=4000 if replacement else 2, replacement=replacement
    )
    rounds = 10 if replacement else 300
    drawn = np.bincount([k for _ in range(rounds) for batch in batches(sampler) for k in batch], minlength=4)
    share = drawn / drawn.sum()
    assert abs(share[1] + share[3] - (2 / 3 if replacement else share[1] + share[3])) < 0.08
    assert np.isclose(sampler.weights_of(0).sum(), 1)


@pytest.mark.parametrize(
    "wrong", [[1, 2], [math.nan] * 24, [-1.0] * 24, [0] * 24, ["a"] * 24, [math.inf] * 24, None]
)
def test_weights_that_make_no_sense(ds, wrong) -> None:
    with pytest.raises(SettingError, match="weight"):
        tc.WeightedCacheSampler(ds, 4, weights=wrong)


def test_costs_and_limits(ds) -> None:
    plain = batches(tc.BalancedCostBatchSampler(ds, max_cost=6, by="perturbed_count"))
    for limit in (np.int64(6), np.float32(6), torch.tensor(6.0)):
        assert batches(tc.BalancedCostBatchSampler(ds, max_cost=limit, by="perturbed_count")) == plain
    for limit in (None, "6", math.nan, math.inf, 0, True, [6]):
        with pytest.raises(SettingError, match="max_cost="):
            tc.BalancedCostBatchSampler(ds, max_cost=limit, by="perturbed_count")
    with pytest.raises(SettingError, match="the sum of all costs is infinite"):
        tc.BalancedCostBatchSampler(24, 4, costs=[1e308] * 24)


def test_bins_of_any_library(ds) -> None:
    plain = tc.WeightedCacheSampler(ds, 4, by="fitness", bins=3).weights.tolist()
    assert tc.WeightedCacheSampler(ds, 4, by="fitness", bins=np.int64(3)).weights.tolist() == plain
    for wrong in (1, "3", 2.5, [], [0.5, 0.1], ["a"]):
        with pytest.raises(SettingError, match="bins="):
            tc.WeightedCacheSampler(ds, 4, by="fitness", bins=wrong)


# States


NUMBERS = [-1, 1.5, "a", None, True, math.nan, math.inf, [1], 10**30, "7"]


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("key", ["seed", "epoch", "place"])
def test_states_with_impossible_numbers(ds, name, key) -> None:
    sampler = MADE[name](ds, batch_size=4)
    steps = iter(sampler)
    next(steps)
    state = sampler.state_dict()
    wanted = batches(MADE[name](ds, batch_size=4))
    for wrong in NUMBERS:
        if (key, wrong) in (("seed", -1), ("seed", 10**30), ("epoch", 10**30)):  # whole numbers like others
            continue
        broken = {**state, sampler.place_name if key == "place" else key: wrong}
        other = MADE[name](ds, batch_size=4)
        with pytest.raises(SettingError):
            other.load_state_dict(broken)
        assert batches(other) == wanted  # untouched by what was refused


@settings(max_examples=60, deadline=None)
@given(
    taken=st.integers(0, 6), size=st.integers(1, 9), world=st.integers(1, 3), name=st.sampled_from(list(MADE))
)
def test_a_state_after_any_number_of_steps_goes_on(ds, taken, size, world, name) -> None:
    """What is left of the epoch follows, or the whole next epoch, never nothing."""
    if name == "BalancedCostBatchSampler":
        size = min(size, 8 // world)
    first = MADE[name](ds, batch_size=size, rank=0, world_size=world)
    steps = min(taken, len(first))
    plan = first.start_epoch()
    done = [plan.batch(k)[0].tolist() for k in range(steps)]
    if steps:
        first.note_step(plan, steps - 1)
    state = json.loads(json.dumps(first.state_dict()))

    again = MADE[name](ds, batch_size=size, rank=0, world_size=world)
    again.load_state_dict(state)
    at_end = steps == len(plan)
    assert again.epoch == (1 if at_end else 0)
    rest = batches(again)
    fresh = MADE[name](ds, batch_size=size, rank=0, world_size=world)
    if at_end:
        fresh.set_epoch(1)
        assert rest == batches(fresh)
        again.load_state_dict(state)
        again.set_epoch(0)  # asked for the finished epoch by number: nothing of it is left
        assert batches(again) == []
    elif not isinstance(first, tc.DistributedShardSampler | type(tc.StreamingCacheDataset(ds, 1).sampler)):
        assert done + rest == batches(fresh)
    else:
        assert rest


def test_a_loader_resumed_after_its_last_batch(ds) -> None:
    loader = tc.CacheLoader(ds, 10, shuffle=True)
    for _ in loader:
        state = loader.state_dict()
    resumed = tc.CacheLoader(ds, 10, shuffle=True)
    resumed.load_state_dict(state)
    assert (resumed.epoch, resumed.steps_left) == (1, 3)
    wanted = [batch.indices.tolist() for batch in loader]  # its second epoch
    assert [batch.indices.tolist() for batch in resumed] == wanted


# A transform that is set, changed or taken away after the loader was made


@pytest.mark.parametrize("workers", [0, 1])
def test_the_transform_of_the_moment_counts(tmp_path, workers) -> None:
    graphs = [Data(x=torch.full((2, 1), float(k))) for k in range(4)]
    ds = tc.build(tmp_path, source=graphs, storage="full", progress=False)
    loaders = [
        tc.CacheLoader(
            ds,
            2,
            num_workers=workers,
            expand=True,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
        ),
        tc.CacheLoader(ds, 2, expand=True, indices=[0, 1, 2, 3]),
        tc.CacheLoader(torch.utils.data.Subset(ds, [0, 1, 2, 3]), 2, expand=True),
    ]
    streams = [tc.StreamingCacheDataset(ds, shuffle=False), tc.StreamingCacheDataset(ds, 2, shuffle=False)]

    def seen(loader):
        return [
            value
            for batch in loader
            for value in (batch.to_pyg() if hasattr(batch, "to_pyg") else batch).x[::2, 0].tolist()
        ]

    for factor in (1, 7, 3, 1):
        ds.transform = None if factor == 1 else lambda data, factor=factor: Data(x=data.x * factor)
        for loader in (*loaders, *streams):
            if factor != 1 and not isinstance(loader, tc.StreamingCacheDataset):
                with pytest.warns(UserWarning, match="has a transform"):
                    found = seen(loader)
            else:
                found = seen(loader)
            assert found == [0.0, factor, 2.0 * factor, 3.0 * factor]


def test_tensors_as_weights_and_costs_and_names_of_devices(ds) -> None:
    plain = batches(tc.WeightedCacheSampler(ds, 4, weights=[1.0, 2.0] * 12))
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        assert batches(tc.WeightedCacheSampler(ds, 4, weights=torch.tensor([1, 2] * 12).to(dtype))) == plain
    trained = torch.tensor([1.0, 2.0] * 12, requires_grad=True)
    assert batches(tc.WeightedCacheSampler(ds, 4, weights=trained)) == plain
    assert len(batches(tc.BalancedCostBatchSampler(ds, 4, costs=trained))) == 6
    for wrong in ("gpu", "cuda:x", 1.5, []):
        with pytest.raises(SettingError, match=r"device=(.|\n)*device='cuda'"):
            tc.CacheLoader(ds, 4, device=wrong)


@pytest.mark.parametrize(
    "value", ["no", "false", "", b"0", 2, -1, 0.0, math.nan, [], [False], np.array([1, 2]), {}]
)
@pytest.mark.parametrize(
    "name", ["shuffle", "drop_last", "expand", "drop_removed", "pin_memory", "persistent_workers"]
)
def test_a_text_is_no_truth_value(ds, name, value) -> None:
    """Every text but the empty one is true to Python, "false" too."""
    with pytest.raises(SettingError, match=rf"{name}=(.|\n)*expected True or False"):
        tc.CacheLoader(ds, 4, **{name: value})
    if name == "shuffle":
        with pytest.raises(SettingError, match="shuffle="):
            tc.DistributedCacheSampler(ds, 4, shuffle=value)
        with pytest.raises(SettingError, match="shuffle="):
            tc.DistributedShardSampler(ds, 4, shuffle=value)
    with pytest.raises(SettingError, match="replacement="):
        tc.WeightedCacheSampler(ds, 4, by="perturbed_count", replacement=value)


@pytest.mark.parametrize("value", [True, np.True_, 1, np.int8(1), torch.tensor(1), torch.tensor(True)])
def test_truth_values_of_any_library(ds, value) -> None:
    assert batches(tc.DistributedCacheSampler(ds, 4, shuffle=value)) == batches(
        tc.DistributedCacheSampler(ds, 4, shuffle=True)
    )


@pytest.mark.parametrize(
    "by", [7, 2.5, None.__class__, [["perturbed_count"]], (7,), object(), np.array(["x"])]
)
def test_what_is_no_name_of_a_column_is_answered(ds, by) -> None:
    with pytest.raises(SettingError, match="no stored column"):
        tc.WeightedCacheSampler(ds, 4, by=by)
    with pytest.raises(SettingError, match="no stored column"):
        tc.BalancedCostBatchSampler(ds, 4, by=by)


NO_REALS = {
    "complex": np.ones(24, dtype=complex),
    "complex tensor": torch.ones(24, dtype=torch.complex64),
    "complex list": [1 + 1j] * 24,
    "dates": np.zeros(24, dtype="datetime64[ns]"),
    "times": np.ones(24, dtype="timedelta64[s]"),
    "beyond float64": [10**400] * 24,
    "dict": dict.fromkeys(range(24), 1.0),
}


@pytest.mark.parametrize("name", NO_REALS)
def test_numbers_that_would_lose_something_are_refused(ds, name) -> None:
    with pytest.raises(SettingError, match="numbers"):
        tc.WeightedCacheSampler(ds, 4, weights=NO_REALS[name])
    with pytest.raises(SettingError, match="numbers"):
        tc.BalancedCostBatchSampler(ds, 4, costs=NO_REALS[name])


@pytest.mark.parametrize("weights", [[1e308] + [1e-320] * 23, [1e300, 1e-300] * 12, [1e308] * 23 + [5e-324]])
@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_a_weight_beside_a_huge_one_is_drawn_last_but_drawn(ds, weights, warmup_epochs) -> None:
    sampler = tc.WeightedCacheSampler(
        ds, 24, weights=weights, replacement=False, warmup_epochs=warmup_epochs, rank=0, world_size=1
    )
    for _ in range(3):
        assert sorted(k for batch in sampler for k in batch) == list(range(24))


@pytest.mark.parametrize("size", [2**40, 2**63, 2**200])
def test_a_batch_of_any_size_has_all_samples(ds, size) -> None:
    sampler = tc.BalancedCostBatchSampler(ds, size, by="perturbed_count", rank=0, world_size=1)
    assert sorted(k for batch in sampler for k in batch) == list(range(24))


@pytest.mark.parametrize("value", [np.array([1, 2]), [1], torch.tensor([1, 2]), None, math.nan])
@pytest.mark.parametrize("name", MADE)
def test_a_state_that_holds_anything_is_answered_and_changes_nothing(ds, name, value) -> None:
    sampler = MADE[name](ds, batch_size=4)
    before = sampler.state_dict()
    for key in before:
        if value is None and before[key] is None:
            continue
        with pytest.raises(SettingError):
            sampler.load_state_dict({**before, key: value})
        assert sampler.state_dict() == before


@pytest.mark.parametrize(
    "arguments",
    [
        {"sampler": 5},
        {"batch_sampler": 5},
        {"batch_sampler": [1, 2]},
        {"device": "cuda:99"},
        {"device": "nowhere"},
    ],
    ids=str,
)
def test_what_a_loader_cannot_take_is_answered(ds, arguments) -> None:
    with pytest.raises(SettingError, match=next(iter(arguments))):
        list(tc.CacheLoader(ds, **arguments))


@pytest.mark.parametrize("chosen", [[1.5], [2.0], ["1"], [None], [True, False]])
def test_no_index_is_made_of_a_number_that_is_none(ds, chosen) -> None:
    with pytest.raises(IndexError):
        list(tc.CacheLoader(ds, batch_sampler=[chosen]))
