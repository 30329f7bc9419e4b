"""Workers of a build: whole shards from a queue, restarts, and a clean stop on SIGTERM."""

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
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from torchcell_cache import errors
from torchcell_cache.builder.shards import Report
from torchcell_cache.builder.worker import STOP_SIGNALS, serve
from torchcell_cache.errors import BuildFailedError, BuildInterruptedError, CacheError

GRACE_SECONDS = 20.0
"""Time a shard in work has to finish after SIGTERM; below SLURM's default KillWait of 30 s."""
_RETRIES = 2


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
        raise BuildInterruptedError(
            f"stopped cleanly by {name} at {percent} % ({done}/{total} shards complete)",
            fix="run the same command again to continue",
        )


def run_here(
    shards: Sequence[int], build: Callable[[int, Report], None], report: Report, stop: StopRequest, total: int
) -> None:
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
    """A fresh interpreter without torch; see :mod:`torchcell_cache.builder.worker`."""
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    package_root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, environment.get("PYTHONPATH"))))
    arguments = [str(theirs.fileno()), str(directory), str(scratch or "")]
    with _no_stop_signals():
        process = subprocess.Popen(
            [sys.executable, "-m", "torchcell_cache.builder.worker", *arguments],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    theirs.close()
    return _Worker(Connection(ours.detach()), process.kill, process.wait)


def forked_worker(build: Callable[[int, Report], None]) -> _Worker:
    """A fork of this process, for sources and processors that cannot be pickled or named by a path."""
    ours, theirs = multiprocessing.Pipe()
    with warnings.catch_warnings(), _no_stop_signals():
        # 3.12 warns of fork in a threaded process; the child sets one thread first
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=_forked, args=(ours, theirs, build))
        process.start()
    theirs.close()

    def join() -> int | None:
        process.join()
        return process.exitcode

    return _Worker(ours, process.kill, join)


def _forked(ours: Connection, theirs: Connection, build: Callable[[int, Report], None]) -> None:
    import torch

    ours.close()
    torch.set_num_threads(1)
    serve(theirs, build)


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
        while busy := [w for w in workers if w.shard is not None]:
            if stop.expired:
                break
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
        _dismiss(workers)


def _replace(worker: _Worker, deaths: dict[int, int], start: Callable[[], _Worker]) -> _Worker:
    status = worker.join()
    worker.connection.close()
    shard = worker.shard
    assert shard is not None
    deaths[shard] += 1
    if deaths[shard] >= _RETRIES:
        cause = (
            f"killed by {signal.Signals(-status).name}" if status and status < 0 else f"exited with {status}"
        )
        raise BuildFailedError(
            f"shard {shard}: its worker was {cause} {_RETRIES} times; likely out of memory",
            fix="lower num_workers and run the same command again; finished shards are kept",
        )
    fresh = start()
    fresh.give(shard)
    return fresh


def _rebuilt(message: dict[str, Any]) -> CacheError:
    """The worker's error as the same class here, its traceback attached."""
    kind = getattr(errors, str(message["type"]), None)
    if isinstance(kind, type) and issubclass(kind, CacheError):
        return kind(message["message"])
    return BuildFailedError(
        f"shard {message['failed']}: {message['type']}: {message['message']}\n{message['traceback']}",
        fix="correct the cause and run the same command again; finished shards are kept",
    )


def _dismiss(workers: list[_Worker]) -> None:
    for worker in workers:
        if worker.shard is None:
            with contextlib.suppress(OSError):
                worker.connection.send_bytes(b"")  # nothing more to do
        else:
            worker.kill()
    for worker in workers:
        worker.join()
        worker.connection.close()
