"""Locks on single bytes of one file: many files leased through one descriptor, shared between processes.

Linux's open file description locks (``man fcntl``): like ``flock`` the kernel frees them when their holder ends, however it
ends, and unlike it one descriptor holds any number of them. They belong to the descriptor, so a forked child opens its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from functools import partialmethod
from pathlib import Path

from torchcell_cache.core.lazy import AFTER_FORK, ThreadLock
from torchcell_cache.core.locks import close_quietly

_OTHERS = (errno.EAGAIN, errno.EACCES)
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class ByteLocks:
    """Shared and exclusive locks on the bytes of a file, by number.

    Args:
        path: The lock file; made when it is first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.supported = True
        self._descriptor: int | None = None
        AFTER_FORK.add(self)

    def is_there(self) -> bool:
        """Whether the path still leads to the file that the locks are on; else others lock another one."""
        if self._descriptor is None:  # after a fork: opened when it is needed
            return self.path.is_file()
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give all locks back."""
        descriptor, self._descriptor = self._descriptor, None
        close_quietly(descriptor)

    __del__ = close
    renew = close  # after a fork: the parent's descriptor keeps the parent's locks

    def open(self) -> int:
        """Open or make the lock file, once for all threads: locks on a second descriptor would never be given back."""
        with _OPENING:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, _FLAGS, 0o600)
            return self._descriptor

    def _set(self, kind: int, byte: int, wait: bool = False) -> bool:
        if not self.supported:
            return True
        descriptor = self.open()
        # struct flock: type, whence, start, length, and a pid that must be 0
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in _OTHERS:
                return False
            self.supported = False  # then nothing is evicted, and the same file may be fetched twice
        return True

    # A shared lock, also in place of an exclusive one; ``False`` if somebody has it exclusively, unless one waits.
    shared = partialmethod(_set, fcntl.F_RDLCK)
    # An exclusive lock, also in place of a shared one; ``False``, and nothing changes, if others hold it.
    exclusive = partialmethod(_set, fcntl.F_WRLCK)
    release = partialmethod(_set, fcntl.F_UNLCK)


_OPENING = ThreadLock()
