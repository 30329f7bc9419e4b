"""An object read from its beginning to its end, by ranges."""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from torchcell_cache.remote.bucket import Bucket

_CHUNK = 8 << 20
_AHEAD = 2
_THREADS = 8


class Stream(io.RawIOBase):
    """An object read by ranges, the next one asked for while one is worked on: a broken connection costs one range."""

    def __init__(self, bucket: Bucket, name: str, size: int) -> None:
        super().__init__()
        self.bucket, self.name, self.size = bucket, name, size
        self._asked = self._arrived = 0
        self._coming: deque[Future[bytes]] = deque()

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as many as one request brings; one byte too many shows an object that is too long."""
        if self._arrived > 0 and self._arrived >= self.size:
            return b""
        if self.size <= _CHUNK:
            data = self._range(0, self.size) if not self._asked else b""
            self._asked = 1
        else:
            while len(self._coming) < _AHEAD and self._asked < self.size:
                stop = min(self._asked + _CHUNK, self.size)
                self._coming.append(_pool().submit(self._range, self._asked, stop))
                self._asked = stop
            data = self._coming.popleft().result() if self._coming else b""
        self._arrived = self._arrived + len(data) if data else self.size + 1
        return data

    def _range(self, start: int, stop: int) -> bytes:
        return self.bucket.read_range(self.name, start, stop, beyond=int(stop == self.size))

    def close(self) -> None:
        """Ask for nothing more."""
        while self._coming:
            self._coming.pop().cancel()
        super().close()


def _pool() -> ThreadPoolExecutor:
    global _POOL
    with _LOCK:
        if _POOL is None:
            _POOL = ThreadPoolExecutor(_THREADS, thread_name_prefix="torchcell_cache-ranges")
        return _POOL


_POOL: ThreadPoolExecutor | None = None
_LOCK = threading.Lock()


def _after_fork() -> None:
    global _LOCK, _POOL
    _LOCK, _POOL = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)
