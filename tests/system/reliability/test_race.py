"""Builders and readers at the same time, with and without locks: one publishes, all end with the same store."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stores
from faultlib import FOREVER, Fault, FaultServer

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, CacheNotFoundError, StaleCacheError
from torchcell_cache.store.manifest import processed_dir

Room = Callable[[], Path]


def fork(work: Callable[[], Any]) -> int:
    """Run in a child; exit status 0, or the error's code with its text on standard error."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            work()
            status = 0
        except CacheError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            status = error.code
        finally:
            os._exit(status)
    return pid


def statuses(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def watch(root: Path) -> None:
    """A reader that keeps trying: nothing, then the whole store, and never anything else."""
    while True:
        try:
            dataset = tc.PreprocessedDataset(root)
        except CacheNotFoundError:
            continue
        stores.assert_all_samples(dataset, "delta")
        return


def race(root: Path, shape: str, builders: int, readers: int, storage: str) -> list[int]:
    """Exit statuses of builders and readers started together."""
    gate_out, gate_in = os.pipe()

    def start(work: Callable[[], Any]) -> int:
        def wait_then_work() -> None:
            os.close(gate_in)
            os.read(gate_out, 1)  # returns for all of them when the last writer closes
            work()

        return fork(wait_then_work)

    pids = [start(lambda: stores.build(root, shape, storage=storage)) for _ in range(builders)]
    pids += [start(lambda: watch(root)) for _ in range(readers)]
    os.close(gate_out)
    os.close(gate_in)
    return statuses(pids)


def races(root: Path, trials: int, builders: int, readers: int, storage: str) -> list[dict[str, Any]]:
    outcomes = []
    for number in range(trials):
        place = root / str(number)
        place.mkdir()
        assert race(place, "delta", builders, readers, storage) == [0] * (builders + readers)
        found = stores.facts(place)
        assert [p.name for p in processed_dir(place).glob("gen-*")] == [found["generation"]]
        assert stores.temporaries(place) == []
        outcomes.append(found)
    return outcomes


@pytest.mark.parametrize("locks", [True, False])
def test_racing_builders_all_end_with_the_same_store(builds: FaultServer, room: Room, locks: bool) -> None:
    root = room()
    stores.build(root / "alone", "delta")
    fault = Fault() if locks else Fault("fail", ops=["flock"], error=errno.ENOSYS, times=FOREVER)
    trial = builds.run_trial(races, root, 6, 4, 2, "delta", prefix=root, fault=fault, timeout=60)
    assert trial.outcome == "ok", trial.error
    assert trial.value == [stores.facts(root / "alone")] * 6
    assert locks or trial.fired >= 6


def test_racing_builders_that_choose_the_storage_themselves_agree(builds: FaultServer, room: Room) -> None:
    """What is measured differs from process to process; what the first one chose holds for all."""
    root = room()
    trial = builds.run_trial(races, root, 4, 6, 0, "auto", prefix=root, timeout=60)
    assert trial.outcome == "ok", trial.error


@pytest.mark.campaign
@pytest.mark.parametrize("fifty", range(20))
@pytest.mark.parametrize("locks", [True, False])
def test_a_thousand_races_of_eight(builds: FaultServer, room: Room, locks: bool, fifty: int) -> None:
    root = room()
    fault = Fault() if locks else Fault("fail", ops=["flock"], error=errno.ENOSYS, times=FOREVER)
    trial = builds.run_trial(races, root, 50, 8, 4, "delta", prefix=root, fault=fault, timeout=600)
    assert trial.outcome == "ok", trial.error
    assert all(found == trial.value[0] for found in trial.value)


def take_over(room: Room, trials: int, seed: int, ranks: int = 6) -> None:
    """All start at once, whoever builds is killed at a random moment, another one takes over."""
    chance = random.Random(seed)
    stores.arguments("generic")
    for number in range(trials):
        root = room()
        begun = time.monotonic()
        stores.build(root / "alone", "generic", shard_size=1)
        span = time.monotonic() - begun
        pids = [
            fork(lambda root=root: stores.build(root / "raced", "generic", shard_size=1))
            for _ in range(ranks)
        ]
        time.sleep(chance.uniform(0.2, 1.0) * span)
        victims = holders(root / "raced", pids)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        found = dict(zip(pids, statuses(pids), strict=True))
        assert {found[pid] for pid in pids if pid not in victims} == {0}, (
            f"trial {number} of seed {seed}: {found}"
        )
        assert stores.facts(root / "raced") == stores.facts(root / "alone")
        assert stores.temporaries(root / "raced") == []
        stores.remove(root)


def holders(root: Path, pids: list[int]) -> list[int]:
    """Who says in the lock file that he builds; all but one if it cannot be read."""
    import json

    try:
        pid = json.loads((processed_dir(root) / ".lock").read_text())["pid"]
    except (OSError, ValueError, KeyError):
        return pids[:-1]
    return [pid] if pid in pids else []


def test_when_the_builder_is_killed_a_waiting_one_takes_over(room: Room) -> None:
    take_over(room, trials=8, seed=3)


@pytest.mark.campaign
@pytest.mark.parametrize("fifty", range(10))
def test_five_hundred_take_overs(room: Room, fifty: int) -> None:
    take_over(room, trials=50, seed=int(time.time()), ranks=8)


def test_builders_of_different_things_do_not_replace_each_other(room: Room) -> None:
    """Whoever comes second learns that the store is not what it wanted; nothing is silently overwritten."""
    for _ in range(5):
        root = room()
        pids = [
            fork(lambda root=root, storage=storage: stores.build(root, storage))
            for storage in ("delta", "perturbation", "full")
        ]
        assert sorted(statuses(pids)) == [0, StaleCacheError.code, StaleCacheError.code]
        assert stores.read_outcome(root, tc.PreprocessedDataset(root).storage) == "equal"


def test_a_lock_file_of_any_content_needs_no_hand(room: Room) -> None:
    for content in (b"", b"garbage", b"\x80\x05", b'{"pid": 1}', b"[]", os.urandom(100), b"9" * 5000):
        root = room()
        processed_dir(root).mkdir()
        (processed_dir(root) / ".lock").write_bytes(content)
        stores.build(root, "perturbation")
        assert stores.read_outcome(root, "perturbation") == "equal"


def test_no_clock_decides(room: Room) -> None:
    """Files from tomorrow or from 1970 are as good as others."""
    root = room()
    stores.build(root, "delta")
    wanted = stores.facts(root)
    for when in (0, 2_000_000_000):
        for path in root.rglob("*"):
            os.utime(path, (when, when))
        assert stores.read_outcome(root, "delta") == "equal"
        (processed_dir(root) / "manifest.json").unlink()
        stores.build(root, "delta")
        assert stores.facts(root) == wanted
