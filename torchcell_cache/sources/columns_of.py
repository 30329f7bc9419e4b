"""Columns of a small table that came from Python - a tuple of columns, a list of rows, an array or a frame - and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from torchcell_cache.core.ragged import Float32Array
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.positional import column_list, frame_columns, is_frame

_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
_EXACT = 2**24


def columns_of(table: Any, width: int, what: str, expected: str) -> list[list[Any]]:
    """``width`` columns of equal length.

    A tuple of ``width`` sequences is columns, any other sequence is rows. An array that is square could be either.

    Raises:
        SettingError: If it is no table; says what was expected.
        SourceContractError: If columns or rows have other lengths than they should.
    """
    shape = tuple(getattr(table, "shape", ()))
    if is_frame(table):
        columns = frame_columns(table)
        if len(columns) != width:
            raise SourceContractError(
                f"{what} has {len(columns)} columns, expected {width}: {expected}", fix="frame[[...]]"
            )
        return [column_list(column, what) for column in columns]
    if shape and hasattr(table, "tolist"):
        if len(shape) != 2 or width not in shape or shape[0] == shape[1]:
            raise SettingError(
                f"{what} is an array of shape {shape}, which could be rows or columns, or neither; expected {expected}",
                fix="pass a tuple of columns, or a list of rows",
            )
        return [list(column) for column in (table if shape[0] == width else table.T).tolist()]
    if not isinstance(table, tuple | list):
        raise SettingError(
            f"{what} is {type(table).__name__}, expected {expected}",
            fix="pass a list of rows: [(...), (...)]",
        )
    if isinstance(table, tuple) and len(table) == width:
        columns = [_items(part, what, expected) for part in table]
        if len({len(column) for column in columns}) > 1:
            counts = " and ".join(str(len(column)) for column in columns)
            raise SourceContractError(
                f"{what} has columns of {counts} entries, expected as many in each",
                fix="a tuple of columns is columns, a list is rows",
            )
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
        raise SettingError(
            f"{what} holds {part!r:.80}, expected {expected}",
            fix="a tuple of columns is columns, a list is rows",
        )
    return list(part)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: ``None``, NaN, or a gap of pandas or numpy."""
    gaps = ("NoneType", "NAType", "NaTType", "MaskedConstant")
    return type(value).__name__ in gaps or (isinstance(value, float) and math.isnan(value))


def check_order(values: Any, names: Sequence[str], what: str) -> None:
    """Refuse a pandas object that has names as its index in another order: an index has no meaning here.

    Raises:
        SourceContractError: If it has.
    """
    labels: Any = getattr(values, "index", None)
    named = [str(label).strip() for label in labels] if hasattr(labels, "get_loc") else []
    if named != [*names] and {*named} == {*names}:
        raise SourceContractError(
            f"{what} has the names {named[0]!r}, {named[1]!r}, ... as its index, in another order than they are wanted",
            fix=f"series.to_dict(), or .loc[[{names[0]!r}, {names[1]!r}, ...]]",
        )


def float32_numbers(values: Sequence[Any], what: Callable[[int], str], fix: str) -> tuple[Float32Array, int]:
    """Finite numbers, ``[n] float32``, and how many of them are 0 in float32 only.

    Args:
        values: Numbers, or text that is one.
        what: What the value at a position is called in messages.
        fix: What to do about one that is none.

    Raises:
        SourceContractError: If a value is no finite number, or a whole one that float32 does not hold.
    """
    found = [number_of(value) for value in values]
    with np.errstate(over="ignore", under="ignore"):
        out = np.array(found, dtype=np.float64).astype(np.float32)
    if not np.isfinite(out).all():
        k = int(np.argmin(np.isfinite(out)))
        raise SourceContractError(f"{what(k)} {values[k]!r:.80}, expected a finite number", fix=fix)
    for k in np.flatnonzero(np.abs(out) >= _EXACT).tolist():
        if str(values[k]).strip().lstrip("+-").isdigit() and int(values[k]) != float(out[k]):
            raise SourceContractError(f"{what(k)} {values[k]!r}, which float32 does not hold", fix=fix)
    return out, int(((out == 0) & (np.array(found, dtype=np.float64) != 0)).sum())


def number_of(value: Any) -> float:
    """A value as a number, NaN if it is none: ``float`` itself takes truth values, bytes, ``1_0`` and other digits."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else np.nan
    if hasattr(value, "detach") and value.dim() == 0:
        value = value.item()
    is_number = isinstance(value, Real | Decimal) and not isinstance(value, bool | np.timedelta64)
    try:
        return float(value) if is_number else np.nan
    except (OverflowError, ValueError):
        return np.nan
