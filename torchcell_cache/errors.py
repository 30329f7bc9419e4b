"""Every exception the package raises on purpose.

All of them can be built from one string and survive ``pickle``: torch re-raises a worker's error as
``type(error)(message)``, so a class that needs more arguments would turn a clear message into a ``TypeError``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_CORRUPT_OR_STALE = 65
EXIT_CANNOT_WRITE = 73
EXIT_INTERRUPTED = 75

_PACKAGES = {
    "demo": "cobra",
    "table": "pandas pyarrow",
    "polars": "polars pyarrow",
    "plot": "matplotlib",
    "graphdb": "arcadedb-embedded",
    "singlecell": "anndata scanpy",
    "s3": "s3fs",
    "gs": "gcsfs",
    "lightning": "lightning",
    "az": "adlfs",
}


def install_line(extra: str) -> str:
    """What to type where the packages of an extra are missing; their own names work wherever this package came from."""
    return f"pip install {_PACKAGES[extra]}"


class CacheError(Exception):
    """Base of all errors of this package.

    Attributes:
        path: File or directory concerned, or ``None``.
        fix: What to type or change next, or ``None``.
        code: Exit code of the command line for this kind of error.
    """

    code: int = 1

    def __init__(self, message: str, *, path: str | Path | None = None, fix: str | None = None) -> None:
        super().__init__(message if fix is None else f"{message}\n  fix: {fix}")
        self.path = None if path is None else str(path)
        self.fix = fix

    def within(self, where: str, path: str | None = None) -> Self:
        """The same error, told of a larger thing that it happened in."""
        said = str(self).removesuffix(f"\n  fix: {self.fix}")
        return type(self)(f"{where}: {said}", path=self.path or path, fix=self.fix)


class CacheNotFoundError(CacheError, FileNotFoundError):
    """No complete store at this root; carries the command that builds one.

    One line: every rank of a training prints it.
    """

    code = EXIT_CORRUPT_OR_STALE

    def __init__(self, message: str, *, path: str | Path | None = None, fix: str | None = None) -> None:
        super().__init__(message if fix is None else f"{message}; fix: {fix}", path=path)
        self.fix = fix

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class WaitTimeoutError(CacheNotFoundError, TimeoutError):
    """The store that was waited for was not published in time; says what was found instead."""

    code = EXIT_INTERRUPTED


class StaleCacheError(CacheError):
    """The store was built from another base graph, processor, source or setting; lists each difference."""

    code = EXIT_CORRUPT_OR_STALE


class CorruptManifestError(CacheError):
    """``manifest.json`` or a shard's sidecar does not hold what was written."""

    code = EXIT_CORRUPT_OR_STALE


class CorruptShardError(CacheError):
    """A file of the store is missing, has another size or another digest than the manifest says."""

    code = EXIT_CORRUPT_OR_STALE


class CorruptRecordError(CacheError):
    """One record is missing or fails its checksum.

    Attributes:
        place: Which one of those read together it is, where known.
        what: What is wrong with it, without the name of the sample.
    """

    place: int | None = None
    what: str = ""
    code = EXIT_CORRUPT_OR_STALE


class CorruptIndexError(CacheError):
    """The stored incidence index is damaged."""

    code = EXIT_CORRUPT_OR_STALE


class GraphMismatchError(CacheError, ValueError):
    """An incidence index (or a delta) is used with a base graph it was not built for."""

    code = EXIT_CORRUPT_OR_STALE


class FormatError(CacheError):
    """Written by a format version, endianness or library this version cannot read."""

    code = EXIT_CORRUPT_OR_STALE


class UnsafeContentError(CacheError):
    """Stored content asks for something a cache must never do (a path outside the root, an unknown type)."""

    code = EXIT_CORRUPT_OR_STALE


class RecordTooLargeError(CacheError, ValueError):
    """A record exceeds the configured cap."""


class SourceContractError(CacheError, ValueError):
    """The source dataset breaks its contract: unknown node, duplicate id, changed length, wrong type."""

    code = EXIT_USAGE


class SourceUnavailableError(CacheError):
    """The server that holds the samples does not answer; what was read is kept and the same call goes on."""

    code = EXIT_INTERRUPTED


class UnsupportedValueError(CacheError, TypeError):
    """A sample holds a value that no typed record can hold (an arbitrary object, a sparse tensor, ...)."""

    code = EXIT_USAGE


class SettingError(CacheError, ValueError):
    """An argument or setting is unknown or misspelt; the message lists the valid ones."""

    code = EXIT_USAGE


class SampleError(CacheError):
    """The source or the processor raised on one sample; carries its index and the original traceback."""


class BuildFailedError(CacheError):
    """The build stopped; finished shards are kept and the same command resumes."""


class BuildInProgressError(CacheError):
    """Another process is building this store."""

    code = EXIT_INTERRUPTED


class BuildInterruptedError(CacheError):
    """The build was asked to stop (SIGTERM, SIGINT) and stopped cleanly; the same command resumes."""

    code = EXIT_INTERRUPTED


class BuildIncompleteError(CacheError):
    """Shards of an array build are missing or damaged; names them, their tasks, and the line that repairs them."""

    code = EXIT_INTERRUPTED


class StorageError(CacheError, OSError):
    """The file system refused a write."""

    code = EXIT_CANNOT_WRITE

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StorageFullError(StorageError):
    """No space, quota or file size left."""


class StorageReadOnlyError(StorageError):
    """The root cannot be written: read-only mount or missing permission."""


class StorageLostError(StorageError):
    """The file system lost data or a file while in use (EIO, ESTALE)."""


class RemoteAccessError(StorageError):
    """The object store does not let us in: credentials are absent, expired or not enough."""


class RemoteUnavailableError(StorageError):
    """The object store does not answer, or not correctly, after several tries; the same call goes on where it was."""

    code = EXIT_INTERRUPTED
