"""LitData: one ``bytes`` leaf per sample, its fastest format for a ragged int32 record.

Two read patterns, because its settings exclude each other: by index with ``batch_decode=0`` (otherwise every
random read decodes a window of 256 rows), and in its own chunk-wise shuffled order with windows, which is
what it is made for. The writer is the one behind ``litdata.optimize``, called directly so that starting its
workers is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch_geometric.data import HeteroData

from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.records import FlatBatch, RawRecord, Records, collate_bytes, from_bytes, to_object

# litdata asks PyPI for a newer version of itself; a benchmark must not depend on a network.
os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")
CHUNK_BYTES = "64MB"


class LitDataFlat(Peer):
    """Bytes in, bytes out."""

    name = "LitData"
    requires = "litdata"

    def write(self, records: Records) -> None:
        self._write(records, records.to_bytes)

    def _write(self, records: Records, item: Callable[[int], object]) -> None:
        from litdata.streaming.cache import Cache

        self.root.mkdir(parents=True, exist_ok=True)
        cache = Cache(str(self.root), chunk_bytes=CHUNK_BYTES)
        for i in range(len(records)):
            cache[i] = item(i)
        cache.done()
        cache.merge()

    def open(self) -> None:
        from litdata import StreamingDataset

        self.dataset = StreamingDataset(str(self.root), shuffle=False, batch_decode=0)
        self.shuffled = StreamingDataset(str(self.root), shuffle=True)
        self._stream: Iterator[bytes] | None = None

    def get_raw(self, index: int) -> RawRecord:
        return from_bytes(self.dataset[index])

    def batch_raw(self, indices: Sequence[int]) -> FlatBatch:
        dataset = self.dataset
        return collate_bytes([dataset[i] for i in indices])

    def get_object(self, index: int) -> HeteroData:
        return _object(self.dataset[index])

    def get_objects(self, indices: Sequence[int]) -> list[HeteroData]:
        dataset = self.dataset
        return [_object(dataset[i]) for i in indices]

    def own_order(self, batch_size: int) -> Callable[[], FlatBatch]:
        def next_batch() -> FlatBatch:
            return collate_bytes([self._next() for _ in range(batch_size)])

        return next_batch

    def _next(self) -> bytes:
        # ``iter`` starts a new epoch and its threads, so it is called once per epoch and not once per batch.
        if self._stream is not None:
            item = next(self._stream, None)
            if item is not None:
                return item
        self._stream = iter(self.shuffled)
        return next(self._stream)

    def close(self) -> None:
        self.dataset = self.shuffled = None
        self._stream = None


def _object(buffer: bytes) -> HeteroData:
    arrays = [np.array(array) for array in from_bytes(buffer)]
    return to_object(*(torch.from_numpy(array) for array in arrays))
