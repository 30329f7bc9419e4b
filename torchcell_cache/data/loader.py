"""``CacheLoader``: from a store to batches on the device, ready for message passing."""

from __future__ import annotations

import inspect
import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch_geometric.loader.dataloader import Collater

from torchcell_cache.batch import SharedGraphBatch
from torchcell_cache.core.checks import (
    choice,
    function_or_none,
    gives_items,
    names_or_none,
    real_number,
    refuse_unknown,
    seed_number,
    truth,
    whole_number,
)
from torchcell_cache.core.choices import Uneven
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.reading import (
    Collated,
    Job,
    StoreReader,
    WorkerProcesses,
    checked_device,
    expanded,
    mark_padding,
    on_device,
    packed,
)
from torchcell_cache.data.samplers.base import UNEVEN, CacheSampler, Plan
from torchcell_cache.data.samplers.order import samplers_of
from torchcell_cache.data.view import content_of, restricted, store_view
from torchcell_cache.errors import SettingError

_OF_TORCH = ("num_workers", "prefetch_factor", "timeout", "persistent_workers")
_OF_WORKERS = (*_OF_TORCH, "multiprocessing_context", "worker_init_fn")


class CacheLoader:
    """Batches of a store, in the spirit and with the arguments of ``torch.utils.data.DataLoader``.

    Yields :class:`~torchcell_cache.SharedGraphBatch`, or PyG batches with ``expand=True``. Under several ranks each
    gets its own part of one global order (:class:`~torchcell_cache.DistributedCacheSampler`), without a sampler of your
    own and without collective calls. Lightning takes it as it is; it never replaces the sampler of a loader that is not
    torch's, calls :meth:`set_epoch` through ``loader.sampler`` and saves :meth:`state_dict` in its checkpoints.

    Each iteration is the next epoch, unless :meth:`set_epoch` or :meth:`load_state_dict` was called since the last.
    Reading a batch takes about as long as handing it from one process or thread to another, so ``num_workers=0`` reads
    in the calling thread; workers pay for stores on slow disks, for ``transform`` and for ``collate_fn``.

    Args:
        dataset: A ``PreprocessedDataset``, a view of one, or torch's ``Subset``/``ConcatDataset`` of views.
        batch_size: Samples per batch and rank.
        shuffle: Whether to permute the samples, anew each epoch, by (``seed``, epoch).
        num_workers: Reading processes; 0 reads in this one.
        sampler: One of this package's samplers (its own batch size counts), or any iterable of indices; the latter is
            taken as it is, so it must know about ranks itself.
        batch_sampler: Any iterable of lists of indices; excludes batch_size, shuffle, sampler and drop_last.
        drop_last: Leave out what does not fill a batch on every rank.
        collate_fn: Called with the list of a batch's samples, as torch does; its result is yielded.
        expand: Yield what PyG's ``DataLoader`` would yield, built from the base graph on the device.
        drop_removed: Yield expanded batches with kept edges only, as ``edge_index[:, mask]`` would give (:meth:`to_pyg`).
        follow_batch: As PyG has it, for expanded batches.
        exclude_keys: As PyG has it, for expanded batches.
        seed: Seed of the permutations; the same on all ranks.
        device: Where batches go; on a GPU the next batch is copied on a side stream while this one is in use.
        prefetch_factor: Batches that each worker reads ahead.
        pin_memory: Page-lock batches that stay on the host (``device=None``).
        persistent_workers: Keep workers from epoch to epoch.
        multiprocessing_context: ``fork``, ``spawn``, ``forkserver`` or a context.
        timeout: Seconds to wait for a worker's batch; 0 waits as long as the worker lives.
        worker_init_fn: Called in each worker with its number.
        rank: This process; by default that of ``torch.distributed``, else of ``RANK``, else 0.
        world_size: Number of ranks, likewise.
        uneven: Which ranks get the last samples: ``drop_last``, ``pad`` (``batch.is_padding`` marks samples that are
            repeated) or ``exact``; see ``DistributedCacheSampler``.
        indices: Only these samples: an index file (``.npy``) of the store, or anything that indexes the dataset.

    Raises:
        SettingError: If an argument is unknown, wrong or contradicts another.

    Example:
        >>> for batch in tc.CacheLoader(ds, batch_size=4, shuffle=True):
        ...     fitness = batch.labels("fitness")  # [4] float32
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        num_workers: int = 0,
        *,
        sampler: Iterable[int] | CacheSampler | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        expand: bool = False,
        drop_removed: bool = False,
        follow_batch: Sequence[str] | None = None,
        exclude_keys: Sequence[str] | None = None,
        seed: int = 0,
        device: torch.device | str | int | None = None,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        multiprocessing_context: Any = None,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Uneven = "drop_last",
        indices: Any = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown("CacheLoader", unknown, [*inspect.signature(CacheLoader).parameters][:-1])
        self._epoch, self._given = 0, dataset  # epoch of a sampler that does not count them
        self.dataset = dataset if indices is None else restricted(dataset, indices)
        self._view = store_view(self.dataset, "CacheLoader reads")
        self.collate_fn = function_or_none("collate_fn", collate_fn)
        self.expand, self.follow_batch = truth("expand", expand), names_or_none("follow_batch", follow_batch)
        self.exclude_keys = names_or_none("exclude_keys", exclude_keys)
        self.drop_removed = truth("drop_removed", drop_removed)
        if self.drop_removed and (not self.expand or collate_fn is not None):
            why = "drop_removed=True is for expanded batches"
            raise SettingError(why, fix="expand=True, without collate_fn")
        self.num_workers = whole_number("num_workers", num_workers, 0)
        self.prefetch_factor = whole_number("prefetch_factor", prefetch_factor, 1)
        self.persistent_workers = truth("persistent_workers", persistent_workers)
        # The kernel waits 24 days at most.
        self.timeout = min(real_number("timeout", timeout, "seconds from 0 on"), 2e6)
        self.worker_init_fn = function_or_none("worker_init_fn", worker_init_fn)
        self.multiprocessing_context = multiprocessing_context
        if not isinstance(multiprocessing_context, multiprocessing.context.BaseContext | None):
            methods = tuple(multiprocessing.get_all_start_methods())
            choice("multiprocessing_context", multiprocessing_context, methods)
        self.device = checked_device(device)
        self.pin_memory = truth("pin_memory", pin_memory) and torch.cuda.is_available()
        self.sampler, self.batch_sampler = samplers_of(
            self.dataset,
            sampler,
            batch_sampler,
            whole_number("batch_size", batch_size, 1),
            shuffle=truth("shuffle", shuffle),
            seed=seed_number(seed),
            rank=rank,
            world_size=world_size,
            uneven=choice("uneven", uneven, UNEVEN),
            drop_last=truth("drop_last", drop_last),
        )
        self.batch_size = getattr(self.batch_sampler, "batch_size", None)
        self.drop_last = bool(getattr(self.batch_sampler, "drop_last", False))
        self._own = self.batch_sampler if isinstance(self.batch_sampler, CacheSampler) else None
        if (own := self._own) is not None:  # its weights and costs would be those of other samples
            what = "other samples than the dataset's, or for another order"
            if not (same := own.num_samples == len(self._view)):
                what = f"{own.num_samples} samples, the dataset has {len(self._view)}"
            if not same or own.content not in (None, content_of(self._view)):
                fix = f"{type(own).__name__}(dataset, ...) of the same dataset"
                raise SettingError(f"the sampler is for {what}", fix=fix)
        self._prepare_reader()

    def _prepare_reader(self) -> None:
        collate, transform = self.collate_fn, self._view.transform
        self._transform = transform
        samples = collate is not None or transform is not None
        if samples and collate is None:
            warnings.warn(
                "the dataset has a transform, so samples are read one by one and collated by PyG, which copies the base "
                "graph into every sample of every batch; store the transform's result (processor= of build) or "
                "apply it to batch.to_pyg() for fast batches",
                stacklevel=3,
            )
            collate = Collater([], self.follow_batch, self.exclude_keys)
        # Samples of their own come whole from the worker; what is the base graph's is copied here, into memory used before.
        generation, there = self._view.generation, self.num_workers and self.expand and not self._view.pairing
        on_host = self.device in (None, torch.device("cpu"))
        expands = bool(there and on_host and not generation.is_structured)
        self._whole = samples or expands
        names = {"follow_batch": self.follow_batch, "exclude_keys": self.exclude_keys}
        self._how: dict[str, Any] = {**names, "drop_removed": self.drop_removed}
        make: Any = packed if self.num_workers else SharedGraphBatch.read
        make = partial(expanded, **self._how) if expands else make
        if samples:
            make = Collated(transform, collate, self.drop_removed, self._view.pairing)
        self._reader = StoreReader(generation, make, getattr(self._own, "shards_at_once", 0))
        self._workers: WorkerProcesses | None = None

    # Iterating

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank; from metadata, the same on all ranks."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        # It may have been set since this loader was made.
        self._view.transform = store_view(self._given, "CacheLoader reads").transform
        if self._view.transform is not self._transform:
            self._prepare_reader()
        own, plan = self._own, None if self._own is None else self._own.start_epoch()
        jobs = _jobs(plan, self._view, self.batch_sampler, self._epoch if plan is None else plan.epoch)
        self._epoch += 1
        here = ((job, self._reader[job.positions]) for job in jobs)
        read = self._in_workers(jobs) if self.num_workers else here
        for job, batch in on_device(read, self.device, self.pin_memory):
            if own is not None and plan is not None:
                own.note_step(plan, job.step)
            batch = batch if self._whole else self._view._batch(batch)
            if self.expand and not self._whole:
                batch = batch.to_pyg(**self._how)
            if own is not None and own.uneven == "pad":
                mark_padding(batch, job.padding, self._view.pairing, self.device)
            yield batch
        if own is not None and plan is not None:
            own.end_epoch(plan)

    def _in_workers(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        if self._workers is None:
            settings = {name: getattr(self, name) for name in _OF_WORKERS}
            self._workers = WorkerProcesses(self._reader, **settings)
        if self._own is None:
            seed = int(torch.initial_seed() % 2**63)
        else:
            words = [self._own.seed % 2**64, self._own.epoch, self._own.rank]
            seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
        for job, read in self._workers.read(jobs, seed):
            yield job, read if self._whole else SharedGraphBatch.unpack(self._view.generation, read)

    # Epochs and resuming

    @property
    def epoch(self) -> int:
        """The epoch that runs, or the next one if none does."""
        return self._stateful("epoch").epoch

    @property
    def steps_left(self) -> int:
        """Batches to the end of the epoch that runs, or of the next one if none does."""
        return self._stateful("steps_left").steps_left

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch; a resumed epoch keeps its place if it is the same one."""
        self._epoch = whole_number("epoch", epoch, 0)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands after the batches handed out so far; the same on every rank, JSON values."""
        return self._stateful("state_dict").state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, whatever the number of ranks, workers and the batch size now.

        Raises:
            SettingError: If the state is of another dataset or kind of order.
        """
        self._stateful("load_state_dict").load_state_dict(state)

    def _stateful(self, name: str) -> CacheSampler:
        if self._own is None:
            raise SettingError(
                f"{name} is not known with a sampler of another kind ({type(self.sampler).__name__})",
                fix="use shuffle= and seed=, or a DistributedCacheSampler",
            )
        return self._own

    def __repr__(self) -> str:
        return f"CacheLoader({self.dataset!r}, batch_size={self.batch_size}, num_workers={self.num_workers})"


def _jobs(plan: Plan | None, view: PreprocessedDataset, batches: Iterable[Any], epoch: int) -> Iterator[Job]:
    """What to read, step by step.

    No method of the loader: torch's iterator keeps it, the loader keeps that iterator, and a reference back would leave
    workers to the garbage collector, which ends them at any time, each with a wait of seconds.
    """
    if plan is not None:
        for step in range(len(plan)):
            indices, padding = plan.batch(step)
            yield Job(step, view._rows(indices, epoch), padding)
        return
    for step, chosen in enumerate(batches):
        if not gives_items(chosen):
            raise SettingError(
                f"batch_sampler= gave {chosen!r:.80}: expected a list of indices per batch",
                fix="sampler= takes single indices",
            )
        wanted = list(chosen)
        yield Job(step, view._rows(wanted, epoch), np.zeros(len(wanted), dtype=np.bool_))
