"""Copies that a user's code may change as it likes: nothing it does in place reaches the original.

Tensors that lay in the same memory do so in the copy too, so that code which works in place on one of them gives what it
gives on the original. What belongs to a graph copied before (a sample's base graph) becomes that copy's own object.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.data import BaseData

from torchcell_cache.core.samples import Sample
from torchcell_cache.processors.cloning import clone_stores

CONSTANT = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device, type)
_ALIGNED = 16


class PrivateCopies:
    """Copies values, each original once.

    Args:
        shared: Copies of what all values share; their originals are not copied again.
    """

    def __init__(self, shared: PrivateCopies | None = None) -> None:
        self.shared = shared
        self._made: dict[int, tuple[Any, Any]] = {}  # with the original: a dead one's id may be used again
        self._memory: dict[int, tuple[int, int, torch.UntypedStorage]] = {}

    def of(self, value: Any) -> Any:
        """The copy of ``value`` and of everything inside it that can be changed in place."""
        by_memory: dict[int, list[Tensor]] = defaultdict(list)
        for tensor in _tensors(value):
            if self._known(tensor) is None:
                by_memory[tensor.untyped_storage().data_ptr()].append(tensor)
        for address, tensors in by_memory.items():
            for tensor, made in self._copied(address, tensors):
                made.requires_grad_(tensor.requires_grad)
                self._note(tensor, made)
        return self._copy(value)

    def _known(self, value: Any) -> Any:
        found = self._made.get(id(value))
        if found is not None:
            return found[1]
        return None if self.shared is None else self.shared._known(value)

    def _note(self, value: Any, made: Any) -> Any:
        self._made[id(value)] = value, made
        return made

    def _copied(self, address: int, tensors: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Tensors of one storage with their copies; alone, what a tensor does not show of it is not copied."""
        known = None if self.shared is None else self.shared._memory.get(address)
        if known is None and self.shared is not None and len(tensors) == 1:
            yield tensors[0], tensors[0].detach().clone()
            return
        spans = [_span(tensor) for tensor in tensors]
        start, stop = min(a for a, _ in spans) // _ALIGNED * _ALIGNED, max(b for _, b in spans)
        if known is None or not (known[0] <= start and stop <= known[1]):
            if self.shared is not None and len(tensors) == 1:
                yield tensors[0], tensors[0].detach().clone()
                return
            known = start, stop, _bytes(tensors[0], start, stop).clone().untyped_storage()
            self._memory[address] = known
        for tensor, (first, _) in zip(tensors, spans, strict=True):
            plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            offset = (first - known[0]) // tensor.element_size()
            yield tensor, plain.set_(known[2], offset, tensor.shape, tensor.stride())

    def _copy(self, value: Any) -> Any:
        if isinstance(value, CONSTANT):
            return value
        made = self._known(value)
        if made is not None:
            return made
        if isinstance(value, BaseData):
            return self._graph(value)
        if isinstance(value, Sample):
            parts = {name: self._copy(getattr(value, name)) for name in ("perturbed", "values", "base_graph")}
            return replace(value, **parts)
        if type(value) is list or type(value) is tuple:
            return self._note(value, type(value)(map(self._copy, value)))
        if type(value) is dict:
            return self._note(value, {key: self._copy(item) for key, item in value.items()})
        return self._note(value, self._deep_copy(value))

    def _deep_copy(self, value: Any) -> Any:
        """A copy of anything else; what cannot be copied (a lock, an open file) stays as it is."""
        if type(value) is np.ndarray and not value.dtype.hasobject:
            return value.copy(order="K")
        if type(value) is Tensor:
            with contextlib.suppress(RuntimeError, NotImplementedError):
                return value.detach().clone().requires_grad_(value.requires_grad)
        elif isinstance(value, Tensor) and not value.requires_grad:
            with contextlib.suppress(Exception):
                own = value.clone()
                if type(own) is type(value):
                    return own
        with contextlib.suppress(Exception):
            return copy.deepcopy(value, self._memo())
        return value

    def _memo(self) -> dict[int, Any]:
        """What was copied so far, as ``copy.deepcopy`` wants to know it."""
        before = {} if self.shared is None else self.shared._memo()
        return {**before, **{key: made for key, (_, made) in self._made.items()}}

    def _graph(self, graph: Any) -> Any:
        out = clone_stores(graph)[0] if type(graph) is HeteroData else copy.copy(graph)
        self._note(graph, out)
        for store in out.stores:
            mapping = store._mapping
            for name, value in mapping.items():
                mapping[name] = self._copy(value)
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    """Plain tensors in a value, at any depth."""
    if type(value) is Tensor:
        if value.layout == torch.strided and not _is_special(value) and value.numel():
            yield value
    elif isinstance(value, BaseData):
        for store in value.stores:
            yield from _tensors(store._mapping)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple) and not (value and isinstance(value[0], str)):
        for item in value:
            yield from _tensors(item)


def _is_special(tensor: Tensor) -> bool:
    """Whether a tensor is more than elements of a storage."""
    return tensor.is_nested or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or tensor.is_meta


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and one past the last byte that a tensor shows of its storage."""
    size = tensor.element_size()
    first = int(tensor.storage_offset()) * size
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (int(last) + 1) * size


def _bytes(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Bytes ``start`` to ``stop`` of a tensor's storage, ``[stop - start] uint8``."""
    plain = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return plain.set_(tensor.untyped_storage(), start, (stop - start,), (1,))
