"""The files of a manifest, brought into a directory from anywhere: digests checked in the stream, finished ones kept.

Where bytes come from is the caller's business (:class:`Origin`); what they must be is the manifest's. Only files with digests
travel: everything else of a generation is written again from the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from torchcell_cache.core.failures import free_bytes, storage_errors
from torchcell_cache.core.files import (
    fsync_file,
    make_dirs_durable,
    remove_stale_temps,
    replace_file,
    temp_path,
    write_all,
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


@dataclass(frozen=True, slots=True)
class Origin:
    """Where files come from.

    Attributes:
        name: As messages call it.
        fetch: One file of the generation by its name, in blocks from its beginning.
        fix: What to type if it does not hold what the manifest says.
        attempts: How often a file is fetched that arrives with other bytes; more than once where a network is between.
        threads: Files fetched at a time.
        gone: The error for a file that is not there any more.
    """

    name: str
    fetch: Callable[[str], Iterable[bytes]]
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
    lines = explain(found.fingerprint, wanted.fingerprint) or ["the same inputs, built or repaired again"]
    holds = f"{where} holds another store ({found.num_samples:,} samples, {found.generation})"
    return StaleCacheError("\n    ".join([f"{holds}:", *lines]), path=where, fix=fix)


def check_space(wanted: Iterable[FileEntry], directory: Path) -> None:
    """Refuse before the first byte if the files cannot fit.

    Raises:
        StorageFullError: Naming what is needed and what is free.
    """
    need, free = sum(entry.size for entry in wanted), free_bytes(directory)
    if need > free:
        text = f"{need:,} bytes are to be copied to {directory}, {free:,} are free"
        fix = "free space there (stage ... keep=1 removes old copies), or choose another directory"
        raise StorageFullError(text, path=directory, fix=fix)


def metered(files: Iterable[FileEntry], say: Console, what: str) -> Progress:
    """Progress over the bytes of some files."""
    total = sum(entry.size for entry in files)
    return Progress(total, 0, None, enabled=say.enabled, what=what, unit="bytes")


def moved(files: Sequence[FileEntry], where: str, begun: float) -> str:
    """How much was moved, where to, how fast."""
    total, seconds = sum(entry.size for entry in files), time.perf_counter() - begun
    rate = human_bytes(total / max(seconds, 1e-9))
    return f"{human_bytes(total)} in {len(files)} files to {where} in {human_seconds(seconds)} ({rate}/s)"


def fill(
    manifest: Manifest, root: Path, wanted: list[FileEntry], origin: Origin, note: Callable[[int], Any]
) -> None:
    """Bring files to ``root``, several at a time; each appears under its name once its digests are right.

    ``note`` is told the number of bytes since its last call.

    Raises:
        CorruptShardError: If the origin does not hold what the manifest says.
        StorageError: If a file system refuses.
    """
    directory = make_dirs_durable(processed_dir(root) / manifest.generation)
    remove_stale_temps(directory)
    stop = threading.Event()
    with ThreadPoolExecutor(origin.threads) as pool:
        try:
            for _ in pool.map(lambda entry: bring(entry, directory, origin, note, stop), wanted):
                pass
        finally:
            stop.set()  # an error or a signal ends the other files too


def write_rest(manifest: Manifest, root: Path, publish: bool = True) -> None:
    """Write what follows from the manifest: sidecars, the generation's own manifest and, last, ``manifest.json``."""
    directory = processed_dir(root) / manifest.generation
    for place in (root, processed_dir(root)):
        remove_stale_temps(place)
    for shard in manifest.shards:
        write_sidecar(directory, shard)
    write_atomic(directory / MANIFEST_NAME, manifest.to_bytes())
    if publish:
        write_atomic(manifest_path(root), manifest.to_bytes())


def bring(
    entry: FileEntry, directory: Path, origin: Origin, note: Callable[[int], Any], stop: threading.Event
) -> None:
    """Bring one file; see :func:`fill`. ``stop`` ends it early, and is set where it fails."""
    if stop.is_set():
        return
    target = directory / entry.name
    temporary = temp_path(target)
    try:
        with storage_errors(target, "copy"):
            for left in reversed(range(origin.attempts)):
                wrong = _stream(entry, temporary, origin, note, stop)
                if stop.is_set():
                    return
                if wrong is None:
                    break
                if not left:
                    raise wrong
                note(-temporary.stat().st_size)
                temporary.unlink()
            temporary.chmod(0o444)
            fsync_file(temporary)
            replace_file(temporary, target)
            stamp(target, entry.xxh3)
    except FileNotFoundError:  # of ours: what the origin lacks is a CorruptShardError
        stop.set()
        text = f"{directory} was removed while {entry.name} was copied there"
        raise StorageLostError(text, path=directory, fix="run the same call again") from None
    except BaseException:
        stop.set()
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _stream(
    entry: FileEntry, temporary: Path, origin: Origin, note: Callable[[int], Any], stop: threading.Event
) -> CorruptShardError | None:
    """Copy the bytes until asked to stop; the error if they are other ones than the manifest says."""
    sha, xxh, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    with temporary.open("xb", buffering=0) as sink:
        try:
            for block in origin.fetch(entry.name):
                sha.update(block)
                xxh.update(block)
                write_all(sink.fileno(), block)
                size += len(block)
                note(len(block))
                if stop.is_set() or size > entry.size:
                    break
        except FileNotFoundError as error:
            if isinstance(error, CacheError):
                raise
            text = f"{entry.name} is missing at {origin.name} ({error})"
            missing = CorruptShardError(text, path=origin.name, fix=origin.fix)
            raise (missing if origin.gone is None else origin.gone(entry.name)) from None
    if (size, sha.hexdigest(), xxh.hexdigest()) == (entry.size, entry.sha256, entry.xxh3):
        return None
    text = (
        f"{entry.name} at {origin.name} has {size:,} bytes and SHA-256 {sha.hexdigest()[:16]}..., "
        f"the manifest says {entry.size:,} and {entry.sha256[:16]}..."
    )
    return CorruptShardError(text, path=origin.name, fix=origin.fix)
