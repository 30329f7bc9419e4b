"""A build that is killed anywhere is finished by the same call, to the same bytes; readers never see part of one."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stores
from faultlib import DATA, Fault, FaultServer

import torchcell_cache as tc

Room = Callable[[], Path]


def assert_recovers(root: Path, shape: str, wanted: dict[str, Any], before: str | None = None) -> bool:
    """Readers find nothing or something whole; the same call finishes with the same bytes and leaves nothing behind.

    Returns whether the store was published before the call was repeated.
    """
    if before is None:
        was_published = stores.is_published(root)
    else:
        was_published = stores.facts(root)["content_digest"] != before
        with stores.fresh_handles():
            assert len(tc.PreprocessedDataset(root).__getitems__([0, 1])) == 2
    stores.build(root, shape, on_stale="error" if before is None else "rebuild")
    assert stores.facts(root) == wanted
    with stores.fresh_handles():
        stores.assert_all_samples(tc.PreprocessedDataset(root), shape)
    assert stores.temporaries(root) == []
    return was_published


def kills(calls: list[Any], every_action: bool) -> Iterator[tuple[str, int]]:
    """Before a call is after the one before it: "after" at each, and "torn" where data is written, say it all."""
    yield "kill_before", 1
    for at, call in enumerate(calls, start=1):
        yield "kill_after", at
        if every_action and at > 1:
            yield "kill_before", at
        if call.op in DATA:
            yield "kill_torn", at


def undisturbed(
    builds: FaultServer, root: Path, work: Callable[..., Any], *args: Any
) -> tuple[dict[str, Any], list[Any]]:
    trial = builds.run_trial(work, root, *args, prefix=root, log=True)
    assert trial.outcome == "ok", trial.error
    assert trial.calls > 80
    return stores.facts(root), trial.log


def kill_everywhere(builds: FaultServer, room: Room, shape: str, every_action: bool) -> int:
    wanted, log = undisturbed(builds, room(), stores.build, shape)
    published = []
    for action, at in kills(log, every_action):
        root = room()
        trial = builds.run_trial(stores.build, root, shape, prefix=root, fault=Fault(action, at=at))
        assert trial.outcome == "killed", (action, at, trial)
        published.append(assert_recovers(root, shape, wanted))
        stores.remove(root)
    assert published.count(True) >= 1
    assert published.count(False) > 80
    return len(published)


@pytest.mark.parametrize("shape", ["delta", "generic"])
def test_killed_at_every_call(builds: FaultServer, room: Room, shape: str) -> None:
    assert kill_everywhere(builds, room, shape, every_action=False) > 100


@pytest.mark.campaign
@pytest.mark.parametrize("shape", stores.SHAPES)
def test_killed_before_after_and_within_every_call(
    builds: FaultServer, room: Room, shape: str, reached: Callable[[str, int], int]
) -> None:
    assert reached("kills", kill_everywhere(builds, room, shape, every_action=True)) > 200


def replace_store(root: Path, shape: str) -> str:
    return stores.build(root, shape, on_stale="rebuild")


def kill_replacement(builds: FaultServer, room: Room, step: int) -> None:
    old_root = room()
    old = stores.build(old_root, "perturbation")
    wanted, log = undisturbed(builds, stores.copy_store(old_root, room() / "s"), replace_store, "delta")
    published = []
    for action, at in itertools.islice(kills(log, every_action=False), 0, None, step):
        root = stores.copy_store(old_root, room() / "s")
        trial = builds.run_trial(replace_store, root, "delta", prefix=root, fault=Fault(action, at=at))
        assert trial.outcome == "killed", (action, at, trial)
        published.append(assert_recovers(root, "delta", wanted, before=old))
        stores.remove(root)
    assert {True, False} == set(published)


def test_readers_keep_the_old_generation_while_its_replacement_is_killed(
    builds: FaultServer, room: Room
) -> None:
    kill_replacement(builds, room, step=3)


@pytest.mark.campaign
def test_replacement_killed_at_every_call(builds: FaultServer, room: Room) -> None:
    kill_replacement(builds, room, step=1)


def kill_again_and_again(builds: FaultServer, root: Path, shape: str, step: int) -> int:
    """Let every run get `step` calls further than nothing; returns the number of kills until a run survived."""
    for number in range(1, 1000):
        trial = builds.run_trial(stores.build, root, shape, prefix=root, fault=Fault("kill_after", at=step))
        if trial.outcome == "ok":
            return number - 1
    raise AssertionError("no progress")


@pytest.mark.parametrize(("shape", "step"), [("delta", 65), ("generic", 55)])
def test_a_build_killed_again_and_again_gets_there(
    builds: FaultServer, room: Room, shape: str, step: int
) -> None:
    wanted, _ = undisturbed(builds, room(), stores.build, shape)
    root = room()
    assert kill_again_and_again(builds, root, shape, step) >= 2
    assert stores.facts(root) == wanted
    assert stores.temporaries(root) == []


# Random moments, with worker processes: the clock decides, not a count of calls.


@pytest.fixture
def adopted() -> Iterator[None]:
    """Workers of a killed builder become our children, so that their end can be waited for."""
    set_child_subreaper = 36
    libc = ctypes.CDLL(None)
    libc.prctl(set_child_subreaper, 1, 0, 0, 0)
    yield
    libc.prctl(set_child_subreaper, 0, 0, 0, 0)


def wait_for_group(group: int) -> None:
    """Workers of a killed parent end by themselves; nothing of them may be left writing."""
    deadline = time.monotonic() + 30
    with contextlib.suppress(ChildProcessError):
        while True:
            assert time.monotonic() < deadline, "workers outlive their parent"
            if os.waitpid(-group, os.WNOHANG) == (0, 0):
                time.sleep(0.005)


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def forked_build(root: Path, shape: str, workers: int, report: int) -> None:
    os.setpgid(0, 0)
    os.write(report, b"x")
    stores.build(root, shape, workers, shard_size=2)


def random_kill(root: Path, shape: str, victim: str, delay: float) -> tuple[int, bool]:
    """Fork a build with two workers and kill part of it after a while.

    Returns the builder's exit status and whether the signal met a living process.
    """
    out, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(out)
            forked_build(root, shape, 2, report)
            status = 0
        finally:
            os._exit(status)
    os.close(report)
    os.read(out, 1)
    os.close(out)
    time.sleep(delay)
    if victim == "group":
        os.killpg(pid, signal.SIGKILL)
    elif victim == "parent":
        os.kill(pid, signal.SIGKILL)
    elif victim == "worker":
        children = children_of(pid)
        for child in children[:1]:
            os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    wait_for_group(pid)
    return status, bool(children) if victim == "worker" else status == -signal.SIGKILL


def kill_at_random(room: Room, shape: str, trials: int, seed: int) -> None:
    undisturbed_root = room()
    stores.arguments(shape)
    stores.build(undisturbed_root, shape, 2, shard_size=2)
    wanted, chance, spans = stores.facts(undisturbed_root), random.Random(seed), []
    for _ in range(2):  # as long as a build takes where it is killed
        begun = time.monotonic()
        assert random_kill(room(), shape, "nobody", 0) == (0, False)
        spans.append(time.monotonic() - begun)
    victims = itertools.cycle(("group", "parent", "worker"))
    hits = 0
    for number, victim in zip(range(trials), victims, strict=False):
        root, delay = room(), chance.uniform(0, 0.8 * min(spans))
        status, hit = random_kill(root, shape, victim, delay)
        hits += hit
        if victim == "worker":
            assert status == 0, f"trial {number} of seed {seed}: one dead worker must not stop the build"
        # It may have died between publishing and its end; then what is there is complete.
        assert stores.is_published(root) is (status == 0) or stores.facts(root) == wanted
        stores.build(root, shape, 2, shard_size=2)
        assert stores.facts(root) == wanted, f"trial {number} of seed {seed}"
        with stores.fresh_handles():
            stores.assert_all_samples(tc.PreprocessedDataset(root), shape)
        assert stores.temporaries(root) == []
        stores.remove(root)
    assert hits >= 0.6 * trials, hits


@pytest.mark.parametrize(("shape", "trials"), [("delta", 15), ("generic", 24)])
@pytest.mark.usefixtures("adopted")
def test_killed_at_random_moments_with_workers(room: Room, shape: str, trials: int) -> None:
    kill_at_random(room, shape, trials, seed=1)


@pytest.mark.campaign
@pytest.mark.parametrize("hundred", range(10))
@pytest.mark.parametrize("shape", ["delta", "generic"])
@pytest.mark.usefixtures("adopted")
def test_killed_at_a_thousand_random_moments_with_workers(room: Room, shape: str, hundred: int) -> None:
    kill_at_random(room, shape, 100, seed=int(time.time()))
