"""The builder lock on file systems without locks, with forks, and when its holder is killed or stopped."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import pytest
from faultlib import FOREVER, Fault, FaultServer

from torchcell_cache.core.locks import BuilderLock, write_status
from torchcell_cache.errors import StorageLostError, StorageReadOnlyError


def acquire(path: Path) -> tuple[bool, bool, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lock = BuilderLock(path)
        taken = lock.acquire()
        exclusive = lock.exclusive
        lock.release()
    return taken, exclusive, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES])
def test_without_locks_there_is_a_warning_and_work_goes_on(
    faults: FaultServer, tmp_path: Path, number: int
) -> None:
    fault = Fault("fail", ops=["flock"], error=number, times=FOREVER)
    trial = faults.run_trial(acquire, tmp_path / ".lock", prefix=tmp_path, fault=fault)
    taken, exclusive, messages = trial.value
    assert taken
    assert not exclusive
    assert len(messages) == 1
    assert "no cross-node locking on this filesystem" in messages[0]
    assert "duplicate work possible, results stay correct" in messages[0]


def test_a_lock_file_that_may_only_be_read_still_locks(faults: FaultServer, tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    fault = Fault("fail", ops=["create"], error=errno.EACCES)
    trial = faults.run_trial(acquire, tmp_path / ".lock", prefix=tmp_path, fault=fault)
    assert trial.value == (True, True, [])


def test_a_lock_file_that_may_not_be_opened_warns(faults: FaultServer, tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    fault = Fault("fail", ops=["create", "open"], error=errno.EACCES, times=FOREVER)
    trial = faults.run_trial(acquire, tmp_path / ".lock", prefix=tmp_path, fault=fault)
    assert trial.value[:2] == (True, False)
    assert len(trial.value[2]) == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_directory_that_cannot_be_written_is_an_error(
    faults: FaultServer, tmp_path: Path, number: int
) -> None:
    fault = Fault("fail", ops=["create"], error=number)
    trial = faults.run_trial(acquire, tmp_path / ".lock", prefix=tmp_path, fault=fault)
    assert isinstance(trial.error, StorageReadOnlyError)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_lock_that_the_server_lost_is_a_storage_error(
    faults: FaultServer, tmp_path: Path, number: int
) -> None:
    fault = Fault("fail", ops=["flock"], error=number)
    trial = faults.run_trial(acquire, tmp_path / ".lock", prefix=tmp_path, fault=fault)
    assert isinstance(trial.error, StorageLostError)
    assert ".lock" in str(trial.error)


def test_a_full_disk_does_not_stop_the_lock(faults: FaultServer, tmp_path: Path) -> None:
    fault = Fault("fail", ops=["pwrite", "ftruncate"], error=errno.ENOSPC, times=FOREVER)
    trial = faults.run_trial(acquire, tmp_path / ".lock", prefix=tmp_path, fault=fault)
    assert trial.value == (True, True, [])


def test_a_killed_builder_frees_the_lock_even_if_its_workers_live_on(
    faults: FaultServer, tmp_path: Path
) -> None:
    trial = faults.run_trial(fork_holder, tmp_path / ".lock", prefix=tmp_path)
    assert trial.value == (False, True)


def fork_holder(path: Path) -> tuple[bool, bool]:
    """Whether the lock is free while its holder lives, and once it is killed but its worker lives on."""
    ready_out, ready_in = os.pipe()
    holder = os.fork()
    if holder == 0:
        lock = BuilderLock(path)
        assert lock.acquire()
        if os.fork() == 0:
            os.write(ready_in, b"f" if lock.held else b".")
            while True:
                os.sched_yield()
        while True:
            os.sched_yield()
    assert os.read(ready_out, 1) == b"."
    mine = BuilderLock(path)
    before = mine.acquire()
    os.kill(holder, 9)
    os.waitpid(holder, 0)
    return before, mine.acquire()


def test_a_stopped_holder_keeps_the_lock(faults: FaultServer, tmp_path: Path) -> None:
    seen = []

    def look() -> None:
        lock = BuilderLock(tmp_path / ".lock")
        seen.append((lock.acquire(), lock.owner().is_alive()))

    fault = Fault("stop_before", ops=["create"], match="status")
    trial = faults.run_trial(
        hold_and_report, tmp_path / ".lock", prefix=tmp_path, fault=fault, while_stopped=look
    )
    assert trial.outcome == "ok"
    assert seen == [(False, True)]


def hold_and_report(path: Path) -> None:
    with BuilderLock(path):
        write_status(path.with_name("status"), {"done": 1})


def test_killed_while_writing_its_name_leaves_a_lock_to_take(faults: FaultServer, tmp_path: Path) -> None:
    calls = faults.run_trial(acquire, tmp_path / ".lock", prefix=tmp_path).calls
    for at in range(1, calls + 1):
        for action in ("kill_before", "kill_after", "kill_torn"):
            trial = faults.run_trial(acquire, tmp_path / ".lock", prefix=tmp_path, fault=Fault(action, at=at))
            assert trial.outcome == "killed"
            lock = BuilderLock(tmp_path / ".lock")
            assert lock.owner() is None or lock.owner().is_alive() is False
            assert lock.acquire()
            lock.release()


def test_progress_that_cannot_be_written_is_not_an_error(faults: FaultServer, tmp_path: Path) -> None:
    fault = Fault("fail", error=errno.ENOSPC, times=FOREVER)
    trial = faults.run_trial(write_status, tmp_path / "status", {"done": 1}, prefix=tmp_path, fault=fault)
    assert trial.value is False


def acquire_and_let_another_try(path: Path) -> tuple[bool, bool, bool]:
    mine = BuilderLock(path)
    return mine.acquire(), path.exists(), BuilderLock(path).acquire()


def test_a_file_removed_between_opening_and_locking_is_not_the_lock(
    faults: FaultServer, tmp_path: Path
) -> None:
    path = tmp_path / ".lock"
    fault = Fault("stop_before", ops=["flock"])
    arguments = {"prefix": tmp_path, "fault": fault, "while_stopped": path.unlink}
    assert faults.run_trial(acquire_and_let_another_try, path, **arguments).value == (True, True, False)
