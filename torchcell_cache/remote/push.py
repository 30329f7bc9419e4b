"""``push``: a published store into object storage, manifest last.

Objects have the names that files have below the store's root. Files of a generation never change, so those that are there
stay as they are, and readers of the generation published before are not disturbed. An object store knows no renaming, but
putting one object is atomic: putting ``processed/manifest.json`` is what publishes.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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
from torchcell_cache.remote.opening import object_name
from torchcell_cache.remote.transfer import another_store, entries_of, moved
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
_PUBLISHED = f"{PROCESSED_NAME}/{MANIFEST_NAME}"


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
    generation = open_with_lease(where)
    return _Push(bucket, generation, force, say).run(overwrite)


class _Push:
    """One push."""

    def __init__(self, bucket: Bucket, generation: Generation, force: bool, say: Console) -> None:
        self.bucket, self.directory, self.manifest = bucket, generation.directory, generation.manifest
        self.force, self.say = force, say
        self.remote = f"{PROCESSED_NAME}/{self.manifest.generation}"
        self.page = card(WholeStore(generation), generation.root.name, bucket.url)
        self.turn, self.last_ledger = threading.Lock(), time.monotonic()
        self.done: dict[str, str] = {}

    def run(self, overwrite: bool) -> str:
        begun = time.perf_counter()
        published = self._published()
        self._refuse(published, overwrite)
        self.done = {} if self.force else self._ledger()
        there = self.bucket.sizes(self.remote)
        wanted = [e for e in entries_of(self.manifest) if not self._is_there(e, there)]
        meter = Progress(
            sum(e.size for e in wanted), 0, None, enabled=self.say.enabled, what="push", unit="bytes"
        )
        try:
            self._put_all(wanted, self._sharable(published), meter)
        finally:
            meter.close("complete")
        self._check_sizes()
        data = self.manifest.to_bytes()
        if self.force or published is None or published.to_bytes() != data:
            self.bucket.put(data, f"{self.remote}/{MANIFEST_NAME}")
            self.bucket.put(self.page.encode(), CARD_NAME)
            self.bucket.put(data, _PUBLISHED)
        there_before = len(entries_of(self.manifest)) - len(wanted)
        self.say(f"pushed {moved(wanted, self.bucket.url, begun)}; {there_before} were there")
        return self.bucket.url

    def _published(self) -> Manifest | None:
        label = self.bucket.label(_PUBLISHED)
        try:
            return Manifest.from_bytes(self.bucket.read(_PUBLISHED), path=label)
        except FileNotFoundError:
            return None
        except (CorruptManifestError, FormatError) as error:
            if self.force:
                return None
            raise type(error)(
                f"{label}: {str(error).splitlines()[0]}",
                path=label,
                fix="push ... force=true replaces it, or choose another prefix",
            ) from None

    def _refuse(self, published: Manifest | None, overwrite: bool) -> None:
        """Another store is only replaced if asked for, and never under the name of a generation that somebody may read."""
        ours = self.manifest
        if published is None or published.to_bytes() == ours.to_bytes():
            return
        same_files = [e.sha256 for e in entries_of(published)] == [e.sha256 for e in entries_of(ours)]
        if published.generation == ours.generation:
            if same_files or self.force:
                return
            raise StaleCacheError(
                f"{self.bucket.url} holds {ours.generation} with other files than this store's",
                path=self.bucket.url,
                fix="push to another prefix",
            )
        if not overwrite:
            fix = (
                "push ... overwrite=true publishes this one instead (those who read the other one can go on), "
                "or choose another prefix"
            )
            raise another_store(self.bucket.url, published, ours, fix)

    def _ledger(self) -> dict[str, str]:
        try:
            found = json.loads(self.bucket.read(f"{self.remote}/{LEDGER_NAME}"))
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def _is_there(self, entry: FileEntry, there: dict[str, int]) -> bool:
        return there.get(entry.name) == entry.size and self.done.get(entry.name) == entry.sha256

    def _sharable(self, published: Manifest | None) -> dict[str, str]:
        """Objects of the generation published so far by digest: a store that grew has most of its files there already."""
        if self.force or published is None or published.generation == self.manifest.generation:
            return {}
        return {e.sha256: object_name(published, e.name) for e in entries_of(published)}

    def _put_all(self, wanted: list[FileEntry], sharable: dict[str, str], meter: Progress) -> None:
        def put(entry: FileEntry) -> None:
            self._put(entry, sharable.get(entry.sha256))
            self._note(entry, meter)

        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                for _ in pool.map(put, wanted):  # the first error cancels what has not begun
                    pass
        except BaseException:
            with contextlib.suppress(CacheError, OSError):
                self._write_ledger()
            raise
        if wanted:
            self._write_ledger()

    def _put(self, entry: FileEntry, shared: str | None) -> None:
        path, name = self.directory / entry.name, object_name(self.manifest, entry.name)
        if shared is not None:
            with contextlib.suppress(CacheError):
                self.bucket.copy(shared, name)
                return
        ensure_verified(path, entry.size, entry.xxh3)
        self.bucket.put_file(path, name)

    def _note(self, entry: FileEntry, meter: Progress) -> None:
        with self.turn:
            self.done[entry.name] = entry.sha256
            meter(entry.size)
            due = time.monotonic() - self.last_ledger > _LEDGER_SECONDS
            if due:
                self.last_ledger = time.monotonic()
        if due:
            self._write_ledger()

    def _write_ledger(self) -> None:
        with self.turn:
            data = json.dumps(self.done).encode()
        self.bucket.put(data, f"{self.remote}/{LEDGER_NAME}")

    def _check_sizes(self) -> None:
        """Before the manifest says that everything is there."""
        there = self.bucket.sizes(self.remote)
        for entry in entries_of(self.manifest):
            if there.get(entry.name) != entry.size:
                label = self.bucket.label(object_name(self.manifest, entry.name))
                raise StorageLostError(
                    f"{label} has {there.get(entry.name)} bytes after it was written, expected {entry.size}",
                    path=label,
                    fix="push ... force=true",
                )
