"""Rebuilding single files of a generation, each from what is left of the others or from the source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from torchcell_cache.builder.generations import stored_processor
from torchcell_cache.builder.generic import GenericMaker, attributes_of, label_column, label_of
from torchcell_cache.builder.plan import columns_of, mode_of, publish_graph_file
from torchcell_cache.builder.publishing import compared, insist_same, on_stored_graph
from torchcell_cache.builder.run import check_source
from torchcell_cache.builder.shards import (
    CHUNK,
    COLUMNS_FILE,
    INCIDENCE_FILE,
    Labels,
    RecordMaker,
    ShardPlan,
    StructuredMaker,
)
from torchcell_cache.codec import deletions as structured
from torchcell_cache.codec.constants import from_text
from torchcell_cache.core.files import file_digest, write_atomic
from torchcell_cache.core.hints import root_argument
from torchcell_cache.core.ragged import offsets
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import CorruptShardError, SettingError
from torchcell_cache.graph.fields import graph_digest
from torchcell_cache.graph.files import base_graph_files
from torchcell_cache.sources.base import Source
from torchcell_cache.sources.pyg import as_source
from torchcell_cache.sources.table import PerturbationTable
from torchcell_cache.store.attributes import Attributes
from torchcell_cache.store.columns import columns_bytes
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import Manifest
from torchcell_cache.store.shard_entry import FileEntry

_CHUNK = 4096
BUILD_AGAIN = "build the store again: torchcell-cache preprocess ... on_stale=rebuild"


class PartMaker:
    """Makes files of a generation that is being repaired, from ``source`` and ``processor`` where the caller gave them.

    Files that are whole are in place already.
    """

    def __init__(self, root: Path, generation: Generation, source: Any, processor: Any) -> None:
        self.root, self.generation, self.processor = root, generation, processor
        self.manifest: Manifest = generation.manifest
        self.directory = generation.directory
        self._given = None if source is None else as_source(source)
        self._checked = False
        self.notes: tuple[str, ...] = ()

    def source(self, needed_for: str) -> Source:
        """The caller's source, proven to be the store's."""
        if self._given is None:
            what, root = f"{needed_for} can only be made again from the source", root_argument(self.root)
            fix = f"repair with the source: torchcell-cache repair {root} source=... (Python: source=...)"
            raise CorruptShardError(what, path=self.directory, fix=fix)
        if not self._checked:
            check_source(self.manifest, self._given, self.root)
            self._given, self.notes = on_stored_graph(self._given, self.generation)
            self._checked = True
        return self._given

    # Files that all samples share

    def base_graph(self, names: Sequence[str]) -> None:
        """Write the named files of the base graph."""
        with base_graph_files(self.source(" and ".join(names)).base_graph, self.directory) as place:
            for name in names:
                self._insist(name, file_digest(place / name).sha256 == self._entry(name).sha256)
                publish_graph_file(place / name, self.directory / name)

    def incidence(self) -> None:
        """Write the incidence index, from the stored base graph."""
        graph = self.generation.base_graph
        data = stored_processor(self.manifest).build_removal(graph, graph_digest(graph)).to_bytes()
        self._write(INCIDENCE_FILE, data)

    def columns(self, whole_shards: bool) -> None:
        """Write the columns: from the source's table, or from the records where they are whole and say all of it."""
        generation, table = self.generation, getattr(self._given, "table", None)
        topology, graph = generation.topology, generation.base_graph
        if table is not None:
            self.source(COLUMNS_FILE)
            made = columns_of(table, topology, graph)
            if table.source_ids is not None and not self._is_original(COLUMNS_FILE, made):
                # Stores of cells once kept no barcodes.
                made = columns_of(replace(table, source_ids=None), topology, graph)
            self._write(COLUMNS_FILE, made)
            return
        data = None
        if whole_shards and generation.is_structured:
            parts = [
                generation.read_columns(np.arange(start, min(start + _CHUNK, len(generation))))
                for start in range(0, len(generation), _CHUNK)
            ] or [structured.decode(generation.structured, [])]
            found = SampleTable(
                ids=np.concatenate([part.ids for part in parts]),
                ptr=offsets(np.concatenate([np.diff(part.ptr) for part in parts])),
                values=np.concatenate([part.values for part in parts]),
                value_ptr=offsets(np.concatenate([np.diff(part.value_ptr) for part in parts])),
                phenotypes=tuple(generation.schema["phenotypes"]),
                statistics=tuple(generation.schema["statistics"]),
            )
            data = columns_of(found, topology, graph)
        elif whole_shards:
            labels, attributes = list[Labels](), list[Attributes | None]()
            for start in range(0, len(generation), CHUNK):
                graphs = generation.graphs(range(start, min(start + CHUNK, len(generation))))
                labels += map(label_of, graphs)
                attributes.append(Attributes.from_rows([*map(attributes_of, graphs)]))
            said = Attributes.joined(attributes)
            assert said is not None
            known = said.like(generation.schema.get("attributes", {}))
            data = columns_bytes(label_column(labels) | known.arrays())
        if data is None or not self._is_original(COLUMNS_FILE, data):  # names of samples are in no record
            self.source(COLUMNS_FILE)
            what = f"the source has no table to make {COLUMNS_FILE} from"
            raise CorruptShardError(what, path=self.directory, fix=BUILD_AGAIN)
        self._write(COLUMNS_FILE, data)

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
            libraries = self.manifest.created.get("libraries", {})
            made = ", ".join(f"{library} {text}" for library, text in sorted(libraries.items()))
            what = f"{name} made again differs from the one the manifest names"
            what = f"{what} ({f'made with {made}' if made else 'unknown'})"
            raise CorruptShardError(what, path=self.directory / name, fix=BUILD_AGAIN)

    # Shards

    def shard_maker(self, plan: ShardPlan, whole_columns: bool) -> RecordMaker:
        """Makes the records of this store, from its columns where they are whole and say all of it."""
        if self.generation.is_structured:
            return StructuredMaker.open(self.directory, plan)
        mode = mode_of(self.manifest.storage, self.manifest.schema)
        constants = from_text(self.manifest.schema.get("constants", {}))
        processor, built_in = self.processor, False
        if processor is None:
            try:
                processor = stored_processor(self.manifest)
                built_in = processor is not None
            except SettingError:
                what = "damaged shards of this store can only be made again by source and processor"
                raise SettingError(what, fix="repair(root, source=..., processor=...)") from None
        table = self.generation.table if built_in and self._given is None and whole_columns else None
        if table is not None:
            stored = PerturbationTable.of_table(self.generation.base_graph, table, processor.node_type)
            return GenericMaker(stored, processor, mode, constants=constants)
        source = self.source("damaged shards of this store")
        before, wanted = compared(self.generation, processor=processor)
        what = f"the store at {self.root} was built with another processor"
        insist_same(before, wanted, what, self.root, BUILD_AGAIN)
        return GenericMaker(source, processor, mode, constants=constants)
