"""Highly variable genes, chosen by scanpy on a bounded sample of cells."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.cells.expression import Expression
from torchcell_cache.sources.cells.h5ad import needs

FLAVORS = ("seurat", "cell_ranger", "seurat_v3")
_RUNS = 64


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

    def __post_init__(self) -> None:
        whole_number("n_top_genes", self.n_top_genes, 1)
        whole_number("hvg_cells", self.num_cells, 2)


def sampled_runs(count: int, wanted: int) -> list[tuple[int, int]]:
    """Evenly spaced runs of cells, all cells if there are no more than wanted."""
    if count <= wanted:
        return [(0, count)]
    size = max(1, wanted // _RUNS)
    number = wanted // size
    starts = [k * (count - size) // max(number - 1, 1) for k in range(number)]
    return [(start, start + size) for start in starts]


def choose(
    how: HighlyVariable,
    count: int,
    read: Callable[[int, int], Iterator[Expression]],
    measured: Int64Array,
    num_nodes: int,
) -> npt.NDArray[np.bool_]:
    """Choose genes.

    Args:
        how: What is wanted.
        count: Number of cells.
        read: Expression of a run of cells; of counts, for ``seurat_v3``.
        measured: Nodes that some file measures, ascending, ``[k] int64``: genes are chosen among these.
        num_nodes: Nodes of the base graph.

    Returns:
        Which nodes were chosen, ``[num_nodes] bool``.

    Raises:
        SettingError: If scanpy, or what it needs for this flavour, is not installed.
        SourceContractError: If scanpy refuses the data.
    """
    sparse, scanpy, anndata = needs("scipy.sparse"), needs("scanpy"), needs("anndata")
    parts = [
        sparse.csr_matrix((e.values, e.nodes, e.ptr), shape=(len(e.ptr) - 1, num_nodes))
        for start, stop in sampled_runs(count, how.num_cells)
        for e in read(start, stop)
    ]
    cells = anndata.AnnData(sparse.vstack(parts, format="csr")[:, measured])
    out = np.zeros(num_nodes, dtype=np.bool_)
    out[measured[_ask(scanpy, cells, how)]] = True
    return out


def _ask(scanpy: Any, cells: Any, how: HighlyVariable) -> npt.NDArray[np.bool_]:
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
