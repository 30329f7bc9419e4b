"""A shard order cut into ranks and worker streams, each a stretch of its own: arithmetic on intervals, no collective call.

Every rank gets a stretch of the order and every worker of the rank (its stream) a stretch of that, so that nobody reads
another's shards except where a cut falls. Batches of a rank come from its streams in turn. What is left of an epoch after
any step is a few intervals of the order, whatever the number of ranks and streams, and such intervals are all it takes to
go on with any other number.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.data.samplers.base import Plan
from torchcell_cache.data.samplers.shard_order import ShardOrder

Intervals = list[list[int]]


def joined(intervals: Sequence[Sequence[int]]) -> Intervals:
    """Intervals without overlap in ascending order, neighbours joined; of one within another, what is left of that."""
    times = Counter(itertools.chain(*intervals))
    ends = sorted(end for end, count in times.items() if count % 2)
    return [[start, stop] for start, stop in zip(ends[::2], ends[1::2], strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class RankRanges:
    """Which intervals of an order belong to which rank.

    Attributes:
        pieces: Intervals, rank by rank, ``[num_pieces, 2] int64``.
        ends: Where each piece begins in their row and, last, its length, ``[num_pieces + 1] int64``.
        ranks: Where each rank begins in that row and, last, its end, ``[world_size + 1] int64``.
    """

    pieces: Int64Array
    ends: Int64Array
    ranks: Int64Array

    @classmethod
    def cut(cls, left: Intervals, world_size: int, equal: bool) -> RankRanges:
        """Stretches in the order; ``equal`` leaves out some samples rather than give some ranks one more."""
        pieces = np.array(left, dtype=np.int64).reshape(-1, 2)
        ends = offsets(pieces[:, 1] - pieces[:, 0])
        share, rest = divmod(int(ends[-1]), world_size)
        ranks = [r * share + min(r, 0 if equal else rest) for r in range(world_size + 1)]
        return cls(pieces, ends, np.array(ranks, dtype=np.int64))

    @classmethod
    def whole(cls, left: Intervals, world_size: int, borders: Int64Array) -> RankRanges:
        """Whole shards, the largest first, each to the rank that has the fewest samples so far.

        Graham's rule (SIAM Journal on Applied Mathematics 17, 1969): the fullest rank has at most 4/3 of the least
        possible.
        """
        parts: list[tuple[int, int]] = []
        for start, stop in left:
            inner = borders[(borders > start) & (borders < stop)].tolist()
            parts += itertools.pairwise([start, *inner, stop])
        loads = [(0, rank) for rank in range(world_size)]
        mine: list[list[tuple[int, int]]] = [[] for _ in range(world_size)]
        for part in sorted(parts, key=lambda p: p[0] - p[1]):  # stable: equal ones stay in the order's order
            load, rank = heapq.heappop(loads)
            mine[rank].append(part)
            heapq.heappush(loads, (load + part[1] - part[0], rank))
        pieces = np.array([part for rank in mine for part in sorted(rank)], dtype=np.int64).reshape(-1, 2)
        counts = np.array([sum(b - a for a, b in rank) for rank in mine], dtype=np.int64)
        return cls(pieces, offsets(pieces[:, 1] - pieces[:, 0]), offsets(counts))

    def runs(self, start: int, stop: int) -> Intervals:
        """Intervals of the order behind a stretch of the pieces' row."""
        out: Intervals = []
        at = int(self.ends.searchsorted(start, side="right")) - 1
        while start < stop:
            upto, shift = min(stop, int(self.ends[at + 1])), int(self.pieces[at, 0]) - int(self.ends[at])
            if upto > start:
                out.append([start + shift, upto + shift])
            start, at = max(start, upto), at + 1
        return out


@dataclass(frozen=True, slots=True)
class StepRanges:
    """One rank's samples, padding included, cut into steps; step ``s`` belongs to stream ``s % streams``."""

    total: int
    batch_size: int
    steps: int
    streams: int

    def size(self, step: int) -> int:
        """Samples of a step."""
        before = (self.steps - 1) * self.batch_size
        last = max(self.total - before, 1)  # only the last step may be smaller, unless it would be empty
        if step == self.steps - 1:
            return last
        return self.total - before + self.batch_size - last if step == self.steps - 2 else self.batch_size

    def _next(self, stream: int, done: int) -> int:
        """The first step of a stream that is not among the first ``done`` of all."""
        return stream + -(-max(done - stream, 0) // self.streams) * self.streams

    def _upto(self, step: int) -> int:
        """Samples of a stream's steps before ``step``, which may lie behind its last."""
        stream, count = step % self.streams, step // self.streams
        last_two = range(max(self.steps - 2, 0), min(step, self.steps))
        missing = sum(self.batch_size - self.size(s) for s in last_two if s % self.streams == stream)
        return count * self.batch_size - missing

    def stream_range(self, stream: int, done: int = 0) -> tuple[int, int]:
        """What a stream still has in the rank's stretch once ``done`` steps of all streams are over."""
        *before, own = (self._upto(self._next(k, self.steps)) for k in range(stream + 1))
        start = sum(before)
        return start + self._upto(self._next(stream, done)), start + own

    def span(self, step: int) -> tuple[int, int]:
        """Where a step's samples lie in the rank's stretch."""
        start = self.stream_range(step % self.streams)[0] + self._upto(step)
        return start, start + self.size(step)

    def stretches(self, stream: int, at_once: int = 1) -> Iterator[tuple[range, int, int]]:
        """A stream's steps, so many together, each time with where their samples lie in the rank's stretch."""
        mine = range(stream, self.steps, self.streams)
        for k in range(0, len(mine), at_once):
            steps = mine[k : k + at_once]
            start, stop = self.span(steps[0])
            yield steps, start, stop if at_once == 1 else self.span(steps[-1])[1]


@dataclass(frozen=True, eq=False)
class StreamPlan(Plan):
    """One rank's batches of one epoch, or of what is ``left`` of it: ``ranks`` says which part of the order is whose."""

    order: ShardOrder
    ranks: RankRanges
    left: Intervals
    steps: list[StepRanges]

    def __len__(self) -> int:
        return self.steps[0].steps

    @property
    def mine(self) -> StepRanges:
        """This rank's steps."""
        return self.steps[self.rank]

    @property
    def has_empty_batch(self) -> bool:
        """Whether some rank's last two steps have too few samples for both."""
        return any(
            cut.total < cut.steps or (cut.steps > 1 and cut.size(cut.steps - 2) < 1) for cut in self.steps
        )

    def batch(self, step: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Dataset indices ``[n] int64`` of a step and which of them are padding, ``[n] bool``."""
        return self.take(*self.mine.span(step))

    def take(self, start: int, stop: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Dataset indices of a stretch of the rank's samples and which of them are padding."""
        first, end = self.ranks.ranks[self.rank : self.rank + 2].tolist()
        real = end - first
        runs = self.ranks.runs(min(first + start, end), min(first + stop, end))
        # Padding repeats the rank's own samples, or the first ones of all if it has none.
        count, first = (real, first) if real else (int(self.ranks.ends[-1]), 0)
        at = max(start, real)
        while at < stop:
            again = (at - real) % count
            upto = min(again + stop - at, count)
            runs += self.ranks.runs(first + again, first + upto)
            at += upto - again
        parts = [self.order.indices(a, b) for a, b in runs] or [np.empty(0, dtype=np.int64)]
        return np.concatenate(parts), np.arange(start, stop) >= real

    def place(self, done: int) -> Intervals:
        """Intervals of the order that no rank has read after ``done`` steps; empty at the end of the epoch."""
        if done == 0:
            return joined(self.left)
        if done >= len(self):
            return []
        taken: Intervals = []
        for (first, end), steps in zip(
            itertools.pairwise(self.ranks.ranks.tolist()), self.steps, strict=True
        ):
            for stream in range(steps.streams):
                bounds = steps.stream_range(stream)[0], steps.stream_range(stream, done)[0]
                taken += self.ranks.runs(*(min(first + bound, end) for bound in bounds))
        return joined(self.left + taken)
