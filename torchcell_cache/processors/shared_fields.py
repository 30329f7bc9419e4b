"""What samples of a store share, as copies of a reader's own: a transform that works in place changes nobody else's data.

A large tensor is copied when it is written: torch keeps one copy of its own per process, which samples share until then. A
small one, and a list or dict, is copied for each sample.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data.data import BaseData

from torchcell_cache.graph.lasting import lasting
from torchcell_cache.processors.private import CONSTANT, PrivateCopies

_LARGE_BYTES = 1 << 16


class SharedFields:
    """Gives samples their own copies of what they share.

    Args:
        holders: Graphs, dicts and dataclasses that hold the shared objects.
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
            return PrivateCopies().of(value)
        original = self._originals.get(id(value))
        if original is None:
            with self._lock:
                original = self._originals.setdefault(id(value), _copied_on_write(value))
        return original._lazy_clone() if hasattr(original, "_lazy_clone") else original.clone()


@lasting
def _copied_on_write(value: Tensor) -> Tensor:
    """A copy in memory that torch can share until it is written; its first sharing is not safe in two threads."""
    copied = value.detach().clone()
    if hasattr(copied, "_lazy_clone"):
        copied._lazy_clone()
    return copied


def _values(holder: Any) -> Iterator[Any]:
    """Everything in a holder that could be changed in place."""
    if isinstance(holder, BaseData):
        for store in holder.stores:
            yield from _values(store._mapping)
    elif dataclasses.is_dataclass(holder):
        for field in dataclasses.fields(holder):
            yield from _values(getattr(holder, field.name))
    elif isinstance(holder, dict):
        yield from (value for value in holder.values() if not isinstance(value, CONSTANT))
