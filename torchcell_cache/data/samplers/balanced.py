"""``BalancedCostBatchSampler``: batches that cost the same, so that no rank waits for the one with the large samples."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.core.checks import real_number, real_numbers, truth
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.samplers.base import CacheSampler, Common
from torchcell_cache.data.samplers.order import RowPlan, epoch_order
from torchcell_cache.data.samplers.weighted import Float64Array, per_sample, sum_is_finite
from torchcell_cache.data.view import column_of
from torchcell_cache.errors import SettingError

POOL = 64
"""Batches that are balanced against each other: few enough that their samples differ from epoch to epoch."""
_ORDER = 21
_NONE = np.empty(0, dtype=np.int64)


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


@dataclass(frozen=True, eq=False)
class CostPlan(RowPlan):
    """One rank's batches of one epoch: a step takes the next ``world_size`` of them."""

    costs: Float64Array = field(kw_only=True)

    @property
    def _rest(self) -> Int64Array:
        """Samples of the batches that are too few for all ranks."""
        return np.concatenate([*self.row[self.start + self.cut[0] * self.world_size :], _NONE])

    @property
    def has_empty_batch(self) -> bool:
        """Whether the last step has fewer samples than there are ranks."""
        return self.uneven == "exact" and 0 < len(self._rest) < self.world_size

    def batch(self, step: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Dataset indices ``[n] int64`` of a step and which of them are padding, ``[n] bool``."""
        if step < self.cut[0] or self.uneven == "pad":
            number = self.span(step, self.rank)[0]
            found = self.row[number % self.count]
            return found, np.full(len(found), number >= self.count)
        mine = deal(self.costs[self._rest], self.world_size, len(self._rest))[self.rank]
        return self._rest[mine], np.zeros(len(mine), dtype=np.bool_)


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
    unit = "batches"

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
        name, given = ("costs", costs) if by is None else (by, column_of(dataset, by, "by"))
        base = real_number("base_cost", base_cost, "a number from 0 on")
        fix = "costs= of your own, or a view without those samples"
        self.costs = per_sample(name, real_numbers(name, given) + base, self.num_samples, "costs", fix)
        if not sum_is_finite(self.costs):
            raise SettingError(f"the sum of all {name} is infinite", fix="costs in a larger unit")
        limit = (
            None if max_cost is None else real_number("max_cost", max_cost, "a number above 0", above=True)
        )
        if limit is not None and (dear := self.costs > limit).any():
            worst = int(self.costs.argmax())
            raise SettingError(
                f"{dear.sum()} samples cost more than max_cost={limit}: sample {worst} costs {self.costs[worst]:g}",
                fix=f"max_cost={self.costs.max():g}, or a view without them: dataset[costs <= {limit}]",
            )
        self.max_cost = limit
        self._batches: tuple[tuple[int, int], list[Int64Array]] | None = None
        self._check_steps()

    # Batches

    def batches(self, epoch: int) -> list[Int64Array]:
        """All batches of an epoch, each ``[n] int64``, the same for every number of ranks."""
        key = (self.seed, epoch)
        if self._batches is None or self._batches[0] != key:
            self._batches = (key, self._deal(epoch))
        return self._batches[1]

    def _deal(self, epoch: int) -> list[Int64Array]:
        order = np.arange(self.num_samples)
        if self.shuffle:
            order = epoch_order(self.num_samples, self.seed, epoch, _ORDER)
        # Runs of the order that make about POOL batches each.
        marks = np.arange(len(order), dtype=np.int64) // (POOL * min(self.most, max(len(order), 1)))
        if self.max_cost is not None:
            by_cost = np.floor(np.cumsum(self.costs[order]) / (POOL * self.max_cost)).astype(np.int64)
            marks = np.cumsum(np.r_[0, (np.diff(by_cost) > 0) | (np.diff(marks) > 0)])[: len(order)]
        pools = np.split(order, np.flatnonzero(np.diff(marks)) + 1) if len(order) else []
        return [
            pool[np.array(sorted(batch), dtype=np.int64)]
            for pool in pools
            for batch in self._deal_pool(self.costs[pool])
        ]

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

    @property
    def epoch_size(self) -> int:
        """Batches of the epoch, over all ranks."""
        return len(self.batches(self.epoch))

    def _plan_of(self, epoch: int, place: int, rank: int) -> CostPlan:
        row = self.batches, len(self.batches(epoch)), place
        return CostPlan(epoch, rank, *row, 1, self.world_size, self.uneven, costs=self.costs)

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
