"""Memory in huge pages: a process that forks often then copies a line per two megabytes, not one per four kilobytes."""

import ctypes
import gc
from pathlib import Path

COLLAPSE = 25  # MADV_COLLAPSE, since Linux 6.1
HUGE = 2 << 20


def settle() -> None:
    """What is there stays as it is: no collection looks through it again, no fork copies its page tables. A wish only."""
    gc.collect()
    gc.freeze()
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for line in Path("/proc/self/maps").read_text().splitlines():
        area, rights, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in area.split("-"))
        start, end = -(-start // HUGE) * HUGE, end // HUGE * HUGE
        if rights == "rw-p" and name in ([], ["[heap]"]) and start < end:
            madvise(start, end - start, COLLAPSE)
