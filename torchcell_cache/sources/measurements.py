"""Labels and statistics as callers give them, as measurements that float32 can hold; anything else is refused by row."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.choices import Nan
from torchcell_cache.core.ragged import Int64Array, offsets, segments
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.positional import column_list, on_host, plain

Float64Array = npt.NDArray[np.float64]
NAN = get_args(Nan)
"""What to do with a value that is NaN or infinite: refuse; keep it; leave the sample out."""

_EXACT = 2.0**24
_SMALLEST = 2.0**-150
_INTEGERS = 2.0**53
_WHY = {"M": "a date", "m": "a duration", "c": "a complex number", "U": "text", "S": "bytes", "T": "text"}


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """Measurements of all samples before they become float32.

    Attributes:
        names: Names of the columns.
        values: ``[num_measurements, num_columns] float64``, NaN where there is no value.
        ptr: Offsets of the samples, ``[num_samples + 1] int64``.
        short: Where a column has fewer measurements than another one of the sample, ``[num_measurements, num_columns]
            bool``, if any does.
    """

    names: tuple[str, ...]
    values: Float64Array
    ptr: Int64Array
    short: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, columns: dict[str, Any], num_samples: int) -> Measurements:
        """From one column per name: a number per sample, or a list of numbers per sample.

        Raises:
            SettingError: If a column has another length.
            SourceContractError: Naming the row and the value that is no number, or that float32 cannot hold.
        """
        read = {name: _column(name, column) for name, column in columns.items()}
        for name, (values, ptr) in read.items():
            count = len(values) if ptr is None else len(ptr) - 1
            if count != num_samples:
                raise SettingError(f"column '{name}' has {count} values for {num_samples} samples")
        one_each = np.arange(num_samples + 1, dtype=np.int64)
        lists = [(values, one_each if ptr is None else ptr) for values, ptr in read.values()]
        whole = offsets(np.max([np.diff(ptr) for _, ptr in lists] or [np.diff(one_each)], axis=0, initial=0))
        table = np.full((int(whole[-1]), len(lists)), np.nan)
        short = np.ones(table.shape, dtype=np.bool_)
        for k, (values, ptr) in enumerate(lists):
            at = np.arange(len(values)) + np.repeat(whole[:-1] - ptr[:-1], np.diff(ptr))
            table[at, k], short[at, k] = values, False
        short[whole[:-1][np.diff(whole) > 0]] = False  # a column without any measurement has no value
        return cls(tuple(read), table, whole, short)

    def take(self, rows: Int64Array) -> Measurements:
        """Those of some of the samples."""
        values, ptr = segments(self.values, self.ptr, rows)
        return Measurements(self.names, values, ptr)

    @property
    def _odd(self) -> npt.NDArray[np.bool_]:
        odd = ~np.isfinite(self.values)
        return odd if self.short is None else odd & ~self.short

    def odd_rows(self) -> npt.NDArray[np.bool_]:
        """Samples in which some value is NaN or infinite, or a column has none, ``[num_samples] bool``."""
        total = np.concatenate([[0], np.cumsum(self._odd.any(axis=1))])
        none = np.diff(self.ptr) == 0 if self.names else False
        return np.asarray((total[self.ptr[1:]] > total[self.ptr[:-1]]) | none)

    def refuse_odd(self, rows: Int64Array) -> None:
        """Refuse the first value of the given samples that is NaN or infinite.

        Raises:
            SourceContractError: Naming its row and column.
        """
        odd = self.odd_rows()[rows]
        if not odd.any():
            return
        row = int(rows[int(np.argmax(odd))])
        part = slice(self.ptr[row], self.ptr[row + 1])
        if part.start == part.stop:
            raise SourceContractError(f"row {row} has no measurement", fix='nan="keep" or nan="skip"')
        at, k = (int(v[0]) for v in np.nonzero(self._odd[part]))
        value = self.values[part][at, k]
        fix = 'nan="keep" (no value)' if np.isnan(value) else 'nan="keep" (as it is)'
        raise SourceContractError(
            f"row {row}: '{self.names[k]}' is {'NaN' if np.isnan(value) else value}",
            fix=f'pass nan="skip" to leave such rows out, or {fix}',
        )

    def note_on_values(self) -> tuple[str, ...]:
        """Lines on values that are infinite, or too small for float32."""
        lines = []
        for what, odd in (
            ("infinite", np.isinf(self.values)),
            ("too small for float32 and count as 0", (self.values != 0) & (np.abs(self.values) <= _SMALLEST)),
        ):
            for name, count in zip(self.names, odd.sum(axis=0).tolist(), strict=True):
                if count:
                    lines.append(f"'{name}': {count:,} values are {what}")
        return tuple(lines)


def float32_problem(value: Any) -> str:
    """Why float32 cannot hold a number, or nothing: it is finite and too large, or a whole number that would change."""
    try:
        found = float(value)
    except OverflowError:
        found = float("inf")
    except ValueError:  # a signalling NaN of decimal
        return f"is {value}, no number"
    with np.errstate(over="ignore"):
        single = float(np.float32(found))
    if math.isinf(single) and value not in (math.inf, -math.inf):
        return f"is {str(value)[:80]}, beyond what float32 holds (3.4e38)"
    if isinstance(value, numbers.Integral) and single != int(value):
        return f"is {value}, a whole number that float32 would round to {int(single)}"
    return ""


def _column(name: str, column: Any) -> tuple[Float64Array, Int64Array | None]:
    """Values of a column and, if its rows are lists, their offsets."""
    array, ptr = _array(column), None
    if array is None or not array.ndim:
        array, ptr = _of_list(name, column_list(column, f"column '{name}'"))
    elif array.ndim == 2:
        ptr = np.arange(len(array) + 1, dtype=np.int64) * array.shape[1]
        array = array.reshape(-1)
    elif array.ndim > 2:
        raise SourceContractError(
            f"'{name}' has {array.ndim} dimensions, expected a number or a list of numbers per row"
        )
    return _checked(name, array, ptr), ptr


def _array(column: Any) -> npt.NDArray[Any] | None:
    """A column that holds numbers of one kind as an array; ``None`` where values must be looked at one by one."""
    column = on_host(column)
    if hasattr(column, "detach"):
        column = (column.double() if column.is_floating_point() else column).numpy()
    dtype = getattr(column, "dtype", None)
    if isinstance(column, np.ma.MaskedArray):
        return np.asarray(column.filled(np.nan)) if column.dtype.kind == "f" else None
    if isinstance(column, list | tuple):
        kinds = set(map(type, column))
        if kinds in ({float}, {bool}, {int}):
            found = np.array(column)
            return found if found.dtype.kind in "bif" else None
        return None
    numeric = isinstance(dtype, np.dtype) and dtype.kind in "biuf"
    return np.asarray(column) if numeric and hasattr(column, "__array__") else None


def _of_list(name: str, column: list[Any]) -> tuple[Float64Array, Int64Array | None]:
    values: list[Any] = []
    counts: list[int] | None = None
    for row, value in enumerate(column):
        several = _several(value)
        if several is not None and counts is None:
            counts = [1] * row
        if counts is not None:
            counts.append(1 if several is None else len(several))
        for item in [value] if several is None else several:
            values.append(_number(name, row, item))
    ptr = None if counts is None else offsets(np.array(counts, dtype=np.int64))
    return np.array(values, dtype=np.float64), ptr


def _several(value: Any) -> list[Any] | None:
    """The measurements of one row, ``None`` if it is one value."""
    if isinstance(value, list | tuple) or (getattr(value, "ndim", None) and hasattr(value, "__len__")):
        return column_list(value, "a row")
    return None


def _number(name: str, row: int, value: Any) -> float:
    if type(value) is float:
        return value
    value = plain(value)
    if value is None:
        return float("nan")
    if isinstance(value, np.timedelta64) or not isinstance(value, numbers.Real | Decimal):
        kind = np.asarray(value).dtype.kind if isinstance(value, str | bytes | complex | np.generic) else ""
        raise SourceContractError(
            f"row {row}: '{name}' is {value!r:.80}, {_WHY.get(kind, type(value).__name__)}, expected a number",
            fix="pandas.to_numeric makes numbers of text; names and dates are no labels",
        )
    problem = float32_problem(value)
    if problem:
        raise SourceContractError(f"row {row}: '{name}' {problem}", fix=_FIX)
    return float(value)


def _checked(name: str, array: npt.NDArray[Any], ptr: Int64Array | None) -> Float64Array:
    """One kind of numbers as float64, none of which changes more in float32 than rounding may."""

    def row_of(at: int) -> int:
        return at if ptr is None else int(np.searchsorted(ptr, at, side="right")) - 1

    with np.errstate(over="ignore", under="ignore"):
        single = array.astype(np.float32)
        values: Float64Array = array.astype(np.float64)
    lost = np.isinf(single) & np.isfinite(array) if array.dtype.kind == "f" else np.isinf(single)
    if lost.any():
        at = int(np.argmax(lost))
        raise SourceContractError(f"row {row_of(at)}: '{name}' {float32_problem(array[at].item())}", fix=_FIX)
    if array.dtype.kind == "b" or not len(array):
        return values
    known = np.isfinite(values)
    large = known & (np.abs(values) > _EXACT)
    # A column of whole numbers is one of identifiers or counts; in any other, rounding is what float32 means.
    if large.any() and (array.dtype.kind in "iu" or _is_whole(values[known])):
        with np.errstate(
            invalid="ignore"
        ):  # rounded up to 2**63, which no integer holds: not equal either way
            wrong = large & (single.astype(array.dtype) != array)
        if wrong.any():
            at = int(np.argmax(wrong))
            problem = float32_problem(int(array[at]))
            raise SourceContractError(f"row {row_of(at)}: '{name}' {problem}", fix=_FIX)
    return values


def _is_whole(values: Float64Array) -> bool:
    return bool(((values == np.floor(values)) & (np.abs(values) <= _INTEGERS)).all())


_FIX = "scale a measurement (thousands, logarithm); names of samples go to source_ids, other identifiers are no labels"
