"""``gc``: remove generations that nobody needs any more."""

from __future__ import annotations

import os
import shutil
import sys

from torchcell_cache.builder.generations import generation_dirs, own_manifest
from torchcell_cache.core.files import fsync_dir, remove_stale_temps, storage_errors, temp_path
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError
from torchcell_cache.store.generation import GENERATION_MANIFEST
from torchcell_cache.store.lease import is_in_use
from torchcell_cache.store.manifest import processed_dir, read_manifest
from torchcell_cache.store.status import seconds_of


def gc(
    root: str | os.PathLike[str],
    keep: int = 2,
    unfinished: bool = False,
    dry_run: bool = False,
    wait: bool | float = 60,
) -> list[str]:
    """Remove old generations of a store.

    The published generation stays, and so do the ``keep`` youngest finished ones, the published one counted, and those that
    a process reads, as far as the file system tells (local disks; NFS does not). Unfinished builds stay too, because the
    same command resumes them.

    Args:
        root: Root of the store.
        keep: How many finished generations stay; at least 1.
        unfinished: Also remove what interrupted builds and repairs left. (Damaged generations count as unfinished.)
        dry_run: Only say what would be removed.
        wait: Seconds to wait for a process that writes to this store; a generation that is read is never waited for.

    Returns:
        Names of the generations removed.

    Raises:
        CacheNotFoundError: If there is no store: then nothing is safe to remove.
        CorruptManifestError: If its manifest is damaged, likewise.
        BuildInProgressError: If a build or repair is running, also after ``wait`` seconds.
        SettingError: If ``keep`` is less than 1 or ``wait`` no number of seconds.
    """
    if keep < 1:
        raise SettingError(f"keep={keep}, expected at least 1: the published generation always stays")
    where = local_path(root)
    read_manifest(where)
    lock = BuilderLock(processed_dir(where) / LOCK_NAME)
    lock.acquire(seconds_of(wait))
    with lock, storage_errors(processed_dir(where), "clean"):
        published = read_manifest(where).generation
        others = [directory for directory in generation_dirs(where) if directory.name != published]
        finished = [directory for directory in others if own_manifest(directory) is not None]
        finished.sort(key=lambda d: (d / GENERATION_MANIFEST).stat().st_mtime_ns, reverse=True)
        doomed = finished[keep - 1 :]
        if unfinished:
            doomed += [directory for directory in others if directory not in finished]
        in_use = [directory for directory in doomed if is_in_use(directory)]
        for directory in in_use:
            print(f"kept {directory.name}: a process reads it", file=sys.stderr)
        doomed = [directory for directory in doomed if directory not in in_use]
        if not dry_run:
            remove_stale_temps(processed_dir(where), exclusive=lock.exclusive)
            # Under a temporary name first: what a killed gc leaves is cleared by the next writer or gc.
            moved = [directory.rename(temp_path(directory)) for directory in doomed]
            fsync_dir(processed_dir(where))
            for directory in moved:
                shutil.rmtree(directory)
    return sorted(directory.name for directory in doomed)
