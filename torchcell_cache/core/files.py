"""Files that are either completely there or not there at all, and errors that say what the file system did.

Every published file takes the same way: a temporary name in the same directory, all bytes, ``fsync`` of the
file, ``rename`` (or ``link`` where only the first may win), ``fsync`` of the directory. A failed ``fsync`` is
never repeated: the kernel may have dropped the pages, so the second one would lie; the file is thrown away
instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.hints import StrPath, repair_hint
from torchcell_cache.core.process import runs_here, this_process
from torchcell_cache.errors import CacheError, CorruptShardError, StorageLostError, StorageReadOnlyError

TEMP_PREFIX = ".tmp-"
_TEMP_NAME = re.compile(r"\.tmp-.*\.([0-9a-f]{8})\.([0-9]{1,10})\.([0-9]{1,20})\.[0-9a-f]{16}", re.DOTALL)

# A file system may refuse a hard link in many words and still take a rename or a copy, which then say what is wrong.
_NO_LINK = {
    *(errno.EPERM, errno.EACCES, errno.EROFS, errno.EXDEV, errno.EMLINK),
    *(errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS),
}
_NO_RENAME_FLAGS = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


class FileDigest(NamedTuple):
    """Size in bytes and two digests of one file's content, as lower-case hexadecimal."""

    size: int
    sha256: str
    xxh3: str


def temp_path(path: StrPath) -> Path:
    """A new name beside ``path`` that no other process uses and that tells who made it."""
    target, me = Path(path), this_process()
    return target.with_name(
        f"{TEMP_PREFIX}{target.name[:40]}.{me.machine}.{me.pid}.{me.start_time}.{secrets.token_hex(8)}"
    )


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A temporary name for ``target``, gone if the work fails."""
    temporary = temp_path(target)
    with storage_errors(target):
        try:
            yield temporary
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_atomic(path: StrPath, data: bytes, *, mode: int = 0o444, replace: bool = True) -> bool:
    """Write a whole file so that a reader, a crash or a power cut sees all of it or nothing of it.

    Returns ``False`` if ``replace`` is false and there was a file already, else ``True``.
    """
    with _temporary(Path(path)) as temporary:
        # Created read-only at once: the descriptor that created a file may write to it, and the umask counts.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, mode), "wb", buffering=0) as file:
            write_all(file.fileno(), data)
            os.fsync(file.fileno())
        if not replace:
            return publish_new(temporary, path)
        replace_file(temporary, path)
        return True


@contextlib.contextmanager
def written(target: Path, scratch: Path | None = None) -> Iterator[Path]:
    """A temporary name to write a file under, which then takes its place, read-only and durable; in ``scratch``, if given."""
    temporary = temp_path((scratch or target.parent) / target.name)
    try:
        with storage_errors(target):
            yield temporary
            if scratch is not None:
                finished, temporary = temporary, shutil.copyfile(temporary, temp_path(target))
                finished.unlink()
            temporary.chmod(0o444)
            fsync_file(temporary)
            replace_file(temporary, target)
    finally:
        with contextlib.suppress(OSError):  # must not hide the error that brought us here
            temporary.unlink(missing_ok=True)


def replace_file(temporary: StrPath, path: StrPath) -> None:
    """Rename a finished, synced file over ``path`` and make the new name durable."""
    with storage_errors(path, "publish"):
        ours = os.lstat(temporary)
        try:
            os.rename(temporary, path)  # noqa: PTH104 - Path.rename is the same call, less plainly
        except FileNotFoundError:
            # NFS answers a repeated request with ENOENT although the first one succeeded.
            if not _landed(ours, temporary, path):
                raise
        else:
            if os.path.lexists(temporary):  # two names of one file: rename(2) does nothing
                os.unlink(temporary)  # noqa: PTH108
        fsync_dir(Path(path).parent)


def publish_new(temporary: StrPath, path: StrPath) -> bool:
    """Give a finished, synced file its name unless that name is taken: of many callers exactly one wins.

    The temporary name is gone afterwards, whoever won. Returns whether ``path`` is now our file.
    """
    with storage_errors(path, "publish"):
        try:
            os.link(temporary, path)
            won = True
        except FileExistsError:
            # NFS answers a repeated request with EEXIST although the first one succeeded: count the names.
            won = os.lstat(temporary).st_nlink == 2 or same_file(os.lstat(temporary), path)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            won = _rename_new(temporary, path)
        with contextlib.suppress(OSError):  # published or lost already; the next build removes a left-over
            os.unlink(temporary)  # noqa: PTH108
        fsync_dir(Path(path).parent)
    return won


def fsync_file(path: StrPath, flags: int = os.O_RDONLY) -> None:
    """Force a file's content to the device."""
    with storage_errors(path, "fsync"):
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_dir(path: StrPath) -> None:
    """Force a directory's names to the device, where the file system knows that operation."""
    try:
        fsync_file(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise


def make_dirs_durable(path: StrPath) -> Path:
    """Create a directory and its parents so that they survive a power cut; an existing one is fine.

    All parents on the same device are synced, also those that exist: an earlier run may have been killed
    between creating and syncing them.
    """
    directory = Path(path).absolute()
    with storage_errors(directory, "create directory"):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # of the kernel (/proc), or removed at this moment
            raise StorageLostError(
                f"cannot create directory {directory}: {error}", path=directory, fix="choose another path"
            ) from error
        device = directory.stat().st_dev
        for ancestor in (directory, *directory.parents):
            if ancestor.stat().st_dev != device:
                break
            with contextlib.suppress(StorageReadOnlyError):  # somebody else's, that we may only pass through
                fsync_dir(ancestor)
    return directory


def file_digest(path: StrPath, chunk: int = 4 << 20) -> FileDigest:
    """Read a file once and return its size, SHA-256 and XXH3-128.

    ``chunk`` bytes are read at a time; that is the memory it takes.
    """
    sha, xxh, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    buffer = memoryview(bytearray(chunk))
    with storage_errors(path, "read"), open(path, "rb", buffering=0) as file:  # noqa: PTH123
        while count := file.readinto(buffer):
            sha.update(buffer[:count])
            xxh.update(buffer[:count])
            size += count
    return FileDigest(size, sha.hexdigest(), xxh.hexdigest())


def remove_stale_temps(directory: StrPath, *, exclusive: bool = False) -> int:
    """Remove temporary files and directories whose writer died; never those of a process that lives. Returns how many.

    A directory that cannot be listed keeps what it has: whoever writes there is told what the file system says.
    ``exclusive`` says that nobody else writes here (the caller holds the builder lock): then files of processes on other
    machines and earlier boots, whose life cannot be seen from here, go too.
    """
    removed, machine = 0, this_process().machine
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            match = _TEMP_NAME.fullmatch(entry.name)
            if match is None:
                continue
            alive = runs_here(int(match[2]), int(match[3])) if match[1] == machine else None
            if alive or (alive is None and not exclusive):
                continue
            with contextlib.suppress(OSError):  # two builders may clean at once
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)  # noqa: PTH108
                removed += 1
    return removed


def share_file(path: Path, target: Path) -> None:
    """Give a published file a second name; copy it where the file system has no hard links."""
    with _temporary(target) as temporary:
        try:
            os.link(path, temporary)
        except FileNotFoundError:
            if path.exists():
                raise
            raise CorruptShardError(f"{path} is missing", path=path, fix=repair_hint(path)) from None
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            shutil.copyfile(path, temporary)
            temporary.chmod(0o444)
            fsync_file(temporary)
        replace_file(temporary, target)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything: one ``write`` may take less, near a full disk or at a size limit."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def open_regular(path: StrPath, kind: type[CacheError], fix: str | None, flags: int = os.O_RDONLY) -> int:
    """Descriptor of a file; what is none (a link, a device, a pipe, a directory) is refused by an error of this kind."""
    error = kind(f"{path} is not a regular file (a symbolic link is refused)", path=os.fspath(path), fix=fix)
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as refused:
        if refused.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise error from refused
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error
    return descriptor


def same_file(ours: os.stat_result, path: StrPath) -> bool:
    """Whether a name leads to that file."""
    try:
        return os.path.samestat(ours, os.lstat(path))
    except FileNotFoundError:
        return False


def _landed(ours: os.stat_result, temporary: StrPath, path: StrPath) -> bool:
    """Whether a rename that reported failure did happen: old name gone, new name is our inode."""
    return not os.path.lexists(temporary) and same_file(ours, path)


def _rename_new(temporary: StrPath, path: StrPath) -> bool:
    """Put-if-absent for file systems without hard links."""
    ours = os.lstat(temporary)
    libc = ctypes.CDLL(None, use_errno=True)
    number = errno.ENOSYS
    if hasattr(libc, "renameat2"):
        source, target = os.fsencode(temporary), os.fsencode(path)
        failed = libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE)
        number = ctypes.get_errno() if failed else 0
    if number in _NO_RENAME_FLAGS:
        # Nothing atomic is left. Two builders that publish in the same instant may both believe they won;
        # either file is complete, and the later one stays.
        if os.path.lexists(path):
            return False
        replace_file(temporary, path)
        return True
    if number == 0 or _landed(ours, temporary, path):
        return True
    if number == errno.EEXIST:
        return False
    raise OSError(number, os.strerror(number), os.fspath(temporary), None, os.fspath(path))
