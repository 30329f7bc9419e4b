"""Reading a table of perturbations from CSV, TSV or Parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchcell_cache.errors import SourceContractError, install_line
from torchcell_cache.record import Float32Array
from torchcell_cache.sources.delimited import check_header, read_rows, separator_of


@dataclass(frozen=True, slots=True, eq=False)
class TableColumns:
    """Columns of one file, ready for :class:`~torchcell_cache.sources.table.PerturbationTable`."""

    perturbed: list[list[str]]
    phenotypes: dict[str, Float32Array]
    statistics: dict[str, Float32Array]
    source_ids: list[str] | None


def read_table(
    path: Path,
    perturbed: str,
    phenotypes: tuple[str, ...],
    statistics: tuple[str, ...],
    id_column: str | None,
    separator: str,
) -> TableColumns:
    """Read the named columns; see ``PerturbationTable.from_csv``.

    Raises:
        SourceContractError: If the file or a column is missing, or a value is not a number.
    """
    if not path.is_file():
        raise SourceContractError(f"no table at {path}", path=path, fix="check the path")
    suffixes = [s.lower() for s in path.suffixes]
    columns = _read_parquet(path) if suffixes[-1:] == [".parquet"] else _read_delimited(path)
    wanted = [perturbed, *phenotypes, *statistics, *([id_column] if id_column else [])]
    for name in wanted:
        if name not in columns:
            raise SourceContractError(f"{path}: no column '{name}'; it has {list(columns)}", path=path)
    if not phenotypes and not statistics:
        phenotypes = tuple(n for n in columns if n not in (perturbed, id_column) and _is_numeric(columns[n]))
    return TableColumns(
        perturbed=[_split(cell, separator) for cell in columns[perturbed]],
        phenotypes={name: _numbers(path, name, columns[name]) for name in phenotypes},
        statistics={name: _numbers(path, name, columns[name]) for name in statistics},
        source_ids=None if id_column is None else [str(cell) for cell in columns[id_column]],
    )


def _read_delimited(path: Path) -> dict[str, list[Any]]:
    rows = read_rows(path, separator=separator_of(path, ","))
    header = next(rows, None)
    if header is None:
        raise SourceContractError(f"{path} is empty", path=path)
    columns: dict[str, list[Any]] = {name: [] for name in check_header(path, header)}
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise SourceContractError(
                f"{path}: row {number} has {len(row)} cells, the header has {len(header)}", path=path
            )
        for column, cell in zip(columns.values(), row, strict=True):
            column.append(cell)
    return columns


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    try:
        import pandas as pd
    except ImportError:
        raise SourceContractError(
            f"{path}: reading Parquet needs pandas and pyarrow", fix=install_line("table")
        ) from None
    frame = pd.read_parquet(path)
    return {str(name): list(frame[name]) for name in frame.columns}


def _split(cell: Any, separator: str) -> list[str]:
    if isinstance(cell, str):
        return [name for name in (part.strip() for part in cell.split(separator)) if name]
    return [str(name) for name in cell] if cell is not None else []


def _number(cell: Any) -> float:
    text = cell.strip() if isinstance(cell, str) else cell
    return float("nan") if text in ("", None) else float(text)


def _is_numeric(column: list[Any]) -> bool:
    try:
        for cell in column[:100]:
            _number(cell)
    except (TypeError, ValueError):
        return False
    return bool(column)


def _numbers(path: Path, name: str, column: list[Any]) -> Float32Array:
    out = np.empty(len(column), dtype=np.float32)
    for row, cell in enumerate(column):
        try:
            out[row] = _number(cell)
        except (TypeError, ValueError):
            raise SourceContractError(
                f"{path}: row {row}: {cell!r} in column '{name}' is not a number", path=path
            ) from None
    return out
