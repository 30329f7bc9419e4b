"""``pull``: a store out of object storage into a directory of its own, complete, like one that was built there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchcell_cache.builder.publishing import Publisher, publishing
from torchcell_cache.core.checks import truth
from torchcell_cache.core.progress import Console
from torchcell_cache.core.urls import local_path, refuse_inside
from torchcell_cache.errors import CacheNotFoundError, CorruptManifestError, FormatError
from torchcell_cache.remote.bucket import Bucket
from torchcell_cache.remote.opening import remote_manifest, remote_origin
from torchcell_cache.remote.transfer import another_store, complete, write_rest
from torchcell_cache.store.manifest import Manifest, read_manifest


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
        _bring(bucket, manifest, publisher, overwrite)
    return where


def _bring(bucket: Bucket, manifest: Manifest, publisher: Publisher, overwrite: bool) -> None:
    root, say = publisher.root, publisher.console
    current = _current(root, manifest, overwrite)
    said = complete(manifest, root, remote_origin(bucket, manifest), say, f"pull {bucket.url}")
    write_rest(manifest, root, publish=False)
    if not publisher.replace(manifest, current):
        _current(root, manifest, overwrite=False)  # without locks somebody else may have been first
    say(f"pulled {said}")


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
    if current.content_digest == manifest.content_digest and current.generation == manifest.generation:
        return current
    if current.generation == manifest.generation or not overwrite:
        again = "" if current.generation == manifest.generation else "pull ... overwrite=true, or "
        raise another_store(root, current, manifest, f"{again}choose another root")
    return current
