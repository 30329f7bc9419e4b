"""One global order, cut into steps and ranks: against plain lists."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchcell_cache.data.samplers.order import DistributedCacheSampler, epoch_order, rank_and_world_size
from torchcell_cache.errors import SettingError

sizes = st.integers(0, 60)
batches = st.integers(1, 7)
worlds = st.integers(1, 5)
modes = st.sampled_from(["drop_last", "pad", "exact"])


def ranks(num_samples, batch_size, world, **settings):
    return [
        DistributedCacheSampler(num_samples, batch_size, rank=rank, world_size=world, **settings)
        for rank in range(world)
    ]


def steps_of(samplers):
    """``[step][rank]`` lists of (index, is padding); all ranks must have the same number of steps."""
    plans = [sampler.start_epoch() for sampler in samplers]
    assert len({len(plan) for plan in plans}) == 1
    return [
        [list(zip(*map(np.ndarray.tolist, plan.batch(step)), strict=True)) for plan in plans]
        for step in range(len(plans[0]))
    ]


def flat(steps):
    return [item for step in steps for batch in step for item in batch]


@given(sizes, batches, worlds, modes, st.booleans(), st.booleans(), st.integers(0, 5))
def test_ranks_share_out_one_order(count, size, world, uneven, shuffle, drop_last, epoch) -> None:
    try:
        samplers = ranks(count, size, world, uneven=uneven, shuffle=shuffle, drop_last=drop_last, seed=4)
    except SettingError:
        assert 0 < count < size * world or (uneven == "exact" and size == 1 and count % world)
        return
    for sampler in samplers:
        sampler.set_epoch(epoch)
    order = epoch_order(count, 4, epoch).tolist() if shuffle else list(range(count))
    steps = steps_of(samplers)
    assert len(steps) == len(samplers[0])
    seen = [index for index, padding in flat(steps) if not padding]
    assert seen == order[: len(seen)]
    assert not any(padding for _, padding in flat(steps[:-1]))
    sizes_of = [[len(b) for b in step] for step in steps]
    assert all(max(row) - min(row) <= 1 and max(row) <= size for row in sizes_of)
    full = steps[: -2 if uneven == "exact" else -1]
    assert all(len(b) == size for step in full for b in step)
    last = [len(b) for b in steps[-1]] if steps else []
    if drop_last:
        assert len(seen) == count - count % (size * world)
        assert set(last) <= {size}
    elif uneven == "drop_last":
        assert count - len(seen) < world
        assert len(set(last)) <= 1
    elif uneven == "pad":
        assert len(seen) == count
        assert len(set(last)) <= 1
        padded = [index for index, padding in flat(steps) if padding]
        assert len(padded) < world
        assert all(padded[k] == order[k % count] for k in range(len(padded)))
    else:
        assert len(seen) == count == len(flat(steps))
        assert 0 not in last


@given(st.integers(1, 60), batches, batches, worlds, worlds, modes, st.integers(0, 10))
def test_a_state_resumes_on_any_other_layout(
    count, size, other_size, world, other_world, uneven, done
) -> None:
    settings = {"shuffle": True, "seed": 9, "uneven": uneven}
    try:
        first = ranks(count, size, world, **settings)
        second = ranks(count, other_size, other_world, **settings)
    except SettingError:
        return
    plans = [sampler.start_epoch() for sampler in first]
    done = min(done, len(plans[0]))
    seen = [plan.batch(step)[0].tolist() for step in range(done) for plan in plans]
    for step in range(done):
        for sampler, plan in zip(first, plans, strict=True):
            sampler.note_step(plan, step)
    states = [json.loads(json.dumps(sampler.state_dict())) for sampler in first]
    assert all(state == states[0] for state in states)
    for sampler in second:
        sampler.load_state_dict(states[0])
        sampler.set_epoch(0)
    left = max(0, count - second[0].state_dict()["samples_seen"])
    if uneven == "exact" and left > 0 and (left < other_world or (other_size == 1 and left % other_world)):
        with pytest.raises(SettingError, match="without a sample"):
            second[0].start_epoch()
        return
    steps = steps_of(second)
    rest = [index for index, padding in flat(steps) if not padding]
    order = epoch_order(count, 9, 0).tolist()
    if done == len(plans[0]):
        assert not steps
    else:
        before = [index for batch in seen for index in batch]
        assert before + rest == order[: len(before) + len(rest)]
        assert len(before) + len(rest) > count - (other_world if uneven == "drop_last" else 1)


@given(st.integers(0, 500), st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_orders_are_permutations(count, seed, epoch) -> None:
    assert sorted(epoch_order(count, seed, epoch).tolist()) == list(range(count))


def test_orders_are_pinned_and_differ_by_seed_and_epoch() -> None:
    assert epoch_order(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(4) for epoch in range(5)}
    assert len(orders) == 20


def test_orders_are_uniform() -> None:
    counts = np.zeros((5, 5))
    for epoch in range(4000):
        counts[np.arange(5), epoch_order(5, 1, epoch)] += 1
    # 800 expected per cell, standard deviation 25.
    assert abs(counts - 800).max() < 5 * 25


def test_each_iteration_is_the_next_epoch_unless_told() -> None:
    sampler = DistributedCacheSampler(20, 20, True, seed=3)
    want = [epoch_order(20, 3, epoch).tolist() for epoch in range(6)]
    assert [next(iter([*sampler])) for _ in range(3)] == want[:3]
    sampler.set_epoch(1)
    assert list(sampler) == [want[1]]
    assert list(sampler) == [want[2]]
    next(iter(sampler))  # abandoned
    assert list(sampler) == [want[4]]
    assert sampler.epoch == 5


def test_state_follows_the_epoch() -> None:
    sampler = DistributedCacheSampler(10, 4)
    assert (sampler.state_dict()["epoch"], sampler.steps_left) == (0, 3)
    plan = sampler.start_epoch()
    assert (sampler.state_dict()["samples_seen"], sampler.steps_left) == (0, 3)
    sampler.note_step(plan, 0)
    assert (sampler.state_dict()["samples_seen"], sampler.steps_left) == (4, 2)
    sampler.note_step(plan, 2)
    assert (sampler.state_dict()["samples_seen"], sampler.steps_left) == (10, 0)
    sampler.end_epoch(plan)
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["samples_seen"]) == (1, 0)
    newer = sampler.start_epoch()
    sampler.note_step(plan, 1)
    sampler.end_epoch(plan)
    assert (sampler.epoch, sampler.state_dict()["samples_seen"]) == (1, 0)
    sampler.note_step(newer, 0)
    sampler.set_epoch(2)
    assert (sampler.epoch, sampler.state_dict()["samples_seen"]) == (2, 0)


def test_rank_and_world_size_are_found(monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rank_and_world_size() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SettingError, match="torchrun"):
        rank_and_world_size()
    monkeypatch.setenv("RANK", "2")
    assert rank_and_world_size() == (2, 3)
    assert rank_and_world_size(0, 2) == (0, 2)
    sampler = DistributedCacheSampler(9)
    assert (sampler.rank, sampler.world_size, len(sampler)) == (2, 3, 3)
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(SettingError, match="RANK='two'"):
        rank_and_world_size()
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(SettingError, match="expected 0 to"):
            rank_and_world_size(rank, world)
    with pytest.raises(SettingError, match="both or neither"):
        rank_and_world_size(1, None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"uneven": "padding"}, "'drop_last', 'pad', 'exact'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"rank": 0, "world_size": 11}, "10 samples"),
        ({"batch_size": 11, "drop_last": True}, "no batch"),
        ({"rank": 0, "world_size": 3, "uneven": "exact"}, "uneven='pad'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, text) -> None:
    with pytest.raises(SettingError, match=text):
        DistributedCacheSampler(10, **arguments)


def test_states_of_other_data_are_refused() -> None:
    state = DistributedCacheSampler(10, shuffle=True, seed=7).state_dict()
    with pytest.raises(SettingError, match=r"samples 10, here 11"):
        DistributedCacheSampler(11, shuffle=True).load_state_dict(state)
    with pytest.raises(SettingError, match=r"shuffle True, here False"):
        DistributedCacheSampler(10).load_state_dict(state)
    with pytest.raises(SettingError, match="not a loader's state"):
        DistributedCacheSampler(10).load_state_dict({"epoch": 3})
    resumed = DistributedCacheSampler(10, 10, shuffle=True)
    resumed.load_state_dict(state)
    assert list(resumed) == [epoch_order(10, 7, 0).tolist()]


def test_serves_torchs_own_loader() -> None:
    samplers = ranks(13, 3, 2, shuffle=True, uneven="exact")
    data = torch.arange(13)
    seen = [b.tolist() for s in samplers for b in torch.utils.data.DataLoader(data, batch_sampler=s)]
    assert sorted(k for batch in seen for k in batch) == list(range(13))
