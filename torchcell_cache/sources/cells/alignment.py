"""Which variable of a file is which node of the base graph, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SourceContractError
from torchcell_cache.graph.topology import count_nodes
from torchcell_cache.processors.deletion import node_names
from torchcell_cache.sources.cells.categories import texts_of
from torchcell_cache.sources.cells.rows import Matrix
from torchcell_cache.sources.names import NodeNames

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


def align(matrix: Matrix, nodes: NodeNames, column: str | None) -> Alignment:
    """Match the variables of a matrix with node names.

    Args:
        matrix: The matrix.
        nodes: Names of the base graph's nodes.
        column: Column of ``var`` with the genes' names; the index of ``var`` if ``None``.

    Raises:
        SourceContractError: If a name occurs twice, two are the same node, or none is one.
    """
    file = matrix.file
    table = file.table("raw/var" if matrix.raw else "var", () if column is None else (column,))
    found = [name.strip() for name in texts_of(table["" if column is None else column]).tolist()]
    if matrix.shape[1] != len(found):
        raise SourceContractError(
            f"{file.url}: the matrix has {matrix.shape[1]} variables, var has {len(found)}", path=file.url
        )
    where = "the index of var" if column is None else f"var column {column!r}"
    node_of = nodes.positions(found)
    _refuse_repeated(file.url, where, found, node_of, nodes.names)
    measured = set(node_of.tolist())
    if not measured - {-1}:
        report = nodes.report(found, node_of)
        raise SourceContractError(
            f"{file.url}: no name in {where} is a node of the base graph; the file has "
            f"{', '.join(found[:_SHOWN])}, ..., the graph {', '.join(nodes.names[:_SHOWN])}, ..."
            + (f"; {report.hint}" if report.hint else ""),
            path=file.url,
            fix="gene_column=... with the names that the base graph's node_ids use, or aliases={'name': 'node name'}",
        )
    missing = tuple(name for k, name in enumerate(nodes.names) if k not in measured)
    unused = tuple(name for name, node in zip(found, node_of.tolist(), strict=True) if node < 0)
    return Alignment(file.url, node_of, len(node_of) - len(unused), missing, unused)


def _refuse_repeated(url: str, where: str, found: list[str], node_of: Int64Array, names: list[str]) -> None:
    """Refuse names that occur twice, and variables that are one node."""
    counts = Counter(name for name in found if name)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise SourceContractError(
            f"{url}: {where} names {len(twice)} genes more than once: {', '.join(twice[:_SHOWN])}"
            + (", ..." if len(twice) > _SHOWN else ""),
            path=url,
            fix="gene_column=... with unique names, or make them unique in the file (adata.var_names_make_unique())",
        )
    first: dict[int, str] = {}
    for name, node in zip(found, node_of.tolist(), strict=True):
        if node >= 0 and first.setdefault(node, name) != name:
            raise SourceContractError(
                f"{url}: {first[node]!r} and {name!r} in {where} are both the node {names[node]!r}",
                path=url,
                fix="leave one of them out of aliases, or out of the file",
            )


def gene_names(
    graph: Any, node_type: str | None, aliases: Mapping[str, str] | str | Path | None = None
) -> NodeNames:
    """``node_ids`` of the genes, for looking names up.

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
    if len(names) != count:
        raise SourceContractError(f"node_ids has {len(names)} names for {count} nodes")
    return NodeNames(names, aliases)


def _some(names: tuple[str, ...], what: str) -> str:
    if not names:
        return ""
    return f" ({what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
