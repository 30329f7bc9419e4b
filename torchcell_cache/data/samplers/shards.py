"""Samplers that go from shard to shard: whole shards to ranks, and the order of a stream."""

from __future__ import annotations

import itertools
from typing import Any, Unpack

import numpy as np

from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.data.samplers.base import CacheSampler, Common
from torchcell_cache.data.samplers.ranges import Intervals, RankRanges, StepRanges, StreamPlan
from torchcell_cache.data.samplers.shard_order import ShardLayout, ShardOrder
from torchcell_cache.data.view import StoreView, view_of
from torchcell_cache.errors import SettingError


def store_view(dataset: Any, what: str) -> StoreView:
    """The samples of a store that a dataset stands for; refuses what is no store's."""
    view = view_of(dataset)
    if view is None:
        raise SettingError(
            f"{what} needs the shards of one store: a PreprocessedDataset, a view of one, or torch's Subset of such; "
            f"got {dataset!r:.200}",
            fix="pass the dataset itself, not its length; DistributedCacheSampler takes anything with a length",
        )
    return view


class StreamOrderSampler(CacheSampler):
    """Samplers whose epoch goes from shard to shard, cut into one stretch per rank and worker stream.

    What is left of an epoch is a list of intervals of the order, and goes on on any number of ranks and workers.
    """

    place_name = "left"
    whole_shards = False
    chunk_size = 1
    buffer: int | None = None

    def __init__(
        self,
        dataset: Any,
        layout: ShardLayout,
        batch_size: int,
        shuffle: bool,
        num_workers: int,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(dataset, batch_size, **common)
        self.layout, self.shuffle = layout, truth("shuffle", shuffle)
        self.streams = max(1, whole_number("num_workers", num_workers, 0))
        if self.num_samples and not len(self):
            shards = f"{self.num_samples} samples in {len(layout.sizes)} shards"
            self._refuse_no_batch(f"{shards}, in batches of {batch_size}")

    @property
    def beginning(self) -> Intervals:
        """The whole order."""
        return [[0, self.num_samples]] if self.num_samples else []

    def order(self, epoch: int) -> ShardOrder:
        """The order of an epoch, the same for every number of ranks and workers."""
        keep = self.streams + 2
        return ShardOrder(self.layout, self.seed, epoch, self.shuffle, self.chunk_size, self.buffer, keep)

    @property
    def shards_at_once(self) -> int:
        """Shards that a reader keeps open."""
        return self.order(0).shards_at_once()

    def _plan_of(self, epoch: int, place: Intervals, rank: int, streams: int) -> StreamPlan:
        order, world_size = self.order(epoch), self.world_size
        if self.whole_shards:
            ranks = RankRanges.whole(place, world_size, order.starts)
        else:
            ranks = RankRanges.cut(place, world_size, self.uneven == "drop_last" or self.drop_last)
        totals, steps = self._cut(np.diff(ranks.ranks).tolist())
        cuts = [StepRanges(total, self.batch_size, steps, streams) for total in totals]
        return StreamPlan(epoch, rank, order, ranks, place, cuts)

    def _cut(self, counts: list[int]) -> tuple[list[int], int]:
        """Samples of each rank, padding included, of so many real ones, and steps."""
        fewest, most, size = min(counts), max(counts), self.batch_size
        if self.drop_last:
            return [fewest - fewest % size] * len(counts), fewest // size
        if self.uneven != "exact":
            total = fewest if self.uneven == "drop_last" else most
            return [total] * len(counts), -(-total // size)
        steps = -(-most // size)
        if fewest < steps or (fewest <= (steps - 1) * size and fewest < (steps - 2) * size + 2):
            self._refuse_empty(
                f"ranks have {fewest} to {most} samples: in batches of {size} some rank would get an empty batch"
            )
        return counts, steps

    def _make_plan(self, epoch: int, place: Intervals) -> StreamPlan:
        return self._plan_of(epoch, place, self.rank, self.streams)

    def _steps(self, place: Intervals) -> int:
        return len(self._plan_of(self.epoch, place, 0, self.streams))

    def _read_place(self, place: Any) -> Intervals:
        try:
            pairs: Any = place if isinstance(place, list | tuple) else [None]
            found = [[whole_number("left", a, 0), whole_number("left", b, 0)] for a, b in pairs]
        except (TypeError, ValueError, SettingError):
            found = [[1, 0]]
        flat = [0, *itertools.chain(*found), self.num_samples]
        if any(b < a for a, b in itertools.pairwise(flat)):
            raise SettingError(
                f"not a loader's state: left={place!r:.200}, expected intervals within 0..{self.num_samples}"
            )
        return found

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "shuffle": self.shuffle}


class DistributedShardSampler(StreamOrderSampler):
    """Whole shards to ranks, drawn anew each epoch: each rank (and worker) reads from few files.

    Shards come in a drawn order, the samples of a shard in a drawn order, and that order, a function of (seed,
    epoch) alone, is cut into one equal stretch per rank. A shard on which a cut falls, at most ``world_size - 1`` of them, is
    shared by its neighbours, so that all ranks have the same number of samples to within one; every other shard is read
    by one rank. With ``whole_shards=True`` no shard is ever shared and ranks differ by up to a shard.

    For stores on cold or network disks, where reading a whole file is much cheaper than seeking in all of them, and
    for nodes whose memory does not hold the store. Batches mix the samples of one shard only: see ``docs/sampling.md``.

    Args:
        dataset: A ``PreprocessedDataset``, a view or a ``Subset`` of one.
        batch_size: Samples per rank and step.
        shuffle: Whether shards and their samples are permuted by (seed, epoch).
        whole_shards: Never share a shard: the largest first, each to the rank with the fewest samples. Then ``drop_last``
            leaves out, and ``pad`` repeats, up to a shard's worth of samples per rank; ``exact`` is mostly refused.
        num_workers: Workers per rank that get shards of their own: the loader's ``num_workers``, the same on all ranks.
        common: ``seed``, ``drop_last``, ``rank``, ``world_size``, ``uneven`` of :class:`CacheSampler`.

    Raises:
        SettingError: If an argument is wrong, or a rank would get no batch, or an empty one.

    Example:
        >>> loader = tc.CacheLoader(ds, sampler=tc.DistributedShardSampler(ds, batch_size=4))
        >>> len(loader)
        3
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = True,
        *,
        whole_shards: bool = False,
        num_workers: int = 0,
        **common: Unpack[Common],
    ) -> None:
        self.whole_shards = truth("whole_shards", whole_shards)
        layout = ShardLayout.from_view(store_view(dataset, "DistributedShardSampler"))
        super().__init__(dataset, layout, batch_size, shuffle, num_workers, **common)

    def shards(self, epoch: int) -> list[int]:
        """Shards of the epoch in its order; a view's shards without samples are not counted."""
        found: list[int] = self.order(epoch).shards.tolist()
        return found


class StreamSampler(StreamOrderSampler):
    """The order of a :class:`~torchcell_cache.StreamingCacheDataset`."""

    def __init__(
        self,
        dataset: Any,
        layout: ShardLayout,
        batch_size: int,
        shuffle: bool,
        chunk_size: int,
        buffer: int,
        **common: Unpack[Common],
    ) -> None:
        self.chunk_size = whole_number("chunk_size", chunk_size, 1)
        self.buffer = whole_number("shuffle_buffer_size", buffer, 1)
        super().__init__(dataset, layout, batch_size, shuffle, 0, **common)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that torch spawns knows nothing of the ranks, and would read the samples of all of them.
        known = {"_rank": self.rank, "_world_size": self.world_size} if self.world_size > 1 else {}
        return {**self.__dict__, **known}

    def plan(self, rank: int, streams: int) -> StreamPlan:
        """The epoch's plan for a given number of worker streams; for processes that torch's loader started."""
        return self._plan_of(self.epoch, self._place, rank, streams)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "chunk_size": self.chunk_size, "shuffle_buffer_size": self.buffer}
