"""Workers of a build: whole shards from a queue, restarts, and a clean stop on SIGTERM.

``python -m torchcell_cache.builder.workers <fd> <directory> <scratch>`` is the numpy-only worker of structured builds: a fresh
interpreter that never imports torch and never re-imports the caller's script.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from torchcell_cache import errors
from torchcell_cache.builder.shards import PLAN_FILE, Report, ShardPlan, StructuredMaker, build_shard
from torchcell_cache.errors import BuildFailedError, BuildInterruptedError, CacheError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE_SECONDS = 20.0
"""Time a shard in work has to finish after SIGTERM; below SLURM's default KillWait of 30 s."""
_RETRIES = 2

Build = Callable[[int, Report], object]
"""Builds one shard."""


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGUSR1 while a build runs and restores the caller's handlers afterwards."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen while the ``with`` body runs; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is None:
            self.signal, self.at = number, time.monotonic()
        else:  # asked twice: no more grace
            self.at = -GRACE_SECONDS

    @property
    def expired(self) -> bool:
        """Whether the grace period is over."""
        return self.signal is not None and time.monotonic() - self.at > GRACE_SECONDS

    def raise_interrupted(self, done: int, total: int) -> None:
        """Stop the build with the error that says how to go on."""
        name = signal.Signals(self.signal or signal.SIGTERM).name
        percent = 100 * done // max(total, 1)
        what = f"stopped cleanly by {name} at {percent} % ({done}/{total} shards complete)"
        raise BuildInterruptedError(what, fix="run the same command again to continue")


def run_here(shards: Sequence[int], build: Build, report: Report, stop: StopRequest, total: int) -> None:
    """Build the shards in this process, stopping between chunks once the grace period is over."""

    def watched(count: int, size: int) -> None:
        report(count, size)
        if stop.expired:
            stop.raise_interrupted(total - len(shards) + finished, total)

    finished = 0
    for finished, shard in enumerate(shards):
        if stop.signal is not None:
            stop.raise_interrupted(total - len(shards) + finished, total)
        build(shard, watched)


def _serve(connection: Connection, build: Build) -> None:
    """Build the shards asked for over ``connection`` until it closes; messages are JSON, never pickles."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent decides; a shard in work is finished or dropped
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def report(count: int, size: int) -> None:
        connection.send_bytes(json.dumps({"samples": count, "bytes": size}).encode())

    parent = os.getppid()
    with contextlib.suppress(EOFError, OSError):
        while True:
            while not connection.poll(0.25):
                if os.getppid() != parent:  # killed; a forked sibling may keep the pipe open
                    return
            request = connection.recv_bytes()
            if not request:
                return
            reply: dict[str, object] = {"done": int(request)}
            try:
                build(int(request), report)
            except Exception as error:
                kind, text = type(error).__name__, traceback.format_exc()
                reply = {"failed": int(request), "type": kind, "message": str(error), "traceback": text}
            connection.send_bytes(json.dumps(reply).encode())


class _Worker:
    """One process and its end of the connection."""

    def __init__(
        self, connection: Connection, kill: Callable[[], None], join: Callable[[], int | None]
    ) -> None:
        self.connection, self.kill, self.join = connection, kill, join
        self.shard: int | None = None

    def give(self, shard: int) -> None:
        """Ask for a shard; a worker that has died meanwhile is noticed when its answer is awaited."""
        self.shard = shard
        with contextlib.suppress(OSError):
            self.connection.send_bytes(str(shard).encode())


@contextlib.contextmanager
def _no_stop_signals() -> Iterator[None]:
    """Hold stop signals back while a worker starts: Ctrl-C goes to the whole group, and the parent decides.

    The worker inherits the mask and lifts it once it ignores them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def light_worker(directory: Path, scratch: Path | None) -> _Worker:
    """A fresh interpreter without torch that runs this module."""
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    package_root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, environment.get("PYTHONPATH"))))
    arguments = [str(theirs.fileno()), str(directory), str(scratch or "")]
    with _no_stop_signals():
        process = subprocess.Popen(
            [sys.executable, "-m", "torchcell_cache.builder.workers", *arguments],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    theirs.close()
    return _Worker(Connection(ours.detach()), process.kill, process.wait)


def _light(descriptor: str, directory: str, scratch: str) -> None:
    where = Path(directory)
    plan = ShardPlan.from_bytes((where / PLAN_FILE).read_bytes())
    place, maker = Path(scratch) if scratch else None, StructuredMaker.open(where, plan)
    with Connection(int(descriptor)) as connection:
        _serve(connection, partial(build_shard, where, plan, maker, scratch=place))


def forked_worker(build: Build) -> _Worker:
    """A fork of this process, for sources and processors that cannot be pickled or named by a path."""
    import torch

    def work() -> None:
        ours.close()
        torch.set_num_threads(1)
        _serve(theirs, build)

    ours, theirs = multiprocessing.Pipe()
    with warnings.catch_warnings(), _no_stop_signals():
        # 3.12 warns of fork in a threaded process; the child sets one thread first
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
    theirs.close()

    def join() -> int | None:
        process.join()
        return process.exitcode

    return _Worker(ours, process.kill, join)


def run_workers(
    shards: Sequence[int],
    start: Callable[[], _Worker],
    count: int,
    report: Report,
    stop: StopRequest,
    total: int,
) -> None:
    """Hand the shards to ``count`` workers.

    Raises:
        BuildFailedError: If a shard fails, or its worker dies more than twice.
        BuildInterruptedError: If a signal asked to stop; shards in work were finished or dropped.
    """
    queue, deaths, finished = deque(shards), dict.fromkeys(shards, 0), 0
    workers = [start() for _ in range(min(count, len(shards)))]
    try:
        for worker in workers:
            worker.give(queue.popleft())
        while (busy := [w for w in workers if w.shard is not None]) and not stop.expired:
            for ready in wait([w.connection for w in busy], timeout=0.5):
                worker = next(w for w in busy if w.connection is ready)
                try:
                    message: dict[str, Any] | None = json.loads(worker.connection.recv_bytes())
                except (EOFError, OSError):
                    message = None
                if message is None and stop.signal is not None:
                    worker.shard = None  # whoever asked us to stop may have killed it: its shard is dropped
                elif message is None:
                    workers.remove(worker)
                    workers.append(_replace(worker, deaths, start))
                elif "samples" in message:
                    report(int(message["samples"]), int(message["bytes"]))
                elif "failed" in message:
                    raise _rebuilt(message)
                else:
                    finished += 1
                    worker.shard = None
                    if queue and stop.signal is None:
                        worker.give(queue.popleft())
        if stop.signal is not None and finished < len(shards):
            stop.raise_interrupted(total - len(shards) + finished, total)
    finally:
        for worker in workers:
            if worker.shard is not None:
                worker.kill()
            with contextlib.suppress(OSError):
                worker.connection.send_bytes(b"")  # nothing more to do
        for worker in workers:
            worker.join()
            worker.connection.close()


def _replace(worker: _Worker, deaths: dict[int, int], start: Callable[[], _Worker]) -> _Worker:
    status, shard = worker.join() or 0, worker.shard
    worker.connection.close()
    assert shard is not None
    deaths[shard] += 1
    if deaths[shard] >= _RETRIES:
        cause = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
        what = f"shard {shard}: its worker was {cause} {_RETRIES} times; likely out of memory"
        fix = "lower num_workers and run the same command again; finished shards are kept"
        raise BuildFailedError(what, fix=fix)
    fresh = start()
    fresh.give(shard)
    return fresh


def _rebuilt(message: dict[str, Any]) -> CacheError:
    """The worker's error as the same class here, its traceback attached."""
    kind = getattr(errors, str(message["type"]), None)
    if isinstance(kind, type) and issubclass(kind, CacheError):
        return kind(message["message"])
    what = f"shard {message['failed']}: {message['type']}: {message['message']}\n{message['traceback']}"
    fix = "correct the cause and run the same command again; finished shards are kept"
    return BuildFailedError(what, fix=fix)


if __name__ == "__main__":
    _light(*sys.argv[1:])
