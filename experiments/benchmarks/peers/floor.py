"""Not a product: the bare cost of LMDB and of a join, as the floor that no cache on LMDB can go below."""

from __future__ import annotations

from collections.abc import Sequence

import lmdb

from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.records import FlatBatch, RawRecord, Records, collate_bytes, from_bytes
from experiments.benchmarks.report import FLOOR


class BareLmdb(Peer):
    """Uncompressed, unchecked bytes in one LMDB file, one read transaction for everything."""

    name = "bare LMDB (floor)"
    role = FLOOR

    def write(self, records: Records) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        size = 2 * (records.removed.nbytes + 64 * len(records)) + 8192 * len(records) + (16 << 20)
        env = lmdb.open(str(self.root / "data.lmdb"), subdir=False, map_size=size, sync=False, lock=False)
        with env.begin(write=True) as txn:
            for i in range(len(records)):
                txn.put(i.to_bytes(8, "big"), records.to_bytes(i), append=True)
        env.sync(True)
        env.close()

    def open(self) -> None:
        self.env = lmdb.open(
            str(self.root / "data.lmdb"), subdir=False, readonly=True, lock=False, readahead=False
        )
        self.txn = self.env.begin(buffers=True)

    def get_raw(self, index: int) -> RawRecord:
        return from_bytes(bytes(self.txn.get(index.to_bytes(8, "big"))))

    def batch_raw(self, indices: Sequence[int]) -> FlatBatch:
        # Views of the map; ``collate_bytes`` makes the only copy.
        get = self.txn.get
        return collate_bytes([get(i.to_bytes(8, "big")) for i in indices])

    def close(self) -> None:
        self.txn.abort()
        self.env.close()
