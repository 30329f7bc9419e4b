"""Labels, batch columns and perturbations of all cells, from ``obs``: some bytes per cell, held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.errors import SourceContractError
from torchcell_cache.record import Float32Array, Int64Array, SampleTable
from torchcell_cache.sources.cells.h5ad import H5adFile


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What ``obs`` says of all cells of all files.

    Attributes:
        values: Numeric columns, ``[num_cells, num_phenotypes] float32``.
        codes: Categorical columns, -1 where a cell has none, ``[num_cells, num_categorical] int64``.
        categories: Per categorical column the names behind the codes.
        ids: Perturbed nodes, ascending per cell, ``[num_perturbed] int64``.
        ptr: Where each cell starts in ``ids``, ``[num_cells + 1] int64``.
    """

    values: Float32Array
    codes: Int64Array
    categories: dict[str, list[str]]
    ids: Int64Array
    ptr: Int64Array

    def table(self, phenotypes: tuple[str, ...]) -> SampleTable:
        """All columns as labels; codes as numbers, NaN where a cell has none."""
        codes = self.codes.astype(np.float32)
        codes[self.codes < 0] = np.nan
        names = (*phenotypes, *self.categories)
        values = np.ascontiguousarray(np.concatenate([self.values, codes], axis=1))
        once = np.arange(len(values) + 1, dtype=np.int64)
        return SampleTable(self.ids, self.ptr, values, once, names)


@dataclass(frozen=True, slots=True)
class Perturbations:
    """Where the perturbed genes of a cell stand.

    Attributes:
        columns: Columns of ``obs``.
        separator: What joins several genes.
        control: Names that stand for no perturbation.
        unknown: ``error``, or ``drop`` genes that the base graph does not have.
    """

    columns: tuple[str, ...]
    separator: str
    control: tuple[str, ...]
    unknown: str


def read_labels(
    files: Sequence[H5adFile],
    lengths: Sequence[int],
    names: list[str],
    phenotypes: tuple[str, ...],
    categorical: tuple[str, ...],
    perturbations: Perturbations,
) -> Labels:
    """Read the columns of all files.

    Raises:
        SourceContractError: Naming the file, the column and the value that do not fit.
    """
    known: dict[str, dict[str, int]] = {name: {} for name in categorical}
    lookup = {name: k for k, name in enumerate(names)}
    values, codes, ids, counts = [], [], [], []
    for file, length in zip(files, lengths, strict=True):
        wanted = tuple(dict.fromkeys((*phenotypes, *categorical, *perturbations.columns)))
        table = file.table("obs", wanted) if wanted else {}
        if any(len(column) != length for column in table.values()):
            raise SourceContractError(
                f"{file.url}: the matrix has {length} cells, obs another number", path=file.url
            )
        numeric = np.empty((length, len(phenotypes)), dtype=np.float32)
        coded = np.empty((length, len(categorical)), dtype=np.int64)
        for k, name in enumerate(phenotypes):
            numeric[:, k] = _numbers(file, name, table[name])
        for k, name in enumerate(categorical):
            coded[:, k] = _codes(table[name], known[name])
        values.append(numeric)
        codes.append(coded)
        part, count = _perturbed(file, table, perturbations, lookup, length)
        ids.append(part)
        counts.append(count)
    ptr = np.zeros(sum(lengths) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(counts), out=ptr[1:])
    return Labels(
        np.concatenate(values),
        np.concatenate(codes),
        {name: list(found) for name, found in known.items()},
        np.concatenate(ids),
        ptr,
    )


def _numbers(file: H5adFile, name: str, column: Any) -> Float32Array:
    dtype = getattr(column, "dtype", None)
    kind = getattr(dtype, "kind", "O")
    if kind not in "fiub" or str(dtype) == "category":
        raise SourceContractError(
            f"{file.url}: obs column {name!r} holds {dtype}, expected numbers",
            path=file.url,
            fix=f"categories=[{name!r}] for a column of names",
        )
    if hasattr(column, "to_numpy"):  # nullable integers and bools of pandas
        return np.asarray(column.to_numpy(dtype=np.float32, na_value=np.nan), dtype=np.float32)
    return np.asarray(column, dtype=np.float32)


def _text(column: Any) -> tuple[npt.NDArray[Any], list[str]]:
    """Codes (-1: none) and names of a column of categories, texts, bools or integers."""
    import pandas as pd

    found = column.array if hasattr(column, "array") else column
    if not isinstance(found, pd.Categorical):
        found = pd.Categorical(pd.Series(column))
    names = [v.decode() if isinstance(v, bytes) else str(v) for v in found.categories]
    return np.asarray(found.codes, dtype=np.int64), names


def _codes(column: Any, known: dict[str, int]) -> Int64Array:
    """Codes over all files: categories keep the order in which files name them."""
    codes, names = _text(column)
    new = np.array([*(known.setdefault(name, len(known)) for name in names), -1], dtype=np.int64)
    coded: Int64Array = new[codes]
    return coded


def _perturbed(
    file: H5adFile, table: dict[str, Any], how: Perturbations, lookup: dict[str, int], length: int
) -> tuple[Int64Array, Int64Array]:
    """Perturbed ids of each cell and their number; each distinct entry is looked up once."""
    if not how.columns:
        return np.empty(0, dtype=np.int64), np.zeros(length, dtype=np.int64)
    owners, found = [], []
    for column in how.columns:
        codes, names = _text(table[column])
        if bool((codes < 0).any()):
            raise SourceContractError(
                f"{file.url}: obs column {column!r} has no value for {int((codes < 0).sum()):,} cells, the first is cell "
                f"{int(np.argmax(codes < 0))}: that does not say whether they are perturbed",
                path=file.url,
                fix=f"drop these cells, or fill them with {how.control[0] if how.control else 'a control'!r}",
            )
        parsed = [_nodes(file, column, name, how, lookup) for name in names]
        counts = np.array([len(nodes) for nodes in parsed], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        flat = np.array([node for nodes in parsed for node in nodes], dtype=np.int64)
        per_cell = counts[codes]
        shift = np.repeat(starts[:-1][codes] - np.cumsum(per_cell) + per_cell, per_cell)
        owners.append(np.repeat(np.arange(length), per_cell))
        found.append(flat[shift + np.arange(int(per_cell.sum()))])
    pairs = np.unique(np.stack([np.concatenate(owners), np.concatenate(found)], axis=1), axis=0)
    return pairs[:, 1].copy(), np.bincount(pairs[:, 0], minlength=length).astype(np.int64)


def _nodes(file: H5adFile, column: str, text: str, how: Perturbations, lookup: dict[str, int]) -> list[int]:
    out = []
    for part in text.split(how.separator):
        name = part.strip()
        if name == "" or name in how.control:
            continue
        if name in lookup:
            out.append(lookup[name])
        elif how.unknown == "error":
            raise SourceContractError(
                f"{file.url}: obs column {column!r} has {text!r}, and {name!r} is neither a node of the base graph "
                f"nor a control ({', '.join(how.control)})",
                path=file.url,
                fix='separator=..., control=..., or unknown="drop"',
            )
    return out
