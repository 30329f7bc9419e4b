"""Record bodies of any processor on any source."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from torchcell_cache.builder.shards import CHUNK
from torchcell_cache.codec.chunks import encode_many
from torchcell_cache.codec.layout import Layout
from torchcell_cache.errors import CacheError, SampleError, SourceContractError
from torchcell_cache.graph.records import BaseFields, encode_graph
from torchcell_cache.graph.values import REINTERPRETED, to_array
from torchcell_cache.processors.base import Processing
from torchcell_cache.processors.khop import KHopSubgraph
from torchcell_cache.sources.base import FieldSource, RunSource, Source
from torchcell_cache.store.columns import Arrays

_MAX_LABEL = 64
_CHUNK_BYTES = 16 << 20
_END = object()


class GenericMaker:
    """Bodies of typed fields, one sample at a time.

    Args:
        source: The source.
        processor: A ``GraphProcessor``, a callable, or ``None``.
        mode: ``full`` or ``delta``.
        digests: Those of the base graph, part by part, where they are known.
    """

    def __init__(
        self, source: Source, processor: Any, mode: str, digests: Mapping[str, str] | None = None
    ) -> None:
        self.source, self.processor, self.mode = source, processor, mode
        self.processing = Processing(processor, source.base_graph, digests)
        self.base = BaseFields(self.processing.base_graph)
        # A quicker way to the same graphs, which verification does not take.
        indexed = type(processor) is KHopSubgraph
        self._apply = processor.with_index(source.base_graph) if indexed else self.processing
        self._layouts: dict[str, Any] = {}
        self._labels: list[Any] = []

    def graphs(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        """The processed graphs of samples ``start`` to ``stop``, read in one run where the source can.

        Raises:
            SampleError: If the source or the processor raised; carries the original traceback.
            SourceContractError: If the source gave too few.
        """
        run = self.source.items(start, stop) if isinstance(self.source, RunSource) else None
        for index in range(start, stop):
            try:
                item = self.source[index] if run is None else next(run, _END)
                if item is _END:
                    raise _ended(self.source, start, stop, index)
                graph = self._apply(item)
            except Exception as error:
                raise self._failed(f"sample {index}", error) from None
            self.processing.look()
            yield index, graph

    def _failed(self, where: str, error: Exception) -> SampleError:
        name = type(self.processor).__name__
        return SampleError(
            f"{where}: {type(error).__name__} in the source or in {name}: {error}\n{traceback.format_exc()}",
            fix="correct the sample or the processor and run the same command again; finished shards are kept",
        )

    def _field_bodies(self, source: FieldSource, start: int, stop: int) -> Iterator[list[bytes]]:
        """Bodies from whole chunks of fields."""
        chunks, at = source.field_chunks(start, stop), start
        while at < stop:
            try:
                chunk = next(chunks, None)
                if chunk is None or at + chunk.count > stop:
                    raise _ended(source, start, stop, at if chunk is None else at + chunk.count)
                bodies = encode_many(chunk, self.mode)
            except Exception as error:
                raise self._failed(f"samples from {at} on", error) from None
            self._layouts[f"{chunk.layout.id:016x}"] = chunk.layout.to_dict()
            at += len(bodies)
            yield bodies

    def bodies(self, start: int, stop: int) -> Iterator[list[bytes]]:
        """Bodies of samples ``start`` to ``stop``, in chunks of bounded size."""
        self._layouts, self._labels = {}, []
        if self.processor is None and isinstance(self.source, FieldSource):
            yield from self._field_bodies(self.source, start, stop)
            return
        chunk: list[bytes] = []
        size, begun = 0, time.monotonic()
        for index, graph in self.graphs(start, stop):
            layout, body = self.encoded(index, graph, self.mode)
            self._layouts[f"{layout.id:016x}"] = layout.to_dict()
            self._labels.append(_label(graph))
            chunk.append(body)
            size += len(body)
            if len(chunk) == CHUNK or size > _CHUNK_BYTES or time.monotonic() - begun > 2.0:
                yield chunk
                chunk, size, begun = [], 0, time.monotonic()
        self.processing.check_base_graph()
        if chunk:
            yield chunk

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
            raise SourceContractError(
                f"sample {index}: the processor returned {type(graph).__name__}, expected Data or HeteroData "
                f"({error})"
            ) from None

    def extras(self, start: int, stop: int) -> dict[str, Any]:
        """Layouts seen and, where every sample has one of the same shape, the labels ``y``."""
        labels = self._labels
        stats: dict[str, Any] = {"layouts": dict(sorted(self._layouts.items()))}
        first = labels[0] if labels else None
        if first is not None and all(
            v is not None and v.shape == first.shape and v.dtype == first.dtype for v in labels
        ):
            stacked = np.stack(labels)
            stats["y"] = {
                "dtype": stacked.dtype.str,
                "shape": list(stacked.shape),
                "hex": stacked.tobytes().hex(),
            }
        return {"layouts": self._layouts, "stats": stats}


def _ended(source: Source, start: int, stop: int, at: int) -> SourceContractError:
    return SourceContractError(
        f"{type(source).__name__} was asked for samples {start} to {stop} and ended at {at}"
    )


def _label(graph: Any) -> Any:
    y = getattr(graph, "_global_store", graph._store if hasattr(graph, "_store") else {}).get("y")
    if isinstance(y, torch.Tensor) and y.numel() <= _MAX_LABEL and y.layout == torch.strided:
        if y.is_complex() or y.dtype in REINTERPRETED:
            return None
        return to_array(
            y.detach(), "y"
        ).array.copy()  # the processor may write the next one to the same memory
    return None


def label_columns(stats: list[dict[str, Any]]) -> Arrays:
    """The ``y`` column of a whole store from the shards' side files, if every shard has the same kind of label."""
    found = [s.get("y") for s in stats]
    if not found or any(y is None for y in found):
        return {}
    arrays = [
        np.frombuffer(bytes.fromhex(y["hex"]), dtype=np.dtype(y["dtype"])).reshape(y["shape"])
        for y in found
        if y is not None
    ]
    if len({(a.dtype, a.shape[1:]) for a in arrays}) != 1:
        return {}
    column = np.concatenate(arrays)
    return {"y": column.reshape(len(column)) if column.shape[1:] in ((), (1,)) else column}
