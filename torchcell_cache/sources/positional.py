"""Columns and frames as callers have them, by position: the index of a pandas object carries no meaning, as in numpy."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from torchcell_cache.errors import SettingError, SourceContractError

_TEXTS = (str, bytes, bytearray, memoryview)
_ROW_NUMBERS = re.compile(r"Unnamed: \d+(?:\.\d+|_level_\d+)?|index|level_\d+|row\.?_?names?|\.\.\.1|X")
"""What pandas and R call the numbers of rows that were written without a name."""


def column_list(column: Any, what: str) -> list[Any]:
    """The values of a column in their order: of a sequence, an array, a tensor, or a column of pandas, polars or Arrow.

    Raises:
        SourceContractError: If it has no order, or no values at all.
    """
    if isinstance(column, (_TEXTS, Mapping | Set)) or column is None:
        raise SourceContractError(
            f"{what} is {type(column).__name__}, expected one value per row, in order", fix="pass a list"
        )
    if is_frame(column):
        inner = frame_columns(column)
        if len(inner) != 1:
            raise SourceContractError(
                f"{what} is a frame of {len(inner)} columns, expected one value per row"
            )
        return column_list(inner[0], what)
    if getattr(column, "nlevels", 1) > 1:  # tuples, which would be repeated measurements
        raise SourceContractError(f"{what} is an index of several levels, expected one value per row")
    column = on_host(column)
    if getattr(column, "ndim", 1) == 0:
        raise SourceContractError(f"{what} is {repr(column)[:60]}, expected one value per row, in order")
    if getattr(getattr(column, "dtype", None), "kind", "") in ("M", "m"):
        return list(column)  # tolist would make numbers of dates
    for method in ("to_pylist", "tolist", "to_list"):
        if hasattr(column, method):
            column = getattr(column, method)()
            break
    try:
        return list(column)
    except TypeError:
        raise SourceContractError(
            f"{what} is {repr(column)[:60]}, expected one value per row, in order"
        ) from None


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
        value = value if kind in ("M", "m") else value.item()
    return None if type(value).__name__ == "NAType" else value


def is_frame(value: Any) -> bool:
    """Whether it is a table of pandas, polars or Arrow, or an array of records."""
    if getattr(getattr(value, "dtype", None), "names", None):
        return getattr(value, "ndim", 0) == 1
    return any(hasattr(value, name) for name in ("iloc", "get_columns", "itercolumns")) and hasattr(
        value, "columns"
    )


def frame_columns(frame: Any) -> list[Any]:
    """Columns of a frame, also of one in which a name stands twice."""
    if not hasattr(frame, "columns"):
        return [frame[name] for name in frame.dtype.names]
    for method in ("get_columns", "itercolumns"):  # polars, Arrow
        if hasattr(frame, method):
            return list(getattr(frame, method)())
    return [frame.iloc[:, k] for k in range(frame.shape[1])]


def frame_names(frame: Any) -> list[Any]:
    """Names of a frame's columns."""
    if not hasattr(frame, "columns"):
        return list(frame.dtype.names)
    return list(frame.column_names if hasattr(frame, "column_names") else frame.columns)


def named_columns(given: Any, what: str) -> dict[str, Any]:
    """Columns by name: of a mapping, a frame, or one column that has a name; ``None`` for none.

    Raises:
        SettingError: If it is none of these, a name is no text or stands there twice, or a frame holds numbers of rows.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        names, columns = list(given), list(given.values())
    elif is_frame(given):
        names, columns = frame_names(given), frame_columns(given)
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
    numbers = [plain(value) for value in column_list(values, name)]
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
            raise SourceContractError(
                f"row {row}: source id {name!r:.80} is not text", fix=f"{what}=[str(name) for name in ...]"
            )
        if not name.strip():
            raise SourceContractError(
                f"row {row}: the source id is empty", fix=f"give each sample a name, or leave {what} out"
            )
        first = seen.setdefault(name.strip(), row)
        if first != row:
            raise SourceContractError(f"duplicate id {name!r:.80} at rows {first} and {row}")
    return [str(name) for name in found]
