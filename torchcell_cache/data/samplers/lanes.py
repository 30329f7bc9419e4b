"""A line cut into ranks and lanes, each a stretch of its own: arithmetic on intervals, no collective call.

Every rank gets a stretch of the line and every worker of the rank (its lane) a stretch of that, so that nobody reads
another's shards except where a cut falls. Batches of a rank come from its lanes in turn. What is left of an epoch after
any step is a few intervals of the line, whatever the number of ranks and lanes, and such intervals are all it takes to
go on with any other number.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.data.samplers.line import Line
from torchcell_cache.errors import SettingError

Intervals = list[list[int]]


def merged(intervals: Sequence[Sequence[int]]) -> Intervals:
    """Intervals in ascending order, empty ones gone, neighbours joined."""
    out: Intervals = []
    for start, stop in sorted((int(a), int(b)) for a, b in intervals if b > a):
        if out and out[-1][1] == start:
            out[-1][1] = stop
        else:
            out.append([start, stop])
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """Which intervals of a line belong to which rank.

    Attributes:
        pieces: Intervals, rank by rank, ``[num_pieces, 2] int64``.
        ends: Where each piece begins in their row and, last, its length, ``[num_pieces + 1] int64``.
        ranks: Where each rank begins in that row and, last, its end, ``[world_size + 1] int64``.
    """

    pieces: Int64Array
    ends: Int64Array
    ranks: Int64Array

    @classmethod
    def cut(cls, left: Intervals, world_size: int, equal: bool) -> Shares:
        """Equal stretches, in the order of the line.

        Args:
            left: What there is to share out.
            world_size: Number of ranks.
            equal: Leave out at most ``world_size - 1`` samples at the end rather than give some ranks one more.
        """
        pieces = np.array(left, dtype=np.int64).reshape(-1, 2)
        ends = offsets(pieces[:, 1] - pieces[:, 0])
        share, rest = divmod(int(ends[-1]), world_size)
        extra = 0 if equal else rest
        ranks = np.array([r * share + min(r, extra) for r in range(world_size + 1)], dtype=np.int64)
        return cls(pieces, ends, ranks)

    @classmethod
    def whole(cls, left: Intervals, world_size: int, borders: Int64Array) -> Shares:
        """Whole shards, the largest first, each to the rank that has the fewest samples so far.

        Graham's rule (SIAM Journal on Applied Mathematics 17, 1969): the fullest rank has at most 4/3 of the least
        possible.
        """
        parts = []
        for start, stop in left:
            inner = borders[(borders > start) & (borders < stop)].tolist()
            marks = [start, *inner, stop]
            parts += list(itertools.pairwise(marks))
        loads = [(0, rank) for rank in range(world_size)]
        mine: list[list[tuple[int, int]]] = [[] for _ in range(world_size)]
        for part in sorted(parts, key=lambda p: p[0] - p[1]):  # stable: equal ones stay in the line's order
            load, rank = heapq.heappop(loads)
            mine[rank].append(part)
            heapq.heappush(loads, (load + part[1] - part[0], rank))
        rows = [part for rank in mine for part in sorted(rank)]
        pieces = np.array(rows, dtype=np.int64).reshape(-1, 2)
        counts = np.array([sum(b - a for a, b in rank) for rank in mine], dtype=np.int64)
        return cls(pieces, offsets(pieces[:, 1] - pieces[:, 0]), offsets(counts))

    def runs(self, start: int, stop: int) -> Intervals:
        """Intervals of the line behind a stretch of the pieces' row."""
        out: Intervals = []
        at = int(np.searchsorted(self.ends, start, side="right")) - 1
        while start < stop:
            upto = min(stop, int(self.ends[at + 1]))
            if upto > start:
                shift = int(self.pieces[at, 0]) - int(self.ends[at])
                out.append([start + shift, upto + shift])
            start, at = max(start, upto), at + 1
        return out


@dataclass(frozen=True, slots=True)
class LaneCut:
    """One rank's samples cut into steps, and its steps dealt out to lanes.

    Attributes:
        total: Samples of the rank, padding included.
        batch_size: Samples per step.
        steps: Steps, the same on every rank.
        lanes: Number of lanes; step ``s`` belongs to lane ``s % lanes``.
    """

    total: int
    batch_size: int
    steps: int
    lanes: int

    def size(self, step: int) -> int:
        """Samples of a step."""
        if step < self.steps - 2:
            return self.batch_size
        before = (self.steps - 1) * self.batch_size
        if self.total > before:  # only the last step may be smaller
            return self.batch_size if step < self.steps - 1 else self.total - before
        rest = self.total - (self.steps - 2) * self.batch_size
        return rest - 1 if step == self.steps - 2 else 1

    def _upto(self, step: int) -> int:
        """Samples of a lane's steps before ``step``, which may lie behind its last."""
        lane, count = step % self.lanes, step // self.lanes
        missing = sum(
            self.batch_size - self.size(s)
            for s in (self.steps - 2, self.steps - 1)
            if 0 <= s < step and s % self.lanes == lane
        )
        return count * self.batch_size - missing

    def lane_start(self, lane: int) -> int:
        """Where a lane begins in the rank's stretch."""
        return sum(self._upto(self._behind(k)) for k in range(lane))

    def _behind(self, lane: int) -> int:
        """The first step of a lane that does not exist any more."""
        return lane + -(-max(self.steps - lane, 0) // self.lanes) * self.lanes

    def lane_span(self, lane: int, done: int = 0) -> tuple[int, int]:
        """What a lane still has in the rank's stretch once ``done`` steps of all lanes are over."""
        start = self.lane_start(lane)
        begun = lane + -(-max(done - lane, 0) // self.lanes) * self.lanes
        return start + self._upto(begun), start + self._upto(self._behind(lane))

    def span(self, step: int) -> tuple[int, int]:
        """Where a step's samples lie in the rank's stretch."""
        start = self.lane_start(step % self.lanes) + self._upto(step)
        return start, start + self.size(step)

    def stretches(self, lane: int) -> Iterator[tuple[range, int, int]]:
        """A lane's steps, each with where its samples lie in the rank's stretch."""
        for step in range(lane, self.steps, self.lanes):
            yield (range(step, step + 1), *self.span(step))

    def singles(self, lane: int, count: int) -> Iterator[tuple[range, int, int]]:
        """The same for steps of one sample, several at a time."""
        start, stop = self.lane_span(lane)
        for at in range(start, stop, count):
            upto = min(at + count, stop)
            first, last = (lane + (k - start) * self.lanes for k in (at, upto))
            yield range(first, last, self.lanes), at, upto


@dataclass(frozen=True, eq=False)
class LanePlan:
    """One rank's batches of one epoch, or of what is left of it.

    Attributes:
        epoch: Number of the epoch.
        rank: This rank.
        line: The epoch's order.
        shares: Which part of it is whose.
        batch_size: Samples per rank and step.
        lanes: Lanes per rank.
        uneven: What happens where ranks have different numbers of samples.
        drop_last: Leave out what does not fill a batch on every rank.
        left: What there was to share out.
    """

    epoch: int
    rank: int
    line: Line
    shares: Shares
    batch_size: int
    lanes: int
    uneven: str
    drop_last: bool
    left: Intervals

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.shares.ranks) - 1

    def __len__(self) -> int:
        return self.cuts[0].steps

    def has(self, rank: int) -> int:
        """Samples of a rank, without padding."""
        return int(self.shares.ranks[rank + 1] - self.shares.ranks[rank])

    @cached_property
    def cuts(self) -> list[LaneCut]:
        """How each rank's samples are cut.

        Raises:
            SettingError: If ``exact`` would leave a rank an empty batch.
        """
        counts = np.diff(self.shares.ranks)
        fewest, most, size = int(counts.min()), int(counts.max()), self.batch_size
        if self.drop_last:
            totals, steps = [fewest - fewest % size] * len(counts), fewest // size
        elif self.uneven == "exact":
            totals, steps = counts.tolist(), -(-most // size)
            if fewest < steps or (fewest <= (steps - 1) * size and fewest < (steps - 2) * size + 2):
                raise SettingError(
                    f"with uneven='exact' ranks have {fewest} to {most} samples: in batches of {size} some rank would get "
                    "an empty batch",
                    fix="uneven='pad', whose batches mark repeated samples in is_padding, or another batch_size",
                )
        else:
            total = fewest if self.uneven == "drop_last" else most
            totals, steps = [total] * len(counts), -(-total // size)
        return [LaneCut(total, size, steps, self.lanes) for total in totals]

    def batch(self, step: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Dataset indices ``[n] int64`` of a step and which of them are padding, ``[n] bool``."""
        return self.take(*self.cuts[self.rank].span(step))

    def take(self, start: int, stop: int) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Dataset indices of a stretch of the rank's samples and which of them are padding."""
        real, first = self.has(self.rank), int(self.shares.ranks[self.rank])
        runs = self.shares.runs(first + min(start, real), first + min(stop, real))
        # Padding repeats the rank's own samples, or the first ones of all if it has none.
        count, first = (real, first) if real else (int(self.shares.ends[-1]), 0)
        at = max(start, real)
        while at < stop:
            again = (at - real) % count
            upto = min(again + stop - at, count)
            runs += self.shares.runs(first + again, first + upto)
            at += upto - again
        parts = [self.line.indices(a, b) for a, b in runs]
        found = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return found, np.arange(start, stop) >= real

    def place(self, done: int) -> Intervals:
        """Intervals of the line that no rank has read after ``done`` steps; empty at the end of the epoch."""
        if done == 0:
            return merged(self.left)
        if done >= len(self):
            return []
        taken = []
        for rank, cut in enumerate(self.cuts):
            first, count = int(self.shares.ranks[rank]), self.has(rank)
            for lane in range(self.lanes):
                start, _ = cut.lane_span(lane)
                stop, _ = cut.lane_span(lane, done)
                taken += self.shares.runs(first + min(start, count), first + min(stop, count))
        return without(self.left, merged(taken))


def without(left: Intervals, taken: Intervals) -> Intervals:
    """What of ``left`` is not in ``taken``; both ascending and without overlap."""
    out: Intervals = []
    for start, stop in merged(left):
        for a, b in taken:
            if b <= start or a >= stop:
                continue
            if a > start:
                out.append([start, a])
            start = max(start, b)
        if start < stop:
            out.append([start, stop])
    return merged(out)
