"""One edge list as a sparse matrix, built once per edge list and device, and its transpose."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.nn.segments import offsets_of

T = TypeVar("T")


@dataclass(eq=False)
class Adjacency:
    """An edge list as compressed rows, targets by sources, and its transpose for the gradient.

    Parallel edges share one entry, so an entry's value is the sum of its edges' weights.

    Attributes:
        num_source: Number of columns.
        num_target: Number of rows.
        row_ptr: ``[num_target + 1] int32``, as all offsets and ends (``int64`` where that is too narrow).
        column: Source of each entry, ``[num_entries] int32``.
        slot: Entry of each edge, ``[num_edges] int64``.
        row_ptr_t: The transpose's row offsets, ``[num_source + 1] int32``.
        column_t: Target of each of the transpose's entries, ``[num_entries] int32``.
        order_t: Entry of each of the transpose's entries, ``[num_entries] int64``.
        is_loop: Edges from a node to itself, ``[num_edges] bool``.
        has_loops: Whether there are any.
    """

    num_source: int
    num_target: int
    row_ptr: Tensor
    column: Tensor
    slot: Tensor
    row_ptr_t: Tensor
    column_t: Tensor
    order_t: Tensor
    is_loop: Tensor
    has_loops: bool
    _counts: dict[tuple[torch.dtype, bool], Matrices] = field(default_factory=dict)

    @classmethod
    def build(cls, edge_index: Tensor, num_source: int, num_target: int) -> Adjacency:
        """Sort the edges by target, then source.

        Args:
            edge_index: Sources and targets, ``[2, num_edges] int64``.
            num_source: Number of source nodes.
            num_target: Number of target nodes.
        """
        key, slot = torch.unique(edge_index[1] * num_source + edge_index[0], return_inverse=True)
        row, column = key // max(num_source, 1), key % max(num_source, 1)
        order = torch.argsort(column, stable=True)
        is_loop = edge_index[0] == edge_index[1]
        narrow = torch.int32 if max(len(key), num_source, num_target) < 2**31 else torch.int64
        return cls(
            num_source,
            num_target,
            offsets_of(row, num_target).to(narrow),
            column.to(narrow),
            slot,
            offsets_of(column, num_source).to(narrow),
            row[order].to(narrow),
            order,
            is_loop,
            bool(is_loop.any()),
        )

    def matrices(self, weight: Tensor | None, dtype: torch.dtype, *, loops: bool = True) -> Matrices:
        """The matrix and its transpose; without weights, every edge counts 1, and both are kept.

        Args:
            weight: ``[num_edges]`` floating point, constant, or ``None``.
            dtype: Of the values.
            loops: Whether edges from a node to itself count at all.
        """
        if weight is not None:
            return self._matrices(weight.to(dtype), loops)
        key = dtype, loops
        if key not in self._counts:
            self._counts[key] = self._matrices(torch.ones_like(self.slot, dtype=dtype), loops)
        return self._counts[key]

    @lasting
    def _matrices(self, per_edge: Tensor, loops: bool) -> Matrices:
        per_edge = per_edge if loops else per_edge.masked_fill(self.is_loop, 0)
        values = torch.zeros_like(self.column, dtype=per_edge.dtype).index_add_(0, self.slot, per_edge)
        forward = Compressed(self.row_ptr, self.column, values, (self.num_target, self.num_source))
        shape = (self.num_source, self.num_target)
        return Matrices(forward, Compressed(self.row_ptr_t, self.column_t, values[self.order_t], shape))


@dataclass(eq=False)
class Compressed:
    """A sparse matrix by rows.

    Attributes:
        row_ptr: ``[num_rows + 1] int32`` (``int64`` where that is too narrow).
        column: ``[num_entries]``, of the same dtype.
        values: ``[num_entries]`` floating point.
        shape: Rows and columns.
    """

    row_ptr: Tensor
    column: Tensor
    values: Tensor
    shape: tuple[int, int]

    @functools.cached_property
    def sparse(self) -> Tensor:
        """As a sparse tensor of torch."""
        return _csr(self.row_ptr, self.column, self.values, self.shape)


class Matrices:
    """A sparse matrix and its transpose, as one thing that no transform of ``torch.func`` looks into."""

    __slots__ = ("matrix", "transpose")

    def __init__(self, matrix: Compressed, transpose: Compressed) -> None:
        self.matrix, self.transpose = matrix, transpose

    @property
    def t(self) -> Matrices:
        """The same the other way round."""
        return Matrices(self.transpose, self.matrix)


_KNOWN: Any = WeakTensorKeyDictionary()


@lasting
def known_of(edge_index: Tensor, key: Hashable, make: Callable[[], T]) -> T:
    """What is made of an edge list once, remembered as long as the tensor lives unchanged."""
    if edge_index.is_inference():  # changes in place are not counted there
        return make()
    version, known = _KNOWN.get(edge_index, (None, {}))
    if version != edge_index._version:
        known = {}
        _KNOWN[edge_index] = edge_index._version, known
    if key not in known:
        known[key] = make()
    found: T = known[key]
    return found


def adjacency_of(edge_index: Tensor, num_source: int, num_target: int) -> Adjacency:
    """The adjacency of an edge list."""
    key = "adjacency", num_source, num_target
    return known_of(edge_index, key, lambda: Adjacency.build(edge_index, num_source, num_target))


def check_ends(edge_index: Tensor, num_source: int, num_target: int) -> None:
    """Insist on edges between nodes that are there; others would reach into the next sample.

    Raises:
        SettingError: Naming the first edge that does not fit.
    """

    def first_wrong() -> int | None:
        sizes = torch.tensor([[num_source], [num_target]], device=edge_index.device)
        wrong = ((edge_index < 0) | (edge_index >= sizes)).any(0)
        return int(wrong.nonzero()[0]) if bool(wrong.any()) else None

    at = known_of(edge_index, ("ends", num_source, num_target), first_wrong)
    if at is not None:
        raise SettingError(
            f"edge {at} goes from {int(edge_index[0, at])} to {int(edge_index[1, at])}, but there are features of "
            f"{num_source} source and {num_target} target nodes",
            fix="take x and edge_index from the same batch",
        )


def _csr(row_ptr: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Compressed rows where the products exist (CUDA, or MKL on the CPU), coordinates elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # "CSR is in beta"; only construction and products are used
        if row_ptr.is_cuda or torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
            return torch.sparse_csr_tensor(
                row_ptr, column, values, shape, check_invariants=False, device=values.device
            )
        rows = torch.repeat_interleave(torch.arange(shape[0], device=column.device), row_ptr.diff())
        index = torch.stack([rows, column])
        return torch.sparse_coo_tensor(
            index, values, shape, is_coalesced=True, check_invariants=False, device=values.device
        )
