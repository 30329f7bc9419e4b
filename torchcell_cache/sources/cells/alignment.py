"""Which variable of a file is which node of the base graph, by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchcell_cache.errors import SourceContractError
from torchcell_cache.record import Int64Array
from torchcell_cache.sources.cells.h5ad import H5adFile, decoded_names

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


def align(file: H5adFile, names: list[str], column: str | None, raw: bool) -> Alignment:
    """Match the variables of a file with node names.

    Args:
        file: The file.
        names: Node names of the base graph.
        column: Column of ``var`` with the genes' names; the index of ``var`` if ``None``.
        raw: Take the variables of ``raw``.

    Raises:
        SourceContractError: If a name occurs twice, or none matches.
    """
    table = file.table("raw/var" if raw else "var", () if column is None else (column,), index=column is None)
    found = decoded_names(table["" if column is None else column])
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


def _some(names: tuple[str, ...], what: str) -> str:
    if not names:
        return ""
    return f" ({what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
