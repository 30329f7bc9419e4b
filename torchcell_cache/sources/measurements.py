"""Labels and statistics as callers give them, as measurements that float32 can hold; anything else is refused by row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.choices import Nan
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets, segments
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.columns import column_list, on_host, plain, row_of

Float64Array = npt.NDArray[np.float64]
NAN = get_args(Nan)
"""What to do with a value that is NaN or infinite: refuse; keep it; leave the sample out."""

_EXACT = 2.0**24
_SMALLEST = 2.0**-150
_INTEGERS = 2.0**53
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
_SINGLE = {float, int, bool, str, NoneType}
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
    def from_columns(cls, columns: dict[str, Any], num_samples: int) -> Measurements:
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
        small = (self.values != 0) & (np.abs(self.values) <= _SMALLEST)
        odd = {"infinite": np.isinf(self.values), "too small for float32 and count as 0": small}
        counts = [(what, flags.sum(axis=0).tolist()) for what, flags in odd.items()]
        found = [(name, n, what) for what, ns in counts for name, n in zip(self.names, ns, strict=True) if n]
        return tuple(f"'{name}': {count:,} values are {what}" for name, count, what in found)


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
    if isinstance(value, Integral) and single != int(value):
        return f"is {value}, a whole number that float32 would round to {int(single)}"
    return ""


def _column(name: str, column: Any) -> tuple[Float64Array, Int64Array | None]:
    """Values of a column and, if its rows are lists, their offsets."""
    given, ptr = on_host(column), None
    if hasattr(given, "detach"):
        given = (given.double() if given.is_floating_point() else given).numpy()
    if isinstance(given, np.ma.MaskedArray) and given.dtype.kind == "f":
        given = given.filled(np.nan)
    dtype, shape = getattr(given, "dtype", None), getattr(given, "shape", ())
    if (
        isinstance(dtype, np.dtype)
        and dtype.kind in "biuf"
        and shape
        and not isinstance(given, np.ma.MaskedArray)
    ):
        array = np.asarray(given)  # one kind of numbers: none is looked at by itself
        if array.ndim > 2:
            said = f"'{name}' has {array.ndim} dimensions, expected a number or a list of numbers per row"
            raise SourceContractError(said)
        if array.ndim == 2:
            ptr = np.arange(len(array) + 1, dtype=np.int64) * array.shape[1]
        return _checked(name, array.reshape(-1), ptr), ptr
    flat = column_list(given, f"column '{name}'")
    rows: Sequence[int] = range(len(flat))
    if not set(map(type, flat)) <= _SINGLE and any(map(_is_several, flat)):
        lists = [column_list(value, "a row") if _is_several(value) else [value] for value in flat]
        counts = np.array(list(map(len, lists)), dtype=np.int64)
        flat, ptr, rows = list(chain(*lists)), offsets(counts), np.repeat(rows, counts).tolist()
    types = set(map(type, flat))
    array = np.array(flat if types in ({float}, {bool}, {int}) else [None])
    if array.dtype.kind not in (
        "i" if int in types else "bf"
    ):  # of integers beyond 64 bits numpy makes floats
        numbers = [_number(name, row, value) for row, value in zip(rows, flat, strict=True)]
        array = np.array(numbers, dtype=np.float64)
    return _checked(name, array, ptr), ptr


def _is_several(value: Any) -> bool:
    """Whether a row holds a list of measurements."""
    return isinstance(value, list | tuple) or bool(getattr(value, "ndim", 0) and hasattr(value, "__len__"))


def _number(name: str, row: int, value: Any) -> float:
    if type(value) is float:
        return value
    if value is None:
        return float("nan")
    if isinstance(value, np.timedelta64) or not isinstance(value, Real | Decimal):
        kind = np.asarray(value).dtype.kind if isinstance(value, str | bytes | complex | np.generic) else ""
        raise SourceContractError(
            f"row {row}: '{name}' is {value!r:.80}, {_WHY.get(kind, type(value).__name__)}, expected a number",
            fix="pandas.to_numeric makes numbers of text; names and dates are no labels",
        )
    if problem := float32_problem(value):
        raise SourceContractError(f"row {row}: '{name}' {problem}", fix=_FIX)
    return float(value)


def _checked(name: str, array: npt.NDArray[Any], ptr: Int64Array | None) -> Float64Array:
    """One kind of numbers as float64, none of which changes more in float32 than rounding may."""
    with np.errstate(over="ignore", under="ignore"):
        single, values = array.astype(np.float32), array.astype(np.float64)
    known = np.isfinite(values)
    wrong = lost = np.isinf(single) & np.isfinite(array)
    large = known & (np.abs(values) > _EXACT)
    # A column of whole numbers is one of identifiers or counts; in any other, rounding is what float32 means.
    if large.any() and (array.dtype.kind in "iu" or _is_whole(values[known])):
        with np.errstate(
            invalid="ignore"
        ):  # rounded up to 2**63, which no integer holds: not equal either way
            wrong = lost | (large & (single.astype(array.dtype) != array))
    if wrong.any():
        at = int(np.argmax(wrong))
        problem = float32_problem(array[at].item() if lost[at] else int(array[at]))
        row = at if ptr is None else row_of(ptr, at)
        raise SourceContractError(f"row {row}: '{name}' {problem}", fix=_FIX)
    return values


def _is_whole(values: Float64Array) -> bool:
    return bool(((values == np.floor(values)) & (np.abs(values) <= _INTEGERS)).all())


_FIX = "scale a measurement (thousands, logarithm); names of samples go to source_ids, other identifiers are no labels"


# Numbers of small tables, which may be text


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
    for k in np.flatnonzero(~(np.abs(out) < _EXACT)).tolist():
        if not np.isfinite(out[k]):
            raise SourceContractError(f"{what(k)} {values[k]!r:.80}, expected a finite number", fix=fix)
        if str(values[k]).strip().lstrip("+-").isdigit() and int(values[k]) != float(out[k]):
            raise SourceContractError(f"{what(k)} {values[k]!r}, which float32 does not hold", fix=fix)
    return out, int(((out == 0) & (np.array(found, dtype=np.float64) != 0)).sum())


def number_of(value: Any) -> float:
    """A value as a number, NaN if it is none: ``float`` itself takes truth values, bytes, ``1_0`` and other digits."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else np.nan
    value = plain(value)
    is_number = isinstance(value, Real | Decimal) and not isinstance(value, bool | np.timedelta64)
    try:
        return float(value) if is_number else np.nan
    except (OverflowError, ValueError):
        return np.nan
