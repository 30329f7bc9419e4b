"""Keys and bytes in LMDB files: 8 bytes, big-endian, so that key order is sample order. The only file that imports lmdb.

A published shard never changes, which is what makes ``lock=False`` sound and keeps readers off any lock file. A process
holds one environment per file, whatever the number of datasets, slices and threads that read it: py-lmdb refuses a
second open of the same file, also in a forked child, so handles belong to a process and are dropped after a fork.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import lmdb
import numpy as np

from torchcell_cache.core.failures import storage_error
from torchcell_cache.core.hints import repair_hint
from torchcell_cache.errors import CorruptRecordError, CorruptShardError, FormatError, StorageLostError
from torchcell_cache.store.env_pool import EnvPool
from torchcell_cache.store.groups import LAST_KEY, Directory, Items, Room, grouped, numbered
from torchcell_cache.store.stamps import stat_whole

_MIN_MAP_BYTES = 1 << 20
_MAX_MAP_BYTES = 1 << 42
_GROWTH = 4
_MOVED_BYTES = 16 << 20
_SAID = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE)
_MORE_TRIES = 4
_FORMAT = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}
"""LMDB 0.9's file format: readable by every py-lmdb, where 3.0 would otherwise choose its own."""
T = TypeVar("T")
Gets: TypeAlias = tuple[dict[int, Callable[[Any], Any]], dict[int, Callable[[Any], Any]]]
Buffer: TypeAlias = bytes | memoryview
_NOT_THE_FILES_FAULT = (
    ((errno.EMFILE, errno.ENFILE, errno.ENOMEM), "raise the limit (ulimit -n, ulimit -v)"),
    ((errno.EIO, errno.ESTALE), "look at the system log and the mount, then open the dataset again"),
)


def write_shard(
    path: Path, first_index: int, chunks: Iterable[Sequence[bytes]], map_bytes: int, group_bytes: int = 0
) -> None:
    """Write consecutive records into a new LMDB file, in one transaction, in groups of ``group_bytes`` unless that is 0.

    The same records give the same bytes: keys are appended in order, pages are zeroed, nothing is ever reopened. Each chunk
    is taken once: where the map turns out too small, what was written moves to a file with a larger one.
    """
    rest = grouped(first_index, chunks, group_bytes) if group_bytes else numbered(first_index, chunks)
    map_bytes = max(map_bytes, _MIN_MAP_BYTES)
    moved = path.with_name(f".tmp-moved-{path.name.removeprefix('.tmp-')}")
    try:
        pending = _write(path, rest, map_bytes)
        while pending:
            path.replace(moved)
            map_bytes *= _GROWTH
            pending = _write(path, chain(_records(moved), [pending], rest), map_bytes)
            moved.unlink(missing_ok=True)
    except lmdb.Error as error:
        # LMDB passes on text only, EIO for a short write; before the file goes its size tells whether it met a limit.
        said = (number for number in _SAID if str(error).endswith(os.strerror(number)))
        refused = storage_error(next(said, errno.EIO), path)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise refused or error from error
    finally:
        with contextlib.suppress(OSError):
            moved.unlink(missing_ok=True)


def _write(path: Path, chunks: Iterator[Items], map_bytes: int) -> Items:
    """Write chunks while the map has room; returns the chunk that had none, if any."""
    unsynced = {"sync": False, "metasync": False, "writemap": False, "meminit": True}
    env_of = opened(path, min(map_bytes, _MAX_MAP_BYTES), **unsynced, max_dbs=0, **_FORMAT)
    with contextlib.closing(env_of) as env:
        room = Room(map_bytes, env.stat()["psize"])
        with env.begin(write=True) as txn:
            cursor = txn.cursor()
            for chunk in chunks:
                if not room.takes([value for _, value in chunk]):
                    return chunk
                items = [(key.to_bytes(8, "big"), value) for key, value in chunk]
                written, added = cursor.putmulti(items, dupdata=False, overwrite=False, append=True)
                if not written == added == len(items):
                    said = f"LMDB took {added} of {len(items)} records from sample {chunk[0][0]} on"
                    raise FormatError(f"{path}: {said}")
        env.sync(True)
    return []


def _records(path: Path) -> Iterator[Items]:
    """Items of a file, in order, in chunks of bounded size."""
    env_of = opened(path, path.stat().st_size, readonly=True)
    with contextlib.closing(env_of) as env, env.begin() as txn:
        chunk: Items = []
        size = 0
        for key, value in txn.cursor().iternext(keys=True, values=True):
            chunk.append((int.from_bytes(key, "big"), value))
            size += len(value)
            if size > _MOVED_BYTES:
                yield chunk
                chunk, size = [], 0
        yield chunk


def opened(path: str | Path, map_bytes: int, **options: Any) -> lmdb.Environment:
    """An LMDB file, without a lock."""
    return lmdb.open(str(path), map_size=map_bytes, subdir=False, lock=False, readahead=False, **options)


def _damaged(path: str, text: str, kind: Any = CorruptShardError) -> Exception:
    error: Exception = kind(text, path=path, fix=repair_hint(path))
    return error


class _Env:
    """One open environment; a read transaction per thread lives as long as the handle."""

    directory: Directory | None = None

    def __init__(self, path: str, size: int) -> None:
        try:
            size = max(size, _MIN_MAP_BYTES)
            self.env = opened(path, size, readonly=True, create=False, max_spare_txns=1)
            self.entries = int(self.env.stat()["entries"])
        except lmdb.Error as error:
            for numbers, fix in _NOT_THE_FILES_FAULT:
                if str(error).endswith(tuple(map(os.strerror, numbers))):
                    raise StorageLostError(f"{path} cannot be opened: {error}", path=path, fix=fix) from None
            raise _damaged(path, f"{path} cannot be opened: {error}") from None
        self.local = threading.local()
        self.retired = False

    def get(self, views: bool) -> Any:
        """``get`` of this thread's transaction, by key, of records in groups by number: copies or views of the mapping."""
        name = "view" if views else "copy"
        found = getattr(self.local, name, None)
        if found is None:
            in_views: Any = views or self.directory is not None
            found = self.env.begin(buffers=in_views).get  # the method keeps its transaction alive
            if self.directory is not None:
                found = self.directory.get(found, not views)
            setattr(self.local, name, found)
        return found

    def insist(self, path: str, first: int, count: int, in_groups: bool) -> None:
        """Refuse a file that does not hold ``count`` records from ``first`` on."""
        if in_groups and self.directory is None:
            try:
                with self.env.begin() as txn:
                    told = txn.get(LAST_KEY.to_bytes(8, "big"))
                self.directory = Directory(told, first, count, self.entries)
            except (lmdb.Error, ValueError) as error:
                raise _damaged(path, f"{path}: {error}") from None
        elif not in_groups and self.entries != count:
            raise _damaged(path, f"{path} holds {self.entries} records, the manifest says {count}")

    def close(self) -> None:
        self.local = threading.local()
        with contextlib.suppress(lmdb.Error):  # inherited by a fork
            self.env.close()


_POOL = EnvPool()


def _open(path: str, expected_size: int) -> _Env:
    """The process's handle of a file, its size checked first: a mapping beyond the end of a file is a SIGBUS."""
    try:
        stat = stat_whole(path, expected_size)
    except OSError as error:
        raise StorageLostError(f"{path}: {error}", path=path, fix="reopen the dataset") from None
    env: _Env = _POOL.get((stat.st_dev, stat.st_ino), lambda: _Env(path, stat.st_size))
    return env


def close_file(path: str | Path) -> None:
    """Let go of one file and its mapping in this process, once no thread reads it; it is opened again when needed."""
    with contextlib.suppress(OSError):
        stat = Path(path).stat()
        _POOL.close((stat.st_dev, stat.st_ino))


def close_all() -> None:
    """Close every environment of this process; open stores reopen what they need on the next read."""
    _POOL.close_all()


def open_count() -> int:
    """Number of environments this process holds open."""
    return len(_POOL)


class ShardFiles:
    """Read access to the shards of one generation."""

    def __init__(
        self,
        paths: Sequence[str],
        sizes: Sequence[int],
        starts: Sequence[int],
        before_open: Any = None,
        in_groups: bool = False,
    ) -> None:
        self.paths, self.sizes = list(paths), list(sizes)
        self.starts = np.asarray(starts, dtype=np.int64)
        self.before_open, self.in_groups = before_open, in_groups
        counts = np.diff(self.starts)
        even = len(counts) > 0 and bool((counts[:-1] == counts[0]).all()) and counts[-1] <= counts[0]
        self._stride = int(counts[0]) if even else 0  # a division is quicker than a search
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def shard_of(self, indices: Any) -> Any:
        """Shard number of each sample index."""
        if self._stride:
            return indices // self._stride
        return np.searchsorted(self.starts, indices, side="right") - 1

    def open(self, shard: int, more: int = _MORE_TRIES) -> _Env:
        """The handle; once more if a bounded cache made room of the file between check and opening."""
        if self.before_open is not None:
            self.before_open(shard)
        try:
            return _open(self.paths[shard], self.sizes[shard])
        except CorruptShardError:
            if not more or Path(self.paths[shard]).exists():
                raise
        return self.open(shard, more - 1)

    def _begin_with(self, shard: int) -> Gets:
        """Begin reading anew with a shard open that was not; waits for room while nothing is held."""
        while True:
            _POOL.end()
            handle = self.open(shard)
            known = self._known(_POOL.begin())
            if not handle.retired:  # by another thread, before we began; from now on it stays open
                first, stop = self.starts[shard : shard + 2].tolist()
                handle.insist(self.paths[shard], first, stop - first, self.in_groups)
                for views, gets in enumerate(known):
                    gets[shard] = handle.get(bool(views))
                return known

    def _known(self, epoch: int) -> Gets:
        """What this thread has open, to copy from and to view; empty again after a fork or when a file was closed."""
        local = self._local
        if getattr(local, "epoch", -1) != epoch:
            local.epoch, local.gets = epoch, ({}, {})
        return local.gets  # type: ignore[no-any-return]

    def read(self, indices: Sequence[int], shards: Sequence[int]) -> list[bytes]:
        """Records of the given samples, copied out, in the order asked for."""
        gets = self._known(_POOL.begin())[0]
        try:
            return self._get_all(gets, indices, shards)
        finally:
            _POOL.end()

    def visit(self, indices: Sequence[int], shards: Sequence[int], use: Callable[[Sequence[Buffer]], T]) -> T:
        """Let ``use`` work on records where they lie in the page cache; copies of files that are not open yet."""
        gets = self._known(_POOL.begin())[1]
        try:
            if all(map(gets.__contains__, shards)):
                return use(self._get_all(gets, indices, shards))
        finally:
            _POOL.end()
        return use(self.read(indices, shards))

    def _get_all(
        self, gets: dict[int, Callable[[Any], Any]], indices: Sequence[int], shards: Sequence[int]
    ) -> list[Any]:
        out: list[Any] = []
        keys = indices if self.in_groups else [index.to_bytes(8, "big") for index in indices]
        try:
            for key, shard in zip(keys, shards, strict=True):
                if shard not in gets:  # what was read is a copy, so other files may be closed for this one
                    gets = self._begin_with(shard)[0]
                value = gets[shard](key)
                if value is None:
                    path, index = self.paths[shard], indices[len(out)]
                    raise _damaged(path, f"sample {index} is missing from {path}", CorruptRecordError)
                out.append(value)
        except lmdb.Error as error:
            raise _damaged(self.paths[shard], f"{self.paths[shard]}: {error}") from error
        return out
