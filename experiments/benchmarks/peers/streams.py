"""Endless shuffled batches of the peers' own streaming classes, all as flat numpy batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.peers.litdata_peer import LitDataFlat
from experiments.benchmarks.peers.loading import peer_loader
from experiments.benchmarks.peers.mds_peer import MosaicMds, _import_base
from experiments.benchmarks.records import FlatBatch, collate_bytes


class LitDataStream:
    """``StreamingDataset(shuffle=True)`` behind ``StreamingDataLoader``: chunk by chunk in its own order."""

    name, note = "LitData", "`StreamingDataset(shuffle=True)`, `StreamingDataLoader`"

    def __init__(self, peer: Peer, size: int, batch_size: int) -> None:
        self.loader, _ = peer_loader(peer, size, batch_size, 0)

    def __iter__(self) -> Iterator[FlatBatch]:
        return iter(self.loader)

    def close(self) -> None:
        self.loader = None


class MosaicStream:
    """``StreamingDataset(shuffle=True)`` of MosaicML, iterated in this process, records collated as bytes."""

    name, note = "MosaicML Streaming", "`StreamingDataset(shuffle=True)`, `py1e`, same block size"

    def __init__(self, peer: Peer, size: int, batch_size: int, block_size: int = 8192) -> None:
        _import_base()
        from streaming.base.dataset import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        self.batch_size = batch_size
        self.dataset: Any = StreamingDataset(
            local=str(peer.root),
            remote=None,
            shuffle=True,
            shuffle_algo="py1e",
            shuffle_block_size=block_size,
            num_canonical_nodes=1,
            batch_size=batch_size,
        )

    def __iter__(self) -> Iterator[FlatBatch]:
        held: list[bytes] = []
        for item in self.dataset:
            held.append(item["record"])
            if len(held) == self.batch_size:
                yield collate_bytes(held)
                held = []

    def close(self) -> None:
        with contextlib.suppress(Exception):  # its threads may have ended already
            self.dataset._executor.shutdown(wait=False)
        self.dataset = None


class MosaicByIndex:
    """MosaicML's ``LocalDataset`` by index, which is faster than its stream where the files are local."""

    name, note = "MosaicML LocalDataset", "by index, full shuffle, `DataLoader`"

    def __init__(self, peer: Peer, size: int, batch_size: int) -> None:
        self.loader, self.closing = peer_loader(peer, size, batch_size, 0)

    def __iter__(self) -> Iterator[FlatBatch]:
        return iter(self.loader)

    def close(self) -> None:
        self.loader = None
        self.closing.close()


STREAMS: dict[type[Peer], tuple[Any, ...]] = {
    LitDataFlat: (LitDataStream,),
    MosaicMds: (MosaicStream, MosaicByIndex),
}
