"""MosaicML Streaming (MDS): one ``bytes`` column, uncompressed, read with ``LocalDataset``.

``StreamingDataset`` of the same package is slower than ``LocalDataset`` in this use (it adds prefetching from
remote storage), so the faster class is taken.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch_geometric.data import HeteroData

from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.records import FlatBatch, RawRecord, Records, collate_bytes, from_bytes, to_object

SHARD_BYTES = 1 << 26


def _import_base() -> Any:
    """``streaming.base`` without ``streaming/__init__``.

    The package's ``__init__`` imports its vision and text datasets and through them torchvision, which PyPI
    only has for CUDA builds of torch. Reader and writer need none of that, so the parent package is entered
    as an empty module.
    """
    if "streaming" not in sys.modules:
        spec = importlib.util.find_spec("streaming")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        parent = types.ModuleType("streaming")
        parent.__path__ = list(spec.submodule_search_locations)
        parent.__spec__ = importlib.machinery.ModuleSpec("streaming", None, is_package=True)
        sys.modules["streaming"] = parent
    return importlib.import_module("streaming.base")


class MosaicMds(Peer):
    """Bytes in, bytes out."""

    name = "MosaicML MDS"
    requires = "streaming"

    def write(self, records: Records) -> None:
        writer = _import_base().MDSWriter
        with writer(out=str(self.root), columns={"record": "bytes"}, size_limit=SHARD_BYTES) as out:
            for i in range(len(records)):
                out.write({"record": records.to_bytes(i)})

    def open(self) -> None:
        self.dataset = _import_base().LocalDataset(str(self.root))

    def get_raw(self, index: int) -> RawRecord:
        return from_bytes(self.dataset[index]["record"])

    def batch_raw(self, indices: Sequence[int]) -> FlatBatch:
        dataset = self.dataset
        return collate_bytes([dataset[i]["record"] for i in indices])

    def get_object(self, index: int) -> HeteroData:
        arrays = [np.array(array) for array in self.get_raw(index)]
        return to_object(*(torch.from_numpy(array) for array in arrays))

    def get_objects(self, indices: Sequence[int]) -> list[HeteroData]:
        return [self.get_object(i) for i in indices]

    def close(self) -> None:
        self.dataset = None
