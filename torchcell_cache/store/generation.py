"""One complete generation of a store, opened for reading."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec import deletions as structured
from torchcell_cache.codec import envelope
from torchcell_cache.codec.deletions import StructuredColumns, StructuredSchema
from torchcell_cache.codec.layout import Layout
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.hints import root_argument
from torchcell_cache.core.lazy import ThreadLock, cached_property
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import CorruptRecordError, FormatError, StorageLostError
from torchcell_cache.graph.files import load_base_graph
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.records import BaseFields, decode_graph
from torchcell_cache.graph.removal import Removal
from torchcell_cache.graph.topology import Topology
from torchcell_cache.processors import BUILT_IN
from torchcell_cache.processors.assemble import Assembler
from torchcell_cache.processors.deletion import DeletionProcessor
from torchcell_cache.processors.private import SharedFields
from torchcell_cache.store.attributes import Attributes
from torchcell_cache.store.columns import Arrays, arrays_to_table, load_columns
from torchcell_cache.store.manifest import (
    GROUPED,
    MANIFEST_NAME,
    SECOND,
    Manifest,
    load_manifest,
    processed_dir,
    read_manifest,
)
from torchcell_cache.store.records import ShardFiles
from torchcell_cache.store.schema import check_schema, decoding
from torchcell_cache.store.stamps import Fetcher, have_file, have_shard
from torchcell_cache.store.table_reader import MAX_BYTES, TableReader

T = TypeVar("T")

_SHARED: weakref.WeakValueDictionary[tuple[str, str], Any] = weakref.WeakValueDictionary()
_SHARED_LOCK = ThreadLock()


class Generation:
    """A store as it was published once; never changes while it is open."""

    fetcher: Fetcher | None = None

    def __init__(self, root: Path, manifest: Manifest, fetcher: Fetcher | None = None) -> None:
        self.root, self.manifest, self.fetcher = root, manifest, fetcher
        self.directory = processed_dir(root) / manifest.generation
        self.schema = check_schema(manifest.schema, self.directory)
        shards, self._entries = manifest.shards, {entry.name: entry for entry in manifest.files}
        self.seeds = np.array([s.seed for s in shards], dtype=np.uint64)
        starts = [*(s.start for s in shards), manifest.num_samples]
        paths = [str(self.directory / s.file.name) for s in shards]
        # Bound to what it needs rather than to this object: without a cycle, what nobody uses is gone at once.
        before_open = partial(have_shard, self.directory, manifest, fetcher)
        sizes, in_groups = [s.file.size for s in shards], GROUPED in self.schema
        self.files = ShardFiles(paths, sizes, starts, before_open, in_groups)

    @classmethod
    def open(cls, root: Path, generation: str | None = None) -> Generation:
        """Open the published generation, or a given earlier one."""
        if generation is None:
            manifest = read_manifest(root)
        else:
            path = processed_dir(root) / generation / MANIFEST_NAME
            try:
                manifest = load_manifest(path)
            except FileNotFoundError:
                gone = f"generation {generation} of the store at {root} was removed"
                raise StorageLostError(gone, path=path, fix="reopen the dataset") from None
        return cls(Path(root), manifest)

    def __reduce__(self) -> Any:
        if self.fetcher is not None:
            return self.fetcher.reopen()
        return Generation.open, (self.root, self.manifest.generation)

    def __len__(self) -> int:
        return self.manifest.num_samples

    def file(self, name: str) -> Path:
        """Path of one of the generation's fixed files, its digest checked."""
        if name not in self._entries:
            raise FormatError(f"generation {self.manifest.generation} has no {name}", path=self.directory)
        have_file(self.directory, self._entries[name], self.fetcher)
        return self.directory / name

    def has_file(self, name: str) -> bool:
        """Whether the generation has one of the fixed files."""
        return name in self._entries

    # What all samples share

    @cached_property
    @lasting
    def base_graph(self) -> Any:
        """The base graph; one object per process and content, its tensors mapped. ``None`` if the store has none."""
        if not self.has_file("base_graph.json"):
            return None
        key = (str(self.directory), self.manifest.content_digest)
        for name in ("base_graph.safetensors", "base_graph.json"):
            self.file(name)  # also for a graph that is shared: its file may have been damaged since
        with _SHARED_LOCK:
            graph = _SHARED.get(key)
            if graph is None:
                with storage_errors(self.directory, "read"):
                    graph = load_base_graph(self.directory)
                _SHARED[key] = graph
            return graph

    @property
    def is_structured(self) -> bool:
        """Whether records are perturbed ids and removed positions rather than typed fields."""
        return bool(self.schema["records"] == "structured")

    @cached_property
    def topology(self) -> Topology | None:
        """The position space of a node-deleting processor, or ``None``."""
        stored = self.schema.get("topology")
        return None if stored is None else Topology.from_dict(stored)

    @cached_property
    def removal(self) -> Removal | None:
        """The incidence index, mapped."""
        if self.topology is None or not self.has_file("incidence.safetensors"):
            return None
        with storage_errors(self.directory, "read"):
            return Removal.load(self.file("incidence.safetensors"), self.topology)

    @cached_property
    def processor(self) -> DeletionProcessor | None:
        """The built-in processor of the store, or ``None`` where records need none."""
        stored = self.schema.get("processor")
        if stored is None:
            return None
        if stored["name"] not in BUILT_IN:
            raise FormatError(
                f"the store names processor {stored['name']!r}; this version knows {sorted(BUILT_IN)}"
            )
        try:
            return BUILT_IN[stored["name"]](**stored["settings"])
        except TypeError as error:
            raise FormatError(f"the store's settings of {stored['name']}: {error}") from None

    @cached_property
    def columns(self) -> Arrays:
        """Columns of all samples, mapped."""
        with storage_errors(self.directory, "read"):
            return load_columns(self.file("columns.safetensors"))

    @cached_property
    def table(self) -> SampleTable | None:
        """Perturbed ids and measurements of all samples, or ``None`` if the source had none."""
        if "perturbed" not in self.columns:
            return None
        labels = tuple(self.schema["phenotypes"]), tuple(self.schema["statistics"])
        table = arrays_to_table(self.columns, *labels)
        if [table.unknown is None, table.origins is None] != [name not in self.schema for name in SECOND]:
            raise FormatError(f"{self.directory}: schema and columns differ in {' or '.join(SECOND)}")
        return table

    @cached_property
    def attributes(self) -> Attributes:
        """Texts and single numbers of graphs as columns, mapped; none where the schema does not say."""
        schema = self.schema.get("attributes", {})
        return Attributes.from_arrays(self.columns if schema else {}, schema, len(self))

    def unknown_names(self, positions: npt.NDArray[np.int64] | Sequence[int]) -> list[tuple[str, ...]]:
        """Perturbed names that no node has, of the given samples."""
        unknown = self.table.unknown if "unknown_names" in self.schema and self.table is not None else None
        return [() if unknown is None else unknown[k] for k in np.asarray(positions).tolist()]

    @cached_property
    def table_reader(self) -> TableReader | None:
        """This process's own copy of the table, for batches; ``None`` if there is none or it is too large."""
        entry = self._entries.get("columns.safetensors")
        if not self.is_structured or entry is None or entry.size > MAX_BYTES:
            return None
        names = tuple(self.schema["phenotypes"]), tuple(self.schema["statistics"])
        path = self.file(entry.name)
        with storage_errors(path, "read"):
            return TableReader.load(path, entry.xxh3, *names, len(self), self.structured.num_nodes)

    @cached_property
    def structured(self) -> StructuredSchema:
        """Schema of structured records."""
        schema = StructuredSchema.from_dict(self.schema["structured"])
        if self.topology is not None and self.topology.num_nodes != schema.num_nodes:
            raise FormatError(f"{self.directory}: schema and topology differ in their number of nodes")
        return schema

    @cached_property
    def layouts(self) -> dict[int, Layout]:
        """Layouts of generic records by id."""
        return {layout.id: layout for layout in map(Layout.from_dict, self.schema["layouts"].values())}

    @cached_property
    @lasting
    def base_fields(self) -> BaseFields:
        """The base graph's fields, for generic records."""
        return BaseFields(self.base_graph, self.schema.get("constants"))

    @cached_property
    def shared_fields(self) -> SharedFields:
        """What samples share with the base graph and with each other."""
        return SharedFields([self.base_graph, *([self.assembler.shell] if self.is_structured else [])])

    @cached_property
    @lasting
    def assembler(self) -> Assembler:
        """Makes graphs of structured records."""
        assert self.processor is not None
        assert self.topology is not None
        return Assembler(
            self.processor,
            self.base_graph,
            self.topology,
            None if self.structured.has_removed else self.removal,
            tuple(self.schema["phenotypes"]),
            tuple(self.schema["statistics"]),
            self.structured.has_removed,
        )

    # Reading

    def read(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> list[bytes]:
        """Sealed records of the given samples, in the order asked for, checksums verified."""
        array = np.asarray(indices, dtype=np.int64)
        wanted = array.tolist()
        shards = self.files.shard_of(array)
        if self.fetcher is None or self.fetcher.bring_shards(shards):
            records = self.files.read(wanted, shards.tolist())
        else:
            # Shard after shard: each is fetched once, however few fit at a time.
            order = np.argsort(shards, kind="stable")
            found = self.files.read(array[order].tolist(), shards[order].tolist())
            records = [found[k] for k in np.argsort(order).tolist()]
        self._check(records, wanted, shards)
        return records

    def visit(self, indices: npt.NDArray[np.int64], use: Callable[[Sequence[envelope.Buffer]], T]) -> T:
        """What ``use`` makes of the samples' records, which it sees verified but not copied and must not keep."""
        wanted = indices.tolist()
        shards = self.files.shard_of(indices)
        if self.fetcher is not None and not self.fetcher.bring_shards(shards):
            return use(self.read(indices))

        def checked(records: Sequence[envelope.Buffer]) -> T:
            self._check(records, wanted, shards)
            return use(records)

        return self.files.visit(wanted, shards.tolist(), checked)

    def _check(self, records: Sequence[envelope.Buffer], wanted: list[int], shards: Any) -> None:
        try:
            envelope.check(records, wanted, self.seeds[shards])
        except CorruptRecordError as error:
            shard = int(shards[error.place])
            path = self.directory / self.manifest.shards[shard].file.name
            fix = f"torchcell-cache repair {root_argument(self.root)}"
            raise CorruptRecordError(f"{path}: {error} (shard {shard})", path=path, fix=fix) from None

    def read_columns(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> StructuredColumns:
        """Records of a structured store as ragged columns."""
        return structured.decode(self.structured, self.read(indices))

    def graphs(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> list[Any]:
        """The graphs of the given samples, as the processor made them, on the base graph's own tensors."""
        records = self.read(indices)
        with decoding(self):
            if self.is_structured:
                columns = structured.decode(self.structured, records)
                return self.assembler.graphs(columns, self.unknown_names(indices))
            return [decode_graph(memoryview(r)[8:], self.layouts, self.base_fields) for r in records]
