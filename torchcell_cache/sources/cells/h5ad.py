"""One H5AD file, read in runs of cells; the only place that opens HDF5.

The file stays on disk: a run of cells costs the rows it has. Tables of anndata 0.7 keep the names of categories beside the
column, later ones in it; both are read column by column. Those before 0.7 are read through anndata's backed mode.
"""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from torchcell_cache.errors import SettingError, SourceContractError, install_line
from torchcell_cache.sources.cells.failures import check_columns, matrix_missing, reading

if TYPE_CHECKING:
    import h5py

_BLOCK = 4 << 20


def needs(name: str) -> Any:
    """Import an optional library.

    Raises:
        SettingError: Naming the package that brings it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata and scanpy announce their own deprecations on import
            return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        fix = f"pip install {package}" if package == "fsspec" else install_line("singlecell")
        raise SettingError(f"AnnDataSource needs the package {package} ({error})", fix=fix) from None


def _opened(h5: Any, path: str) -> h5py.File:
    """A local file without HDF5's lock: reading needs none, and read-only and network mounts refuse it."""
    try:
        return h5.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5.File(path, "r")  # it is open in this process already, backed for instance, in another way


class H5adFile:
    """A file by its path or URL; opened where it is used, never across a fork.

    Args:
        url: Path, or anything fsspec opens (``s3://...``, ``memory://...``).
        storage_options: Passed to fsspec; local paths take none.

    Raises:
        SourceContractError: If there is no such file.
        RemoteAccessError: If the server does not let us in.
    """

    def __init__(self, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = os.fspath(url)
        self.options = dict(storage_options or {})
        self.is_remote = "://" in self.url
        self.signature = self._stat()
        self._digest = ""

    def __repr__(self) -> str:
        return self.url

    def _stat(self) -> tuple[str, ...]:
        """What changes when the file does, without reading it."""
        with reading(self.url):
            if self.is_remote:
                fs, path = needs("fsspec").core.url_to_fs(self.url, **self.options)
                info = fs.info(path)
                if info.get("type") != "directory":
                    return (str(info["size"]), str(fs.ukey(path)))
                names = [str(name).rpartition("/")[2] for name in fs.ls(path, detail=False)]
            else:
                found = Path(self.url).stat()
                if not stat.S_ISDIR(found.st_mode):
                    return tuple(map(str, (found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)))
                names = [path.name for path in Path(self.url).iterdir()]
        count, marks = (
            sum(name.endswith(".h5ad") for name in names),
            {".zgroup", ".zattrs", ".zmetadata", "zarr.json"},
        )
        what, fix = "directory, expected an H5AD file", "pass the path of an H5AD file"
        if self.url.rstrip("/").endswith(".zarr") or marks & {*names}:
            what = "zarr store; cells are read from H5AD files"
            read = f"anndata.read_zarr({self.url!r})"
            fix = (
                f"AnnDataSource({read}, ...) where it fits in memory, or once {read}.write_h5ad('cells.h5ad')"
            )
        elif count:
            fix = f"{self.url.rstrip('/')}/*.h5ad for the {count} H5AD files in it"
        raise SourceContractError(f"{self.url} is a {what}", path=self.url, fix=fix)

    def check_unchanged(self) -> None:
        """Insist that the file is the one that was identified.

        Raises:
            SourceContractError: If it was written to since.
        """
        if self._stat() != self.signature:
            raise SourceContractError(
                f"{self.url} was changed while it was in use: what was identified is not what would be read",
                path=self.url,
                fix="let it be finished, then make the source and build again",
            )

    def _bytes(self) -> Any:
        if self.is_remote:
            return needs("fsspec").open(self.url, "rb", **self.options)
        return Path(self.url).open("rb")

    def digest(self) -> str:
        """XXH3-128 of the whole file, read once from start to end."""
        if not self._digest:
            hasher = xxhash.xxh3_128()
            with reading(self.url), self._bytes() as file:
                while block := file.read(_BLOCK):
                    hasher.update(block)
            self._digest = hasher.hexdigest()
        self.check_unchanged()
        return self._digest

    @contextlib.contextmanager
    def open(self) -> Iterator[h5py.File]:
        """The open file; closed on leaving, so that no handle lives through a fork.

        Raises:
            SourceContractError: If it is not an HDF5 file, cannot be read, or was changed.
        """
        h5 = needs("h5py")
        needs("anndata")
        with contextlib.suppress(ImportError):  # codecs beyond HDF5's own
            import_module("hdf5plugin")
        self.check_unchanged()
        with reading(self.url), contextlib.ExitStack() as stack:
            if self.is_remote:
                yield stack.enter_context(h5.File(stack.enter_context(self._bytes()), "r"))
            else:
                yield stack.enter_context(_opened(h5, self.url))
        self.check_unchanged()  # nor while it was being read

    def table(self, name: str, columns: tuple[str, ...]) -> dict[str, Any]:
        """Columns of ``obs``, ``var`` or ``raw/var`` as pandas series or arrays, and the index under ``""``.

        Raises:
            SourceContractError: Naming the columns there are.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anndata, about files written by older versions
            with self.open() as file:
                node = file.get(name)
                if node is None and (name != "raw/var" or "raw.var" not in file):
                    raise SourceContractError(
                        f"it has no {name}, but {', '.join(file)}",
                        fix="AnnData.write_h5ad makes files with it",
                    )
                if hasattr(node, "keys"):
                    index = _text(node.attrs.get("_index", "_index"))
                    check_columns(
                        name, columns, [_text(c) for c in node.attrs.get("column-order", list(node))]
                    )
                    return {column: _column(node, column) for column in columns} | {"": _column(node, index)}
            with reading(self.url):
                if self.is_remote:
                    raise SourceContractError(
                        "it was written by anndata before 0.7, which is read from local disks only",
                        fix="anndata.read_h5ad(...).write_h5ad(...) once, and use the new file",
                    )
                backed = needs("anndata").read_h5ad(self.url, backed="r")
                try:
                    found = backed.raw.var if name == "raw/var" else getattr(backed, name).copy()
                finally:
                    backed.file.close()
                check_columns(name, columns, list(map(str, found.columns)))
                return {column: found[column] for column in columns} | {"": found.index}

    def side_table(self, key: str) -> tuple[Any, list[str]]:
        """What ``uns`` has under a key, as anndata reads it, ``None`` for nothing; and all its keys."""
        with warnings.catch_warnings(), self.open() as file:
            warnings.simplefilter("ignore")
            tables = file.get("uns", {})
            return _read(tables[key]) if key in tables else None, list(tables)

    def matrix(self, file: h5py.File, layer: str | None, raw: bool) -> Any:
        """The HDF5 group or dataset of ``X``, ``raw/X`` or a layer.

        Raises:
            SourceContractError: Naming the layers there are.
        """
        if raw:
            found = file.get("raw/X", file.get("raw.X"))
        else:
            found = file.get("X") if layer is None else file.get(f"layers/{layer}")
        if found is None or found.attrs.get("encoding-type") == "null":
            has = "X" in file, "raw" in file or "raw.X" in file
            wanted = "raw/X" if raw else layer and f"layer {layer!r}"
            raise matrix_missing(self.url, wanted, has, file.get("layers", ()), [*file])
        return found


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read(element: Any) -> Any:
    anndata = needs("anndata")  # whose read_elem stood elsewhere before 0.11
    return (anndata.io if hasattr(anndata, "io") else needs("anndata.experimental")).read_elem(element)


def _column(table: Any, name: str) -> Any:
    """One column of a table as anndata reads it."""
    element = table[name]
    beside = f"__categories/{name}"
    known = None if hasattr(element, "keys") else element.attrs.get("categories")
    if known is None and not hasattr(element, "keys") and element.dtype.kind == "i" and beside in table:
        known = beside
    if known is None:
        return _read(element)
    # anndata 0.7: the column holds codes and a reference to the names, which stand in a group of the table.
    names = table[known.decode() if isinstance(known, bytes) else known]
    values: Any = np.asarray(_read(names))
    values = [_text(value) for value in values] if values.dtype.kind in "OS" else values
    ordered = bool(names.attrs.get("ordered", False))
    return needs("pandas").Categorical.from_codes(_read(element), values, ordered=ordered)


def form_of(matrix: Any) -> tuple[str, tuple[int, int]]:
    """``csr``, ``csc`` or ``dense``, and the numbers of cells and variables.

    Raises:
        SourceContractError: If it is none of the three, or its pointers do not fit it.
    """
    sparse = hasattr(matrix, "keys")
    attributes = matrix.attrs if sparse else {"shape": matrix.shape, "encoding-type": "dense"}
    said = _text(attributes.get("encoding-type", attributes.get("h5sparse_format", b"csr")))
    kind = said.removesuffix("_matrix")
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    if sparse and (kind not in ("csr", "csc") or {"data", "indices", "indptr"} - set(matrix)):
        raise SourceContractError(
            f"X is encoded as {said!r}, expected a dense, CSR or CSC matrix", fix="adata.X.tocsr()"
        )
    shape = [] if shape is None else list(map(int, shape))
    if len(shape) != 2:
        raise SourceContractError(f"X has shape {shape}, expected cells x variables")
    if sparse:
        pointers, what = matrix["indptr"], "column" if kind == "csc" else "row"
        ends = (int(pointers[0]), int(pointers[len(pointers) - 1])) if len(pointers) else ()
        count, total = shape[what == "column"] + 1, len(matrix["data"])
        if len(pointers) != count or ends != (0, total) or len(matrix["indices"]) < total:
            raise SourceContractError(f"{what} pointers do not fit the matrix")
    return kind, (shape[0], shape[1])
