"""Values that code uses - settings, constants, closures - as JSON: by content, never by address.

Plain values stay as they are, so that a difference can be read; everything else becomes a dict with a key
that starts with ``$`` and names the kind, such as ``{"$array": "float32[3]:..."}``.
"""

from __future__ import annotations

import enum
import functools
import math
import sys
import types
import weakref
from collections import OrderedDict, deque
from typing import Any, ClassVar

import numpy as np

from torchcell_cache.builder.codehash.place import library_name
from torchcell_cache.builder.codehash.state import attributes, has_own_reduce, is_tensor, reduced
from torchcell_cache.core.digests import array_digest, canonical_json, digest_text, is_json, storable_json
from torchcell_cache.errors import SettingError

Json = Any
_LONGEST_LIST, _LONGEST_TEXT = 200, 1000
_DECLARE = (
    "declare `cache_version = 1` on the processor's class (or function) and raise it when its code changes; "
    "for a value among its settings, give its class a method settings() that returns them as a JSON dict"
)


def cannot_identify(where: str, what: str) -> SettingError:
    """The error for a value without an identity that would still hold tomorrow."""
    return SettingError(
        f"{where}: cannot identify {what}, so a change of it would go unnoticed", fix=_DECLARE
    )


def describe(value: object) -> str:
    """The kind of an object, for messages."""
    return f"an object of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")


class ValueEncoder:
    """Encodes values; functions, classes and modules are left to the subclass."""

    # Nothing a sample could depend on: recorded by type.
    _INERT: ClassVar[frozenset[str]] = frozenset(
        {
            "logging.Logger",
            "logging.RootLogger",
            "_thread.lock",
            "_thread.RLock",
            "threading.Lock",
            "threading.RLock",
        }
    )

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._done: dict[int, Json] = {}
        self._kept: list[object] = []  # keeps ids in _done from being used again

    def function(self, value: types.FunctionType, where: str) -> Json:
        """A Python function."""
        raise NotImplementedError

    def class_name(self, cls: type) -> str:
        """Name of a class whose code is part of the identity."""
        raise NotImplementedError

    def class_label(self, cls: type) -> str:
        """Name of a class, nothing more."""
        raise NotImplementedError

    def module(self, value: types.ModuleType, where: str) -> Json:
        """A module used as a value."""
        raise NotImplementedError

    def declared_version(self, value: object) -> Json:
        """``cache_version`` of a class, function or object, or ``None``."""
        raise NotImplementedError

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
                result = self._encode(value, where)
            except RecursionError:
                raise cannot_identify(where, "a value nested this deeply") from None
            finally:
                del self._open[id(value)]
            self._kept.append(value)
            self._done[id(value)] = result
        return self._done[id(value)]

    def _encode(self, value: object, where: str) -> Json:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if kind in self._INERT:
            return {"$library": kind}
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        if is_tensor(value):
            return self._tensor(value, where)
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
            return {
                "$array": f"object{list(value.shape)}",
                "items": self.encode(value.ravel().tolist(), where),
            }
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
            return {
                "$tensor": array_digest(array).replace(
                    array.dtype.name, str(value.dtype).rpartition(".")[2], 1
                )
            }
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
        if named and isinstance(reduced(value), str):  # compiled functions
            return {"$library": library_name(value)}
        return None

    def _container(self, value: object, where: str) -> Json:
        if isinstance(value, types.MappingProxyType):
            value = dict(value)
        if type(value).__module__ in ("omegaconf.dictconfig", "omegaconf.listconfig"):
            # A configuration node changes its private state when it is read.
            plain_config = sys.modules["omegaconf"].OmegaConf.to_container(value, resolve=True)
            return self.encode(plain_config, where)
        if isinstance(value, dict):
            items = self._dict(value, where)
            plain = type(value) in (dict, OrderedDict)
        elif isinstance(value, (list, tuple, deque)):
            items = [self.encode(item, f"{where}[{position}]") for position, item in enumerate(value)]
            plain = type(value) in (list, tuple) or type(value).__module__ == "torch"
        elif isinstance(value, (set, frozenset)):
            items = {"$set": sorted((self.encode(item, where) for item in value), key=canonical_json)}
            plain = type(value) in (set, frozenset)
        else:
            return self._object(value, where, None)
        if isinstance(items, (list, dict)) and len(items) > _LONGEST_LIST:
            items = {"$digest": digest_text(items)}
        elif isinstance(items, dict) and "$set" in items and len(items["$set"]) > _LONGEST_LIST:
            items = {"$digest": digest_text(items["$set"]).replace("list", "set", 1)}
        return items if plain else self._object(value, where, items)

    def _dict(self, value: dict[Any, Any], where: str) -> Json:
        if all(type(key) is str and is_json(key) and not key.startswith("$") for key in value):
            return {key: self.encode(value[key], f"{where}.{key}") for key in sorted(value)}
        pairs = [
            [self.encode(key, where), self.encode(item, f"{where}[{key!r:.40}]")]
            for key, item in value.items()
        ]
        return {"$dict": sorted(pairs, key=canonical_json)}

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
        names = dict(attributes(value))
        is_empty = (
            not names and not hasattr(value, "__dict__") and not has_items and type(value) is not object
        )
        if is_empty or has_own_reduce(type(value)):
            return self._reduced(value, where)
        if type(value).__getstate__ is object.__getstate__ and not has_items and reduced(value) is None:
            raise cannot_identify(where, describe(value))  # hidden state: open files, iterators
        return {name: self.encode(names[name], f"{where}.{name}") for name in sorted(names)}

    def _reduced(self, value: object, where: str) -> Json:
        """State of objects that keep it outside Python attributes, as ``copy`` would take it."""
        made = reduced(value)
        if isinstance(made, str):
            return {"made": made}
        arguments = [] if made is None else [item for item in made[1] if item is not type(value)]
        if made is None or any(item is value for item in arguments):
            raise cannot_identify(where, describe(value))
        parts: list[object] = [arguments, *made[2:3], *(list(item) for item in made[3:5] if item is not None)]
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
