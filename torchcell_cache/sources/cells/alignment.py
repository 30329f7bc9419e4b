"""Which variable of a file is which node of the base graph, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from torchcell_cache.errors import SourceContractError
from torchcell_cache.processors.deletion import node_names
from torchcell_cache.record import Int64Array
from torchcell_cache.sources.cells.h5ad import decoded_names
from torchcell_cache.sources.cells.rows import Matrix
from torchcell_cache.topology import count_nodes

_SHOWN = 8


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """How one file's variables meet the base graph's nodes.

    Attributes:
        url: The file.
        node_of: Node of each variable, -1 for none, ``[num_variables] int64``.
        matched: Number of variables that are nodes.
        missing: Names of nodes the file does not measure; their expression is zero.
        unused: Names of variables that are no nodes; they count for the total of a cell and are not stored.
    """

    url: str
    node_of: Int64Array
    matched: int
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = self.matched + len(self.missing)
        return (
            f"{self.url}: {self.matched:,} of {total:,} genes of the base graph measured"
            f"{_some(self.missing, 'zero')}; {len(self.unused):,} of {len(self.node_of):,} variables are not in it"
            f"{_some(self.unused, 'left out')}"
        )


def align(matrix: Matrix, names: list[str], column: str | None) -> Alignment:
    """Match the variables of a matrix with node names.

    Args:
        matrix: The matrix.
        names: Node names of the base graph.
        column: Column of ``var`` with the genes' names; the index of ``var`` if ``None``.

    Raises:
        SourceContractError: If a name occurs twice, or none matches.
    """
    file = matrix.file
    table = file.table(
        "raw/var" if matrix.raw else "var", () if column is None else (column,), index=column is None
    )
    found = decoded_names(table["" if column is None else column])
    if matrix.shape[1] != len(found):
        raise SourceContractError(
            f"{file.url}: the matrix has {matrix.shape[1]} variables, var has {len(found)}", path=file.url
        )
    where = "the index of var" if column is None else f"var column {column!r}"
    named = found[found != ""]
    unique, counts = np.unique(named.astype(str), return_counts=True)
    if len(unique) != len(named):
        twice = unique[counts > 1].tolist()
        raise SourceContractError(
            f"{file.url}: {where} names {len(twice)} genes more than once: {', '.join(twice[:_SHOWN])}"
            + (", ..." if len(twice) > _SHOWN else ""),
            path=file.url,
            fix="gene_column=... with unique names, or make them unique in the file (adata.var_names_make_unique())",
        )
    lookup = {name: k for k, name in enumerate(names)}
    node_of = np.array([lookup.get(name, -1) for name in found], dtype=np.int64)
    measured = set(node_of.tolist())
    if not measured - {-1}:
        raise SourceContractError(
            f"{file.url}: no name in {where} is a node of the base graph; the file has "
            f"{', '.join(found[:_SHOWN])}, ..., the graph {', '.join(names[:_SHOWN])}, ...",
            path=file.url,
            fix="gene_column=... with the names that the base graph's node_ids use",
        )
    missing = tuple(name for k, name in enumerate(names) if k not in measured)
    unused = tuple(found[node_of < 0].tolist())
    return Alignment(file.url, node_of, len(node_of) - len(unused), missing, unused)


def gene_names(graph: Any, node_type: str | None) -> list[str]:
    """``node_ids`` of the genes.

    Raises:
        SourceContractError: If there are none, or not one for each node.
    """
    if graph is None:
        raise SourceContractError(
            "base_graph is None: cells need a graph of genes", fix="a Data or HeteroData with node_ids"
        )
    store = graph._store if node_type is None else graph[node_type]
    names = node_names(store)
    if names is None:
        raise SourceContractError(
            "the base graph has no node_ids: cells are aligned with it by gene name",
            fix="set graph['gene'].node_ids to the list of gene names",
        )
    count = count_nodes(store, f"'{node_type}'")
    if len(names) != count or len(set(names)) != count:
        raise SourceContractError(f"node_ids has {len(set(names))} different names for {count} nodes")
    return names


def _some(names: tuple[str, ...], what: str) -> str:
    if not names:
        return ""
    return f" ({what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
