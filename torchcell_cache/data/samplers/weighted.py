"""``WeightedCacheSampler``: rare kinds of samples more often, the same draw on every number of ranks.

Draws come out the same on every machine: only operations that IEEE 754 defines to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.core.checks import gives_items, real_numbers, truth, whole_number
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.samplers.base import MOST, Common
from torchcell_cache.data.samplers.order import RowSampler, raw_numbers
from torchcell_cache.data.view import column_of
from torchcell_cache.errors import SettingError

Float64Array = npt.NDArray[np.float64]

WITH, WITHOUT = 1, 2
_LN2 = 0.6931471805599453
_TERMS = 15
MOST_BINS = 2**20


def uniforms(count: int, seed: int, epoch: int, stream: int) -> Float64Array:
    """Numbers strictly between 0 and 1, ``[count] float64``."""
    whole = raw_numbers(count, seed, epoch, stream) >> np.uint64(12)
    return (whole.astype(np.float64) + 0.5) * 2.0**-52


def minus_log(numbers: Float64Array) -> Float64Array:
    """``-ln`` of numbers between 0 and 1, ``[n] float64``, from sums, products and quotients alone.

    ``np.log`` may differ in the last bit from one processor to the next, and one such bit would give two ranks different
    epochs without anybody noticing.

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


Bins = int | Sequence[float]


def _numbered(rows: npt.NDArray[Any]) -> Int64Array:
    """Which of the different rows each is, ``[n] int64``."""
    which = np.unique(rows, axis=0 if rows.ndim > 1 else None, return_inverse=True)[1]
    return which.reshape(-1).astype(np.int64)


def groups_of(column: npt.NDArray[Any], name: str, bins: Bins | None) -> Int64Array:
    """Number of each sample's group, ``[num_samples] int64``; samples without a value are a group of their own.

    ``bins`` is the number of equal ranges between the smallest and the largest finite value, or the edges between ranges
    (``-inf`` and ``inf`` are understood at both ends); without it every value is a group, which takes whole numbers
    (counts, codes of names), whatever their dtype.
    """
    column = column.reshape(len(column), -1) if len(column) else column.reshape(0, 1)
    if column.shape[1] > 1:
        if bins is not None:
            raise SettingError(f"column {name!r} has {column.shape[1]} values per sample, bins= need one")
        return _numbered(column)
    column = column[:, 0]
    real = column.dtype.kind == "f"
    if bins is not None:
        values = column.astype(np.float64)
        if not isinstance(bins, Sequence) and np.ndim(bins) == 0:
            bins = whole_number("bins", bins, 2, "bins=10, or a list of edges", MOST_BINS)
            if not np.isfinite(values).any():
                raise SettingError(f"column {name!r} has no finite value to make bins of")
            low, high = float(values[np.isfinite(values)].min()), float(values[np.isfinite(values)].max())
            edges = low + (high - low) * np.arange(1, bins, dtype=np.float64) / bins
        else:
            try:
                edges = np.asarray(bins, dtype=np.float64)
            except (TypeError, ValueError):
                edges = np.empty(0)
            if edges.ndim != 1 or not len(edges) or np.isnan(edges).any() or not (np.diff(edges) > 0).all():
                raise SettingError(
                    f"bins={bins!r}: expected a whole number from 2 on, or edges in ascending order"
                )
        found = np.searchsorted(edges, values, side="right").astype(np.int64)
        found[np.isnan(values)] = len(edges) + 1
        return found
    if real and not bool(((column == np.floor(column)) | np.isnan(column)).all()):
        raise SettingError(
            f"column {name!r} holds real numbers: nearly every sample would be a group of its own",
            fix="bins=10 for ten equal ranges, or bins=[0.5, 0.9] for the edges between ranges",
        )
    return _numbered(column)


def inverse_frequency(
    dataset: Any, by: str | Sequence[str], bins: Bins | dict[str, Bins] | None
) -> Float64Array:
    """One over the size of each sample's group, ``[num_samples] float64``: all groups weigh the same in total."""
    names: tuple[Any, ...] = (by,) if isinstance(by, str) or not gives_items(by) else tuple(by)
    if not names:
        raise SettingError("by=() names no column")
    if isinstance(bins, dict) and (unknown := sorted(set(bins) - set(names))):
        raise SettingError(f"bins for {', '.join(unknown)}, but by= names {', '.join(names)}")
    together = np.zeros(1, dtype=np.int64)
    for name in names:
        found = groups_of(
            column_of(dataset, name, "by"), name, bins.get(name) if isinstance(bins, dict) else bins
        )
        together = _numbered(together * (int(found.max(initial=0)) + 1) + found)
    return 1.0 / np.bincount(together)[together].astype(np.float64)


class WeightedCacheSampler(RowSampler):
    """Draws samples in proportion to weights, from stored columns, without reading a record.

    An epoch's draw is a function of (seed, epoch, weights) and is cut into steps and ranks as
    :class:`~torchcell_cache.DistributedCacheSampler` cuts its order (``uneven``): every number of ranks and workers sees
    the same samples, and a run goes on in the middle of an epoch on any other.

    Args:
        dataset: A ``PreprocessedDataset``, a view or a ``Subset`` of one; with ``weights``, anything with a length.
        batch_size: Samples per rank and step.
        by: Name of a stored column (``dataset.columns``), or several for their combinations: weights are one over the
            number of samples with the same value, so that every value is drawn as often as every other.
            ``perturbed_count`` is the size of the perturbation, labels go by their names.
        bins: For columns of real numbers: number of equal ranges or the edges between ranges; a dict by column if
            ``by`` names several.
        weights: Weights of your own instead of ``by``, ``[num_samples]``, finite and not negative.
        replacement: Whether a sample may be drawn again within an epoch.
        num_samples: Draws per epoch over all ranks; by default as many as there are samples.
        warmup_epochs: Epochs in which the weights go from equal (epoch 0) to the given ones (this epoch and later), in
            equal steps.
        common: ``seed``, ``drop_last``, ``rank``, ``world_size``, ``uneven`` of :class:`CacheSampler`.

    Raises:
        SettingError: If an argument is wrong; names the valid ones.

    Example:
        >>> sampler = tc.WeightedCacheSampler(ds, 4, by="perturbed_count")
        >>> loader = tc.CacheLoader(ds, sampler=sampler)
    """

    def __init__(
        self,
        dataset: Sized | int,
        batch_size: int = 1,
        *,
        by: str | Sequence[str] | None = None,
        bins: Bins | dict[str, Bins] | None = None,
        weights: npt.ArrayLike | None = None,
        replacement: bool = True,
        num_samples: int | None = None,
        warmup_epochs: int = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(dataset, batch_size, **common)
        if (by is None) == (weights is None):
            raise SettingError(
                "give by= (a stored column) or weights= (numbers of your own), one of the two",
                fix='WeightedCacheSampler(dataset, batch_size, by="perturbed_count")',
            )
        if by is None and bins is not None:
            raise SettingError("bins= belongs to by=, and weights= was given")
        self.replacement = truth("replacement", replacement)
        self.warmup_epochs = whole_number("warmup_epochs", warmup_epochs, 0)
        if by is not None:
            self.weights = inverse_frequency(dataset, by, bins)
        else:
            found = per_sample("weights", weights, self.num_samples)
            if len(found) and not found.any():
                raise SettingError("all weights are 0: nothing could be drawn")
            self.weights = found if sum_is_finite(found) else _divided(found, found.max())
        able = int(np.count_nonzero(self.weights))
        count = (self.num_samples if self.replacement else able) if num_samples is None else num_samples
        self.num_draws = whole_number("num_samples", count, 0 if num_samples is None else 1, most=MOST)
        if not self.replacement and self.num_draws > able:
            raise SettingError(
                f"num_samples={count}, but only {able} of {self.num_samples} samples have a weight above 0",
                fix=f"replacement=True, or num_samples={able} at most",
            )
        self._check_steps()

    @property
    def epoch_size(self) -> int:
        """Draws of a whole epoch, over all ranks."""
        return self.num_draws

    def weights_of(self, epoch: int) -> Float64Array:
        """Weights of an epoch, ``[num_samples] float64``, with a sum of 1."""
        total = _divided(self.weights, np.cumsum(self.weights)[-1])
        if epoch >= self.warmup_epochs:
            return total
        share = epoch / self.warmup_epochs
        # During the warm-up too: a weight of 0 means never.
        able = self.weights > 0
        mixed: Float64Array = (1.0 - share) * (able / np.count_nonzero(able)) + share * total
        return mixed

    def _draw(self, epoch: int) -> Int64Array | None:
        draw = draw_with_replacement if self.replacement else draw_without_replacement
        if not self.num_draws:
            return np.empty(0, dtype=np.int64)
        return draw(self.weights_of(epoch), self.num_draws, self.seed, epoch)

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "weights": xxhash.xxh3_128_hexdigest(self.weights.tobytes()),
            "replacement": self.replacement,
            "num_draws": self.num_draws,
            "warmup_epochs": self.warmup_epochs,
        }


def per_sample(name: str, values: Any, count: int, verb: str = "is", fix: str | None = None) -> Float64Array:
    """One finite number per sample, not negative, ``[count] float64``."""
    found = real_numbers(name, values)
    if found.shape != (count,):
        raise SettingError(f"{name} has shape {found.shape}, expected ({count},): one number per sample")
    wrong = ~np.isfinite(found) | (found < 0)
    if wrong.any():
        where = int(np.flatnonzero(wrong)[0])
        raise SettingError(
            f"{name}[{where}] {verb} {found[where]}: expected finite numbers that are not negative", fix=fix
        )
    return found


def sum_is_finite(numbers: Float64Array) -> bool:
    """Whether the sum of all numbers, one after the other, is a number."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.cumsum(numbers)[-1:]).all())


def _divided(weights: Float64Array, by: Any) -> Float64Array:
    """``weights / by`` where what is above 0 stays so: the smallest number instead of an underflow."""
    out: Float64Array = weights / by
    return np.where((out == 0) & (weights > 0), np.nextafter(0, 1), out)
