"""What a batch costs on its way from the store to a model, stage by stage."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch

from torchcell_cache.batch import SharedGraphBatch
from torchcell_cache.builder.generations import stored_processor
from torchcell_cache.codec import deletions as structured
from torchcell_cache.codec.envelope import CHECKSUM_BYTES
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.records import decode_graph
from torchcell_cache.processors.base import Processing
from torchcell_cache.store import records as store
from torchcell_cache.store.generation import Generation

CAN_DROP = hasattr(os, "posix_fadvise")
"""Whether this system can be asked to forget a file."""

MEMORY_SHARE = 8
"""PyG batches copy the base graph for each sample: one may take an eighth of the memory that is free."""

_FEWEST_REPEATS = 3


def times(samples: int, seconds: Sequence[float]) -> dict[str, Any]:
    """How long something took with so many samples each time: counts and percentiles, as JSON values."""
    ms = {f"p{q}_ms": float(np.percentile(seconds, q)) * 1e3 for q in (50, 90, 99)}
    found = {"samples": samples, "repeats": len(seconds), **ms, "mean_ms": float(np.mean(seconds)) * 1e3}
    return {**found, "per_sample_us": ms["p50_ms"] * 1e3 / samples}


@dataclass(frozen=True, slots=True)
class Stage:
    """One thing to time.

    Attributes:
        name: Name in the report.
        act: What is timed, given what was prepared.
        prepare: Makes ready, untimed, for the given store positions.
        weight: Share of the time, for stages whose cost and memory grow with base graph times samples; else 0.
    """

    name: str
    act: Callable[[Any], Any]
    prepare: Callable[[Int64Array], Any]
    weight: int = 0


def stages(generation: Generation, device: torch.device, exclude_keys: Sequence[str] = ()) -> Iterator[Stage]:
    """The stages of a store, cheap ones first.

    Args:
        generation: The store's generation.
        device: Where batches go.
        exclude_keys: Fields to leave out of PyG batches.
    """
    excluded = list(exclude_keys)

    def here(positions: Int64Array) -> SharedGraphBatch:
        return SharedGraphBatch.read(generation, positions)

    def there(positions: Int64Array) -> SharedGraphBatch:
        return here(positions).to(device)

    def collate(graphs: list[Any]) -> Any:
        return Batch.from_data_list(graphs, None, excluded).to(device)

    yield Stage("read", generation.read, lambda positions: positions)
    yield Stage("decode", _decoder(generation), generation.read)
    yield Stage("batch", lambda positions: here(positions).pack(), lambda positions: positions)
    if device.type != "cpu":
        yield Stage("copy", lambda batch: batch.to(device, non_blocking=True), lambda p: here(p).pin_memory())
    yield Stage("masks", _masks, there, weight=1)
    yield Stage("expand", lambda batch: batch.to_pyg(None, excluded), there, weight=3)
    yield Stage("samples", generation.graphs, lambda positions: positions, weight=1)
    yield Stage("pyg collate", collate, generation.graphs, weight=3)
    yield Stage("on the fly", *_on_the_fly(generation), weight=3)


def _decoder(generation: Generation) -> Callable[[list[bytes]], Any]:
    if generation.is_structured:
        schema = generation.structured
        return lambda records: structured.decode(schema, records)
    layouts, fields = generation.layouts, generation.base_fields
    return lambda records: [decode_graph(memoryview(r)[CHECKSUM_BYTES:], layouts, fields) for r in records]


def _masks(batch: SharedGraphBatch) -> Any:
    """Everything that masks can say about a batch."""
    topology = batch.generation.topology
    if topology is None:
        raise SettingError("the store's processor removes nothing that a mask could show")
    keys = [domain.key for domain in topology.domains if not isinstance(domain.key, str)]
    return [batch.node_mask(), *(batch.edge_mask(key) for key in keys)]


def _on_the_fly(generation: Generation) -> tuple[Callable[[Any], Any], Callable[[Int64Array], Any]]:
    """The processor on items made of the store's own columns: what there would be without a cache."""
    graph, table = generation.base_graph, generation.table

    @cache
    def processor() -> Any:
        found = stored_processor(generation.manifest)
        if not hasattr(found, "process") or table is None or graph is None:
            raise SettingError("only its source knows the samples it was made of")
        return found

    def items(positions: Int64Array) -> list[Any]:
        processor()
        return [table.sample(k, graph) for k in positions.tolist()]  # type: ignore[union-attr]

    def process(samples: list[Any]) -> list[Any]:
        return list(map(Processing(processor(), graph), samples))

    return process, items


class Stopwatch:
    """Times stages within bounds of time and memory.

    Args:
        dataset: The store.
        draws: Store positions of the batches, ``[num_batches, batch_size] int64``.
        device: Where batches go.
    """

    def __init__(self, dataset: PreprocessedDataset, draws: Int64Array, device: torch.device) -> None:
        self.dataset, self.generation, self.draws, self.device = dataset, dataset.generation, draws, device
        values = [value for part in dataset.get(0).stores for value in part._mapping.values()]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        self.sample_bytes = sum(value.numel() * value.element_size() for value in tensors)  # in a PyG batch

    def time(self, stage: Stage, seconds: float) -> dict[str, Any]:
        """Time a stage in some seconds; with fewer samples per batch than asked for where time or memory would not do."""
        samples = self.draws.shape[1]
        if stage.weight:
            free = available_memory()
            if self.device.type == "cuda":
                on_device = torch.cuda.mem_get_info(self.device)[0]
                free = on_device if free is None else min(free, on_device)
            if free is not None:
                samples = min(samples, free // MEMORY_SHARE // max(self.sample_bytes, 1))
            alone = self.repeat(stage, 1, 1, seconds)[0]
            samples = max(min(samples, int(seconds / _FEWEST_REPEATS / max(alone, 1e-9))), 1)
        return times(samples, self.repeat(stage, samples, len(self.draws), seconds))

    def repeat(self, stage: Stage, samples: int, repeats: int, seconds: float) -> list[float]:
        """Times of ``repeats`` runs after one to warm up, or of as many as there is time for, at least one."""
        begun, found = time.perf_counter(), []
        for k in range(repeats + 1):
            given = stage.prepare(self.draws[k % len(self.draws), :samples])
            start = now(self.device)
            result = stage.act(given)
            found.append(now(self.device) - start)
            del given, result  # before the next one is made: they may be large
            # The first use of a lot of memory is slow: a little longer for three runs that are not the first.
            needed = 1 if time.perf_counter() - begun > 2 * seconds else _FEWEST_REPEATS
            if len(found) > needed and time.perf_counter() - begun > seconds:
                break
        return found[1:]

    def warm_up(self, seconds: float) -> None:
        """Read all samples once; those there is no time for are not drawn any more."""
        begun = time.perf_counter()
        for done, positions in enumerate(self.draws, 1):
            self.generation.read(positions)
            if time.perf_counter() - begun > seconds:
                self.draws = self.draws[:done]
                return


def now(device: torch.device) -> float:
    """Seconds, the device's work so far included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def cold_read(generation: Generation) -> Stage:
    """Reading right after the kernel has forgotten the store's shards."""
    files = generation.files

    def forget(positions: Int64Array) -> Int64Array:
        # Mapped pages stay in memory, so close first; opening reads the head of a file, so drop last.
        store.close_all()
        for shard in np.unique(files.shard_of(positions)).tolist():
            files.open(shard)
        drop_pages(files.paths)
        return positions

    return Stage("batch, cold", lambda positions: SharedGraphBatch.read(generation, positions).pack(), forget)


# What the kernel keeps of files in memory, and asking it to let go


def drop_pages(paths: Iterable[str | Path]) -> None:
    """Ask the kernel to forget the files' contents. Pages that some process has mapped stay.

    Args:
        paths: Files that are on disk in full (written and synced).
    """
    for path in paths:
        with Path(path).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_share(paths: Iterable[str | Path]) -> float | None:
    """Share of the files' pages that are in memory, 0 to 1; ``None`` where the kernel does not say."""
    pages = resident = 0
    for path in map(Path, paths):
        size = path.stat().st_size
        if size == 0:
            continue
        if path.stat().st_uid != os.geteuid():  # of other users' files Linux claims that all is in memory
            return None
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = np.frombuffer(mapped, dtype=np.uint8)
            state = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
            places = [ctypes.c_void_p(array.ctypes.data) for array in (view, state)]
            try:
                failed = ctypes.CDLL(None).mincore(places[0], ctypes.c_size_t(size), places[1])
            except (OSError, AttributeError):
                failed = True
            del view  # the map cannot be closed while it is in use
        if failed:
            return None
        pages += len(state)
        resident += int((state & 1).sum())
    return resident / pages if pages else None


def available_memory() -> int | None:
    """Bytes this process could still take, by the kernel and by its control group; ``None`` if unknown."""
    found, group = [], Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(int(text.split("MemAvailable:")[1].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # without a limit it says "max"
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    return max(min(found), 0) if found else None
