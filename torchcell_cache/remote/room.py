"""The size of a cache directory: what it holds, and what to remove for something new to fit."""

from __future__ import annotations

import contextlib
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from torchcell_cache.core.hints import PROCESSED_NAME, USED_NAME
from torchcell_cache.core.progress import human_bytes
from torchcell_cache.errors import SettingError
from torchcell_cache.remote.cache import LOCK_NAME, try_evict_at
from torchcell_cache.store.shard_entry import FILE_NAMES, GENERATION

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SHARD = re.compile(r"shard-[0-9]{5,10}\.lmdb")
_WARNED: set[Path] = set()


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
