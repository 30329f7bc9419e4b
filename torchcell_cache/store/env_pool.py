"""Open files of a process: one handle per file, the least recently used closed first, never one that is being read.

Closing unmaps a file, which must not happen under a thread that reads it with the interpreter's lock released. So a
handle is first retired, which raises :attr:`EnvPool.epoch`, and closed when every thread that reads began at that epoch or
later. A thread says when it begins and ends, holds on to no handle of an earlier epoch, and holds none while it waits.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

Key = tuple[int, int]
_MOST = 4096
_PATIENCE_S = 10.0
_FORK_POLL_S = 0.0002


class EnvPool:
    """The open handles of this process, keyed by device and inode; each is ``retired`` once it is about to be ``close()``d."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.pid = os.getpid()
        self.epoch = 0
        self.active: dict[int, int] = {}
        self._open: OrderedDict[Key, Any] = OrderedDict()
        self._retired: list[tuple[int, Key, Any]] = []
        self._fork_lock = threading.Lock()
        self._forking: int | None = None
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork_here, after_in_child=self._after_fork
        )

    def __len__(self) -> int:
        return len(self._open) if self.pid == os.getpid() else 0

    def get(self, key: Key, make: Callable[[], Any]) -> Any:
        """The handle of a file, made if there is none; not to be called between ``begin`` and ``end``.

        Others are retired to stay below half of the descriptors that the process may have.
        """
        with self.changed:
            self._drop_inherited()
            handle = self._open.get(key) or self._revive(key)
            if handle is None:
                self._make_room()
                # It may have come while we waited.
                handle = self._open.get(key) or self._revive(key) or make()
            self._open[key] = handle
            self._open.move_to_end(key)
            return handle

    def close(self, key: Key) -> None:
        """Retire the handle of a file if it is open; it is closed as soon as no thread is reading."""
        with self.changed:
            self._drop_inherited()
            if key in self._open:
                self._retire(key)
                self._sweep()

    def close_all(self) -> None:
        """Retire every handle; those that no thread is reading are closed at once."""
        with self.changed:
            self._drop_inherited()
            for key in list(self._open):
                self._retire(key)
            self._sweep()

    def begin(self) -> int:
        """Say that this thread starts to read; returns the epoch that its remembered handles must be of."""
        me = threading.get_ident()
        while True:
            epoch = self.active[me] = self.epoch
            if self._forking not in (None, me):
                del self.active[me]
                time.sleep(_FORK_POLL_S)
            elif epoch == self.epoch:  # whoever retires a handle or forks from now on sees us
                return epoch

    def end(self) -> None:
        """Say that this thread is done reading."""
        self.active.pop(threading.get_ident(), None)
        if self._retired:
            with self.changed:
                self._sweep()
                self.changed.notify_all()

    def _make_room(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while len(self._open) + len(self._retired) >= self._limit():
            if self._open:
                self._retire(next(iter(self._open)))
            self._sweep()
            if not self._open and self._retired:
                if time.monotonic() > deadline:
                    return
                self.changed.wait(0.05)

    def _sweep(self) -> None:
        """Close what was retired before the oldest read in progress began."""
        oldest = min(list(self.active.values()), default=self.epoch)
        done = [handle for epoch, _, handle in self._retired if epoch <= oldest]
        self._retired = [entry for entry in self._retired if entry[0] > oldest]
        for handle in done:
            handle.close()

    def _retire(self, key: Key) -> None:
        handle = self._open.pop(key)
        handle.retired = True
        self.epoch += 1
        self._retired.append((self.epoch, key, handle))

    def _revive(self, key: Key) -> Any:
        """A retired handle that is not closed yet; the same file cannot be opened twice in a process."""
        for position, (_, retired, handle) in enumerate(self._retired):
            if retired == key:
                del self._retired[position]
                handle.retired = False
                return handle
        return None

    @staticmethod
    def _limit() -> int:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return _MOST if soft < 0 else max(8, min(_MOST, soft // 2))

    def _drop_inherited(self) -> None:
        """Close what a fork left behind before anything is opened again in this process."""
        if self.pid != os.getpid():
            self.pid = os.getpid()
            for handle in [*self._open.values(), *(entry[2] for entry in self._retired)]:
                handle.close()
            self._open.clear()
            self._retired.clear()

    def _before_fork(self) -> None:
        """Let no thread be inside LMDB: a child that inherits such a handle would wait for ever when it closes it."""
        self._fork_lock.acquire()
        me = self._forking = threading.get_ident()
        deadline = time.monotonic() + _PATIENCE_S
        while any(thread != me for thread in list(self.active)) and time.monotonic() < deadline:
            time.sleep(_FORK_POLL_S)

    def _after_fork_here(self) -> None:
        self._forking = None
        self._fork_lock.release()

    def _after_fork(self) -> None:
        self._forking = None
        self._fork_lock = threading.Lock()
        self.epoch += 1
        self.active = {}  # other threads do not live in the child
        # The forking thread may not be the one that held it.
        self.changed = threading.Condition(threading.RLock())
