"""The three ways to get from knock-outs to batches; all give the same samples in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.data import Dataset
from torch_geometric.loader import DataLoader

import torchcell_cache as tc
from experiments.train.preemption import ignore
from torchcell_cache.errors import CacheNotFoundError

MODES = ("on_the_fly", "preprocessed", "shared")


def tiny_source(num_samples: int = 40) -> tc.PerturbationTable:
    """Random knock-outs of a graph of two dozen genes."""
    return tc.testing.tiny_source(num_samples, tc.testing.tiny_graph(24))


class OnTheFly(Dataset):  # type: ignore[type-arg]
    """Processes a sample whenever it is asked for, as training without a cache does."""

    def __init__(self, source: tc.PerturbationTable, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices
        self.processor = tc.LazySubgraphRepresentation()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        sample = self.source[int(self.indices[index])]
        return self.processor.process(self.source.base_graph, sample)


class StockLoader:
    """PyG's own ``DataLoader`` over the order of a ``DistributedCacheSampler``, resumable in the middle of an epoch."""

    def __init__(
        self, dataset: Any, sampler: tc.DistributedCacheSampler, num_workers: int, source_indices: np.ndarray
    ) -> None:
        self.dataset, self.sampler, self.num_workers = dataset, sampler, num_workers
        self.batch_sampler = sampler
        self.source_indices, self.indices = source_indices, source_indices[:0]

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        plan = self.sampler.start_epoch()
        # On several ranks the last step of an evaluation may leave a rank without a sample.
        chosen = [indices for k in range(len(plan)) if (indices := plan.batch(k)[0].tolist())]
        loader = DataLoader(
            self.dataset,
            batch_sampler=chosen,
            num_workers=self.num_workers,
            follow_batch=["phenotype_values"],
            worker_init_fn=quiet_worker,
        )
        for step, batch in enumerate(loader):
            self.sampler.note_step(plan, step)
            self.indices = self.source_indices[chosen[step]]
            yield batch
        self.sampler.end_epoch(plan)

    @property
    def steps_left(self) -> int:
        return self.sampler.steps_left

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """What a run trains on."""

    base_graph: Any
    train: Any
    validation: Any
    label: str
    column: int


def load_data(cfg: DictConfig, rank: int, world_size: int, device: torch.device) -> Data:
    """Base graph and loaders of the configured mode; one process alone builds the store if there is none."""
    if cfg.mode not in MODES:
        raise SystemExit(f"mode={cfg.mode!r} is none of {', '.join(MODES)}")
    if cfg.mode == "on_the_fly":
        source = instantiate(cfg.data.source)
        whole: Any = OnTheFly(source, np.arange(len(source)))
        table, base_graph = source.table, source.base_graph
    else:
        whole = open_store(cfg, world_size)
        table, base_graph = whole.generation.table, whole.base_graph
    if cfg.data.label not in table.phenotypes:
        raise SystemExit(f"data.label={cfg.data.label!r}: the source has the phenotypes {table.phenotypes}")
    column = table.phenotypes.index(cfg.data.label)
    train, validation = _parts(cfg, whole, _labelled(table, column))
    parts = []
    for indices, shuffle in ((train, True), (validation, False)):
        part = OnTheFly(whole.source, indices) if isinstance(whole, OnTheFly) else whole.index_select(indices)
        sampler = tc.DistributedCacheSampler(
            part,
            cfg.batch_size,
            shuffle,
            seed=cfg.seed,
            rank=rank,
            world_size=world_size,
            uneven="drop_last" if shuffle else "exact",
        )
        if cfg.mode == "shared":
            parts.append(
                tc.CacheLoader(
                    part,
                    sampler=sampler,
                    num_workers=cfg.num_workers,
                    device=device,
                    worker_init_fn=quiet_worker if cfg.num_workers else None,
                )
            )
        else:
            parts.append(StockLoader(part, sampler, cfg.num_workers, indices))
    return Data(base_graph, parts[0], parts[1], cfg.data.label, column)


def targets(batch: Any, data: Data) -> torch.Tensor:
    """The label of each sample, the mean where it was measured several times, ``[batch] float32``."""
    if isinstance(batch, tc.SharedGraphBatch):
        return batch.labels(data.label)
    gene = batch["gene"]
    wanted = (gene.phenotype_type_indices == data.column) & ~gene.phenotype_values.isnan()
    owner, values = gene.phenotype_values_batch[wanted], gene.phenotype_values[wanted]
    total = values.new_zeros(batch.num_graphs).index_add_(0, owner, values)
    count = values.new_zeros(batch.num_graphs).index_add_(0, owner, torch.ones_like(values))
    return total / count


def open_store(cfg: DictConfig, world_size: int) -> Any:
    """Open the store, or its verified copy in the node-local directory ``stage``.

    One process alone builds a store that is not there. Of several ranks none does: all raise the same error, unless
    ``wait`` says how long a build somewhere else may take. No collective calls: a copy of many gigabytes may take longer
    than a process group waits.

    Raises:
        CacheError: If there is no store, or it cannot be staged.
    """
    root, wait = Path(os.fspath(cfg.root)), False if cfg.wait is None else cfg.wait
    if world_size == 1 and not wait:
        try:
            tc.PreprocessedDataset(root)
        except CacheNotFoundError:
            print(f"no store at {root} yet: building it, once", flush=True)
            source = instantiate(cfg.data.source)
            tc.build(
                root,
                source=source,
                processor=tc.LazySubgraphRepresentation(),
                storage=cfg.storage,
                progress=bool(cfg.progress),
            )
    if cfg.stage is not None:
        root = tc.stage(root, Path(os.fspath(cfg.stage)), keep=cfg.stage_keep, wait=wait)
        print(f"reading the copy {root}", flush=True)
    return tc.PreprocessedDataset(root, wait=wait)


def sample_indices(loader: Any, batch: Any) -> list[int]:
    """Source indices of the samples of the batch that a loader has just given, in its order."""
    indices = batch.indices if isinstance(batch, tc.SharedGraphBatch) else loader.indices
    found: list[int] = indices.tolist()
    return found


def quiet_worker(_: int) -> None:
    """A loader's worker leaves signals to its rank."""
    ignore()


def _labelled(table: Any, column: int) -> np.ndarray:
    owner = np.repeat(np.arange(len(table)), np.diff(table.value_ptr))
    return np.unique(owner[~np.isnan(table.values[:, column])])


def _parts(cfg: DictConfig, whole: Any, labelled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation samples: of a saved split, else drawn; with ``indices`` among those samples only."""
    if (cfg.indices or cfg.splits) and isinstance(whole, OnTheFly):
        raise SystemExit("indices= and splits= belong to a store: mode=shared or mode=preprocessed")
    if cfg.indices:
        labelled = np.intersect1d(labelled, tc.load_indices(cfg.indices, whole))
    if not cfg.splits:
        return _split(labelled, float(cfg.val_share), int(cfg.seed))
    splits = tc.Splits.load(cfg.splits, whole)
    return np.intersect1d(splits["train"], labelled), np.intersect1d(splits["val"], labelled)


def _split(indices: np.ndarray, val_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(indices)
    held_out = max(1, round(len(order) * val_share))
    return np.sort(order[held_out:]), np.sort(order[:held_out])
