"""Making files cold: what the kernel keeps of them in memory, and asking it to let go."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

CAN_DROP = hasattr(os, "posix_fadvise")
"""Whether this system can be asked to forget a file."""


def drop_pages(paths: Iterable[str | Path]) -> None:
    """Ask the kernel to forget the files' contents. Pages that some process has mapped stay.

    Args:
        paths: Files that are on disk in full (written and synced).
    """
    for path in paths:
        with Path(path).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_share(paths: Iterable[str | Path]) -> float | None:
    """Share of the files' pages that are in memory, 0 to 1; ``None`` where the kernel does not say."""
    pages = resident = 0
    for path in map(Path, paths):
        size = path.stat().st_size
        if size == 0:
            continue
        if path.stat().st_uid != os.geteuid():  # of other users' files Linux claims that all is in memory
            return None
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = np.frombuffer(mapped, dtype=np.uint8)
            state = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
            places = [ctypes.c_void_p(array.ctypes.data) for array in (view, state)]
            try:
                failed = ctypes.CDLL(None).mincore(places[0], ctypes.c_size_t(size), places[1])
            except (OSError, AttributeError):
                failed = True
            del view  # the map cannot be closed while it is in use
        if failed:
            return None
        pages += len(state)
        resident += int((state & 1).sum())
    return resident / pages if pages else None


def available_memory() -> int | None:
    """Bytes this process could still take, by the kernel and by its control group; ``None`` if unknown."""
    found, group = [], Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(int(text.split("MemAvailable:")[1].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # without a limit it says "max"
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    return max(min(found), 0) if found else None
