"""``WeightedCacheSampler``: rare kinds of samples more often, the same draw on every number of ranks."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.core.numbers import real_numbers, whole_number
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.samplers.base import OrderSampler
from torchcell_cache.data.samplers.draws import Float64Array, draw_with_replacement, draw_without_replacement
from torchcell_cache.data.samplers.groups import Bins, inverse_frequency
from torchcell_cache.errors import SettingError


class WeightedCacheSampler(OrderSampler):
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
        seed: Of the draws; the same on all ranks.
        drop_last: Leave out what does not fill a step of full batches.
        rank: This process; by default found.
        world_size: Number of ranks, likewise.
        uneven: ``drop_last``, ``pad`` or ``exact``.

    Raises:
        SettingError: If an argument is wrong; names the valid ones.
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
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: str = "drop_last",
    ) -> None:
        super().__init__(
            dataset,
            batch_size,
            seed=seed,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            uneven=uneven,
        )
        if (by is None) == (weights is None):
            raise SettingError(
                "give by= (a stored column) or weights= (numbers of your own), one of the two",
                fix='WeightedCacheSampler(dataset, batch_size, by="perturbed_count")',
            )
        if by is None and bins is not None:
            raise SettingError("bins= belongs to by=, and weights= was given")
        self.weights = (
            _checked(weights, self.num_samples) if by is None else inverse_frequency(dataset, by, bins)
        )
        self.replacement = bool(replacement)
        self.num_draws = self._checked_draws(num_samples)
        self.warmup_epochs = whole_number("warmup_epochs", warmup_epochs, 0)
        self._check_steps()

    def _checked_draws(self, wanted: int | None) -> int:
        able = int(np.count_nonzero(self.weights))
        count = (self.num_samples if self.replacement else able) if wanted is None else wanted
        count = whole_number("num_samples", count, 0 if wanted is None else 1)
        if not self.replacement and count > able:
            raise SettingError(
                f"num_samples={count}, but only {able} of {self.num_samples} samples have a weight above 0",
                fix=f"replacement=True, or num_samples={able} at most",
            )
        return count

    @property
    def epoch_size(self) -> int:
        """Draws of a whole epoch, over all ranks."""
        return self.num_draws

    def weights_of(self, epoch: int) -> Float64Array:
        """Weights of an epoch, ``[num_samples] float64``, with a sum of 1."""
        total: Float64Array = self.weights / np.cumsum(self.weights)[-1]
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


def _checked(weights: Any, count: int) -> Float64Array:
    """Weights as ``[count] float64``.

    Raises:
        SettingError: If they are not one finite number per sample, not negative and not all 0.
    """
    found = real_numbers("weights=", weights)
    if found.shape != (count,):
        raise SettingError(f"weights has shape {found.shape}, expected ({count},): one number per sample")
    if not bool(np.isfinite(found).all()) or bool((found < 0).any()):
        where = int(np.flatnonzero(~np.isfinite(found) | (found < 0))[0])
        raise SettingError(
            f"weights[{where}] is {found[where]}: expected finite numbers that are not negative"
        )
    if count and not bool(found.any()):
        raise SettingError("all weights are 0: nothing could be drawn")
    with np.errstate(over="ignore"):
        fits = bool(np.isfinite(np.cumsum(found)[-1:]).all())
    return found if fits else found / found.max()
