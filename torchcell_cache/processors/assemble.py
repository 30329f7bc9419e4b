"""From decoded records to graphs: the fast counterpart of ``DeletionProcessor.process``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchcell_cache.codec.deletions import StructuredColumns
from torchcell_cache.codec.delta_code import decode_gaps_ragged
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.graph.removal import Removal
from torchcell_cache.graph.topology import Topology
from torchcell_cache.processors.deletion import Deletion, DeletionProcessor
from torchcell_cache.processors.perturbation import Perturbation


def _idle_references() -> int:
    """References that the interpreter counts for a list's item inside a loop over the list and nowhere else."""
    for item in [np.ones(1, dtype=np.uint8)]:
        return sys.getrefcount(item)
    raise AssertionError


_IDLE = _idle_references()
_POOL_BYTES = 96 << 20
"""Kept for reuse at most: a batch of 32 samples of a yeast-scale graph."""


class Buffers:
    """Memory that is handed out again when nothing refers to it any more.

    A fresh 2.5 MB buffer costs its page faults, ten times what filling it costs. Whoever takes one writes all of it, so
    what is edited in place never reaches another sample.
    """

    def __init__(self, keep: int, dtype: npt.DTypeLike = np.uint8) -> None:
        self.keep, self.dtype = keep, dtype
        self.held: list[npt.NDArray[Any]] = []

    def take(self, size: int) -> npt.NDArray[Any]:
        """At least ``size`` elements of undefined content."""
        small = False
        for buffer in self.held:
            if sys.getrefcount(buffer) == _IDLE:
                if len(buffer) >= size:
                    return buffer
                small = True
        if small:  # more than before: it will be the rule from now on
            self.held = [b for b in self.held if len(b) >= size]
        fresh = np.empty(size, dtype=self.dtype)
        if len(self.held) < self.keep:
            self.held.append(fresh)
        return fresh


@dataclass(eq=False)
class Assembler:
    """Assembles the graphs of structured records."""

    processor: DeletionProcessor
    base_graph: Any
    topology: Topology
    removal: Removal | None
    phenotypes: tuple[str, ...]
    statistics: tuple[str, ...]
    has_removed: bool

    def __post_init__(self) -> None:
        self.shell = self.processor.make_shell(self.base_graph, self.topology)
        self.buffers = Buffers(max(4, _POOL_BYTES // max(self.topology.size, 1)), np.bool_)

    def removed(self, columns: StructuredColumns) -> tuple[npt.NDArray[Any], Int64Array]:
        """Removed positions of each record, ascending and unique, and their offsets ``[batch + 1] int64``."""
        if self.has_removed:
            return decode_gaps_ragged(columns.words, columns.word_ptr)
        assert self.removal is not None
        return self.removal.removed(columns.ids, columns.ptr)

    def graphs(
        self, columns: StructuredColumns, unknown: Sequence[tuple[str, ...]] | None = None
    ) -> list[Any]:
        """One graph per record; ``unknown`` are the names that each perturbs and no node has, in no record."""
        nothing: list[tuple[Any, ...]] = [()] * len(columns)
        masks = nothing if isinstance(self.processor, Perturbation) else self._kept(columns)
        ids, values = pairwise(columns.ptr.tolist()), pairwise(columns.value_ptr.tolist())
        out = []
        for (a, b), (c, d), kept, names in zip(ids, values, masks, unknown or nothing, strict=True):
            perturbed, labels = columns.ids[a:b].astype(np.int64), (self.phenotypes, self.statistics)
            deletion = Deletion(perturbed, columns.values[c:d], *labels, kept, names)
            out.append(self.processor.assemble(self.base_graph, self.topology, self.shell, deletion))
        return out

    def _kept(self, columns: StructuredColumns) -> Iterator[tuple[Tensor, ...]]:
        """What each record keeps of every domain; repeats need no care in a mask."""
        if self.has_removed or (self.removal is not None and self.removal.by_rule is not None):
            positions, ptr = self.removed(columns)
            runs = [slice(*ends) for ends in pairwise(ptr.tolist())]
            of_each = range(len(runs) + 1)
        else:
            assert self.removal is not None
            index, ids = self.removal.index, columns.ids
            positions, of_each = index.positions, columns.ptr.tolist()
            runs = list(map(slice, index.ptr[ids, 0].tolist(), index.ptr[ids, -1].tolist()))
        size, domains = self.topology.size, self.topology.domains
        for a, b in pairwise(of_each):
            kept = self.buffers.take(size)
            kept.fill(True)
            for run in runs[a:b]:
                kept[positions[run]] = False
            yield tuple(torch.from_numpy(kept[d.start : d.stop]) for d in domains)
