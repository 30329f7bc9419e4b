"""What reads batches, in this process or in a worker: the only part of a loader that travels to workers."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch_geometric.loader.dataloader import Collater

from torchcell_cache.batch import SharedGraphBatch
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.store.generation import Generation

_NAMED_SAMPLES = 8
_MOST_AHEAD_BYTES = 1 << 28


class SharedReader:
    """Reads shared batches.

    Args:
        generation: The store's generation.
        packed: Give one buffer that crosses a process boundary, instead of the batch.
    """

    def __init__(self, generation: Generation, packed: bool) -> None:
        self.generation, self.packed = generation, packed

    def __getitem__(self, positions: Int64Array) -> Any:
        """The batch of the given store positions."""
        try:
            batch = SharedGraphBatch.read(self.generation, positions)
            return batch.pack() if self.packed else batch
        except Exception as error:
            error.add_note(_reading(self.generation, positions))
            raise


class SampleReader:
    """Reads single samples, transforms them and collates them, as torch's loader does.

    Args:
        generation: The store's generation.
        transform: The dataset's transform, or ``None``.
        collate: Makes a batch of a list of samples.
    """

    def __init__(
        self,
        generation: Generation,
        transform: Callable[..., Any] | None,
        collate: Callable[[list[Any]], Any],
    ) -> None:
        self.generation, self.transform, self.collate = generation, transform, collate

    def __getitem__(self, positions: Int64Array) -> Any:
        """The collated samples at the given store positions."""
        try:
            samples = self.generation.graphs(positions)
            if self.transform is not None:
                samples = [self._transformed(k, sample) for k, sample in zip(positions, samples, strict=True)]
            return self.collate(samples)
        except Exception as error:
            error.add_note(_reading(self.generation, positions))
            raise

    def _transformed(self, position: int, sample: Any) -> Any:
        assert self.transform is not None
        try:
            return self.transform(self.generation.shared_fields.separate(sample))
        except Exception as error:
            error.add_note(f"in the dataset's transform of sample {position}")
            raise


class ShardByShard:
    """A reader for an order that goes from shard to shard: fetches a shard in one go and lets go of those behind.

    The kernel is asked to read the whole file when its first sample is wanted (unless it is huge), so that a slow disk
    sees one sequential read and not a seek per sample. Closing what lies behind keeps the mapped memory bounded.

    Args:
        reader: Reads the batches.
        generation: The store's generation.
        keep: Shards to hold open.
    """

    def __init__(self, reader: Any, generation: Generation, keep: int) -> None:
        self.reader, self.generation, self.keep = reader, generation, keep
        self._open: OrderedDict[int, None] = OrderedDict()

    def __getitem__(self, positions: Int64Array) -> Any:
        """What the reader makes of the given store positions."""
        shards = np.unique(self.generation.files.shard_of(positions)).tolist()
        for shard in shards:
            if shard not in self._open:
                self._fetch(shard)
            self._open[shard] = None
            self._open.move_to_end(shard)
        batch = self.reader[positions]
        while len(self._open) > max(self.keep, len(shards)):
            self.generation.files.close(self._open.popitem(last=False)[0])
        return batch

    def samples(self, positions: Int64Array) -> list[Any]:
        """The reader's result for several samples, where that is a list of them."""
        found: list[Any] = self[positions]
        return found

    def _fetch(self, shard: int) -> None:
        files = self.generation.files
        if files.sizes[shard] <= _MOST_AHEAD_BYTES:
            with contextlib.suppress(OSError):  # advice: whoever reads says what is wrong
                descriptor = os.open(files.paths[shard], os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def close(self) -> None:
        """Let go of all shards that this reader opened."""
        while self._open:
            self.generation.files.close(self._open.popitem()[0])


def pyg_collater(
    follow_batch: Sequence[str] | None, exclude_keys: Sequence[str] | None
) -> Callable[[list[Any]], Any]:
    """PyG's own collate function."""
    collate: Callable[[list[Any]], Any] = Collater([], follow_batch, exclude_keys)
    return collate


def _reading(generation: Generation, positions: Int64Array) -> str:
    named = ", ".join(map(str, positions[:_NAMED_SAMPLES].tolist()))
    more = f" and {len(positions) - _NAMED_SAMPLES} more" if len(positions) > _NAMED_SAMPLES else ""
    return f"while making a batch of samples {named}{more} of {generation.root}"
