"""``build``: from a source to a published store; ``storage="auto"`` measures on the first samples what each storage costs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from torchcell_cache.builder.generation import GenerationBuild
from torchcell_cache.builder.generic import GenericMaker, random_state_kept
from torchcell_cache.builder.plan import (
    BuildPlan,
    checked_plan,
    make_plan,
    make_shard_plan,
    structured_schema,
)
from torchcell_cache.builder.publishing import Publisher, StoreRequest, begun_storage, compared, insist_same
from torchcell_cache.builder.shards import StructuredMaker
from torchcell_cache.builder.workers import StopRequest
from torchcell_cache.codec import deletions as structured
from torchcell_cache.codec.constants import FIRST, MOST_BYTES, compacted, constants_of
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.codec.layout import Layout
from torchcell_cache.core.checks import choice, rank_and_world_size, truth, whole_number
from torchcell_cache.core.choices import OnStale, Storage
from torchcell_cache.core.files import make_dirs_durable
from torchcell_cache.core.progress import Console
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import BuildInProgressError, SampleError
from torchcell_cache.graph.records import decode_graph
from torchcell_cache.processors.assemble import Assembler
from torchcell_cache.processors.base import ProcessorLike, asked, copy_of
from torchcell_cache.sources.pyg import SourceLike, as_source
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.groups import GROUP_BYTES, disk_bytes
from torchcell_cache.store.manifest import Manifest

ON_STALE = get_args(OnStale)
_PROBE = 64
_FULL_PROBE = 4
_PROBE_SECONDS = 10.0
_NOISE = 1.5
_DISK_BYTES_PER_US = 100


def build(
    root: str | os.PathLike[str],
    *,
    source: SourceLike,
    processor: ProcessorLike = None,
    storage: Storage = "auto",
    num_workers: int = 0,
    shard_size: int | None = None,
    on_stale: OnStale = "error",
    allow_empty: bool = False,
    max_record_bytes: int = MAX_RECORD_BYTES,
    scratch: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Generation:
    """Preprocess a source once and open the result; a matching store is opened at once.

    Interrupted or killed builds continue when the same call runs again; readers see nothing until everything is there.

    Args:
        root: Directory of the store.
        source: A ``PerturbationTable`` or other source, a PyG dataset, or a sequence of ``Data``/``HeteroData``.
        processor: A ``GraphProcessor``, any callable (a PyG transform), or ``None`` to store the samples as they are.
        storage: ``perturbation`` (ids; masks come from the incidence index), ``delta`` (removed positions), ``full``
            (every tensor), or ``auto`` (measures what each costs on the first samples). Same samples out of all.
        num_workers: Worker processes; 0 builds in this one. The result does not depend on it.
        shard_size: Samples per shard; by storage if ``None``.
        on_stale: What to do with a store built from something else: ``error``, ``rebuild`` or ``warn``.
        allow_empty: Whether a source without samples is fine.
        max_record_bytes: Largest record accepted.
        scratch: Node-local directory to write shards in before they move to ``root``, made if it is not there; for roots
            on network storage.
        progress: Whether to print progress.

    Raises:
        StaleCacheError: Naming each part that differs.
        SourceContractError: If the source breaks its contract.
        SampleError: If the source or the processor raised on a sample.
        StorageError: If the file system refuses.
        BuildInterruptedError: If a signal asked to stop; run the same call again.
        SettingError: If an argument has no such value.

    Example:
        >>> source = tc.testing.tiny_source(4)
        >>> tc.build("stores/four", source=source, processor=tc.LazySubgraphRepresentation(), storage="delta", progress=False)
        PreprocessedDataset(4)
    """
    place = None if scratch is None else local_path(scratch, "scratch")
    workers = whole_number("num_workers", num_workers, 0)
    request = BuildRequest.from_arguments(
        root, source, processor, storage, shard_size, on_stale, allow_empty, max_record_bytes, progress
    )

    def begin() -> None:
        request.console.notes(request.plan.notes)
        if place is not None:
            make_dirs_durable(place)

    def make(publisher: Publisher) -> Manifest:
        # Ranks that call ``build`` together take turns by the lock; without locks only rank 0 may build.
        rank, world_size = (0, 1) if publisher.lock.exclusive else rank_and_world_size()
        if rank != 0:
            where = publisher.lock.path
            what = f"rank {rank} of {world_size} would build what rank 0 builds: {where} is on a file system without locks"
            fix = "build in a job of its own, and open the store with PreprocessedDataset(root, wait=...)"
            raise BuildInProgressError(what, path=where, fix=fix)
        chosen: str = storage
        if chosen == "auto":
            chosen = begun_storage(request.root, request.plan) or request.cheapest()
        with StopRequest().listening() as stop:
            return request.work(chosen, publisher.lock.exclusive, workers, place).run(stop)

    return request.opened_or_made(make, begin)


@dataclass(frozen=True, slots=True)
class BuildRequest(StoreRequest):
    """What a build, a task of an array build and its end are asked for, checked: the arguments they have in common."""

    shard_size: int | None
    max_record_bytes: int

    @classmethod
    def from_arguments(
        cls,
        root: Any,
        source: Any,
        processor: Any,
        storage: str,
        shard_size: int | None,
        on_stale: str,
        allow_empty: bool,
        max_record_bytes: int,
        progress: bool,
    ) -> BuildRequest:
        """Check the arguments and look at the source.

        Raises:
            SettingError: If an argument has no such value.
            SourceContractError: If the source breaks its contract.
        """
        where, console = local_path(root), Console(truth("progress", progress))
        choice("on_stale", on_stale, ON_STALE)
        size = None if shard_size is None else whole_number("shard_size", shard_size, 1)
        most = whole_number("max_record_bytes", max_record_bytes, 1)
        empty = truth("allow_empty", allow_empty)
        with asked("the source or the processor, asked what it is,"):
            plan = checked_plan(make_plan(as_source(source), processor), storage, empty)
        return cls(where, plan, storage, on_stale, console, size, most)

    def work(
        self, storage: str, exclusive: bool, num_workers: int = 0, scratch: Path | None = None
    ) -> GenerationBuild:
        """The work on the generation that ``storage`` makes."""
        shards = make_shard_plan(self.plan, storage, self.shard_size, self.max_record_bytes)
        given = storage, exclusive, self.console, num_workers, scratch
        return GenerationBuild(self.root, self.plan, shards, *given)

    def cheapest(self) -> str:
        """Measure, print the comparison, and name the storage with the fewest bytes among those that read fast.

        "Fast" is, read from a disk of 100 MB/s, within 1.5 times of the quickest, below which differences are noise on a
        shared machine. Where ids can be stored, ``full`` is shown for comparison but never chosen: shared batches need ids.
        """
        plan, by_ids = self.plan, self.plan.can_be_structured
        if plan.num_samples == 0:
            return "perturbation" if by_ids else "full"
        costs = [_structured_cost(plan, storage) for storage in ("perturbation", "delta") if by_ids]
        costs += _on_trial(plan, ("full",) if costs else ("delta", "full"))
        eligible = [c for c in costs if c.storage != "full" or not by_ids]
        quickest = min(cost.whole_us for cost in eligible)
        chosen = min((c for c in eligible if c.whole_us <= _NOISE * quickest), key=lambda c: c.num_bytes)
        self.console("storage       make/sample  read/sample  bytes/sample")
        for cost in costs:
            line = (
                f"{cost.storage:<12} {cost.make_us:>9.1f} us {cost.read_us:>9.1f} us {cost.num_bytes:>13,.0f}"
            )
            self.console(line + "  <- chosen" * (cost is chosen))
        return chosen.storage


class StorageCost(NamedTuple):
    """What one storage costs per sample: microseconds to make and to read as a graph, bytes on disk."""

    storage: str
    make_us: float
    read_us: float
    num_bytes: float

    @classmethod
    def from_bodies(
        cls, storage: str, making: float, reading: float, bodies: list[bytes], group: int = 0
    ) -> StorageCost:
        """From the seconds that some records took."""
        size = float(np.mean([disk_bytes(len(body) + 8, group) for body in bodies]))
        return cls(storage, making * 1e6 / len(bodies), reading * 1e6 / len(bodies), size)

    @property
    def whole_us(self) -> float:
        """Microseconds to read a sample, and its bytes from a disk."""
        return self.read_us + self.num_bytes / _DISK_BYTES_PER_US


def _structured_cost(plan: BuildPlan, storage: str) -> StorageCost:
    assert plan.table is not None
    assert plan.topology is not None
    schema, table = structured_schema(plan, storage), plan.table
    maker = StructuredMaker(schema, table, plan.removal if schema.has_removed else None)
    given = plan.processor, plan.base_graph, plan.topology, plan.removal, table.phenotypes, table.statistics
    assembler = Assembler(*given, schema.has_removed)
    begun = time.perf_counter()
    bodies = [body for chunk in maker.chunks(0, min(_PROBE, len(table))) for body in chunk.bodies]
    made = time.perf_counter()
    for body in bodies:
        assembler.graphs(structured.decode(schema, [bytes(8) + body]))
    return StorageCost.from_bodies(storage, made - begun, time.perf_counter() - made, bodies)


def _on_trial(plan: BuildPlan, modes: tuple[str, ...]) -> list[StorageCost]:
    """Costs by a copy of the processor: what it counts, gathers or draws is not to begin with the trial's samples."""
    processor = copy_of(plan.processor)
    with random_state_kept():
        try:
            return _generic_costs(plan, processor, modes)
        except SampleError:
            if processor is plan.processor:
                raise
        return _generic_costs(plan, plan.processor, modes)  # so that it knows that it failed


def _generic_costs(plan: BuildPlan, processor: Any, modes: tuple[str, ...]) -> list[StorageCost]:
    """Costs of several storages of the same graphs: the processor makes each graph once for all of them."""
    assert plan.source is not None
    maker = GenericMaker(plan.source, processor, modes[0], plan.parts["base_graph"])
    records: dict[str, list[tuple[Layout, bytes]]] = {mode: [] for mode in modes}
    made = dict.fromkeys(modes, 0.0)
    probe = min(_FULL_PROBE if plan.can_be_structured else _PROBE, plan.num_samples)
    begun = at = time.perf_counter()
    for index, graph in maker.graphs(0, probe):
        processing = time.perf_counter() - at
        for mode in modes:
            at = time.perf_counter()
            records[mode].append(maker.encoded(index, graph, mode if mode == "full" else "compact"))
            made[mode] += processing + time.perf_counter() - at
        at = time.perf_counter()
        if at - begun > _PROBE_SECONDS and index + 1 >= _FULL_PROBE:
            break
    maker.processing.check_base_graph()
    layouts = {layout.id: layout for found in records.values() for layout, _ in found}
    costs = []
    for mode in modes:
        at = time.perf_counter()
        maker.base.constants = known = constants_of(records[mode][:FIRST], MOST_BYTES)
        bodies = [compacted(body, known) for _, body in records[mode]]
        encoded = time.perf_counter()
        for body in bodies:
            decode_graph(body, layouts, maker.base)
        reading, making = time.perf_counter() - encoded, made[mode] + encoded - at
        costs.append(StorageCost.from_bodies(mode, making, reading, bodies, GROUP_BYTES))
    return costs


def check_source(manifest: Manifest, source: Any, root: Path) -> None:
    """Refuse a store that does not stand for ``source``; the processor is not compared.

    Raises:
        StaleCacheError: Naming each part that differs.
    """
    stored, wanted = compared(Generation(root, manifest), as_source(source))
    fix = "build(..., on_stale='rebuild'), or open the store without source_dataset"
    insist_same(stored, wanted, f"the store at {root} was built from another source", root, fix)
