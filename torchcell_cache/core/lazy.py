"""What threads compute once, and what a process forked meanwhile must not wait for."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")
AFTER_FORK: weakref.WeakSet[Any] = weakref.WeakSet()
"""What a forked child has to ``renew``."""
os.register_at_fork(after_in_child=lambda: [each.renew() for each in list(AFTER_FORK)])


class cached_property(Generic[T]):  # noqa: N801 - it stands where functools' would
    """``functools.cached_property`` as it is from Python 3.12 on.

    That of 3.11 holds a lock while it computes: a process forked meanwhile would wait for it for ever. Without one, two
    threads may compute the same value; the first to be stored stays.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make, self._name, self.__doc__ = make, make.__name__, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> cached_property[T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> cached_property[T] | T:
        if instance is None:
            return self
        value: T = instance.__dict__.setdefault(self._name, self._make(instance))
        return value


class ThreadLock:
    """A re-entrant lock between threads; a forked child gets it free, whichever thread of its parent held it.

    Forking while other threads read is what a loader with workers does beside a prefetch thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        AFTER_FORK.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(
            RuntimeError
        ):  # forked by the very thread that held it: nothing to give back
            self._lock.release()

    def renew(self) -> None:
        """Forget who holds it."""
        self._lock = threading.RLock()
