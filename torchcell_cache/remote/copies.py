"""``stage`` and ``pull``: a verified copy of a published store on another disk.

``stage`` copies to ``<directory>/<name>-<16 digits of the manifest's digest>`` on this node's own disk, which is a store root
like any other. Another content has another name, so a stale copy is never read. See ``docs/clusters.md``. ``pull`` copies to a
directory of its own, complete, like a store that was built there.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from torchcell_cache.builder.publishing import publishing
from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import (
    fsync_dir,
    make_dirs_durable,
    remove_stale_temps,
    temp_path,
    write_atomic,
)
from torchcell_cache.core.hints import root_argument
from torchcell_cache.core.locks import BuilderLock, read_status
from torchcell_cache.core.progress import Console, human_seconds
from torchcell_cache.core.urls import checked_url, is_url, local_path, refuse_inside
from torchcell_cache.errors import (
    CacheError,
    CacheNotFoundError,
    CorruptManifestError,
    FormatError,
    UnsafeContentError,
)
from torchcell_cache.remote import transfer
from torchcell_cache.remote.bucket import Bucket
from torchcell_cache.remote.opening import remote_manifest, remote_origin
from torchcell_cache.store.lease import LEASE_NAME, keeping, try_to_remove
from torchcell_cache.store.manifest import Manifest, copy_name, manifest_path, processed_dir, read_manifest
from torchcell_cache.store.status import wait_for_store

KEPT_SECONDS = 3600.0
"""A copy staged less than this ago stays: whoever staged it may not have opened it yet."""

_COPY = re.compile(r"(\.partial-)?.{1,80}-[0-9a-f]{16}")
_BLOCK = 4 << 20


def stage(
    root: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    keep: int | None = None,
    wait: bool | float = False,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Copy the published generation of a store to local disk, or find the copy that is there.

    Any number of processes of a node may call this at once: one copies, the others wait for it. What a killed copier
    finished is kept.

    Args:
        root: Root of the store, or the address it was pushed to.
        to: Directory on this node's disk; made if it is not there.
        keep: Remove all but the ``keep`` youngest copies of this store, this one counted; never one that is in use or was
            staged within the last hour. ``None`` removes nothing.
        wait: Seconds to wait for a store that is still being built, ``True`` without limit.
        progress: Whether to print progress on stderr.
        storage_options: For an address: options of the file system, no credentials.

    Returns:
        Root of the copy, for :class:`torchcell_cache.PreprocessedDataset`.

    Raises:
        CacheNotFoundError: If there is no store.
        CorruptShardError: If a file of the store is not what its manifest says; nothing is published.
        StorageError: If there is no room, or a file system refuses.
        SettingError: If an argument has no such value.

    Example:
        >>> copy = tc.PreprocessedDataset(tc.stage("stores/cell", "scratch", progress=False))
    """
    if keep is not None:
        keep = whole_number("keep", keep, 1, fix="keep=1, the copy just staged always stays")
    say, place = Console(truth("progress", progress)), local_path(to, "to")
    refuse_inside(place, checked_url(root) if is_url(root) else local_path(root), "to")
    with _source(root, wait, storage_options) as (manifest, origin, where):
        make_dirs_durable(place)
        remove_stale_temps(place)
        target = place / copy_name(Path(where), manifest)
        if target.is_symlink():
            text = f"{target} is a symbolic link, expected a directory"
            raise UnsafeContentError(text, path=target, fix="remove it")
        lock = BuilderLock(target.with_name(f".{target.name}.lock"))
        # One copier per node; the kernel frees the lock of one that died.
        lock.wait(say, lambda owner: f"{owner or 'another process'}, which copies to {target}")
        with lock:
            _ensure(manifest, where, origin, target, lock.exclusive, say)
            with contextlib.suppress(OSError):  # somebody else's copy
                os.utime(target / LEASE_NAME)
            if keep is not None:
                _remove_old(where, target, keep, say)
    return target


@contextlib.contextmanager
def _source(
    root: str | os.PathLike[str], wait: bool | float, options: Mapping[str, Any] | None
) -> Generator[tuple[Manifest, transfer.Origin, str], None, None]:
    """What is to be copied, where its files are, and its name; on a file system kept from ``gc`` meanwhile."""
    if is_url(root):
        bucket = Bucket(root, options)
        manifest = remote_manifest(bucket, wait)
        yield manifest, remote_origin(bucket, manifest), bucket.url
        return
    where = local_path(root)
    wait_for_store(where, wait)
    with keeping(where, read_manifest, lambda found: found) as manifest:
        yield manifest, local_origin(where, manifest), str(where)


def local_origin(root: Path, manifest: Manifest) -> transfer.Origin:
    """The files of a store on a mounted file system."""
    directory = processed_dir(root) / manifest.generation

    def fetch(name: str) -> Iterator[bytes]:
        with (directory / name).open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                yield block

    return transfer.Origin(str(directory), fetch, f"torchcell-cache repair {root_argument(root)}")


def _ensure(
    manifest: Manifest, root: str, origin: transfer.Origin, target: Path, alone: bool, say: Console
) -> None:
    """Make the copy, complete what is missing of one, or find it whole."""
    begun = time.perf_counter()
    if target.is_dir() and _is_whole(manifest, target):
        say(f"{target} is there, checked in {human_seconds(time.perf_counter() - begun)}")
        return
    # A published copy is mended in place, file by file: whoever reads it keeps the files that are open.
    partial_name = target.with_name(f".partial-{target.name}")
    work = target if target.is_dir() else partial_name if alone else temp_path(target)
    wanted = transfer.missing_files(manifest, work)
    transfer.check_space(wanted, target.parent)
    make_dirs_durable(processed_dir(work))
    source = {"source": root, "manifest": manifest.digest, "host": platform.node()}
    write_atomic(work / LEASE_NAME, json.dumps(source).encode())
    with transfer.metered(wanted, say, f"stage {target.name}") as meter:
        transfer.fill(manifest, work, wanted, origin, meter)
    transfer.write_rest(manifest, work)
    if work != target:
        with storage_errors(target, "publish"):
            try:
                os.rename(work, target)  # noqa: PTH104 - Path.rename is the same call, less plainly
            except OSError:
                if not _is_whole(manifest, target):
                    raise
                shutil.rmtree(work)  # without locks another copier may have been first
            fsync_dir(target.parent)
    say(f"staged {transfer.moved(wanted, str(target), begun)}")


def _is_whole(manifest: Manifest, target: Path) -> bool:
    with contextlib.suppress(OSError):
        is_published = manifest_path(target).read_bytes() == manifest.to_bytes()
        return is_published and not transfer.missing_files(manifest, target)
    return False


def _remove_old(root: str, target: Path, keep: int, say: Console) -> None:
    """Remove the oldest copies of the same store, and what killed copiers left of other contents of it."""
    finished: list[tuple[float, Path]] = []
    for path in target.parent.iterdir():
        lease = path / LEASE_NAME
        if path == target or not _COPY.fullmatch(path.name) or path.is_symlink():
            continue
        if (read_status(lease) or {}).get("source") != root:
            continue
        if path.name.startswith("."):
            _remove(path, path.with_name(path.name.removeprefix(".partial-")))
        else:
            finished.append((lease.stat().st_mtime, path))
    for staged, path in sorted(finished, reverse=True)[keep - 1 :]:
        if time.time() - staged < KEPT_SECONDS:
            say(f"kept {path}: staged within the last hour")
        else:
            say(f"removed {path}" if _remove(path, path) else f"kept {path}: in use")


def _remove(path: Path, target: Path) -> bool:
    """Remove one copy unless somebody reads it, copies to it, or there are no locks to tell."""
    lock = BuilderLock(target.with_name(f".{target.name}.lock"))
    if not lock.acquire():
        return False
    try:
        descriptor = try_to_remove(path) if lock.exclusive else None
        if descriptor is None:
            return False
        try:
            doomed = temp_path(path)
            with storage_errors(path, "remove"):
                os.rename(path, doomed)  # noqa: PTH104 - at once, so that nobody opens half a copy
            shutil.rmtree(doomed, ignore_errors=True)
        finally:
            os.close(descriptor)
        lock.path.unlink(missing_ok=True)
        return True
    except CacheError:
        return False
    finally:
        lock.release()


def pull(
    url: str,
    root: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    wait: bool | float = False,
    progress: bool = True,
) -> Path:
    """Copy a store from object storage into a directory; what an interrupted pull finished is kept.

    Args:
        url: Where it was pushed to.
        root: Root of the copy.
        overwrite: Whether a store with another content may be replaced there; its generation stays until ``gc``.
        storage_options: Options of the file system, no credentials.
        wait: Seconds to wait for a store that another job is about to push, ``True`` without limit.
        progress: Whether to print progress on stderr.

    Returns:
        The root.

    Raises:
        CacheNotFoundError: If nothing was pushed there.
        CorruptShardError: If an object is not what the manifest says, however often it is fetched.
        StaleCacheError: If another store is at ``root``.
        StorageError: If there is no room, or the object store cannot be reached.
        SettingError: If the address or an option cannot be used.

    Example:
        >>> where = tc.push("stores/cell", f"file://{here}/bucket", progress=False)
        >>> tc.pull(where, "stores/pulled", progress=False).name
        'pulled'
    """
    overwrite, say = truth("overwrite", overwrite), Console(truth("progress", progress))
    where, bucket = local_path(root), Bucket(url, storage_options)
    refuse_inside(where, bucket.url, "root")
    manifest = remote_manifest(bucket, wait)
    _current(where, manifest, overwrite)
    with publishing(where, say) as publisher:
        current = _current(where, manifest, overwrite)
        begun, wanted = time.perf_counter(), transfer.missing_files(manifest, where)
        transfer.check_space(wanted, where)
        with transfer.metered(wanted, say, f"pull {bucket.url}") as meter:
            transfer.fill(manifest, where, wanted, remote_origin(bucket, manifest), meter)
        transfer.write_rest(manifest, where, publish=False)
        if not publisher.replace(manifest, current):
            _current(where, manifest, overwrite=False)  # without locks somebody else may have been first
        say(f"pulled {transfer.moved(wanted, str(where), begun)}")
    return where


def _current(root: Path, manifest: Manifest, overwrite: bool) -> Manifest | None:
    """What is published at ``root``, unless it must not be replaced."""
    try:
        current = read_manifest(root)
    except CacheNotFoundError:
        return None
    except (CorruptManifestError, FormatError):
        if not overwrite:
            raise
        return None
    same = current.generation == manifest.generation
    if (same and current.content_digest == manifest.content_digest) or (overwrite and not same):
        return current
    again = "" if same else "pull ... overwrite=true, or "
    raise transfer.another_store(root, current, manifest, f"{again}choose another root")
