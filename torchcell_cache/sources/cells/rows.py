"""Runs of consecutive cells of a matrix in a file, as canonical CSR, in bounded memory.

A cell of a CSC matrix is spread over the whole file. One pass over the file, in blocks of bounded size, sorts each block by
cell into a temporary file; what all blocks have of a bucket of cells is small enough to be sorted in memory. Two passes over
the data in all, and temporary space of 16 bytes or so per element.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.files import write_all
from torchcell_cache.core.ragged import Int64Array, offsets, ragged_rows
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.cells.failures import temporary_files
from torchcell_cache.sources.cells.files import CellFile
from torchcell_cache.sources.cells.h5ad import form_of, needs

MAX_CELLS = 2_048
MAX_ELEMENTS = 2_000_000
"""Bounds of one run: cells, and elements read (nonzero ones of sparse matrices, all of dense ones)."""
_BLOCK = 2_000_000
_BUCKET = 2_000_000


class Rows(NamedTuple):
    """Consecutive cells; indices ascend within a cell and are unique.

    Attributes:
        start: Number of the first cell in its file.
        ptr: ``[num_cells + 1] int64``.
        columns: Variable of each element, ``[nnz] int64``.
        values: ``[nnz]``, of the file's dtype; explicit zeros may occur.
    """

    start: int
    ptr: Int64Array
    columns: Int64Array
    values: npt.NDArray[Any]

    def cell(self, element: Any) -> int:
        """Number of the cell of an element."""
        return self.start + int(np.searchsorted(self.ptr, element, side="right")) - 1

    def only(self, cells: Int64Array) -> Rows:
        """Those of given cells that are among ours, ``[k] int64``, ascending."""
        here = cells[(cells >= self.start) & (cells < self.start + len(self.ptr) - 1)] - self.start
        at, ptr = ragged_rows(self.ptr, here)
        return Rows(self.start, ptr, self.columns[at], self.values[at])


def canonical(start: int, ptr: Int64Array, columns: Int64Array, values: npt.NDArray[Any], width: int) -> Rows:
    """Rows with ascending, unique columns; an element named twice counts as the sum, as scipy has it.

    Raises:
        SourceContractError: If the matrix is damaged.
    """
    if bool((np.diff(ptr) < 0).any()) or len(columns) != ptr[-1] or len(values) != len(columns):
        raise SourceContractError(f"row pointers from cell {start} on do not fit the matrix")
    if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < width:
        raise SourceContractError(f"cells from {start} on name variables outside 0..{width - 1}")
    rises = np.ones(len(columns), dtype=np.bool_)
    rises[1:] = columns[1:] > columns[:-1]
    rises[ptr[:-1][ptr[:-1] < ptr[1:]]] = True
    if not bool(rises.all()):
        shape = len(ptr) - 1, width
        found = needs("scipy.sparse").csr_matrix((values, columns, ptr), shape=shape, copy=True)
        found.sum_duplicates()
        ptr, columns, values = found.indptr.astype(np.int64), found.indices.astype(np.int64), found.data
    return Rows(start, ptr, columns, values)


class Matrix:
    """``X``, ``raw.X`` or a layer of one file.

    Args:
        file: The file.
        layer: Name of the layer, ``None`` for ``X``.
        raw: Take ``raw.X``.
    """

    def __init__(self, file: CellFile, layer: str | None, raw: bool) -> None:
        self.file, self.layer, self.raw = file, layer, raw
        self._transposed: Transposed | None = None
        with file.open() as opened:
            found = file.matrix(opened, layer, raw)
            self.kind, self.shape = form_of(found)
            dtype = found["data"].dtype if self.kind != "dense" else found.dtype
            if dtype.kind not in "fiub":
                raise SourceContractError(f"the matrix holds {dtype}, expected numbers")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transposed": None}

    def runs(self, start: int, stop: int) -> Iterator[Rows]:
        """Cells ``start`` to ``stop``, run by run; the file is open only while this is being read."""
        if start >= stop:
            return
        with self.file.open() as opened:
            found = self.file.matrix(opened, self.layer, self.raw)
            if self.kind == "csc":
                if self._transposed is None:
                    self._transposed = Transposed(found, self.shape, self.file.url)
                yield from self._transposed.runs(start, stop)
            else:
                runs = _dense_runs if self.kind == "dense" else _csr_runs
                yield from runs(found, start, stop, self.shape[1])


def _dense_runs(dataset: Any, start: int, stop: int, width: int) -> Iterator[Rows]:
    step = max(1, min(MAX_CELLS, MAX_ELEMENTS // max(width, 1)))
    for first in range(start, stop, step):
        block = dataset[first : min(first + step, stop)]
        nonzero = block != 0
        if block.dtype.kind == "f":  # -0.0 is an element too: what is stored is the file's bits
            nonzero |= np.signbit(block)
        rows, columns = np.nonzero(nonzero)
        yield Rows(first, offsets(np.bincount(rows, minlength=len(block))), columns, block[nonzero])


def _csr_runs(group: Any, start: int, stop: int, width: int) -> Iterator[Rows]:
    first = start
    while first < stop:
        ptr = np.asarray(group["indptr"][first : min(first + MAX_CELLS, stop) + 1], dtype=np.int64)
        count = max(1, int(np.searchsorted(ptr - ptr[0], MAX_ELEMENTS, side="right")) - 1)
        low, high = int(ptr[0]), int(ptr[count])
        columns = np.asarray(group["indices"][low:high], dtype=np.int64)
        yield canonical(first, ptr[: count + 1] - low, columns, group["data"][low:high], width)
        first += count


class Transposed:
    """The elements of one matrix, block by block in the order of cells, in a temporary file without a name.

    Args:
        group: The HDF5 group of the CSC matrix.
        shape: Cells and variables.
        url: Where it lies, for messages.
    """

    def __init__(self, group: Any, shape: tuple[int, int], url: str) -> None:
        self.shape = shape
        indptr = np.asarray(group["indptr"][:], dtype=np.int64)
        total = int(indptr[-1])
        if bool((np.diff(indptr) < 0).any()):
            raise SourceContractError("column pointers do not fit the matrix")
        self.element = np.dtype([("row", "<i8"), ("column", "<i4"), ("value", group["data"].dtype)])
        buckets = min(max(1, -(-total // _BUCKET)), max(shape[0], 1))
        self.size = -(-shape[0] // buckets)
        self.edges: list[Int64Array] = []  # where in the file the cells of each bucket begin, by block
        what = f"the cells of {url} ({total * self.element.itemsize:,} bytes)"
        with temporary_files(what):
            self.descriptor, name = tempfile.mkstemp(prefix="torchcell-cache-csc-")
            Path(name).unlink()  # its space is free as soon as nobody has it open
        weakref.finalize(self, os.close, self.descriptor)
        for low in range(0, total, _BLOCK):
            high = min(low + _BLOCK, total)
            block = np.empty(high - low, dtype=self.element)
            block["row"], block["value"] = group["indices"][low:high], group["data"][low:high]
            block["column"] = np.searchsorted(indptr, np.arange(low, high), side="right") - 1
            block = block[np.argsort(block["row"], kind="stable")]
            if not 0 <= int(block["row"][0]) <= int(block["row"][-1]) < shape[0]:
                raise SourceContractError("the matrix names cells it does not have")
            self.edges.append(low + np.searchsorted(block["row"], self.size * np.arange(buckets + 1)))
            with temporary_files(what):
                write_all(self.descriptor, block.tobytes())  # tofile does not say why it wrote less

    def runs(self, start: int, stop: int) -> Iterator[Rows]:
        """Cells ``start`` to ``stop`` in runs."""
        width = self.element.itemsize
        for number in range(start // self.size, -(-stop // self.size)):
            bounds = [width * edges[number : number + 2] for edges in self.edges]
            parts = [os.pread(self.descriptor, int(high - low), int(low)) for low, high in bounds]
            found = np.frombuffer(b"".join(parts), dtype=self.element)
            found = found[np.argsort(found["row"], kind="stable")]  # columns ascend already
            first, last = max(start, number * self.size), min(stop, (number + 1) * self.size)
            for low in range(first, last, MAX_CELLS):
                edges = np.searchsorted(found["row"], np.arange(low, min(low + MAX_CELLS, last) + 1))
                part = found[edges[0] : edges[-1]]
                columns = part["column"].astype(np.int64)
                values = np.ascontiguousarray(part["value"])
                yield canonical(low, edges - edges[0], columns, values, self.shape[1])
