"""From decoded records to graphs: the fast counterpart of ``DeletionProcessor.process``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
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
    for item in [np.ones(1, dtype=np.bool_)]:
        return sys.getrefcount(item)
    raise AssertionError


_IDLE = _idle_references()
_POOL_BYTES = 96 << 20
"""Kept for reuse at most: a batch of 32 samples of a yeast-scale graph."""


class MaskPool:
    """Reuses mask buffers of samples that no longer exist.

    A fresh 2.5 MB buffer costs its page faults, ten times what filling it costs. A buffer is handed out again only when
    nothing refers to it any more, and it is filled anew each time, so a mask edited in place never reaches another
    sample.
    """

    def __init__(self, size: int) -> None:
        self.size, self.keep = size, max(4, _POOL_BYTES // max(size, 1))
        self.buffers: list[npt.NDArray[np.bool_]] = []

    def take(self) -> npt.NDArray[np.bool_]:
        """A buffer of ones, ``[size] bool``."""
        for buffer in self.buffers:
            if sys.getrefcount(buffer) == _IDLE:
                buffer.fill(True)
                return buffer
        fresh = np.ones(self.size, dtype=np.bool_)
        if len(self.buffers) < self.keep:
            self.buffers.append(fresh)
        return fresh


class Assembler:
    """Assembles the graphs of structured records."""

    def __init__(
        self,
        processor: DeletionProcessor,
        base_graph: Any,
        topology: Topology,
        removal: Removal | None,
        phenotypes: tuple[str, ...],
        statistics: tuple[str, ...],
        has_removed: bool,
    ) -> None:
        self.processor, self.base_graph, self.topology = processor, base_graph, topology
        self.removal, self.has_removed = removal, has_removed
        self.phenotypes, self.statistics = phenotypes, statistics
        self.shell = processor.make_shell(base_graph, topology)
        self.needs_masks = not isinstance(processor, Perturbation)
        self.pool = MaskPool(topology.size)

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
        names = [()] * len(columns) if unknown is None else unknown
        return [
            self._assemble(columns, k, kept, names[k]) for k, kept in enumerate(self._kept_of_each(columns))
        ]

    def _kept_of_each(self, columns: StructuredColumns) -> Iterator[tuple[Tensor, ...]]:
        count = len(columns)
        if not self.needs_masks:
            yield from [()] * count
        elif self.has_removed or (self.removal is not None and self.removal.by_rule is not None):
            positions, ptr = self.removed(columns)
            yield from (self._kept(positions[a:b]) for a, b in pairwise(ptr.tolist()))
        else:
            yield from (self._kept_by_index(columns, k) for k in range(count))

    def _assemble(
        self, columns: StructuredColumns, k: int, kept: tuple[Tensor, ...], unknown: tuple[str, ...]
    ) -> Any:
        deletion = Deletion(
            columns.ids[columns.ptr[k] : columns.ptr[k + 1]].astype(np.int64),
            columns.values[columns.value_ptr[k] : columns.value_ptr[k + 1]],
            self.phenotypes,
            self.statistics,
            kept,
            unknown,
        )
        return self.processor.assemble(self.base_graph, self.topology, self.shell, deletion)

    def _kept(self, positions: npt.NDArray[Any]) -> tuple[Tensor, ...]:
        buffer = self.pool.take()
        buffer[positions] = False
        return self._views(buffer)

    def _kept_by_index(self, columns: StructuredColumns, k: int) -> tuple[Tensor, ...]:
        """Clear each perturbed node's slice; repeats need no care in a mask."""
        assert self.removal is not None
        index = self.removal.index
        buffer = self.pool.take()
        ids = columns.ids[columns.ptr[k] : columns.ptr[k + 1]]
        for a, b in zip(index.ptr[ids, 0].tolist(), index.ptr[ids, -1].tolist(), strict=True):
            buffer[index.positions[a:b]] = False
        return self._views(buffer)

    def _views(self, buffer: npt.NDArray[np.bool_]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(buffer[d.start : d.stop]) for d in self.topology.domains)
