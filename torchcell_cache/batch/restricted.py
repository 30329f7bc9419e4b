"""A batch restricted to some nodes of the perturbed type: what a store of the induced base graph would give."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from torchcell_cache.batch import packed as packing
from torchcell_cache.batch.choose import far_ends
from torchcell_cache.batch.deletions import PerturbationBatch
from torchcell_cache.batch.device import DeviceGraph, device_graph, find_generation, register
from torchcell_cache.batch.sections import Sections
from torchcell_cache.batch.selectable import RESTRICTED
from torchcell_cache.codec.deletions import StructuredSchema
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.incidence import IncidenceIndex
from torchcell_cache.graph.induced_subgraph import Selection, select, subset
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.removal import ReactionRemoval, Removal
from torchcell_cache.processors.deletion import extra_tensors
from torchcell_cache.processors.lazy import EDGE_FIELDS, NODE_FIELDS
from torchcell_cache.processors.subgraph import SubgraphRepresentation
from torchcell_cache.store.generation import Generation


class SelectedGeneration(Generation):
    """A generation as if its base graph had the selected nodes only; gives batches what they ask a store for.

    Args:
        whole: The store's generation.
        selection: What stays of its base graph.
        perturbed: Nodes that the batch's samples perturb, ascending, in the store's numbering.
    """

    def __init__(self, whole: Generation, selection: Selection, perturbed: Int64Array) -> None:
        # Generation.__init__ opens a store. Everything about files is the whole's, what is asked of the graph stands below.
        self.whole, self.selection = whole, selection
        self.root, self.manifest, self.directory, self.schema = (
            whole.root,
            whole.manifest,
            whole.directory,
            whole.schema,
        )
        self.topology = selection.topology
        self._perturbed = perturbed
        self._graphs: dict[str, SelectedGraph] = {}

    def __reduce__(self) -> Any:
        return _rebuild_generation, (self.whole, self.selection.nodes, self.selection.kept, self._perturbed)

    # Records and columns are the whole store's and speak of its nodes: nobody gets them under these numbers.

    def _of_the_store(self, *_: Any) -> Any:
        raise SettingError(
            f"a batch restricted to {len(self.selection.nodes)} nodes has no records and columns of its own",
            fix="batch.generation.whole, the store's own generation with its own numbers of nodes",
        )

    read = visit = _of_the_store  # type: ignore[assignment]
    columns = table = table_reader = property(_of_the_store)

    def unknown_names(self, positions: Any) -> list[tuple[str, ...]]:
        """Names outside the graph are as they were."""
        return self.whole.unknown_names(positions)

    @cached_property
    @lasting
    def base_graph(self) -> Any:
        """The induced base graph on the CPU."""
        assert self.whole.topology is not None
        return subset(self.whole.base_graph, self.whole.topology, self.selection)

    @cached_property
    def structured(self) -> StructuredSchema:
        """Schema of the batch: ids, no removed positions, whatever the records hold."""
        columns = self.whole.structured.num_columns
        return StructuredSchema(len(self.selection.nodes), columns, has_removed=False)

    @cached_property
    def removal(self) -> Removal:
        """What each perturbed node takes with it; nodes that no sample perturbs have no entries."""
        assert self.whole.removal is not None
        index, by_rule = self.whole.removal.index, self.whole.removal.by_rule
        nodes, topology = self.selection.nodes, self.selection.topology
        ids = self._perturbed
        starts, stops = index.ptr[ids, 0].tolist(), index.ptr[ids, -1].tolist()
        parts = [index.positions[a:b] for a, b in zip(starts, stops, strict=True)]
        old = np.concatenate([index.positions[:0], *parts])  # fresh: what is mapped cannot be written to
        new, stays = self.selection.translate(index.topology, old)
        width = len(topology.domains)
        counts = np.zeros((len(nodes), width), dtype=np.int64)
        if width:
            owner = np.repeat(np.searchsorted(nodes, ids), [len(part) for part in parts])[stays]
            column = np.searchsorted([d.stop for d in topology.domains], new, side="right")
            np.add.at(counts, (owner, column), 1)
        ptr = np.zeros((len(nodes), width + 1), dtype=np.int64)
        ends = np.cumsum(counts.ravel()).reshape(len(nodes), width)
        ptr[:, 1:] = ends
        ptr[1:, 0] = ends[:-1, -1] if width else 0
        small = IncidenceIndex(topology, ptr, new, "", index.gpr_by, index.metabolic)
        return Removal(small, None if by_rule is None else self._by_rule(by_rule, index))

    def _by_rule(self, by_rule: ReactionRemoval, index: IncidenceIndex) -> ReactionRemoval:
        new, stays = self.selection.translate(index.topology, by_rule.positions)
        before = np.concatenate([[0], np.cumsum(stays)])
        return _SelectedRules(by_rule.rules, before[by_rule.ptr], new, self.selection.nodes)

    def resident(self, device: torch.device) -> SelectedGraph:
        """The selection's graph on a device."""
        if str(device) not in self._graphs:
            self._graphs[str(device)] = SelectedGraph(self, device)
        return self._graphs[str(device)]


class _SelectedRules(ReactionRemoval):
    """Gene rules speak of the store's node ids."""

    def __init__(self, rules: Any, ptr: Int64Array, positions: Any, nodes: Int64Array) -> None:
        super().__init__(rules, ptr, positions)
        object.__setattr__(self, "nodes", nodes)

    def removed(self, ids: Any, ptr: Int64Array) -> Any:
        """See :meth:`ReactionRemoval.removed`; ``ids`` in the selection's numbering."""
        nodes: Any = vars(self)["nodes"]
        return super().removed(nodes[ids], ptr)


class SelectedGraph(DeviceGraph):
    """The induced base graph and its index on one device; cut from the whole one that is there already.

    Args:
        generation: The selection.
        device: Where to.
    """

    def __init__(self, generation: SelectedGeneration, device: torch.device) -> None:
        self._selected, self._whole = generation, device_graph(generation.whole, device)
        self.device, self.pool = device, self._whole.pool
        self.phenotypes, self.statistics = self._whole.phenotypes, self._whole.statistics
        self._topology, self._processor = generation.topology, generation.processor

    @property
    def base_graph(self) -> Any:
        """The induced base graph on the CPU, made when a PyG batch asks for it."""
        return self._selected.base_graph

    @cached_property
    @lasting
    def graph(self) -> Any:
        """The induced base graph on the device."""
        if self.device.type == "cpu":
            return self.base_graph
        return subset(self._whole.graph, self._whole.topology, self._selected.selection)

    @cached_property
    @lasting
    def index(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See :attr:`DeviceGraph.index`."""
        own = self._selected.removal.index
        pair = (torch.from_numpy(own.ptr), torch.from_numpy(own.positions))
        return pair[0].to(self.device, non_blocking=True), pair[1].to(self.device, non_blocking=True)


class SelectedBatch(PerturbationBatch):
    """A :class:`SharedGraphBatch` restricted to some nodes of the perturbed type and the edges among them.

    Node ids, masks, edge lists and :attr:`base_graph` speak of the selected nodes, numbered from 0 in the base graph's order;
    nodes of other types are all there. It is what a batch of a store of ``base_graph.subgraph(nodes)`` would be.

    Attributes:
        generation: The store as if it had the selected nodes only.
    """

    generation: SelectedGeneration

    @classmethod
    def of(cls, batch: PerturbationBatch, nodes: Int64Array, allow_wild_type: bool = False) -> SelectedBatch:
        """Restrict a batch; see ``SharedGraphBatch.restrict``.

        Args:
            batch: The batch.
            nodes: Nodes to keep, ascending and unique, ``[k] int64``.
            allow_wild_type: Leave out perturbed nodes that are not among them.

        Raises:
            SettingError: If a perturbed node is not among them.
        """
        whole = batch.generation
        batch._check_removals()
        perturbed = np.unique(batch.sections["perturbed"]).astype(np.int64)
        lost = perturbed[~np.isin(perturbed, nodes)]
        if len(lost) and not allow_wild_type:
            raise SettingError(
                f"nodes {lost[:5].tolist()}{' and more' if len(lost) > 5 else ''} are perturbed by samples of this batch and "
                "not selected: these samples would look like the wild type",
                fix="select them too, or pass allow_wild_type=True",
            )
        selection = select(far_ends(whole), nodes)
        out = cls(SelectedGeneration(whole, selection, perturbed[np.isin(perturbed, nodes)]), None)
        out._given = out._sections_of(batch)
        out.is_padding = batch.is_padding
        return out if batch.device.type == "cpu" else out.to(batch.device, non_blocking=True)

    def _sections_of(self, batch: PerturbationBatch) -> Sections:
        """The batch's sections with relabelled ids; labels are taken over."""
        nodes = self.generation.selection.nodes
        sections = {
            n: v for n, v in batch.sections.items() if not n.startswith(("words", "word_", "removed"))
        }
        ids = sections["perturbed"]
        here = np.isin(ids, nodes)
        owner = np.repeat(np.arange(len(batch)), np.diff(sections["perturbed_ptr"]))[here]
        sections["perturbed"] = np.searchsorted(nodes, ids[here]).astype(ids.dtype)
        sections["perturbed_ptr"] = offsets(np.bincount(owner, minlength=len(batch)))
        by_rule = self.generation.removal.by_rule
        if by_rule is not None:
            sections["removed"], sections["removed_ptr"] = by_rule.removed(
                sections["perturbed"], sections["perturbed_ptr"]
            )
        return sections

    def _pack(self) -> tuple[packing.Buffer, packing.Places]:
        # Under another name than the store's, so that nobody takes these ids for the store's own.
        if self._packed is None:
            self._packed = packing.pack(f"{self.generation.manifest.generation} selected", self.sections)
        return self._packed

    def __reduce__(self) -> Any:
        register(self.generation.whole)
        selection, name = self.generation.selection, self.generation.manifest.generation
        place = (str(self.generation.root), name, selection.nodes, selection.kept, self.generation._perturbed)
        return _rebuild_selected, (*place, self.sections)

    @property
    def resident(self) -> DeviceGraph:
        """What all users of this selection share on this device."""
        return self.generation.resident(self.device)

    @cached_property
    @lasting
    def nodes(self) -> torch.Tensor:
        """The selected nodes in the store's numbering, ascending, ``[k] int64``: rows of your own ``[num_nodes, ...]``."""
        return torch.from_numpy(self.generation.selection.nodes).to(self.device, non_blocking=True)

    def _to_pyg(self, follow_batch: frozenset[str], exclude_keys: frozenset[str], drop: bool) -> Any:
        self._check_homogeneous()
        return super()._to_pyg(follow_batch, exclude_keys, drop)

    def _graph(self, at: int) -> Any:
        self._check_homogeneous()
        return super()._graph(at)

    def _check_homogeneous(self) -> None:
        """``Data`` tells fields of nodes and edges apart by size; equal sizes would filter one as the other."""
        topology, store = self.generation.topology, getattr(self.generation.base_graph, "_store", None)
        if topology is None or topology.node_type is not None or topology.num_nodes != topology.size:
            return
        known = (*NODE_FIELDS, *EDGE_FIELDS)
        fields = extra_tensors(store, known, topology.size)
        if fields and isinstance(self.generation.processor, SubgraphRepresentation):
            raise SettingError(
                f"the selection has {topology.num_nodes} nodes and as many edges, so that {sorted(fields)} of a homogeneous "
                "graph could belong to either",
                fix="select one node more or less, or use a HeteroData base graph",
            )


def _rebuild_selected(
    root: str, name: str, nodes: Int64Array, kept: Any, perturbed: Int64Array, sections: Sections
) -> SelectedBatch:
    generation = _rebuild_generation(find_generation(root, name), nodes, kept, perturbed)
    SelectedBatch.check_sections(generation, sections)
    return SelectedBatch(generation, sections)


def _rebuild_generation(
    whole: Generation, nodes: Int64Array, kept: Any, perturbed: Int64Array
) -> SelectedGeneration:
    assert whole.topology is not None
    return SelectedGeneration(whole, Selection.make(whole.topology, nodes, kept), perturbed)


RESTRICTED[PerturbationBatch] = SelectedBatch.of
