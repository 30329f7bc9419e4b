"""Leases: who reads a generation holds shared ``flock``s on files of it, so that nobody removes it meanwhile.

One is on the generation's own manifest, which keeps ``gc`` from it; in a staged copy another one is on the file that says what it
is a copy of, which keeps the copy. The kernel frees them when the reader ends, however it ends. Opening a file for reading
is enough: nothing is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from pathlib import Path

from torchcell_cache.errors import CacheNotFoundError
from torchcell_cache.generation import GENERATION_MANIFEST, Generation

LEASE_NAME = ".staged.json"
"""In the root of a staged copy: says what it is a copy of."""

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CANNOT_TELL = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""No locks on this file system, or (NFS) none that keep others out for who may only read."""


def open_with_lease(root: Path) -> Generation:
    """Open the published generation, which is then kept for as long as it is in use.

    Raises:
        CacheNotFoundError: If there is no store, or the copy is being removed at this moment.
        CorruptManifestError: If the manifest is damaged.
    """
    copy = _staged(root)
    try:
        generation = Generation.open(root)
    except BaseException:
        _close(copy)
        raise
    with contextlib.suppress(BlockingIOError):  # then it is being removed, and reading will say so
        weakref.finalize(generation, _close, _take(generation.directory / GENERATION_MANIFEST))
    weakref.finalize(generation, _close, copy)
    return generation


def _staged(root: Path) -> int | None:
    try:
        return _take(root / LEASE_NAME)
    except BlockingIOError:
        raise CacheNotFoundError(
            f"the staged copy {root} is being removed", path=root, fix="torchcell-cache stage ... once more"
        ) from None


def _take(path: Path) -> int | None:
    """A descriptor with the shared lock; ``None`` where there is no such file or there are no locks.

    Raises:
        BlockingIOError: If somebody keeps readers out.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        _close(descriptor)
        raise
    except OSError:
        _close(descriptor)
        return None
    return descriptor


def try_to_remove(root: Path) -> int | None:
    """A descriptor that keeps readers of a staged copy out, ``None`` if somebody reads it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(root / LEASE_NAME, _FLAGS)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor
    return None


def is_in_use(directory: Path) -> bool:
    """Whether somebody reads a generation; ``False`` where the file system does not say."""
    try:
        descriptor = os.open(directory / GENERATION_MANIFEST, _FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _CANNOT_TELL
    finally:
        os.close(descriptor)
    return False


def _close(descriptor: int | None) -> None:
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        os.close(descriptor)
