"""A call in a fresh Python process with another hash seed, also of code that only a notebook or ``__main__`` holds.

What another process can import travels by name. Functions and classes that it cannot - of ``__main__``, of a notebook, of
another function's body - travel as they are: byte code, defaults, closure and the globals they name.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import io
import json
import marshal
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

from torchcell_cache.builder.codehash.source import global_names

_SECONDS = 120.0
_SKIPPED = ("__dict__", "__weakref__", "__abc_impl__", "_abc_impl", "__classcell__")
_RUN = "from torchcell_cache.testing.elsewhere import answer; answer()"
_SPACES: dict[str, dict[str, Any]] = {}


class NotRunError(Exception):
    """The call could not be made, or had no result; says why."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own, as JSON values.

    Raises:
        NotRunError: Naming what cannot be sent, or how the process ended.
    """
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100 - "" is the working directory
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    command, stream = [sys.executable, "-c", _RUN], io.BytesIO()
    how: dict[str, Any] = {"capture_output": True, "env": environment, "timeout": _SECONDS}
    try:
        _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump((function, arguments))
        done = subprocess.run(command, input=stream.getvalue(), **how)
    except subprocess.TimeoutExpired:
        raise NotRunError(f"no answer within {_SECONDS:.0f} s") from None
    except Exception as error:  # it cannot be sent, or did not start
        raise NotRunError(f"{type(error).__name__}: {error}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise NotRunError(f"the process ended with {done.returncode}: {said[-1]}")
    return json.loads(done.stdout)


def answer() -> None:
    """The other process's part: read a call, make it, write the result."""
    out = os.dup(1)
    os.dup2(2, 1)  # what the code prints is no answer
    function, arguments = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - by the process that started us
    with os.fdopen(out, "w") as file:
        json.dump(function(*arguments), file)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType) and not _is_importable(value):
            return _function(value)
        if isinstance(value, type) and not _is_importable(value):
            return _class(value)
        if isinstance(value, types.ModuleType):
            return importlib.import_module, (value.__name__,)
        if isinstance(value, property):
            return property, (value.fget, value.fset, value.fdel, value.__doc__)
        if isinstance(value, classmethod | staticmethod):
            return type(value), (value.__func__,)
        if isinstance(value, types.MappingProxyType):
            return _proxy, (dict(value),)
        if isinstance(value, functools._lru_cache_wrapper) and not _is_importable(value):
            return _cached, (value.__wrapped__, value.cache_parameters())
        if value is dataclasses.MISSING:
            return "MISSING"
        return NotImplemented


def _is_importable(value: Any) -> bool:
    """Whether another process finds this very object under its name."""
    if value.__module__ in ("__main__", "__mp_main__", None):
        return False
    found: Any = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _function(value: types.FunctionType) -> Any:
    cells = [_cell(cell) for cell in value.__closure__ or ()]
    space = value.__globals__
    used = {name: space[name] for name in sorted(global_names(value.__code__) & space.keys())}
    state = (value.__defaults__, value.__kwdefaults__, value.__dict__, cells, used)
    made = (marshal.dumps(value.__code__), value.__module__ or "?", value.__qualname__, len(cells))
    return _blank_function, made, state, None, None, _fill_function


def _cell(cell: Any) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not assigned yet
        return ()


def _blank_function(code: bytes, module: str, qualname: str, cells: int) -> types.FunctionType:
    space = _SPACES.setdefault(module, {"__name__": module, "__builtins__": __builtins__})
    closure = tuple(types.CellType() for _ in range(cells))
    function = types.FunctionType(marshal.loads(code), space, closure=closure)  # noqa: S302 - our own process's
    function.__qualname__, function.__module__ = qualname, module
    return function


def _fill_function(function: types.FunctionType, state: Any) -> None:
    defaults, keywords, attributes, cells, used = state
    function.__defaults__, function.__kwdefaults__ = defaults, keywords
    function.__dict__.update(attributes)
    function.__globals__.update(used)
    for cell, content in zip(function.__closure__ or (), cells, strict=True):
        if content:
            cell.cell_contents = content[0]


def _class(cls: type) -> Any:
    hidden = types.MemberDescriptorType | types.GetSetDescriptorType
    members = {
        name: value
        for name, value in vars(cls).items()
        if name not in _SKIPPED and not isinstance(value, hidden)
    }
    if isinstance(cls, enum.EnumMeta):
        known: Any = cls.__members__
        made_by = functools.partial(cls.__bases__[-1], module=cls.__module__)
        values = {name: member._value_ for name, member in known.items()}
        own = {
            name: value
            for name, value in members.items()
            if isinstance(value, types.FunctionType) and not (hasattr(enum.Enum, name) or name[:2] == "__")
        }
        return made_by, (cls.__name__, values), own, None, None, _fill_class
    slots = {"__slots__": members.pop("__slots__")} if "__slots__" in members else {}
    made = (cls.__name__, cls.__bases__, {**slots, "__module__": cls.__module__})
    return type(cls), made, members, None, None, _fill_class


def _proxy(values: dict[Any, Any]) -> Any:
    return types.MappingProxyType(values)


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _fill_class(cls: type, members: dict[str, Any]) -> None:
    for name, value in members.items():
        setattr(cls, name, value)
    if hasattr(cls, "__abstractmethods__"):
        importlib.import_module("abc").update_abstractmethods(cls)
