"""The process that forks the trials of ``faultlib``; started as a script with the fault library preloaded."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import memory


def _serve(connection: Connection, imports: Sequence[str]) -> None:
    """Fork for every request until the test hangs up."""
    for name in imports:
        importlib.import_module(name)
    memory.settle()
    # Orphans of a killed trial become our children, so that they can be waited for.
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        try:
            place, args, timeout = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        fn = _find(*place)
        result = os.memfd_create("result")
        child = os.fork()
        if child == 0:
            _run_child(fn, args, result)
        status, timed_out = _watch(child, time.monotonic() + timeout, connection)
        _reap_group(child)
        payload = os.pread(result, os.fstat(result).st_size, 0)
        os.close(result)
        connection.send_bytes(pickle.dumps(("done", status, timed_out, payload)))


def _find(module: str, name: str, folder: str) -> Callable[..., Any]:
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _run_child(fn: Callable[..., Any], args: bytes, result: int) -> None:
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    outcome: tuple[str, Any]
    try:
        outcome = ("ok", fn(*pickle.loads(args)))
    except BaseException as error:
        outcome = ("raised", error)
    try:
        payload = pickle.dumps(outcome)
        pickle.loads(payload)
    except Exception:
        payload = pickle.dumps(("raised", RuntimeError(repr(outcome[1]))))
    os.write(result, payload)
    os._exit(0)


def _watch(child: int, deadline: float, connection: Connection) -> tuple[int, bool]:
    """Wait for the child's end; report stops. Returns its status and whether it ran out of time."""
    timed_out = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            connection.send_bytes(pickle.dumps(("stopped",)))
            go_on = pickle.loads(connection.recv_bytes())
            os.kill(child, signal.SIGCONT if go_on else signal.SIGKILL)
        elif pid:
            return os.waitstatus_to_exitcode(status), timed_out
        elif not timed_out and time.monotonic() > deadline:
            timed_out = True
            os.kill(child, signal.SIGKILL)
        else:
            signal.sigtimedwait({signal.SIGCHLD}, max(0.0, min(deadline - time.monotonic(), 0.5)))


def _reap_group(group: int) -> None:
    """Kill and wait for everything the trial left running."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2:])
