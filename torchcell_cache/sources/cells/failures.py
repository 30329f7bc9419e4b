"""What goes wrong when a file of cells is found, opened or read, as an error with path, cause and fix."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Sequence

from torchcell_cache.core import failures
from torchcell_cache.core.urls import PROTOCOLS, protocol_of
from torchcell_cache.errors import (
    CacheError,
    SettingError,
    SourceContractError,
    StorageFullError,
    StorageLostError,
    install_line,
)

_HDF5 = ("synchronously", "unable to open", "unable to read", "hdf5")


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Name the file in what finding, opening or reading it raises, which becomes the package's own error."""
    try:
        yield
    except SourceContractError as error:
        if error.path is not None:
            raise
        raise error.within(url, url) from error.__cause__
    except (CacheError, MemoryError):
        raise
    except Exception as error:
        raise _translated(url, error) from error


@contextlib.contextmanager
def temporary_files(what: str) -> Iterator[None]:
    """Turn a failure to write below ``$TMPDIR`` into the package's own error."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        where = os.environ.get("TMPDIR", "/tmp")
        fix = f"export TMPDIR=... to a directory with room, then run the same again; {where} is in use now"
        kind = StorageFullError if failures.storage_error(error.errno, where) is not None else SettingError
        text = error.strerror or str(error)
        raise kind(f"cannot write {what} below {where}: {text}", path=where, fix=fix) from error


def matrix_missing(
    url: str, wanted: str | None, has: tuple[bool, bool], layers: Collection[str], groups: Collection[str]
) -> SourceContractError:
    """The error for a matrix that a file or an object does not have; names other formats that it may be."""
    fix = "raw=True, layer=..., or a file with it"
    if "mod" in groups:
        fix = f"AnnDataSource(mudata.read_h5mu({url!r}).mod[...], ...): it is a MuData file"
    elif "matrix" in groups:
        fix = f"AnnDataSource(scanpy.read_10x_h5({url!r}), ...): it is a 10x or loom file"
    there = f"X: {has[0]}, raw: {has[1]}, layers {sorted(layers)}"
    return SourceContractError(f"{url} has no {wanted or 'X'}; it has {there}", path=url, fix=fix)


def _translated(url: str, error: Exception) -> CacheError:
    said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    of_hdf5 = isinstance(error, OSError) and any(word in str(error).lower() for word in _HDF5)
    lost = failures.storage_error(error.errno, url, "read") if isinstance(error, OSError) else None
    missing = isinstance(error, FileNotFoundError)
    if "://" in url and not of_hdf5:
        protocol = protocol_of(url)
        if isinstance(error, ImportError):
            extra = PROTOCOLS.get(protocol)
            fix = install_line(extra) if extra else "pip install the package that the message names"
            return SettingError(f"{url}: {failures.text_of(error)}", path=url, fix=fix)
        dead = "Connect" in type(error.__cause__).__name__  # fsspec calls what it cannot reach missing
        missing = failures.kind_of(error) == failures.GONE and not dead
        if not missing:
            return failures.server_error(error, "read", url, protocol)
    if missing:
        text, fix = f"{url}: no such file", "pass the path or URL of an H5AD file, or a pattern of several"
    elif isinstance(error, PermissionError):
        text = f"{url} may not be read: {os.strerror(error.errno or errno.EACCES)}"
        fix = f"check owner and permissions of {url}"
    elif isinstance(lost, StorageLostError):
        return lost
    elif of_hdf5 and any(word in str(error).lower() for word in ("filter", "plugin")):
        text = f"{url} is compressed by a codec that is not installed: {error}"
        fix = "pip install hdf5plugin, which is used where it is installed"
    elif of_hdf5:
        text = f"{url} is not an H5AD file, or it is damaged: {error}"
        fix = "copy or write it again; AnnData.write_h5ad makes such files"
    else:
        text = f"{url} cannot be read as an H5AD file: {said}"
        fix = "does anndata.read_h5ad read it? If so, pass what it returns in place of the path; else write it again"
    return SourceContractError(text, path=url, fix=fix)


def check_columns(name: str, columns: Sequence[str], there: list[str]) -> None:
    """Refuse columns that a table does not have, or has twice."""
    for column in columns:
        if (count := there.count(column)) != 1:
            said = f"no column {column!r}; it has {', '.join(there) or 'none'}"
            raise SourceContractError(f"{name} has {said if not count else f'{count} columns {column!r}'}")
