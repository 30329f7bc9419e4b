"""Rebuilding single files of a generation, each from what is left of the others or from the source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from torchcell_cache.builder.as_stored import in_stored_words, on_stored_graph
from torchcell_cache.builder.codehash.parts import processor_part
from torchcell_cache.builder.generations import stored_processor
from torchcell_cache.builder.generic import GenericMaker, label_columns
from torchcell_cache.builder.run import check_source
from torchcell_cache.builder.shards import (
    COLUMNS_FILE,
    INCIDENCE_FILE,
    RecordMaker,
    ShardPlan,
    StructuredMaker,
)
from torchcell_cache.codec import deletions as structured
from torchcell_cache.core.files import file_digest, fsync_file, replace_file, temp_path, write_atomic
from torchcell_cache.core.fingerprint import explain
from torchcell_cache.core.hints import root_argument
from torchcell_cache.core.ragged import offsets, smallest_unsigned
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import CacheError, CorruptShardError, SettingError, StaleCacheError
from torchcell_cache.graph.records import graph_digest, write_base_graph
from torchcell_cache.sources.base import Source
from torchcell_cache.sources.pyg import as_source
from torchcell_cache.store.columns import Arrays, columns_bytes, count_removed_edges, table_to_arrays
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import FileEntry, Manifest

_CHUNK = 4096
_BUILD_AGAIN = "build the store again: torchcell-cache preprocess ... on_stale=rebuild"


class PartMaker:
    """Makes the files of a generation that is being repaired.

    Args:
        root: Root of the store.
        generation: The new generation; files that are whole are in place already.
        source: The source, if the caller gave one.
        processor: The processor, if the caller gave one.
    """

    def __init__(self, root: Path, generation: Generation, source: Any, processor: Any) -> None:
        self.root, self.generation, self.processor = root, generation, processor
        self.manifest: Manifest = generation.manifest
        self.directory = generation.directory
        self._given = None if source is None else as_source(source)
        self._checked = False
        self.notes: tuple[str, ...] = ()

    def source(self, needed_for: str) -> Source:
        """The caller's source, proven to be the store's.

        Raises:
            CorruptShardError: If there is none; says what it is needed for.
            StaleCacheError: If it is another one.
        """
        if self._given is None:
            raise CorruptShardError(
                f"{needed_for} can only be made again from the source",
                path=self.directory,
                fix=f"repair with the source: torchcell-cache repair {root_argument(self.root)} source=... (Python: source=...)",
            )
        if not self._checked:
            check_source(self.manifest, self._given, self.root)
            self._given, self.notes = on_stored_graph(self._given, self.generation)
            self._checked = True
        return self._given

    # Files that all samples share

    def base_graph(self, names: Sequence[str]) -> None:
        """Write the named files of the base graph."""
        graph = self.source(" and ".join(names)).base_graph
        place = temp_path(self.directory / "base_graph")
        place.mkdir()
        try:
            write_base_graph(graph, place)
            for name in names:
                self._insist(name, file_digest(place / name).sha256 == self._entry(name).sha256)
                (place / name).chmod(0o444)
                fsync_file(place / name)
                replace_file(place / name, self.directory / name)
        finally:
            for leftover in place.iterdir():
                leftover.unlink()
            place.rmdir()

    def incidence(self) -> None:
        """Write the incidence index, from the stored base graph."""
        graph = self.generation.base_graph
        data = stored_processor(self.manifest).build_removal(graph, graph_digest(graph)).to_bytes()
        self._write(INCIDENCE_FILE, data)

    def columns(self, whole_shards: bool) -> None:
        """Write the columns: from the source's table, or from the records where they say all of it.

        Args:
            whole_shards: Whether every shard is whole.
        """
        table = getattr(self._given, "table", None)
        if table is not None:
            self.source(COLUMNS_FILE)
            made = self._columns_of(table)
            if table.source_ids is not None and not self._is_original(COLUMNS_FILE, made):
                # Stores of cells once kept no barcodes.
                made = self._columns_of(replace(table, source_ids=None))
            self._write(COLUMNS_FILE, made)
            return
        data = self._columns_of_records() if whole_shards else None
        if data is None or not self._is_original(COLUMNS_FILE, data):  # names of samples are in no record
            self.source(COLUMNS_FILE)
            raise CorruptShardError(
                f"the source has no table to make {COLUMNS_FILE} from", path=self.directory, fix=_BUILD_AGAIN
            )
        self._write(COLUMNS_FILE, data)

    def _columns_of_records(self) -> bytes:
        generation = self.generation
        if generation.is_structured:
            return self._columns_of(_table_of_records(generation))
        return columns_bytes(self._labels())

    def _columns_of(self, table: SampleTable) -> bytes:
        topology = self.generation.topology
        if topology is None:
            return columns_bytes(table_to_arrays(table, int(table.ids.max(initial=0)) + 1))
        columns = table_to_arrays(table, topology.num_nodes)
        removed = count_removed_edges(self.generation.base_graph, topology, table)
        columns["removed_edges"] = removed.astype(smallest_unsigned(int(removed.max(initial=0))))
        return columns_bytes(columns)

    def _labels(self) -> Arrays:
        """The ``y`` column, read back from the records of a generic store."""
        maker = GenericMaker(_StoredGraphs(self.generation), None, "full")
        stats = []
        for shard in self.manifest.shards:
            for _ in maker.bodies(shard.start, shard.stop):
                pass
            stats.append(maker.extras(shard.start, shard.stop)["stats"])
        return label_columns(stats)

    def _write(self, name: str, data: bytes) -> None:
        self._insist(name, self._is_original(name, data))
        write_atomic(self.directory / name, data)

    def _is_original(self, name: str, data: bytes) -> bool:
        entry = self._entry(name)
        return (len(data), hashlib.sha256(data).hexdigest()) == (entry.size, entry.sha256)

    def _entry(self, name: str) -> FileEntry:
        return next(entry for entry in self.manifest.files if entry.name == name)

    def _insist(self, name: str, good: bool) -> None:
        if not good:
            raise CorruptShardError(
                f"{name} made again differs from the one the manifest names ({self._libraries()})",
                path=self.directory / name,
                fix=_BUILD_AGAIN,
            )

    def _libraries(self) -> str:
        made = self.manifest.created.get("libraries", {})
        return (
            "made with " + ", ".join(f"{name} {text}" for name, text in sorted(made.items()))
            if made
            else "unknown"
        )

    # Shards

    def shard_maker(self, plan: ShardPlan, whole_columns: bool) -> RecordMaker:
        """Makes the records of this store.

        Args:
            plan: The build's plan.
            whole_columns: Whether the columns are in place.

        Raises:
            CorruptShardError: If that takes a source and there is none.
            StaleCacheError: If source or processor are not the store's.
        """
        if self.generation.is_structured:
            return StructuredMaker.open(self.directory, plan)
        mode = "full" if self.manifest.storage == "full" else "delta"
        processor, built_in = self.processor, False
        if processor is None:
            try:
                processor = stored_processor(self.manifest)
                built_in = processor is not None
            except SettingError:
                raise SettingError(
                    "damaged shards of this store can only be made again by source and processor",
                    fix="repair(root, source=..., processor=...)",
                ) from None
        if built_in and self._given is None and whole_columns and self.generation.table is not None:
            return GenericMaker(_StoredSamples(self.generation), processor, mode)
        source = self.source("damaged shards of this store")
        wanted = {"processor": processor_part(processor)}
        wanted, _ = in_stored_words(self.manifest.fingerprint, wanted, processor, None, lambda: None)
        stored = {"processor": self.manifest.fingerprint["processor"]}
        if stored != wanted:
            raise StaleCacheError(
                f"the store at {self.root} was built with another processor:\n    "
                + "\n    ".join(explain(stored, wanted)),
                path=self.root,
                fix=_BUILD_AGAIN,
            )
        return GenericMaker(source, processor, mode)


class _StoredGraphs:
    """The samples of a store as a source."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.base_graph = generation.base_graph

    def __len__(self) -> int:
        return len(self.generation)

    def __getitem__(self, index: int) -> Any:
        return self.generation.graphs([index])[0]

    def identity(self) -> dict[str, Any]:
        """The store's content."""
        return {"content": self.generation.manifest.content_digest}


class _StoredSamples(_StoredGraphs):
    """The stored columns as a source of perturbations."""

    def __getitem__(self, index: int) -> Any:
        table = self.generation.table
        if table is None:
            raise CacheError("the store has no table of samples")
        return table.sample(index, self.base_graph)


def _table_of_records(generation: Generation) -> SampleTable:
    """Perturbed ids and measurements of all samples, from their records."""
    parts = [
        generation.read_columns(np.arange(start, min(start + _CHUNK, len(generation))))
        for start in range(0, len(generation), _CHUNK)
    ] or [structured.decode(generation.structured, [])]
    return SampleTable(
        ids=np.concatenate([part.ids for part in parts]),
        ptr=offsets(np.concatenate([np.diff(part.ptr) for part in parts])),
        values=np.concatenate([part.values for part in parts]),
        value_ptr=offsets(np.concatenate([np.diff(part.value_ptr) for part in parts])),
        phenotypes=tuple(generation.schema["phenotypes"]),
        statistics=tuple(generation.schema["statistics"]),
    )
