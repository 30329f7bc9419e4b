"""What the general peers have in common: the same records and the same questions."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from torch_geometric.data import HeteroData

from experiments.benchmarks.records import FlatBatch, RawRecord, Records
from experiments.benchmarks.report import PEER


class Peer(ABC):
    """One way to store compact records.

    A peer is written once and then opened; ``None`` from an ``*_reader`` method means that the peer has no
    natural way to do that (the table then shows a dash).

    Attributes:
        name: Column title.
        requires: Module that must be installed, or ``None``.
        role: ``peer`` or ``floor`` (see :mod:`experiments.benchmarks.report`).
    """

    name: str
    requires: str | None = None
    role: str = PEER

    @classmethod
    def missing(cls) -> str | None:
        """Why this peer cannot run here, or ``None``."""
        if cls.requires is None or importlib.util.find_spec(cls.requires) is not None:
            return None
        return f"{cls.requires} is not installed (see experiments/benchmarks/README.md)"

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def write(self, records: Records) -> None:
        """Stores all records, durable enough to be opened again by another process."""

    @abstractmethod
    def open(self) -> None:
        """Opens what :meth:`write` left behind."""

    @abstractmethod
    def get_raw(self, index: int) -> RawRecord:
        """One record, by index, as numpy arrays."""

    @abstractmethod
    def batch_raw(self, indices: Sequence[int]) -> FlatBatch:
        """A batch by indices as flat arrays."""

    def get_object(self, index: int) -> HeteroData | None:
        """One record as a PyG object."""
        return None

    def get_objects(self, indices: Sequence[int]) -> list[HeteroData] | None:
        """Several records as PyG objects, not yet collated."""
        return None

    def own_order(self, batch_size: int) -> Callable[[], FlatBatch] | None:
        """A function that returns the next batch in the peer's own shuffled order, if it has one."""
        return None

    def close(self) -> None:
        """Lets go of files and threads."""
        return


def directory_bytes(root: Path) -> int:
    """Allocated bytes of all files below ``root`` (a sparse file counts what it occupies)."""
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())
