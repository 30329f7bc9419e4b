"""From counts in a file to node features: normalised, logarithmised, in the order of the base graph's nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchcell_cache.errors import SourceContractError
from torchcell_cache.record import Float32Array, Int64Array
from torchcell_cache.sources.cells.rows import Rows


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


def transformed(rows: Rows, target_sum: float | None, log1p: bool) -> npt.NDArray[np.floating]:
    """The values of ``rows`` as ``scanpy.pp.normalize_total`` and ``scanpy.pp.log1p`` leave them.

    Totals are over all variables of the file, those the base graph does not have too. They are summed in double
    precision; values keep their own floating dtype, and whole numbers become float32 as in scanpy.

    Args:
        rows: Cells.
        target_sum: Total of each cell afterwards; ``None`` leaves values as they are. A cell without any counts stays so.
        log1p: Whether to take ``log(1 + value)``.

    Returns:
        ``[nnz]`` floats.

    Raises:
        SourceContractError: If values to be normalised are negative, and so no counts.
    """
    if (target_sum is not None or log1p) and len(rows.values) and bool((rows.values < 0).any()):
        at = int(np.argmax(rows.values < 0))
        cell = rows.start + int(np.searchsorted(rows.ptr, at, side="right")) - 1
        raise SourceContractError(
            f"cell {cell} of its file has the value {rows.values[at]:g}: target_sum and log1p are for counts",
            fix="raw=True or layer=... for the counts, or neither of the two for scaled values",
        )
    values = rows.values if rows.values.dtype.kind == "f" else rows.values.astype(np.float32)
    if target_sum is not None:
        totals = _sums(values, rows.ptr).astype(values.dtype) / target_sum
        totals[totals == 0] = 1
        values = values / np.repeat(totals.astype(values.dtype), np.diff(rows.ptr))
    return np.log1p(values) if log1p else values


def _sums(values: npt.NDArray[np.floating], ptr: Int64Array) -> npt.NDArray[np.float64]:
    filled = ptr[:-1] < ptr[1:]
    out = np.zeros(len(ptr) - 1, dtype=np.float64)
    if filled.any():
        out[filled] = np.add.reduceat(values.astype(np.float64), ptr[:-1][filled])
    return out


def on_nodes(rows: Rows, values: npt.NDArray[np.floating], node_of: Int64Array, num_nodes: int) -> Expression:
    """Expression by node.

    Args:
        rows: Cells.
        values: Their values, one per element of ``rows``.
        node_of: Node of each variable, -1 for none, ``[num_variables] int64``.
        num_nodes: Nodes of the base graph.
    """
    nodes = node_of[rows.columns]
    short = values.astype(np.float32)
    kept = (nodes >= 0) & (short.view(np.uint32) != 0)
    cells = np.repeat(np.arange(len(rows.ptr) - 1), np.diff(rows.ptr))[kept]
    nodes, short = nodes[kept], short[kept]
    ptr = np.zeros(len(rows.ptr), dtype=np.int64)
    np.cumsum(np.bincount(cells, minlength=len(rows.ptr) - 1), out=ptr[1:])
    place = cells * num_nodes + nodes
    if len(place) and bool(
        (place[1:] < place[:-1]).any()
    ):  # unless the file has the genes in the graph's order
        order = np.argsort(place)
        nodes, short = nodes[order], short[order]
    return Expression(ptr, nodes, short)
