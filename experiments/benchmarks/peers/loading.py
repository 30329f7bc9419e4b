"""Loaders of the peers, each the fastest arrangement we found; all yield flat numpy batches.

A peer without a loader of its own goes through torch's ``DataLoader`` with a batch sampler, so that one call reads a
whole batch, and numpy arrays cross the process boundary, which costs less than tensors do. Stores are opened in the
process that reads: neither SQLite nor LMDB survives a fork.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from torch_geometric.data import HeteroData
from torch_geometric.loader import DataLoader as PygDataLoader

from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.peers.litdata_peer import LitDataFlat
from experiments.benchmarks.peers.torchcell_scheme import TorchcellScheme
from experiments.benchmarks.records import FlatBatch, collate_bytes


class PeerBatches(Dataset[FlatBatch]):
    """Whole batches of a general peer, by lists of indices."""

    def __init__(self, peer_class: type[Peer], root: Path, size: int) -> None:
        self.peer_class, self.root, self.size = peer_class, root, size
        self.peer: Peer | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: Sequence[int]) -> FlatBatch:
        if self.peer is None:
            self.peer = self.peer_class(self.root)
            self.peer.open()
        return self.peer.batch_raw(indices)

    def close(self) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer = None


class SchemeSamples(Dataset[HeteroData]):
    """Samples of torchcell's scheme, one by one, as its dataset gives them."""

    def __init__(self, scheme: TorchcellScheme, size: int) -> None:
        self.scheme, self.size, self.opened = scheme, size, False

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> HeteroData:
        if not self.opened:
            self.scheme.open()
            self.opened = True
        return self.scheme.get(index)

    def close(self) -> None:
        if self.opened:
            self.scheme.close()
            self.opened = False


def peer_loader(peer: Peer, size: int, batch_size: int, num_workers: int) -> tuple[Any, Any]:
    """A loader of shuffled batches over all of a peer's records, and what to close when done with it (or ``None``)."""
    if isinstance(peer, LitDataFlat):
        return _litdata_loader(peer, batch_size, num_workers), None
    data = PeerBatches(type(peer), peer.root, size)
    order = BatchSampler(RandomSampler(range(size)), batch_size, drop_last=True)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        collate_fn=_same,
        persistent_workers=num_workers > 0,
    )
    return loader, data


def scheme_loader(
    scheme: TorchcellScheme, size: int, batch_size: int, num_workers: int
) -> tuple[Any, SchemeSamples]:
    """Stock PyG loading; one batch ahead per worker, since each batch is 1.3 GB of shared memory."""
    data = SchemeSamples(scheme, size)
    ahead = {"prefetch_factor": 1, "persistent_workers": True} if num_workers else {}
    loader = PygDataLoader(data, batch_size=batch_size, shuffle=True, num_workers=num_workers, **ahead)
    return loader, data


def stop_workers(loader: Any) -> None:
    """Ends a loader's workers now; left to the garbage collector, each of LitData's takes torch's timeout of 5 s."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


def _litdata_loader(peer: LitDataFlat, batch_size: int, num_workers: int) -> Any:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(peer.root), shuffle=True, drop_last=True)
    ahead = {"persistent_workers": True} if num_workers else {}
    return StreamingDataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_bytes,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        **ahead,
    )


def _same(value: Any) -> Any:
    return value
