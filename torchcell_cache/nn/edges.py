"""The kept edges of one edge type for a whole batch, in the two forms that layers need."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import lasting

T = TypeVar("T")


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
        for name, mask, columns in (
            ("source_kept", self.source_kept, num_source),
            ("target_kept", self.target_kept, num_target),
        ):
            if mask is not None:
                self._check(name, mask, batch, columns)

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
