"""Opening a store by its address: manifest, then what all samples share, then shards, at once or on first use."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import Download
from torchcell_cache.core.files import make_dirs_durable
from torchcell_cache.core.hints import PROCESSED_NAME, USED_NAME
from torchcell_cache.core.progress import Console, human_bytes
from torchcell_cache.core.urls import local_path, name_of, refuse_inside
from torchcell_cache.errors import (
    CacheError,
    CacheNotFoundError,
    CorruptManifestError,
    CorruptShardError,
    SettingError,
    StorageLostError,
    WaitTimeoutError,
)
from torchcell_cache.remote.bucket import ATTEMPTS, Bucket
from torchcell_cache.remote.cache import LOCK_NAME, LocalCache, cache_at, try_evict_at
from torchcell_cache.remote.transfer import Origin, bring, entries_of, metered
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import MANIFEST_NAME, Manifest, copy_name
from torchcell_cache.store.shard_entry import FILE_NAMES, GENERATION, FileEntry
from torchcell_cache.store.status import waiting

THREADS = 8
PUBLISHED = f"{PROCESSED_NAME}/{MANIFEST_NAME}"
_PAUSES_S = 0.5, 10.0
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SHARD = re.compile(r"shard-[0-9]{5,10}\.lmdb")
_WARNED: set[Path] = set()


class RemoteFiles:
    """Brings files of one generation to this node when they are asked for.

    Args:
        bucket: Where they are.
        cache: Where they go.
        limit: Bytes that the cache directory may hold, or ``None``.
    """

    def __init__(self, bucket: Bucket, cache: LocalCache, limit: int | None) -> None:
        self.bucket, self.cache, self.limit = bucket, cache, limit
        self.manifest = cache.manifest
        self._origin = remote_origin(bucket, self.manifest)

    def reopen(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """How another process opens the same generation; nothing in it is secret."""
        return reopen, (self.bucket, self.cache.root, self.manifest.generation, self.limit)

    def bring(self, entry: FileEntry, note: Callable[[int], Any] = lambda count: None) -> None:
        """Have a file on this disk, whole, for as long as this process reads the generation."""

        def fetch() -> None:
            if self.limit is not None:
                make_room(self.cache.root.parent, entry.size, self.limit)
            bring(entry, self.cache.directory, self._origin, note, threading.Event())

        self.cache.hold(entry, fetch)

    def bring_shards(self, shards: Any) -> bool:
        """Have all of some shards, several fetched at a time; ``False`` if they are too many for the cache.

        Args:
            shards: Shard numbers, any number of times each, ``[n] int64``.
        """
        if bool(self.cache.here[shards].all()):
            return True
        wanted = [self.manifest.shards[k].file for k in np.unique(shards).tolist()]
        if self.limit is not None and sum(entry.size for entry in wanted) > self.limit:
            return False
        self.bring_all([entry for entry in wanted if entry.name not in self.cache.held])
        return True

    def bring_all(self, entries: list[FileEntry], note: Callable[[int], Any] = lambda count: None) -> None:
        """Have all of some files, several fetched at a time."""
        if len(entries) == 1:
            self.bring(entries[0], note)
            return
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda entry: self.bring(entry, note), entries):
                pass  # the first error cancels the others


def open_url(
    url: Any,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int | str | None = None,
    download: Download = "lazy",
    storage_options: Mapping[str, Any] | None = None,
    wait: bool | float = False,
) -> Generation:
    """Open the generation that an address publishes; see :class:`torchcell_cache.PreprocessedDataset`."""
    choice("download", download, get_args(Download))
    bucket, limit = Bucket(url, storage_options), bytes_of(cache_bytes)
    manifest = remote_manifest(bucket, wait)
    entries = entries_of(manifest)
    total = sum(entry.size for entry in entries)
    if download == "all" and limit is not None and total > limit:
        raise SettingError(
            f"download='all' needs {total:,} bytes, cache_bytes is {limit:,}",
            fix=f"cache_bytes={total}, or download='lazy'",
        )
    name, given = "cache_dir", cache_dir
    if given is None:
        name, home = "TORCHCELL_CACHE_DIR", os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        given = os.environ.get(name) or f"{home}/torchcell_cache"
    place = local_path(given, name)
    refuse_inside(place, bucket.url, "cache_dir")
    make_dirs_durable(place)
    cache = cache_at(place / copy_name(Path(name_of(bucket.url)), manifest), manifest)
    files = RemoteFiles(bucket, cache, limit)
    wanted = entries if download == "all" else list(manifest.files)
    absent = [entry for entry in wanted if not (cache.directory / entry.name).exists()]
    with metered(absent, Console(bool(absent)), f"pull {bucket.url}") as meter:
        files.bring_all(wanted, meter)
    return Generation(cache.root, manifest, files)


def reopen(bucket: Bucket, root: Path, generation: str, limit: int | None) -> Generation:
    """The same generation in another process, on this node or another one, whatever the address publishes by now.

    Raises:
        StorageLostError: If neither this node nor the address has it any more.
    """
    path = root / PROCESSED_NAME / generation / MANIFEST_NAME
    try:
        manifest = Manifest.from_bytes(path.read_bytes(), path=path)
    except (FileNotFoundError, CorruptManifestError):
        name = f"{PROCESSED_NAME}/{generation}/{MANIFEST_NAME}"
        try:
            manifest = _parsed(bucket, name)
        except FileNotFoundError:
            raise StorageLostError(
                f"{bucket.label(name)} was removed", path=bucket.label(name), fix="open the dataset again"
            ) from None
    make_dirs_durable(root)
    return Generation(root, manifest, RemoteFiles(bucket, cache_at(root, manifest), limit))


def remote_manifest(bucket: Bucket, wait: bool | float = False) -> Manifest:
    """The manifest that an address publishes.

    Raises:
        CacheNotFoundError: If there is none; names the command that puts one there.
        CorruptManifestError: If it is damaged, however often it is read.
    """

    def missing(_waited: float, _found: str) -> CacheError:
        kind = WaitTimeoutError if wait else CacheNotFoundError
        text = f"no complete store at {bucket.url} ({PUBLISHED} is missing there)"
        return kind(text, path=bucket.url, fix=bucket.push)

    return waiting(bucket.url, wait, lambda: _parsed(bucket, PUBLISHED), missing, pauses=_PAUSES_S)


def remote_origin(bucket: Bucket, manifest: Manifest) -> Origin:
    """The files of a generation at an address."""
    sizes = {entry.name: entry.size for entry in entries_of(manifest)}

    def fetch(name: str) -> Iterator[bytes]:
        return bucket.blocks(object_name(manifest, name), sizes[name])

    def gone(name: str) -> CacheError:
        """The error for an object that is not there: was the store replaced, or was it never whole?"""
        label, now = bucket.label(object_name(manifest, name)), manifest.generation
        with contextlib.suppress(FileNotFoundError):
            now = _parsed(bucket, PUBLISHED).generation
        again = f"open the dataset again: {bucket.url} publishes {now} by now"
        fix = f"where the store was built: {bucket.push}" if now == manifest.generation else again
        return StorageLostError(f"{label} was removed", path=label, fix=fix)

    place = bucket.label(f"{PROCESSED_NAME}/{manifest.generation}")
    return Origin(place, fetch, bucket.push_again, attempts=ATTEMPTS, threads=THREADS, gone=gone)


def object_name(manifest: Manifest, name: str) -> str:
    """A file of a generation, below the address."""
    return f"{PROCESSED_NAME}/{manifest.generation}/{name}"


def _parsed(bucket: Bucket, name: str) -> Manifest:
    for left in reversed(range(ATTEMPTS)):
        try:
            return Manifest.from_bytes(bucket.read(name), path=bucket.label(name))
        except (CorruptManifestError, CorruptShardError) as error:
            if not left:
                label = bucket.label(name)
                text = f"{label}: {str(error).splitlines()[0]}"
                raise CorruptManifestError(text, path=label, fix=bucket.push_again) from None
    raise AssertionError


# The size of a cache directory: what it holds, and what to remove for something new to fit


class CachedFile(NamedTuple):
    """A file in a cache directory: when it was last asked for, its copy's root, its path and size in bytes."""

    used: float
    root: Path
    path: Path
    size: int


def bytes_of(value: int | float | str | None) -> int | None:
    """A size: a number, or text such as ``"200GB"``.

    Raises:
        SettingError: If it is none.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)i?B?\s*", str(value), re.IGNORECASE)
    if match is None or isinstance(value, bool) or float(match[1]) <= 0:
        raise SettingError(f"cache_bytes={value!r}: expected a number of bytes, or text such as '200GB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def cached_files(cache_dir: Path) -> list[CachedFile]:
    """All files of generations in a cache directory, the one that was asked for longest ago first."""
    found = []
    for lock in cache_dir.glob(f"*/{LOCK_NAME}"):
        for path in lock.parent.glob(f"{PROCESSED_NAME}/gen-*/*"):
            root, name = lock.parent, path.name
            if not GENERATION.fullmatch(path.parent.name):
                continue
            if name in FILE_NAMES or _SHARD.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):
                    info = path.lstat()
                    used = info.st_mtime
                    with contextlib.suppress(OSError):
                        used = (root / USED_NAME / name).stat().st_mtime
                    found.append(CachedFile(used, root, path, info.st_size))
    return sorted(found)


def make_room(cache_dir: Path, need: int, limit: int) -> None:
    """Remove what was used longest ago and nobody has open, until ``need`` more bytes fit.

    If too much is open, the cache grows beyond its limit, with a warning, rather than stop a training.
    """
    files = cached_files(cache_dir)
    excess = sum(file.size for file in files) + need - limit
    for file in files:
        if excess <= 0:
            return
        if try_evict_at(file.root, file.path):
            excess -= file.size
    if excess > 0 and cache_dir not in _WARNED:
        _WARNED.add(cache_dir)
        warnings.warn(
            f"the cache {cache_dir} grows {human_bytes(excess)} beyond cache_bytes={limit:,}: all the rest of it is open",
            RuntimeWarning,
            stacklevel=2,
        )
