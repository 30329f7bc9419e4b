"""Which variable of a file is which node of the base graph, by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SourceContractError
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
    if not found:
        raise SourceContractError(f"{file.url}: var has no names, the matrix no variables", path=file.url)
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


def _some(names: tuple[str, ...], what: str) -> str:
    if not names:
        return ""
    return f" ({what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
