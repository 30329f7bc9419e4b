"""Runs of consecutive cells of a matrix in a file, as canonical CSR, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.cells.files import CellFile
from torchcell_cache.sources.cells.h5ad import form_of
from torchcell_cache.sources.cells.transpose import Rows, Transposed, canonical

MAX_CELLS = 2_048
MAX_ELEMENTS = 2_000_000
"""Bounds of one run: cells, and elements read (nonzero ones of sparse matrices, all of dense ones)."""


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
            self.kind, self.shape = form_of(found, file.url)
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
