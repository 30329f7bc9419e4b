"""What is in a shard's file: its outline, read without LMDB, and every record, compared with what else the store says of it.

LMDB trusts what it maps, and a damaged page can end the process. A quick look therefore reads the few pages it needs
with plain reads and checks every number; it finds a foreign, truncated or swapped file in microseconds, whatever its
size. It proves nothing about the records: that takes the file's digest.

Layout (LMDB 0.9 file format, little-endian): pages 0 and 1 hold ``u64 page number, u16, u16 flags, u16 lower, u16
upper``, then ``u32 magic, u32 version, u64 address, u64 map size``, the free list's and the main tree's descriptor
(``u32 page size, u16 flags, u16 depth, u64 branch, leaf and overflow pages, u64 entries, u64 root``), ``u64 last page,
u64 transaction``. Tree pages list ``u16`` offsets of nodes ``u16 low, u16 high, u16 flags, u16 key length, key``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchcell_cache.builder.check.report import Report
from torchcell_cache.builder.generations import stored_processor
from torchcell_cache.builder.generic import attributes_of
from torchcell_cache.builder.shards import StructuredMaker
from torchcell_cache.codec import deletions as structured
from torchcell_cache.codec import envelope
from torchcell_cache.codec.constants import expanded, from_text
from torchcell_cache.codec.delta_code import decode_gaps_ragged
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Int64Array, ascends
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import CacheError, CorruptRecordError, CorruptShardError, FormatError
from torchcell_cache.graph.compare import value_difference
from torchcell_cache.graph.records import decode_graph
from torchcell_cache.graph.removal import Removal
from torchcell_cache.processors.deletion import phenotype_fields
from torchcell_cache.store.attributes import Attribute
from torchcell_cache.store.columns import Arrays
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import GRAPH_FILES
from torchcell_cache.store.shard_entry import ShardEntry

_MAGIC = 0xBEEFC0DE
_PAGE = struct.Struct("<QHHHH")
_META = struct.Struct("<10xH4xII16xI44x6xH24xQQ8xQ")
_NODE = struct.Struct("<HHHH")
_BRANCH, _LEAF, _META_PAGE = 0x01, 0x02, 0x08
_MAX_DEPTH = 32
_NO_ROOT = (1 << 64) - 1
KEY_BYTES = 8

_CHUNK_BYTES = 16 << 20
_CHUNK = 512


class ShardOutline(NamedTuple):
    """What the pages of a shard say: number of entries, first and last key as sample index (-1 when empty)."""

    entries: int
    first: int
    last: int


def outline(path: str | Path) -> ShardOutline:
    """Read the outline of a shard file.

    Raises:
        CorruptShardError: If a page is not what LMDB writes.
        FormatError: If it is the other file format of LMDB 1.0.
        OSError: If the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        try:
            page_size, entries, root, depth = _newest_meta(descriptor)
            if size % page_size:
                raise ValueError(f"{size:,} bytes are no multiple of its page size {page_size}")
            if root == _NO_ROOT:
                return ShardOutline(entries, -1, -1)
            pages = descriptor, size, page_size, root, depth
            return ShardOutline(entries, _end_key(*pages, last=False), _end_key(*pages, last=True))
        except (struct.error, ValueError) as error:
            raise CorruptShardError(f"{path} is not the LMDB file of a shard: {error}", path=path) from None
        except FormatError as error:
            raise FormatError(f"{path}: {error}", path=path) from None


def _newest_meta(descriptor: int) -> tuple[int, int, int, int]:
    """Page size, entries, root page and depth of the main tree, from the meta page of the last transaction."""
    found: list[tuple[int, int, int, int, int]] = []
    page_size = 0
    for number in (0, 1):
        page = os.pread(descriptor, 256, number * page_size)
        flags, magic, version, size, depth, entries, root, transaction = _META.unpack_from(page)
        if flags & _META_PAGE == 0 or magic != _MAGIC:
            raise ValueError(f"page {number} is no meta page")
        if version != 1:
            what = f"LMDB file format {version}, this version reads 1"
            raise FormatError(what, fix="build the store again, or upgrade torchcell_cache")
        if not 512 <= size <= 65536 or size & (size - 1) or page_size not in (0, size):
            raise ValueError(f"page size {size}")
        page_size = size
        found.append((transaction, size, entries, root, depth))
    return max(found)[1:]


def _end_key(descriptor: int, size: int, page_size: int, root: int, depth: int, *, last: bool) -> int:
    """First or last key of the tree."""
    number = root
    for level in range(min(depth, _MAX_DEPTH)):
        if not 2 <= number < size // page_size:
            raise ValueError(f"page {number} of {size // page_size}")
        page = os.pread(descriptor, page_size, number * page_size)
        own, _, flags, lower, _ = _PAGE.unpack_from(page)
        count = (lower - _PAGE.size) // 2
        if own != number or not 0 < count <= page_size // 2:
            raise ValueError(f"page {number} says it is page {own} with {count} nodes")
        where = struct.unpack_from("<H", page, _PAGE.size + 2 * (count - 1 if last else 0))[0]
        low, high, more, key_bytes = _NODE.unpack_from(page, where)
        if flags & _LEAF and level == depth - 1:
            key = page[where + _NODE.size : where + _NODE.size + key_bytes]
            if len(key) != KEY_BYTES:
                raise ValueError(f"a key of {key_bytes} bytes, expected {KEY_BYTES}")
            return int.from_bytes(key, "big")
        if not flags & _BRANCH:
            break
        number = low | high << 16 | more << 32
    raise ValueError(f"its tree of depth {depth} does not end in a leaf")


class RecordChecker:
    """Checks the records of shards whose file is known to be whole, by what else of the store is known to be."""

    def __init__(self, generation: Generation, report: Report) -> None:
        self.generation, self.manifest, self.report = generation, generation.manifest, report
        self.columns: Arrays = {}
        self.table: SampleTable | None = None
        self.attributes: dict[str, Attribute] = {}
        self.removal: Removal | None = None
        self.graph: Any = None
        self.layouts_seen: set[str] = set()

    def add(self, name: str, text: object, shard: int | None = None, sample: int | None = None) -> None:
        """Note a problem of one of the generation's files."""
        self.report.add(f"{self.manifest.generation}/{name}", text, shard, sample)

    @cached_property
    def _maker(self) -> StructuredMaker | None:
        """Makes the records again, if columns and index are known to be whole."""
        schema = self.generation.structured
        if self.table is None or (self.removal is None and schema.has_removed):
            return None
        return StructuredMaker(schema, self.table, self.removal if schema.has_removed else None)

    @cached_property
    def _says_fields(self) -> bool:
        """Whether the store says which fields its graphs have, and where: not of KHopSubgraph, which has no topology."""
        try:
            return self.generation.topology is not None and stored_processor(self.manifest) is not None
        except CacheError:
            return False

    def check_records(self, entry: ShardEntry, on_progress: Callable[[int], None]) -> None:
        """Check all records of one shard, problem by problem."""
        name, count = entry.file.name, entry.stop - entry.start
        step = max(1, min(_CHUNK, _CHUNK_BYTES * count // max(entry.file.size, 1)))
        low = high = 0
        layouts: set[str] = set()
        constants = from_text(self.generation.schema.get("constants", {}))
        for start in range(entry.start, entry.stop, step):
            stop = min(start + step, entry.stop)
            try:
                records = self.generation.files.read(range(start, stop), [entry.index] * (stop - start))
            except CorruptRecordError as error:
                self.add(name, error, entry.index)
                return
            bodies = [memoryview(record)[8:] for record in records]
            whole = (expanded(body, constants) for body in bodies)
            sums = envelope.digest_sums(whole, range(start, stop))
            low, high = (low + sums[0]) % (1 << 64), (high + sums[1]) % (1 << 64)
            for sample, text in self._problems(records, start, entry.seed, layouts):
                self.add(name, text, entry.index, sample)
            self.report.count("records", stop - start)
            on_progress(stop - start)
        if (low, high) != entry.sums:
            self.add(name, "the sums of its records are not those of the manifest", entry.index)
        if layouts != set(entry.layouts):
            text = f"layouts {sorted(layouts)}, the manifest says {sorted(entry.layouts)}"
            self.add(name, text, entry.index)
        self.layouts_seen |= layouts

    def _problems(
        self, records: list[bytes], start: int, seed: int, layouts: set[str]
    ) -> Iterator[tuple[int, str]]:
        expected = None
        if self.generation.is_structured and self._maker is not None:
            chunks = self._maker.chunks(start, start + len(records))
            expected = [body for chunk in chunks for body in chunk.bodies]
        for k, record in enumerate(records):
            try:
                envelope.check([record], [start + k], seed)
            except CorruptRecordError as error:
                yield start + k, error.what
                continue
            if not self.generation.is_structured:
                layouts.add(f"{int.from_bytes(record[16:24], 'little'):016x}")
                found = self._generic(record, start + k)
            elif expected is not None and record[8:] == expected[k]:
                continue  # decoding would only say the same again: the expected bytes come from checked columns
            else:
                found = self._structured(record, start + k)
            yield from ((start + k, text) for text in found)

    def _structured(self, record: bytes, index: int) -> Iterator[str]:
        try:
            columns = structured.decode(self.generation.structured, [record])
        except CacheError as error:
            yield str(error)
            return
        schema, topology = self.generation.structured, self.generation.topology
        ids = columns.ids.astype(np.int64)
        if self.table is not None:
            row = self.table.sample(index)
            yield from _different({"perturbed ids": ids}, {"perturbed ids": row.perturbed})
            yield from _different({"measurements": columns.values}, {"measurements": row.values})
        if _misplaced(ids, schema.num_nodes):
            yield f"its perturbed ids do not ascend within 0..{schema.num_nodes - 1}"
        if schema.has_removed and topology is not None:
            positions, _ = decode_gaps_ragged(columns.words, columns.word_ptr)
            if _misplaced(positions, topology.size):
                yield f"its removed positions do not ascend within 0..{topology.size - 1}"
            elif self._maker is not None and self._maker.removal is not None:
                wanted, _ = self._maker.removal.removed(columns.ids, columns.ptr)
                text = value_difference(positions, wanted.astype(np.int64))
                if text is not None:
                    yield f"its removed positions are not those of the incidence index: {text}"

    def _generic(self, record: bytes, index: int) -> Iterator[str]:
        if self.graph is None and self.generation.has_file(GRAPH_FILES[0]):
            return  # its graph is damaged
        try:
            graph = decode_graph(memoryview(record)[8:], self.generation.layouts, self.generation.base_fields)
        except Exception as error:  # whatever a record can do to the decoder is a finding, never the end
            yield f"{type(error).__name__}: {error}" if not isinstance(error, CacheError) else str(error)
            return
        own = attributes_of(graph) if self.attributes else {}
        for name, column in self.attributes.items():
            got, want = own.get(name), column.one(index)
            if got != want and not (want != want and (got is None or got != got)):
                yield f"its {name} is {got!r:.80}, in the columns {want!r:.80}"
        if "y" in self.columns:
            y = graph.y.detach().numpy()
            yield from _different({"y": y}, {"y": np.asarray(self.columns["y"][index]).reshape(y.shape)})
        if self.table is not None and self._says_fields:
            row, topology = self.table.sample(index), self.generation.topology
            store = graph if topology is None or topology.node_type is None else graph[topology.node_type]
            fields = phenotype_fields(row.values, row.phenotypes, row.statistics)
            found = getattr(store, "_store", store)._mapping
            yield from _different(found, {"perturbation_indices": row.perturbed, **fields})


def _different(found: Any, wanted: dict[str, Any]) -> Iterator[str]:
    """What a record holds that the columns do not say."""
    for name, value in wanted.items():
        got, want = (v.numpy() if hasattr(v, "numpy") else v for v in (found.get(name), value))
        text = value_difference(got, want)
        if text is not None:
            yield f"its {name} {'is not that' if name == 'y' else 'are not those'} of the columns: {text}"


def _misplaced(ids: Int64Array, limit: int) -> bool:
    return len(ids) > 0 and not (ids[0] >= 0 and ids[-1] < limit and ascends(ids, np.array([0, len(ids)])))
