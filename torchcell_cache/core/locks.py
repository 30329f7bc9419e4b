"""The builder lock and the progress file: both only save work, nothing is ever correct because of them.

The lock is ``flock`` on ``processed/.lock``. The kernel frees it when its holder dies, so it is never stale
and never needs removing by hand; no clock is consulted. Where a file system has no locks a warning is given
and the build goes on: two builders then do the same work twice, and publishing still lets exactly one win.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from torchcell_cache.core.failures import storage_error, storage_errors
from torchcell_cache.core.files import open_regular, same_file, temp_path
from torchcell_cache.core.hints import StrPath
from torchcell_cache.core.lazy import AFTER_FORK
from torchcell_cache.core.process import ProcessId, this_process
from torchcell_cache.errors import BuildInProgressError, UnsafeContentError

LOCK_NAME = ".lock"
STATUS_NAME = ".status.json"

_MAX_JSON_BYTES = 1 << 20
# EBADF: of NFS, for a file that could only be opened for reading.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM}
_NO_LOCKS |= {errno.EINVAL, errno.EBADF}
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.01, 0.5
_LINE_SECONDS = 30.0


class BuilderLock:
    """Advisory lock of one store: at most one builder works, wherever the file system has locks.

    A forked child does not hold its parent's lock, so workers that outlive a killed builder keep nobody
    waiting.
    """

    def __init__(self, path: StrPath, shared: bool = False) -> None:
        self.path, self.shared = Path(path), shared
        self._descriptor: int | None = None
        self._unsupported = False
        AFTER_FORK.add(self)

    @property
    def held(self) -> bool:
        """Whether this object may build: it has the lock, or there are no locks on this file system."""
        return self._descriptor is not None or self._unsupported

    @property
    def exclusive(self) -> bool:
        """Whether the kernel really keeps all others out (false where the file system has no locks)."""
        return self._descriptor is not None and not self.shared

    def acquire(self, timeout: float | None = 0) -> bool:
        """Take the lock."""
        if self.held:
            raise RuntimeError(f"{self.path} is already held by this object")
        deadline = None if timeout is None else time.monotonic() + timeout
        wait = _FIRST_WAIT_S
        while True:
            if self._try_once():
                return True
            left = _LONGEST_WAIT_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(wait, left))
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def wait(self, console: Callable[[str], None], waits_for: Callable[[str], str]) -> None:
        """Take the lock however long it takes; says so at once and every 30 s, by what ``waits_for`` makes of its holder."""
        timeout = 0.0
        while not self.acquire(timeout):
            console(f"waiting for {waits_for(str(self.owner() or ''))}")
            timeout = _LINE_SECONDS

    def release(self) -> None:
        """Give the lock back; harmless if it is not held."""
        self._unsupported = False
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # a hint: a full disk must not fail a finished build
                if not self.shared:
                    os.ftruncate(self._descriptor, 0)
            with contextlib.suppress(OSError):  # frees it even if a child that knows no fork hooks has a copy
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def owner(self) -> ProcessId | None:
        """Who holds (or last held) the lock, or ``None`` if the file is missing, empty or unreadable."""
        return ProcessId.from_record(read_status(self.path))

    def __enter__(self) -> Self:
        if not self.held and not self.acquire():
            owner = self.owner()
            holder = "another process" if owner is None else str(owner)
            raise BuildInProgressError(
                f"{holder} is building this store ({self.path} is locked)",
                path=self.path,
                fix=f"wait for it, or watch it with: torchcell-cache status {shlex.quote(f'root={self.path.parent.parent}')}",
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __del__(self) -> None:
        self._close()

    def _try_once(self) -> bool:
        descriptor = self._open()
        if descriptor is None:
            return self._go_without("not permitted to open it")
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise storage_error(error.errno, self.path, "lock") or error from None
            return self._go_without(os.strerror(error.errno))
        if not same_file(os.fstat(descriptor), self.path):
            os.close(descriptor)  # removed between open and flock: a lock on it excludes nobody
            return self._try_once()
        self._descriptor = descriptor
        self._write_owner(descriptor)
        return True

    def _open(self) -> int | None:
        """Descriptor of the lock file, ``None`` if it is somebody else's who does not let us in."""
        with storage_errors(self.path, "lock"):
            try:
                return self._opened(os.O_RDWR | os.O_CREAT)
            except PermissionError:
                if not os.path.lexists(self.path):
                    raise
                with contextlib.suppress(PermissionError):
                    return self._opened(os.O_RDONLY)
        return None

    def _opened(self, flags: int) -> int:
        return open_regular(self.path, UnsafeContentError, f"remove {self.path}", flags)

    def _go_without(self, reason: str) -> bool:
        warnings.warn(
            f"no cross-node locking on this filesystem ({self.path}: {reason}); duplicate work possible, "
            "results stay correct",
            RuntimeWarning,
            stacklevel=4,
        )
        self._unsupported = True
        return True

    def _write_owner(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # read-only, full disk: the lock holds without its label
            os.ftruncate(descriptor, 0)
            if not self.shared:  # one record cannot name several holders
                os.pwrite(descriptor, json.dumps(asdict(this_process())).encode(), 0)

    def renew(self) -> None:
        """Close a forked child's copy: the lock then dies with the parent, not with the last of its workers."""
        self._close()
        self._unsupported = False

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        close_quietly(descriptor)


def close_quietly(descriptor: int | None) -> None:
    """Give a lock's descriptor back, if there is one."""
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def write_status(path: StrPath, status: dict[str, Any]) -> bool:
    """Replace the progress file, whole but not synced."""
    temporary = temp_path(path)
    data = json.dumps(status).encode()
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)  # noqa: PTH105
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def read_status(path: StrPath) -> dict[str, Any] | None:
    """A small JSON object, such as the last progress, from a file anybody may have damaged; ``None`` if there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            value = json.loads(file.read(_MAX_JSON_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
