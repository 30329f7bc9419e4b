"""PyG ``OnDiskDataset`` (SQLite) with a schema of tensors, its best setting (without a schema it pickles).

The rocksdb backend is left out: it does not work in PyG 2.8.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch_geometric.data import HeteroData, OnDiskDataset

from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.records import FlatBatch, RawRecord, Records, collate_arrays, to_object

SCHEMA = {
    "perturbed": {"dtype": torch.int32, "size": (-1,)},
    "labels": {"dtype": torch.float32, "size": (-1,)},
    "removed": {"dtype": torch.int32, "size": (-1,)},
}
INSERT_ROWS = 2_000


class CompactOnDisk(OnDiskDataset):
    """Rows are dictionaries of three tensors; they become a HeteroData only when asked for one."""

    def __init__(self, root: str) -> None:
        super().__init__(root, schema=SCHEMA, log=False)

    def serialize(self, data: Any) -> Any:
        return data

    def deserialize(self, data: dict[str, torch.Tensor]) -> HeteroData:
        return to_object(data["perturbed"], data["labels"], data["removed"])


class OnDisk(Peer):
    """Single reads by primary key; batches by ``multi_get``, which is one SQL join."""

    name = "PyG OnDiskDataset"

    def write(self, records: Records) -> None:
        dataset = CompactOnDisk(str(self.root))
        for start in range(0, len(records), INSERT_ROWS):
            rows = [records[i] for i in range(start, min(start + INSERT_ROWS, len(records)))]
            dataset.extend([dict(zip(SCHEMA, map(torch.from_numpy, row), strict=True)) for row in rows])
        dataset.close()

    def open(self) -> None:
        self.dataset = CompactOnDisk(str(self.root))
        # SQLite maps the file instead of reading it page by page; costs nothing and helps a little.
        self.dataset.db.cursor.execute("PRAGMA mmap_size=17179869184")

    def get_raw(self, index: int) -> RawRecord:
        return _arrays(self.dataset.db.get(index))

    def batch_raw(self, indices: Sequence[int]) -> FlatBatch:
        # One join beats 28 single reads on a store of some size (0.98 ms against 1.1-1.2 ms at 30,000 rows).
        return collate_arrays([_arrays(row) for row in self.dataset.db.multi_get(indices)])

    def get_object(self, index: int) -> HeteroData:
        return self.dataset.get(index)

    def get_objects(self, indices: Sequence[int]) -> list[HeteroData]:
        return self.dataset.multi_get(indices)

    def close(self) -> None:
        self.dataset.close()


def _arrays(row: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return row["perturbed"].numpy(), row["labels"].numpy(), row["removed"].numpy()
