"""From the names in one definition to the user's own functions, classes and constants behind them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any

from torchcell_cache.builder.codehash.place import (
    import_user_module,
    is_library,
    library_name,
    short_name,
    top_level,
)
from torchcell_cache.builder.codehash.source import Definition, SourceFile
from torchcell_cache.builder.codehash.tree import Chain
from torchcell_cache.builder.codehash.values import Json, ValueEncoder

# Set by the import system; __file__ would make the identity depend on the directory.
_RUNTIME_NAMES = frozenset(
    {"__name__", "__file__", "__doc__", "__package__", "__spec__", "__loader__", "__path__", "__builtins__"}
    | {"__cached__", "__annotations__"}
)
ABSENT = object()
Space = dict[str, Any]


class NameFollower(ValueEncoder):
    """Records what a definition refers to by name in ``entries``."""

    def __init__(self, own: frozenset[str], by_statement: bool) -> None:
        super().__init__()
        self._by_statement = by_statement
        self.entries: dict[str, Json] = {}
        self._own = own
        self._files: dict[str, SourceFile | None] = {}
        self._units: dict[int, str] = {}  # id of a function or class to its entry
        self._recorded: set[tuple[int, str, bool]] = set()

    def put(self, place: str, value: Json) -> str:
        """Add an entry; another thing of the same name becomes ``place#2`` and so on."""
        name, number = place, 1
        while name in self.entries and self.entries[name] != value:
            number += 1
            name = f"{place}#{number}"
        self.entries[name] = value
        return name

    def put_value(self, place: str, value: object) -> None:
        """Add an entry for a value."""
        self.put(place, self.encode(value, place))

    def is_library(self, space: Mapping[str, Any], filename: str | None = None) -> bool:
        """Whether a module, given by its global names, is identified by name only."""
        return is_library(str(space.get("__name__", "?")), space.get("__file__") or filename, self._own)

    def source(self, filename: str | None, space: Space) -> SourceFile | None:
        """A parsed file, by default that of the module."""
        filename = filename or space.get("__file__") or "?"
        if filename not in self._files:
            self._files[filename] = SourceFile.read(filename, space, self._by_statement)
        return self._files[filename]

    def is_located(self, space: Space, names: set[str]) -> bool:
        """Whether these global names are computed from where the module's file lies."""
        source = self.source(None, space)
        return source is not None and source.mentions_file(names)

    def follow(self, definition: Definition, space: Space, cells: Mapping[str, object]) -> None:
        """Record everything that a definition refers to by name."""
        imports, writes = definition.imports(), definition.writes()
        for chain in definition.chains():
            root = chain[0]
            if root in _RUNTIME_NAMES:
                continue
            if root in imports:
                self._follow_import(chain, *imports[root], space)
            elif root in cells:
                if isinstance(cells[root], ModuleType):
                    self._resolve(chain, cells[root], space, writes)
            elif root in definition.global_names and root in space:
                self._resolve(chain, space[root], space, writes)

    def _follow_import(self, chain: Chain, module: str, attribute: str | None, space: Space) -> None:
        """A name bound by an import inside the definition; ``import a.b`` binds ``a`` (attribute ``""``)."""
        found = import_user_module(module, space.get("__package__"), self._own)
        place = f"{short_name(space)}.{chain[0]}"
        if isinstance(found, str):
            self.put(place, {"$library": ".".join(filter(None, (found, attribute)))})
        elif found is not None and attribute:
            value = getattr(found, attribute, ABSENT)
            if value is ABSENT:
                value = import_user_module(f"{found.__name__}.{attribute}", None, self._own)
            if attribute != chain[0]:
                self.put(place, {"$name": f"{short_name(vars(found))}.{attribute}"})
            self._resolve((attribute, *chain[1:]), value, vars(found), set())
        elif found is not None:
            bound = sys.modules[top_level(module)] if attribute == "" else found
            self._resolve(chain, bound, space, set())

    def _resolve(self, chain: Chain, value: Any, space: Space, writes: set[Chain]) -> None:
        """Walk ``a.b.c`` through the user's modules to the first thing that is not one."""
        used = 1
        while isinstance(value, ModuleType) and not self.is_library(vars(value)) and used < len(chain):
            space = vars(value)
            value = getattr(value, chain[used], ABSENT)
            used += 1
        if value is ABSENT:
            return
        self._record(chain[used - 1], value, space, _overlap(chain[:used], writes))
        attribute = chain[used] if used < len(chain) else ""
        is_set = isinstance(value, FunctionType) and attribute in vars(value)
        if is_set and not _overlap(chain[: used + 1], writes):
            place = f"{short_name(value.__globals__)}.{value.__name__}.{attribute}"
            self.put_value(place, vars(value)[attribute])

    def _record(self, name: str, value: object, space: Space, is_state: bool) -> None:
        """A global name: by content, or by the expression that made it where the content is not stable.

        It is not where the code that reads it also changes it (``is_state``), as memo tables and counters.
        """
        if (id(space), name, is_state) in self._recorded:
            return
        self._recorded.add((id(space), name, is_state))
        place, source = f"{short_name(space)}.{name}", self.source(None, space)
        assigned = source.assigned(name) if source else None
        if source and assigned and (is_state or source.mentions_file([name])):
            self.put(f"{place} (assigned)", assigned.digest)
            self.follow(assigned, space, {})
            return
        module, attribute = source.imports.get(name, ("", None)) if source and not assigned else ("", None)
        home = import_user_module(module, space.get("__package__"), self._own) if attribute else None
        if attribute and isinstance(home, ModuleType) and vars(home).get(attribute, ABSENT) is value:
            if attribute != name:  # recorded where it comes from
                self.put(place, {"$name": f"{short_name(vars(home))}.{attribute}"})
            self._record(attribute, value, vars(home), is_state)
            return
        origin = vars(value) if isinstance(value, ModuleType) else None
        if isinstance(value, (type, FunctionType)):
            origin = globals_of(value)
        library = library_name(value) if origin is not None and self.is_library(origin) else None
        encoded = {"$library": library} if library else self.encode(value, place)
        unit = None if library else self._units.get(id(value))
        if unit != place:
            self.put(place, encoded if unit is None else {"$name": unit})


def globals_of(value: type | FunctionType) -> Space:
    """Global names of the module that a function or class was defined in."""
    if isinstance(value, FunctionType):
        return value.__globals__
    for item in vars(value).values():
        if isinstance(item, FunctionType) and item.__globals__.get("__name__") == value.__module__:
            return item.__globals__
    module = sys.modules.get(value.__module__)
    return {"__name__": value.__module__} if module is None else vars(module)


def _overlap(chain: Chain, writes: set[Chain]) -> bool:
    return any(write[: len(chain)] == chain for write in writes)
