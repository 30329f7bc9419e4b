"""The library under test; the only file here that imports torchcell_cache."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torchcell_cache as tc
from experiments.benchmarks.workload import Samples, Workload

STORAGES = ("perturbation", "delta", "full")
SHARD_SIZE = 4_096


def make_source(workload: Workload, samples: Samples) -> Any:
    """A perturbation table with two phenotypes."""
    return tc.sources.PerturbationTable(
        workload.base_graph,
        (samples.ids, samples.ptr),
        phenotypes={"fitness": samples.labels[:, 0], "interaction": samples.labels[:, 1]},
    )


def build(root: Path, source: Any, storage: str, num_workers: int) -> tuple[Any, float]:
    """Builds a store from nothing; returns the opened dataset and the seconds that the call took."""
    shutil.rmtree(root, ignore_errors=True)
    start = time.perf_counter()
    dataset = tc.build(
        str(root),
        source=source,
        processor=tc.LazySubgraphRepresentation(),
        storage=storage,
        num_workers=num_workers,
        shard_size=SHARD_SIZE,
    )
    return dataset, time.perf_counter() - start


def build_index(base_graph: Any) -> Any:
    """The incidence index of a base graph."""
    return tc.IncidenceIndex.build(base_graph)


def read_batch(dataset: Any, indices: Sequence[int]) -> Any:
    """A batch that holds everything a step needs except the base graph, which is already on the device."""
    return dataset.read_batch(indices)


def read_samples(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """What torch's and PyG's own loaders call."""
    return dataset.__getitems__(list(indices))
