"""The kept edges of one edge type for a whole batch, in the two forms that layers need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchcell_cache.batch import SharedGraphBatch
from torchcell_cache.batch.deletions import DeletionBatch
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.topology import Domain

T = TypeVar("T")
Ends = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class KeptEdges:
    """The kept edges of all samples, sample after sample, in the base graph's order.

    Attributes:
        sample: Sample of each kept edge, ``[num_kept] int64``.
        edge: Its position in the base graph's edge list, ``[num_kept] int64``.
        index: Both ends, numbered as in a PyG batch: ``sample * num_nodes + node``, ``[2, num_kept] int64``.

    Example:
        >>> edges = tc.nn.shared_edges(ds.read_batch(range(4)))["gene", "physical", "gene"]
        >>> edges.edge_index.shape
        torch.Size([2, 24])
    """

    sample: Tensor
    edge: Tensor
    index: Tensor


def kept_edges(mask: Tensor, edge_index: Tensor, num_source: int, num_target: int) -> KeptEdges:
    """The kept edges of the samples of a mask."""
    sample, edge = mask.nonzero(as_tuple=True)
    index = edge_index[:, edge]
    return KeptEdges(sample, edge, index + torch.stack([sample * num_source, sample * num_target]))


@dataclass(eq=False)
class SharedEdges:
    """One edge list for all samples of a batch, and which of its edges each sample keeps.

    An edge that goes because a node goes needs no mask of its own: it is kept iff both of its ends are. Where that is
    known (``source_kept``, ``target_kept``), sums over edges take no ``[batch, num_edges]`` memory at all.

    Args:
        edge_index: Sources and targets, ``[2, num_edges] int64``, the same for all samples.
        edge_mask: Kept edges, ``[batch, num_edges] bool``, or a function that makes it when it is needed.
        source_kept: Kept source nodes, ``[batch, num_source] bool``; ``None`` for all.
        target_kept: Kept target nodes, ``[batch, num_target] bool``; ``None`` for all.
        by_nodes: Whether an edge is kept if and only if its ends are kept by the two masks above.

    Example:
        >>> edges = tc.nn.shared_edges(ds.read_batch(range(4)))["gene", "physical", "gene"]
        >>> edges.edge_index.shape
        torch.Size([2, 24])
    """

    edge_index: Tensor
    edge_mask: Tensor | Callable[[], Tensor]
    source_kept: Tensor | None = None
    target_kept: Tensor | None = None
    by_nodes: bool = False
    _memo: dict[Any, Any] = field(default_factory=dict, repr=False)
    _batch: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        index = self.edge_index
        if not isinstance(index, Tensor) or index.dim() != 2 or index.size(0) != 2:
            got = list(index.shape) if isinstance(index, Tensor) else type(index).__name__
            raise SettingError(f"edge_index is {got}, expected a tensor [2, num_edges]")
        given = self.edge_index, self.edge_mask, self.source_kept, self.target_kept
        self._given = [t for t in given if isinstance(t, Tensor) and not t.is_inference()]

    @lasting
    def mask(self) -> Tensor:
        """Kept edges, ``[batch, num_edges] bool``."""
        if not isinstance(self.edge_mask, Tensor):
            made = self.edge_mask()
            self._check("edge_mask", made, self._batch, self.edge_index.size(1))
            self.edge_mask = made
        return self.edge_mask

    def kept(self, num_source: int, num_target: int) -> KeptEdges:
        """The kept edges of the whole batch; made once for all layers of an edge type."""

        def make() -> KeptEdges:
            return kept_edges(self.mask(), self.edge_index, num_source, num_target)

        return self.remember((num_source, num_target), make)

    @lasting
    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several layers need, made once (degrees, say), and anew if a tensor has been changed in place."""
        versions = [tensor._version for tensor in self._given]
        if versions != self._memo.get("versions"):
            self._memo = {"versions": versions}
        if key not in self._memo:
            self._memo[key] = make()
        found: T = self._memo[key]
        return found

    def check(self, batch: int, num_source: int, num_target: int) -> None:
        """Whether the masks fit the node features.

        Raises:
            SettingError: If they are for another number of samples, edges or nodes.
        """
        self._batch = batch
        if not callable(self.edge_mask):
            self._check("edge_mask", self.edge_mask, batch, self.edge_index.size(1))
        for name, columns in (("source_kept", num_source), ("target_kept", num_target)):
            if getattr(self, name) is not None:
                self._check(name, getattr(self, name), batch, columns)

    @staticmethod
    def _check(name: str, mask: Any, batch: int | None, columns: int) -> None:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else ()
        batch = shape[0] if batch is None and shape else batch
        if shape != (batch, columns) or mask.dtype != torch.bool:
            got = f"{mask.dtype}{list(shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise SettingError(
                f"{name} is {got.removeprefix('torch.')}, expected bool[{batch}, {columns}] for {batch} samples",
                fix="take x, edge_index and masks from the same batch",
            )


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
        topology = batch.context.topology
        self._domains: dict[Any, Domain] = {d.key: d for d in topology.domains if d.role != "reaction"}
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
        batch = self._batch
        topology, genes = batch.context.topology, batch.node_mask()
        if domain.role == "edge":
            rows = topology.ends_of(domain)
            return genes if 0 in rows else None, genes if 1 in rows else None
        reactions = None if topology.find("reaction") is None else batch.node_mask("reaction")
        if domain.role == "rmr":
            return reactions, None
        # The mask representation keeps a gpr entry with its gene, the subgraph needs its reaction as well.
        return genes, reactions if batch.on_device.processor.gpr_by == "reaction" else None
