"""The edges of a ``SharedGraphBatch`` for message passing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from torchcell_cache.batch import SharedGraphBatch
from torchcell_cache.batch.deletions import DeletionBatch
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.topology import Domain, Topology
from torchcell_cache.nn.edges import SharedEdges


def shared_edges(batch: Any) -> Mapping[Any, SharedEdges]:
    """The edges of a batch by edge type, for all layers of a model; make it once per forward pass.

    An edge type's masks are made when it is looked up, so types a model does not use cost nothing. Hyperedges (gpr, rmr)
    are edges from their first row to their second.

    Args:
        batch: A ``SharedGraphBatch`` on the device the model is on.

    Returns:
        ``SharedEdges`` by edge type; the key of a homogeneous graph's edges is ``None``.

    Raises:
        SettingError: If the batch is not of a store of deletions: a processor of your own may change edges in any way.

    Example:
        >>> edges = tc.nn.shared_edges(ds.read_batch(range(3)))
        >>> edges["gene", "regulatory", "gene"].edge_index.shape
        torch.Size([2, 12])
    """
    if not isinstance(batch, SharedGraphBatch):
        raise SettingError(
            f"shared edges are those of a SharedGraphBatch, got {type(batch).__name__}",
            fix="CacheLoader(..., expand=False), or dataset.read_batch(indices)",
        )
    if batch.generation.topology is None:
        raise SettingError(
            f"shared edges need a store of node deletions; {batch.generation.root} is of a processor of another kind",
            fix="run the model on batch.to_pyg(), or make SharedEdges(edge_index, batch.edge_mask(edge_type)) yourself",
        )
    return _BatchEdges(batch)


class _BatchEdges(Mapping[Any, SharedEdges]):
    """Makes the edges of a type on first use and keeps them."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self._topology: Topology = batch.context.topology
        self._domains = {d.key: d for d in self._topology.domains if d.role != "reaction"}
        self._made: dict[Any, SharedEdges] = {}

    def __len__(self) -> int:
        return len(self._domains)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._domains)

    def __contains__(self, key: object) -> bool:
        return key in self._domains

    def __getitem__(self, key: Any) -> SharedEdges:
        if key not in self._made:
            if key not in self._domains:
                raise KeyError(f"no edge type {key!r} in the base graph; there are {list(self._domains)}")
            self._made[key] = self._make(self._domains[key])
        return self._made[key]

    @lasting
    def _make(self, domain: Domain) -> SharedEdges:
        batch = self._batch
        by_nodes = isinstance(batch, DeletionBatch)
        # Graphs that are stored whole bring their own masks, over the base graph's edges.
        graph = batch.base_graph if by_nodes else batch.generation.base_graph
        store = graph if domain.key is None else graph[domain.key]
        index = store.edge_index if domain.role == "edge" else store.hyperedge_index
        source, target = self._ends(domain) if by_nodes else (None, None)
        return SharedEdges(
            index.to(batch.device), lambda: batch.edge_mask(domain.key), source, target, by_nodes=by_nodes
        )

    def _ends(self, domain: Domain) -> tuple[Tensor | None, Tensor | None]:
        """Kept nodes at both ends such that an edge is kept iff its ends are: the definition of each kind of edge."""
        genes = self._batch.node_mask()
        if domain.role == "edge":
            ends = (None, None) if domain.key is None else (domain.key[0], domain.key[2])
            source, target = (genes if end == self._topology.node_type else None for end in ends)
            return source, target
        reactions = None if self._topology.find("reaction") is None else self._batch.node_mask("reaction")
        if domain.role == "rmr":
            return reactions, None
        # The mask representation keeps a gpr entry with its gene, the subgraph needs its reaction as well.
        return genes, reactions if self._batch.on_device.processor.gpr_by == "reaction" else None
