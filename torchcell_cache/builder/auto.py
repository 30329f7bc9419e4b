"""``storage="auto"``: measure on the first samples what each storage costs, and choose."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchcell_cache.builder.generic import GenericMaker, random_state_kept
from torchcell_cache.builder.plan import BuildPlan, make_shard_plan
from torchcell_cache.builder.shards import StructuredMaker
from torchcell_cache.codec import deletions as structured
from torchcell_cache.codec.constants import FIRST, MOST_BYTES, compacted, constants_of
from torchcell_cache.codec.deletions import StructuredSchema
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES
from torchcell_cache.codec.layout import Layout
from torchcell_cache.errors import SampleError
from torchcell_cache.graph.records import decode_graph
from torchcell_cache.processors.assemble import Assembler
from torchcell_cache.processors.base import copy_of
from torchcell_cache.store.groups import GROUP_BYTES, disk_bytes

_PROBE = 64
_FULL_PROBE = 4
_PROBE_SECONDS = 10.0
_NOISE = 1.5
_DISK_BYTES_PER_US = 100


@dataclass(frozen=True, slots=True)
class StorageCost:
    """What one storage costs per sample: microseconds to make and to read as a graph, bytes on disk."""

    storage: str
    make_us: float
    read_us: float
    num_bytes: float

    @property
    def whole_us(self) -> float:
        """Microseconds to read a sample, and its bytes from a disk."""
        return self.read_us + self.num_bytes / _DISK_BYTES_PER_US


def choose_storage(plan: BuildPlan, console: Callable[[str], None]) -> str:
    """Measure, print the comparison, and name the storage with the fewest bytes among those that read fast.

    "Fast" is, read from a disk of 100 MB/s, within 1.5 times of the quickest, below which differences are noise on a shared
    machine. Where ids can be stored, ``full`` is shown for comparison but never chosen: shared batches need ids.
    """
    count = plan.num_samples
    if count == 0:
        return "perturbation" if plan.can_be_structured else "full"
    costs = [
        _structured_cost(plan, storage, count)
        for storage in ("perturbation", "delta")
        if plan.can_be_structured
    ]
    costs += _on_trial(plan, ("full",) if costs else ("delta", "full"), count)
    eligible = [c for c in costs if c.storage != "full" or not plan.can_be_structured]
    quickest = min(cost.whole_us for cost in eligible)
    chosen = min((c for c in eligible if c.whole_us <= _NOISE * quickest), key=lambda c: c.num_bytes)
    console("storage       make/sample  read/sample  bytes/sample")
    for cost in costs:
        mark = "  <- chosen" if cost is chosen else ""
        console(
            f"{cost.storage:<12} {cost.make_us:>9.1f} us {cost.read_us:>9.1f} us {cost.num_bytes:>13,.0f}{mark}"
        )
    return chosen.storage


def _structured_cost(plan: BuildPlan, storage: str, count: int) -> StorageCost:
    assert plan.table is not None
    assert plan.topology is not None
    schema = StructuredSchema.from_dict(
        make_shard_plan(plan, storage, None, MAX_RECORD_BYTES).schema["structured"]
    )
    stop = min(_PROBE, count)
    maker = StructuredMaker(schema, plan.table, plan.removal if schema.has_removed else None)
    names = plan.table.phenotypes, plan.table.statistics
    assembler = Assembler(
        plan.processor, plan.base_graph, plan.topology, plan.removal, *names, schema.has_removed
    )
    begun = time.perf_counter()
    bodies = [body for chunk in maker.chunks(0, stop) for body in chunk.bodies]
    made = time.perf_counter()
    for body in bodies:
        assembler.graphs(structured.decode(schema, [bytes(8) + body]))
    return _cost(storage, made - begun, time.perf_counter() - made, bodies)


def _on_trial(plan: BuildPlan, modes: tuple[str, ...], count: int) -> list[StorageCost]:
    """Costs by a copy of the processor: what it counts, gathers or draws is not to begin with the trial's samples."""
    processor = copy_of(plan.processor)
    with random_state_kept():
        try:
            return _generic_costs(plan, processor, modes, count)
        except SampleError:
            if processor is plan.processor:
                raise
        return _generic_costs(plan, plan.processor, modes, count)  # so that it knows that it failed


def _generic_costs(plan: BuildPlan, processor: Any, modes: tuple[str, ...], count: int) -> list[StorageCost]:
    """Costs of several storages of the same graphs: the processor makes each graph once for all of them."""
    assert plan.source is not None
    maker = GenericMaker(plan.source, processor, modes[0], plan.parts["base_graph"])
    records: dict[str, list[tuple[Layout, bytes]]] = {mode: [] for mode in modes}
    made = dict.fromkeys(modes, 0.0)
    layouts: dict[int, Layout] = {}
    begun = at = time.perf_counter()
    for index, graph in maker.graphs(0, min(_FULL_PROBE if plan.can_be_structured else _PROBE, count)):
        processing = time.perf_counter() - at
        for mode in modes:
            at = time.perf_counter()
            layout, body = maker.encoded(index, graph, mode if mode == "full" else "compact")
            layouts[layout.id] = layout
            records[mode].append((layout, body))
            made[mode] += processing + time.perf_counter() - at
        at = time.perf_counter()
        if at - begun > _PROBE_SECONDS and index + 1 >= _FULL_PROBE:
            break
    maker.processing.check_base_graph()
    costs = []
    for mode in modes:
        at = time.perf_counter()
        known = constants_of(records[mode][:FIRST], MOST_BYTES)
        bodies = [compacted(body, known) for _, body in records[mode]]
        made[mode] += time.perf_counter() - at
        maker.base.constants = known
        at = time.perf_counter()
        for body in bodies:
            decode_graph(body, layouts, maker.base)
        costs.append(_cost(mode, made[mode], time.perf_counter() - at, bodies, GROUP_BYTES))
    return costs


def _cost(
    storage: str, making: float, reading: float, bodies: list[bytes], group_bytes: int = 0
) -> StorageCost:
    count = len(bodies)
    size = float(np.mean([disk_bytes(len(body) + 8, group_bytes) for body in bodies]))
    return StorageCost(storage, making * 1e6 / count, reading * 1e6 / count, size)
