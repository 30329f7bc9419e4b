"""Making files cold: what the kernel keeps of them in memory, and asking it to let go."""

from __future__ import annotations

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
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_share(paths: Iterable[str | Path]) -> float | None:
    """Share of the files' pages that are in memory, 0 to 1; ``None`` where the kernel does not say."""
    pages = resident = 0
    for path in paths:
        info = Path(path).stat()
        if info.st_size == 0:
            continue
        if info.st_uid != os.geteuid():  # of other users' files Linux claims that all is in memory
            return None
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = np.frombuffer(mapped, dtype=np.uint8)
            state = np.zeros(-(-info.st_size // mmap.PAGESIZE), dtype=np.uint8)
            failed = _mincore(view.ctypes.data, info.st_size, state)
            del view  # the map cannot be closed while it is in use
        if failed:
            return None
        pages += len(state)
        resident += int((state & 1).sum())
    return resident / pages if pages else None


def _mincore(address: int, size: int, state: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bool:
    """Fill in which pages are in memory; returns whether that failed."""
    try:
        call = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError):
        return True
    code = call(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_void_p(state.ctypes.data))
    return bool(code != 0)


def available_memory() -> int | None:
    """Bytes this process could still take, by the kernel and by its control group; ``None`` if unknown."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    return max(min(found), 0) if found else None
