"""What a build will do - kind of records, storage, schema, fingerprint - and the files that all its samples share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xxhash

from torchcell_cache.builder.codehash import processor_part
from torchcell_cache.builder.shards import COLUMNS_FILE, INCIDENCE_FILE, PLAN_FILE, ShardPlan
from torchcell_cache.codec.deletions import StructuredSchema
from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import Storage
from torchcell_cache.core.files import publish_new, replace_file, write_atomic
from torchcell_cache.core.fingerprint import Fingerprint, source_part
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import offsets, smallest_unsigned
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import BuildFailedError, SettingError, SourceContractError
from torchcell_cache.graph.fields import digest_of_parts, graph_digests
from torchcell_cache.graph.files import base_graph_files
from torchcell_cache.graph.removal import Removal
from torchcell_cache.graph.topology import Topology, check_rows, topology_of
from torchcell_cache.processors import BUILT_IN, NAMED
from torchcell_cache.processors.perturbation import Perturbation
from torchcell_cache.sources.base import Source, notes_of
from torchcell_cache.sources.torchcell_processors import paired
from torchcell_cache.store.columns import columns_bytes, count_removed_edges, table_to_arrays
from torchcell_cache.store.groups import GROUP_BYTES
from torchcell_cache.store.manifest import COMPACT, GRAPH_FILES, GROUPED
from torchcell_cache.store.stamps import quick_digest

FORMAT_VERSION = 1
STORAGES = get_args(Storage)
SHARD_SIZES = {"perturbation": 32_768, "delta": 4_096, "full": 1_024}
"""Samples per shard by default: seconds of work each, and never a function of the number of workers."""


@dataclass(frozen=True, eq=False)
class BuildPlan:
    """A build before its storage is fixed.

    Attributes:
        source: Where the samples come from; ``None`` where a store's own records are copied.
        processor: The processor, or ``None``.
        base_graph: The graph all samples share, or ``None``.
        num_samples: Number of samples.
        parts: Fingerprint tree without ``storage``.
        table: All samples as columns, if the source has them.
        topology: The position space, for node-deleting processors on such a source.
        notes: What the source has to say of itself.
    """

    source: Source | None
    processor: Any
    base_graph: Any
    num_samples: int
    parts: dict[str, Any]
    table: SampleTable | None
    topology: Topology | None
    notes: tuple[str, ...] = ()

    @cached_property
    def graph_digest(self) -> str:
        """Content hash of the base graph, empty without one."""
        return "" if self.base_graph is None else digest_of_parts(self.parts["base_graph"])

    @cached_property
    def removal(self) -> Removal:
        """Incidence index and rules of the base graph, built once."""
        removal: Removal = self.processor.build_removal(self.base_graph, self.graph_digest)
        return removal

    @property
    def can_be_structured(self) -> bool:
        """Whether samples can be stored as perturbed ids and removed positions."""
        return self.topology is not None

    def fingerprint(self, storage: str) -> Fingerprint:
        """The fingerprint of the store that a build with ``storage`` makes."""
        return Fingerprint({**self.parts, "storage": storage})

    def seed(self, storage: str) -> int:
        """64 bits of the fingerprint, for the records' checksums."""
        return int(self.fingerprint(storage).digest[:16], 16)


def make_plan(source: Source, processor: Any, digests: dict[str, str] | None = None) -> BuildPlan:
    """Look at source and processor, hash them, and find out what can be stored; ``digests`` are the base graph's, if known.

    Raises:
        SourceContractError: If the base graph is not fit for the processor.
        SettingError: If the processor's code or settings cannot be identified.
    """
    source, processor, said = paired(source, processor)
    graph, table, topology = source.base_graph, getattr(source, "table", None), None
    table = table if isinstance(table, SampleTable) else None
    # A subclass may assemble otherwise: its graphs are stored whole.
    built_in = type(processor) in BUILT_IN.values()
    takes_ids = type(processor) in NAMED.values()
    if takes_ids and getattr(source, "gives_graphs", False):
        raise SourceContractError(
            f"{type(processor).__name__} makes samples from perturbed ids alone; those of {type(source).__name__} are "
            "graphs with features of their own, which would be lost",
            fix="processor=None (processor=none on the command line), or a transform of your own",
        )
    if built_in and table is not None:
        topology = topology_of(graph, processor.node_type)
        check_rows(graph, topology)
        given = getattr(source, "node_type", topology.node_type)
        if given != topology.node_type:
            what = f"the source perturbs '{given}' nodes, the processor deletes '{topology.node_type}' nodes"
            raise SourceContractError(what, fix="pass the same node_type to both")
    elif takes_ids and table is None:
        what = f"{type(processor).__name__} needs perturbed ids; {type(source).__name__} gives graphs"
        fix = "use a PerturbationTable as source, or a transform of your own as processor"
        raise SourceContractError(what, fix=fix)
    if digests is None:
        digests = {} if graph is None else graph_digests(graph)
    parts = {"format": FORMAT_VERSION, "base_graph": digests}
    parts |= {"processor": processor_part(processor), "source": source_part(source)}
    notes = (*notes_of(source), *said, *_on_statistics(processor, table))
    return BuildPlan(source, processor, graph, len(source), parts, table, topology, notes)


def _on_statistics(processor: Any, table: SampleTable | None) -> tuple[str, ...]:
    """A line if only some samples will have the fields of statistics: PyG's ``DataLoader`` fails on such a mixture."""
    if table is None or not table.statistics or getattr(processor, "statistics", None) != "measured":
        return ()
    total = offsets(np.asarray(~np.isnan(table.values[:, len(table.phenotypes) :]).all(axis=1)))
    without = int((total[table.value_ptr[1:]] == total[table.value_ptr[:-1]]).sum())
    if without in (0, len(table)):
        return ()
    return (
        f"{without:,} of {len(table):,} samples have no statistic, hence none of its fields, and PyG cannot batch them with "
        f'the others; {type(processor).__name__}(statistics="always") gives every sample the fields, empty where '
        "nothing was measured",
    )


def checked_plan(plan: BuildPlan, storage: str, allow_empty: bool = False) -> BuildPlan:
    """The plan, if it has samples and ``storage`` can hold them."""
    if plan.num_samples == 0 and not allow_empty:
        said = "; ".join(["the source has 0 samples", *plan.notes])
        raise SourceContractError(said, fix="pass allow_empty=True if that is right")
    choice("storage", storage, STORAGES)
    if storage == "perturbation" and not plan.can_be_structured:
        raise SettingError(
            'storage="perturbation" keeps ids only and recomputes masks, which needs a perturbation source and a '
            f"built-in processor, not {type(plan.source).__name__} and {type(plan.processor).__name__}",
            fix='use storage="delta", "full" or "auto"',
        )
    return plan


def make_shard_plan(
    plan: BuildPlan, storage: str, shard_size: int | None, max_record_bytes: int
) -> ShardPlan:
    """The plan that all workers share."""
    table, topology, processor = plan.table, plan.topology, plan.processor
    schema: dict[str, Any] = {"records": "generic", "structured": None, "processor": None, "layouts": {}}
    if plan.can_be_structured and storage != "full":
        named = {"name": type(processor).__name__, "settings": processor.settings()}
        structured = structured_schema(plan, storage).to_dict()
        schema |= {"records": "structured", "structured": structured, "processor": named}
    schema |= {
        "topology": None if topology is None else topology.to_dict(),
        "phenotypes": [] if table is None else list(table.phenotypes),
        "statistics": [] if table is None else list(table.statistics),
        **columns_part(table),
        **written_form(schema["records"] == "generic", storage),
    }
    size, seed = SHARD_SIZES[storage] if shard_size is None else shard_size, plan.seed(storage)
    return ShardPlan(plan.num_samples, size, seed, schema["records"], schema, max_record_bytes)


def written_form(generic: bool, storage: str) -> dict[str, int]:
    """What a schema says of how records are written, beyond the first version of the format; see ``mode_of``."""
    return ({} if storage == "full" else {COMPACT: 2}) | {GROUPED: GROUP_BYTES} if generic else {}


def mode_of(storage: str, schema: dict[str, Any]) -> str:
    """How the fields of generic records are encoded."""
    return "full" if storage == "full" else "compact" if COMPACT in schema else "delta"


def columns_part(table: SampleTable | None) -> dict[str, Any]:
    """What a schema says of columns that are in no structured record, and samples or the dataset have."""
    parts = {} if table is None else {"unknown_names": table.unknown, "origins": table.origins}
    return {name: part.digest() for name, part in parts.items() if part is not None}


def structured_schema(plan: BuildPlan, storage: str) -> StructuredSchema:
    """How ids, measurements and, in ``delta`` storage, removed positions are written."""
    table, topology = plan.table, plan.topology
    assert table is not None
    assert topology is not None
    most_perturbed, most_measured = (int(np.diff(p).max(initial=0)) for p in (table.ptr, table.value_ptr))
    if most_measured > 0xFFFF:
        raise SourceContractError(f"a sample has {most_measured} measurements, at most 65,535 can be stored")
    removed = storage == "delta" and not isinstance(plan.processor, Perturbation)
    columns = len(table.phenotypes) + len(table.statistics)
    wide = most_perturbed > 0xFFFF or most_measured > 0xFF
    return StructuredSchema(topology.num_nodes, columns, removed, wide)


def write_shared_files(
    plan: BuildPlan, shards: ShardPlan, directory: Path, together: bool, console: Callable[[str], None]
) -> float:
    """Write the files beside the shards; returns how many milliseconds the index took.

    ``together``, several tasks do it at once: whoever is first writes a file, the others make the same bytes and compare.
    Otherwise every file is written anew.

    Raises:
        BuildFailedError: If another task wrote other bytes.
        StorageError: If the file system refuses.
    """

    def write(name: str, data: bytes) -> None:
        path = directory / name
        if (together and path.exists()) or not write_atomic(path, data, replace=not together):
            _compare(path, xxhash.xxh3_128_hexdigest(data))

    graph, table, topology, index_ms = plan.base_graph, plan.table, plan.topology, 0.0
    if graph is not None:
        with base_graph_files(graph, directory) as place:
            for name in GRAPH_FILES:
                publish_graph_file(place / name, directory / name, together)
    if table is not None and topology is not None:
        index, index_ms = plan.removal.index, plan.removal.index.build_ms
        edges, types = index.num_edges, len(index.edge_types)
        console(f"incidence index: {index_ms:.0f} ms for {edges:,} edges of {types} edge types")
        write(INCIDENCE_FILE, plan.removal.to_bytes())
    if table is not None:
        write(COLUMNS_FILE, columns_of(table, topology, graph))
    write(PLAN_FILE, shards.to_bytes())
    return index_ms


def columns_of(table: SampleTable, topology: Topology | None, graph: Any) -> bytes:
    """The columns' file of samples that a source gives."""
    removed = None if topology is None else count_removed_edges(graph, topology, table)
    return table_columns(table, topology, removed)


def table_columns(table: SampleTable, topology: Topology | None, removed: Any) -> bytes:
    """Samples as columns in the smallest dtypes; ``removed`` are numbers of edges, ``[n]``, if any can go."""
    nodes = int(table.ids.max(initial=0)) + 1 if topology is None else topology.num_nodes
    columns = table_to_arrays(table, nodes)
    if removed is not None:
        columns["removed_edges"] = removed.astype(smallest_unsigned(int(removed.max(initial=0))))
    return columns_bytes(columns)


def publish_graph_file(ours: Path, target: Path, together: bool = False) -> None:
    """Give a file its place, or compare it with the one that another task put there."""
    ours.chmod(0o444)
    digest = quick_digest(ours) if together else ""
    if not together:
        replace_file(ours, target)
    elif target.exists() or not publish_new(ours, target):
        _compare(target, digest)


def _compare(path: Path, ours: str) -> None:
    theirs = quick_digest(path)
    if theirs != ours:
        what = f"another task wrote {path} with digest {theirs}, this one makes {ours} of the same source and settings"
        fix = f"use the same versions of everything on all nodes; else remove {path} and run the tasks again"
        raise BuildFailedError(what, path=path, fix=fix)
