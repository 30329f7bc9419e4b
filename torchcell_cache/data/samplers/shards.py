"""Samplers that go from shard to shard: whole shards to ranks, and the order of a stream."""

from __future__ import annotations

import itertools
from typing import Any, Unpack

import numpy as np

from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.data.samplers.base import CacheSampler, Common
from torchcell_cache.data.samplers.ranges import Intervals, RankRanges, StepRanges, StreamPlan
from torchcell_cache.data.samplers.shard_order import ShardLayout, ShardOrder
from torchcell_cache.data.view import store_view
from torchcell_cache.errors import SettingError


class StreamSampler(CacheSampler):
    """From shard to shard, a stretch per rank and worker: the order of :class:`~torchcell_cache.StreamingCacheDataset`.

    What is left of an epoch is a list of intervals of the order, and goes on on any number of ranks and workers.
    """

    place_name = "left"

    def __init__(
        self,
        dataset: Any,
        layout: ShardLayout,
        batch_size: int,
        shuffle: bool,
        chunk_size: int = 1,
        buffer: int | None = None,
        whole_shards: bool = False,
        num_workers: int = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(dataset, batch_size, **common)
        self.layout, self.shuffle, self.whole_shards = layout, truth("shuffle", shuffle), whole_shards
        self.chunk_size, self.buffer = whole_number("chunk_size", chunk_size, 1), buffer
        self.streams = max(1, whole_number("num_workers", num_workers, 0))
        self.unit = f"samples in {len(layout.sizes)} shards"
        self._check_steps()

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
        """Shards that a reader of consecutive stretches has open at a time, at most."""
        sizes = self.layout.sizes
        if not self.shuffle or self.buffer is None or not len(sizes):
            return 2
        return min(len(sizes), 2 + -(-self.buffer // max(int(np.median(sizes)), 1)))

    def _plan_of(self, epoch: int, place: Intervals, rank: int) -> StreamPlan:
        order, equal, size = self.order(epoch), self.uneven == "drop_last" or self.drop_last, self.batch_size
        if self.whole_shards:
            ranks = RankRanges.whole(place, self.world_size, order.starts)
        else:
            ranks = RankRanges.cut(place, self.world_size, equal)
        counts = np.diff(ranks.ranks).tolist()
        total = min(counts) if equal else max(counts)
        total -= total % size if self.drop_last else 0
        exact = self.uneven == "exact" and not self.drop_last
        steps = -(-total // size)
        cuts = [StepRanges(each if exact else total, size, steps, self.streams) for each in counts]
        return StreamPlan(epoch, rank, order, ranks, place, cuts)

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

    def __getstate__(self) -> dict[str, Any]:
        # A worker that torch spawns knows nothing of the ranks, and would read the samples of all of them in a stream.
        streams = self.buffer is not None and self.world_size > 1
        known = {"_rank": self.rank, "_world_size": self.world_size} if streams else {}
        return {**self.__dict__, **known}

    def _settings(self) -> dict[str, Any]:
        sizes = {"chunk_size": self.chunk_size, "shuffle_buffer_size": self.buffer}
        return {**super()._settings(), "shuffle": self.shuffle, **(sizes if self.buffer else {})}


class DistributedShardSampler(StreamSampler):
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
        layout = ShardLayout.from_view(store_view(dataset, "DistributedShardSampler needs the shards of"))
        whole = truth("whole_shards", whole_shards)
        super().__init__(
            dataset, layout, batch_size, shuffle, whole_shards=whole, num_workers=num_workers, **common
        )

    def shards(self, epoch: int) -> list[int]:
        """Shards of the epoch in its order; a view's shards without samples are not counted."""
        found: list[int] = self.order(epoch).shards.tolist()
        return found
