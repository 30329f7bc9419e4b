"""The fault harness itself: a harness that finds nothing must be known to be able to find something."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
from faultlib import DATA, FOREVER, SYNC, Fault, FaultServer

from torchcell_cache.core.files import write_atomic

Fresh = Callable[[], Path]
CONTENT = b"new content " * 100


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_plainly(path: Path) -> str:
    """The careless way: no temporary name, one write that is believed, no sync."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, CONTENT)
    os.close(descriptor)
    return "written"


def write_carefully(path: Path) -> bool:
    return write_atomic(path, CONTENT)


def write_lmdb(path: Path, count: int) -> None:
    environment = lmdb.open(
        str(path), subdir=False, lock=False, map_size=1 << 20, sync=False, writemap=False, lib_version=0
    )
    with environment.begin(write=True) as transaction:
        for i in range(count):
            assert transaction.put(i.to_bytes(8, "big"), b"x" * 2000, append=True)
    environment.sync(True)
    environment.close()


def spawn_children(path: Path, count: int) -> None:
    for i in range(count):
        if os.fork() == 0:
            (path / f"child{i}").write_bytes(b"1")
            os._exit(0)
    for _ in range(count):
        os.wait()


def leave_an_orphan(path: Path) -> None:
    if os.fork() == 0:
        for i in itertools.count():
            (path / f"orphan{i % 4}").write_bytes(b"x")
    os.close(os.open(path / "ready", os.O_CREAT | os.O_WRONLY))


def sleep_long() -> None:
    time.sleep(1000)


def raise_odd() -> None:
    raise type("Local", (Exception,), {})("cannot be pickled")


def test_counts_the_calls_of_a_durable_write_in_their_order(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    trial = faults.run_trial(write_carefully, folder / "f", prefix=folder, log="data")
    assert (trial.outcome, trial.value) == ("ok", True)
    assert [call.op for call in trial.log] == ["create", "write", "fsync", "rename", "fsync"]
    assert trial.calls == 5
    assert trial.per_op == {"create": 1, "write": 1, "fsync": 2, "rename": 1}
    assert trial.log[1].data == CONTENT
    assert trial.log[3].path2 == str(folder / "f")
    assert trial.log[4].path == str(folder)


def test_only_paths_below_the_prefix_that_match_count(faults: FaultServer, fresh: Fresh) -> None:
    here, elsewhere = fresh(), fresh()
    assert faults.run_trial(write_carefully, elsewhere / "f", prefix=here).calls == 0
    beside = Path(f"{here}-beside")
    beside.mkdir()
    assert faults.run_trial(write_carefully, beside / "f", prefix=here).calls == 0
    trial = faults.run_trial(write_carefully, here / "f", prefix=here, fault=Fault(match=".tmp-"))
    assert trial.per_op == {"create": 1, "write": 1, "fsync": 1, "rename": 1}
    trial = faults.run_trial(write_carefully, here / "f", prefix=here, fault=Fault(ops=SYNC))
    assert trial.per_op == {"fsync": 2}


def test_kill_before_and_after_differ_by_exactly_that_call(faults: FaultServer, fresh: Fresh) -> None:
    for action, exists in (("kill_before", False), ("kill_after", True)):
        folder = fresh()
        trial = faults.run_trial(
            write_carefully, folder / "f", prefix=folder, fault=Fault(action, ops=["rename"])
        )
        assert (trial.outcome, trial.status, trial.fired) == ("killed", -signal.SIGKILL, 1)
        assert (folder / "f").exists() is exists


def test_kill_finds_the_hole_in_a_careless_write(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    (folder / "f").write_bytes(b"old")
    faults.run_trial(write_plainly, folder / "f", prefix=folder, fault=Fault("kill_torn", ops=["write"]))
    assert (folder / "f").read_bytes() == CONTENT[: len(CONTENT) // 2]


def test_short_write_is_reported_as_short(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    fault = Fault("short", ops=DATA, times=3)
    faults.run_trial(write_plainly, folder / "f", prefix=folder, fault=fault)
    assert (folder / "f").stat().st_size == len(CONTENT) // 2
    trial = faults.run_trial(write_carefully, folder / "g", prefix=folder, fault=fault)
    assert (folder / "g").read_bytes() == CONTENT
    assert (trial.fired, trial.per_op["write"]) == (3, 4)


def test_errno_once_and_for_ever(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    once = Fault("fail", ops=["create"], error=errno.ENOSPC)
    trial = faults.run_trial(write_plainly, folder / "f", prefix=folder, fault=once)
    assert trial.outcome == "raised"
    assert trial.error.errno == errno.ENOSPC
    assert not list(folder.iterdir())
    always = Fault("fail", times=FOREVER, error=errno.EIO)
    trial = faults.run_trial(write_carefully, folder / "f", prefix=folder, fault=always)
    assert trial.fired == trial.calls > 1


def test_failure_reported_although_done(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    fault = Fault("fail_after", ops=["create"], error=errno.EIO)
    assert faults.run_trial(write_plainly, folder / "f", prefix=folder, fault=fault).outcome == "raised"
    assert (folder / "f").exists()


def test_a_file_can_be_hidden_from_the_first_lookups(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    (folder / "f").write_bytes(b"there")
    fault = Fault("fail", ops=["open", "stat"], error=errno.ENOENT, times=2, match="/f")
    trial = faults.run_trial(look_until_seen, folder / "f", prefix=folder, fault=fault)
    assert trial.value == 2


def look_until_seen(path: Path) -> int:
    return next(misses for misses in itertools.count() if path.exists())


def test_stop_lets_the_test_look_and_then_goes_on(faults: FaultServer, fresh: Fresh) -> None:
    folder, seen = fresh(), []
    arguments = {"prefix": folder, "fault": Fault("stop_before", ops=["rename"])}
    look = lambda: seen.append((folder / "f").exists())  # noqa: E731
    trial = faults.run_trial(write_carefully, folder / "f", while_stopped=look, **arguments)
    assert (trial.outcome, trial.stops, seen) == ("ok", 1, [False])
    trial = faults.run_trial(write_carefully, folder / "f", while_stopped=lambda: False, **arguments)
    assert (trial.outcome, trial.stops) == ("killed", 1)


def test_reaches_the_writes_that_lmdb_makes_in_c(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    trial = faults.run_trial(write_lmdb, folder / "s.lmdb", 50, prefix=folder, log=True)
    assert trial.outcome == "ok"
    assert sum(trial.per_op.get(op, 0) for op in DATA) >= 3
    assert sum(trial.per_op.get(op, 0) for op in SYNC) >= 1
    assert {call.path for call in trial.log} == {str(folder / "s.lmdb")}


def test_an_lmdb_file_killed_at_any_call_is_partial_and_rebuilds_byte_identically(
    faults: FaultServer, fresh
) -> None:
    folder = fresh()
    whole = folder / "s.lmdb"
    calls = faults.run_trial(write_lmdb, whole, 50, prefix=folder).calls
    for at, action in itertools.product(range(1, calls + 1), ("kill_before", "kill_after", "kill_torn")):
        folder = fresh()
        trial = faults.run_trial(write_lmdb, folder / "s.lmdb", 50, prefix=folder, fault=Fault(action, at=at))
        assert trial.outcome == "killed"
        (folder / "s.lmdb").unlink(missing_ok=True)
        assert faults.run_trial(write_lmdb, folder / "s.lmdb", 50, prefix=folder).outcome == "ok"
        assert (folder / "s.lmdb").read_bytes() == whole.read_bytes()


def test_disk_full_reaches_python_through_lmdb(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    fault = Fault("fail", ops=DATA, at=2, error=errno.ENOSPC, times=FOREVER)
    trial = faults.run_trial(write_lmdb, folder / "s.lmdb", 50, prefix=folder, fault=fault)
    assert trial.outcome == "raised"
    assert isinstance(trial.error, lmdb.Error)


def test_the_count_goes_on_across_forks(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    assert faults.run_trial(spawn_children, folder, 5, prefix=folder).per_op == {"create": 5, "write": 5}
    folder = fresh()
    faults.run_trial(
        spawn_children, folder, 5, prefix=folder, fault=Fault("kill_before", at=3, ops=["create"])
    )
    assert len(names_in(folder)) == 4


def test_nobody_writes_any_more_when_a_trial_is_over(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    faults.run_trial(leave_an_orphan, folder, prefix=folder)
    before = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder)}
    time.sleep(0.02)
    assert {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder)} == before


def test_timeouts_and_exceptions_that_cannot_be_pickled_come_back(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    assert faults.run_trial(sleep_long, prefix=folder, timeout=0.1).outcome == "timeout"
    trial = faults.run_trial(raise_odd, prefix=folder)
    assert isinstance(trial.error, RuntimeError)
    assert "cannot be pickled" in str(trial.error)


def test_a_whole_command_can_be_put_under_a_fault(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    code = f"open({str(folder / 'f')!r}, 'w').write('x')"
    with faults.armed_env(folder, Fault("kill_before", ops=["write"])) as environment:
        assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -signal.SIGKILL
    assert faults.shim.counts()["fired"] == 1
    assert (folder / "f").read_bytes() == b""
