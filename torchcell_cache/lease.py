"""Leases: who reads a staged copy of a store holds a shared ``flock`` on a file in it, so that nobody removes it meanwhile.

The kernel frees the lock when the reader ends, however it ends. Opening the file for reading is enough: nothing is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from torchcell_cache.errors import CacheNotFoundError
from torchcell_cache.generation import Generation

LEASE_NAME = ".staged.json"
"""In the root of a staged copy: says what it is a copy of."""


def open_with_lease(root: Path) -> Generation:
    """Open the published generation; a staged copy is then kept for as long as the generation is in use.

    Raises:
        CacheNotFoundError: If there is no store, or the copy is being removed at this moment.
        CorruptManifestError: If the manifest is damaged.
    """
    descriptor = _take(root)
    try:
        generation = Generation.open(root)
    except BaseException:
        _close(descriptor)
        raise
    weakref.finalize(generation, _close, descriptor)
    return generation


def _take(root: Path) -> int | None:
    """A descriptor with the shared lock; ``None`` where there is no staged copy or there are no locks."""
    try:
        descriptor = os.open(root / LEASE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        _close(descriptor)
        raise CacheNotFoundError(
            f"the staged copy {root} is being removed", path=root, fix="torchcell-cache stage ... once more"
        ) from None
    except OSError:
        _close(descriptor)
        return None
    return descriptor


def try_to_remove(root: Path) -> int | None:
    """A descriptor that keeps readers of a staged copy out, ``None`` if somebody reads it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(root / LEASE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor
    return None


def _close(descriptor: int | None) -> None:
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        os.close(descriptor)
