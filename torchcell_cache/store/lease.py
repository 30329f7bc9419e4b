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
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

from torchcell_cache.core.locks import close_quietly
from torchcell_cache.errors import CacheNotFoundError
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import MANIFEST_NAME, Manifest, manifest_path, processed_dir

LEASE_NAME = ".staged.json"
"""In the root of a staged copy: says what it is a copy of."""

T = TypeVar("T")
_TRIES = 5
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CANNOT_TELL = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""No locks on this file system, or (NFS) none that keep others out for who may only read."""


def open_with_lease(root: Path) -> Generation:
    """Open the published generation, which is then kept for as long as it is in use.

    Raises:
        CacheNotFoundError: If there is no store, or the copy is being removed at this moment.
        CorruptManifestError: If the manifest is damaged.
    """
    try:
        copy = _take(root / LEASE_NAME)
    except BlockingIOError:
        said = f"the staged copy {root} is being removed"
        raise CacheNotFoundError(said, path=root, fix="torchcell-cache stage ... once more") from None
    try:
        generation, lease = _with_lease(root, Generation.open, lambda found: found.manifest)
    except BaseException:
        close_quietly(copy)
        raise
    weakref.finalize(generation, close_quietly, lease)
    weakref.finalize(generation, close_quietly, copy)
    return generation


@contextlib.contextmanager
def keeping(
    root: Path, read: Callable[[Path], T], manifest_of: Callable[[T], Manifest]
) -> Generator[T, None, None]:
    """What ``read`` finds published; its generation is kept from ``gc`` within the ``with`` block."""
    found, lease = _with_lease(root, read, manifest_of)
    try:
        yield found
    finally:
        close_quietly(lease)


def _with_lease(
    root: Path, read: Callable[[Path], T], manifest_of: Callable[[T], Manifest]
) -> tuple[T, int | None]:
    """What is published and a lease on it; again where another generation was published in between, or it is removed."""
    for left in reversed(range(_TRIES)):
        before = _identity(manifest_path(root))
        found = read(root)
        lease = None
        with contextlib.suppress(BlockingIOError):
            lease = _take(processed_dir(root) / manifest_of(found).generation / MANIFEST_NAME)
        if not left or before == _identity(manifest_path(root)):
            return found, lease
        close_quietly(lease)
    raise AssertionError


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever another manifest is published: that is a new file."""
    with contextlib.suppress(OSError):
        info = path.stat()
        return info.st_dev, info.st_ino, info.st_mtime_ns
    return None


def _take(path: Path, how: int = fcntl.LOCK_SH) -> int | None:
    """A descriptor with the lock; ``None`` where there is no such file or there are no locks.

    Raises:
        OSError: If somebody else's lock keeps this one out, or, where others are to be kept out, the file system fails.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        close_quietly(descriptor)
        failed = how == fcntl.LOCK_EX and error.errno not in _CANNOT_TELL
        if failed or isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def try_to_remove(root: Path) -> int | None:
    """A descriptor that keeps readers of a staged copy out, ``None`` if somebody reads it."""
    with contextlib.suppress(OSError):
        return _take(root / LEASE_NAME, fcntl.LOCK_EX)
    return None


def is_in_use(directory: Path) -> bool:
    """Whether somebody reads a generation; ``False`` where the file system does not say."""
    try:
        close_quietly(_take(directory / MANIFEST_NAME, fcntl.LOCK_EX))
    except OSError:
        return True
    return False
