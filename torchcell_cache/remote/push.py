"""``push``: a published store into object storage, manifest last.

Objects have the names that files have below the store's root. Files of a generation never change, so those that are there
stay as they are, and readers of the generation published before are not disturbed. An object store knows no renaming, but
putting one object is atomic: putting ``processed/manifest.json`` is what publishes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from torchcell_cache.core.checks import truth
from torchcell_cache.core.hints import PROCESSED_NAME
from torchcell_cache.core.progress import Console, Progress
from torchcell_cache.core.urls import local_path, refuse_inside
from torchcell_cache.errors import (
    CacheError,
    CorruptManifestError,
    FormatError,
    StaleCacheError,
    StorageLostError,
)
from torchcell_cache.remote.bucket import Bucket
from torchcell_cache.remote.opening import PUBLISHED, object_name
from torchcell_cache.remote.transfer import another_store, entries_of, metered, moved
from torchcell_cache.store.card import WholeStore, card
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.lease import open_with_lease
from torchcell_cache.store.manifest import MANIFEST_NAME, Manifest
from torchcell_cache.store.shard_entry import FileEntry
from torchcell_cache.store.stamps import ensure_verified

LEDGER_NAME = ".pushed.json"
"""Beside the objects of a generation: digests of those that a push finished."""

CARD_NAME = "card.html"
"""Beside the store: what it is, for who comes by with a browser; not part of it, nothing reads it."""

_THREADS = 8
_LEDGER_SECONDS = 5.0


def push(
    root: str | os.PathLike[str],
    url: str,
    *,
    overwrite: bool = False,
    force: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> str:
    """Put the published generation of a store into object storage, or complete what an interrupted push left.

    Beside it stands ``card.html``, which says what it is.

    Args:
        root: Root of the store.
        url: Where to: ``s3://bucket/prefix``, ``gs://``, ``az://``, ``file://``.
        overwrite: Whether a store with another content may be replaced there. Its objects stay, for those who read them.
        force: Put every object again, also those that are there: after damage in the store.
        storage_options: Options of the file system, no credentials.
        progress: Whether to print progress on stderr.

    Returns:
        The address.

    Raises:
        CacheNotFoundError: If there is no store at ``root``.
        CorruptShardError: If a file of it is damaged; nothing is published.
        StaleCacheError: If another store is there.
        RemoteAccessError: If the object store does not let us in.
        RemoteUnavailableError: If it does not answer; the same call goes on where it was.
        SettingError: If the address or an option cannot be used.

    Example:
        >>> where = tc.push("stores/cell", f"file://{here}/bucket", progress=False)
        >>> tc.PreprocessedDataset(where, cache_dir="cache").content_digest == ds.content_digest
        True
    """
    overwrite, force = truth("overwrite", overwrite), truth("force", force)
    where, bucket, say = local_path(root), Bucket(url, storage_options), Console(truth("progress", progress))
    if bucket.protocol == "file":
        refuse_inside(Path(bucket.url.partition("://")[2]), where, "url")
    begun, generation = time.perf_counter(), open_with_lease(where)
    manifest = generation.manifest
    page = card(WholeStore(generation), generation.root.name, bucket.url)
    published, data, entries = _published(bucket, force), manifest.to_bytes(), entries_of(manifest)
    same = published is not None and published.to_bytes() == data
    if published is not None and not same:
        _refuse(bucket, published, manifest, overwrite, force)
    done: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        found = {} if force else json.loads(bucket.read(object_name(manifest, LEDGER_NAME)))
        done = {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
    remote = f"{PROCESSED_NAME}/{manifest.generation}"
    there = bucket.sizes(remote)
    wanted = [e for e in entries if there.get(e.name) != e.size or done.get(e.name) != e.sha256]
    known: dict[str, str] = {}
    if published is not None and published.generation != manifest.generation and not force:
        # A store that grew has most of its files there already.
        known = {e.sha256: object_name(published, e.name) for e in entries_of(published)}
    with metered(wanted, say, "push") as meter:
        _put_all(bucket, generation, wanted, known, done, meter)
    there = bucket.sizes(remote)
    for entry in entries:  # before the manifest says that everything is there
        if there.get(entry.name) != entry.size:
            label = bucket.label(object_name(manifest, entry.name))
            text = f"{label} has {there.get(entry.name)} bytes after it was written, expected {entry.size}"
            raise StorageLostError(text, path=label, fix="push ... force=true")
    if force or not same:
        bucket.put(data, f"{remote}/{MANIFEST_NAME}")
        bucket.put(page.encode(), CARD_NAME)
        bucket.put(data, PUBLISHED)
    say(f"pushed {moved(wanted, bucket.url, begun)}; {len(entries) - len(wanted)} were there")
    return bucket.url


def _put_all(
    bucket: Bucket,
    generation: Generation,
    wanted: list[FileEntry],
    known: Mapping[str, str],
    done: dict[str, str],
    meter: Progress,
) -> None:
    """Put files, several at a time; which are ``done`` is written beside them now and then and at the end, however it ends."""

    def put(entry: FileEntry) -> int:
        path, name, copied = (
            generation.directory / entry.name,
            object_name(generation.manifest, entry.name),
            False,
        )
        if entry.sha256 in known:
            with contextlib.suppress(CacheError):
                bucket.copy(known[entry.sha256], name)
                copied = True
        if not copied:
            ensure_verified(path, entry.size, entry.xxh3)
            bucket.put_file(path, name)
        done[entry.name] = entry.sha256  # noted here: also what ends after another file has failed
        return entry.size

    def write() -> None:
        bucket.put(json.dumps(dict(done)).encode(), object_name(generation.manifest, LEDGER_NAME))

    written, pool = time.monotonic(), ThreadPoolExecutor(_THREADS)
    try:
        for future in as_completed([pool.submit(put, entry) for entry in wanted]):
            meter(future.result())
            if time.monotonic() - written > _LEDGER_SECONDS:
                written = time.monotonic()
                write()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        with contextlib.suppress(CacheError, OSError):
            write()
        raise
    pool.shutdown()
    if wanted:
        write()


def _published(bucket: Bucket, force: bool) -> Manifest | None:
    label = bucket.label(PUBLISHED)
    try:
        return Manifest.from_bytes(bucket.read(PUBLISHED), path=label)
    except FileNotFoundError:
        return None
    except (CorruptManifestError, FormatError) as error:
        if force:
            return None
        raise type(error)(
            f"{label}: {str(error).splitlines()[0]}",
            path=label,
            fix="push ... force=true replaces it, or choose another prefix",
        ) from None


def _refuse(bucket: Bucket, published: Manifest, ours: Manifest, overwrite: bool, force: bool) -> None:
    """Another store is only replaced if asked for, and never under the name of a generation that somebody may read."""
    if published.generation == ours.generation:
        same_files = [e.sha256 for e in entries_of(published)] == [e.sha256 for e in entries_of(ours)]
        if not same_files and not force:
            text = f"{bucket.url} holds {ours.generation} with other files than this store's"
            raise StaleCacheError(text, path=bucket.url, fix="push to another prefix")
    elif not overwrite:
        fix = (
            "push ... overwrite=true publishes this one instead (those who read the other one can go on), "
            "or choose another prefix"
        )
        raise another_store(bucket.url, published, ours, fix)
