"""All values of a batch in coordinate form: what was measured, of which column, in which measurement."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets

Arrays: TypeAlias = tuple[npt.NDArray[Any], Int64Array, Int64Array, Int64Array]
"""Values, their columns, their measurements, and offsets of the samples."""


class Coordinates(NamedTuple):
    """Values of a batch in coordinate form.

    Attributes:
        values: ``[k] float32``.
        types: Column of each value, ``[k] int64``.
        samples: Number of the measurement within its sample, ``[k] int64``.
        ptr: Where each sample of the batch starts, ``[batch + 1] int64``.
        batch: Sample of the batch of each value, ``[k] int64``.
    """

    values: Tensor
    types: Tensor
    samples: Tensor
    ptr: Tensor
    batch: Tensor


def coordinates(values: Float32Array, value_ptr: Int64Array, once: bool, *, fill: bool) -> Arrays:
    """The coordinate form of all samples' values, one sample after the other, NaN for no value.

    ``once``: every sample has one measurement. ``fill``: a sample without any value gets one NaN of type 0, measurement 0.
    """
    count, width = len(value_ptr) - 1, values.shape[1]
    if not width and not fill:
        none = np.zeros(0, dtype=np.int64)
        return np.zeros(0, dtype=np.float32), none, none, np.zeros(count + 1, dtype=np.int64)
    known = values == values
    if once and width and known.all():
        found = values.flatten()
        samples = np.zeros(len(found), dtype=np.int64)
        return found, np.tile(np.arange(width), count), samples, np.arange(0, len(found) + 1, width)
    row, types = np.nonzero(known)
    found = values[row, types]
    owner = np.repeat(np.arange(count), np.diff(value_ptr))[row]
    samples = row - value_ptr[owner]
    per_sample = np.bincount(owner, minlength=count)
    ptr = offsets(per_sample)
    if fill and not per_sample.all():
        at = ptr[:-1][per_sample == 0]
        found = np.insert(found, at, np.float32(np.nan))
        types, samples = np.insert(types, at, 0), np.insert(samples, at, 0)
        ptr = offsets(np.maximum(per_sample, 1))
    return found, types, samples, ptr
