"""``BalancedCostBatchSampler``: batches that cost the same, so that no rank waits for the one with the large samples."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.core.checks import real_number, real_numbers, truth
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.data.samplers.base import CacheSampler, Common
from torchcell_cache.data.samplers.order import RowPlan, StepPlan, epoch_order
from torchcell_cache.data.samplers.weighted import Float64Array, column_of, per_sample, sum_is_finite
from torchcell_cache.errors import SettingError

POOL = 64
"""Batches that are balanced against each other: few enough that their samples differ from epoch to epoch."""
_ORDER = 21


def deal(costs: Float64Array, bins: int, most: int) -> list[list[int]]:
    """Deal items out to bins of nearly equal cost: the dearest first, each to the cheapest bin that has room.

    Graham's rule (SIAM Journal on Applied Mathematics 17, 1969); among bins that cost the same the one with fewer items.
    ``bins * most`` is at least the number of items.
    """
    out: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0.0, 0, k) for k in range(bins)]
    for item in np.argsort(-costs, kind="stable").tolist():
        load, count, k = heapq.heappop(heap)
        out[k].append(item)
        if count + 1 < most:
            heapq.heappush(heap, (load + float(costs[item]), count + 1, k))
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """An epoch's batches, the same for every number of ranks.

    Attributes:
        indices: Dataset indices, batch after batch, ``[num_samples] int64``.
        ptr: Where each batch begins and, last, the end, ``[num_batches + 1] int64``.
    """

    indices: Int64Array
    ptr: Int64Array

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def batch(self, number: int) -> Int64Array:
        """Indices of a batch."""
        return self.indices[self.ptr[number] : self.ptr[number + 1]]

    def rest(self, number: int) -> Int64Array:
        """Indices of all batches from ``number`` on."""
        return self.indices[self.ptr[number] :]


@dataclass(frozen=True, eq=False)
class CostPlan(RowPlan):
    """One rank's batches of one epoch: a step takes the next ``world_size`` of them."""

    batches: Batches
    costs: Float64Array

    def batch(self, step: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Dataset indices ``[n] int64`` of a step and which of them are padding, ``[n] bool``."""
        cut = self.cut
        if step < cut.full_steps or cut.uneven == "pad":
            number = cut.span(step, self.rank)[0]
            found = self.batches.batch(number % len(self.batches))
            return found, np.full(len(found), number >= len(self.batches))
        rest = self.batches.rest(cut.span(step, 0)[0])
        mine = deal(self.costs[rest], cut.world_size, len(rest))[self.rank]
        return rest[mine], np.zeros(len(mine), dtype=np.bool_)


class BalancedCostBatchSampler(CacheSampler):
    """Batches of nearly equal cost, from stored sizes, without reading a record.

    Each epoch's samples are permuted, and every 64 batches' worth of them is dealt out to batches of equal cost. The list
    of batches is a function of (seed, epoch) and the costs; step after step the ranks take the next ``world_size`` of
    it, so that the batches of a step cost about the same on all ranks, and a run goes on on any other number of ranks.

    Args:
        dataset: A ``PreprocessedDataset``, a view or a ``Subset`` of one; with ``costs``, anything with a length.
        batch_size: Samples per batch: exactly, but for the last 64 batches or fewer, which share what is left evenly;
            with ``max_cost``, at most.
        by: Stored column that tells what a sample costs: ``removed_edges``, ``perturbed_count``, ...
        costs: Costs of your own instead of ``by``, ``[num_samples]``, finite and not negative.
        base_cost: Added to each sample's cost: what one costs however small it is.
        max_cost: Most that a batch may cost; batches then have as many samples as fit.
        shuffle: Whether samples are permuted by (seed, epoch).
        common: ``seed``, ``rank``, ``world_size`` of :class:`CacheSampler`; ``drop_last``, the same as
            ``uneven="drop_last"``; and ``uneven``, what happens to the last batches, fewer than there are ranks:
            ``drop_last`` leaves them out, ``pad`` gives the other ranks a batch from the start of the epoch whose samples
            are all marked in ``is_padding``, ``exact`` deals their samples out to all ranks in smaller batches.

    Raises:
        SettingError: If an argument is wrong, a sample costs more than ``max_cost``, or a rank would get no batch.

    Example:
        >>> sampler = tc.BalancedCostBatchSampler(ds, 4, by="removed_edges")
        >>> sum(len(rows) for rows in sampler)
        12
    """

    place_name = "batches_seen"

    def __init__(
        self,
        dataset: Sized | int,
        batch_size: int | None = None,
        *,
        by: str | None = None,
        costs: npt.ArrayLike | None = None,
        base_cost: float = 0.0,
        max_cost: float | None = None,
        shuffle: bool = True,
        **common: Unpack[Common],
    ) -> None:
        if batch_size is None and max_cost is None:
            raise SettingError("give batch_size= (samples per batch), max_cost= (cost per batch) or both")
        super().__init__(dataset, 1 if batch_size is None else batch_size, **common)
        if batch_size is None:
            self.batch_size = None  # type: ignore[assignment]
        self.uneven = "drop_last" if self.drop_last else self.uneven
        self.most = self.num_samples if batch_size is None else self.batch_size
        self.shuffle = truth("shuffle", shuffle)
        if (by is None) == (costs is None):
            raise SettingError(
                "give by= (a stored column) or costs= (numbers of your own), one of the two",
                fix='BalancedCostBatchSampler(dataset, batch_size, by="removed_edges")',
            )
        name, given = ("costs", costs) if by is None else (by, column_of(dataset, by))
        base = real_number("base_cost", base_cost, "a number from 0 on")
        fix = "costs= of your own, or a view without those samples"
        self.costs = per_sample(name, real_numbers(name, given) + base, self.num_samples, "costs", fix)
        if not sum_is_finite(self.costs):
            raise SettingError(f"the sum of all {name} is infinite", fix="costs in a larger unit")
        self.max_cost = None if max_cost is None else self._checked_limit(max_cost)
        self._batches: tuple[tuple[int, int], Batches] | None = None
        if self.num_samples:
            self._refuse_none(self._plan_of(0, 0, 0))

    def _checked_limit(self, given: Any) -> float:
        limit = real_number("max_cost", given, "a number above 0", above=True)
        if len(self.costs) and float(self.costs.max()) > limit:
            worst, many = int(self.costs.argmax()), int((self.costs > limit).sum())
            raise SettingError(
                f"{many} samples cost more than max_cost={limit}: sample {worst} costs {self.costs[worst]:g}",
                fix=f"max_cost={self.costs.max():g}, or a view without them: dataset[costs <= {limit}]",
            )
        return limit

    # Batches

    def batches(self, epoch: int) -> Batches:
        """All batches of an epoch, the same for every number of ranks."""
        key = (self.seed, epoch)
        if self._batches is None or self._batches[0] != key:
            self._batches = (key, self._deal(epoch))
        return self._batches[1]

    def _deal(self, epoch: int) -> Batches:
        count = self.num_samples
        order = epoch_order(count, self.seed, epoch, _ORDER) if self.shuffle else np.arange(count)
        rows: list[Int64Array] = []
        for pool in self._pools(order):
            costs = self.costs[pool]
            rows += [pool[np.array(sorted(batch), dtype=np.int64)] for batch in self._deal_pool(costs)]
        indices = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        return Batches(indices, offsets(np.array([len(row) for row in rows], dtype=np.int64)))

    def _pools(self, order: Int64Array) -> list[Int64Array]:
        """Runs of the order that make about :data:`POOL` batches each."""
        marks = np.arange(len(order), dtype=np.int64) // (POOL * min(self.most, max(len(order), 1)))
        if self.max_cost is not None:
            by_cost = np.floor(np.cumsum(self.costs[order]) / (POOL * self.max_cost)).astype(np.int64)
            marks = np.cumsum(np.r_[0, (np.diff(by_cost) > 0) | (np.diff(marks) > 0)])[: len(order)]
        return np.split(order, np.flatnonzero(np.diff(marks)) + 1) if len(order) else []

    def _deal_pool(self, costs: Float64Array) -> list[list[int]]:
        fewest = -(-len(costs) // self.most)
        if self.max_cost is None:
            return deal(costs, fewest, -(-len(costs) // fewest))
        bins = max(fewest, int(np.ceil(float(np.cumsum(costs)[-1]) / self.max_cost)), 1)
        while True:
            found = deal(costs, bins, self.most)
            if max(math.fsum(costs[batch]) for batch in found) <= self.max_cost or bins >= len(costs):
                return [batch for batch in found if batch]
            bins += max(1, bins // 32)

    # Epochs

    def _refuse_none(self, plan: CostPlan) -> None:
        cut, left = plan.cut, plan.cut.count - plan.cut.start
        if left and not len(plan):
            self._refuse_no_batch(f"{left} batches", "batch_size or max_cost")
        rest = len(plan.batches.rest(cut.start + cut.full_steps * cut.world_size))
        if self.uneven == "exact" and 0 < rest < cut.world_size:
            self._refuse_empty(f"the last step has {rest} samples for {cut.world_size} ranks")

    def _plan_of(self, epoch: int, place: int, rank: int) -> CostPlan:
        batches = self.batches(epoch)
        cut = StepPlan(len(batches), place, 1, self.world_size, self.uneven)
        return CostPlan(epoch, rank, cut, batches, self.costs)

    def _make_plan(self, epoch: int, place: int) -> CostPlan:
        plan = self._plan_of(epoch, place, self.rank)
        self._refuse_none(plan)
        return plan

    def _steps(self, place: int) -> int:
        return len(self._plan_of(self.epoch, place, 0))

    def _last_place(self) -> int:
        return len(self.batches(self._next_epoch))

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "costs": xxhash.xxh3_128_hexdigest(self.costs.tobytes()),
            "batch_size": self.most,
            "max_cost": self.max_cost,
            "shuffle": self.shuffle,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": None}
