"""Digests of plain values: canonical JSON and arrays. The same value gives the same text on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import (
    SettingError,
)


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no white space, as UTF-8.

    Raises:
        SettingError: If something else is inside; the message has the path to it.
    """
    try:
        _check(value, "value")
    except RecursionError:
        raise SettingError("value is nested too deeply for JSON, or contains itself") from None
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _check(value: object, path: str) -> None:
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise SettingError(f"{path} is not valid Unicode text: {value!a:.80}") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise SettingError(f"{path} is {value!r}, JSON has only finite numbers")
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            _check(item, f"{path}[{position}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise SettingError(
                    f"{path} has the key {key!r:.80} of type {type(key).__name__}, expected str"
                )
            _check(key, f"the key {key!a:.80} of {path}")
            _check(item, f"{path}.{key}")
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise SettingError(
            f"{path} is of type {kind}, expected JSON: None, bool, int, float, str, list or dict"
        )


def sha256_json(value: object) -> str:
    """SHA-256 of :func:`canonical_json`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def array_digest(array: npt.NDArray[Any]) -> str:
    """Identity of an array: dtype, shape and content, such as ``float32[6607,64]:<32 hexadecimal digits>``.

    The content is hashed in C order and little-endian, so views, memory order and byte order do not matter.
    A C-contiguous array is not copied.

    Raises:
        SettingError: For dtypes whose bytes are not their value (objects, records, long double).
    """
    dtype = array.dtype
    if dtype.kind not in "biufcmMSU" or dtype.char in "gG":
        raise SettingError(
            f"an array of dtype {dtype} has no stable digest; split or convert it to a plain dtype"
        )
    little = dtype.newbyteorder("<")
    plain = np.ascontiguousarray(array, dtype=little)
    content = plain.reshape(-1).view(np.uint8).data if plain.size else b""
    shape = ",".join(str(size) for size in array.shape)
    return f"{dtype.name}[{shape}]:{xxhash.xxh3_128(content).hexdigest()}"


def is_json(value: object) -> bool:
    """Whether :func:`canonical_json` accepts the value."""
    try:
        canonical_json(value)
    except SettingError:
        return False
    return True


def digest_text(value: object) -> str:
    """Short stand-in for a JSON value too long to keep, such as ``list[6607]:<32 hexadecimal digits>``."""
    size = len(value) if isinstance(value, (str, list, tuple, Mapping)) else 0
    return f"{type(value).__name__}[{size}]:{sha256_json(value)[:32]}"


_LEAST_INT, _LARGEST_INT, _DEEPEST = -(1 << 63), (1 << 64) - 1, 24


def storable_json(value: Any, depth: int = 0) -> Any:
    """JSON that a manifest can hold: integers beyond 64 bits as text, what is nested too deeply as a digest."""
    if type(value) is int and not _LEAST_INT <= value <= _LARGEST_INT:
        return {"$int": hex(value)}
    if isinstance(value, (list, tuple, dict)) and depth > _DEEPEST:
        return {"$digest": digest_text(value)}
    if isinstance(value, (list, tuple)):
        return [storable_json(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: storable_json(item, depth + 1) for key, item in value.items()}
    return value


def digest_of(indices: Int64Array) -> str:
    """XXH3-128 of positions as little-endian int64, hexadecimal."""
    return xxhash.xxh3_128(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()
