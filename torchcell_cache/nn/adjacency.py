"""One edge list as a sparse matrix, built once per edge list and device, and its transpose."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from torchcell_cache.core.lazy import cached_property
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import lasting

T = TypeVar("T")


class Adjacency:
    """Edges by target, then source, one entry each, and how to take them by source for the gradient.

    Attributes:
        shape: Number of targets and of sources.
        ptr: Where each target's entries begin, ``[num_target + 1] int32``, as all offsets and ends (``int64`` where that
            is too narrow).
        column: Source of each entry, ``[num_entries]``.
        row: Its target.
        edge: Its edge in the list, ``[num_entries] int64``; added loops follow the edges.
        by_source: The entries by source.
        ptr_t: Where each source's begin there, ``[num_source + 1]``.
        loop: Entry of each node's own added loop, ``[num_target] int64``, or ``None``.
        is_loop: Entries from a node to itself, ``[num_entries] bool``.
        has_loops: Whether there are any.
    """

    def __init__(self, edge_index: Tensor, num_source: int, num_target: int, own_loops: bool) -> None:
        """Sort the edges; with ``own_loops``, every node has one loop and no other."""
        source, target = edge_index
        if own_loops:
            other, node = source != target, torch.arange(num_target, device=source.device)
            source, target = torch.cat([source[other], node]), torch.cat([target[other], node])
        order = torch.argsort(target * num_source + source)
        narrow = torch.int32 if max(len(order), num_source, num_target) < 2**31 else torch.int64
        self.shape, self.edge = (num_target, num_source), order
        self.loop = torch.argsort(order)[len(order) - num_target :] if own_loops else None
        self.column, self.row = source[order].to(narrow), target[order].to(narrow)
        self.by_source = torch.argsort(self.column, stable=True).to(narrow)
        self.ptr = offsets_of(target, num_target).to(narrow)
        self.ptr_t = offsets_of(source, num_source).to(narrow)
        self.is_loop = self.row == self.column
        self.has_loops = bool(self.is_loop.any())
        self._counts: dict[tuple[torch.dtype, bool], Matrices] = {}

    @lasting
    def matrices(self, weight: Tensor | None, dtype: torch.dtype, *, loops: bool = True) -> Matrices:
        """The matrix and its transpose; without weights, every edge counts 1, and both are kept.

        Args:
            weight: ``[num_edges]`` floating point, constant, or ``None``.
            dtype: Of the values.
            loops: Whether edges from a node to itself count at all.
        """
        if weight is None and (dtype, loops) in self._counts:
            return self._counts[dtype, loops]
        values = torch.ones_like(self.edge, dtype=dtype) if weight is None else weight.to(dtype)[self.edge]
        values = values if loops else values.masked_fill(self.is_loop, 0)
        made = Matrices(self.csr(values), self.csr(values, transposed=True))
        if weight is None:
            self._counts[dtype, loops] = made
        return made

    def csr(self, values: Tensor, *, transposed: bool = False) -> Compressed:
        """The entries with a value each, or their transpose."""
        if not transposed:
            return Compressed(self.ptr, self.column, values, self.shape)
        at = self.by_source
        shape = (self.shape[1], self.shape[0])
        return Compressed(self.ptr_t, self.row.index_select(0, at), values.index_select(0, at), shape)

    def hidden(self, sources: Tensor, targets: Tensor) -> Tensor | None:
        """Entries that deleted nodes take with them, ``[num_entries] bool``; a node's own loop stays."""
        if not len(sources) and not len(targets):
            return None
        out = torch.zeros(len(self.column), dtype=torch.bool, device=self.column.device)
        out[ranges(self.ptr.long(), targets)[1]] = True
        out[self.by_source[ranges(self.ptr_t.long(), sources)[1]].long()] = True
        if self.loop is not None:
            out[self.loop[torch.cat([sources, targets])]] = False
        return out


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

    @cached_property
    def sparse(self) -> Tensor:
        """As a sparse tensor: compressed rows where the products exist (CUDA, or MKL on the CPU), coordinates elsewhere."""
        how: Any = {"check_invariants": False}
        device = self.values.device
        with warnings.catch_warnings():
            # "CSR is in beta"; only construction and products are used.
            warnings.simplefilter("ignore", UserWarning)
            if self.row_ptr.is_cuda or torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
                return torch.sparse_csr_tensor(
                    self.row_ptr, self.column, self.values, self.shape, device=device, **how
                )
            rows = torch.arange(self.shape[0], device=self.column.device)
            index = torch.stack([rows.repeat_interleave(self.row_ptr.diff()), self.column])
            return torch.sparse_coo_tensor(
                index, self.values, self.shape, device=device, is_coalesced=True, **how
            )


class Matrices(NamedTuple):
    """A sparse matrix and its transpose."""

    matrix: Compressed
    transpose: Compressed


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


def adjacency_of(
    edge_index: Tensor, num_source: int, num_target: int, *, own_loops: bool = False
) -> Adjacency:
    """The adjacency of an edge list, made once."""
    key = "adjacency", num_source, num_target, own_loops
    return known_of(edge_index, key, lambda: Adjacency(edge_index, *key[1:]))


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


def offsets_of(rows: Tensor, count: int) -> Tensor:
    """Where each of ``count`` rows begins if what belongs to them is sorted, ``[count + 1] int64``."""
    out = torch.zeros(count + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(torch.bincount(rows, minlength=count), 0, out=out[1:])
    return out


def ranges(ptr: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What belongs to each of some rows: the place in ``rows`` it belongs to, and its own place."""
    counts = ptr[rows + 1] - ptr[rows]
    owner = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    begin = ptr[rows] - (counts.cumsum(0) - counts)
    return owner, torch.arange(len(owner), device=rows.device) + begin[owner]
