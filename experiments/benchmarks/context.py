"""What the sections of the benchmark share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarks.harness import Budget
from experiments.benchmarks.peers.common import Peer
from experiments.benchmarks.peers.torchcell_scheme import TorchcellScheme
from experiments.benchmarks.records import Records
from experiments.benchmarks.report import Report
from experiments.benchmarks.workload import Workload


@dataclass(frozen=True)
class Sizes:
    """How many samples each part gets.

    Attributes:
        samples: The whole data set, for the run on all cores.
        one_core: Samples for the one-core build of each storage.
        peers: Records that the general peers store, and the range from which everybody reads.
        scheme: Samples that torchcell's scheme processes (75-110 per second).
    """

    samples: int
    one_core: dict[str, int]
    peers: int
    scheme: int


@dataclass
class Context:
    """Settings, data and everything that was built so far.

    Attributes:
        report: Where rows go.
        workload: Base graph and samples.
        sizes: How many samples each part gets.
        budget: How long the reading parts measure.
        rounds: Rounds of the parts that build stores.
        workers: Processes of the build on all cores.
        root: Directory for all stores.
        records: The compact records of the general peers.
        peers: The general peers that can run here, by name.
        scheme: torchcell's scheme.
        quick: Whether to leave out intermediate numbers of workers and readers.
        datasets: Our own stores, opened, by storage.
    """

    report: Report
    workload: Workload
    sizes: Sizes
    budget: Budget
    rounds: int
    workers: int
    root: Path
    records: Records
    peers: dict[str, Peer]
    scheme: TorchcellScheme
    quick: bool = False
    datasets: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.workload.seed

    def limit(self, storage: str) -> int:
        """Readers pick from this many samples: what the peers have, or less in a smaller store."""
        return min(len(self.datasets[storage]), self.sizes.peers)
