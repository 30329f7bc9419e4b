"""The graph that a batch's samples are of: the store's base graph, or the part of it that some nodes induce."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchcell_cache.batch.device import DeviceContext, of_store
from torchcell_cache.core.lazy import ThreadLock, cached_property
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.errors import FormatError
from torchcell_cache.graph.incidence import IncidenceIndex
from torchcell_cache.graph.induced_subgraph import NeighbourTable, Selection, induced_removal, subset
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.removal import Removal
from torchcell_cache.graph.topology import Topology
from torchcell_cache.processors.assemble import Assembler
from torchcell_cache.store.generation import Generation

_LOCK = ThreadLock()
_TABLES: weakref.WeakKeyDictionary[Generation, NeighbourTable] = weakref.WeakKeyDictionary()
_GENERATIONS: weakref.WeakValueDictionary[tuple[str, str], Generation] = weakref.WeakValueDictionary()
_OPENED: OrderedDict[tuple[str, str], Generation] = OrderedDict()
_KEEP_OPEN = 4


class GraphContext:
    """The store's own base graph."""

    selection: Selection | None = None

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    @property
    def owner(self) -> str:
        """Whose numbers of nodes the sections of a batch hold."""
        return self.generation.manifest.generation

    @property
    def has_removed(self) -> bool:
        """Whether a batch holds removed positions, rather than that the index says what is removed."""
        return self.generation.structured.has_removed

    @property
    def base_graph(self) -> Any:
        """The graph on the CPU."""
        return self.generation.base_graph

    @property
    def topology(self) -> Topology | None:
        """Its position space, in a store of deletions."""
        return self.generation.topology

    @property
    def removal(self) -> Removal | None:
        """What each node takes with it."""
        return self.generation.removal

    @property
    def assembler(self) -> Assembler:
        """Makes graphs of single samples."""
        return self.generation.assembler

    def on(self, device: torch.device) -> DeviceContext:
        """What all batches of this graph share on a device."""
        return of_store(self.generation, device)


class InducedContext(GraphContext):
    """An induced part of the base graph, as if a store had the selected nodes only."""

    selection: Selection

    def __init__(
        self,
        generation: Generation,
        whole: Topology,
        selection: Selection,
        perturbed: Int64Array | None = None,
    ) -> None:
        super().__init__(generation)
        self.whole, self.selection, self.perturbed = whole, selection, perturbed

    def __reduce__(self) -> Any:
        return InducedContext, (self.generation, self.whole, self.selection, self.perturbed)

    @property
    def owner(self) -> str:
        """Another name than the store's, so that nobody takes these numbers for the store's own."""
        return f"part of {self.generation.manifest.generation}"

    @property
    def has_removed(self) -> bool:
        """Never, whatever the records hold."""
        return False

    @cached_property
    @lasting
    def base_graph(self) -> Any:
        """The induced base graph on the CPU."""
        return subset(self.generation.base_graph, self.whole, self.selection)

    @property
    def topology(self) -> Topology:
        """See :attr:`GraphContext.topology`."""
        return self.selection.topology

    @cached_property
    def removal(self) -> Removal:
        """What each perturbed node takes with it; nodes that no sample perturbs have no entries."""
        assert self.generation.removal is not None
        assert self.perturbed is not None
        return induced_removal(self.generation.removal, self.selection, self.perturbed)

    @cached_property
    def assembler(self) -> Assembler:
        """See :attr:`GraphContext.assembler`."""
        whole = self.generation.assembler
        names = whole.phenotypes, whole.statistics
        return Assembler(whole.processor, self.base_graph, self.topology, self.removal, *names, False)

    def on(self, device: torch.device) -> DeviceContext:
        """See :meth:`GraphContext.on`; cut from the whole graph that is there already."""
        whole = super().on(device)
        return DeviceContext(
            self.generation,
            device,
            whole.pool,
            self.topology,
            base_graph=lambda: self.base_graph,
            moved=lambda: subset(whole.graph, self.whole, self.selection),
            index=self._index,
        )

    def _index(self) -> tuple[torch.Tensor, torch.Tensor]:
        index = self.removal.index
        return torch.from_numpy(index.ptr), torch.from_numpy(index.positions)


def induced(generation: Generation, whole: Topology, part: Any) -> InducedContext:
    """The context of a selection that came from another process, as nodes and what stays of each domain.

    Raises:
        FormatError: If it does not fit the base graph.
    """
    nodes, kept = part
    runs = [(nodes, whole.num_nodes), *zip(kept, (d.size for d in whole.domains), strict=False)]
    if len(kept) != len(whole.domains) or not all(r is None or _numbers(r, size) for r, size in runs):
        raise FormatError("the selected nodes of a batch are not those of a part of its base graph")
    return InducedContext(generation, whole, Selection.make(whole, nodes, kept))


def _numbers(array: npt.NDArray[Any], limit: int) -> bool:
    """Whether an array holds some of ``0..limit - 1``, ascending."""
    rises = array.dtype == np.int64 and bool((array[1:] > array[:-1]).all())
    return rises and (len(array) == 0 or 0 <= int(array[0]) <= int(array[-1]) < limit)


def renumbered(ids: Int64Array, ptr: Int64Array, nodes: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Each sample's ids that are among some nodes, as numbers of these, ``[n] int64``, and their offsets."""
    here = np.isin(ids, nodes)
    owner = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))[here]
    return np.searchsorted(nodes, ids[here]), offsets(np.bincount(owner, minlength=len(ptr) - 1))


def neighbour_table(generation: Generation) -> NeighbourTable:
    """Incidence index and neighbours of a store's base graph, made on first use in a process."""
    with _LOCK:
        found = _TABLES.get(generation)
        if found is None:
            stored, graph = generation.removal, generation.base_graph
            # Of cells none is stored.
            index = stored.index if stored is not None else IncidenceIndex.build(graph, graph_digest="")
            found = _TABLES[generation] = NeighbourTable.build(index, graph)
        return found


def register(generation: Generation) -> None:
    """Make an open generation findable for batches that arrive from other processes."""
    _GENERATIONS[str(generation.root), generation.manifest.generation] = generation


def find_generation(root: str, name: str) -> Generation:
    """The generation a batch from another process belongs to: the open one, or opened now and kept.

    Raises:
        CacheNotFoundError: If the store is gone.
    """
    with _LOCK:
        found = _GENERATIONS.get((root, name))
        if found is None:
            found = Generation.open(Path(root), name)
            register(found)
            _OPENED[root, name] = found
            while len(_OPENED) > _KEEP_OPEN:
                _OPENED.popitem(last=False)
        return found
