"""The graph that a batch's samples are of: the store's base graph, or the part of it that some nodes induce."""

from __future__ import annotations

import functools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
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


class GraphContext:
    """The store's own base graph, or the part of it that a selection leaves, as if a store had the selected nodes only.

    ``perturbed``: nodes of the selection that samples of the batch perturb; of no other is known what they take along.
    """

    def __init__(
        self,
        generation: Generation,
        whole: Topology | None = None,
        selection: Selection | None = None,
        perturbed: Int64Array | None = None,
    ) -> None:
        self.generation, self.whole, self.selection, self.perturbed = generation, whole, selection, perturbed

    @classmethod
    def received(cls, generation: Generation, whole: Topology, part: Any) -> GraphContext:
        """The context of a selection that came from another process, as nodes and what stays of each domain.

        Raises:
            FormatError: If it does not fit the base graph.
        """
        nodes, kept = part
        runs = [(nodes, whole.num_nodes), *zip(kept, (d.size for d in whole.domains), strict=False)]
        fits = len(kept) == len(whole.domains)
        for found, limit in runs:
            if found is not None:
                rises = found.dtype == np.int64 and bool((found[1:] > found[:-1]).all())
                fits = fits and rises and (len(found) == 0 or 0 <= found[0] <= found[-1] < limit)
        if not fits:
            raise FormatError("the selected nodes of a batch are not those of a part of its base graph")
        return cls(generation, whole, Selection.make(whole, nodes, kept))

    @property
    def owner(self) -> str:
        """Whose numbers of nodes the sections of a batch hold; nobody is to take those of a part for the store's own."""
        name = self.generation.manifest.generation
        return name if self.selection is None else f"part of {name}"

    @property
    def has_removed(self) -> bool:
        """Whether a batch holds removed positions, rather than that the index says what is removed."""
        return self.selection is None and self.generation.structured.has_removed

    @cached_property
    @lasting
    def base_graph(self) -> Any:
        """The graph on the CPU."""
        graph, whole = self.generation.base_graph, self.whole
        return graph if self.selection is None or whole is None else subset(graph, whole, self.selection)

    @property
    def topology(self) -> Topology | None:
        """Its position space, in a store of deletions."""
        return self.generation.topology if self.selection is None else self.selection.topology

    @cached_property
    def removal(self) -> Removal | None:
        """What each node takes with it; of a part, what each perturbed node does."""
        stored = self.generation.removal
        if self.selection is None:
            return stored
        assert stored is not None
        assert self.perturbed is not None
        return induced_removal(stored, self.selection, self.perturbed)

    @cached_property
    def assembler(self) -> Assembler:
        """Makes graphs of single samples."""
        stored, topology = self.generation.assembler, self.topology
        if self.selection is None or topology is None:
            return stored
        names = stored.phenotypes, stored.statistics
        return Assembler(stored.processor, self.base_graph, topology, self.removal, *names, False)

    def on(self, device: torch.device) -> DeviceContext:
        """What all batches of this graph share on a device; a part is cut from the whole graph that is there already."""
        store, whole, selection = of_store(self.generation, device), self.whole, self.selection
        if selection is None or whole is None:
            return store

        def index() -> tuple[torch.Tensor, torch.Tensor]:
            assert self.removal is not None
            return torch.from_numpy(self.removal.index.ptr), torch.from_numpy(self.removal.index.positions)

        made = self.generation, device, store.pool, selection.topology
        return DeviceContext(
            *made, lambda: self.base_graph, lambda: subset(store.graph, whole, selection), index
        )


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
            register(found := _opened(root, name))
        return found


@functools.lru_cache(maxsize=4)
def _opened(root: str, name: str) -> Generation:
    return Generation.open(Path(root), name)
