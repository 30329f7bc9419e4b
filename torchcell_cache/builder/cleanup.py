"""``gc``: remove generations that nobody needs any more."""

from __future__ import annotations

import os
import shutil
import sys

from torchcell_cache.builder.generations import generation_dirs, own_manifest
from torchcell_cache.core.files import fsync_dir, storage_errors
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError
from torchcell_cache.store.generation import GENERATION_MANIFEST
from torchcell_cache.store.lease import is_in_use
from torchcell_cache.store.manifest import processed_dir, read_manifest


def gc(
    root: str | os.PathLike[str], keep: int = 2, unfinished: bool = False, dry_run: bool = False
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

    Returns:
        Names of the generations removed.

    Raises:
        CacheNotFoundError: If there is no store: then nothing is safe to remove.
        CorruptManifestError: If its manifest is damaged, likewise.
        BuildInProgressError: If a build or repair is running.
        SettingError: If ``keep`` is less than 1.
    """
    if keep < 1:
        raise SettingError(f"keep={keep}, expected at least 1: the published generation always stays")
    where = local_path(root)
    read_manifest(where)
    with BuilderLock(processed_dir(where) / LOCK_NAME), storage_errors(processed_dir(where), "clean"):
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
        for directory in [] if dry_run else doomed:
            # Without its manifest it is unfinished, whatever happens to the rest of this loop.
            (directory / GENERATION_MANIFEST).unlink(missing_ok=True)
            fsync_dir(directory)
            shutil.rmtree(directory)
        fsync_dir(processed_dir(where))
    return sorted(directory.name for directory in doomed)
