"""Labels, batch columns, perturbations and barcodes of all cells, from ``obs``: some bytes per cell, held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.fingerprint import array_digest, sha256_json
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets, segments
from torchcell_cache.core.samples import SampleTable, UnknownNames
from torchcell_cache.errors import SourceContractError, StaleCacheError
from torchcell_cache.sources.cells.categories import Coded, merged, texts_of, whole
from torchcell_cache.sources.cells.expression import lost_in_float32
from torchcell_cache.sources.cells.failures import reading
from torchcell_cache.sources.cells.files import CellFile
from torchcell_cache.sources.cells.genes import Condition, Perturbations, read_perturbed
from torchcell_cache.sources.names import NodeNames
from torchcell_cache.store.columns import Names, encoded


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What ``obs`` says of all cells that are samples.

    Attributes:
        values: Numeric columns, ``[num_cells, num_phenotypes] float32``.
        codes: Categorical columns, -1 where a cell has none, ``[num_cells, num_categorical] int64``.
        categories: Per categorical column the names behind the codes.
        conditions: What cells are perturbed in.
        of: Condition of each cell, ``[num_cells] int64``.
        barcodes: The cells' own names, as the files have them; files may share some.
        rows: Per file the rows that are samples, ascending, ``[k] int64``.
        numeric: Categorical columns that some file holds as numbers.
        notes: What was left out, and what is missing, line by line.
    """

    values: Float32Array
    codes: Int64Array
    categories: dict[str, list[str]]
    conditions: list[Condition]
    of: Int64Array
    barcodes: Names
    rows: list[Int64Array]
    numeric: frozenset[str]
    notes: tuple[str, ...]

    def _perturbed(self) -> tuple[Int64Array, Int64Array, list[tuple[str, ...]]]:
        """Nodes, ascending per cell, where each cell starts, and by cell the names that are no nodes, if there are any."""
        ids, known = [each.ids for each in self.conditions], any(each.foreign for each in self.conditions)
        flat, counts = np.concatenate([np.empty(0, dtype=np.int64), *ids]), np.array(list(map(len, ids)))
        foreign = [self.conditions[k].foreign for k in self.of.tolist()] if known else []
        return *segments(flat, offsets(counts), self.of), foreign

    def table(self, phenotypes: tuple[str, ...]) -> SampleTable:
        """All columns as labels; codes as numbers, NaN where a cell has none."""
        codes = self.codes.astype(np.float32)
        codes[self.codes < 0] = np.nan
        names = (*phenotypes, *self.categories)
        values = np.ascontiguousarray(np.concatenate([self.values, codes], axis=1))
        once = np.arange(len(values) + 1, dtype=np.int64)
        ids, ptr, foreign = self._perturbed()
        unknown = UnknownNames.from_rows(foreign) if foreign else None
        return SampleTable(ids, ptr, values, once, names, source_ids=self.barcodes, unknown=unknown)

    def digest(self, nodes: Sequence[Int64Array]) -> str:
        """Of all labels, and of the node of each variable; for cells that are in no file."""
        ids, ptr, foreign = self._perturbed()
        arrays: list[npt.NDArray[Any]] = [self.values, self.codes, ids, ptr, *self.rows, *nodes]
        arrays += [self.barcodes.data, self.barcodes.ptr]
        kept = [[cell, *names] for cell, names in enumerate(foreign) if names]
        return sha256_json([[array_digest(part) for part in arrays], self.categories, kept])

    def recoded(self, categories: dict[str, list[str]]) -> Labels:
        """The same cells with the codes of a store's names, which must hold all of ours.

        Raises:
            StaleCacheError: If a column has names that the store does not know.
        """
        codes = self.codes.copy()
        for k, (name, ours) in enumerate(self.categories.items()):
            known = {text: code for code, text in enumerate(categories[name])}
            if name in self.numeric:  # 1 here may be 1.0 there
                known = {**{whole(text): code for text, code in known.items()}, **known}
            found = [known.get(text, known.get(whole(text), -1)) for text in ours]
            if new := [text for text, code in zip(ours, found, strict=True) if code < 0]:
                raise StaleCacheError(
                    f"{name} of the samples to append has names that the store does not have: {', '.join(new[:8])}",
                    fix="update with a source of all files",
                )
            codes[:, k] = np.array([*found, -1], dtype=np.int64)[self.codes[:, k]]
        return replace(self, codes=codes, categories=categories)


def read_labels(
    files: Sequence[CellFile],
    lengths: Sequence[int],
    nodes: NodeNames,
    phenotypes: tuple[str, ...],
    categorical: tuple[str, ...],
    how: Perturbations,
    chosen: list[Int64Array] | None,
) -> Labels:
    """Read the columns of all files, of the ``chosen`` rows of each.

    Raises:
        SourceContractError: Naming the file, the column and the value that do not fit.
    """
    numbers, coded, keeps, rows, of = [], [], [], [], []
    barcodes, conditions, notes = list[str](), list[Condition](), list[str]()
    for k, (file, length) in enumerate(zip(files, lengths, strict=True)):
        at = np.arange(length, dtype=np.int64) if chosen is None else chosen[k]
        with reading(file.url):
            table = file.table("obs", tuple(dict.fromkeys((*phenotypes, *categorical, *how.columns))))
            if other := next((len(column) for column in table.values() if len(column) != length), None):
                raise SourceContractError(f"the matrix has {length} cells, obs {other}")
            if chosen is not None:
                table = {name: _taken(column, at) for name, column in table.items()}
            names = texts_of(table[""])
            found = [_numbers(name, table[name], names, at) for name in phenotypes]
            coded.append([Coded.from_column(table[name], f"obs column {name!r}") for name in categorical])
            new, key, note = read_perturbed(table, how, nodes, at)
        lost = [how.unknown == "skip" and (each.blank or bool(each.unknown)) for each in new]
        kept = np.flatnonzero(~np.array(lost, dtype=np.bool_)[key])
        numbers.append(np.stack(found, axis=1)[kept] if found else np.empty((len(kept), 0), np.float32))
        barcodes += [names[row] for row in kept.tolist()]
        of.append(key[kept] + len(conditions))
        keeps.append(kept)
        rows.append(at[kept])
        conditions += new
        notes += [f"{file.url}: {note}"] if note else []
    codes, categories = np.full((len(barcodes), len(categorical)), -1, dtype=np.int64), {}
    for k, name in enumerate(categorical):
        parts, categories[name] = merged([each[k] for each in coded], [file.url for file in files], name)
        codes[:, k] = np.concatenate([part[kept] for part, kept in zip(parts, keeps, strict=True)])
    if chosen is not None:
        notes.insert(0, f"rows=: {sum(map(len, chosen)):,} of {sum(lengths):,} cells")
    values = np.concatenate(numbers)
    without = (~np.isfinite(values)).sum(axis=0).tolist() + (codes < 0).sum(axis=0).tolist()
    for name, count in zip((*phenotypes, *categories), without, strict=True):
        notes += [f"{name}: {count:,} of {len(values):,} cells have no value"] if count else []
    numeric = [any(each[k].kinds() - {"text"} for each in coded) for k in range(len(categorical))]
    return Labels(
        *(values, codes, categories, conditions, np.concatenate(of), Names(*encoded(barcodes)), rows),
        frozenset(compress(categorical, numeric)),
        tuple(notes),
    )


def _taken(column: Any, rows: Int64Array) -> Any:
    """Some rows of a column, without the categories that they do not have, as anndata takes them."""
    found = column.iloc[rows] if hasattr(column, "iloc") else column[rows]
    if str(getattr(found, "dtype", "")) != "category":
        return found
    return (found.cat if hasattr(found, "cat") else found).remove_unused_categories()


def _numbers(name: str, column: Any, cells: Sequence[str], numbers: Int64Array) -> Float32Array:
    """A numeric column; ``cells`` and their ``numbers`` are for messages.

    Raises:
        SourceContractError: If it holds no numbers, or one that float32 cannot hold.
    """
    dtype: Any = getattr(column, "dtype", None)
    if getattr(dtype, "kind", "O") not in "fiub" or str(dtype) == "category":
        raise SourceContractError(
            f"obs column {name!r} holds {dtype}, expected numbers",
            fix=f"categories=[{name!r}] for a column of names",
        )
    missing = np.zeros(len(column), dtype=np.bool_)
    if hasattr(dtype, "numpy_dtype"):  # nullable integers and bools of pandas
        missing = np.asarray(column.isna())
        column = column[~missing].to_numpy(dtype=dtype.numpy_dtype)
    given = np.asarray(column)
    with np.errstate(over="ignore", invalid="ignore"):
        short = given.astype(np.float32)
    lost = np.flatnonzero(lost_in_float32(given, short))
    if len(lost):
        row = int(np.flatnonzero(~missing)[lost[0]])
        raise SourceContractError(
            f"obs column {name!r} of cell {numbers[row]} ({cells[row]}) is {given[lost[0]]!s}, which float32 cannot hold",
            fix=f"scale the column, or categories=[{name!r}] for numbers that are names",
        )
    out = np.full(len(missing), np.nan, dtype=np.float32)
    out[~missing] = short
    return out
