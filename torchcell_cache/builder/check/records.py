"""Every record of a shard, decoded and compared with what else the store says of its sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from torchcell_cache.builder.check.report import Report
from torchcell_cache.builder.generic import attributes_of
from torchcell_cache.builder.shards import StructuredMaker
from torchcell_cache.codec import deletions as structured
from torchcell_cache.codec import envelope
from torchcell_cache.codec.constants import expanded, from_text
from torchcell_cache.codec.deletions import StructuredColumns
from torchcell_cache.codec.delta_code import decode_gaps_ragged
from torchcell_cache.core.digests import array_digest
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import CacheError, CorruptRecordError, CorruptShardError
from torchcell_cache.graph.compare import value_difference
from torchcell_cache.graph.records import decode_graph
from torchcell_cache.processors.phenotypes import phenotype_fields
from torchcell_cache.store.attributes import Attribute
from torchcell_cache.store.columns import Arrays
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.shard_entry import ShardEntry

_CHUNK_BYTES = 16 << 20
_CHUNK = 512
_LAYOUT_AT = 8


class RecordChecker:
    """Checks the records of shards whose file is known to be whole, by columns, table and maker as far as those are sound."""

    def __init__(
        self,
        generation: Generation,
        columns: Arrays,
        table: SampleTable | None,
        maker: StructuredMaker | None,
        built_in: bool,
        base_is_sound: bool,
    ) -> None:
        self.generation, self.columns, self.table, self.maker = generation, columns, table, maker
        self.built_in, self.base_is_sound = built_in, base_is_sound
        self.layouts_seen: set[str] = set()
        self.attributes: dict[str, Attribute] = {}

    def check(self, entry: ShardEntry, report: Report, on_progress: Callable[[int], None]) -> None:
        """Check all records of one shard, problem by problem."""
        file = f"{self.generation.manifest.generation}/{entry.file.name}"
        count = entry.stop - entry.start
        step = max(1, min(_CHUNK, _CHUNK_BYTES * count // max(entry.file.size, 1)))
        low = high = 0
        layouts: set[str] = set()
        constants = from_text(self.generation.schema.get("constants", {}))
        for start in range(entry.start, entry.stop, step):
            stop = min(start + step, entry.stop)
            try:
                records = self.generation.files.read(range(start, stop), [entry.index] * (stop - start))
            except CorruptRecordError as error:
                report.add(file, error, entry.index)
                return
            bodies = [memoryview(record)[8:] for record in records]
            whole = (expanded(body, constants) for body in bodies)
            sums = envelope.digest_sums(whole, range(start, stop))
            low, high = (low + sums[0]) % (1 << 64), (high + sums[1]) % (1 << 64)
            for sample, text in self._problems(records, start, entry.seed, layouts):
                report.add(file, text, entry.index, sample)
            report.count("records", stop - start)
            on_progress(stop - start)
        if (low, high) != entry.sums:
            report.add(file, "the sums of its records are not those of the manifest", entry.index)
        if layouts != set(entry.layouts):
            report.add(
                file, f"layouts {sorted(layouts)}, the manifest says {sorted(entry.layouts)}", entry.index
            )
        self.layouts_seen |= layouts

    def _problems(
        self, records: list[bytes], start: int, seed: int, layouts: set[str]
    ) -> Iterator[tuple[int, str]]:
        good = []
        for k, record in enumerate(records):
            try:
                envelope.check([record], [start + k], seed)
                good.append(k)
            except CorruptRecordError as error:
                yield start + k, error.what
        if self.generation.is_structured:
            yield from self._structured(records, start, good)
            return
        for k in good:
            layouts.add(f"{int.from_bytes(records[k][8 + _LAYOUT_AT : 16 + _LAYOUT_AT], 'little'):016x}")
            yield from ((start + k, text) for text in self._generic(records[k], start + k))

    # Structured records

    def _structured(self, records: list[bytes], start: int, good: list[int]) -> Iterator[tuple[int, str]]:
        expected = None
        if self.maker is not None:
            chunks = self.maker.chunks(start, start + len(records))
            expected = [body for chunk in chunks for body in chunk.bodies]
        for k in good:
            if expected is not None and records[k][8:] == expected[k]:
                continue  # decoding would only say the same again: the expected bytes come from checked columns
            try:
                columns = structured.decode(self.generation.structured, [records[k]])
            except CacheError as error:
                yield start + k, str(error)
                continue
            yield from ((start + k, text) for text in self._decoded(columns, start + k, expected is not None))

    def _decoded(self, columns: StructuredColumns, index: int, differs: bool) -> Iterator[str]:
        if self.table is not None:
            row = self.table.sample(index)
            for name, got, want in (
                ("perturbed ids", columns.ids.astype(np.int64), row.perturbed),
                ("measurements", columns.values, row.values),
            ):
                text = value_difference(got, want)
                if text is not None:
                    yield f"its {name} are not those of the columns: {text}"
        schema, topology = self.generation.structured, self.generation.topology
        text = _ascending(columns.ids.astype(np.int64), schema.num_nodes)
        if text is not None:
            yield f"its perturbed ids {text}"
        if schema.has_removed and topology is not None:
            positions, _ = decode_gaps_ragged(columns.words, columns.word_ptr)
            text = _ascending(positions, topology.size)
            if text is not None:
                yield f"its removed positions {text}"
            elif differs and self.maker is not None and self.maker.removal is not None:
                wanted, _ = self.maker.removal.removed(columns.ids, columns.ptr)
                text = value_difference(positions, wanted.astype(np.int64))
                if text is not None:
                    yield f"its removed positions are not those of the incidence index: {text}"

    # Generic records

    def _generic(self, record: bytes, index: int) -> Iterator[str]:
        if not self.base_is_sound:
            return
        try:
            graph = decode_graph(memoryview(record)[8:], self.generation.layouts, self.generation.base_fields)
        except Exception as error:  # whatever a record can do to the decoder is a finding, never the end
            yield f"{type(error).__name__}: {error}" if not isinstance(error, CacheError) else str(error)
            return
        yield from self._attributes(graph, index)
        column = self.columns.get("y")
        if column is not None:
            y = graph.y.detach().numpy()
            text = value_difference(np.asarray(column[index]).reshape(y.shape), y)
            if text is not None:
                yield f"its y is not that of the columns: {text}"
        if self.table is not None and self.built_in:
            yield from self._fields(graph, self.table.sample(index))

    def _attributes(self, graph: Any, index: int) -> Iterator[str]:
        own = attributes_of(graph) if self.attributes else {}
        for name, column in self.attributes.items():
            got, want = own.get(name), column.one(index)
            if got != want and not (want != want and (got is None or got != got)):
                yield f"its {name} is {got!r:.80}, in the columns {want!r:.80}"

    def _fields(self, graph: Any, row: Any) -> Iterator[str]:
        topology = self.generation.topology
        store = graph if topology is None or topology.node_type is None else graph[topology.node_type]
        wanted = {"perturbation_indices": row.perturbed}
        for name, value in phenotype_fields(row.values, row.phenotypes, row.statistics).items():
            wanted[name] = value.numpy() if hasattr(value, "numpy") else value
        for name, want in wanted.items():
            got = store._mapping.get(name) if hasattr(store, "_mapping") else store._store._mapping.get(name)
            text = value_difference(got.numpy() if hasattr(got, "numpy") else got, want)
            if text is not None:
                yield f"its {name} are not those of the columns: {text}"


def _ascending(ids: Int64Array, limit: int) -> str | None:
    if len(ids) and (int(ids[0]) < 0 or int(ids[-1]) >= limit or bool((np.diff(ids) <= 0).any())):
        return f"do not ascend within 0..{limit - 1}"
    return None


def check_table(table: SampleTable, num_nodes: int | None, source: dict[str, Any]) -> None:
    """Check the stored columns against themselves and against the fingerprint.

    Raises:
        CorruptShardError: Naming what does not hold.
    """
    ids = table.ids.astype(np.int64)
    within = np.ones(max(len(ids) - 1, 0), dtype=bool)
    firsts = table.ptr[1:-1]
    within[firsts[(firsts > 0) & (firsts < len(ids))] - 1] = False
    if bool((np.diff(ids)[within] <= 0).any()):
        raise CorruptShardError("perturbed ids do not ascend within each sample")
    if num_nodes is not None and len(ids) and int(ids.max()) >= num_nodes:
        raise CorruptShardError(f"perturbed id {int(ids.max())} of {num_nodes} nodes")
    if source.get("class") != "PerturbationTable":
        return
    arrays: Arrays = {"perturbed": ids, "perturbed_ptr": table.ptr, "values": table.values}
    for name, array in {**arrays, "value_ptr": table.value_ptr}.items():
        if array_digest(array) != source.get(name):
            raise CorruptShardError(f"{name} is not what the fingerprint names")
    if source.get("unknown") != (None if table.unknown is None else table.unknown.digest()):
        raise CorruptShardError("unknown names are not those that the fingerprint names")
