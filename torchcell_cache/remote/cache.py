"""Files of one generation of a remote store on local disk: fetched once per node, leased while open, evicted when not.

``<cache_dir>/<name>-<digest>/`` has the layout of a store, without ``processed/manifest.json`` because it may never be
complete. Two locks per file, both on bytes of ``.files.lock``: one shared by those that have it open, which keeps
eviction away, and one exclusive for whoever fetches it, so that others wait and use the result. The times of empty files
in ``.used`` say what was used last: the files themselves are never touched, their digest stamps name their times.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import make_dirs_durable, remove_stale_temps, write_atomic
from torchcell_cache.core.hints import USED_NAME
from torchcell_cache.core.lazy import AFTER_FORK, ThreadLock
from torchcell_cache.errors import CacheError, StorageLostError
from torchcell_cache.remote.byte_locks import ByteLocks
from torchcell_cache.store.manifest import MANIFEST_NAME, Manifest, processed_dir
from torchcell_cache.store.records import close_file
from torchcell_cache.store.shard_entry import FILE_NAMES, FileEntry
from torchcell_cache.store.stamps import is_verified

LOCK_NAME = ".files.lock"
_FETCH = 1 << 40
_FIRST_SHARD = 16
_TRIES = 5


class LocalCache:
    """The files that this node has of one generation; one object per process and directory, see :func:`cache_at`.

    Args:
        root: ``<cache_dir>/<name>-<digest>``.
        manifest: The generation's manifest.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root, self.manifest = root, manifest
        self.directory, self.used = processed_dir(root) / manifest.generation, root / USED_NAME
        self.here = np.zeros(len(manifest.shards), dtype=bool)  # shards leased by this process
        self.held: set[str] = set()  # all that is leased
        self.locks = ByteLocks(root / LOCK_NAME)
        self.renew()
        self.settle()
        AFTER_FORK.add(self)

    def renew(self) -> None:
        """Hold nothing, as a forked child does until it asks for a file itself."""
        self._changing = threading.RLock()
        self._turns: dict[str, threading.Lock] = {}
        self._latest: dict[int, str] = {}  # what each thread asked for last, and may be about to open
        self.held.clear()
        self.here[:] = False

    def settle(self) -> None:
        """Make what the directory needs, also again: somebody may have emptied the cache meanwhile."""
        data, path = self.manifest.to_bytes(), self.directory / MANIFEST_NAME
        for left in reversed(range(_TRIES)):
            try:
                with self._changing:
                    make_dirs_durable(self.directory)
                    make_dirs_durable(self.used)
                    if not self.locks.is_there():
                        with storage_errors(self.root, "lock"):
                            self.locks = ByteLocks(self.root / LOCK_NAME)
                            self.locks.open()
                        self.held.clear()  # what was leased through the lock file that is gone is leased no more
                        self.here[:] = False
                    if not path.is_file() or path.read_bytes() != data:
                        write_atomic(path, data)
                    remove_stale_temps(self.directory)
                return
            except (FileNotFoundError, StorageLostError) as error:
                if not left:
                    text = f"{self.root} is removed while it is made ({error})"
                    raise StorageLostError(text, path=self.root, fix="choose cache_dir=...") from None

    # Leasing

    def hold(self, entry: FileEntry, fetch: Callable[[], None]) -> None:
        """Have a file on this disk, whole, and keep it from eviction until this process lets go of it.

        Args:
            entry: The file.
            fetch: Brings it under its name; called by one process at a time.

        Raises:
            CacheError: What ``fetch`` raises.
        """
        path = self.directory / entry.name
        with self._turn(entry.name):
            self._latest[threading.get_ident()] = entry.name
            vanished = entry.name in self.held
            with contextlib.suppress(OSError):  # a lease keeps other readers of the cache away, not users
                if vanished and path.stat().st_size == entry.size:
                    return
            for left in reversed(range(_TRIES)):
                try:
                    self._lease(entry, path, fetch)
                    break
                except CacheError as error:
                    if left and isinstance(error, StorageLostError):  # it may be removed right now
                        continue
                    if not vanished:
                        raise
                    # The user did not know that anything had to be fetched.
                    said = str(error).partition("\n  fix: ")[0]
                    text = f"{path} was removed; fetched again, {said}"
                    raise type(error)(text, path=path, fix=error.fix) from None
            self._note(entry.name, True)
            with contextlib.suppress(OSError):
                (self.used / entry.name).touch()

    def _lease(self, entry: FileEntry, path: Path, fetch: Callable[[], None]) -> None:
        """Take the shared lock of a file and fetch it unless it is whole."""
        if not self.directory.is_dir() or not self.locks.is_there():
            self.settle()
        byte, locks = byte_of(entry.name), self.locks
        locks.shared(byte, wait=True)
        try:
            if not is_verified(path, entry):
                locks.exclusive(_FETCH + byte, wait=True)
                try:
                    if not is_verified(path, entry):
                        fetch()
                finally:
                    locks.release(_FETCH + byte)
        except BaseException:
            self._note(entry.name, False)
            locks.release(byte)
            raise

    def _note(self, name: str, held: bool) -> None:
        with self._changing:
            (self.held.add if held else self.held.discard)(name)
            if name not in FILE_NAMES:
                self.here[_shard_of(name)] = held

    @contextlib.contextmanager
    def _turn(self, name: str, wait: bool = True) -> Iterator[bool]:
        """One thread at a time per file; the kernel's locks only tell processes apart."""
        with self._changing:
            lock = self._turns.setdefault(name, threading.Lock())
        taken = lock.acquire(blocking=wait)
        try:
            yield taken
        finally:
            if taken:
                lock.release()

    # Evicting

    def try_evict(self, name: str) -> bool:
        """Remove a file unless another process has it open, or this one cannot do without."""
        with self._turn(name, wait=False) as mine:
            if not mine or (name in FILE_NAMES and name in self.held):
                return False
            byte, held = byte_of(name), name in self.held
            others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
            if held and any(
                asked == name for thread, asked in list(self._latest.items()) if thread in others
            ):
                return False
            if not self.locks.exclusive(byte) or not self.locks.supported:
                return False
            try:
                if held:
                    self._note(name, False)
                    close_file(self.directory / name)
                return _unlink(self.directory / name)
            finally:
                self.locks.release(byte)


def byte_of(name: str) -> int:
    """The byte of the lock file that stands for a file of a generation."""
    return FILE_NAMES.index(name) if name in FILE_NAMES else _FIRST_SHARD + _shard_of(name)


def try_evict_at(root: Path, path: Path) -> bool:
    """:meth:`LocalCache.try_evict` for any copy in the cache directory, whether or not this process has it open."""
    cache = _CACHES.get(str(root))
    if cache is not None and cache.directory == path.parent:
        return cache.try_evict(path.name)
    with contextlib.suppress(OSError), contextlib.closing(ByteLocks(root / LOCK_NAME)) as locks:
        return locks.exclusive(byte_of(path.name)) and locks.supported and _unlink(path)
    return False


def cache_at(root: Path, manifest: Manifest) -> LocalCache:
    """This process's object for a directory."""
    with _LOCK:
        found = _CACHES.get(str(root))
        if found is None:
            found = _CACHES[str(root)] = LocalCache(root, manifest)
        elif not found.directory.is_dir():
            found.settle()
        return found


def _shard_of(name: str) -> int:
    return int(name[6:-5])


def _unlink(path: Path) -> bool:
    with contextlib.suppress(OSError):  # it is gone, or somebody else's cache
        os.unlink(path)  # noqa: PTH108
        return True
    return False


_CACHES: weakref.WeakValueDictionary[str, LocalCache] = weakref.WeakValueDictionary()
_LOCK = ThreadLock()
