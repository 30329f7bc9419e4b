"""From counts in a file to node features: normalised, logarithmised, in the order of the nodes; highly variable genes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import real_number
from torchcell_cache.core.choices import Flavor
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.cells.failures import reading
from torchcell_cache.sources.cells.h5ad import needs
from torchcell_cache.sources.cells.rows import Matrix, Rows

EXACT = 1 << 24
"""Whole numbers up to here are exact in float32."""
FLAVORS = get_args(Flavor)
_RUNS = 64


def transformed(rows: Rows, target_sum: float | None, log1p: bool) -> npt.NDArray[Any]:
    """The values of ``rows`` as ``scanpy.pp.normalize_total`` and ``scanpy.pp.log1p`` leave them, ``[nnz]``.

    Totals are over all variables of the file, those the base graph does not have too. They are summed in double
    precision; values keep their own floating dtype of at least float32, and whole numbers become float32 as in scanpy.
    Without either of the two the values are those of the file. A cell without any counts stays so.

    Raises:
        SourceContractError: If values to be normalised are negative, and so no counts, or too large for a total.
    """
    if target_sum is None and not log1p:
        return rows.values
    if len(rows.values) and bool((rows.values < 0).any()):
        at = np.argmax(rows.values < 0)
        raise SourceContractError(
            f"cell {rows.cell(at)} has the value {rows.values[at]:g}: target_sum and log1p are for counts",
            fix="raw=True or layer=... for the counts, or neither of the two for scaled values",
        )
    half_or_whole = rows.values.dtype.kind != "f" or rows.values.dtype.itemsize < 4
    values = rows.values.astype(np.float32) if half_or_whole else rows.values
    if target_sum is not None:
        sums, filled = np.zeros(len(rows.ptr) - 1), rows.ptr[:-1] < rows.ptr[1:]
        with np.errstate(over="ignore", invalid="ignore"):
            if filled.any():
                sums[filled] = np.add.reduceat(values.astype(np.float64), rows.ptr[:-1][filled])
            totals = sums.astype(values.dtype) / target_sum
        endless = np.flatnonzero(np.isinf(totals))
        if len(endless) and bool(np.isfinite(values).all()):
            raise SourceContractError(
                f"the values of cell {rows.start + int(endless[0])} sum to more than {values.dtype} holds",
                fix="scale the values before, or leave out target_sum",
            )
        totals[totals == 0] = 1
        with np.errstate(invalid="ignore"):
            values = values / np.repeat(totals.astype(values.dtype), np.diff(rows.ptr))
    return np.log1p(values) if log1p else values


def float32_target(value: Any) -> float:
    """``target_sum``, if it is a positive number that float32 holds."""
    wanted = "a positive number that float32 holds, 1e4 for instance"
    found = real_number("target_sum", value, wanted, above=True)
    with np.errstate(over="ignore"):
        if not 0 < np.float32(found) < np.inf:
            raise SettingError(f"target_sum={value!r}: expected {wanted}")
    return value if type(value) in (int, float) else found  # as fingerprints have it


def on_nodes(rows: Rows, values: npt.NDArray[Any], node_of: Int64Array, names: list[str]) -> Rows:
    """``values``, one per element of ``rows``, nothing that is +0.0, with the nodes of their variables as columns.

    ``node_of`` has -1 for none, ``[num_variables] int64``.

    Raises:
        SourceContractError: If float32 does not hold a value; names the cell and the gene.
    """
    nodes = node_of[rows.columns]
    with np.errstate(over="ignore", invalid="ignore"):
        short = values.astype(np.float32)
    lost = np.flatnonzero(lost_in_float32(values, short) & (nodes >= 0))
    if len(lost):
        at = lost[0]
        raise SourceContractError(
            f"cell {rows.cell(at)} has {values[at]!s} of {names[nodes[at]]}, which float32 cannot hold",
            fix="scale the values, or mend what wrote them",
        )
    kept = (nodes >= 0) & (short.view(np.uint32) != 0)
    cells = np.repeat(np.arange(len(rows.ptr) - 1), np.diff(rows.ptr))[kept]
    nodes, short = nodes[kept], short[kept]
    ptr = offsets(np.bincount(cells, minlength=len(rows.ptr) - 1))
    place = cells * len(names) + nodes
    if bool((place[1:] < place[:-1]).any()):  # unless the file has the genes in the graph's order
        order = np.argsort(place)
        nodes, short = nodes[order], short[order]
    return Rows(rows.start, ptr, nodes, short)


def lost_in_float32(given: npt.NDArray[Any], short: Float32Array) -> npt.NDArray[np.bool_]:
    """Which finite values became infinite, and which of an integer dtype another number, ``[n] bool``."""
    if given.dtype.kind == "f":
        endless = np.isinf(short)
        return endless & np.isfinite(given) if endless.any() else endless
    out = np.zeros(len(given), dtype=np.bool_)
    if given.dtype.itemsize > 2:
        large = np.flatnonzero((given > EXACT) | (given < -EXACT if given.dtype.kind == "i" else False))
        out[large] = [int(short[k]) != int(given[k]) for k in large.tolist()]
    return out


@dataclass(frozen=True, slots=True, eq=False)
class CellRows:
    """Expression of all cells that are samples, file after file.

    Attributes:
        matrices: One per file.
        rows: The rows of each that are samples, ascending.
        nodes: Per file the node of each variable, -1 for none.
        names: Names of the base graph's nodes.
        target_sum: See :func:`transformed`.
        log1p: See :func:`transformed`.
    """

    matrices: list[Matrix]
    rows: list[Int64Array]
    nodes: list[Int64Array]
    names: list[str]
    target_sum: float | None = None
    log1p: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def read(self, start: int, stop: int) -> Iterator[Rows]:
        """Cells ``start`` to ``stop`` in runs, whose columns are nodes."""
        first = 0
        for matrix, part, nodes in zip(self.matrices, self.rows, self.nodes, strict=True):
            chosen = part[max(start - first, 0) : max(stop - first, 0)]
            first += len(part)
            with reading(matrix.file.url):
                for rows in matrix.runs(int(chosen[0]), int(chosen[-1]) + 1) if len(chosen) else ():
                    found = on_nodes(rows, transformed(rows, self.target_sum, self.log1p), nodes, self.names)
                    yield found.only(chosen) if len(chosen) < matrix.shape[0] else found

    def highly_variable(self, number: int, flavor: str, num_cells: int) -> list[Int64Array]:
        """``nodes`` without the genes that are not highly variable.

        Args:
            number: How many are.
            flavor: scanpy's: ``seurat`` and ``cell_ranger`` expect logarithms, ``seurat_v3`` counts (needs scikit-misc).
            num_cells: Cells looked at; of more, as many in evenly spaced runs. Memory is bounded by it.

        Raises:
            SettingError: If scanpy, or what it needs for this flavour, is not installed.
            SourceContractError: If scanpy refuses the data.
        """
        sparse, anndata, scanpy = needs("scipy.sparse"), needs("anndata"), needs("scanpy")
        measured = np.unique(np.concatenate([part[part >= 0] for part in self.nodes]))
        how = (None, False) if flavor == "seurat_v3" else (self.target_sum, self.log1p)
        counts = CellRows(self.matrices, self.rows, self.nodes, self.names, *how)
        runs, total = [(0, len(self))], len(self)
        if total > num_cells:
            size = max(1, num_cells // _RUNS)
            last = num_cells // size - 1
            starts = [k * (total - size) // max(last, 1) for k in range(last + 1)]
            runs = [(start, start + size) for start in starts]
        parts = [
            sparse.csr_matrix(
                (found.values, found.columns, found.ptr), shape=(len(found.ptr) - 1, len(self.names))
            )
            for run in runs
            for found in counts.read(*run)
        ]
        cells = anndata.AnnData(sparse.vstack(parts, format="csr")[:, measured])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = scanpy.pp.highly_variable_genes(
                    cells, n_top_genes=min(number, cells.n_vars), flavor=flavor, inplace=False
                )
        except ImportError as error:
            fix = "pip install scikit-misc, or another flavour"
            raise SettingError(f"flavor={flavor!r}: {error}", fix=fix) from None
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise SourceContractError(
                f"scanpy.pp.highly_variable_genes(flavor={flavor!r}) on {cells.n_obs} cells: {error}",
                fix="'seurat' and 'cell_ranger' expect logarithms (log1p=True), 'seurat_v3' whole counts; all three many cells",
            ) from None
        kept = np.zeros(len(self.names), dtype=np.bool_)
        kept[measured[np.asarray(found["highly_variable"], dtype=np.bool_)]] = True
        return [np.where((part >= 0) & kept[part], part, -1) for part in self.nodes]
