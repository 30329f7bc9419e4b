from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcell_cache.core.locks import LOCK_NAME, BuilderLock, read_status, write_status
from torchcell_cache.core.process import ProcessId, runs_here, this_process
from torchcell_cache.errors import EXIT_INTERRUPTED, BuildInProgressError, UnsafeContentError

HOLDER = """
import sys
from torchcell_cache.core.locks import BuilderLock
lock = BuilderLock(sys.argv[1])
assert lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends or it is killed."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LOCK_NAME


def test_one_holder_at_a_time_and_free_again_after_release(path: Path) -> None:
    first, second = BuilderLock(path), BuilderLock(path)
    assert first.acquire()
    assert first.held
    assert first.exclusive
    assert not second.acquire()
    assert not second.held
    first.release()
    first.release()
    assert not first.held
    assert second.acquire()
    second.release()


def test_another_process_holds_it_and_is_named(path: Path) -> None:
    with holder(path) as process:
        lock = BuilderLock(path)
        assert not lock.acquire()
        owner = lock.owner()
        assert owner is not None
        assert (owner.pid, owner.host) == (process.pid, socket.gethostname())
        assert owner.is_alive()
        with pytest.raises(BuildInProgressError, match=f"pid {process.pid} on .* is building this") as caught:
            lock.__enter__()
        assert caught.value.code == EXIT_INTERRUPTED
        assert "torchcell-cache status" in str(caught.value)


def test_kill_frees_it_at_once_and_the_record_left_behind_is_known_to_be_dead(path: Path) -> None:
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        lock = BuilderLock(path)
        assert lock.owner().is_alive() is False
        assert lock.acquire()
        assert lock.owner() == this_process()
        lock.release()
    assert lock.owner() is None


def test_waits_as_long_as_it_is_told(path: Path) -> None:
    first, second = BuilderLock(path), BuilderLock(path)
    assert first.acquire()
    assert not second.acquire(timeout=0.05)
    timer = threading.Timer(0.1, first.release)
    timer.start()
    assert second.acquire(timeout=None)
    timer.join()
    second.release()


def test_with_statement(path: Path) -> None:
    with BuilderLock(path) as lock:
        assert lock.held
        with pytest.raises(RuntimeError, match="already held"):
            lock.acquire()
    assert not lock.held
    assert BuilderLock(path).acquire()


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from([b"", b"[]", b"[" * 100_000, b'{"pid": 1}', b"x" * (2 << 20), b'{"pid": Infinity}']),
        st.fixed_dictionaries(
            {
                key: st.one_of(st.integers(), st.text(), st.none(), st.lists(st.integers()), st.floats())
                for key in ("host", "boot_id", "namespace", "pid", "start_time")
            }
        ).map(lambda record: json.dumps(record).encode()),
    )
)
def test_any_content_is_tolerated(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LOCK_NAME
        path.write_bytes(content)
        lock = BuilderLock(path)
        owner = lock.owner()
        assert owner is None or type(owner.pid) is type(owner.start_time) is int
        assert owner is None or type(owner.host) is str
        assert owner is None or owner.is_alive() in (True, False, None)
        assert lock.acquire()
        assert lock.owner() == this_process()
        lock.release()


@pytest.mark.parametrize("moment", [0, 1, 2**31, 2**33])
def test_time_stamps_mean_nothing(path: Path, moment: int) -> None:
    with holder(path):
        os.utime(path, (moment, moment))
        assert not BuilderLock(path).acquire()
    os.utime(path, (moment, moment))
    assert BuilderLock(path).acquire()


def test_a_symbolic_link_is_refused_and_its_target_untouched(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("data")
    path.symlink_to(target)
    with pytest.raises(UnsafeContentError, match="symbolic link"):
        BuilderLock(path).acquire()
    assert BuilderLock(path).owner() is None
    assert target.read_text() == "data"


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("directory", "fifo"):
        with pytest.raises(UnsafeContentError, match="not a regular file"):
            BuilderLock(tmp_path / name).acquire()


def test_a_lock_file_removed_by_hand_does_no_harm(path: Path) -> None:
    first = BuilderLock(path)
    assert first.acquire()
    path.unlink()
    second = BuilderLock(path)
    assert second.acquire()
    first.release()
    assert not BuilderLock(path).acquire()
    second.release()


def test_a_dropped_lock_is_free(path: Path) -> None:
    assert BuilderLock(path).acquire()
    assert BuilderLock(path).acquire()


def test_life_is_told_by_pid_start_time_and_machine() -> None:
    me = this_process()
    assert me.is_alive()
    assert replace(me, start_time=me.start_time + 1).is_alive() is False
    assert replace(me, boot_id="another boot").is_alive() is None
    assert replace(me, namespace=me.namespace + 1).is_alive() is None
    assert replace(me, boot_id="").is_alive() is None
    assert replace(me, pid=-1).is_alive() is False
    assert runs_here(0, 0) is False
    assert ProcessId(**asdict(me)) == me


def test_a_process_that_only_waits_to_be_reaped_is_dead() -> None:
    code = "from torchcell_cache.core.process import this_process as me; print(me().pid, me().start_time, flush=True)"
    code += "; input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        pid, started = map(int, process.stdout.readline().split())
        assert runs_here(pid, started)
        process.kill()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert runs_here(pid, started) is False


def test_progress_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path) is None
    for done in range(3):
        assert write_status(path, {"done": done, "of": 3})
        assert read_status(path) == {"done": done, "of": 3}
    assert names_in(tmp_path) == ["status.json"]


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"done": ', b"\xff\xfe", b"[" * 100_000])
def test_damaged_progress_is_no_progress(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path / "status.json") is None


def test_progress_into_a_missing_directory_is_not_an_error(tmp_path: Path) -> None:
    assert not write_status(tmp_path / "missing" / "status.json", {})
