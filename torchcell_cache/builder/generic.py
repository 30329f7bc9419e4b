"""Records of any processor on any source."""

from __future__ import annotations

import contextlib
import random
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from torchcell_cache.builder.shards import CHUNK, Chunk, Facts, Labels, joined_labels
from torchcell_cache.codec.chunks import encode_many
from torchcell_cache.codec.constants import FIRST, compacted, constants_of
from torchcell_cache.codec.layout import Layout
from torchcell_cache.errors import CacheError, SampleError, SourceContractError
from torchcell_cache.graph.records import BaseFields, encode_graph
from torchcell_cache.graph.values import REINTERPRETED, to_array
from torchcell_cache.processors.base import Processing, copy_of, is_interrupt, said
from torchcell_cache.processors.khop import KHopSubgraph
from torchcell_cache.sources.base import FieldSource, RunSource, Source
from torchcell_cache.store.attributes import OTHER, Attributes
from torchcell_cache.store.columns import Arrays

_MAX_LABEL = 64
_CHUNK_BYTES = 16 << 20
_END = object()


class GenericMaker:
    """Records of typed fields, one sample at a time.

    Each shard keeps what is constant in its first samples, up to ``most_constant`` bytes; ``constants`` are known from before.
    """

    def __init__(
        self,
        source: Source,
        processor: Any,
        mode: str,
        digests: Mapping[str, str] | None = None,
        most_constant: int = 0,
        constants: Mapping[int, bytes] | None = None,
    ) -> None:
        self.source, self.processor, self.mode, self.digests = source, processor, mode, digests
        self.most_constant, self.constants = most_constant, constants or {}
        self.processing = Processing(processor, source.base_graph, digests)
        self.base = BaseFields(self.processing.base_graph)
        self._is_table = getattr(source, "table", None) is not None  # whose columns say what there is to say
        # A quicker way to the same graphs, which verification does not take.
        indexed = type(processor) is KHopSubgraph
        self._apply = processor.with_index(source.base_graph) if indexed else self.processing

    def fresh(self) -> GenericMaker:
        """One whose processor is a copy as it is now: what it counts or gathers does not depend on who builds which shard."""
        if self.processing.trusted:
            return self
        given = self.mode, self.digests, self.most_constant, self.constants
        return GenericMaker(self.source, copy_of(self.processor), *given)

    def graphs(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """The processed graphs of samples ``start`` to ``stop``, read in one run where the source can.

        Raises:
            SampleError: If the source or the processor raised; carries the original traceback.
            SourceContractError: If the source gave too few.
        """
        run = None
        for index in range(start, stop):
            try:
                if run is None and isinstance(self.source, RunSource):
                    run = self.source.items(start, stop)
                item = self.source[index] if run is None else next(run, _END)
                if item is _END:
                    raise _ended(self.source, start, stop, index)
                graph = self._apply(item)
            except BaseException as error:
                raise self._failed(f"sample {index}", error) from None
            self.processing.check_writes()
            yield index, graph

    def _failed(self, where: str, error: BaseException) -> BaseException:
        """What to raise for what a user's code raised, which may even have asked the process to end."""
        if is_interrupt(error):
            return error
        runs = getattr(self.processor, "runs", self.processor)  # torchcell's or a user's of three arguments
        place = "the source" if runs is None else f"the source or in {type(runs).__name__}"
        what = f"{where}: {type(error).__name__} in {place}: {said(error)}\n{traceback.format_exc()}"
        fix = "correct the sample or the processor and run the same command again; finished shards are kept"
        return SampleError(what, fix=fix)

    def _field_chunks(self, source: FieldSource, start: int, stop: int) -> Iterator[Chunk]:
        """Records from whole chunks of fields."""
        chunks, at = None, start
        while at < stop:
            try:
                chunks = source.field_chunks(start, stop) if chunks is None else chunks
                chunk = next(chunks, None)
                if chunk is None or at + chunk.count > stop:
                    raise _ended(source, start, stop, at if chunk is None else at + chunk.count)
                bodies = encode_many(chunk, self.mode)
            except BaseException as error:
                raise self._failed(f"samples from {at} on", error) from None
            at += len(bodies)
            yield Chunk(bodies, Facts({f"{chunk.layout.id:016x}": chunk.layout.to_dict()}))

    def chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        """Records of samples ``start`` to ``stop``, in chunks of bounded size."""
        if self.processor is None and isinstance(self.source, FieldSource):
            yield from self._field_chunks(self.source, start, stop)
            return
        known, learning = self.constants, self.most_constant > 0
        rows: list[tuple[Layout, bytes, Labels, dict[str, Any]]] = []
        size, begun = 0, time.monotonic()
        for index, graph in self.graphs(start, stop):
            layout, body = self.encoded(index, graph, self.mode)
            body = body if learning else compacted(body, known)
            rows.append((layout, body, label_of(graph), {} if self._is_table else attributes_of(graph)))
            size += len(body)
            if learning:
                if len(rows) < FIRST and index + 1 < stop:
                    continue
                first = [(layout, body) for layout, body, *_ in rows]
                known, learning = {**known, **constants_of(first, self.most_constant)}, False
                rows = [(layout, compacted(body, known), y, own) for layout, body, y, own in rows]
            if len(rows) == CHUNK or size > _CHUNK_BYTES or time.monotonic() - begun > 2.0:
                yield self._chunk(rows, known)
                rows, size, begun = [], 0, time.monotonic()
        self.processing.check_base_graph()
        if rows:
            yield self._chunk(rows, known)

    def _chunk(self, rows: list[Any], known: Mapping[int, bytes]) -> Chunk:
        layouts, bodies, labels, attributes = zip(*rows, strict=True)
        used = {f"{key:016x}": layout.to_dict() for key, layout in {one.id: one for one in layouts}.items()}
        said = None if self._is_table else Attributes.from_rows(attributes)
        return Chunk(list(bodies), Facts(used, joined_labels(labels), known, said))

    def encoded(self, index: int, graph: Any, mode: str) -> tuple[Layout, bytes]:
        """Layout and body of one processed graph.

        Raises:
            CacheError: If it cannot be stored; names the sample.
        """
        try:
            return encode_graph(graph, self.base, mode)
        except CacheError as error:
            raise type(error)(f"sample {index}: {error}") from None
        except (TypeError, AttributeError) as error:
            what = f"the processor returned {type(graph).__name__}, expected Data or HeteroData ({error})"
            raise SourceContractError(f"sample {index}: {what}") from None


def _ended(source: Source, start: int, stop: int, at: int) -> SourceContractError:
    what = f"{type(source).__name__} was asked for samples {start} to {stop} and ended at {at}"
    return SourceContractError(what)


def _own(graph: Any) -> Any:
    """The graph's own attributes, those of none of its node and edge types."""
    return getattr(graph, "_global_store", graph._store if hasattr(graph, "_store") else {})


def attributes_of(graph: Any) -> dict[str, Any]:
    """A graph's own texts and single numbers, as ``Attributes.from_rows`` has them; a label ``y`` is a column in any case."""
    out: dict[str, Any] = {}
    for name, value in _own(graph).items():
        if isinstance(value, torch.Tensor):
            plain = value.numel() == 1 and value.dim() < 2 and value.layout == torch.strided and name != "y"
            if plain and not value.is_complex():
                short = value.is_floating_point() and value.dtype.itemsize <= 4
                out[name] = np.float32(value.item()) if short else value.item()
            else:
                out[name] = (OTHER,)
        elif isinstance(value, np.bool_ | np.integer):
            out[name] = value.item()
        elif isinstance(value, np.float32 | np.float16):
            out[name] = np.float32(value)
        elif isinstance(value, str | float):  # also numpy's own, which are subclasses
            out[name] = str(value) if isinstance(value, str) else float(value)
        elif value is not None:
            out[name] = value if type(value) in (bool, int) else (OTHER,)
    return out


def label_of(graph: Any) -> Labels:
    """A graph's own small ``y`` as a row, ``[1, ...]``; a copy, since the processor may write the next one over it."""
    y = _own(graph).get("y")
    if not isinstance(y, torch.Tensor) or y.numel() > _MAX_LABEL or y.layout != torch.strided:
        return None
    odd = y.is_complex() or y.dtype in REINTERPRETED
    return None if odd else to_array(y.detach(), "y").array[None].copy()


def label_column(parts: list[Labels]) -> Arrays:
    """The ``y`` column of a whole store, if all its parts have the same kind of label."""
    column = joined_labels(parts)
    if column is None:
        return {}
    return {"y": column.reshape(len(column)) if column.shape[1:] in ((), (1,)) else column}


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the generators of torch, numpy and ``random`` as they were."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def seeding() -> Callable[[int], None]:
    """What a forked worker calls before each shard: other numbers for each, the same whichever worker builds it."""
    begun = (torch.initial_seed(), random.getstate(), np.random.get_state(legacy=False))
    first, second, third = (zlib.crc32(repr(state).encode()) for state in begun)

    def seed(shard: int) -> None:
        torch.manual_seed(first + shard)
        random.seed(second + shard)
        np.random.seed((third + shard) % (1 << 32))

    return seed
