"""Run a function in a child process and make its n-th file-system call go wrong.

    def test_kill(faults, tmp_path):                        # `faults` is the fixture in conftest.py
        trial = faults.run_trial(work, tmp_path, prefix=tmp_path)              # only count
        for at in range(1, trial.calls + 1):
            trial = faults.run_trial(work, fresh_dir, prefix=fresh_dir, fault=Fault("kill_after", at=at))
            assert trial.outcome == "killed"

`work` is a module-level function of a test module; arguments and result are pickled. One server process is
started under `LD_PRELOAD=faultshim.so`; it imports what the trials need once and forks for each trial, so a
trial takes milliseconds. The count and the fault are shared with everything the trial forks or executes.
After a trial all processes it left behind are killed and reaped: nobody writes any more when `run_trial`
returns.

For a whole command (say, the command line program) give `faults.armed_env(...)` to `subprocess.run`.

A fault meets the calls in `ops` on paths below `prefix` (a resolved path) that contain `match`; other calls
are not counted.

| action | what happens at call `at` and the `times - 1` calls after it |
|---|---|
| count | nothing |
| kill_before, kill_after | SIGKILL to the calling process before or after the call |
| kill_torn | half of the data is written, then SIGKILL (a call without data: as kill_after) |
| fail | the call is not made and fails with `error` |
| fail_after | the call is made and fails with `error` all the same (what NFS does to repeated requests) |
| short | half of the data is written, and the call says so |
| stop_before, stop_after | SIGSTOP; `while_stopped` runs in the test, then the trial goes on (or is killed) |
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOREVER = 1 << 62
DATA = ("write", "pwrite", "writev", "pwritev")
SYNC = ("fsync", "fdatasync")
NAMES = ("create", "mkdir", "rename", "link", "symlink", "unlink", "rmdir")
MUTATING = (*DATA, "copy", *SYNC, "ftruncate", "fallocate", *NAMES, "chmod")
_ENTRY = struct.Struct("<IIIIqqQQ")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and at which call (1 is the first); see the table above."""

    action: str = "count"
    at: int = 1
    ops: Sequence[str] = MUTATING
    error: int = 0
    times: int = 1
    match: str = ""


@dataclass(frozen=True)
class Call:
    """One logged call; ``data`` only if data was logged, ``offset`` also the length of an ftruncate."""

    op: str
    pid: int
    path: str
    path2: str
    result: int
    offset: int
    data: bytes


@dataclass
class Trial:
    """What became of one run.

    Attributes:
        outcome: ``ok``, ``raised``, ``killed`` (by a signal), ``exited`` (without returning), ``timeout``.
        value: What the function returned.
        error: What it raised; an exception that cannot be pickled becomes a ``RuntimeError`` of its text.
        status: Exit code, or minus the signal's number.
        calls: Calls that counted, of all processes of the trial.
        fired: How many of them the fault met.
        per_op: Calls by name of the operation.
        stops: How often the process stopped.
        log: The calls in order, if they were logged.
    """

    outcome: str
    value: Any = None
    error: BaseException | None = None
    status: int = 0
    calls: int = 0
    fired: int = 0
    per_op: dict[str, int] = field(default_factory=dict)
    stops: int = 0
    log: list[Call] = field(default_factory=list)


class Shim:
    """The compiled library and the state it shares with every process of a trial."""

    def __init__(self, library: Path, state: Path) -> None:
        self.library, self.state = library, state
        self._lib = ctypes.CDLL(str(library))
        self._lib.fault_arm.argtypes = [
            *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int),
            *(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_int),
        ]
        for name in ("fault_calls", "fault_fired", "fault_op_calls"):
            getattr(self._lib, name).restype = ctypes.c_uint64
        for name in ("fault_op_names", "fault_action_names"):
            getattr(self._lib, name).restype = ctypes.c_char_p
        self.ops: list[str] = self._lib.fault_op_names().decode().split()
        self.actions: list[str] = self._lib.fault_action_names().decode().split()
        if self._lib.fault_attach(os.fsencode(state)) != 0:
            raise OSError(f"cannot map {state}")

    def arm(self, prefix: Path, fault: Fault, log: Path | None = None, log_data: bool = False) -> None:
        """From now on the fault meets every process that has the library and this state."""
        mask = sum(1 << self.ops.index(op) for op in fault.ops)
        real = os.path.realpath(prefix)
        action = self.actions.index(fault.action)
        log_name = b"" if log is None else os.fsencode(log)
        arguments = (
            os.fsencode(real),
            fault.match.encode(),
            mask,
            action,
            fault.error,
            fault.at,
            fault.times,
        )
        if self._lib.fault_arm(*arguments, log_name, int(log_data)) != 0:
            raise ValueError("a path is too long for the fault library")

    def disarm(self) -> None:
        """No more counting, no more faults; the counts stay readable."""
        self._lib.fault_disarm()

    def counts(self) -> dict[str, Any]:
        """Calls since ``arm``, as the fields of ``Trial``."""
        per_op = {op: int(self._lib.fault_op_calls(i)) for i, op in enumerate(self.ops)}
        per_op = {op: count for op, count in per_op.items() if count}
        return {
            "calls": int(self._lib.fault_calls()),
            "fired": int(self._lib.fault_fired()),
            "per_op": per_op,
        }

    def read_log(self, path: Path) -> list[Call]:
        """The logged calls, in the order in which they returned."""
        data = path.read_bytes() if path.exists() else b""
        calls, at = [], 0
        while at < len(data):
            op, pid, n1, n2, result, offset, n3, _number = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size
            parts = []
            for n in (n1, n2, n3):
                parts.append(data[at : at + n])
                at += n
            calls.append(
                Call(
                    self.ops[op], pid, os.fsdecode(parts[0]), os.fsdecode(parts[1]), result, offset, parts[2]
                )
            )
        return calls


class FaultServer:
    """A warm process that forks one child per trial.

    Args:
        scratch: Directory for the compiled library, the shared state and logs; not below any trial's prefix.
        imports: Modules that the server imports before the first trial.
    """

    def __init__(self, scratch: Path, imports: Sequence[str] = ()) -> None:
        self.scratch = scratch
        self.shim = Shim(build_shim(scratch), scratch / "state")
        ours, theirs = Pipe()
        quiet = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, str(HERE / "faultserver.py"), str(theirs.fileno()), *imports]
        paths = os.pathsep.join([str(HERE.parents[2]), str(HERE), *sys.path])
        self._server = subprocess.Popen(
            command,
            env={**os.environ, **quiet, **self._preload(), "PYTHONPATH": paths},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._connection: Connection = ours

    def run_trial(
        self,
        fn: Callable[..., Any],
        *args: Any,
        prefix: Path,
        fault: Fault | None = None,
        timeout: float = 30,
        log: bool | str = False,
        while_stopped: Callable[[], bool | None] | None = None,
    ) -> Trial:
        """Run ``fn(*args)`` in a fork of the server under ``fault``.

        Args:
            fn: A module-level function.
            args: Its arguments.
            prefix: Only calls on paths below this directory count.
            fault: What goes wrong; by default nothing does, calls are counted.
            timeout: Seconds until the trial is killed.
            log: Whether to log the calls; ``"data"`` also logs what was written.
            while_stopped: Called whenever the trial stopped itself; returning ``False`` kills it.
        """
        log_path = self.scratch / "log" if log else None
        (self.scratch / "log").unlink(missing_ok=True)
        self.shim.arm(prefix, fault or Fault(), log_path, log == "data")
        try:
            source = inspect.getsourcefile(fn)
            place = (fn.__module__, fn.__qualname__, str(Path(source or ".").resolve().parent))
            self._connection.send_bytes(pickle.dumps((place, pickle.dumps(args), timeout)))
            stops = 0
            while (answer := self._receive())[0] == "stopped":
                stops += 1
                self._answer_stop(while_stopped)
        finally:
            self.shim.disarm()
        trial = _trial_of(*answer[1:])
        for name, value in self.shim.counts().items():
            setattr(trial, name, value)
        trial.stops = stops
        trial.log = self.shim.read_log(log_path) if log_path else []
        return trial

    @contextlib.contextmanager
    def armed_env(self, prefix: Path, fault: Fault | None = None) -> Iterator[Mapping[str, str]]:
        """Environment under which a command and all it starts meet the fault; counts are in ``self.shim``."""
        self.shim.arm(prefix, fault or Fault())
        try:
            yield {**os.environ, **self._preload()}
        finally:
            self.shim.disarm()

    def close(self) -> None:
        """End the server."""
        self._connection.close()
        self._server.wait(10)

    def _answer_stop(self, while_stopped: Callable[[], bool | None] | None) -> None:
        try:
            go_on = while_stopped is None or while_stopped() is not False
        except BaseException:
            self._connection.send_bytes(
                pickle.dumps(False)
            )  # a failed assertion must not leave the trial stopped
            self._receive()
            raise
        self._connection.send_bytes(pickle.dumps(go_on))

    def _preload(self) -> dict[str, str]:
        preload = " ".join(filter(None, [str(self.shim.library), os.environ.get("LD_PRELOAD", "")]))
        return {"LD_PRELOAD": preload, "FAULT_STATE": str(self.shim.state)}

    def _receive(self) -> tuple[Any, ...]:
        try:
            answer: tuple[Any, ...] = pickle.loads(self._connection.recv_bytes())
        except EOFError as error:
            raise RuntimeError(f"the fault server died with status {self._server.wait(10)}") from error
        return answer


def have_compiler() -> bool:
    """Whether the library can be built here."""
    return shutil.which("gcc") is not None


def build_shim(scratch: Path) -> Path:
    """Compile ``faultshim.c``."""
    library = scratch / "faultshim.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(HERE / "faultshim.c")], check=True)
    return library


def _trial_of(status: int, timed_out: bool, payload: bytes) -> Trial:
    if timed_out:
        return Trial("timeout", status=status)
    if status < 0:
        return Trial("killed", status=status)
    if not payload:
        return Trial("exited", status=status)
    outcome, value = pickle.loads(payload)
    if outcome == "raised":
        return Trial("raised", error=value, status=status)
    return Trial("ok", value=value, status=status)
