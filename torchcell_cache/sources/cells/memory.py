"""An ``AnnData`` object in place of a file: cells that are in memory already, filtered for instance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

from torchcell_cache.sources.cells.failures import check_columns, matrix_missing
from torchcell_cache.sources.cells.h5ad import needs


class CellsInMemory:
    """What :class:`~torchcell_cache.sources.cells.h5ad.H5adFile` is for a file.

    The matrix is the object's own, or a copy where that is no CSR or dense array; it must not change while it is read.

    Args:
        cells: The ``AnnData``.
        number: Its place among what was given, for messages.
    """

    in_memory = True

    def __init__(self, cells: Any, number: int) -> None:
        self.cells = cells
        self.url = f"AnnData object {number} ({cells.n_obs} x {cells.n_vars})"
        self._used: dict[tuple[str | None, bool], Any] = {}

    def __repr__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "cells": None,
        }  # tables were read when the source was made; it may hold an open file

    def check_unchanged(self) -> None:
        """Nothing: :meth:`digest` looks at the values themselves."""

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The object."""
        yield self.cells

    def table(self, name: str, columns: tuple[str, ...]) -> dict[str, Any]:
        """See :meth:`H5adFile.table`."""
        frame = self.cells.raw.var if name == "raw/var" else getattr(self.cells, name)
        there = list(map(str, frame.columns))
        check_columns(self.url, name, columns, there)
        return {column: frame.iloc[:, there.index(column)] for column in columns} | {"": frame.index}

    def matrix(self, cells: Any, layer: str | None, raw: bool) -> Any:
        """``X``, ``raw.X`` or a layer, as an array or as the three arrays of a CSR matrix."""
        if (layer, raw) not in self._used:
            if raw:
                found = None if cells.raw is None else cells.raw.X
            else:
                found = cells.X if layer is None else cells.layers.get(layer)
            if found is None:
                wanted = "raw.X" if raw else "X" if layer is None else f"layer {layer!r}"
                there = (
                    f"X: {cells.X is not None}, raw: {cells.raw is not None}, layers {sorted(cells.layers)}"
                )
                raise matrix_missing(self.url, wanted, there)
            self._used[layer, raw] = _loaded(found)
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


def _loaded(found: Any) -> Any:
    """A matrix as arrays; what is on disk (backed) or not computed yet (dask) is loaded."""
    for load in ("to_memory", "compute"):
        found = getattr(found, load)() if hasattr(found, load) else found
    if needs("scipy.sparse").issparse(found):
        return _Csr(found.tocsr())
    return np.asarray(found)
