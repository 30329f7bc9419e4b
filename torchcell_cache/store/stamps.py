"""Digest checks that happen once per node and file, not once per process.

LMDB notices almost no damage by itself, and damaged pages can crash the process that maps them. So a shard's digest is
checked before the file is first mapped. A successful check leaves an empty stamp file in a directory of this user and
node, named after device, inode, size, times and digest: any write to the file gives it another name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.hints import repair_hint
from torchcell_cache.errors import CorruptShardError, StorageLostError
from torchcell_cache.store.manifest import Manifest
from torchcell_cache.store.shard_entry import FileEntry


def quick_digest(path: str | Path) -> str:
    """xxh3_128 of a file, hexadecimal."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered
        return str(hashlib.file_digest(file, xxhash.xxh3_128).hexdigest())


def _stamp_directory() -> Path | None:
    """A directory that only this user can write, or ``None``."""
    path = Path(
        os.environ.get("TORCHCELL_CACHE_STAMPS") or f"{tempfile.gettempdir()}/torchcell_cache-{os.getuid()}"
    )
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        info = path.lstat()
        if S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o022:
            return path
    return None


def _stamp_name(path: str | Path, digest: str) -> str:
    info = Path(path).stat()
    facts = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, digest)
    return str(xxhash.xxh3_128_hexdigest(repr(facts).encode()))


def stamp(path: str | Path, digest: str) -> None:
    """Remember that the file as it stands has this digest."""
    directory = _stamp_directory()
    if directory is not None:
        with contextlib.suppress(OSError):
            (directory / _stamp_name(path, digest)).touch()


def stat_whole(path: str | Path, size: int) -> os.stat_result:
    """What the file system says of a file that has the size in the manifest.

    Raises:
        CorruptShardError: If it is missing or has another size.
    """
    try:
        info = Path(path).stat()
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is missing", path=path, fix=repair_hint(path)) from None
    if info.st_size != size:
        text = f"{path} has {info.st_size:,} bytes, the manifest says {size:,}"
        raise CorruptShardError(text, path=path, fix=repair_hint(path))
    return info


def is_whole(path: Path, entry: FileEntry) -> bool:
    """Whether a file has the size and digest of its entry, read now, whatever stamps say."""
    with contextlib.suppress(OSError):
        return path.is_file() and path.stat().st_size == entry.size and quick_digest(path) == entry.xxh3
    return False


def insist_digest(path: str | Path, actual: str, digest: str) -> None:
    """Insist that a file's xxh3_128 is the one in the manifest.

    Raises:
        CorruptShardError: If it is not.
    """
    if actual != digest:
        text = f"{path} has digest {actual}, the manifest says {digest}"
        raise CorruptShardError(text, path=path, fix=repair_hint(path))


def ensure_verified(path: str | Path, size: int, digest: str) -> None:
    """Check size and digest of a file unless this node has done so since the file last changed.

    Raises:
        CorruptShardError: If the file is missing or is not what the manifest says.
        StorageError: If the file system does not let it be read.
    """
    with storage_errors(path, "read"):
        stat_whole(path, size)
        directory = _stamp_directory()
        try:
            if directory is not None and (directory / _stamp_name(path, digest)).exists():
                return
            insist_digest(path, quick_digest(path), digest)
        except FileNotFoundError:  # since we looked
            stat_whole(path, size)
            raise
    stamp(path, digest)


def is_verified(path: str | Path, entry: FileEntry) -> bool:
    """Whether :func:`ensure_verified` finds nothing wrong."""
    try:
        ensure_verified(path, entry.size, entry.xxh3)
    except (CorruptShardError, StorageLostError):
        return False
    return True


class Fetcher(Protocol):
    """Brings files of a generation that are not on this disk yet."""

    def bring(self, entry: FileEntry) -> None:
        """Have a file in the generation's directory, whole, and keep it there while it is in use."""

    def bring_shards(self, shards: npt.NDArray[np.int64]) -> bool:
        """Have some shards; ``False`` if only one after the other fits."""

    def reopen(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """How another process opens the same generation, as ``__reduce__`` says it."""


def have_file(directory: Path, entry: FileEntry, fetcher: Fetcher | None) -> None:
    """Have a file of a generation in its directory, its digest checked.

    Raises:
        CorruptShardError: If it is not what the manifest says.
    """
    if fetcher is not None:
        fetcher.bring(entry)  # which checks it
        return
    ensure_verified(directory / entry.name, entry.size, entry.xxh3)


def have_shard(directory: Path, manifest: Manifest, fetcher: Fetcher | None, shard: int) -> None:
    """:func:`have_file` of a shard, by its number."""
    have_file(directory, manifest.shards[shard].file, fetcher)
