"""Who reads which samples: one global order per epoch, cut into steps and ranks without a single collective call.

The order is a function of (seed, epoch) alone. A step takes the next ``world_size * batch_size`` samples of it, rank 0
the first ``batch_size`` of them: the ranks' batches behind each other, step after step, are the global order. What has
been seen is therefore always a prefix, so one number resumes an epoch on any other number of ranks or batch size.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torchcell_cache.core.checks import rank_and_world_size
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.samplers.base import OrderSampler
from torchcell_cache.data.samplers.epoch_plan import epoch_order

__all__ = ["DistributedCacheSampler", "rank_and_world_size"]


class DistributedCacheSampler(OrderSampler):
    """Batches of one seeded global order, for this rank; no collective calls.

    Iterating gives lists of indices, so it also serves as ``batch_sampler`` of torch's and PyG's own loaders. Each
    iteration is the next epoch unless :meth:`set_epoch` or :meth:`load_state_dict` was called since the last.

    The samples after the last full step are shared out by ``uneven``:

    * ``drop_last``: equal shares, at most ``world_size - 1`` samples are left out (none with one rank);
    * ``pad``: equal shares, filled up with samples from the start of the epoch's order, which are flagged
      (:attr:`EpochPlan.batch`, ``batch.is_padding``), so that a metric can leave them out;
    * ``exact``: every sample once, for evaluation; batches of the last two steps are smaller and differ by one sample.
      Refused where even that leaves a rank an empty batch: fewer samples than ranks, or ``batch_size=1`` and a number of
      samples that the ranks do not divide.

    Args:
        dataset: What is sampled, or its number of samples.
        batch_size: Samples per rank and step.
        shuffle: Whether the order is a permutation by (seed, epoch) instead of the dataset's.
        seed: Seed of the permutation; the same on all ranks.
        drop_last: Leave out what does not fill a step of full batches, whatever ``uneven`` says.
        rank: This process; by default as :func:`rank_and_world_size` finds it, each time an epoch starts.
        world_size: Number of ranks, likewise.
        uneven: ``drop_last``, ``pad`` or ``exact``.

    Raises:
        SettingError: If an argument is wrong, or ranks would get no batch, or an empty one.
    """

    def __init__(
        self,
        dataset: Sized | int,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
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
        self.shuffle = bool(shuffle)
        self._check_steps()

    def _draw(self, epoch: int) -> Int64Array | None:
        return epoch_order(self.num_samples, self.seed, epoch) if self.shuffle else None

    def _settings(self) -> dict[str, Any]:
        return {"shuffle": self.shuffle}
