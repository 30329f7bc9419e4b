"""Who reads which samples: one global order per epoch, cut into steps and ranks without a single collective call.

The order is a function of (seed, epoch) alone. A step takes the next ``world_size * batch_size`` samples of it, rank 0
the first ``batch_size`` of them: the ranks' batches behind each other, step after step, are the global order. What has
been seen is therefore always a prefix, so one number resumes an epoch on any other number of ranks or batch size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from typing import Any

import torch

from torchcell_cache.errors import SettingError
from torchcell_cache.loading.epoch_plan import EpochPlan, StepPlan, epoch_order
from torchcell_cache.loading.view import view_of
from torchcell_cache.processors.base import choice
from torchcell_cache.record import Int64Array

UNEVEN = ("drop_last", "pad", "exact")
STATE_VERSION = 1


def rank_and_world_size(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Rank and number of ranks: as given, of ``torch.distributed``, of ``RANK``/``WORLD_SIZE``, or (0, 1).

    Raises:
        SettingError: If only one of the two is known, or they make no sense.
    """
    if (rank is None) != (world_size is None):
        raise SettingError(f"rank={rank} and world_size={world_size}: give both or neither")
    origin = "rank=, world_size="
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        origin = "RANK, WORLD_SIZE"
        rank, world_size = _environment("RANK"), _environment("WORLD_SIZE")
        if rank is None and world_size in (None, 1):
            return 0, 1
        if rank is None or world_size is None:
            raise SettingError(
                f"the environment has RANK={rank} and WORLD_SIZE={world_size}: every rank would read the same samples",
                fix="start with torchrun, or pass rank= and world_size=",
            )
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


class DistributedCacheSampler:
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
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise SettingError(f"batch_size={batch_size!r}: expected a whole number from 1 on")
        self.dataset = dataset
        self.num_samples = dataset if isinstance(dataset, int) else len(dataset)
        self.batch_size, self.shuffle, self.seed = batch_size, bool(shuffle), int(seed)
        self.drop_last, self.uneven = bool(drop_last), choice("uneven", uneven, UNEVEN)
        self._rank, self._world_size = rank, world_size
        self._next_epoch, self._next_start = 0, 0
        self._plan: EpochPlan | None = None
        self._seen = 0
        self._order: tuple[tuple[int, int], Int64Array] | None = None
        if self.num_samples and not len(self):
            raise SettingError(
                f"{self.num_samples} samples in batches of {batch_size} on {self.world_size} ranks leave no batch "
                f"with uneven={uneven!r}, drop_last={drop_last}",
                fix="a smaller batch_size, drop_last=False, or uneven='pad'",
            )
        self._refuse_empty(self.cut())

    @staticmethod
    def _refuse_empty(cut: StepPlan) -> None:
        if cut.has_empty_batch():
            raise SettingError(
                f"with uneven='exact', {cut.num_samples - cut.start} samples in batches of {cut.batch_size} leave some "
                f"of {cut.world_size} ranks without a sample in the last step",
                fix="uneven='pad', whose batches mark repeated samples in is_padding, or another batch_size",
            )

    @property
    def rank(self) -> int:
        """This process's rank."""
        return rank_and_world_size(self._rank, self._world_size)[0]

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return rank_and_world_size(self._rank, self._world_size)[1]

    @property
    def epoch(self) -> int:
        """The epoch that runs, or the next one if none has started or the last has ended."""
        return self._next_epoch if self._plan is None else self._plan.epoch

    def cut(self, start: int = 0) -> StepPlan:
        """How an epoch is cut into steps from the ``start``-th sample of its order on."""
        return StepPlan(
            self.num_samples, start, self.batch_size, self.world_size, self.uneven, self.drop_last
        )

    def __len__(self) -> int:
        """Steps of a whole epoch, the same on every rank."""
        return self.cut().steps

    @property
    def steps_left(self) -> int:
        """Steps to the end of the epoch that runs, or of the next one if none does."""
        return self.cut(self._next_start if self._plan is None else self._seen).steps

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch; a resumed epoch keeps its place if it is the same one."""
        if epoch != self._next_epoch:
            self._next_epoch, self._next_start = int(epoch), 0
        self._plan = None

    def start_epoch(self) -> EpochPlan:
        """The next epoch's plan; from now on :meth:`state_dict` speaks of this epoch."""
        epoch, start = self._next_epoch, self._next_start
        rank, _ = rank_and_world_size(self._rank, self._world_size)
        cut = self.cut(start)
        self._refuse_empty(cut)
        plan = EpochPlan(epoch, rank, cut, self._permutation(epoch) if self.shuffle else None)
        self._plan, self._seen = plan, start
        self._next_epoch, self._next_start = epoch + 1, 0
        return plan

    def _permutation(self, epoch: int) -> Int64Array:
        key = (self.seed, epoch)
        if self._order is None or self._order[0] != key:
            self._order = (key, epoch_order(self.num_samples, self.seed, epoch))
        return self._order[1]

    def note_step(self, plan: EpochPlan, step: int) -> None:
        """Note that the batch of a step was handed over; a plan that is no longer the current one is ignored."""
        if plan is self._plan:
            self._seen = plan.cut.seen_after(step)

    def end_epoch(self, plan: EpochPlan) -> None:
        """Note that an epoch was iterated to its end."""
        if plan is self._plan:
            self._plan = None

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.start_epoch()
        for step in range(len(plan)):
            yield plan.batch(step)[0].tolist()
        self.end_epoch(plan)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None}

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, as JSON values; the same on every rank, so one rank's is enough.

        A loader of torch or PyG reads ahead, so with one of those only the epoch is right; call :meth:`note_step`
        yourself, or use ``CacheLoader``.
        """
        running = self._plan is not None
        return {
            "version": STATE_VERSION,
            "seed": self.seed,
            "epoch": self.epoch,
            "samples_seen": self._seen if running else self._next_start,
            "shuffle": self.shuffle,
            "num_samples": self.num_samples,
            "content": self.content,
        }

    @property
    def content(self) -> str | None:
        """Digest of what is sampled, in its order; ``None`` where it is not a store's."""
        view = None if isinstance(self.dataset, int) else view_of(self.dataset)
        return None if view is None else view.digest

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, whatever the number of ranks, workers and the batch size now.

        The seed is taken over; everything else must be the same.

        Raises:
            SettingError: If the state is of another dataset, of another kind of order, or no state at all.
        """
        mine = self.state_dict()
        if not isinstance(state, dict) or set(mine) - set(state):
            raise SettingError(f"not a loader's state: expected {sorted(mine)}, got {state!r:.200}")
        names = {
            "version": "version",
            "num_samples": "samples",
            "content": "content digest",
            "shuffle": "shuffle",
        }
        wrong = [
            f"{text} {state[name]!r}, here {mine[name]!r}"
            for name, text in names.items()
            if state[name] != mine[name]
        ]
        if wrong:
            raise SettingError(
                f"the state was saved with another dataset or order: {'; '.join(wrong)}",
                fix="open the store (and the split) of that run, or start without its state",
            )
        self.seed, self._plan = int(state["seed"]), None
        self._next_epoch, self._next_start = int(state["epoch"]), int(state["samples_seen"])
