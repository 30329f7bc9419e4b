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
        progress=False,
    )
    return dataset, time.perf_counter() - start


def build_shards(root: Path, source: Any, storage: str, num_workers: int, shard_size: int) -> Any:
    """A store with shards of a given size."""
    shutil.rmtree(root, ignore_errors=True)
    processor = tc.LazySubgraphRepresentation()
    settings = {"storage": storage, "num_workers": num_workers, "shard_size": shard_size}
    return tc.build(str(root), source=source, processor=processor, progress=False, **settings)


def push(root: Path, url: str, options: dict[str, Any]) -> None:
    """Puts a store into a bucket."""
    tc.push(root, url, storage_options=options, progress=False)


def open_remote(url: str, cache_dir: str, options: dict[str, Any]) -> Any:
    """Opens a store in a bucket."""
    return tc.PreprocessedDataset(url, cache_dir=cache_dir, storage_options=options)


def build_index(base_graph: Any) -> Any:
    """The incidence index of a base graph."""
    return tc.IncidenceIndex.build(base_graph)


def read_batch(dataset: Any, indices: Sequence[int]) -> Any:
    """A batch that holds everything a step needs except the base graph, as the one buffer that goes to the device.

    Without ``pack`` a batch is lazy: the buffer would be made by ``.to(device)``, outside of what is timed.
    """
    batch = dataset.read_batch(indices)
    batch.pack()
    return batch


def loader(dataset: Any, limit: int, batch_size: int, num_workers: int, context: str | None = None) -> Any:
    """Shuffled batches of the first ``limit`` samples."""
    return tc.CacheLoader(
        dataset.index_select(range(limit)),
        batch_size,
        shuffle=True,
        num_workers=num_workers,
        drop_last=True,
        persistent_workers=num_workers > 0,
        multiprocessing_context=context,
    )


def stream(dataset: Any, batch_size: int, buffer: int) -> Any:
    """The samples from shard to shard through a shuffle buffer."""
    return tc.StreamingCacheDataset(dataset, batch_size, shuffle_buffer_size=buffer, drop_last=True)


def stream_source(source: Any, buffer: int) -> Any:
    """Samples straight from a source, masks and all, nothing stored."""
    return tc.StreamingCacheDataset.from_source(
        source, tc.LazySubgraphRepresentation(), shuffle_buffer_size=buffer
    )


def by_shard(dataset: Any, batch_size: int) -> Any:
    """Batches of one shard after the other, each shard permuted."""
    return tc.CacheLoader(dataset, sampler=tc.DistributedShardSampler(dataset, batch_size, drop_last=True))


def forget_buffers(batch: Any) -> None:
    """Makes the next expansion write into memory that was never used."""
    batch.on_device.pool.clear()


def read_samples(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """What torch's and PyG's own loaders call."""
    return dataset.__getitems__(list(indices))


def open_store(root: Path) -> Any:
    """Opens a finished store."""
    return tc.PreprocessedDataset(str(root))


def warm_imports() -> None:
    """Imports what reading needs, so that memory of code is not counted as memory of data."""
    import torch_geometric.data

    assert torch_geometric.data.Dataset
    import torchcell_cache.batch.deletions

    assert tc.PreprocessedDataset
    assert torchcell_cache.batch.deletions
