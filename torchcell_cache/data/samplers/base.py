"""What all samplers share: which rank this is, which epoch runs, how far it got, and how a run goes on elsewhere."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import choice, rank_and_world_size, seed_number, truth, whole_number
from torchcell_cache.core.choices import Uneven
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.view import content_of
from torchcell_cache.errors import SettingError

UNEVEN = get_args(Uneven)
STATE_VERSION = 1
MOST = 2**40
"""Samples of an epoch: more is a mistake, and nothing that an array holds."""
_NAMES = {"num_samples": "samples", "content": "content digest"}


@dataclass(frozen=True, eq=False)
class Plan(abc.ABC):
    """One rank's batches of one epoch, or of what is left of it."""

    epoch: int
    rank: int

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @property
    @abc.abstractmethod
    def has_empty_batch(self) -> bool:
        """Whether some rank gets nothing in some step."""

    @abc.abstractmethod
    def batch(self, step: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Dataset indices ``[n] int64`` of a step and which of them are padding, ``[n] bool``."""

    @abc.abstractmethod
    def place(self, done: int) -> Any:
        """Where the epoch stands, over all ranks, after ``done`` steps; JSON values."""


class Common(TypedDict, total=False):
    """What all samplers take, see :class:`CacheSampler`."""

    seed: int
    drop_last: bool
    rank: int | None
    world_size: int | None
    uneven: Uneven


class CacheSampler(abc.ABC):
    """Batches of an epoch that is a function of (seed, epoch) alone, for this rank; no collective calls.

    Iterating gives lists of indices, so every sampler also serves as ``batch_sampler`` of torch's and PyG's own loaders.
    Each iteration is the next epoch unless :meth:`set_epoch` or :meth:`load_state_dict` was called since the last.

    Args:
        dataset: What is sampled, or its number of samples.
        batch_size: Samples per rank and step.
        seed: Of all that is drawn; the same on all ranks. 0 by default.
        drop_last: Leave out what does not fill a step of full batches, whatever ``uneven`` says. ``False`` by default.
        rank: This process; by default as :func:`rank_and_world_size` finds it, each time an epoch starts.
        world_size: Number of ranks, likewise.
        uneven: What happens to the samples after the last full step: ``drop_last`` (the default), ``pad`` or ``exact``,
            see :class:`DistributedCacheSampler`.

    Raises:
        SettingError: If an argument is wrong, or ranks would get no batch, or an empty one.
    """

    place_name: ClassVar[str] = "samples_seen"
    unit: str = "samples"

    def __init__(
        self,
        dataset: Sized | int,
        batch_size: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Uneven = "drop_last",
    ) -> None:
        self.batch_size, self.seed = whole_number("batch_size", batch_size, 1), seed_number(seed)
        self.dataset = dataset
        if isinstance(dataset, Sized) and getattr(dataset, "ndim", 1) == 0:
            raise SettingError(f"dataset={dataset!r:.200}: expected a dataset, or its number of samples")
        count = len(dataset) if isinstance(dataset, Sized) else dataset
        self.num_samples = whole_number("dataset", count, 0, most=MOST)
        self.drop_last, self.uneven = truth("drop_last", drop_last), choice("uneven", uneven, UNEVEN)
        self._rank, self._world_size = rank, world_size
        self._next_epoch, self._next_place = 0, self.beginning
        self._ended: tuple[int, Any] | None = None  # an epoch that a state had seen to its end
        self._plan: Plan | None = None
        self._done = 0

    # What the kinds of samplers know

    @abc.abstractmethod
    def _plan_of(self, epoch: int, place: Any, rank: int) -> Plan:
        """A rank's batches of an epoch from a place on; as many on every rank."""

    @property
    def beginning(self) -> Any:
        """The place at which an epoch begins, as JSON values."""
        return 0

    @property
    def epoch_size(self) -> int:
        """Samples of a whole epoch, over all ranks."""
        return self.num_samples

    def _settings(self) -> dict[str, Any]:
        """What else decides what is drawn, as JSON values: a state goes on only where these are the same."""
        return {"sampler": type(self).__name__}

    def _check_steps(self) -> None:
        """Refuse what leaves a rank without a batch, or with an empty one."""
        if self.epoch_size and not len(self):
            raise SettingError(
                f"{self.epoch_size} {self.unit} on {self.world_size} ranks leave no batch with "
                f"batch_size={self.batch_size}, uneven={self.uneven!r}, drop_last={self.drop_last}",
                fix="a smaller batch_size (or max_cost), drop_last=False, or uneven='pad'",
            )
        self._checked_plan(0, self.beginning)

    def _checked_plan(self, epoch: int, place: Any) -> Plan:
        plan = self._plan_of(epoch, place, self.rank)
        if plan.has_empty_batch:
            raise SettingError(
                f"uneven='exact' and batch_size={self.batch_size} leave some of {self.world_size} ranks without a sample "
                f"in the last steps of {self.epoch_size} {self.unit}",
                fix="uneven='pad', whose batches mark repeated samples in is_padding, or another batch_size",
            )
        return plan

    # Epochs

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

    def __len__(self) -> int:
        """Steps of a whole epoch, the same on every rank."""
        return len(self._plan_of(self.epoch, self.beginning, 0))

    @property
    def _place(self) -> Any:
        return self._next_place if self._plan is None else self._plan.place(self._done)

    @property
    def steps_left(self) -> int:
        """Steps to the end of the epoch that runs, or of the next one if none does."""
        if self._plan is not None:
            return len(self._plan) - self._done
        return len(self._plan_of(self._next_epoch, self._next_place, 0))

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch; a resumed epoch keeps its place if it is the same one."""
        epoch = whole_number("epoch", epoch, 0)
        if self._ended is not None and epoch == self._ended[0]:
            self._next_epoch, self._next_place = self._ended
        elif epoch != self._next_epoch:
            self._next_epoch, self._next_place = epoch, self.beginning
        self._plan = self._ended = None

    def start_epoch(self) -> Plan:
        """The next epoch's plan; from now on :meth:`state_dict` speaks of this epoch."""
        plan = self._checked_plan(self._next_epoch, self._next_place)
        self._plan, self._ended, self._done = plan, None, 0
        self._next_epoch, self._next_place = self._next_epoch + 1, self.beginning
        return plan

    def note_step(self, plan: Plan, step: int) -> None:
        """Note that the batch of a step was handed over; a plan that is no longer the current one is ignored."""
        if plan is self._plan:
            self._done = step + 1

    def end_epoch(self, plan: Plan) -> None:
        """Note that an epoch was iterated to its end."""
        if plan is self._plan:
            self._plan = None

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.start_epoch()
        for step in range(len(plan)):
            yield plan.batch(step)[0].tolist()
        self.end_epoch(plan)

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, as JSON values; the same on every rank, so one rank's is enough.

        A loader of torch or PyG reads ahead, so with one of those only the epoch is right; call :meth:`note_step`
        yourself, or use ``CacheLoader``.
        """
        stands = {"seed": self.seed, "epoch": self.epoch, self.place_name: self._place}
        return {"version": STATE_VERSION, **stands, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        return {**self._settings(), "num_samples": self.num_samples, "content": self.content}

    @property
    def content(self) -> str | None:
        """Digest of what is sampled, in its order; ``None`` where it is not a store's."""
        return content_of(self.dataset)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, whatever the number of ranks and workers now.

        The seed is taken over; what decides which samples are drawn must be the same. After a state from the end of an
        epoch the next epoch comes.

        Raises:
            SettingError: If the state is of another dataset, of another kind of order, or no state at all.
        """
        mine = {"version": STATE_VERSION, **self._identity()}
        known = {"version", "seed", "epoch"}
        if not isinstance(state, dict) or known - set(state):
            wanted = sorted({*mine, *known, self.place_name})
            raise SettingError(f"not a loader's state: expected {wanted}, got {state!r:.200}")
        wrong = [
            f"{_NAMES.get(name, name)} {state.get(name)!r}, here {mine.get(name)!r}"
            for name in ("version", "sampler", *(n for n in mine if n not in ("version", "sampler")))
            if _differ(state.get(name), mine.get(name))
        ]
        if wrong:
            raise SettingError(
                f"the state was saved with another dataset or order: {'; '.join(wrong)}",
                fix="open the store (and the split) of that run, or start without its state",
            )
        if self.place_name not in state:
            raise SettingError(f"not a loader's state: {self.place_name!r} is missing, got {state!r:.200}")
        other = copy.copy(self)  # taken over once all of the state makes sense
        other.seed, other._plan, other._ended = seed_number(state["seed"]), None, None
        other._next_epoch = whole_number("not a loader's state: epoch", state["epoch"], 0)
        other._next_place = other._read_place(state[self.place_name])
        if other._next_place != self.beginning and other.steps_left == 0:
            other._ended = other._next_epoch, other._next_place
            other._next_epoch, other._next_place = other._next_epoch + 1, self.beginning
        self.__dict__.update(other.__dict__)

    def _read_place(self, place: Any) -> Any:
        """A state's place, checked."""
        return whole_number(f"not a loader's state: {self.place_name}", place, 0, most=self.epoch_size)


def _differ(there: Any, here: Any) -> bool:
    """Whether two values of states differ; a state may hold anything."""
    try:
        return bool(there != here)
    except (TypeError, ValueError, RuntimeError):  # of arrays, of missing values
        return True
