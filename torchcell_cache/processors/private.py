"""Copies that a user's code may change as it likes: nothing it does in place reaches the original.

Tensors and arrays that lay in the same memory do so in the copy too, so that code which works in place on one of them
gives what it gives on the original. What belongs to a graph copied before (a sample's base graph) becomes that copy's own
object.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.data import BaseData

from torchcell_cache.core.samples import Sample
from torchcell_cache.graph.lasting import copied_on_write, lazy_clone

_CONSTANT = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device, type)
_ALIGNED = 16
_LARGE_BYTES = 1 << 16


class PrivateCopies:
    """Copies values, each original once; what ``shared`` has copied before is not copied again."""

    def __init__(self, shared: PrivateCopies | None = None) -> None:
        self.shared = shared
        self._made: dict[int, tuple[Any, Any]] = {}  # with the original: a dead one's id may be used again
        self._memory: list[_Memory] = []

    def copied(self, value: Any) -> Any:
        """The copy of ``value`` and of everything inside it that can be changed in place."""
        parts = {id(part): part for part in _parts(value) if self._known(part) is None}
        for together in _in_same_memory(parts.values()):
            self._copy_memory(together)
        return self._copy(value)

    def _known(self, value: Any) -> Any:
        found = self._made.get(id(value))
        if found is not None:
            return found[1]
        return None if self.shared is None else self.shared._known(value)

    def _note(self, value: Any, made: Any) -> Any:
        self._made[id(value)] = value, made
        return made

    def _copy_memory(self, spans: list[_Span]) -> None:
        """Copy what lies in the same memory; alone, what it does not show of its memory is not copied."""
        shared = () if self.shared is None else self.shared._memory
        memory = next((known for known in shared if known.holds(spans)), None)
        alone = self.shared is not None and len(spans) == 1 and not spans[0].is_folded
        if memory is None and not alone:
            memory = _Memory(spans)
            self._memory.append(memory)
        for span in spans:
            self._note(span.part, self._deep_copy(span.part) if memory is None else memory.seen_as(span))

    def _copy(self, value: Any) -> Any:
        if isinstance(value, _CONSTANT):
            return value
        made = self._known(value)
        if made is not None:
            return made
        if isinstance(value, BaseData):
            return self._graph(value)
        if isinstance(value, Sample):
            parts = {name: self._copy(getattr(value, name)) for name in ("perturbed", "values", "base_graph")}
            return dataclasses.replace(value, **parts)
        if type(value) is list or type(value) is tuple:
            return self._note(value, type(value)(map(self._copy, value)))
        if type(value) is dict:
            return self._note(value, {key: self._copy(item) for key, item in value.items()})
        return self._note(value, self._deep_copy(value))

    def _deep_copy(self, value: Any) -> Any:
        """A copy of anything else; what cannot be copied (a lock, an open file) stays as it is."""
        if type(value) is np.ndarray and not value.dtype.hasobject:
            return value.copy(order="K")
        if isinstance(value, Tensor) and (type(value) is Tensor or not value.requires_grad):
            with contextlib.suppress(Exception):
                own = value.detach().clone().requires_grad_() if value.requires_grad else value.clone()
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
        is_special = (
            value.is_nested or value.is_conj() or value.is_neg() or value.is_quantized or value.is_meta
        )
        if value.layout == torch.strided and not is_special and value.numel():
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


class _Span(NamedTuple):
    """Where the first and one past the last byte of a tensor or array lie, and whether elements share memory."""

    device: str
    start: int
    stop: int
    part: Any
    is_folded: bool = False


def _span(part: Any) -> _Span:
    if isinstance(part, np.ndarray):
        return _Span("cpu", *np.lib.array_utils.byte_bounds(part), part)
    start, device = part.data_ptr(), "cpu" if part.is_cpu else str(part.device)
    if part.is_contiguous():
        return _Span(device, start, start + part.nbytes, part)
    shape, strides = part.shape, part.stride()
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    stop = start + (int(last) + 1) * part.element_size()
    repeats = any(step == 0 and n > 1 for n, step in zip(shape, strides, strict=True))
    return _Span(device, start, stop, part, repeats or part.nbytes > stop - start)


def _in_same_memory(parts: Iterable[Any]) -> Iterator[list[_Span]]:
    """Tensors and arrays that have elements, those together whose spans overlap."""
    together: list[_Span] = []
    stop = 0
    for span in sorted(map(_span, parts), key=lambda span: span[:3]):
        if together and (span.device != together[0].device or span.start >= stop):
            yield together
            together = []
        stop = max(stop, span.stop) if together else span.stop
        together.append(span)
    if together:
        yield together


class _Memory:
    """A copy of the bytes that overlapping spans cover, given in the order of their starts."""

    def __init__(self, spans: list[_Span]) -> None:
        self.device, self.start, self.stop = spans[0].device, spans[0].start, max(s.stop for s in spans)
        self._before = self.start % _ALIGNED  # elements stay aligned
        size = self.stop - self.start
        self._bytes = torch.empty(self._before + size, dtype=torch.uint8, device=self.device)
        if self.device == "cpu":  # in one piece: several storages may lie over each other
            ctypes.memmove(self._bytes.data_ptr() + self._before, self.start, size)
            return
        for span in spans:
            tensor, at = span.part, self._before + span.start - self.start
            first = tensor.storage_offset() * tensor.element_size()
            shown = torch.empty(0, dtype=torch.uint8, device=self.device)
            shown.set_(tensor.untyped_storage(), first, (span.stop - span.start,), (1,))
            self._bytes[at : at + len(shown)] = shown

    def holds(self, spans: list[_Span]) -> bool:
        """Whether the bytes of all spans are here; they are of one device."""
        inside = (self.start <= span.start and span.stop <= self.stop for span in spans)
        return self.device == spans[0].device and all(inside)

    def seen_as(self, span: _Span) -> Any:
        """The tensor or array that shows of this memory what the span's shows of its own."""
        part = span.part
        if isinstance(part, np.ndarray):
            offset = self._before + part.__array_interface__["data"][0] - self.start
            return np.ndarray(part.shape, part.dtype, self._bytes.numpy(), offset, part.strides)
        offset = (self._before + span.start - self.start) // part.element_size()
        plain = torch.empty(0, dtype=part.dtype, device=part.device)
        made: Tensor = plain.set_(self._bytes.untyped_storage(), offset, part.shape, part.stride())
        return made.requires_grad_(part.requires_grad)


def clone_stores(graph: HeteroData) -> tuple[HeteroData, dict[Any, dict[str, Any]]]:
    """``copy.copy`` of a ``HeteroData``, several times faster, and the mapping behind each of its node and edge stores by type.

    PyG copies store by store through ``copy.copy`` and ``__setattr__``; for a graph of fifteen stores that is a third of the
    time a sample takes. This does the same to the same attributes; the equality tests compare the result with PyG's own.
    """
    out = HeteroData.__new__(HeteroData)
    parent = weakref.ref(out)
    mappings: dict[Any, dict[str, Any]] = {}

    def clone(store: Any, key: Any) -> Any:
        state = store.__dict__.copy()
        state.pop("_cached_attr", None)
        state["_mapping"] = mappings[key] = state["_mapping"].copy()
        state["_parent"] = parent
        copied = store.__class__.__new__(store.__class__)
        copied.__dict__.update(state)
        return copied

    out.__dict__.update(graph.__dict__, _global_store=clone(graph._global_store, None))
    for name in ("_node_store_dict", "_edge_store_dict"):
        out.__dict__[name] = {key: clone(store, key) for key, store in graph.__dict__[name].items()}
    return out, mappings


class SharedFields:
    """What samples of a store share, as copies of a reader's own: a transform that works in place changes nobody else's data.

    A large tensor is copied when it is written: torch keeps one copy of its own per process, which samples share until then. A
    small one, and a list or dict, is copied for each sample.
    """

    def __init__(self, holders: Iterable[Any]) -> None:
        self._shared = {id(value): value for holder in holders for value in _values(holder)}
        self._originals: dict[int, Tensor] = {}
        self._lock = threading.Lock()

    def separate(self, graph: Any) -> Any:
        """The same graph, in which nothing is shared any more."""
        if not isinstance(graph, BaseData):
            return graph
        for store in graph.stores:
            mapping = store._mapping
            for name, value in mapping.items():
                if self._shared.get(id(value)) is value:
                    mapping[name] = self._own(value)
        return graph

    def _own(self, value: Any) -> Any:
        if type(value) is list and set(map(type, value)) <= {str, int, float, bool}:
            return value.copy()
        if type(value) is not Tensor or value.layout != torch.strided or value.nbytes < _LARGE_BYTES:
            return PrivateCopies().copied(value)
        original = self._originals.get(id(value))
        if original is None:
            with self._lock:
                original = self._originals.setdefault(id(value), copied_on_write(value))
        return lazy_clone(original)


def _values(holder: Any) -> Iterator[Any]:
    """Everything in a holder that could be changed in place."""
    if isinstance(holder, BaseData):
        for store in holder.stores:
            yield from _values(store._mapping)
    elif dataclasses.is_dataclass(holder):
        for field in dataclasses.fields(holder):
            yield from _values(getattr(holder, field.name))
    elif isinstance(holder, dict):
        yield from (value for value in holder.values() if not isinstance(value, _CONSTANT))
