"""Power cuts at every call: a reader finds nothing or something whole, and the same call finishes to the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import powersim
import pytest
import stores
from faultlib import DATA, SYNC, Call, Fault, FaultServer

Room = Callable[[], Path]
Reached = Callable[[str, int], int]
OPS = (
    *DATA,
    *SYNC,
    "copy",
    "ftruncate",
    "create",
    "mkdir",
    "rename",
    "link",
    "unlink",
    "rmdir",
    "symlink",
    "fallocate",
)


def logged(builds: FaultServer, root: Path, shape: str) -> list[Call]:
    trial = builds.run_trial(stores.build, root, shape, prefix=root, fault=Fault(ops=OPS), log="data")
    assert trial.outcome == "ok", trial.error
    return trial.log


def survive(
    root: Path, log: list[Call], room: Room, shape: str, moments: range, samples: int
) -> tuple[int, int]:
    """Check the states of the disk after cuts at these moments; returns how many, and how many had the store."""
    wanted, real = stores.facts(root), Path(os.path.realpath(root))
    checked = published = 0
    for number, state in powersim.states(real, log, moments, seed=1, samples=samples):
        place = room()
        powersim.materialise(state, real, place)
        outcome = stores.read_outcome(place, shape)
        assert outcome in ("equal", "CacheNotFoundError"), (number, outcome)
        assert outcome == "equal" or number < len(log), "the build had returned"
        stores.build(place, shape)
        assert stores.facts(place) == wanted, number
        assert stores.read_outcome(place, shape) == "equal", number
        stores.remove(place)
        checked, published = checked + 1, published + (outcome == "equal")
    return checked, published


@pytest.mark.parametrize(("shape", "first"), [("delta", 3), ("generic", 1)])
def test_a_power_cut_at_any_moment_loses_nothing_acknowledged(
    builds: FaultServer, room: Room, shape: str, first: int
) -> None:
    root = room()
    log = logged(builds, root, shape)
    checked, published = survive(root, log, room, shape, range(first, len(log), 6), samples=1)
    assert checked >= 80, checked
    assert 0 < published < checked


@pytest.mark.campaign
@pytest.mark.parametrize("shape", stores.SHAPES)
def test_every_state_after_a_power_cut(builds: FaultServer, room: Room, shape: str, reached: Reached) -> None:
    root = room()
    log = logged(builds, root, shape)
    checked, _ = survive(root, log, room, shape, range(len(log)), samples=30)
    assert reached("states", checked) >= 400


# A harness is trusted only while it finds what it is made to find.


def without(log: list[Call], unwanted: Callable[[Call], Any]) -> list[Call]:
    kept = [call for call in log if not unwanted(call)]
    assert len(kept) < len(log)
    return kept


MUTANTS: dict[str, Callable[[Call], Any]] = {
    "the manifest's data is not synced": lambda c: c.op in SYNC and "manifest.json" in c.path,
    "the manifest's directory is not synced": lambda c: c.op in SYNC and c.path.endswith("/processed"),
    "shards are not synced": lambda c: c.op in SYNC and ".lmdb" in c.path,
    "the generation's names are not synced": lambda c: (
        c.op in SYNC and "/gen-" in c.path and "." not in Path(c.path).name
    ),
    "the base graph is not synced": lambda c: c.op in SYNC and "/base_graph." in c.path,
    "the columns are not synced": lambda c: c.op in SYNC and "columns." in c.path,
    "the root's names are not synced": lambda c: c.op in SYNC and Path(c.path).name.startswith("trial"),
    "nothing is synced": lambda c: c.op in SYNC,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_simulation_notices_a_missing_sync(builds: FaultServer, room: Room, mutant: str) -> None:
    root = room()
    log = without(logged(builds, root, "delta"), MUTANTS[mutant])
    with pytest.raises(AssertionError):
        survive(root, log, room, "delta", range(len(log) - 4, len(log)), samples=20)
