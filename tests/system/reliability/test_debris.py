"""Nothing is left behind: a command that is killed and given again leaves the files that an undisturbed one leaves."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stores
from commands import BEFORE, SIZE, append, build, damage, prepared, repair, subset, tree, update
from faultlib import FOREVER, Fault, FaultServer

import torchcell_cache as tc
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.errors import BuildInProgressError, CacheError, SettingError


def killed_and_given_again(builds: FaultServer, room: Callable[[], Path], command: Any, kills: int) -> int:
    place = prepared(room, command)
    trial = builds.run_trial(command, place, prefix=place, log=True)
    assert trial.outcome == "ok", trial.error
    wanted = tree(place)
    stores.remove(place)
    points = sorted({1 + k * (trial.calls - 1) // kills for k in range(kills + 1)})
    for number, at in enumerate(points):
        place, action = prepared(room, command), ("kill_before", "kill_after")[number % 2]
        trial = builds.run_trial(command, place, prefix=place, fault=Fault(action, at=at))
        # Threads that copy do not make the same number of calls each time: near the end it may be over before.
        assert trial.outcome == "killed" or (trial.outcome == "ok" and at > 0.9 * points[-1]), (
            action,
            at,
            trial,
        )
        with stores.fresh_handles():
            command(place)
        assert tree(place) == wanted, (action, at)
        stores.remove(place)
    return len(points)


@pytest.mark.parametrize("command", BEFORE, ids=lambda command: command.__name__)
def test_killed_and_given_again(builds: FaultServer, room: Callable[[], Path], command: Any) -> None:
    killed_and_given_again(builds, room, command, kills=4)


@pytest.mark.campaign
@pytest.mark.parametrize("command", BEFORE, ids=lambda command: command.__name__)
def test_killed_at_every_call_and_given_again(
    builds: FaultServer, room: Callable[[], Path], command: Any, reached: Callable[[str, int], int]
) -> None:
    reached("kills", killed_and_given_again(builds, room, command, kills=10_000))


ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ESTALE)


def refused_and_given_again(builds: FaultServer, room: Callable[[], Path], command: Any, cases: int) -> int:
    """One call is refused, or all from one on, or two in two runs; then the command is given undisturbed."""

    place = prepared(room, command)
    calls = builds.run_trial(command, place, prefix=place).calls
    wanted, raised = tree(place), 0
    stores.remove(place)
    for case in range(cases):
        place, ats, chance = prepared(room, command), [1 + case * calls // cases], random.Random(case)
        if case % 3 == 2:
            ats.append(max(1, calls - ats[0]))
        for at in ats:
            fault = Fault("fail", at=at, error=chance.choice(ERRORS), times=chance.choice((1, FOREVER)))
            trial = builds.run_trial(command, place, prefix=place, fault=fault)
            assert trial.outcome in ("ok", "raised"), (case, at, trial)
            raised += trial.outcome == "raised"
            assert trial.error is None or isinstance(trial.error, CacheError), (case, at, trial.error)
        with stores.fresh_handles():
            command(place)
        assert tree(place) == wanted, (case, ats)
        stores.remove(place)
    return raised


@pytest.mark.parametrize("command", BEFORE, ids=lambda command: command.__name__)
def test_refused_and_given_again(builds: FaultServer, room: Callable[[], Path], command: Any) -> None:
    assert refused_and_given_again(builds, room, command, cases=4) >= 1


@pytest.mark.campaign
@pytest.mark.parametrize("command", BEFORE, ids=lambda command: command.__name__)
def test_refused_everywhere_and_given_again(
    builds: FaultServer, room: Callable[[], Path], command: Any
) -> None:
    assert refused_and_given_again(builds, room, command, cases=150) >= 20


@pytest.mark.parametrize("number", ["EPERM", "EACCES", "EROFS", "EXDEV", "EMLINK", "ENOTSUP", "ENOSYS"])
def test_where_links_are_refused_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    def refuse(source: Any, target: Any, **more: Any) -> None:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)), source, None, target)

    build(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    append(tmp_path)
    subset(tmp_path)
    damage(tmp_path)
    repair(tmp_path)
    monkeypatch.undo()
    assert tc.verify(tmp_path / "store", level="full", progress=False).ok
    assert len(tc.PreprocessedDataset(tmp_path / "store")) == SIZE + 7
    assert len(tc.PreprocessedDataset(tmp_path / "smaller")) == 3
    assert stores.temporaries(tmp_path) == []


def test_gc_waits_for_a_writer(tmp_path: Path) -> None:
    build(tmp_path)
    update(tmp_path)
    lock = BuilderLock(tmp_path / "store" / "processed" / LOCK_NAME)
    assert lock.acquire()
    with pytest.raises(BuildInProgressError):
        tc.gc(tmp_path / "store", keep=1, wait=False)
    later = threading.Timer(0.3, lock.release)
    later.start()
    assert len(tc.gc(tmp_path / "store", keep=1, wait=30)) == 1
    later.join()
    with pytest.raises(SettingError, match="expected seconds"):
        tc.gc(tmp_path / "store", wait="long")  # type: ignore[arg-type]
