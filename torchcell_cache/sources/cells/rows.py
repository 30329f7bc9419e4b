"""Runs of consecutive cells of a matrix in a file, as canonical CSR, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.samples import Int64Array
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.cells.files import CellFile
from torchcell_cache.sources.cells.h5ad import kind_of, needs, shape_of
from torchcell_cache.sources.cells.transpose import Transposed

MAX_CELLS = 2_048
MAX_ELEMENTS = 2_000_000
"""Bounds of one run: cells, and elements read (nonzero ones of sparse matrices, all of dense ones)."""


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


class Matrix:
    """``X``, ``raw.X`` or a layer of one file.

    Args:
        file: The file.
        layer: Name of the layer, ``None`` for ``X``.
        raw: Take ``raw.X``.
    """

    def __init__(self, file: CellFile, layer: str | None, raw: bool) -> None:
        self.file, self.layer, self.raw = file, layer, raw
        with file.open() as opened:
            found = file.matrix(opened, layer, raw)
            self.kind, self.shape = kind_of(found), shape_of(found)
            dtype = found["data"].dtype if self.kind != "dense" else found.dtype
        if dtype.kind not in "fiub":
            raise SourceContractError(
                f"{file.url}: the matrix holds {dtype}, expected numbers", path=file.url
            )
        self._transposed: Transposed | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transposed": None}

    def runs(self, start: int, stop: int) -> Iterator[Rows]:
        """Cells ``start`` to ``stop``, run by run; the file is open only while this is being read."""
        if start >= stop:
            return
        with contextlib.ExitStack() as stack:
            found = self.file.matrix(stack.enter_context(self.file.open()), self.layer, self.raw)
            if self.kind == "dense":
                yield from _dense_runs(found, start, stop, self.shape[1])
            elif self.kind == "csr":
                yield from _csr_runs(found, start, stop, self)
            else:
                if self._transposed is None:
                    self._transposed = Transposed(found, self.shape, self.file.url)
                yield from self._transposed.runs(start, stop, MAX_CELLS)

    def checked(self, start: int, ptr: Int64Array, columns: Int64Array, values: npt.NDArray[Any]) -> Rows:
        """Canonical rows: see :func:`canonical`."""
        return canonical(start, ptr, columns, values, self.shape[1], self.file.url)


def _dense_runs(dataset: Any, start: int, stop: int, width: int) -> Iterator[Rows]:
    step = max(1, min(MAX_CELLS, MAX_ELEMENTS // max(width, 1)))
    for first in range(start, stop, step):
        block = dataset[first : min(first + step, stop)]
        nonzero = block != 0
        if block.dtype.kind == "f":  # -0.0 is an element too: what is stored is the file's bits
            nonzero |= np.signbit(block)
        rows, columns = np.nonzero(nonzero)
        ptr = np.zeros(len(block) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=len(block)), out=ptr[1:])
        yield Rows(first, ptr, columns, block[nonzero])


def _csr_runs(group: Any, start: int, stop: int, matrix: Matrix) -> Iterator[Rows]:
    first = start
    while first < stop:
        ptr = np.asarray(group["indptr"][first : min(first + MAX_CELLS, stop) + 1], dtype=np.int64)
        count = max(1, int(np.searchsorted(ptr - ptr[0], MAX_ELEMENTS, side="right")) - 1)
        low, high = int(ptr[0]), int(ptr[count])
        yield matrix.checked(
            first,
            ptr[: count + 1] - low,
            np.asarray(group["indices"][low:high], dtype=np.int64),
            group["data"][low:high],
        )
        first += count


def canonical(
    start: int, ptr: Int64Array, columns: Int64Array, values: npt.NDArray[Any], width: int, url: str
) -> Rows:
    """Rows with ascending, unique columns; an element named twice counts as the sum, as scipy has it.

    Raises:
        SourceContractError: If the matrix is damaged.
    """
    if bool((np.diff(ptr) < 0).any()) or len(columns) != ptr[-1] or len(values) != len(columns):
        raise SourceContractError(f"{url}: row pointers from cell {start} on do not fit the matrix", path=url)
    if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < width:
        raise SourceContractError(
            f"{url}: cells from {start} on name variables outside 0..{width - 1}", path=url
        )
    rises = np.ones(len(columns), dtype=np.bool_)
    rises[1:] = columns[1:] > columns[:-1]
    rises[ptr[:-1][ptr[:-1] < ptr[1:]]] = True
    if not bool(rises.all()):
        found = needs("scipy.sparse").csr_matrix(
            (values, columns, ptr), shape=(len(ptr) - 1, width), copy=True
        )
        found.sum_duplicates()
        ptr, columns, values = found.indptr.astype(np.int64), found.indices.astype(np.int64), found.data
    return Rows(start, ptr, columns, values)
