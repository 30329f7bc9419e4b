"""The one global order of an epoch that goes from shard to shard: any stretch of it, in memory bounded by the buffer.

It is a function of (seed, epoch) and four numbers, and knows nothing of ranks or workers: the shards in a drawn order;
within a shard its chunks of consecutive samples in a drawn order; of that row every ``buffer`` samples, one window after
the other, permuted. Without a buffer every shard is permuted in full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.markup import Shown
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.samplers.order import epoch_order

SHARDS, CHUNKS, WINDOWS, WITHIN = 11, 12, 13, 14


class ShardLayout:
    """Which samples lie in which shard: sizes, and dataset indices shard by shard (``None`` if they are 0, 1, 2, ...)."""

    def __init__(self, sizes: Int64Array, members: Int64Array | None = None) -> None:
        present = np.asarray(sizes, dtype=np.int64)
        self.sizes, self.members = present[present > 0], members
        self.starts = offsets(self.sizes)

    @classmethod
    def from_view(cls, view: PreprocessedDataset) -> ShardLayout:
        """The shards of a store, from its manifest, and which samples of a view are in each."""
        starts = view.generation.files.starts
        if view._positions is None:
            return cls(np.diff(starts))
        shards = np.searchsorted(starts, view._positions, side="right") - 1
        order = np.argsort(view._positions, kind="stable").astype(np.int64)
        return cls(np.bincount(shards, minlength=len(starts) - 1), order)

    @classmethod
    def from_runs(cls, num_samples: int, size: int) -> ShardLayout:
        """Runs of ``size`` consecutive samples, where there are no shards."""
        size = min(size, max(num_samples, 1))
        return cls(np.diff(np.minimum(np.arange(0, num_samples + size, size), num_samples)))

    def __len__(self) -> int:
        return int(self.starts[-1])


@dataclass(eq=False)
class ShardOrder:
    """An epoch's order over a layout, permuted if ``shuffle``.

    ``chunk_size`` consecutive samples are moved together before the ``buffer``, the samples permuted together. The order of
    so many (``keep``) windows and shards is remembered.
    """

    layout: ShardLayout
    seed: int
    epoch: int
    shuffle: bool
    chunk_size: int = 1
    buffer: int | None = None
    keep: int = 2
    _known: OrderedDict[tuple[str, int], Int64Array] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.layout)

    @cached_property
    def shards(self) -> Int64Array:
        """Shards in the epoch's order, ``[num_shards] int64``."""
        count = len(self.layout.sizes)
        return epoch_order(count, self.seed, self.epoch, SHARDS) if self.shuffle else np.arange(count)

    @cached_property
    def starts(self) -> Int64Array:
        """Where each of :attr:`shards` begins in the order and, last, its length, ``[num_shards + 1] int64``."""
        return offsets(self.layout.sizes[self.shards])

    def indices(self, start: int, stop: int) -> Int64Array:
        """Dataset indices of a stretch of the order, ``[stop - start] int64``."""
        if not self.shuffle or self.buffer is None:
            places = self._row(start, stop)
        else:
            parts = [np.empty(0, dtype=np.int64)]
            for window in range(start // self.buffer, -(-stop // self.buffer)):
                begin = window * self.buffer
                whole = self._remembered("window", window, self._window)
                parts.append(whole[max(start - begin, 0) : stop - begin])
            places = np.concatenate(parts)
        return places if self.layout.members is None else self.layout.members[places]

    def _window(self, window: int) -> Int64Array:
        assert self.buffer is not None
        start = window * self.buffer
        row = self._row(start, min(start + self.buffer, len(self)))
        return row[epoch_order(len(row), self.seed, self.epoch, WINDOWS, window)]

    def _row(self, start: int, stop: int) -> Int64Array:
        """A stretch of the row of shards, before any window is permuted: places in the layout."""
        parts = [np.empty(0, dtype=np.int64)]
        at = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            begin, end = int(self.starts[at]), int(self.starts[at + 1])
            upto = min(stop, end)
            shard = self._remembered("shard", int(self.shards[at]), self._shard)
            parts.append(shard[start - begin : upto - begin])
            start, at = upto, at + 1
        return np.concatenate(parts)

    def _shard(self, shard: int) -> Int64Array:
        """Places of a shard's samples in the order in which the row has them."""
        first, size = int(self.layout.starts[shard]), int(self.layout.sizes[shard])
        if not self.shuffle:
            return np.arange(first, first + size, dtype=np.int64)
        if self.buffer is None:
            return first + epoch_order(size, self.seed, self.epoch, WITHIN, shard)
        chunk = min(self.chunk_size, size)
        chunks = epoch_order(-(-size // chunk), self.seed, self.epoch, CHUNKS, shard)
        places = chunks[:, None] * chunk + np.arange(chunk, dtype=np.int64)
        flat = places.reshape(-1)
        return first + flat[flat < size]

    def _remembered(self, kind: str, number: int, make: Callable[[int], Int64Array]) -> Int64Array:
        key = (kind, number)
        if key not in self._known:
            self._known[key] = make(number)
            while len(self._known) > 2 * self.keep:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


@dataclass(frozen=True, slots=True)
class ShuffleQuality(Shown):
    """Figures of one epoch's order; a full shuffle of many samples has the value in brackets.

    Attributes:
        mean_displacement: Mean distance between a sample's place in the epoch and in the dataset, as a share of the
            dataset (1/3).
        median_displacement: The median of it (0.293).
        neighbour_distance: Mean distance in the dataset between samples that follow each other in the epoch, as a
            share of the dataset (1/3).
        adjacency: Share of samples followed by a direct neighbour in the dataset (2/n).
        together: Share of samples that are in one batch with their successor in the dataset (batch size/n).
    """

    mean_displacement: float
    median_displacement: float
    neighbour_distance: float
    adjacency: float
    together: float


def shuffle_quality(order: Int64Array, batch_size: int) -> ShuffleQuality:
    """Figures of an order.

    Args:
        order: A permutation, ``[num_samples] int64``.
        batch_size: Samples per batch.
    """
    count = len(order)
    if count < 2:
        return ShuffleQuality(0.0, 0.0, 0.0, 0.0, 0.0)
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    moved = np.abs(place - np.arange(count)) / count
    steps = np.abs(np.diff(order))
    batch = place // min(batch_size, count)
    return ShuffleQuality(
        mean_displacement=float(moved.mean()),
        median_displacement=float(np.median(moved)),
        neighbour_distance=float(steps.mean()) / count,
        adjacency=float((steps == 1).mean()),
        together=float((batch[1:] == batch[:-1]).mean()),
    )
