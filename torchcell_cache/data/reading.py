"""How batches are read: in this process or in torch's workers, whole shards ahead, and on their way to a device."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader
from torch_geometric.data.data import BaseData

from torchcell_cache.batch import SharedGraphBatch
from torchcell_cache.batch.pairs import PairedBatch
from torchcell_cache.batch.pyg import without_removed
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.records import close_file

_NAMED_SAMPLES = 8
_MOST_AHEAD_BYTES = 1 << 28


# What to make of store positions; functions that travel to workers.


def packed(generation: Generation, positions: Int64Array) -> Any:
    """A shared batch as one buffer, which crosses a process boundary."""
    return SharedGraphBatch.read(generation, positions).pack()


def expanded(generation: Generation, positions: Int64Array, **how: Any) -> Any:
    """A shared batch as the PyG batch of its samples, made where it is read."""
    return SharedGraphBatch.read(generation, positions).to_pyg(**how)


@dataclass(frozen=True, slots=True)
class Collated:
    """Single samples, transformed and collated as torch's loader does; a list of them without ``collate``."""

    transform: Any
    collate: Callable[[list[Any]], Any] | None
    drop_removed: bool = False
    pairing: Any = None

    def __call__(self, generation: Generation, positions: Int64Array) -> Any:
        """The samples at store positions."""
        if self.pairing is None:
            samples = generation.graphs(positions)
        else:
            positions, samples = self.pairing.graphs(generation, positions, self.collate is None)
        if self.transform is not None:
            samples = [self._transformed(generation, *each) for each in zip(positions, samples, strict=True)]
        if self.drop_removed:
            samples = list(map(without_removed, samples))
        return samples if self.collate is None else self.collate(samples)

    def _transformed(self, generation: Generation, position: int, sample: Any) -> Any:
        try:
            if self.pairing is not None:  # what categories share is the transform's own copy
                return self.transform(copy.deepcopy(sample))
            return self.transform(generation.shared_fields.separate(sample))
        except Exception as error:
            error.add_note(f"in the dataset's transform of sample {position}")
            raise


@dataclass(slots=True)
class StoreReader:
    """Reads batches of a store; the only part of a loader that travels to workers.

    With ``keep``, the shards to hold open, it serves an order that goes from shard to shard: the kernel is asked to read the
    whole file when its first sample is wanted (unless it is huge), so that a slow disk sees one sequential read and not a
    seek per sample. Closing what lies behind keeps the mapped memory bounded.
    """

    generation: Generation
    make: Callable[[Generation, Int64Array], Any]
    keep: int = 0
    _open: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def __getitem__(self, positions: Int64Array) -> Any:
        """What is made of the given store positions."""
        shards = np.unique(self.generation.files.shard_of(positions)).tolist() if self.keep else []
        for shard in shards:
            if shard not in self._open:
                self._fetch(shard)
            self._open[shard] = None
            self._open.move_to_end(shard)
        try:
            batch = self.make(self.generation, positions)
        except Exception as error:
            named = ", ".join(map(str, positions[:_NAMED_SAMPLES].tolist()))
            more = f" and {len(positions) - _NAMED_SAMPLES} more" * (len(positions) > _NAMED_SAMPLES)
            error.add_note(f"while making a batch of samples {named}{more} of {self.generation.root}")
            raise
        while len(self._open) > max(self.keep, len(shards)):
            close_file(self.generation.files.paths[self._open.popitem(last=False)[0]])
        return batch

    def _fetch(self, shard: int) -> None:
        files = self.generation.files
        if files.sizes[shard] <= _MOST_AHEAD_BYTES:
            # Advice: whoever reads says what is wrong.
            with contextlib.suppress(OSError), Path(files.paths[shard]).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Let go of all shards that this reader opened."""
        while self._open:
            close_file(self.generation.files.paths[self._open.popitem()[0]])


def mark_padding(batch: Any, padding: npt.NDArray[np.bool_], pairing: Any, device: Any = None) -> None:
    """Say in ``is_padding`` which samples of a batch only fill up; of a PyG batch of pairs, which graphs."""
    if isinstance(batch, SharedGraphBatch | PairedBatch | BaseData):
        several = pairing.num_controls if pairing is not None and isinstance(batch, BaseData) else 1
        batch.is_padding = torch.from_numpy(np.repeat(padding, several)).to(device or "cpu")


# Worker processes, by torch's own machinery: it knows how to start, watch and stop them


class Job(NamedTuple):
    """One batch to read: its number in the epoch, ``[n] int64`` store positions, and which samples only fill up, ``[n] bool``."""

    step: int
    positions: Int64Array
    padding: npt.NDArray[np.bool_]


class _Feed:
    """What torch's loader takes as a sampler: positions of the epoch's jobs, in the order they are sent."""

    jobs: Iterable[Job] = ()

    def __iter__(self) -> Iterator[Int64Array]:
        return (job.positions for job in self.jobs)


class WorkerProcesses:
    """Runs a reader in worker processes; ``settings`` are those of torch's ``DataLoader``."""

    def __init__(self, reader: StoreReader, **settings: Any) -> None:
        self._feed, generator = _Feed(), torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            reader,  # type: ignore[arg-type]
            batch_size=None,
            sampler=self._feed,
            collate_fn=_same,
            generator=generator,
            **settings,
        )

    def read(self, jobs: Iterable[Job], seed: int) -> Iterator[tuple[Job, Any]]:
        """What the reader makes of each job, in order; ``seed`` is of the workers' random numbers.

        Raises:
            RuntimeError: If a worker dies; whatever the reader raises is raised here too.
        """
        self._feed.jobs, sent = itertools.tee(jobs)
        self._loader.generator.manual_seed(seed)  # of its own: the caller's generator stays untouched
        try:
            for result, job in zip(self._loader, sent, strict=False):  # it says when it has ended
                yield job, result
        except RuntimeError as error:
            if "DataLoader worker" in str(error):
                error.add_note(
                    "a worker that dies without an error of its own was mostly killed for memory: fewer workers, a "
                    "smaller prefetch_factor, or num_workers=0"
                )
            raise


def _same(value: Any) -> Any:
    return value


# To the device

Item = TypeVar("Item")


def checked_device(value: Any) -> torch.device | None:
    """A device by its name or number; ``None`` as it is."""
    try:
        device = None if value is None else torch.device(value)
        if device is not None and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"this process sees {torch.cuda.device_count()} CUDA devices")
        return device
    except (RuntimeError, TypeError, ValueError) as error:
        raise SettingError(
            f"device={value!r:.80}: {str(error).splitlines()[0]:.200}", fix="device='cuda', or device='cpu'"
        ) from None


def move(value: Any, act: Callable[[Any], Any]) -> Any:
    """A batch with ``act`` applied to everything in it that has ``to``; containers are rebuilt."""
    if hasattr(value, "to"):
        return act(value)
    if isinstance(value, dict):
        return {key: move(part, act) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(move(part, act) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(move(part, act) for part in value)
    return value


def on_device(
    items: Iterable[tuple[Item, Any]], device: torch.device | None, pin_memory: bool
) -> Iterator[tuple[Item, Any]]:
    """Batches, and what belongs to them, on their device; ``None`` leaves them on the host, page-locked if asked for."""
    if device is not None and device.type == "cuda":
        yield from _ahead(items, device)
        return
    for item, batch in items:
        if device is not None:
            batch = move(batch, lambda part: part.to(device))
        elif pin_memory:
            batch = move(batch, _pinned)
        yield item, batch


def _pinned(part: Any) -> Any:
    return part.pin_memory() if hasattr(part, "pin_memory") else part


def _ahead(items: Iterable[tuple[Item, Any]], device: torch.device) -> Iterator[tuple[Item, Any]]:
    """Copy each batch on a side stream while the model works on its predecessor."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def used_here(part: Any) -> Any:
        # Without this the allocator would hand memory of the side stream on while this stream still reads it.
        if hasattr(part, "record_stream"):
            part.record_stream(torch.cuda.current_stream(device))
        return part

    def arrived(item: Item, batch: Any, done: torch.cuda.Event) -> tuple[Item, Any]:
        torch.cuda.current_stream(device).wait_event(done)
        return item, move(batch, used_here)

    waiting: tuple[Item, Any, torch.cuda.Event] | None = None
    for item, batch in items:
        with torch.cuda.stream(side):
            # Only from page-locked memory does a copy run beside the host and the other stream.
            batch = move(batch, lambda part: _pinned(part).to(device, non_blocking=True))
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(side)
        if waiting is not None:
            yield arrived(*waiting)
        waiting = (item, batch, done)
    if waiting is not None:
        yield arrived(*waiting)
