"""What all ways to split have in common: checked shares, named parts, what is written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchcell_cache.core.numbers import seed_number, whole_number
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError

PARTS = ("train", "val", "test")


def checked_fractions(fractions: Sequence[float], length: int | None = None) -> tuple[float, float, float]:
    """Three shares that sum to 1; of two, the second is that of the test part.

    Raises:
        SettingError: If they are anything else.
    """
    wanted = (2, 3) if length is None else (length,)
    try:
        values = [float(share) for share in fractions]
        if len(fractions) != len(values):
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise SettingError(
            f"fractions={fractions!r:.200}: expected numbers, {' or '.join(map(str, wanted))} of them in a list"
        ) from None
    good = (
        len(values) in wanted
        and all(0 <= v <= 1 for v in values)
        and math.isclose(sum(values), 1, abs_tol=1e-6)
    )
    if not good:
        raise SettingError(
            f"fractions={fractions!r}: expected {' or '.join(map(str, wanted))} shares from 0 to 1 that sum to 1",
            fix="fractions=(0.8, 0.1, 0.1)",
        )
    return (values[0], 0.0, values[1]) if len(values) == 2 else (values[0], values[1], values[2])


def made_by(
    dataset: Any,
    function: str,
    fractions: tuple[float, float, float],
    count: int,
    seed: int,
    stratify: str | None,
    bins: int,
) -> dict[str, Any]:
    """How a split of a dataset is made, as JSON values; ``count`` is the number of shares that were given.

    Raises:
        SettingError: If ``seed`` or ``bins`` is no whole number, or the dataset is no store's.
    """
    if not hasattr(dataset, "generation"):
        raise SettingError(
            f"{function} divides a store or a view of one, got {type(dataset).__name__}",
            fix="dataset[indices] is a view of some samples",
        )
    shares = [fractions[0], fractions[2]] if count == 2 else list(fractions)
    numbers = {"seed": seed_number(seed), "stratify": stratify, "bins": whole_number("bins", bins, 1)}
    return {"function": function, "fractions": shares, **numbers}


def named_parts(part: Int64Array, how: dict[str, Any]) -> dict[str, Int64Array]:
    """Indices of each part by name, of ``part``, ``[n] int64``; no ``val`` where two shares were given."""
    names = PARTS if len(how["fractions"]) == 3 else (PARTS[0], PARTS[2])
    return {name: np.flatnonzero(part == PARTS.index(name)) for name in names}
