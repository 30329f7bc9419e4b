"""How an epoch is ordered and cut into steps and ranks: arithmetic on a few numbers, no collective call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array


def raw_numbers(count: int, seed: int, epoch: int, stream: int = 0, part: int = 0) -> npt.NDArray[np.uint64]:
    """Random 64-bit numbers of an epoch, ``[count] uint64``; the same on every machine and numpy version.

    Philox' raw stream is fixed for good, where numpy reserves the right to change what ``Generator`` makes of it.

    Args:
        count: How many.
        seed: First half of the key.
        epoch: Second half of the key.
        stream: What they are for; another stream has nothing in common with this one.
        part: Which of many equal pieces of work (a shard, a window) they are for, likewise.
    """
    key = np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64)
    counter = np.array([0, 0, part % 2**64, stream % 2**64], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def epoch_order(num_samples: int, seed: int, epoch: int, stream: int = 0, part: int = 0) -> Int64Array:
    """The permutation of an epoch, ``[num_samples] int64``; the same on every machine and numpy version.

    Sorting random keys that carry the sample's number in their low bits: keys that differ leave no ties to sort one way
    here and another way there.

    Args:
        num_samples: Length.
        seed: As in :func:`raw_numbers`, like the rest.
        epoch: Likewise.
        stream: Likewise.
        part: Likewise.
    """
    keys = raw_numbers(num_samples, seed, epoch, stream, part)
    low = np.uint64((1 << max(num_samples - 1, 0).bit_length()) - 1)
    keys &= ~low
    keys |= np.arange(num_samples, dtype=np.uint64)
    keys.sort()
    keys &= low
    return keys.view(np.int64)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How one epoch, or what is left of it, is cut into steps and ranks: arithmetic on five numbers.

    Attributes:
        num_samples: Samples of a whole epoch.
        start: Samples of the global order that have been seen already.
        batch_size: Samples per rank and step.
        world_size: Number of ranks.
        uneven: What happens to the samples after the last full step, see :class:`DistributedCacheSampler`.
        drop_last: Leave them out altogether.
    """

    num_samples: int
    start: int
    batch_size: int
    world_size: int
    uneven: str
    drop_last: bool

    @property
    def _step_size(self) -> int:
        return self.batch_size * self.world_size

    def _uneven_steps(self) -> list[int]:
        """Samples, over all ranks, of the steps after the full ones; a rank's share differs by at most one."""
        full, tail = divmod(max(0, self.num_samples - self.start), self._step_size)
        if self.drop_last or tail == 0:
            return []
        if self.uneven == "drop_last":
            return [tail - tail % self.world_size] if tail >= self.world_size else []
        if self.uneven == "pad":
            return [tail + -tail % self.world_size]
        if tail >= self.world_size or full == 0 or self.batch_size == 1:
            return [tail]
        # Too few samples for all ranks, and hardly any model takes an empty batch: the step before gives some away.
        return [self._step_size + tail - self.world_size, self.world_size]

    @property
    def full_steps(self) -> int:
        """Steps in which every rank has a full batch."""
        return max(0, self.num_samples - self.start) // self._step_size - (len(self._uneven_steps()) == 2)

    @property
    def steps(self) -> int:
        """Steps, the same number on every rank."""
        return self.full_steps + len(self._uneven_steps())

    def _step_span(self, step: int) -> tuple[int, int]:
        """Start and stop of a step in the global order."""
        full = self.full_steps
        if step < full:
            return self.start + step * self._step_size, self.start + (step + 1) * self._step_size
        sizes = self._uneven_steps()
        first = self.start + full * self._step_size + sum(sizes[: step - full])
        return first, first + sizes[step - full]

    def span(self, step: int, rank: int) -> tuple[int, int]:
        """Start and stop in the global order of a rank's batch; what lies beyond ``num_samples`` is padding."""
        first, stop = self._step_span(step)
        share, rest = divmod(stop - first, self.world_size)
        return first + rank * share + min(rank, rest), first + (rank + 1) * share + min(rank + 1, rest)

    def seen_after(self, step: int) -> int:
        """Samples of the global order that are seen or left out once a step is done."""
        return self.num_samples if step + 1 >= self.steps else self._step_span(step)[1]

    def has_empty_batch(self) -> bool:
        """Whether some rank gets no sample in the last step."""
        low, high = self.span(self.steps - 1, self.world_size - 1) if self.steps else (0, 1)
        return low == high


@dataclass(frozen=True, slots=True, eq=False)
class EpochPlan:
    """One rank's batches of one epoch."""

    epoch: int
    rank: int
    cut: StepPlan
    order: Int64Array | None

    def __len__(self) -> int:
        return self.cut.steps

    def place(self, done: int) -> int:
        """Samples of the global order that are seen or left out after ``done`` steps."""
        return self.cut.start if done == 0 else self.cut.seen_after(done - 1)

    def batch(self, step: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Dataset indices ``[n] int64`` of a step and which of them are padding, ``[n] bool``."""
        start, stop = self.cut.span(step, self.rank)
        where = np.arange(start, stop, dtype=np.int64)
        padding = where >= self.cut.num_samples
        if padding.any():
            where %= self.cut.num_samples
        return (where if self.order is None else self.order[where]), padding
