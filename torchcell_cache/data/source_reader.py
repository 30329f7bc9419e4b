"""Samples straight from a source: a window at a time, fetched in the source's own order, processed when handed out."""

from __future__ import annotations

import contextlib
import itertools
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from torchcell_cache.codec.deletions import StructuredColumns
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.samples import Sample, SampleTable
from torchcell_cache.data.samplers.ranges import StreamPlan
from torchcell_cache.errors import CacheError, SampleError, SourceContractError
from torchcell_cache.graph.topology import topology_of
from torchcell_cache.processors import BUILT_IN, Perturbation
from torchcell_cache.processors.assemble import Assembler
from torchcell_cache.processors.base import Processing

_AT_ONCE = 64
"""Samples read together where they are not shuffled and the source reads runs."""


class SourceReader:
    """Processes samples of a source; ``collate`` makes a batch of a list of graphs, which come one by one without it."""

    def __init__(
        self, source: Any, processor: Any, collate: Callable[[list[Any]], Any] | None, run_size: int
    ) -> None:
        # Imported here: a stream of a store needs no sources.
        from torchcell_cache.sources.base import RunSource
        from torchcell_cache.sources.pyg import as_source
        from torchcell_cache.sources.torchcell_processors import paired

        self.collate, self.run_size = collate, run_size
        self.source: Any
        self.source, self.processor, _ = paired(as_source(source), processor)
        self.in_runs = isinstance(self.source, RunSource)

    def fetch_all(self, indices: Int64Array) -> Iterator[tuple[int, Any]]:
        """Samples in ascending order with their numbers; consecutive ones in one run where the source reads runs."""
        starts = np.flatnonzero(np.diff(indices) != 1) + 1 if self.in_runs else np.arange(1, len(indices))
        for run in np.split(indices, starts):
            at, stop = [int(run[0])], int(run[-1]) + 1
            with self._blaming(at):
                for item in self.source.items(at[0], stop) if self.in_runs else [self.source[at[0]]]:
                    yield at[0], item
                    at[0] += 1
            if at[0] != stop:
                raise SourceContractError(
                    f"{type(self.source).__name__} ended at {at[0]}, asked up to {stop}"
                )

    def graph(self, index: int, item: Any) -> Any:
        """The graph of a fetched sample."""
        with self._blaming([index]):
            if self.assembler is not None and isinstance(item, Sample):
                parts = item.perturbed, item.values, np.empty(0, dtype=np.uint16)  # a batch of one
                flat = [(part, np.array([0, len(part)], dtype=np.int64)) for part in parts]
                columns: Any = itertools.chain(*flat)
                return self.assembler.graphs(StructuredColumns(*columns), [item.unknown])[0]
            graph = self._processing(item)
            self._processing.check_writes()
            return graph

    @cached_property
    def assembler(self) -> Assembler | None:
        """The quick way to the graphs of a table's samples, as a store takes it; ``None`` for any other processor.

        A built-in processor is defined by a scan of every edge, 10 ms a sample for a yeast cell; through the incidence
        index it takes less than one.
        """
        table, processor = getattr(self.source, "table", None), self.processor
        if type(processor) not in BUILT_IN.values() or not isinstance(table, SampleTable):
            return None
        graph = self.source.base_graph
        topology = topology_of(graph, processor.node_type)
        if getattr(self.source, "node_type", topology.node_type) != topology.node_type:
            raise SourceContractError(
                f"the source perturbs '{self.source.node_type}' nodes, the processor deletes '{topology.node_type}' nodes",
                fix="pass the same node_type to both",
            )
        removal = None if isinstance(processor, Perturbation) else processor.build_removal(graph, "")
        names = table.phenotypes, table.statistics
        return Assembler(processor, graph, topology, removal, *names, has_removed=False)

    def check(self) -> None:
        """Refuse a processor that changed the base graph."""
        if "_processing" in self.__dict__:
            self._processing.check_base_graph()

    @cached_property
    def _processing(self) -> Processing:
        return Processing(self.processor, self.source.base_graph)

    def __getstate__(self) -> dict[str, Any]:
        made = ("assembler", "_processing")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    @contextlib.contextmanager
    def _blaming(self, index: list[int]) -> Iterator[None]:
        """What goes wrong inside is said of the sample whose number ``index`` holds then."""
        try:
            yield
        except CacheError:
            raise
        except Exception as error:
            raise SampleError(
                f"sample {index[0]}: {type(error).__name__} in the source or in {type(self.processor).__name__}: {error}\n"
                f"{traceback.format_exc()}",
                fix="correct the sample or the processor",
            ) from None


class WindowReader:
    """Reads one worker stream's samples: those of a window are fetched together, in ascending order, and let go one by one."""

    def __init__(self, reader: SourceReader, plan: StreamPlan, stream: int) -> None:
        self.reader = reader
        self._held: dict[int, Any] = {}
        start, stop = plan.mine.stream_range(stream)
        in_order = _AT_ONCE if reader.in_runs else 1
        window = plan.order.buffer if plan.order.shuffle and plan.order.buffer else in_order
        self._windows = (plan.take(at, min(at + window, stop))[0] for at in range(start, stop, window))

    def _take(self, index: int) -> Any:
        while index not in self._held:
            wanted = next(self._windows, [index])  # padding is handed out a second time
            self._held.update(self.reader.fetch_all(np.unique(wanted)))
        return self.reader.graph(index, self._held.pop(index))

    def __getitem__(self, indices: Int64Array) -> Any:
        """The batch of samples, or their graphs one by one."""
        graphs = (self._take(k) for k in indices.tolist())
        return graphs if self.reader.collate is None else self.reader.collate(list(graphs))

    def close(self) -> None:
        """Let go of what was fetched."""
        self._held.clear()
