"""Checks of arguments: what was got, what is valid, what was probably meant."""

from __future__ import annotations

import difflib
import math
import operator
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.errors import SettingError


def choice(name: str, value: str, valid: tuple[str, ...]) -> str:
    """``value`` if it is one of ``valid``.

    Raises:
        SettingError: Naming the valid values.
    """
    if not isinstance(value, str) or value not in valid:
        raise SettingError(f"{name}={value!r} is not one of {', '.join(map(repr, valid))}")
    return value


def function_or_none(name: str, value: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """``value`` if it can be called or is ``None``.

    Raises:
        SettingError: If it is anything else.
    """
    if value is not None and not callable(value):
        raise SettingError(
            f"{name}={value!r:.200}: expected a function", fix=f"{name}=a function, or leave it out"
        )
    return value


def gives_items(value: Any) -> bool:
    """Whether ``value`` can be iterated, which arrays without an axis only claim."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def names_or_none(name: str, value: Any) -> list[str] | None:
    """``value``, any collection of texts, as a list; ``None`` as it is.

    Raises:
        SettingError: If it is one text, of which Python would take the letters, or no texts at all.
    """
    if value is None:
        return None
    try:
        found: list[Any] = [None] if isinstance(value, str) else list(value)
    except TypeError:
        found = [None]
    if not all(isinstance(each, str) for each in found):
        raise SettingError(f"{name}={value!r:.200}: expected a list of names", fix=f'{name}=["x"]')
    return found


def suggestion(word: str, valid: Iterable[str], list_all: bool = True) -> str:
    """``; did you mean 'x'? valid: ...`` for a message; nothing where neither a near word nor a list is wanted.

    Upper and lower case look alike.
    """
    names = list(valid)
    folded = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ";" * list_all
    return f"{hint} valid: {', '.join(names)}" if list_all else hint


def lookalike(name: str, known: Iterable[str]) -> str:
    """The known name that ``name`` is, or the only one that looks the same; ``name`` itself if there is none."""
    form = unicodedata.normalize("NFKC", name)
    alike = [other for other in known if unicodedata.normalize("NFKC", other) == form]
    return alike[0] if len(alike) == 1 and name not in alike else name


def refuse_unknown(what: str, unknown: Iterable[str], valid: list[str]) -> None:
    """Refuse arguments that do not exist.

    Raises:
        SettingError: Naming the valid ones.
    """
    for name in unknown:
        near = suggestion(name, valid, list_all=False)
        raise SettingError(f"{what} has no argument {name!r}{near}\n  it has {', '.join(valid)}")


def rank_and_world_size(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Rank and number of ranks: as given, of ``torch.distributed``, of ``RANK``/``WORLD_SIZE``, or (0, 1).

    Raises:
        SettingError: If only one of the two is known, or they make no sense.
    """
    if (rank is None) != (world_size is None):
        raise SettingError(f"rank={rank} and world_size={world_size}: give both or neither")
    origin = "rank=, world_size="
    if rank is None or world_size is None:
        distributed = getattr(sys.modules.get("torch"), "distributed", None)  # no process group without torch
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        origin = "RANK, WORLD_SIZE"
        rank, world_size = _environment("RANK"), _environment("WORLD_SIZE")
        if rank is None and world_size in (None, 1):
            return 0, 1
        if rank is None or world_size is None:
            raise SettingError(
                f"the environment has RANK={rank} and WORLD_SIZE={world_size}: every rank would read the same samples",
                fix="start with torchrun, or pass rank= and world_size=",
            )
    rank, world_size = whole_number("rank", rank), whole_number("world_size", world_size)
    if not 0 <= rank < world_size:
        raise SettingError(f"rank {rank} of {world_size} ranks ({origin}): expected 0 to {world_size - 1}")
    return rank, world_size


def _environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"the environment has {name}={text!r}, expected a number") from None


def whole_number(
    name: str, value: Any, least: int | None = None, fix: str | None = None, most: int | None = None
) -> int:
    """``value`` as an ``int``; numpy's integers and arrays and tensors of one integer count as such.

    Raises:
        SettingError: If it is no whole number, or too small or large.
    """
    wanted = (
        "a whole number"
        if least is None
        else f"a whole number from {least} {'on' if most is None else f'to {most}'}"
    )
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
            raise TypeError
        found = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise SettingError(f"{name}={value!r:.200}: expected {wanted}", fix=fix) from None
    if (least is not None and found < least) or (most is not None and found > most):
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
