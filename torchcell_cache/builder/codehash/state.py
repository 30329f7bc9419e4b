"""State of arbitrary objects: attributes, slots, or what ``copy`` would take."""

from __future__ import annotations

import copyreg
import functools
import types
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

from torchcell_cache.core.lazy import cached_property


def reduced(value: object) -> Any:
    """What ``copy`` makes of the object itself, without its parts; ``None`` if it refuses."""
    reduce: Any = copyreg.dispatch_table.get(type(value))
    try:
        return reduce(value) if reduce else value.__reduce_ex__(2)
    except Exception:
        return None


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor, told without importing torch."""
    return not isinstance(value, type) and all(
        callable(getattr(type(value), name, None)) for name in ("detach", "cpu", "numpy")
    )


def has_own_reduce(cls: type) -> bool:
    """Whether the class says itself what its state is."""
    if cls in copyreg.dispatch_table:
        return True
    for base in cls.__mro__[:-1]:
        if "__reduce__" in vars(base) or "__reduce_ex__" in vars(base):
            return base not in (dict, list, tuple, set, frozenset, deque) and not issubclass(cls, OrderedDict)
    return False


def attributes(value: object) -> Iterator[tuple[str, object]]:
    """Instance attributes in ``__dict__`` and slots, without computed ones and empty hook tables."""
    cls = type(value)
    is_module = any(base.__module__ == "torch.nn.modules.module" for base in cls.__mro__)
    for name, item in getattr(value, "__dict__", {}).items():
        bookkeeping = is_module and not item and ("_hook" in name or name == "_non_persistent_buffers_set")
        if not bookkeeping and not isinstance(
            getattr(cls, name, None), (functools.cached_property, cached_property)
        ):
            yield str(name), item
    for base in cls.__mro__:
        for name, slot in vars(base).items():
            if (
                "__slots__" in vars(base)
                and isinstance(slot, types.MemberDescriptorType)
                and name not in ("__dict__", "__weakref__")
            ):
                try:
                    yield name, slot.__get__(value, cls)
                except AttributeError:
                    continue
