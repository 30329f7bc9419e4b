"""Copies that a user's code may change as it likes: nothing it does in place reaches the original.

Tensors and arrays that lay in the same memory do so in the copy too, so that code which works in place on one of them
gives what it gives on the original. What belongs to a graph copied before (a sample's base graph) becomes that copy's own
object.
"""

from __future__ import annotations

import contextlib
import copy
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
from torchcell_cache.processors.memory import Memory, Span, in_same_memory

CONSTANT = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device, type)


class PrivateCopies:
    """Copies values, each original once.

    Args:
        shared: Copies of what all values share; their originals are not copied again.
    """

    def __init__(self, shared: PrivateCopies | None = None) -> None:
        self.shared = shared
        self._made: dict[int, tuple[Any, Any]] = {}  # with the original: a dead one's id may be used again
        self._memory: list[Memory] = []

    def of(self, value: Any) -> Any:
        """The copy of ``value`` and of everything inside it that can be changed in place."""
        parts = {id(part): part for part in _parts(value) if self._known(part) is None}
        for together in in_same_memory(parts.values()):
            for part, made in self._copied(together):
                self._note(part, made)
        return self._copy(value)

    def _known(self, value: Any) -> Any:
        found = self._made.get(id(value))
        if found is not None:
            return found[1]
        return None if self.shared is None else self.shared._known(value)

    def _note(self, value: Any, made: Any) -> Any:
        self._made[id(value)] = value, made
        return made

    def _copied(self, spans: list[Span]) -> Iterator[tuple[Any, Any]]:
        """What lies in the same memory with its copies; alone, what it does not show of its memory is not copied."""
        shared = () if self.shared is None else self.shared._memory
        memory = next((known for known in shared if known.holds(spans)), None)
        if memory is None:
            if self.shared is not None and len(spans) == 1 and not spans[0].is_folded:
                yield spans[0].part, self._deep_copy(spans[0].part)
                return
            memory = Memory(spans)
            self._memory.append(memory)
        for span in spans:
            yield span.part, memory.seen_as(span)

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


def _parts(value: Any) -> Iterator[Any]:
    """Plain tensors and arrays in a value, at any depth."""
    if type(value) is Tensor:
        if value.layout == torch.strided and not _is_special(value) and value.numel():
            yield value
    elif type(value) is np.ndarray:
        if value.size and not value.dtype.hasobject:
            yield value
    elif isinstance(value, BaseData):
        for store in value.stores:
            yield from _parts(store._mapping)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _parts(item)
    elif isinstance(value, list | tuple) and set(map(type, value)) != {str}:
        for item in value:
            yield from _parts(item)


def _is_special(tensor: Tensor) -> bool:
    """Whether a tensor is more than elements of a storage."""
    return tensor.is_nested or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or tensor.is_meta
