"""Who reads which samples: one global order per epoch, cut into steps and ranks without a single collective call.

The order is a function of (seed, epoch) alone. A step takes the next ``world_size * batch_size`` samples of it, rank 0
the first ``batch_size`` of them: the ranks' batches behind each other, step after step, are the global order. What has
been seen is therefore always a prefix, so one number resumes an epoch on any other number of ranks or batch size.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from torch.utils.data import BatchSampler

from torchcell_cache.core.checks import gives_items, rank_and_world_size, truth
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.samplers.base import CacheSampler, Common, Plan
from torchcell_cache.errors import SettingError

__all__ = ["DistributedCacheSampler", "rank_and_world_size"]


# What excludes nothing, beside a sampler of one's own.
_DEFAULTS = {
    **{"shuffle": False, "seed": 0, "rank": None, "world_size": None, "uneven": "drop_last"},
    **{"batch_size": 1, "drop_last": False, "sampler": None},
}


def raw_numbers(count: int, seed: int, epoch: int, stream: int = 0, part: int = 0) -> npt.NDArray[np.uint64]:
    """Random 64-bit numbers of an epoch, ``[count] uint64``; the same on every machine and numpy version.

    Philox' raw stream is fixed for good, where numpy reserves the right to change what ``Generator`` makes of it.
    ``stream`` says what they are for (another stream has nothing in common with this one), ``part`` for which of many
    equal pieces of work (a shard, a window).
    """
    key = np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64)
    counter = np.array([0, 0, part % 2**64, stream % 2**64], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def epoch_order(num_samples: int, seed: int, epoch: int, stream: int = 0, part: int = 0) -> Int64Array:
    """The permutation of an epoch, ``[num_samples] int64``, of :func:`raw_numbers`.

    Sorting random keys that carry the sample's number in their low bits: keys that differ leave no ties to sort one way
    here and another way there.
    """
    keys = raw_numbers(num_samples, seed, epoch, stream, part)
    low = np.uint64((1 << max(num_samples - 1, 0).bit_length()) - 1)
    keys &= ~low
    keys |= np.arange(num_samples, dtype=np.uint64)
    keys.sort()
    keys &= low
    return keys.view(np.int64)


@dataclass(frozen=True, eq=False)
class RowPlan(Plan):
    """Batches that ranks take in turn from one row of samples, or of batches, from ``start`` on.

    ``draw`` gives an epoch's row; ``None`` is the dataset's own order. How it is cut is arithmetic on five numbers.
    """

    draw: Callable[[int], Any]
    count: int
    start: int
    batch_size: int
    world_size: int
    uneven: str
    drop_last: bool = False

    @cached_property
    def row(self) -> Any:
        """What the ranks take from, drawn when the first batch is; the sampler, which has this plan, is let go then."""
        row = self.draw(self.epoch)
        self.__dict__["draw"] = None
        return row

    @cached_property
    def cut(self) -> tuple[int, list[int]]:
        """How many steps give every rank a full batch, and what those after them take, over all ranks.

        A rank's share differs by at most one.
        """
        step = self.batch_size * self.world_size
        full, tail = divmod(max(0, self.count - self.start), step)
        if self.drop_last or tail == 0:
            return full, []
        if self.uneven == "drop_last":
            return full, [tail - tail % self.world_size] if tail >= self.world_size else []
        if self.uneven == "pad":
            return full, [tail + -tail % self.world_size]
        if tail >= self.world_size or full == 0 or self.batch_size == 1:
            return full, [tail]
        # Too few samples for all ranks, and hardly any model takes an empty batch: the step before gives some away.
        return full - 1, [step + tail - self.world_size, self.world_size]

    def __len__(self) -> int:
        return self.cut[0] + len(self.cut[1])

    def _begin(self, step: int) -> int:
        """Where a step begins in the row."""
        full = min(step, self.cut[0])
        return self.start + full * self.batch_size * self.world_size + sum(self.cut[1][: step - full])

    def span(self, step: int, rank: int) -> tuple[int, int]:
        """Start and stop in the row of a rank's batch; what lies beyond ``count`` is padding."""
        first = self._begin(step)
        share, rest = divmod(self._begin(step + 1) - first, self.world_size)
        return first + rank * share + min(rank, rest), first + (rank + 1) * share + min(rank + 1, rest)

    @property
    def has_empty_batch(self) -> bool:
        """Whether some rank gets nothing in the last step."""
        low, high = self.span(len(self) - 1, self.world_size - 1) if len(self) else (0, 1)
        return low == high

    def place(self, done: int) -> int:
        """How much of the row is seen or left out after ``done`` steps."""
        return self.count if done and done >= len(self) else self._begin(done)

    def batch(self, step: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Dataset indices ``[n] int64`` of a step and which of them are padding, ``[n] bool``."""
        where = np.arange(*self.span(step, self.rank), dtype=np.int64)
        padding = where >= self.count
        if padding.any():
            where %= self.count
        return (where if self.row is None else self.row[where]), padding


class RowSampler(CacheSampler):
    """Samplers whose epoch is one row of samples: a step takes the next ``world_size * batch_size`` of it.

    What has been seen is always a prefix, so one number resumes an epoch on any other number of ranks or batch size.
    """

    @abc.abstractmethod
    def _draw(self, epoch: int) -> Int64Array | None:
        """The epoch's list of indices, ``[epoch_size] int64``; ``None`` for the dataset's own order."""

    def _plan_of(self, epoch: int, place: int, rank: int) -> RowPlan:
        row = self._draw, self.epoch_size, place
        return RowPlan(epoch, rank, *row, self.batch_size, self.world_size, self.uneven, self.drop_last)


class DistributedCacheSampler(RowSampler):
    """Batches of one seeded global order, for this rank; no collective calls.

    Iterating gives lists of indices, so it also serves as ``batch_sampler`` of torch's and PyG's own loaders. Each
    iteration is the next epoch unless :meth:`set_epoch` or :meth:`load_state_dict` was called since the last.

    The samples after the last full step are shared out by ``uneven``:

    * ``drop_last``: equal shares, at most ``world_size - 1`` samples are left out (none with one rank);
    * ``pad``: equal shares, filled up with samples from the start of the epoch's order, which are flagged
      (:meth:`RowPlan.batch`, ``batch.is_padding``), so that a metric can leave them out;
    * ``exact``: every sample once, for evaluation; batches of the last two steps are smaller and differ by one sample.
      Refused where even that leaves a rank an empty batch: fewer samples than ranks, or ``batch_size=1`` and a number of
      samples that the ranks do not divide.

    Args:
        dataset: What is sampled, or its number of samples.
        batch_size: Samples per rank and step.
        shuffle: Whether the order is a permutation by (seed, epoch) instead of the dataset's.
        common: ``seed``, ``drop_last``, ``rank``, ``world_size``, ``uneven`` of :class:`CacheSampler`.

    Raises:
        SettingError: If an argument is wrong, or ranks would get no batch, or an empty one.

    Example:
        >>> list(tc.DistributedCacheSampler(ds[:6], 2, rank=1, world_size=2, uneven="exact"))
        [[2, 3], [5]]
    """

    def __init__(
        self, dataset: Sized | int, batch_size: int = 1, shuffle: bool = False, **common: Unpack[Common]
    ) -> None:
        super().__init__(dataset, batch_size, **common)
        self.shuffle = truth("shuffle", shuffle)
        self._check_steps()

    def _draw(self, epoch: int) -> Int64Array | None:
        return epoch_order(self.num_samples, self.seed, epoch) if self.shuffle else None

    def _settings(self) -> dict[str, Any]:
        return {"shuffle": self.shuffle}


def samplers_of(
    dataset: Any, sampler: Any, batch_sampler: Any, batch_size: int, **own: Any
) -> tuple[Any, Any]:
    """The sampler and the batch sampler that a loader's arguments mean; one object if it is ours."""
    for name, value in (("sampler", sampler), ("batch_sampler", batch_sampler)):
        if value is not None and not gives_items(value):
            raise SettingError(
                f"{name}={value!r:.80}: expected what gives indices, such as a list or a sampler"
            )
    if sampler is None and batch_sampler is None:
        ours = DistributedCacheSampler(dataset, batch_size, **own)
        return ours, ours
    name = "sampler" if batch_sampler is None else "batch_sampler"
    ready = batch_sampler is not None or isinstance(sampler, CacheSampler)
    given = own | {"batch_size": batch_size, "sampler": None if batch_sampler is None else sampler}
    excluded = [key for key in _DEFAULTS if ready or key not in ("batch_size", "drop_last")]
    wrong = [key for key in excluded if given[key] is not None and given[key] != _DEFAULTS[key]]
    if wrong:
        raise SettingError(
            f"{name} decides the order itself and excludes {', '.join(wrong)}",
            fix="leave out one or the other; a DistributedCacheSampler takes them all",
        )
    if batch_sampler is not None:
        return getattr(batch_sampler, "sampler", batch_sampler), batch_sampler
    return sampler, sampler if ready else BatchSampler(sampler, batch_size, own["drop_last"])
