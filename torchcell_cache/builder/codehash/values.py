"""Values that code uses - settings, constants, closures - as JSON: by content, never by address.

Plain values stay as they are, so that a difference can be read; everything else becomes a dict with a key
that starts with ``$`` and names the kind, such as ``{"$array": "float32[3]:..."}``.
"""

from __future__ import annotations

import contextlib
import copyreg
import enum
import functools
import math
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from torchcell_cache.builder.codehash.place import library_name
from torchcell_cache.core.fingerprint import array_digest, canonical_json, digest_text, is_json, storable_json
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.errors import SettingError

Json = Any
_LONGEST_LIST, _LONGEST_TEXT = 200, 1000
# Nothing a sample could depend on: recorded by type.
_INERT = ("logging.Logger", "logging.RootLogger", "_thread.lock", "_thread.RLock")
_DECLARE = (
    "declare `cache_version = 1` on the processor's class (or function) and raise it when its code changes; "
    "for a value among its settings, give its class a method settings() that returns them as a JSON dict"
)


def cannot_identify(where: str, what: str) -> SettingError:
    """The error for a value without an identity that would still hold tomorrow."""
    text = f"{where}: cannot identify {what}, so a change of it would go unnoticed"
    return SettingError(text, fix=_DECLARE)


class ValueEncoder:
    """Encodes values; functions, classes and modules are left to the subclass."""

    function: Callable[[types.FunctionType, str], Json]
    module: Callable[[types.ModuleType, str], Json]
    class_name: Callable[[type], str]  # of a class whose code is part of the identity
    class_label: Callable[[type], str]  # its name, nothing more
    declared_version: Callable[[object], Json]

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._done: dict[int, Json] = {}
        self._kept: list[object] = []  # keeps ids in _done from being used again

    def encode(self, value: object, where: str) -> Json:
        """The value as JSON.

        Raises:
            SettingError: If the value has no identity beyond this process.
        """
        if value is None or type(value) in (bool, int):
            return storable_json(value)
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if type(value) is str:
            if not is_json(value):
                return {"$text": ascii(value)}
            return value if len(value) <= _LONGEST_TEXT else {"$digest": digest_text(value)}
        if id(value) in self._open:
            return {"$cycle": len(self._open) - self._open[id(value)]}
        if id(value) not in self._done:
            self._open[id(value)] = len(self._open)
            try:
                self._done[id(value)] = self._encode(value, where)
            except RecursionError:
                raise cannot_identify(where, "a value nested this deeply") from None
            finally:
                del self._open[id(value)]
            self._kept.append(value)
        return self._done[id(value)]

    def _encode(self, value: object, where: str) -> Json:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if kind in _INERT:
            return {"$library": kind}
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        if not isinstance(value, type) and all(
            callable(getattr(type(value), name, None)) for name in ("detach", "cpu", "numpy")
        ):
            return self._tensor(value, where)  # told without importing torch
        if isinstance(value, np.generic):
            return {"$scalar": self._array(np.asarray(value), where)["$array"]}
        if isinstance(value, enum.Enum):
            return {"$enum": f"{self.class_name(type(value))}.{value.name}"}
        if isinstance(value, (bytes, bytearray, memoryview)):
            return {"$bytes": array_digest(np.frombuffer(bytes(value), dtype=np.uint8))}
        if isinstance(value, types.ModuleType):
            return self.module(value, where)
        if isinstance(value, type):
            return {"$class": self.class_name(value)}
        if callable(value) and (code := self._callable(value, where)) is not None:
            return code
        if isinstance(value, weakref.ref):
            return self.encode(value(), where)
        return self._container(value, where)

    def _array(self, value: np.ndarray[Any, Any], where: str) -> Json:
        if value.dtype.kind == "O":
            items = self.encode(value.ravel().tolist(), where)
            return {"$array": f"object{list(value.shape)}", "items": items}
        try:
            return {"$array": array_digest(value)}
        except SettingError:
            raise cannot_identify(where, f"an array of dtype {value.dtype}") from None

    def _tensor(self, value: Any, where: str) -> Json:
        try:
            if str(value.layout) != "torch.strided":
                sparse = value.detach().to_sparse_coo().coalesce()
                parts = [sparse.indices(), sparse.values()]
                return {"$sparse": [list(value.shape), *(self.encode(part, where) for part in parts)]}
            plain = value.detach().cpu()
            try:
                array = plain.numpy()
            except TypeError:  # numpy has no bfloat16 and float8; float32 holds their values exactly
                array = plain.float().numpy()
            dtype = str(value.dtype).rpartition(".")[2]
            return {"$tensor": array_digest(array).replace(array.dtype.name, dtype, 1)}
        except (TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
            raise cannot_identify(where, f"a tensor of type {type(value).__qualname__} ({error})") from None

    def _callable(self, value: Any, where: str) -> Json | None:
        """Functions and what wraps them; ``None`` for objects that happen to be callable."""
        if isinstance(value, types.FunctionType):
            return self.function(value, where)
        if isinstance(value, functools.partial):
            function = self.encode(value.func, f"{where}.func")
            arguments = {"args": list(value.args), "keywords": value.keywords}
            return {"$partial": function, "settings": self.encode(arguments, where)}
        if isinstance(value, types.MethodType):
            method = self.encode(value.__func__, where)
            return {"$method": method, "self": self.encode(value.__self__, f"{where}.__self__")}
        if isinstance(value, functools._lru_cache_wrapper):
            return self.encode(value.__wrapped__, where)
        if isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
            owner = value.__self__
            if owner is None or isinstance(owner, (types.ModuleType, type)):
                name = library_name(value)
                if name is None:
                    raise cannot_identify(where, f"{value!r:.80}")
                return {"$library": name}
            return {"$method": value.__name__, "self": self.encode(owner, f"{where}.__self__")}
        if isinstance(value, (types.MethodDescriptorType, types.WrapperDescriptorType, np.ufunc)):
            return {"$library": library_name(value) or repr(value)}
        named = isinstance(getattr(value, "__qualname__", None), str)
        if named and isinstance(_reduced(value), str):  # compiled functions
            return {"$library": library_name(value)}
        return None

    def _container(self, value: object, where: str) -> Json:
        items: Json
        if isinstance(value, types.MappingProxyType):
            value = dict(value)
        if type(value).__module__ in ("omegaconf.dictconfig", "omegaconf.listconfig"):
            # A configuration node changes its private state when it is read.
            plain_config = sys.modules["omegaconf"].OmegaConf.to_container(value, resolve=True)
            return self.encode(plain_config, where)
        if isinstance(value, dict):
            if all(type(key) is str and is_json(key) and not key.startswith("$") for key in value):
                items = {key: self.encode(value[key], f"{where}.{key}") for key in sorted(value)}
            else:
                pairs = ((key, item, f"{where}[{key!r:.40}]") for key, item in value.items())
                coded = [[self.encode(key, where), self.encode(item, place)] for key, item, place in pairs]
                items = {"$dict": sorted(coded, key=canonical_json)}
            plain = type(value) in (dict, OrderedDict)
        elif isinstance(value, (list, tuple, deque)):
            items = [self.encode(item, f"{where}[{position}]") for position, item in enumerate(value)]
            plain = type(value) in (list, tuple) or type(value).__module__ == "torch"
        elif isinstance(value, (set, frozenset)):
            found = sorted((self.encode(item, where) for item in value), key=canonical_json)
            items, plain = {"$set": found}, type(value) in (set, frozenset)
            if len(found) > _LONGEST_LIST:
                items = {"$digest": digest_text(found).replace("list", "set", 1)}
        else:
            return self._object(value, where, None)
        if len(items) > _LONGEST_LIST:
            items = {"$digest": digest_text(items)}
        return items if plain else self._object(value, where, items)

    def _object(self, value: object, where: str, items: Json) -> Json:
        """Class and state of any other object."""
        version = self.declared_version(value)
        label = self.class_name(type(value)) if version is None else self.class_label(type(value))
        result: dict[str, Json] = {"$object": label}
        if items is not None:
            result["items"] = items
        if isinstance(value, (str, int, float)):
            base = next(base for base in (str, int, float) if isinstance(value, base))
            result["items"] = self.encode(base(value), where)
        if version is not None:
            result["cache_version"] = version
        result["settings"] = self._settings(value, where, items is not None)
        return result

    def _settings(self, value: object, where: str, has_items: bool) -> Json:
        settings = declared_settings(value, where)
        if settings is not None:
            return settings
        cls, names = type(value), dict(_attributes(value))
        stateless = not names and not has_items and not hasattr(value, "__dict__") and cls is not object
        owners = (base for base in cls.__mro__[:-1] if {"__reduce__", "__reduce_ex__"} & vars(base).keys())
        plain = next(owners, None) in (None, dict, list, tuple, set, frozenset, deque)
        own = cls in copyreg.dispatch_table or not (plain or issubclass(cls, OrderedDict))
        reduces = stateless or own  # says itself what its state is
        visible = has_items or cls.__getstate__ is not object.__getstate__
        # State of objects that keep it outside Python attributes is what ``copy`` would take.
        made: Any = _reduced(value) if reduces or not visible else ()
        if reduces and isinstance(made, str):
            return {"made": made}
        given = [item for item in made[1] if item is not cls] if reduces and made is not None else []
        if made is None or any(item is value for item in given):  # hidden state: open files, iterators
            kind = f"{cls.__module__}.{cls.__qualname__}".replace("builtins.", "")
            raise cannot_identify(where, f"an object of type {kind}")
        if not reduces:
            return {name: self.encode(names[name], f"{where}.{name}") for name in sorted(names)}
        parts: list[object] = [given, *made[2:3], *(list(item) for item in made[3:5] if item is not None)]
        return {"made": self.encode(made[0], where), "from": [self.encode(part, where) for part in parts]}


def declared_settings(value: Any, where: str) -> Json | None:
    """What an object's ``settings()`` say, ``None`` if it has none.

    Raises:
        SettingError: If that is no JSON.
    """
    if not callable(getattr(type(value), "settings", None)):
        return None
    settings = value.settings()
    if not isinstance(settings, dict):
        raise SettingError(f"{where}: settings() returned {type(settings).__name__}, expected a JSON dict")
    settings = storable_json(settings)
    try:
        canonical_json(settings)
    except SettingError as error:
        raise SettingError(f"{where}: settings() must return a JSON dict; {error}") from None
    return settings


def _reduced(value: object) -> Any:
    """What ``copy`` makes of the object itself, without its parts; ``None`` if it refuses."""
    reduce: Any = copyreg.dispatch_table.get(type(value))
    try:
        return reduce(value) if reduce else value.__reduce_ex__(2)
    except Exception:
        return None


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    """Instance attributes in ``__dict__`` and slots, without computed ones and empty hook tables."""
    cls = type(value)
    is_module = any(base.__module__ == "torch.nn.modules.module" for base in cls.__mro__)
    computed = (functools.cached_property, cached_property)
    for name, item in getattr(value, "__dict__", {}).items():
        bookkeeping = is_module and not item and ("_hook" in name or name == "_non_persistent_buffers_set")
        if not bookkeeping and not isinstance(getattr(cls, name, None), computed):
            yield str(name), item
    for base in (base for base in cls.__mro__ if "__slots__" in vars(base)):
        for name, slot in vars(base).items():
            if isinstance(slot, types.MemberDescriptorType) and name not in ("__dict__", "__weakref__"):
                with contextlib.suppress(AttributeError):
                    yield name, slot.__get__(value, cls)
