"""Perturbed nodes as callers give them: names, ids, grids, frames, tensors; every value is what it says or refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.name_lists import NameLists
from torchcell_cache.sources.names import NodeNames, Resolved, resolve
from torchcell_cache.sources.positional import column_list, frame_columns, frame_names, is_frame, on_host
from torchcell_cache.sources.table_entries import FIX, NoEntry, entries_of, entry_of, is_missing

_WHOLE = "iu"


@dataclass(frozen=True, slots=True, eq=False)
class RaggedIds:
    """Ids of nodes, sample after sample, and their offsets, ``[sum of counts]`` and ``[num_samples + 1] int64``."""

    ids: Int64Array
    ptr: Int64Array

    def __len__(self) -> int:
        return len(self.ptr) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Perturbed nodes by id, and by an id behind those of all nodes each name that no node has and that is kept.

    Attributes:
        given: Ids, sample after sample.
        names: What the ids stand for; empty where nodes have no names.
        first: The first id that is no node's.
    """

    given: RaggedIds
    names: Sequence[str]
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The nodes that can be perturbed.

    Attributes:
        names: Their names, if they have any.
        count: How many there are.
        aliases: Other names, as for :class:`NodeNames`.
        pattern: Regular expression with one group that takes the name out of what a table has (``YAL001C_sn12``).
    """

    names: list[str] | None
    count: int
    aliases: Any = None
    pattern: str | None = None

    def found(self, perturbations: Any, unknown: str) -> tuple[Found, Resolved | None, int]:
        """The perturbed nodes, how their names met those of the nodes, and the number of rows given.

        Raises:
            SourceContractError: Naming the row and the value that is neither a name nor an id of a node.
        """
        if is_frame(perturbations):
            self._refuse_indicators(frame_names(perturbations))
        given = rows_of(perturbations)
        if isinstance(given, RaggedIds):
            return Found(self._checked(given), self.names or (), self.count), None, len(given)
        if isinstance(given, list):  # names and ids in one table
            given = self._by_name(given)
        lists, nodes = self._extracted(given), NodeNames(self.names, self.aliases)
        resolved = resolve(lists, nodes, "error" if self.names is None and unknown == "keep" else unknown)
        names, both = nodes.names, resolved
        if unknown == "keep" and resolved.report.unmatched:
            names = [*names, *sorted({name.strip() for name in lists.distinct if name not in nodes})]
            both = resolve(lists, NodeNames(names, self.aliases))
        return Found(RaggedIds(both.ids, both.ptr), names, len(nodes)), resolved, len(given)

    def _refuse_indicators(self, columns: list[Any]) -> None:
        """Refuse a frame with a column of zeros and ones per node: its cells would be read as ids."""
        if columns and self.names is not None and set(map(str, columns)) <= set(map(str, self.names)):
            raise SourceContractError(
                f"perturbations is a frame whose columns are nodes ({', '.join(map(str, columns[:3]))}), expected columns "
                "that hold names or ids of nodes",
                fix="[frame.columns[row] for row in frame.to_numpy(dtype=bool)] makes lists of 0 and 1",
            )

    def _checked(self, given: RaggedIds) -> RaggedIds:
        outside = (given.ids < 0) | (given.ids >= self.count)
        if outside.any():
            at = int(np.argmax(outside))
            raise SourceContractError(
                f"row {_row_of(given.ptr, at)}: id {given.ids[at]} is outside 0..{self.count - 1}"
            )
        return given

    def _by_name(self, rows: list[list[str | int]]) -> NameLists:
        ids = [[entry for entry in row if not isinstance(entry, str)] for row in rows]
        flat = np.array([entry for row in ids for entry in row], dtype=np.int64)
        self._checked(RaggedIds(flat, offsets(np.array([len(row) for row in ids], dtype=np.int64))))
        names = self.names
        if names is None:
            row, name = next((r, e) for r, row in enumerate(rows) for e in row if isinstance(e, str))
            raise NodeNames(None).unknown(name, f"row {row}")
        return NameLists.of([[e if isinstance(e, str) else names[e] for e in row] for row in rows])

    def _extracted(self, lists: NameLists) -> NameLists:
        if self.pattern is None:
            return lists
        expression = _compiled(self.pattern)
        found = [
            match[1] if (match := expression.search(name)) and match[1] else name for name in lists.distinct
        ]
        known = {name: k for k, name in enumerate(dict.fromkeys(found))}
        new = np.array([known[name] for name in found], dtype=np.int64)
        return NameLists(list(known), new[lists.codes] if len(new) else lists.codes, lists.ptr)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise SettingError(f"name={pattern!r} is no regular expression: {error}") from None
    if expression.groups != 1:
        raise SettingError(
            f"name={pattern!r} has {expression.groups} groups, expected one: the name of the node",
            fix=r'name=r"^([^_]+)_" takes YAL001C out of YAL001C_sn12',
        )
    return expression


def rows_of(perturbations: Any) -> NameLists | RaggedIds | list[list[str | int]]:
    """What a caller gives as perturbed nodes, as lists of names, or ids, or (where rows mix both) lists of either.

    Raises:
        SourceContractError: Naming the row and the value that can be neither.
    """
    if isinstance(perturbations, NameLists):
        return perturbations
    if (
        isinstance(perturbations, tuple)
        and len(perturbations) == 2
        and hasattr(perturbations[1], "__array__")
    ):
        return ragged_ids(*perturbations)
    if is_frame(perturbations):
        return _side_by_side(frame_columns(perturbations))
    perturbations = on_host(perturbations)
    if hasattr(perturbations, "detach") or isinstance(perturbations, np.ndarray):
        array = perturbations.numpy() if hasattr(perturbations, "detach") else perturbations
        if array.ndim == 2 and array.dtype.kind in "OUT":
            return _side_by_side(list(array.T))
        if array.dtype.kind != "O" or array.ndim != 1:
            return _grid(array)
    rows = column_list(perturbations, "perturbations")
    if not set(map(type, rows)) <= {list, tuple}:
        rows = [entries_of(row, k) for k, row in enumerate(rows)]
    flat = list(chain.from_iterable(rows))
    return _from_flat(flat, offsets(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))))


def _from_flat(flat: list[Any], ptr: Int64Array) -> NameLists | RaggedIds | list[list[str | int]]:
    kinds = set(map(type, flat))
    if not kinds <= {str} and not kinds <= {int}:
        for at, entry in enumerate(flat):
            try:
                flat[at] = entry_of(entry)
            except NoEntry as error:
                raise SourceContractError(f"row {_row_of(ptr, at)}: {error}", fix=FIX) from None
        kinds = set(map(type, flat))
    if kinds == {str}:
        position: dict[str, int] = {}
        codes = [position.setdefault(name, len(position)) for name in flat]
        known: dict[str, int] = {}
        clean = np.array([known.setdefault(name.strip(), len(known)) for name in position], dtype=np.int64)
        return NameLists(list(known), clean[np.array(codes, dtype=np.int64)], ptr)
    if str in kinds:
        at = ptr.tolist()
        return [flat[a:b] for a, b in pairwise(at)]
    try:
        return RaggedIds(np.array(flat, dtype=np.int64), ptr)
    except OverflowError:
        at = next(k for k, entry in enumerate(flat) if not -(2**63) <= entry < 2**63)
        raise SourceContractError(f"row {_row_of(ptr, at)}: {flat[at]} is no id of a node", fix=FIX) from None


def ragged_ids(ids: Any, ptr: Any) -> RaggedIds:
    """Ids and offsets that a caller gives, whole numbers and of one length.

    Raises:
        SourceContractError: Naming the row and the value that is no whole number, or offsets that do not rise.
    """
    ends = _whole(ptr, "the offsets", None)
    found = RaggedIds(_whole(ids, "ids", ends), ends)
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
        wrong = wrong | ~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) >= 2.0**63)
    elif array.dtype.kind == "u":
        wrong = wrong | (values > np.iinfo(np.int64).max)
    if wrong.any():
        at = int(np.argmax(wrong))
        where = f"position {at}" if ptr is None or not len(ptr) else f"row {_row_of(ptr, at)}"
        raise SourceContractError(f"{what}, {where}: {array[at]} is no whole number of a node", fix=FIX)
    return values.astype(np.int64)


def _grid(array: npt.NDArray[Any]) -> RaggedIds:
    if array.ndim != 2 or array.dtype.kind not in _WHOLE:
        mask = array.ndim == 2 and array.dtype.kind == "b"
        raise SourceContractError(
            f"perturbations as an array must be [num_samples, k] integers, got {array.shape} {array.dtype}",
            fix="[numpy.flatnonzero(row) for row in mask]" if mask else FIX,
        )
    ids = np.ma.filled(array, -1) if np.ma.isMaskedArray(array) else array
    wrong = (ids < -1) if array.dtype.kind == "i" else (ids > np.iinfo(np.int64).max)
    if wrong.any():
        row, column = (int(at[0]) for at in np.nonzero(wrong))
        raise SourceContractError(
            f"row {row}: {ids[row, column]} is no id of a node", fix="-1 fills up shorter rows"
        )
    ids = ids.astype(np.int64)
    used = ids >= 0
    return RaggedIds(ids[used], offsets(used.sum(axis=1)))


def _side_by_side(columns: list[Any]) -> NameLists | RaggedIds | list[list[str | int]]:
    """Columns with one perturbed node each (query and array): a cell without a value perturbs nothing."""
    lists = [column_list(column, f"column {k} of perturbations") for k, column in enumerate(columns)]
    rows = [[cell for cell in row if not is_missing(cell)] for row in zip(*lists, strict=True)]
    flat = list(chain.from_iterable(rows))
    return _from_flat(flat, offsets(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))))


def _row_of(ptr: Int64Array, at: int) -> int:
    return int(np.searchsorted(ptr, at, side="right")) - 1
