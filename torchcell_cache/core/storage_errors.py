"""What the file system said, as an error a user can act on: full, read-only or lost."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from torchcell_cache.core.hints import StrPath
from torchcell_cache.errors import (
    CacheError,
    StorageError,
    StorageFullError,
    StorageLostError,
    StorageReadOnlyError,
)

# Below this much free space an EIO is a full disk: LMDB and some file systems report one as the other.
_NEARLY_FULL_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_LOST = {errno.EIO, errno.ESTALE}
_NO_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}


def free_bytes(path: StrPath) -> int:
    """Bytes a user without privileges can still write at ``path`` (or its nearest existing parent)."""
    where = Path(path).absolute()
    for candidate in (where, *where.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stats = os.statvfs(candidate)
            return stats.f_bavail * stats.f_frsize
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def storage_error(number: int | None, path: StrPath, action: str = "write") -> StorageError | None:
    """Typed error for an ``errno``, or ``None`` if it says nothing about the storage."""
    if number is None:
        return None
    text = f"cannot {action} {os.fspath(path)}: {os.strerror(number)}"
    kind: type[StorageError]
    if number in _FULL or (number == errno.EIO and _is_full(path)):
        free = "free space unknown"
        with contextlib.suppress(OSError):
            free = f"{free_bytes(path):,} bytes free"
        kind, text = StorageFullError, f"{text} ({free})"
        fix = "free space or raise the quota, then run the same command again; finished shards are kept"
    elif number in _READ_ONLY:
        kind = StorageReadOnlyError
        fix = f"check owner, permissions and mount options of {Path(path).parent}, or choose another root"
    elif number in _LOST:
        kind = StorageLostError
        fix = "look at the system log and the mount, then run the same command again; no part was published"
    elif number in _NO_PLACE:
        kind, text = StorageError, f"{text}{_in_the_way(path)}"
        fix = "choose another path, or remove what is in the way"
    else:
        return None
    error = kind(text, path=os.fspath(path), fix=fix)
    error.errno = number
    return error


@contextlib.contextmanager
def storage_errors(path: StrPath, action: str = "write") -> Iterator[None]:
    """Turn an ``OSError`` about space, permission or lost data into the package's own error."""
    try:
        yield
    except CacheError:
        raise
    except NotADirectoryError as error:
        if action != "read":
            raise storage_error(error.errno, path, action) or error from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from error
    except OSError as error:
        translated = storage_error(error.errno, path, action)
        if translated is None:
            raise
        raise translated from error


def _in_the_way(path: StrPath) -> str:
    """The part of a path that is neither a directory nor free."""
    for part in (Path(path), *Path(path).parents):
        if os.path.islink(part) and not os.path.exists(part):  # noqa: PTH110, PTH114 - which never raise
            return f" ({part} is a symbolic link to a place that does not exist)"
        if os.path.isfile(part):  # noqa: PTH113
            return f" ({part} is a file)"
    return ""


def _is_full(path: StrPath) -> bool:
    """Whether there is no room left, on the device or below this process's file size limit."""
    try:
        return free_bytes(path) < _NEARLY_FULL_BYTES or _at_size_limit(path)
    except OSError:
        return False


def _at_size_limit(path: StrPath) -> bool:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    target = Path(path)
    return (
        limit != resource.RLIM_INFINITY
        and target.is_file()
        and target.stat().st_size + _NEARLY_FULL_BYTES > limit
    )
