"""The files of a manifest, brought into a directory from anywhere: digests checked in the stream, finished ones kept.

Where bytes come from is the caller's business (:data:`Fetch`); what they must be is the manifest's. Only files with digests
travel: everything else of a generation is written again from the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from torchcell_cache.core.failures import free_bytes, storage_errors
from torchcell_cache.core.files import (
    fsync_file,
    make_dirs_durable,
    remove_stale_temps,
    replace_file,
    temp_path,
    write_atomic,
)
from torchcell_cache.core.fingerprint import explain
from torchcell_cache.core.progress import Console, Progress, human_bytes, human_seconds
from torchcell_cache.errors import (
    CacheError,
    CorruptShardError,
    StaleCacheError,
    StorageFullError,
    StorageLostError,
)
from torchcell_cache.store.manifest import MANIFEST_NAME, Manifest, manifest_path, processed_dir
from torchcell_cache.store.shard_entry import FileEntry, write_sidecar
from torchcell_cache.store.stamps import is_verified, stamp

Fetch = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens one file of the generation by name, to be read once from its beginning."""

_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """Where files come from.

    Attributes:
        name: As messages call it.
        fetch: Opens a file.
        fix: What to type if it does not hold what the manifest says.
        attempts: How often a file is fetched that arrives with other bytes; more than once where a network is between.
        threads: Files fetched at a time.
        gone: The error for a file that is not there any more.
    """

    name: str
    fetch: Fetch
    fix: str
    attempts: int = 1
    threads: int = 4
    gone: Callable[[str], CacheError] | None = None


def entries_of(manifest: Manifest) -> list[FileEntry]:
    """All files with digests: those beside the shards first."""
    return [*manifest.files, *(shard.file for shard in manifest.shards)]


def missing_files(manifest: Manifest, root: Path) -> list[FileEntry]:
    """Files that are not there or not whole; sizes and, unless this node has checked them before, digests are compared."""
    directory = processed_dir(root) / manifest.generation
    return [e for e in entries_of(manifest) if not is_verified(directory / e.name, e)]


def another_store(where: str | Path, found: Manifest, wanted: Manifest, fix: str) -> StaleCacheError:
    """The error for a place that holds another store than the one to be copied there."""
    same = ["the same inputs, built or repaired again"]
    lines = explain(found.fingerprint, wanted.fingerprint) or same
    holds = f"{where} holds another store ({found.num_samples:,} samples, {found.generation})"
    return StaleCacheError("\n    ".join([f"{holds}:", *lines]), path=where, fix=fix)


def check_space(wanted: Iterable[FileEntry], directory: Path) -> None:
    """Refuse before the first byte if the files cannot fit.

    Raises:
        StorageFullError: Naming what is needed and what is free.
    """
    need, free = sum(entry.size for entry in wanted), free_bytes(directory)
    if need > free:
        raise StorageFullError(
            f"{need:,} bytes are to be copied to {directory}, {free:,} are free",
            path=directory,
            fix="free space there (stage ... keep=1 removes old copies), or choose another directory",
        )


def complete(
    manifest: Manifest,
    root: Path,
    origin: Origin,
    say: Console,
    what: str,
    place: Path | None = None,
    begin: Callable[[], Any] = lambda: None,
) -> str:
    """Bring what is missing of a copy at ``root``, called ``place``; what it was and how long it took, in words.

    ``begin`` is called once there is room for it.
    """
    begun, place = time.perf_counter(), place or root
    wanted = missing_files(manifest, root)
    check_space(wanted, place if root == place else place.parent)
    begin()
    total = sum(entry.size for entry in wanted)
    meter = Progress(total, 0, None, enabled=say.enabled, what=what, unit="bytes")
    try:
        fill(manifest, root, wanted, origin, meter)
    finally:
        meter.close("complete")
    return moved(wanted, str(place), begun)


def moved(files: Sequence[FileEntry], where: str, begun: float) -> str:
    """How much was moved, where to, how fast."""
    total, seconds = sum(entry.size for entry in files), time.perf_counter() - begun
    rate = human_bytes(total / max(seconds, 1e-9))
    return f"{human_bytes(total)} in {len(files)} files to {where} in {human_seconds(seconds)} ({rate}/s)"


def fill(
    manifest: Manifest, root: Path, wanted: list[FileEntry], origin: Origin, note: Callable[[int], None]
) -> None:
    """Bring files to ``root``, several at a time; each appears under its name once its digests are right.

    ``note`` is told the number of bytes since its last call, by one thread at a time.

    Raises:
        CorruptShardError: If the origin does not hold what the manifest says.
        StorageError: If a file system refuses.
    """
    directory = make_dirs_durable(processed_dir(root) / manifest.generation)
    remove_stale_temps(directory)
    stop, turn = threading.Event(), threading.Lock()

    def told(count: int) -> None:
        with turn:
            note(count)

    with ThreadPoolExecutor(origin.threads) as pool:
        try:
            for _ in pool.map(lambda entry: bring(entry, directory, origin, told, stop), wanted):
                pass
        finally:
            stop.set()  # an error or a signal ends the other files too


def write_rest(manifest: Manifest, root: Path, publish: bool = True) -> None:
    """Write what follows from the manifest: side files, the generation's own manifest and, last, ``manifest.json``."""
    directory = processed_dir(root) / manifest.generation
    for place in (root, processed_dir(root)):
        remove_stale_temps(place)
    for shard in manifest.shards:
        write_sidecar(directory, shard)
    write_atomic(directory / MANIFEST_NAME, manifest.to_bytes())
    if publish:
        write_atomic(manifest_path(root), manifest.to_bytes())


def bring(
    entry: FileEntry, directory: Path, origin: Origin, note: Callable[[int], None], stop: threading.Event
) -> None:
    """Bring one file; see :func:`fill`. ``stop`` ends it early, and is set where it fails."""
    if stop.is_set():
        return
    target = directory / entry.name
    temporary = temp_path(target)
    try:
        with storage_errors(target, "copy"):
            if not _stream_right(entry, temporary, origin, note, stop):
                return
            temporary.chmod(0o444)
            fsync_file(temporary)
            replace_file(temporary, target)
            stamp(target, entry.xxh3)
    except FileNotFoundError:  # of ours: what the origin lacks is a CorruptShardError
        stop.set()
        raise StorageLostError(
            f"{directory} was removed while {entry.name} was copied there",
            path=directory,
            fix="run the same call again",
        ) from None
    except BaseException:
        stop.set()
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _stream_right(
    entry: FileEntry, temporary: Path, origin: Origin, note: Callable[[int], None], stop: threading.Event
) -> bool:
    """:func:`_stream`, again while other bytes arrive and there are attempts left."""
    for left in reversed(range(origin.attempts)):
        try:
            return _stream(entry, temporary, origin, note, stop)
        except CorruptShardError:
            if not left:
                raise
            with contextlib.suppress(FileNotFoundError):
                note(-temporary.stat().st_size)
                temporary.unlink()
    return False


@contextlib.contextmanager
def _at_origin(entry: FileEntry, origin: Origin) -> Iterator[None]:
    try:
        yield
    except CacheError:
        raise
    except FileNotFoundError as error:
        text = f"{entry.name} is missing at {origin.name} ({error})"
        missing = CorruptShardError(text, path=origin.name, fix=origin.fix)
        raise (missing if origin.gone is None else origin.gone(entry.name)) from None


def _stream(
    entry: FileEntry, temporary: Path, origin: Origin, note: Callable[[int], None], stop: threading.Event
) -> bool:
    """Copy the bytes and check them on the way; ``False`` if asked to stop."""
    sha, xxh, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    with (
        temporary.open("xb", buffering=0) as sink,
        _at_origin(entry, origin),
        origin.fetch(entry.name) as source,
    ):
        while block := source.read(_CHUNK):
            sha.update(block)
            xxh.update(block)
            view = memoryview(block)
            while view:
                view = view[sink.write(view) :]
            size += len(block)
            note(len(block))
            if stop.is_set():
                return False
            if size > entry.size:
                break
    if (size, sha.hexdigest(), xxh.hexdigest()) != (entry.size, entry.sha256, entry.xxh3):
        raise CorruptShardError(
            f"{entry.name} at {origin.name} has {size:,} bytes and SHA-256 {sha.hexdigest()[:16]}..., "
            f"the manifest says {entry.size:,} and {entry.sha256[:16]}...",
            path=origin.name,
            fix=origin.fix,
        )
    return True
