"""Perturbed nodes as callers give them: names, ids, grids, frames, tensors; every value is what it says or refused."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.columns import (
    FROM_FILE,
    column_list,
    frame_parts,
    is_missing,
    on_host,
    plain,
    row_of,
)
from torchcell_cache.sources.name_lists import NameLists

FIX = "give each sample a list of names of nodes, or of their positions as whole numbers"
_TEXTS = (str, bytes, bytearray, memoryview)


@dataclass(frozen=True, slots=True, eq=False)
class RaggedIds:
    """Ids of nodes, sample after sample, and their offsets, ``[sum of counts]`` and ``[num_samples + 1] int64``.

    Attributes:
        ids: The ids.
        ptr: The offsets.
        positions: Whether the caller said that they are positions, by giving them as ``(ids, ptr)``.
    """

    ids: Int64Array
    ptr: Int64Array
    positions: bool = False

    def __len__(self) -> int:
        return len(self.ptr) - 1


def rows_of(perturbations: Any) -> NameLists | RaggedIds | list[list[str | int]]:
    """What a caller gives as perturbed nodes, as lists of names, or ids, or (where rows mix both) lists of either.

    Raises:
        SourceContractError: Naming the row and the value that can be neither.
    """
    if isinstance(perturbations, NameLists):
        return perturbations
    if isinstance(perturbations, str | os.PathLike):
        raise SourceContractError(
            f"perturbations is {perturbations!r:.80}, expected rows of names or ids", fix=FROM_FILE
        )
    pair = isinstance(perturbations, tuple) and len(perturbations) == 2
    if pair and any(hasattr(part, "__array__") for part in perturbations):
        return ragged_ids(*perturbations)
    if (frame := frame_parts(perturbations)) is not None:
        return _side_by_side(frame[1])
    perturbations = on_host(perturbations)
    if hasattr(perturbations, "detach") or isinstance(perturbations, np.ndarray):
        array = perturbations.numpy() if hasattr(perturbations, "detach") else perturbations
        if array.ndim == 2 and array.dtype.kind in "OUT":
            return _side_by_side(list(array.T))
        if array.dtype.kind != "O" or array.ndim != 1:
            return _grid(array)
    rows = column_list(perturbations, "perturbations")
    if not set(map(type, rows)) <= {list, tuple}:
        rows = [_entries(row, k) for k, row in enumerate(rows)]
    return _flat(rows)


def _flat(rows: Sequence[Sequence[Any]]) -> NameLists | RaggedIds | list[list[str | int]]:
    flat = list(chain.from_iterable(rows))
    ptr = offsets(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))
    kinds = set(map(type, flat))
    if kinds == {int}:
        with contextlib.suppress(OverflowError):  # of an id that is named below
            return RaggedIds(np.array(flat, dtype=np.int64), ptr)
    if kinds != {str}:
        flat = [_entry(entry, ptr, at) for at, entry in enumerate(flat)]
        kinds = set(map(type, flat))
    if kinds == {str}:
        return NameLists.flat(flat, ptr)
    if str in kinds:
        return [flat[a:b] for a, b in pairwise(ptr.tolist())]
    return RaggedIds(np.array(flat, dtype=np.int64), ptr)


def _entries(row: Any, number: int) -> list[Any]:
    """The entries of one row."""
    if isinstance(row, set | frozenset):
        return list(row)
    records = getattr(getattr(row, "dtype", None), "kind", "") == "V"
    if isinstance(row, _TEXTS):
        what = (
            f"one {'text' if isinstance(row, str) else type(row).__name__}, expected a list of names or ids"
        )
    elif records or isinstance(row, Mapping) or not hasattr(row, "__iter__") or getattr(row, "ndim", 1) != 1:
        what = "no list of names or ids"
    else:
        return column_list(row, f"row {number}")
    raise SourceContractError(f"row {number}: {row!r:.80} is {what}", fix=FIX)


def _entry(entry: Any, ptr: Int64Array, at: int) -> str | int:
    """One entry as a name or an id."""
    value = plain(entry)
    if isinstance(value, str):
        return str(value)
    why = next(
        (why for kind, why in _NO_ENTRY.items() if isinstance(value, kind)), "is neither a name nor an id"
    )
    if is_missing(value):
        why = "is a missing value, not a name or an id"
    elif not isinstance(value, bool):
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        with contextlib.suppress(TypeError):
            if -(2**63) <= (node := operator.index(whole)) < 2**63:
                return node
            why = "is no id of a node"
    raise SourceContractError(f"row {row_of(ptr, at)}: {entry!r:.80} {why}", fix=FIX)


_NO_ENTRY = {
    bool: "is a truth value, not an id; the ids of a mask are numpy.flatnonzero(mask)",
    bytes: "is bytes, not a name; bytes.decode() gives text",
    float: "is no whole number, so no id",
    np.datetime64: "is a date, not a name or an id",
    np.timedelta64: "is a duration, not a name or an id",
}


def ragged_ids(ids: Any, ptr: Any) -> RaggedIds:
    """Ids and offsets that a caller gives, whole numbers and of one length.

    Raises:
        SourceContractError: Naming the row and the value that is no whole number, or offsets that do not rise.
    """
    ends = _whole(ptr, "the offsets", None)
    found = RaggedIds(_whole(ids, "ids", ends), ends, positions=True)
    if not len(ends) or ends[0] != 0 or ends[-1] != len(found.ids) or bool((np.diff(ends) < 0).any()):
        raise SourceContractError(
            f"the offsets of (ids, ptr) must rise from 0 to {len(found.ids)}, got {ends[:3]}..{ends[-1:]}"
        )
    return found


def _whole(given: Any, what: str, ptr: Int64Array | None) -> Int64Array:
    """Whole numbers, ``[n] int64``; floats may pass if they are whole, as those of a column with gaps are."""
    array = np.ma.asarray(on_host(given))
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise SourceContractError(
            f"{what} of (ids, ptr) must be whole numbers, [n], got {array.dtype} {list(array.shape)}"
        )
    values = np.ma.getdata(array)
    wrong = np.ma.getmaskarray(array)
    if array.dtype.kind == "f":
        wrong = wrong | ~(np.abs(values) < 2.0**63) | (values != np.floor(values))
    elif array.dtype.kind == "u":
        wrong = wrong | (values > np.iinfo(np.int64).max)
    if wrong.any():
        at = int(np.argmax(wrong))
        where = f"position {at}" if ptr is None or not len(ptr) else f"row {row_of(ptr, at)}"
        raise SourceContractError(f"{what}, {where}: {array[at]} is no whole number of a node", fix=FIX)
    return values.astype(np.int64)


def _grid(array: npt.NDArray[Any]) -> RaggedIds:
    """Rows of ids that are filled up with -1, or masked."""
    if array.ndim != 2 or array.dtype.kind not in "iu":
        mask = array.ndim == 2 and array.dtype.kind == "b"
        raise SourceContractError(
            f"perturbations as an array must be [num_samples, k] integers, got {array.shape} {array.dtype}",
            fix="[numpy.flatnonzero(row) for row in mask]" if mask else FIX,
        )
    values = np.ma.getdata(array)
    used = ~np.ma.getmaskarray(array) & (values != -1)
    if (wrong := used & ((values < 0) | (values > np.iinfo(np.int64).max))).any():
        row, column = np.argwhere(wrong)[0]
        said = f"row {row}: {values[row, column]} is no id of a node"
        raise SourceContractError(said, fix="-1 fills up shorter rows")
    return RaggedIds(values[used].astype(np.int64), offsets(used.sum(axis=1)))


def _side_by_side(columns: list[Any]) -> NameLists | RaggedIds | list[list[str | int]]:
    """Columns with one perturbed node each (query and array): a cell without a value perturbs nothing."""
    lists = [column_list(column, f"column {k} of perturbations") for k, column in enumerate(columns)]
    rows = zip(*lists, strict=True)
    return _flat([[cell for cell in row if not (is_missing(cell) or not str(cell).strip())] for row in rows])
