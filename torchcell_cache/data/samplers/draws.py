"""Weighted draws that come out the same on every machine: only operations that IEEE 754 defines to the last bit.

``np.log`` and ``np.power`` may differ in the last bit from one processor to the next, and one such bit would give two
ranks different epochs without anybody noticing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.samplers.epoch_plan import raw_numbers

Float64Array = npt.NDArray[np.float64]

WITH, WITHOUT = 1, 2
_LN2 = 0.6931471805599453
_TERMS = 15


def uniforms(count: int, seed: int, epoch: int, stream: int) -> Float64Array:
    """Numbers strictly between 0 and 1, ``[count] float64``."""
    whole = raw_numbers(count, seed, epoch, stream) >> np.uint64(12)
    return (whole.astype(np.float64) + 0.5) * 2.0**-52


def minus_log(numbers: Float64Array) -> Float64Array:
    """``-ln`` of numbers between 0 and 1, ``[n] float64``, from sums, products and quotients alone.

    ``x = m * 2**e`` with ``m`` in [1/2, 1); ``ln m = 2 artanh((m - 1) / (m + 1))`` by its series, whose argument is at
    most 1/3: the first term left out is below 1e-15.
    """
    mantissa, exponent = np.frexp(numbers)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    total = np.zeros_like(ratio)
    for k in range(_TERMS, -1, -1):
        total = total * square + 1.0 / (2 * k + 1)
    return -(2.0 * ratio * total + exponent * _LN2)


def draw_with_replacement(weights: Float64Array, count: int, seed: int, epoch: int) -> Int64Array:
    """Indices drawn independently in proportion to their weights, ``[count] int64``."""
    ends = np.cumsum(weights)
    at = np.searchsorted(ends, uniforms(count, seed, epoch, WITH) * ends[-1], side="right")
    # A product that rounds up to the total would fall behind the last index that has a weight.
    drawn: Int64Array = np.minimum(at, np.flatnonzero(weights)[-1]).astype(np.int64)
    return drawn


def draw_without_replacement(weights: Float64Array, count: int, seed: int, epoch: int) -> Int64Array:
    """Different indices, one after the other in proportion to the weights of those left, ``[count] int64``.

    By exponential races (Efraimidis and Spirakis, Information Processing Letters 97, 2006): the arrival times
    ``-ln(u) / weight``, in ascending order, are such a draw.
    """
    able = np.flatnonzero(weights)
    with np.errstate(
        over="ignore"
    ):  # a weight close to 0 beside the others comes last, after infinitely long
        times = minus_log(uniforms(len(weights), seed, epoch, WITHOUT))[able] / weights[able]
    drawn: Int64Array = able[np.argsort(times, kind="stable")[:count]].astype(np.int64)
    return drawn
