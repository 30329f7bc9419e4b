"""One row and one cell of a table of perturbed nodes: a name, an id, or a reason why it is neither."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.positional import column_list

_TEXTS = (str, bytes, bytearray, memoryview)
FIX = "give each sample a list of names of nodes, or of their positions as whole numbers"


class NoEntry(ValueError):  # noqa: N818 - a signal between two functions, shown as SourceContractError
    """What is wrong with an entry."""


def entries_of(row: Any, number: int) -> list[Any]:
    """The entries of one row."""
    if isinstance(row, _TEXTS):
        what = "text" if isinstance(row, str) else type(row).__name__
        raise SourceContractError(
            f"row {number}: {row!r:.80} is one {what}, expected a list of names or ids", fix=FIX
        )
    if isinstance(row, set | frozenset):
        return list(row)
    if getattr(getattr(row, "dtype", None), "kind", "") == "V":
        raise SourceContractError(f"row {number}: {row!r:.80} holds records, expected names or ids", fix=FIX)
    if isinstance(row, Mapping) or not hasattr(row, "__iter__") or getattr(row, "ndim", 1) != 1:
        raise SourceContractError(f"row {number}: {row!r:.80} is no list of names or ids", fix=FIX)
    return column_list(row, f"row {number}")


def entry_of(entry: Any) -> str | int:
    """One entry as a name or an id.

    Raises:
        NoEntry: If it is neither; says what it is.
    """
    if isinstance(entry, str):
        return str(entry)
    if getattr(entry, "ndim", None) == 0 and hasattr(entry, "item"):
        if getattr(getattr(entry, "dtype", None), "kind", "") in ("M", "m"):
            raise NoEntry(f"{entry!r} is a date, not a name or an id")
        entry = entry.item()  # a scalar of numpy or torch
        if isinstance(entry, str):
            return entry
    if isinstance(entry, bool):
        raise NoEntry(f"{entry!r} is a truth value, not an id; the ids of a mask are numpy.flatnonzero(mask)")
    if entry is None or (isinstance(entry, float) and math.isnan(entry)) or type(entry).__name__ == "NAType":
        raise NoEntry(f"{entry!r} is a missing value, not a name or an id")
    if isinstance(entry, float):
        if not entry.is_integer():
            raise NoEntry(f"{entry!r} is a number with a fraction, not an id")
        entry = int(entry)
    if isinstance(entry, bytes):
        raise NoEntry(f"{entry!r:.80} is bytes, not a name; bytes.decode() gives text")
    try:
        node = operator.index(entry)
    except TypeError:
        raise NoEntry(f"{entry!r:.80} is neither a name nor an id") from None
    if not -(2**63) <= node < 2**63:
        raise NoEntry(f"{entry} is no id of a node")
    return node


def is_missing(cell: Any) -> bool:
    """Whether a cell of a column of perturbed nodes has no value."""
    return (
        cell is None
        or (isinstance(cell, float) and math.isnan(cell))
        or (isinstance(cell, str) and not cell.strip())
        or type(cell).__name__ in ("NAType", "NaTType")
    )
