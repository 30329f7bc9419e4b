"""Faults in pairs: what a first one left is met by a second one, of any kind, before the call is given undisturbed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import stores
from faultlib import FOREVER, Fault, FaultServer
from test_errno import ERRORS, OPS
from test_kill import assert_recovers, undisturbed

from torchcell_cache.errors import CacheError

Room = Callable[[], Path]
ACTIONS = ("kill_before", "kill_after", "kill_torn", "fail", "fail", "fail_after", "short")


def pairs(builds: FaultServer, room: Room, shape: str, count: int, seed: int) -> Counter[str]:
    """As many pairs of faults that were both met; how the runs ended."""
    wanted, _ = undisturbed(builds, room(), stores.build, shape)
    place = room()
    calls = builds.run_trial(stores.build, place, shape, prefix=place, fault=Fault(ops=OPS)).calls
    chance, ends, met = random.Random(seed), Counter[str](), 0
    for number in range(3 * count):
        root, fired, said = room(), 0, []
        for turn in (1, 2):
            action, at = chance.choice(ACTIONS), chance.randint(1, calls // turn)  # the second has less to do
            error, times = chance.choice(list(ERRORS)), chance.choice([1, 3, FOREVER])
            fault = Fault(action, at=at, ops=OPS, error=error, times=1 if "kill" in action else times)
            trial = builds.run_trial(stores.build, root, shape, prefix=root, fault=fault)
            said.append((number, seed, fault, trial.outcome, repr(trial.error)))
            assert trial.outcome in ("ok", "raised", "killed"), said
            assert trial.error is None or isinstance(trial.error, CacheError), said
            fired, ends[trial.outcome] = fired + (trial.fired > 0), ends[trial.outcome] + 1
        assert stores.read_outcome(root, shape) in ("equal", "CacheNotFoundError"), said
        assert_recovers(root, shape, wanted)
        stores.remove(root)
        met += fired == 2
        if met == count:
            return ends
    raise AssertionError(f"only {met} pairs met both faults")


def test_pairs_of_faults(builds: FaultServer, room: Room) -> None:
    assert set(pairs(builds, room, "generic", 8, seed=1)) >= {"raised", "killed"}


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2, 16))
@pytest.mark.parametrize("shape", ["delta", "perturbation", "generic"])
def test_two_thousand_pairs_of_faults(builds: FaultServer, room: Room, shape: str, seed: int) -> None:
    assert set(pairs(builds, room, shape, 50, seed)) >= {"ok", "raised", "killed"}
