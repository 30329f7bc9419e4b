"""Numbers that users pass: Python's, numpy's and torch's whole numbers are welcome, anything else is answered in a sentence."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.errors import SettingError


def whole_number(name: str, value: Any, least: int | None = None, fix: str | None = None) -> int:
    """``value`` as an ``int``; numpy's integers and arrays and tensors of one integer count as such.

    Args:
        name: What it is called, for the message.
        value: What was passed.
        least: The smallest value that makes sense, if there is one.
        fix: What to pass instead, for the message.

    Raises:
        SettingError: If it is no whole number, or too small.
    """
    wanted = "a whole number" if least is None else f"a whole number from {least} on"
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
            raise TypeError
        found = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise SettingError(f"{name}={value!r:.200}: expected {wanted}", fix=fix) from None
    if least is not None and found < least:
        raise SettingError(f"{name}={found}: expected {wanted}", fix=fix)
    return found


def truth(name: str, value: Any) -> bool:
    """``value`` as a ``bool``: true, false, 1, 0 and ``None`` of any library, but no text, of which all but "" is true.

    Raises:
        SettingError: If it is anything else.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return bool(value)
    try:
        found = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        found = -1
    if found not in (0, 1):
        raise SettingError(f"{name}={value!r:.200}: expected True or False")
    return found == 1


def real_number(name: str, value: Any, wanted: str, *, above: bool = False) -> float:
    """``value`` as a finite ``float`` that is not negative.

    Args:
        name: What it is called, for the message.
        value: What was passed.
        wanted: What is expected, for the message.
        above: Refuse 0 too.

    Raises:
        SettingError: If it is no such number.
    """
    try:
        found = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        found = math.nan
    if not (0 <= found < math.inf) or (above and found == 0):
        raise SettingError(f"{name}={value!r:.200}: expected {wanted}")
    return found


def real_numbers(name: str, values: Any) -> npt.NDArray[np.float64]:
    """Numbers of a list, an array or a tensor of any dtype and device as float64, in their own shape.

    Raises:
        SettingError: If they are no numbers.
    """
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.numpy() if values.is_complex() else values.double()
        array = np.asarray(values)
        if array.dtype.kind in "cmM":  # which numpy would turn into numbers: the real part, nanoseconds
            raise TypeError(f"they are {array.dtype}")
        return np.array(array, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise SettingError(f"{name} must be numbers, one per sample: {error}") from None


def seed_number(seed: Any) -> int:
    """A seed as an ``int``; ``None`` is refused, because every rank has to draw the same.

    Raises:
        SettingError: If it is no whole number.
    """
    return whole_number("seed", seed, fix="seed=0, the same on all ranks")
