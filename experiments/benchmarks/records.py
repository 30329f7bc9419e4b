"""The compact records that the general peers store: perturbed genes, labels and the removed gene-gene edges.

The removed positions come from a plain numpy oracle, not from the library under test, and the time to compute
them is not charged to the peers: they get the records for nothing and only have to store and read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch_geometric.data import HeteroData

from experiments.benchmarks.workload import Samples, gene_edge_types

HEAD_BYTES = 3 * 4 + 2 * 4
RawRecord = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Records:
    """Compact samples in memory.

    Attributes:
        perturbed: ``[n, 3] int32``.
        labels: ``[n, 2] float32``.
        removed: Positions in the concatenation of all gene-gene edge types, ``[sum of counts] int32``.
        ptr: Offsets into ``removed``, ``[n + 1] int64``.
    """

    perturbed: np.ndarray
    labels: np.ndarray
    removed: np.ndarray
    ptr: np.ndarray

    def __len__(self) -> int:
        return len(self.perturbed)

    def __getitem__(self, index: int) -> RawRecord:
        return self.perturbed[index], self.labels[index], self.removed[self.ptr[index] : self.ptr[index + 1]]

    def to_bytes(self, index: int) -> bytes:
        """One record as one buffer: three ids, two labels, then the positions."""
        perturbed, labels, removed = self[index]
        return perturbed.tobytes() + labels.tobytes() + removed.tobytes()

    @property
    def payload_bytes(self) -> float:
        """Mean size of a record without any framing."""
        return HEAD_BYTES + 4 * len(self.removed) / len(self)


@dataclass(frozen=True)
class FlatBatch:
    """A batch as raw arrays, ready to be sent to a device."""

    perturbed: np.ndarray
    labels: np.ndarray
    removed: np.ndarray
    ptr: np.ndarray


def from_bytes(buffer: bytes | memoryview) -> RawRecord:
    """Views of one record made by :meth:`Records.to_bytes`."""
    return (
        np.frombuffer(buffer, np.int32, 3),
        np.frombuffer(buffer, np.float32, 2, 12),
        np.frombuffer(buffer, np.int32, -1, HEAD_BYTES),
    )


def collate_bytes(buffers: list[bytes] | list[memoryview]) -> FlatBatch:
    """Collates records that are still bytes: the cheapest way from many buffers to one."""
    removed = np.concatenate([np.frombuffer(b, np.int32, -1, HEAD_BYTES) for b in buffers])
    ptr = np.zeros(len(buffers) + 1, np.int64)
    np.cumsum([(len(b) - HEAD_BYTES) >> 2 for b in buffers], out=ptr[1:])
    head = np.frombuffer(b"".join([b[:HEAD_BYTES] for b in buffers]), np.int32).reshape(-1, 5)
    return FlatBatch(head[:, :3], head[:, 3:].view(np.float32), removed, ptr)


def collate_arrays(records: list[RawRecord]) -> FlatBatch:
    """Collates records that arrive as three arrays each."""
    ptr = np.zeros(len(records) + 1, np.int64)
    np.cumsum([len(r[2]) for r in records], out=ptr[1:])
    return FlatBatch(
        np.stack([r[0] for r in records]),
        np.stack([r[1] for r in records]),
        np.concatenate([r[2] for r in records]),
        ptr,
    )


def to_object(perturbed: torch.Tensor, labels: torch.Tensor, removed: torch.Tensor) -> HeteroData:
    """The compact sample as a PyG object (no edges: those stay in the base graph)."""
    data = HeteroData()
    data["gene"].perturbed = perturbed
    data["gene"].labels = labels
    data["gene"].removed = removed
    return data


def to_typed_object(
    record: RawRecord, edge_types: Sequence[tuple[str, str, str]], starts: np.ndarray
) -> HeteroData:
    """The compact sample with removed positions in the edge type they belong to.

    Args:
        record: Perturbed genes, labels and removed positions, ascending.
        edge_types: The gene-gene edge types.
        starts: Where each begins in the concatenation of all, ``[num_types + 1] int64``.
    """
    perturbed, labels, removed = (torch.from_numpy(np.array(array)) for array in record)
    data = HeteroData()
    data["gene"].perturbed = perturbed
    data["gene"].labels = labels
    cuts = np.searchsorted(record[2], starts).tolist()
    for edge_type, first, last, start in zip(edge_types, cuts, cuts[1:], starts.tolist(), strict=False):
        data[edge_type].removed = removed[first:last] - start
    return data


def make_records(base_graph: HeteroData, samples: Samples) -> Records:
    """Computes the removed positions of every sample with argsort and ``np.unique``: slow and obvious."""
    sources = [base_graph[t].edge_index.numpy() for t in gene_edge_types(base_graph)]
    edges = np.concatenate(sources, axis=1).astype(np.int32)
    num_genes, num_edges = int(base_graph["gene"].num_nodes), edges.shape[1]
    ends = edges.reshape(-1)
    order = np.argsort(ends, kind="stable")
    positions = (order % num_edges).astype(np.int32)
    node_ptr = np.zeros(num_genes + 1, np.int64)
    np.cumsum(np.bincount(ends, minlength=num_genes), out=node_ptr[1:])
    rows = [
        np.unique(np.concatenate([positions[node_ptr[g] : node_ptr[g + 1]] for g in row]))
        for row in samples.perturbed
    ]
    ptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=ptr[1:])
    return Records(samples.perturbed, samples.labels, np.concatenate(rows), ptr)
