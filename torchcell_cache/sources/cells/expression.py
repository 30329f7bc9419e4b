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
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets, segments
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.cells.h5ad import needs
from torchcell_cache.sources.cells.rows import Matrix, Rows

EXACT = 1 << 24
"""Whole numbers up to here are exact in float32."""
FLAVORS = get_args(Flavor)
_RUNS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """Expression of consecutive cells.

    Attributes:
        ptr: Where each cell starts, ``[num_cells + 1] int64``.
        nodes: Node of each element, ascending and unique per cell, ``[nnz] int64``.
        values: Its expression; nothing that is +0.0, ``[nnz] float32``.
    """

    ptr: Int64Array
    nodes: Int64Array
    values: Float32Array

    def only(self, cells: Int64Array) -> Expression:
        """Those of given cells that are among ours, ``[k] int64``, ascending."""
        here = cells[(cells >= 0) & (cells < len(self.ptr) - 1)]
        nodes, ptr = segments(self.nodes, self.ptr, here)
        values, _ = segments(self.values, self.ptr, here)
        return Expression(ptr, nodes, values)


def transformed(rows: Rows, target_sum: float | None, log1p: bool, url: str) -> npt.NDArray[Any]:
    """The values of ``rows`` as ``scanpy.pp.normalize_total`` and ``scanpy.pp.log1p`` leave them.

    Totals are over all variables of the file, those the base graph does not have too. They are summed in double
    precision; values keep their own floating dtype of at least float32, and whole numbers become float32 as in scanpy.
    Without either of the two the values are those of the file.

    Args:
        rows: Cells.
        target_sum: Total of each cell afterwards; ``None`` leaves values as they are. A cell without any counts stays so.
        log1p: Whether to take ``log(1 + value)``.
        url: The file, for messages.

    Returns:
        ``[nnz]``.

    Raises:
        SourceContractError: If values to be normalised are negative, and so no counts, or too large for a total.
    """
    if (target_sum is not None or log1p) and len(rows.values) and bool((rows.values < 0).any()):
        at = int(np.argmax(rows.values < 0))
        cell = rows.start + int(np.searchsorted(rows.ptr, at, side="right")) - 1
        raise SourceContractError(
            f"{url}: cell {cell} has the value {rows.values[at]:g}: target_sum and log1p are for counts",
            path=url,
            fix="raw=True or layer=... for the counts, or neither of the two for scaled values",
        )
    if target_sum is None and not log1p:
        return rows.values
    half_or_whole = rows.values.dtype.kind != "f" or rows.values.dtype.itemsize < 4
    values = rows.values.astype(np.float32) if half_or_whole else rows.values
    if target_sum is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            totals = _sums(values, rows.ptr).astype(values.dtype) / target_sum
        endless = np.flatnonzero(np.isinf(totals))
        if len(endless) and bool(np.isfinite(values).all()):
            cell = rows.start + int(endless[0])
            raise SourceContractError(
                f"{url}: the values of cell {cell} sum to more than {values.dtype} holds",
                path=url,
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


def _sums(values: npt.NDArray[np.floating], ptr: Int64Array) -> npt.NDArray[np.float64]:
    filled = ptr[:-1] < ptr[1:]
    out = np.zeros(len(ptr) - 1, dtype=np.float64)
    if filled.any():
        out[filled] = np.add.reduceat(values.astype(np.float64), ptr[:-1][filled])
    return out


def on_nodes(
    rows: Rows, values: npt.NDArray[Any], node_of: Int64Array, names: list[str], url: str
) -> Expression:
    """Expression by node.

    Args:
        rows: Cells.
        values: Their values, one per element of ``rows``.
        node_of: Node of each variable, -1 for none, ``[num_variables] int64``.
        names: Names of the base graph's nodes.
        url: The file, for messages.

    Raises:
        SourceContractError: If float32 does not hold a value; names the cell and the gene.
    """
    nodes, num_nodes = node_of[rows.columns], len(names)
    with np.errstate(over="ignore", invalid="ignore"):
        short = values.astype(np.float32)
    lost = np.flatnonzero(lost_in_float32(values, short) & (nodes >= 0))
    if len(lost):
        at = int(lost[0])
        cell = rows.start + int(np.searchsorted(rows.ptr, at, side="right")) - 1
        raise SourceContractError(
            f"{url}: cell {cell} has {values[at]!s} of {names[int(nodes[at])]}, which float32 cannot hold",
            path=url,
            fix="scale the values, or mend what wrote them",
        )
    kept = (nodes >= 0) & (short.view(np.uint32) != 0)
    cells = np.repeat(np.arange(len(rows.ptr) - 1), np.diff(rows.ptr))[kept]
    nodes, short = nodes[kept], short[kept]
    ptr = offsets(np.bincount(cells, minlength=len(rows.ptr) - 1))
    place = cells * num_nodes + nodes
    if len(place) and bool(
        (place[1:] < place[:-1]).any()
    ):  # unless the file has the genes in the graph's order
        order = np.argsort(place)
        nodes, short = nodes[order], short[order]
    return Expression(ptr, nodes, short)


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


@dataclass(frozen=True, slots=True)
class HighlyVariable:
    """How genes are chosen.

    Attributes:
        n_top_genes: How many.
        flavor: scanpy's: ``seurat`` and ``cell_ranger`` expect logarithms, ``seurat_v3`` counts (needs scikit-misc).
        num_cells: Cells looked at; of more, as many in evenly spaced runs. Memory is bounded by it.
    """

    n_top_genes: int
    flavor: str
    num_cells: int


def sampled_runs(count: int, wanted: int) -> list[tuple[int, int]]:
    """Evenly spaced runs of cells, all cells if there are no more than wanted."""
    if count <= wanted:
        return [(0, count)]
    size = max(1, wanted // _RUNS)
    number = wanted // size
    starts = [k * (count - size) // max(number - 1, 1) for k in range(number)]
    return [(start, start + size) for start in starts]


class CellRows:
    """Expression of all cells that are samples, file after file.

    Args:
        matrices: One per file.
        rows: The rows of each that are samples, ascending.
        names: Names of the base graph's nodes.
    """

    def __init__(self, matrices: list[Matrix], rows: list[Int64Array], names: list[str]) -> None:
        self.matrices, self.rows, self.names = matrices, rows, names
        self.starts = offsets(np.array([len(part) for part in rows], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(
        self, start: int, stop: int, nodes: list[Int64Array], target: float | None, log1p: bool
    ) -> Iterator[Expression]:
        """Cells ``start`` to ``stop`` in runs; ``nodes``: per file the node of each variable, -1 for none."""
        for number, matrix in enumerate(self.matrices):
            first, last = int(self.starts[number]), int(self.starts[number + 1])
            chosen = self.rows[number][max(start, first) - first : max(min(stop, last) - first, 0)]
            if not len(chosen):
                continue
            for rows in matrix.runs(int(chosen[0]), int(chosen[-1]) + 1):
                values = transformed(rows, target, log1p, matrix.file.url)
                found = on_nodes(rows, values, nodes[number], self.names, matrix.file.url)
                yield found.only(chosen - rows.start) if len(chosen) < matrix.shape[0] else found

    def chosen(
        self, how: HighlyVariable | None, nodes: list[Int64Array], target: float | None, log1p: bool
    ) -> list[Int64Array]:
        """``nodes`` without the genes that are not highly variable; of counts, for ``seurat_v3``.

        Raises:
            SettingError: If scanpy, or what it needs for this flavour, is not installed.
            SourceContractError: If scanpy refuses the data.
        """
        if how is None:
            return nodes
        sparse, anndata = needs("scipy.sparse"), needs("anndata")
        measured = np.unique(np.concatenate([part[part >= 0] for part in nodes]))
        target, log1p = (None, False) if how.flavor == "seurat_v3" else (target, log1p)
        parts = [
            sparse.csr_matrix((e.values, e.nodes, e.ptr), shape=(len(e.ptr) - 1, len(self.names)))
            for start, stop in sampled_runs(len(self), how.num_cells)
            for e in self.read(start, stop, nodes, target, log1p)
        ]
        cells = anndata.AnnData(sparse.vstack(parts, format="csr")[:, measured])
        kept = np.zeros(len(self.names), dtype=np.bool_)
        kept[measured[_highly_variable(cells, how)]] = True
        return [np.where((part >= 0) & kept[part], part, -1) for part in nodes]


def _highly_variable(cells: Any, how: HighlyVariable) -> npt.NDArray[np.bool_]:
    scanpy = needs("scanpy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = scanpy.pp.highly_variable_genes(
                cells, n_top_genes=min(how.n_top_genes, cells.n_vars), flavor=how.flavor, inplace=False
            )
    except ImportError as error:
        raise SettingError(
            f"flavor={how.flavor!r}: {error}", fix="pip install scikit-misc, or another flavour"
        ) from None
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise SourceContractError(
            f"scanpy.pp.highly_variable_genes(flavor={how.flavor!r}) on {cells.n_obs} cells: {error}",
            fix="'seurat' and 'cell_ranger' expect logarithms (log1p=True), 'seurat_v3' whole counts; all three many cells",
        ) from None
    return np.asarray(found["highly_variable"], dtype=np.bool_)
