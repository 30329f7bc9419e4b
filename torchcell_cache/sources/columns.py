"""Columns, tables and values as callers have them, by position: the index of a pandas object means nothing, as in numpy."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence, Set
from types import NoneType
from typing import Any

import numpy as np

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError, SourceContractError

_TEXTS = (str, bytes, bytearray, memoryview)
_PLAIN = {str, int, float, bool, NoneType, list, tuple}
_ROW_NUMBERS = re.compile(r"Unnamed: \d+(?:\.\d+|_level_\d+)?|index|level_\d+|row\.?_?names?|\.\.\.1|X")
"""What pandas and R call the numbers of rows that were written without a name."""


def column_list(column: Any, what: str) -> list[Any]:
    """The values of a column in their order, each of them :func:`plain`.

    Args:
        column: A sequence, an array, a tensor, or a column of pandas, polars or Arrow.
        what: What it is called in messages.

    Raises:
        SourceContractError: If it has no order, or no values at all.
    """
    said, values = "", on_host(column)
    if isinstance(column, (_TEXTS, Mapping | Set | NoneType)):
        said, values = type(column).__name__, None
    elif (frame := frame_parts(column)) is not None:
        if len(frame[1]) == 1:
            return column_list(frame[1][0], what)
        said, values = f"a frame of {len(frame[1])} columns", None
    elif getattr(column, "nlevels", 1) > 1:  # tuples, which would be repeated measurements
        said, values = "an index of several levels", None
    elif not getattr(values, "ndim", 1):
        values = None  # one value, or a record of several
    elif getattr(getattr(values, "dtype", None), "kind", "") not in ("M", "m"):
        lists = (getattr(values, name, None) for name in ("to_pylist", "tolist", "to_list"))
        values = next((method() for method in lists if method is not None), values)  # but numbers of dates
    try:
        found = list(values)
    except TypeError:
        said = f"{what} is {said or repr(column)[:60]}, expected one value per row, in order"
        raise SourceContractError(said, fix="pass a list") from None
    return found if set(map(type, found)) <= _PLAIN else list(map(plain, found))


def on_host(value: Any) -> Any:
    """A tensor or sparse matrix as a dense one on the CPU, a nested one as a list of them; anything else as it is."""
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        return value.toarray()  # scipy
    if not hasattr(value, "detach"):
        return value
    try:
        if hasattr(value, "get_mask"):  # torch.masked
            return np.ma.array(on_host(value.get_data()).numpy(), mask=~on_host(value.get_mask()).numpy())
        value = value.detach().cpu()
        if getattr(value, "is_nested", False):
            return list(value.unbind())
        value = value.to_dense() if str(value.layout) != "torch.strided" else value
        return value.dequantize() if value.is_quantized else value.resolve_conj()
    except (RuntimeError, NotImplementedError) as error:  # a tensor of the device meta has no values
        raise SourceContractError(f"a tensor cannot be read: {str(error).splitlines()[0]}") from None


def plain(value: Any) -> Any:
    """One value as Python has it, of whatever library; ``None`` for what is missing or masked. Dates stay what they are."""
    if hasattr(value, "as_py"):
        value = value.as_py()
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        kind = getattr(getattr(value, "dtype", None), "kind", "")
        if isinstance(value, np.ma.MaskedArray) and kind != "V" and bool(np.ma.getmaskarray(value)):
            return None  # what lies under a mask is any number
        value = value if kind in ("M", "m", "V") else value.item()
    return None if type(value).__name__ == "NAType" else value


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: ``None``, NaN, or a gap of pandas or numpy."""
    value = plain(value)
    gap = isinstance(value, float) and math.isnan(value)
    return gap or value is None or type(value).__name__ == "NaTType"


def row_of(ptr: Int64Array, at: int) -> int:
    """The row that an entry of a ragged column stands in."""
    return int(np.searchsorted(ptr, at, side="right")) - 1


def frame_parts(value: Any) -> tuple[list[Any], list[Any]] | None:
    """Names and columns of a table of pandas, polars or Arrow, or of an array of records; ``None`` if it is none."""
    if names := getattr(getattr(value, "dtype", None), "names", None):
        return ([*names], [value[name] for name in names]) if value.ndim == 1 else None
    if hasattr(value, "columns"):
        if hasattr(value, "iloc"):  # by position: a name may stand there twice
            return list(value.columns), [value.iloc[:, k] for k in range(value.shape[1])]
        if hasattr(value, "get_columns"):  # polars
            return list(value.columns), list(value.get_columns())
        if hasattr(value, "itercolumns"):  # Arrow
            return list(value.column_names), list(value.itercolumns())
    return None


def named_columns(given: Any, what: str) -> dict[str, Any]:
    """Columns by name: of a mapping, a frame, or one column that has a name; ``None`` for none.

    Raises:
        SettingError: If it is none of these, a name is no text or stands there twice, or a frame holds numbers of rows.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        names, columns = list(given), list(given.values())
    elif (frame := frame_parts(given)) is not None:
        names, columns = frame
        for name, column in zip(names, columns, strict=True):
            if is_row_numbers(name, column, name == names[0]):
                raise SettingError(
                    f"{what}: column {name!r} of the frame holds numbers of rows",
                    fix=f"frame.drop(columns=[{name!r}]); or {what}={{{name!r}: frame[{name!r}]}} if it is one",
                )
    elif isinstance(getattr(given, "name", None), str) and not isinstance(given, os.PathLike):
        names, columns = [given.name], [given]
    else:
        path = isinstance(given, str | os.PathLike)
        raise SettingError(
            f"{what} is {type(given).__name__}, expected columns by name",
            fix=FROM_FILE if path else f'{what}={{"fitness": values}}, or a DataFrame',
        )
    seen: set[str] = set()
    for name in names:
        if not _is_text(name) or not name.strip():
            raise SettingError(f"{what}: {name!r} is the name of a column, expected text")
        if name.strip() in seen:
            raise SettingError(f"{what}: {name!r} is the name of two columns", fix="rename one of them")
        seen.add(name.strip())
    return {str(name): column for name, column in zip(names, columns, strict=True)}


def _is_text(name: Any) -> bool:
    """Whether it is text that a file can hold: not half of a character."""
    return isinstance(name, str) and name == name.encode(errors="ignore").decode()


FROM_FILE = "PerturbationTable.from_csv(path, base_graph) reads CSV, TSV and Parquet"


def is_row_numbers(name: Any, values: Any, first: bool) -> bool:
    """Whether a column is an index that became a column: by its name, and because it numbers the rows.

    Args:
        name: Name of the column.
        values: Its values.
        first: Whether it is the first column, where R and pandas put it.
    """
    if not isinstance(name, str) or not _ROW_NUMBERS.fullmatch(name):
        return False
    if name.startswith("Unnamed"):
        return True
    if not first and not name.startswith(("index", "level")):
        return False
    numbers = column_list(values, name)
    whole = all(isinstance(n, int | float) and not isinstance(n, bool) and n == n // 1 for n in numbers)
    return whole and len(set(numbers)) == len(numbers)


def texts(given: Any, count: int, what: str) -> list[str] | None:
    """A text per sample, no two of them equal but for blanks around them.

    Raises:
        SourceContractError: If one is no text, empty, or stands there twice; names the rows.
        SettingError: If there are more or fewer.
    """
    if given is None:
        return None
    found = column_list(given, what)
    if len(found) != count:
        raise SettingError(f"{len(found)} {what} for {count} samples")
    seen: dict[str, int] = {}
    for row, name in enumerate(found):
        if not _is_text(name):
            said, fix = f"source id {name!r:.80} is not text", f"{what}=[str(name) for name in ...]"
        elif not name.strip():
            said, fix = "the source id is empty", f"give each sample a name, or leave {what} out"
        elif (first := seen.setdefault(name.strip(), row)) != row:
            raise SourceContractError(f"duplicate id {name!r:.80} at rows {first} and {row}")
        else:
            continue
        raise SourceContractError(f"row {row}: {said}", fix=fix)
    return [str(name) for name in found]


_ROWS = "a tuple of columns is columns, a list is rows"


def columns_of(table: Any, width: int, what: str, expected: str) -> list[list[Any]]:
    """``width`` columns of equal length.

    A tuple of ``width`` sequences is columns, any other sequence is rows. An array that is square could be either.

    Raises:
        SettingError: If it is no table; says what was expected.
        SourceContractError: If columns or rows have other lengths than they should.
    """
    shape = tuple(getattr(table, "shape", ()))
    if (frame := frame_parts(table)) is not None:
        columns = [column_list(column, what) for column in frame[1]]
        if len(columns) == width:
            return columns
        said = f"{what} has {len(columns)} columns, expected {width}: {expected}"
        raise SourceContractError(said, fix="frame[[...]]")
    if shape and hasattr(table, "tolist"):
        if len(shape) != 2 or width not in shape or shape[0] == shape[1]:
            raise SettingError(
                f"{what} is an array of shape {shape}, which could be rows or columns, or neither; expected {expected}",
                fix="pass a tuple of columns, or a list of rows",
            )
        return [list(column) for column in (table if shape[0] == width else table.T).tolist()]
    if not isinstance(table, tuple | list):
        said = f"{what} is {type(table).__name__}, expected {expected}"
        raise SettingError(said, fix="pass a list of rows: [(...), (...)]")
    parts = [_items(part, what, expected) for part in table]
    if isinstance(table, tuple) and len(table) == width:
        if len({*map(len, parts)}) > 1:
            counts = " and ".join(str(len(column)) for column in parts)
            said = f"{what} has columns of {counts} entries, expected as many in each"
            raise SourceContractError(said, fix=_ROWS)
        return parts
    if (k := next((k for k, row in enumerate(parts) if len(row) != width), None)) is not None:
        said = f"{what}: entry {k} has {len(parts[k])} items, expected {width}: {expected}"
        raise SourceContractError(said, fix=_ROWS)
    return [list(column) for column in zip(*parts, strict=True)] or [[] for _ in range(width)]


def _items(part: Any, what: str, expected: str) -> list[Any]:
    if hasattr(part, "tolist") and getattr(part, "shape", None):
        return list(part.tolist())
    if isinstance(part, str | bytes) or not isinstance(part, Sequence):
        raise SettingError(f"{what} holds {part!r:.80}, expected {expected}", fix=_ROWS)
    return list(part)


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
