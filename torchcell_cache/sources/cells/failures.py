"""What goes wrong when a file of cells is found, opened or read, as an error with path, cause and fix."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Sequence, Set
from typing import Any

from torchcell_cache.core.failures import storage_error
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
    """Turn whatever finding, opening or reading a file raises into the package's own error."""
    try:
        yield
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
        kind = StorageFullError if storage_error(error.errno, where) is not None else SettingError
        text = error.strerror or str(error)
        raise kind(f"cannot write {what} below {where}: {text}", path=where, fix=fix) from error


def directory_refused(url: str, names: list[str]) -> SourceContractError:
    """The error for a directory in place of a file; zarr stores are directories."""
    if url.rstrip("/").endswith(".zarr") or {".zgroup", ".zattrs", ".zmetadata", "zarr.json"} & set(names):
        return SourceContractError(
            f"{url} is a zarr store; cells are read from H5AD files",
            path=url,
            fix=f"AnnDataSource(anndata.read_zarr({url!r}), ...) where it fits in memory, or once "
            f"anndata.read_zarr({url!r}).write_h5ad('cells.h5ad')",
        )
    count = sum(name.endswith(".h5ad") for name in names)
    return SourceContractError(
        f"{url} is a directory, expected an H5AD file",
        path=url,
        fix=f"{url.rstrip('/')}/*.h5ad for the {count} H5AD files in it"
        if count
        else "pass the path of an H5AD file",
    )


def matrix_missing(url: str, wanted: str, there: str, groups: Collection[str] = ()) -> SourceContractError:
    """The error for a matrix that a file or an object does not have; names other formats that it may be."""
    fix = "raw=True, layer=..., or a file with it"
    if "mod" in groups:
        fix = f"AnnDataSource(mudata.read_h5mu({url!r}).mod[...], ...): it is a MuData file"
    elif "matrix" in groups:
        fix = f"AnnDataSource(scanpy.read_10x_h5({url!r}), ...): it is a 10x or loom file"
    return SourceContractError(f"{url} has no {wanted}; it has {there}", path=url, fix=fix)


def missing_file(url: str) -> SourceContractError:
    """The error for a file that is not there."""
    return SourceContractError(
        f"{url}: no such file", path=url, fix="pass the path or URL of an H5AD file, or a pattern of several"
    )


def _translated(url: str, error: Exception) -> CacheError:
    said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if "://" in url and not _is_of_hdf5(error):
        return _of_server(url, error)
    if isinstance(error, FileNotFoundError):
        return missing_file(url)
    if isinstance(error, PermissionError):
        reason = os.strerror(error.errno or errno.EACCES)
        return SourceContractError(
            f"{url} may not be read: {reason}", path=url, fix=f"check owner and permissions of {url}"
        )
    lost = storage_error(error.errno, url, "read") if isinstance(error, OSError) else None
    if isinstance(lost, StorageLostError):
        return lost
    if isinstance(error, OSError) and _is_of_hdf5(error):
        return _of_hdf5(url, error)
    return SourceContractError(
        f"{url} cannot be read as an H5AD file: {said}",
        path=url,
        fix="does anndata.read_h5ad read it? If so, pass what it returns in place of the path; else write it again",
    )


def _is_of_hdf5(error: Exception) -> bool:
    return isinstance(error, OSError) and any(word in str(error).lower() for word in _HDF5)


def _of_hdf5(url: str, error: OSError) -> SourceContractError:
    text = str(error)
    if "filter" in text.lower() or "plugin" in text.lower():
        return SourceContractError(
            f"{url} is compressed by a codec that is not installed: {text}",
            path=url,
            fix="pip install hdf5plugin, which is used where it is installed",
        )
    return SourceContractError(
        f"{url} is not an H5AD file, or it is damaged: {text}",
        path=url,
        fix="copy or write it again; AnnData.write_h5ad makes such files",
    )


def _of_server(url: str, error: Exception) -> CacheError:
    from torchcell_cache.core import failures

    protocol = protocol_of(url)
    if isinstance(error, ImportError):
        extra = PROTOCOLS.get(protocol)
        fix = install_line(extra) if extra else "pip install the package that the message names"
        return SettingError(f"{url}: {failures.text_of(error)}", path=url, fix=fix)
    dead = "Connect" in type(error.__cause__).__name__  # fsspec calls what it cannot reach missing
    if failures.kind_of(error) == failures.GONE and not dead:
        return missing_file(url)
    return failures.server_error(error, "read", url, protocol)


def absent(library: str, error: ImportError) -> SettingError:
    """The error for a library that is not installed."""
    name = library.split(".")[0]
    fix = f"pip install {name}" if name == "fsspec" else install_line("singlecell")
    return SettingError(f"AnnDataSource needs the package {name} ({error})", fix=fix)


def not_a_file(given: Any, holds: str = "is") -> SettingError:
    """The error for something that is neither a path nor an AnnData."""
    order = ", which has no order" if isinstance(given, Set) else ""
    return SettingError(
        f"files {holds} {type(given).__name__}{order}, expected paths or URLs of H5AD files, or AnnData objects",
        fix='files="cells.h5ad", or files=["a.h5ad", "b.h5ad"], or files=adata',
    )


def check_columns(url: str, name: str, columns: Sequence[str], there: list[str]) -> None:
    """Refuse columns that a table does not have, or has twice."""
    for column in columns:
        count = there.count(column)
        if count != 1:
            said = f"no column {column!r}; it has {', '.join(there) or 'none'}"
            raise SourceContractError(
                f"{url}: {name} has {said if not count else f'{count} columns {column!r}'}", path=url
            )
