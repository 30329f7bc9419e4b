"""Which files a user means: paths, addresses, patterns of either, and ``AnnData`` objects."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.cells.failures import not_a_file, reading
from torchcell_cache.sources.cells.h5ad import H5adFile, needs
from torchcell_cache.sources.cells.memory import CellsInMemory

CellFile = H5adFile | CellsInMemory


def cell_files(given: Any, options: Mapping[str, Any] | None) -> list[CellFile]:
    """The files, in the order given; those of a pattern by name.

    Args:
        given: A path, address, pattern or ``AnnData``, or several of them.
        options: Passed to fsspec for addresses.

    Raises:
        SettingError: If it is none of these, or nothing.
        SourceContractError: If a file is missing or named twice, or no file fits a pattern.
    """
    one = isinstance(given, str | bytes | os.PathLike) or _is_anndata(given)
    frame, handle = getattr(given, "ndim", 1) != 1, hasattr(given, "read")
    if not one and (frame or handle or isinstance(given, Set | Mapping) or not isinstance(given, Iterable)):
        raise not_a_file(given)
    if options is not None and not isinstance(options, Mapping):
        raise SettingError(f"storage_options is {type(options).__name__}, expected a mapping")
    several = [given] if one else list(given)
    if not several:
        raise SettingError("files is empty", fix="pass the paths of one or more H5AD files")
    out: list[CellFile] = []
    for item in several:
        if _is_anndata(item):
            out.append(CellsInMemory(item, len(out)))
        elif isinstance(item, str | bytes | os.PathLike):
            out += [H5adFile(path, options) for path in _expanded(os.fspath(item), options)]
        else:
            raise not_a_file(item, "holds")
    seen: set[Any] = set()
    for file in out:
        if isinstance(file, CellsInMemory):
            key: Any = id(file.cells)
        else:
            key = file.url if file.is_remote else file.signature
        if key in seen:
            raise SourceContractError(
                f"{file.url} is named twice: each of its cells would be two samples",
                path=file.url,
                fix="name each file once",
            )
        seen.add(key)
    return out


def _expanded(path: Any, options: Mapping[str, Any] | None) -> list[str]:
    """The files that a path or pattern names, a leading ``~`` resolved."""
    path = os.fsdecode(path)
    if not path:
        raise SettingError("files holds an empty path", fix="pass the path of an H5AD file")
    if "://" in path:
        if not glob.has_magic(path) or path.startswith("http"):  # a question mark is no pattern there
            return [path]
        with reading(path):
            fs, pattern = needs("fsspec").core.url_to_fs(path, **(options or {}))
            seen = [name for name in sorted(fs.glob(pattern)) if not name.rpartition("/")[2].startswith(".")]
            found = [fs.unstrip_protocol(name) for name in seen]
    else:
        with reading(path):  # there may be no such home
            path = str(Path(path).expanduser())
        if os.path.lexists(path) or not glob.has_magic(path):
            return [path]
        found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  (Path.glob also gives hidden files)
    if not found:
        raise SourceContractError(
            f"{path}: no file fits this pattern", path=path, fix="check the directory; quote it in a shell"
        )
    return found


def _is_anndata(given: Any) -> bool:
    return any(kind.__name__ == "AnnData" for kind in type(given).__mro__)
