"""A batch of cells restricted to some genes: their expression, and the edges among them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchcell_cache.batch.choose import far_ends
from torchcell_cache.batch.device import find_generation, register
from torchcell_cache.batch.graphs import GraphBatch
from torchcell_cache.batch.masks import owners
from torchcell_cache.batch.sections import Sections
from torchcell_cache.batch.selectable import RESTRICTED
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.induced_subgraph import Selection, select, subset
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.topology import Topology, topology_of
from torchcell_cache.store.generation import Generation


class SelectedCells(GraphBatch):
    """A :class:`GraphBatch` of cells restricted to some nodes of the perturbable type and the edges among them.

    Node ids, features, edge lists and :attr:`base_graph` speak of the selected nodes, numbered from 0 in the base graph's
    order; nodes of other types are all there.

    Args:
        generation: The store's generation.
        sections: The records, as the store has them.
        selection: What stays of the base graph.
    """

    def __init__(
        self, generation: Generation, sections: Sections | None, selection: Selection | None = None
    ) -> None:
        super().__init__(generation, sections)
        assert selection is not None
        self.selection = selection

    @classmethod
    def of_cells(cls, batch: GraphBatch, nodes: Int64Array, allow_wild_type: bool) -> SelectedCells:
        """Restrict a batch; see ``SharedGraphBatch.restrict``.

        Raises:
            SettingError: If a perturbed node is not among them.
        """
        lost = np.setdiff1d(batch.perturbed.numpy(force=True), nodes)
        if len(lost) and not allow_wild_type:
            raise SettingError(
                f"nodes {lost[:5].tolist()}{' and more' if len(lost) > 5 else ''} are perturbed in cells of this batch and "
                "not selected: these cells would look unperturbed",
                fix="select them too, or pass allow_wild_type=True",
            )
        out = cls(batch.generation, batch.sections, select(far_ends(batch.generation), nodes))
        out._packed, out._bytes, out.is_padding = batch._packed, batch._bytes, batch.is_padding
        return out

    def _like(self, data: Tensor | None) -> SelectedCells:
        out = SelectedCells(self.generation, self._given, self.selection)
        out._packed, out._bytes = self._packed, data
        out.is_padding = None if self.is_padding is None else self.is_padding.to(out.device)
        return out

    def __reduce__(self) -> Any:
        register(self.generation)
        place = str(self.generation.root), self.generation.manifest.generation
        return _rebuild, (*place, self.pack(), self.selection.nodes, self.selection.kept)

    @property
    def _whole(self) -> Topology:
        return topology_of(self.generation.base_graph)

    @cached_property
    @lasting
    def nodes(self) -> Tensor:
        """The selected nodes in the store's numbering, ascending, ``[k] int64``: rows of your own ``[num_nodes, ...]``."""
        return torch.from_numpy(self.selection.nodes).to(self.device, non_blocking=True)

    @cached_property
    @lasting
    def base_graph(self) -> Any:
        """The induced base graph on the batch's device."""
        return subset(self.resident.graph, self._whole, self.selection)

    def features(self, node_type: str | None = None, name: str = "x") -> Tensor:
        """See :meth:`GraphBatch.features`; rows of the selected nodes."""
        found = super().features(node_type, name)
        whole = self._whole
        ours = node_type is None or node_type == whole.node_type
        rows = found.dim() > 1 and found.size(1) == whole.num_nodes
        return found.index_select(1, self.nodes) if ours and rows else found

    @cached_property
    def _perturbed_here(self) -> tuple[Tensor, Tensor]:
        """Perturbed nodes that are selected, in the new numbering, and where each cell starts."""
        ids, ptr = super().perturbed.numpy(force=True), super().perturbed_ptr.numpy(force=True)
        here = np.isin(ids, self.selection.nodes)
        owner = np.repeat(np.arange(len(self)), np.diff(ptr))[here]
        new = np.searchsorted(self.selection.nodes, ids[here]).astype(np.int64)
        starts = offsets(np.bincount(owner, minlength=len(self)))
        return torch.from_numpy(new).to(self.device), torch.from_numpy(starts).to(self.device)

    @property
    def perturbed(self) -> Tensor:
        """See :attr:`GraphBatch.perturbed`; in the new numbering."""
        return self._perturbed_here[0]

    @property
    def perturbed_ptr(self) -> Tensor:
        """See :attr:`GraphBatch.perturbed_ptr`."""
        return self._perturbed_here[1]

    @property
    def perturbed_batch(self) -> Tensor:
        """Sample of each perturbed id, ``[num_perturbed] int64``."""
        return owners(self.perturbed_ptr, len(self.perturbed))

    def _graph(self, at: int) -> Any:
        graph = super()._graph(at)
        whole, nodes = self._whole, self.selection.nodes
        out = subset(graph, whole, self.selection)
        before, after = (g._store if whole.node_type is None else g[whole.node_type] for g in (graph, out))
        if "perturbation_indices" in before:  # whatever their number
            ids, names = before["perturbation_indices"].numpy(), list(before["ids_pert"])
            here = np.isin(ids, nodes)
            after["perturbation_indices"] = torch.from_numpy(np.searchsorted(nodes, ids[here]))
            after["ids_pert"] = [n for n, stays in zip(names, here, strict=False) if stays] + names[
                len(ids) :
            ]
        return out


def _rebuild(root: str, name: str, buffer: Any, nodes: Int64Array, kept: Any) -> SelectedCells:
    generation = find_generation(root, name)
    whole = GraphBatch.unpack(generation, buffer)
    selection = Selection.make(topology_of(generation.base_graph), nodes, kept)
    return SelectedCells(generation, whole.sections, selection)


RESTRICTED[GraphBatch] = SelectedCells.of_cells
