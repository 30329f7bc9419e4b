"""Typed JSON for the values of a graph that are not tensors; reading it executes nothing.

null, booleans, integers below 2**63, finite
floats, strings and lists stand for themselves; anything else is an object of one key::

    {"t": [..]}                     tuple            {"f": "hex"}               NaN or infinity, 8 bytes
    little-endian {"d": [[key, value], ..]}       dict, in order   {"i": "-0x1f"}             larger integer
    {"b": "base64"}                 bytes            {"s": "hex"}               string with lone surrogates
    {"a": [dtype, shape, "base64"]} numpy array      {"n": [dtype, "base64"]}   numpy scalar
    {"T": [dtype, shape, "base64"]} tensor inside a list, tuple or dict
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from torchcell_cache.codec.layout import DTYPES, TensorValue
from torchcell_cache.core.sealed import strict_json
from torchcell_cache.errors import CorruptRecordError, RecordTooLargeError
from torchcell_cache.graph.values import to_array, to_tensor, unsupported

MAX_DEPTH = 32
MAX_DIMENSIONS = 64
MAX_VALUE_BYTES = 16 << 20
"""Cap for the text of all values of one record: reading JSON can take twenty times its size."""
MAX_JSON_BYTES = 64 << 20
"""Cap for the base graph's file of values."""

_CODES = {name: code for code, (name, _) in DTYPES.items()}
_NUMPY_DTYPE = re.compile(
    r"[<>|](b1|[iu][1248]|f[248]|c8|c16|[SU][1-9][0-9]{0,6}|[mM]8(\[[0-9]{0,6}[a-zA-Z]{1,2}\])?)"
)
_INT64 = range(-(1 << 63), 1 << 63)
_PLAIN = {type(None), bool, int, float, str}
_KEYS = (type(None), bool, int, float, str, bytes)


def value_to_json(value: Any, label: str = "value", max_bytes: int = MAX_VALUE_BYTES) -> bytes:
    """Typed JSON of anything but a tensor at the top; equal values of equal types give equal bytes.

    Raises:
        UnsupportedValueError: If a part of it has another type than those listed, or it nests too deeply.
        RecordTooLargeError: If it takes more than ``max_bytes``.
    """
    text = dump_json(tag(value, label))
    if len(text) > max_bytes:
        raise RecordTooLargeError(
            f"{label} takes {len(text):,} bytes as text, the cap is {max_bytes:,}", fix="store it as a tensor"
        )
    return text


def value_from_json(text: bytes, label: str = "value") -> Any:
    """The value of its typed JSON.

    Raises:
        CorruptRecordError: If the text is no such JSON.
    """
    try:
        return untag(strict_json(text))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptRecordError(f"{label} does not hold typed JSON ({error})") from None


def dump_json(tagged: Any) -> bytes:
    """Compact JSON in the order given."""
    return json.dumps(tagged, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def tag(value: Any, label: str, depth: int = 0) -> Any:
    """The JSON-ready form of a value."""
    kind = type(value)
    if depth > MAX_DEPTH:
        raise unsupported(label, f"nested more than {MAX_DEPTH} levels deep")
    if value is None or kind is bool:
        return value
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"s": value.encode("utf-8", "surrogatepass").hex()}
        return value
    if kind is int:
        return value if value in _INT64 else {"i": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"f": struct.pack("<d", value).hex()}
    if kind is list:
        return value if _is_plain(value) else [tag(item, label, depth + 1) for item in value]
    if kind is tuple:
        return {"t": [tag(item, label, depth + 1) for item in value]}
    if kind is dict:
        for key in value:
            _check_key(key, label)
        return {"d": [[tag(part, label, depth + 1) for part in pair] for pair in value.items()]}
    if kind is bytes:
        return {"b": _base64(value)}
    return _tag_array(value, label)


def _is_plain(items: list[Any]) -> bool:
    """Whether a list stands for itself: one pass in C for the common lists of names or positions."""
    kinds = set(map(type, items))
    if kinds == {str}:
        return "".join(items).isascii()
    if kinds == {float}:
        return all(map(math.isfinite, items))
    return kinds == {int} and min(items) in _INT64 and max(items) in _INT64


def _check_key(key: Any, label: str) -> None:
    if type(key) is tuple:
        for part in key:
            _check_key(part, label)
    elif type(key) not in _KEYS:
        raise unsupported(label, f"or contains a dict with a key of type {type(key).__name__}")


def _tag_array(value: Any, label: str) -> Any:
    if isinstance(value, Tensor):
        code, array = to_array(value, label)
        raw = array.astype(DTYPES[code].carrier, copy=False).tobytes()
        return {"T": [DTYPES[code].name, list(array.shape), _base64(raw)]}
    if isinstance(value, np.str_ | np.bytes_):
        # numpy strips trailing zeros from array elements but not from these: they go as what they wrap.
        return {"n": ["U" if isinstance(value, str) else "S", tag(value[:], label)]}
    if type(value) is np.ndarray or isinstance(value, np.generic):
        name = value.dtype.str
        if value.dtype.names is not None or not _NUMPY_DTYPE.fullmatch(name):
            raise unsupported(label, f"or contains a numpy value of dtype {value.dtype}")
        if isinstance(value, np.generic):
            return {"n": [name, _base64(value.tobytes())]}
        return {"a": [name, list(value.shape), _base64(value.tobytes())]}
    raise unsupported(
        label, f"or contains a value of type {type(value).__module__}.{type(value).__qualname__}"
    )


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def untag(data: Any, depth: int = 0) -> Any:
    """The value of its JSON-ready form; raises ``ValueError`` or ``TypeError`` if malformed."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(data, list):
        return data if set(map(type, data)) <= _PLAIN else [untag(item, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ValueError(f"an object of {len(data)} keys is not a tagged value")
    [(name, content)] = data.items()
    if name in ("t", "d"):
        if not isinstance(content, list):
            raise ValueError(f"tag {name!r} needs a list")
        if name == "t":
            return tuple(untag(item, depth + 1) for item in content)
        out: dict[Any, Any] = {}
        for key, item in content:
            at = untag(key, depth + 1)
            _check_key(at, "key")
            out[at] = untag(item, depth + 1)
        if len(out) != len(content):
            raise ValueError("a dict key stands twice")
        return out
    if name not in _UNTAG:
        raise ValueError(f"unknown tag {name[:20]!r}")
    return _UNTAG[name](content)


def _raw(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError("base64 must be a string")
    return base64.b64decode(text.encode("ascii"), validate=True)


def _unhex(content: Any, length: int | None = None) -> bytes:
    raw = binascii.unhexlify(content)
    if not isinstance(content, str) or (length is not None and len(raw) != length):
        raise ValueError("hex digits of a wrong length")
    return raw


def _untag_int(content: Any) -> int:
    if not isinstance(content, str) or not re.fullmatch(r"-?0x[0-9a-f]+", content):
        raise ValueError("an integer must be hex digits")
    return int(content, 16)


def _untag_array(content: Any) -> Any:
    name, shape, text = content
    if not isinstance(name, str) or not _NUMPY_DTYPE.fullmatch(name):
        raise ValueError("unknown numpy dtype")
    return _shaped(np.dtype(name), shape, text)


def _untag_scalar(content: Any) -> Any:
    name, text = content
    if name in ("U", "S"):
        wrapped = untag(text, MAX_DEPTH)
        if type(wrapped) is not (str if name == "U" else bytes):
            raise ValueError(f"numpy scalar {name} holds a {type(wrapped).__name__}")
        return np.str_(wrapped) if name == "U" else np.bytes_(wrapped)
    return _untag_array([name, [], text])[()]


def _untag_tensor(content: Any) -> Tensor:
    name, shape, text = content
    code = _CODES.get(name) if isinstance(name, str) else None
    if code is None:
        raise ValueError("unknown tensor dtype")
    array = _shaped(DTYPES[code].carrier, shape, text)
    return to_tensor(TensorValue(code, array.astype(array.dtype.newbyteorder("="), copy=False)))


def _shaped(dtype: np.dtype[Any], shape: Any, text: Any) -> np.ndarray[Any, np.dtype[Any]]:
    raw = _raw(text)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:  # before extents are multiplied
        raise ValueError(f"a shape must be a list of at most {MAX_DIMENSIONS} integers")
    if any(type(extent) is not int or extent < 0 for extent in shape):
        raise ValueError("a shape must be a list of integers")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes do not fill shape {shape} of {dtype}")
    array = np.frombuffer(raw, dtype=dtype).copy()
    # numpy trusts these: a code point beyond Unicode fails only later, inside the interpreter.
    units, top = {"b": ("u1", 1), "U": (f"{dtype.str[0]}u4", 0x10FFFF)}.get(dtype.kind, ("u1", 0xFF))
    if array.size and int(array.view(units).max()) > top:
        raise ValueError(f"not values of {dtype}")
    return array.reshape(shape)


_UNTAG: dict[str, Callable[[Any], Any]] = {
    "f": lambda content: struct.unpack("<d", _unhex(content, 8))[0],
    "i": _untag_int,
    "s": lambda content: _unhex(content).decode("utf-8", "surrogatepass"),
    "b": _raw,
    "a": _untag_array,
    "n": _untag_scalar,
    "T": _untag_tensor,
}
