"""Which files a user means: paths, addresses, patterns of either, and ``AnnData`` objects in place of a file."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.cells.failures import check_columns, matrix_missing, reading
from torchcell_cache.sources.cells.h5ad import H5adFile, needs


class CellsInMemory:
    """What :class:`~torchcell_cache.sources.cells.h5ad.H5adFile` is for a file.

    The matrix is the object's own, or a copy where that is no CSR or dense array; it must not change while it is read.

    Args:
        cells: The ``AnnData``.
        number: Its place among what was given, for messages.
    """

    def __init__(self, cells: Any, number: int) -> None:
        self.cells = cells
        self.url = f"AnnData object {number} ({cells.n_obs} x {cells.n_vars})"
        self._used: dict[tuple[str | None, bool], Any] = {}

    def __repr__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        # Tables were read when the source was made; it may hold an open file.
        return {**self.__dict__, "cells": None}

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The object."""
        with reading(self.url):
            yield self.cells

    def table(self, name: str, columns: tuple[str, ...]) -> dict[str, Any]:
        """See :meth:`H5adFile.table`."""
        with self.open() as cells:
            frame = cells.raw.var if name == "raw/var" else getattr(cells, name)
            there = list(map(str, frame.columns))
            check_columns(name, columns, there)
            return {column: frame.iloc[:, there.index(column)] for column in columns} | {"": frame.index}

    def side_table(self, key: str) -> tuple[Any, list[str]]:
        """See :meth:`H5adFile.side_table`."""
        return self.cells.uns.get(key), list(map(str, self.cells.uns))

    def matrix(self, cells: Any, layer: str | None, raw: bool) -> Any:
        """``X``, ``raw.X`` or a layer, as an array or as the three arrays of a CSR matrix."""
        if (layer, raw) not in self._used:
            if raw:
                found = None if cells.raw is None else cells.raw.X
            else:
                found = cells.X if layer is None else cells.layers.get(layer)
            if found is None:
                has = cells.X is not None, cells.raw is not None
                raise matrix_missing(
                    self.url, "raw.X" if raw else layer and f"layer {layer!r}", has, [*cells.layers], ()
                )
            for load in ("to_memory", "compute"):  # what is on disk (backed) or not computed yet (dask)
                found = getattr(found, load)() if hasattr(found, load) else found
            sparse = needs("scipy.sparse").issparse(found)
            self._used[layer, raw] = _Csr(found.tocsr()) if sparse else np.asarray(found)
        return self._used[layer, raw]

    def digest(self) -> str:
        """XXH3-128 of the matrices that are read, as they are now."""
        hasher = xxhash.xxh3_128()
        for found in self._used.values():
            for part in found.values() if isinstance(found, dict) else (found,):
                hasher.update(f"{part.dtype.str} {part.shape} ".encode())
                rows = max(1, (4 << 20) // max(part[:1].nbytes, 1))
                for start in range(0, len(part), rows):
                    hasher.update(np.ascontiguousarray(part[start : start + rows]).data)
        return hasher.hexdigest()


class _Csr(dict[str, Any]):
    """The arrays of a CSR matrix, as a file has them."""

    def __init__(self, matrix: Any) -> None:
        super().__init__(data=matrix.data, indices=matrix.indices, indptr=matrix.indptr)
        self.attrs = {"encoding-type": "csr_matrix", "shape": matrix.shape}


CellFile = H5adFile | CellsInMemory


def cell_files(given: Any, options: Mapping[str, Any] | None) -> list[CellFile]:
    """The files, in the order given, which is a path, address, pattern or ``AnnData`` or several; those of a pattern by name.

    Raises:
        SettingError: If it is none of these, or nothing.
        SourceContractError: If a file is missing or named twice, or no file fits a pattern.
    """
    if options is not None and not isinstance(options, Mapping):
        raise SettingError(f"storage_options is {type(options).__name__}, expected a mapping")
    frame, handle = getattr(given, "ndim", 1) != 1, hasattr(given, "read")
    one = isinstance(given, str | bytes | os.PathLike) or _is_anndata(given)
    one |= frame or handle or isinstance(given, Set | Mapping) or not isinstance(given, Iterable)
    out: dict[Any, CellFile] = {}
    for item in [given] if one else list(given):
        found: list[CellFile] = []
        if _is_anndata(item):
            found.append(CellsInMemory(item, len(out)))
        elif isinstance(item, str | bytes | os.PathLike):
            found += [H5adFile(path, options) for path in _expanded(os.fsdecode(item), options)]
        else:
            order = ", which has no order" if isinstance(item, Set) else ""
            raise SettingError(
                f"files {'is' if one else 'holds'} {type(item).__name__}{order}, expected paths or URLs of H5AD files, "
                "or AnnData objects",
                fix='files="cells.h5ad", or files=["a.h5ad", "b.h5ad"], or files=adata',
            )
        for file in found:
            here = file.signature if isinstance(file, H5adFile) and not file.is_remote else file.url
            key = id(file.cells) if isinstance(file, CellsInMemory) else here
            if out.setdefault(key, file) is not file:
                raise SourceContractError(
                    f"{file.url} is named twice: each of its cells would be two samples",
                    path=file.url,
                    fix="name each file once",
                )
    if not out:
        raise SettingError("files is empty", fix="pass the paths of one or more H5AD files")
    return [*out.values()]


def _expanded(path: str, options: Mapping[str, Any] | None) -> list[str]:
    """The files that a path or pattern names, a leading ``~`` resolved."""
    if not path:
        raise SettingError("files holds an empty path", fix="pass the path of an H5AD file")
    with reading(path):
        if "://" in path:
            if not glob.has_magic(path) or path.startswith("http"):  # a question mark is no pattern there
                return [path]
            fs, pattern = needs("fsspec").core.url_to_fs(path, **(options or {}))
            seen = [name for name in sorted(fs.glob(pattern)) if not name.rpartition("/")[2].startswith(".")]
            found = [fs.unstrip_protocol(name) for name in seen]
        else:
            home = str(Path(path).expanduser())  # there may be no such home
            if os.path.lexists(home) or not glob.has_magic(home):
                return [home]
            found = sorted(glob.glob(home, recursive=True))  # noqa: PTH207  (Path.glob also gives hidden files)
        if not found:
            raise SourceContractError(
                "no file fits this pattern", fix="check the directory; quote it in a shell"
            )
    return found


def _is_anndata(given: Any) -> bool:
    return any(kind.__name__ == "AnnData" for kind in type(given).__mro__)
