"""One identity: functions and classes, each with its source, what it captured and what it refers to."""

from __future__ import annotations

import ast
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property, partialmethod, singledispatchmethod
from importlib import metadata
from importlib.machinery import SourceFileLoader
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

from torchcell_cache.builder.codehash.names import ABSENT, NameFollower, Space, globals_of
from torchcell_cache.builder.codehash.place import (
    LIBRARIES,
    is_installed,
    registered,
    short_name,
    top_level,
)
from torchcell_cache.builder.codehash.source import Definition, default_nodes
from torchcell_cache.builder.codehash.tree import assignments, names_in, says
from torchcell_cache.builder.codehash.values import Json, cannot_identify
from torchcell_cache.errors import SettingError


def code_digest(processor: object, by_statement: bool = True) -> dict[str, Any]:
    """Identity of a processor or source: an object, function, lambda, method, partial or class.

    Code is followed by name from the processor through the user's own modules: helpers, base classes,
    constants, closures, defaults, decorators. Comments, layout, docstrings, annotations, the order of
    functions and the place of the files do not matter, neither does the hash seed. Installed libraries are
    identified by name, except the package that the processor itself comes from (by its version where its code
    cannot be followed). Not seen: code reached by a computed name (``getattr(module, name)``) and the
    contents of files that the processor reads.

    A class or function with an integer attribute ``cache_version`` is identified by its name and this
    version, its source is not looked at; a subclass that declares none is still identified by its own source
    as well. Settings are the object's attributes, or what its method ``settings()`` returns.

    Args:
        processor: What to identify.
        by_statement: Whether cells of a notebook are compiled statement by statement, as it does itself.

    Returns:
        JSON dict with ``kind``, ``name``, ``settings`` (of objects), ``cache_version`` (if declared) and
        ``code``, which maps each function, class and constant of the user's own to a digest or value.

    Raises:
        SettingError: If something has no identity that would hold in another process, or if its file was
            edited after it was imported.
    """
    kind = processor if isinstance(processor, (type, FunctionType)) else type(processor)
    package = top_level(kind.__module__ or "builtins")
    own = frozenset({package} - LIBRARIES - set(sys.stdlib_module_names))
    try:
        return _Collector(own, by_statement).identify(processor)
    except SettingError:
        if not is_installed(globals_of(kind).get("__file__")):
            raise
        identity = _Collector(frozenset(), by_statement).identify(processor)
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed = "unknown version"
        identity["code"][package] = {"$installed": installed}
        return identity


class _Collector(NameFollower):
    """Functions and classes wait in a queue, so names that form a cycle need no care."""

    def __init__(self, own: frozenset[str], by_statement: bool) -> None:
        super().__init__(own, by_statement)
        self._queue: deque[Callable[[], None]] = deque()

    def identify(self, root: object) -> dict[str, Any]:
        encoded = self.encode(root, "processor")
        if not isinstance(encoded, dict) or not next(iter(encoded), "").startswith("$"):
            raise SettingError(f"a processor must be an object, class or function, got {root!r:.80}")
        while self._queue:
            self._queue.popleft()()
        (kind, name), *rest = encoded.items()
        entries = dict(sorted(self.entries.items()))
        return {"kind": kind.removeprefix("$"), "name": name, **dict(rest), "code": entries}

    def declared_version(self, value: object) -> Json:
        declared = getattr(value, "__dict__", {}).get("cache_version")
        if isinstance(value, type) and self.is_library(globals_of(value)):
            declared = getattr(value, "cache_version", None)  # a built-in one may share its base's
        if declared is None:
            return None if isinstance(value, type) else self.declared_version(type(value))
        if isinstance(declared, (int, str)) and not isinstance(declared, bool):
            return declared
        raise SettingError(f"cache_version of {value!r:.80} is {declared!r:.80}, expected an integer")

    def module(self, value: ModuleType, where: str) -> Json:
        if self.is_library(vars(value)):
            return {"$library": value.__name__}
        source = self.source(None, vars(value))
        if source is None:
            raise cannot_identify(where, f"the module {value.__name__}, which has no source")
        return {"$module": short_name(vars(value)), "source": Definition([source.tree]).digest}

    # Functions

    def function(self, value: FunctionType, where: str) -> Json:
        """By its source; of a library by name, a wrapper (``torch.no_grad()``) of the user's function by that as well."""
        if id(value) in self._units:
            return {"$function": self._units[id(value)]}
        code, space = value.__code__, value.__globals__
        place = f"{short_name(space)}.{code.co_qualname}"
        version = self.declared_version(value)
        if version is not None:
            return {"$function": place, "cache_version": version} | self._captured(value, None, where)
        if self.is_library(space, code.co_filename):
            name = registered(str(space.get("__name__", "?")), code.co_qualname)
            if hasattr(value, "__wrapped__"):
                return {"$library": name, "wraps": self.encode(value.__wrapped__, where)}
            if code.co_name == "<lambda>":
                raise cannot_identify(where, f"a lambda of the library {name}")
            return {"$library": name} | (self._captured(value, None, where) if value.__closure__ else {})
        definition, cells = self._define(value, where), _cells(value)
        if "__class__" in cells:
            self.class_name(cells["__class__"])
        self._queue.append(lambda: self.follow(definition, space, cells))
        if "<" in code.co_qualname:  # may exist several times, with another closure each
            result = {"$function": place, "source": definition.digest}
            return result | self._captured(value, definition, where)
        self._kept.append(value)
        name = self._units[id(value)] = self.put(place, definition.digest)
        self._queue.append(lambda: self._put_defaults(name, value, definition))
        return {"$function": name}

    def _define(self, value: FunctionType, where: str) -> Definition:
        code, space = value.__code__, value.__globals__
        source = self.source(code.co_filename, space)
        if source is None and not code.co_filename.startswith("<"):
            source = self.source(None, space)
        if source is None:
            raise cannot_identify(where, f"{value!r:.80}, which was made at run time or has no source file")
        exact = type(space.get("__loader__")) is SourceFileLoader
        definition = source.function(code, exact=exact)
        if definition is None and source.codes[code.co_qualname]:
            text = f"{where}: {code.co_qualname} in {code.co_filename} is not the code that is running; the file was"
            fix = "restart Python, so that the code that runs is the code that is identified"
            raise SettingError(f"{text} edited after it was imported", path=code.co_filename, fix=fix)
        if definition is None:
            raise cannot_identify(where, f"{value!r:.80}, which is not in {code.co_filename}")
        return definition

    def _captured(self, value: FunctionType, definition: Definition | None, where: str) -> dict[str, Json]:
        """Closure and defaults of a function object."""
        counters = {chain[0] for chain in definition.writes()} if definition else set()
        closure = {
            name: {"$unset": name} if cell is ABSENT else self.encode(cell, f"{where}.{name}")
            for name, cell in sorted(_cells(value).items())
            if name not in counters and not (definition and isinstance(cell, ModuleType))
        }
        found = sorted(_defaults(value).items())
        defaults = {name: self.encode(item, f"{where}({name})") for name, item in found}
        return {key: part for key, part in (("closure", closure), ("defaults", defaults)) if part}

    def _put_defaults(self, place: str, value: FunctionType, definition: Definition) -> None:
        """Defaults that are computed; literal ones are in the source."""
        nodes = default_nodes(definition, value.__code__)
        for name, item in sorted(_defaults(value).items()):
            node = nodes.get(name)
            if not says(node, item) and not self.is_located(value.__globals__, names_in(node)):
                self.put_value(f"{place}({name})", item)

    # Classes

    def class_label(self, cls: type) -> str:
        space = globals_of(cls)
        module = cls.__module__ if self.is_library(space) else short_name(space)
        return registered(module, cls.__qualname__).removeprefix("builtins.")

    def class_name(self, cls: type) -> str:
        if id(cls) not in self._units:
            label, version = self.class_label(cls), self.declared_version(cls)
            self._kept.append(cls)
            self._units[id(cls)] = label
            if version is not None:
                self.put(label, {"cache_version": version})
            elif not self.is_library(globals_of(cls)):
                self._queue.append(lambda: self._class(cls, label, globals_of(cls)))
        return self._units[id(cls)]

    def _class(self, cls: type, name: str, space: Space) -> None:
        functions = [function for item in vars(cls).values() for function in _functions(item)]
        codes = [function.__code__ for function in functions]
        inner = [c.co_filename for c in codes if c.co_qualname.startswith(f"{cls.__qualname__}.")]
        source = self.source(space.get("__file__") or next(iter(inner), None), space)
        definition = source.class_(cls.__qualname__, codes) if source else None
        cells: dict[str, Any] = {}
        for function in functions:
            if definition and definition.holds(function.__code__):
                cells |= {key: cell for key, cell in _cells(function).items() if key != "__class__"}
                self._put_defaults(f"{name}.{function.__name__}", function, definition)
        fields = getattr(cls, "__dataclass_fields__", None) or (
            issubclass(cls, tuple) and getattr(cls, "_fields", None)
        )
        if fields:
            self.put(f"{name}.fields", list(fields))
        if definition is not None:
            self.put(name, definition.digest)
            self.follow(definition, space, cells)
        elif not functions and not fields:
            raise cannot_identify(name, f"the class {cls.__qualname__}, which has no source")
        for key, cell in sorted(cells.items()):
            if not isinstance(cell, ModuleType) and cell is not ABSENT:
                self.put_value(f"{name}[{key}]", cell)
        for base in (type(cls), *cls.__bases__):
            self.class_name(base)
        self._class_attributes(cls, name, space, definition)

    def _class_attributes(self, cls: type, name: str, space: Space, definition: Definition | None) -> None:
        """Class attributes and methods that the class's own source does not already determine."""
        made = definition.nodes[0] if definition else None
        nodes = dict(assignments(made.body)) if isinstance(made, ast.ClassDef) else {}
        writes = definition.writes() if definition else set()
        state = {chain[1] for chain in writes if chain[0] in ("self", "cls", cls.__name__) and chain[1:]}
        is_enum = definition is not None and hasattr(cls, "__members__")
        for key, value in sorted(vars(cls).items()):
            dunder = key.startswith("__") and key.endswith("__")
            functions = list(_functions(value))
            for function in functions if key == "__call__" or not dunder else ():
                if not (definition and definition.holds(function.__code__)):
                    self.put_value(f"{name}.{key} (decorated)", function)
            is_slot = isinstance(value, (MemberDescriptorType, GetSetDescriptorType))
            if not (functions or dunder or key in state or is_enum or key == "_abc_impl" or is_slot):
                plain = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
                node = nodes.get(key)
                if not says(node, value) and not self.is_located(space, names_in(node)):
                    self.put_value(f"{name}.{key}", plain)


def _functions(attribute: object) -> Iterator[FunctionType]:
    """The Python functions inside a class attribute."""
    if isinstance(attribute, FunctionType):
        yield attribute
    elif isinstance(attribute, property):
        for part in (attribute.fget, attribute.fset, attribute.fdel):
            yield from _functions(part)
    elif isinstance(attribute, (staticmethod, classmethod)):
        yield from _functions(attribute.__func__)
    elif isinstance(attribute, (cached_property, partialmethod, singledispatchmethod)):
        yield from _functions(attribute.func)
    elif hasattr(type(attribute), "cache_info"):
        yield from _functions(getattr(attribute, "__wrapped__", None))


def _cells(value: FunctionType) -> dict[str, Any]:
    """Closure of a function by name."""
    found: dict[str, Any] = {}
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            found[name] = ABSENT
    return found


def _defaults(value: FunctionType) -> dict[str, object]:
    code: CodeType = value.__code__
    positional = code.co_varnames[: code.co_argcount]
    defaults = value.__defaults__ or ()
    first = len(positional) - len(defaults)
    return dict(zip(positional[first:], defaults, strict=True)) | (value.__kwdefaults__ or {})
