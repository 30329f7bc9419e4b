"""A table of perturbations from CSV, TSV or Parquet: which column is what, and what became a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from torchcell_cache.errors import SettingError, SourceContractError, install_line
from torchcell_cache.sources.columns import column_list, is_row_numbers
from torchcell_cache.sources.delimited import (
    MISSING,
    check_header,
    checked_separator,
    errors_of,
    read_text,
    rows_of,
    separator_of,
)
from torchcell_cache.sources.name_lists import NameLists, hint
from torchcell_cache.sources.numbers_in_text import CellColumn, Numbers

if TYPE_CHECKING:
    from torchcell_cache.sources.arrow_columns import ArrowColumn

Float64Array = npt.NDArray[np.float64]
Column: TypeAlias = "ArrowColumn | CellColumn"


@dataclass(frozen=True, slots=True)
class Roles:
    """What the columns of a table are.

    Attributes:
        perturbed: Columns of perturbed names.
        separator: What joins the names in a cell.
        phenotypes: Label columns; ``None``: all numeric columns, unless statistics are named.
        statistics: Statistic columns.
        id_column: Column of sample names.
    """

    perturbed: tuple[str, ...]
    separator: str = "|"
    phenotypes: tuple[str, ...] | None = None
    statistics: tuple[str, ...] = ()
    id_column: str | None = None

    @classmethod
    def from_arguments(
        cls, perturbed: Any, separator: Any, phenotypes: Any, statistics: Any, id_column: Any
    ) -> Roles:
        """From what a caller gives.

        Raises:
            SettingError: If it is no name of a column, or separates nothing.
        """
        if not isinstance(separator, str) or not separator:
            said = " is empty" if separator == "" else f"={separator!r:.80}"
            raise SettingError(f"separator{said}: it would not separate names", fix='separator="|"')
        names = _column_names("perturbed", perturbed)
        if not names:
            raise SettingError("perturbed names no column", fix='perturbed="genes"')
        if id_column is not None and not isinstance(id_column, str):
            raise SettingError(f"id_column={id_column!r} is no name of a column, expected text")
        labels = None if phenotypes is None else _column_names("phenotypes", phenotypes)
        return cls(names, separator, labels, _column_names("statistics", statistics), id_column)

    @property
    def named(self) -> list[str]:
        """All columns that are named."""
        ids = [self.id_column] if self.id_column is not None else []
        return list(dict.fromkeys([*self.perturbed, *(self.phenotypes or ()), *self.statistics, *ids]))

    @property
    def labels_by_type(self) -> bool:
        """Whether the columns that are labels follow from their content."""
        return self.phenotypes is None and not self.statistics


def _column_names(what: str, given: Any) -> tuple[str, ...]:
    """One name of a column, or several in their order."""
    try:
        names = (given,) if isinstance(given, str) else tuple(column_list(given, what))
    except SourceContractError:
        names = (given,)
    if odd := [name for name in names if not isinstance(name, str)]:
        raise SettingError(f"{what}: {odd[0]!r:.80} is no name of a column, expected text")
    return tuple(str(name) for name in names)


@dataclass(frozen=True, slots=True, eq=False)
class TableColumns:
    """Columns of one file, ready for :class:`~torchcell_cache.sources.table.PerturbationTable`.

    Attributes:
        perturbed: Names of each row.
        phenotypes: Label columns, ``[num_rows] float64``, NaN for no value.
        statistics: Statistic columns, likewise.
        source_ids: Names of the rows, if there is such a column.
        notes: What was read as what.
    """

    perturbed: NameLists
    phenotypes: dict[str, Float64Array]
    statistics: dict[str, Float64Array]
    source_ids: list[str] | None
    notes: tuple[str, ...]


def read_table(
    path: Path, roles: Roles, *, delimiter: str | None = None, encoding: str | None = None, fast: bool = True
) -> TableColumns:
    """Read a table; see ``PerturbationTable.from_csv``.

    Args:
        path: The file.
        roles: What its columns are.
        delimiter: What separates cells; from the name of the file if ``None``.
        encoding: Encoding of a text file; UTF-8 if ``None``.
        fast: Use pyarrow if it is installed; the result is the same.

    Raises:
        SourceContractError: If the file or a column is missing, or a label is not a number.
    """
    path = path.expanduser()
    with errors_of(path):
        try:
            from torchcell_cache.sources import arrow_columns as arrow
        except ImportError:  # pyarrow is an extra
            arrow = None  # type: ignore[assignment]
        if path.suffix.lower() in (".parquet", ".pq"):
            columns, unnamed = _parquet(path, roles, arrow), 0
        else:
            columns, unnamed = _delimited(path, roles, delimiter, encoding, arrow if fast else None)
        for name in roles.named:
            if name not in columns:
                raise _no_column(name, list(columns))
        size = len(columns[roles.perturbed[0]])
        if not size:
            raise SourceContractError(f"{path} has a header but no rows")
        perturbed = NameLists.beside([columns[name].names(roles.separator) for name in roles.perturbed])
        ids = None if roles.id_column is None else columns[roles.id_column].texts()
        for row, cell in enumerate(ids or ()):
            if cell.strip() in MISSING:
                where = f"row {row}: {cell!r:.80} in column '{roles.id_column}'"
                raise SourceContractError(f"{where} is no name of a sample")
        statistics = {name: _values(name, columns[name].numbers()) for name in roles.statistics}
        labels, left = _labels(roles, columns)
    left += [f"{unnamed} without a name"] if unnamed and roles.labels_by_type else []
    notes = [f"{path.name}: {size:,} rows", f"labels {_listed(labels) or 'none'}"]
    notes += [f"statistics {_listed(statistics)}"] if statistics else []
    notes += [f"no labels: {', '.join(left)}"] if left else []
    columns.clear()
    if arrow is not None:
        arrow.release_unused()
    return TableColumns(perturbed, labels, statistics, ids, ("; ".join(notes),))


def _parquet(path: Path, roles: Roles, arrow: Any) -> dict[str, Column]:
    if not path.is_file():
        fix = "pyarrow.parquet.read_table(path) reads a directory of parts; write it to one file"
        said = f"{path} is a directory, expected a file" if path.is_dir() else f"no file at {path}"
        raise SourceContractError(said, path=path, fix=fix if path.is_dir() else "check the path")
    if arrow is None:
        raise SourceContractError("reading Parquet needs pyarrow", fix=install_line("table"))
    return dict(arrow.read_parquet(path, None if roles.labels_by_type else roles.named))


def _delimited(
    path: Path, roles: Roles, delimiter: str | None, encoding: str | None, arrow: Any
) -> tuple[dict[str, Column], int]:
    """Columns by name, and how many have none: row numbers of pandas and R, or nothing behind the last comma."""
    separator = separator_of(path, ",") if delimiter is None else checked_separator(delimiter, "delimiter")
    data = read_text(path, encoding)
    rows = rows_of(path, data, separator)
    if (first := next(rows, None)) is None:
        raise SourceContractError(f"{path} is empty")
    header = check_header(path, first)
    for name in roles.named:
        if header.count(name) != 1:
            raise _no_column(name, header)
    wanted = [name for name in header if name in roles.named or (name and roles.labels_by_type)]
    unnamed = sum(not name and name not in wanted for name in header)
    found = None if arrow is None else arrow.read_csv(path, data, separator, wanted)
    if found is not None:
        return {name: found[name] for name in wanted}, unnamed
    cells: list[list[str]] = [[] for _ in header]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            fix = "cells that hold the separator must be quoted (CSV), or the row is cut"
            if number == 0 and len(row) == len(header) + 1:
                fix = "R leaves out the name over its names of rows: write.csv, or write.table(..., col.names=NA)"
            said = f"row {number} has {len(row)} cells, the header has {len(header)}"
            raise SourceContractError(said, fix=fix)
        for column, cell in zip(cells, row, strict=True):
            column.append(cell)
    named = zip(header, cells, strict=True)
    return {name: CellColumn(column) for name, column in named if name in wanted}, unnamed


def _no_column(name: str, header: Sequence[str]) -> SourceContractError:
    fix = hint([name], header) or ('perturbed="..." names the column of genes' if name == "genes" else None)
    for mark, typed in ((";", ";"), ("\t", "tab"), (",", ","), ("|", "|"), (" ", " ")):
        if len(header) == 1 and name in [part.strip(' "') for part in header[0].split(mark)]:
            fix = f"cells seem to be separated by {typed!r}: pass delimiter={typed!r}"
            break
    one = "one " if name in header else ""
    return SourceContractError(f"no {one}column '{name}'; it has {list(header)}", fix=fix)


_FIX = 'write numbers such as -0.5, and nothing or NA where there is no value; or name the labels: phenotypes=["..."]'
_NO_NUMBER = {
    "odd": "is not a number",
    "huge": "is beyond what float32 holds (3.4e38)",
    "inexact": "has more digits than a number can hold",
}


def _labels(roles: Roles, columns: dict[str, Column]) -> tuple[dict[str, Float64Array], list[str]]:
    """Label columns, and the names of those that are text."""
    if not roles.labels_by_type:
        return {name: _values(name, columns[name].numbers()) for name in roles.phenotypes or ()}, []
    labels: dict[str, Float64Array] = {}
    left: list[str] = []
    first = next(iter(columns))
    for name, column in columns.items():
        if name in (*roles.perturbed, roles.id_column):
            continue
        if not column.auto:
            left.append(f"{name} (index)")
            continue
        found = column.numbers()
        if "odd" not in found.first and is_row_numbers(name, found.values, name == first):
            left.append(f"{name} (numbers of rows)")
        elif "odd" in found.first and not {"number", "almost"} & {*found.first}:
            left.append(name)
        else:
            labels[name] = _values(name, found, "almost")
    if not labels:
        said = f"; no labels: {', '.join(left)}" if left else ""
        raise SourceContractError(
            f"no column of numbers beside {', '.join(map(repr, roles.perturbed))}{said}",
            fix="phenotypes=[] if the samples have no labels",
        )
    return labels, left


def _values(name: str, found: Numbers, first: str = "odd") -> Float64Array:
    for kind, what in _NO_NUMBER.items():
        if kind in found.first:
            row, cell = found.first[first if kind == "odd" and first in found.first else kind]
            number = found.first.get("number") if kind == "odd" else None
            beside = f", but row {number[0]} has {number[1]!r:.80}" if number else ""
            raise SourceContractError(f"row {row}: {cell!r:.80} in column '{name}' {what}{beside}", fix=_FIX)
    return found.values


def _listed(columns: dict[str, Float64Array]) -> str:
    missing = {name: int(np.isnan(values).sum()) for name, values in columns.items()}
    return ", ".join(f"{name} ({n:,} without a value)" if n else name for name, n in missing.items())
