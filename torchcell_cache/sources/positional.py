"""Columns and frames as callers have them, by position: the index of a pandas object carries no meaning, as in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from torchcell_cache.errors import SettingError, SourceContractError

_TEXTS = (str, bytes, bytearray, memoryview)


def column_list(column: Any, what: str) -> list[Any]:
    """The values of a column in their order: of a sequence, an array, a tensor, or a column of pandas, polars or Arrow.

    Raises:
        SourceContractError: If it has no order, or no values at all.
    """
    if isinstance(column, (_TEXTS, Mapping | Set)) or column is None:
        raise SourceContractError(f"{what} is {type(column).__name__}, expected one value per row, in order")
    if is_frame(column):
        inner = frame_columns(column)
        if len(inner) != 1:
            raise SourceContractError(
                f"{what} is a frame of {len(inner)} columns, expected one value per row"
            )
        return column_list(inner[0], what)
    column = on_host(column)
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
            f"{what} is {_shown(column)}, expected one value per row, in order"
        ) from None


def on_host(value: Any) -> Any:
    """A tensor as a dense one on the CPU, a nested one as a list of them; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    if getattr(value, "is_nested", False):
        return list(value.unbind())
    return value.to_dense() if str(value.layout) != "torch.strided" else value


def is_frame(value: Any) -> bool:
    """Whether it is a table of pandas, polars or Arrow."""
    return any(hasattr(value, name) for name in ("iloc", "get_columns", "itercolumns")) and hasattr(
        value, "columns"
    )


def frame_columns(frame: Any) -> list[Any]:
    """Columns of a frame, also of one in which a name stands twice."""
    for method in ("get_columns", "itercolumns"):  # polars, Arrow
        if hasattr(frame, method):
            return list(getattr(frame, method)())
    return [frame.iloc[:, k] for k in range(frame.shape[1])]


def frame_names(frame: Any) -> list[Any]:
    """Names of a frame's columns."""
    return list(frame.column_names if hasattr(frame, "column_names") else frame.columns)


def named_columns(given: Any, what: str) -> dict[str, Any]:
    """Columns by name.

    Args:
        given: A mapping, a frame, or one column that has a name; ``None`` for none.
        what: The argument's name.

    Raises:
        SettingError: If it is none of these, or a name is no text or stands there twice.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        names, columns = list(given), list(given.values())
    elif is_frame(given):
        names, columns = frame_names(given), frame_columns(given)
    elif isinstance(getattr(given, "name", None), str):
        names, columns = [given.name], [given]
    else:
        raise SettingError(
            f"{what} is {type(given).__name__}, expected columns by name",
            fix=f'{what}={{"fitness": values}}, or a DataFrame',
        )
    for k, name in enumerate(names):
        if not isinstance(name, str):
            raise SettingError(f"{what}: {name!r} is the name of a column, expected text")
        if name in names[:k]:
            raise SettingError(f"{what}: {name!r} is the name of two columns", fix="rename one of them")
    return dict(zip(names, columns, strict=True))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else type(value).__name__


def texts(given: Any, count: int, what: str) -> list[str] | None:
    """A text per sample, no two of them equal.

    Raises:
        SourceContractError: If one is no text, or stands there twice; names the rows.
        SettingError: If there are more or fewer.
    """
    if given is None:
        return None
    found = column_list(given, what)
    if len(found) != count:
        raise SettingError(f"{len(found)} {what} for {count} samples")
    seen: dict[str, int] = {}
    for row, name in enumerate(found):
        if not isinstance(name, str):
            raise SourceContractError(
                f"row {row}: source id {name!r} is not text", fix=f"{what}=[str(name) for name in ...]"
            )
        first = seen.setdefault(name, row)
        if first != row:
            raise SourceContractError(f"duplicate id {name!r} at rows {first} and {row}")
    return [str(name) for name in found]
