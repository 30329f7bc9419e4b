"""Columns of a small table that came from Python: a tuple of columns, a list of rows, an array or a pandas frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchcell_cache.errors import SettingError, SourceContractError


def columns_of(table: Any, width: int, what: str, expected: str) -> list[list[Any]]:
    """``width`` columns of equal length.

    A tuple of ``width`` sequences is columns, any other sequence is rows. An array that is square could be either.

    Raises:
        SettingError: If it is no table; says what was expected.
        SourceContractError: If columns or rows have other lengths than they should.
    """
    shape = tuple(getattr(table, "shape", ()))
    if hasattr(table, "columns") and hasattr(table, "iloc") and len(shape) == 2:
        if shape[1] != width:
            raise SourceContractError(f"{what} has {shape[1]} columns, expected {width}: {expected}")
        return [table.iloc[:, k].tolist() for k in range(width)]
    if shape and hasattr(table, "tolist"):
        if len(shape) != 2 or width not in shape or shape[0] == shape[1]:
            raise SettingError(
                f"{what} is an array of shape {shape}, which could be rows or columns, or neither; expected {expected}",
                fix="pass a tuple of columns, or a list of rows",
            )
        return [list(column) for column in (table if shape[0] == width else table.T).tolist()]
    if not isinstance(table, tuple | list):
        raise SettingError(f"{what} is {type(table).__name__}, expected {expected}")
    if isinstance(table, tuple) and len(table) == width:
        columns = [_items(part, what, expected) for part in table]
        if len({len(column) for column in columns}) > 1:
            counts = " and ".join(str(len(column)) for column in columns)
            raise SourceContractError(f"{what} has columns of {counts} entries, expected as many in each")
        return columns
    rows = [_items(part, what, expected) for part in table]
    k = next((k for k, row in enumerate(rows) if len(row) != width), None)
    if k is not None:
        raise SourceContractError(
            f"{what}: entry {k} has {len(rows[k])} items, expected {width}: {expected}",
            fix="a tuple of columns is columns, a list is rows",
        )
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


def _items(part: Any, what: str, expected: str) -> list[Any]:
    if hasattr(part, "tolist") and getattr(part, "shape", None):
        return list(part.tolist())
    if isinstance(part, str | bytes) or not isinstance(part, Sequence):
        raise SettingError(f"{what} holds {part!r}, expected {expected}")
    return list(part)
