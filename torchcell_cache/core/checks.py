"""Checks of arguments: what was got, what is valid, what was probably meant."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable

from torchcell_cache.core.numbers import whole_number
from torchcell_cache.errors import SettingError


def choice(name: str, value: str, valid: tuple[str, ...]) -> str:
    """``value`` if it is one of ``valid``.

    Raises:
        SettingError: Naming the valid values.
    """
    if not isinstance(value, str) or value not in valid:
        raise SettingError(f"{name}={value!r} is not one of {', '.join(map(repr, valid))}")
    return value


def suggestion(word: str, valid: Iterable[str], list_all: bool = True) -> str:
    """``; did you mean 'x'? valid: ...`` for a message; nothing where neither a near word nor a list is wanted.

    Upper and lower case look alike.
    """
    names = list(valid)
    folded = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else ";" * list_all
    return f"{hint} valid: {', '.join(names)}" if list_all else hint


def refuse_unknown(what: str, unknown: Iterable[str], valid: list[str]) -> None:
    """Refuse arguments that do not exist.

    Raises:
        SettingError: Naming the valid ones.
    """
    for name in unknown:
        close = difflib.get_close_matches(name, valid, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SettingError(f"{what} has no argument {name!r}{hint}\n  it has {', '.join(valid)}")


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
