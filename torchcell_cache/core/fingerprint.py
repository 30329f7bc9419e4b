"""Digests of plain values, what a store was built from as a small tree, and the explanation of how two such trees differ.

The same value gives the same digest on every machine. The tree holds JSON only, for example::

    {"format": 1, "base_graph": {"gene": {"x": "float32[6607,64]:..."}}, "processor": {...}, "source": {...}}

Every leaf is a *part*. Two stores are interchangeable when all parts are equal.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError

INTEGERS = range(-(1 << 63), 1 << 64)
"""Whole numbers that every reader of JSON can hold."""
MAX_DEPTH, _DEEPEST = 32, 24
_DIGEST = re.compile(r"(?P<kind>.+)\[(?P<shape>[\d,]*)\]:(?P<hash>[0-9a-f]{32})")
_SOURCE = re.compile(r"source:(?P<hash>[0-9a-f]{32})")
_LONGEST_VALUE = 100


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no white space, as UTF-8.

    Raises:
        SettingError: If something else is inside; the message has the path to it.
    """
    try:
        check_json(value, "value")
    except RecursionError:
        raise SettingError("value is nested too deeply for JSON, or contains itself") from None
    except ValueError as error:
        raise SettingError(str(error)) from None
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def check_json(value: object, path: str, levels: int = -1) -> None:
    """Insist on JSON; where ``levels`` are counted down to 0 also on integers of 64 bits, but not on valid Unicode.

    Raises:
        ValueError: With the path to what is something else.
    """
    if levels == 0:
        raise ValueError(f"{path[:80]}: nested deeper than {MAX_DEPTH}")
    if isinstance(value, int):
        if levels > 0 and int(value) not in INTEGERS:  # of a subclass, "in" tries them all
            raise ValueError(f"{path}: integer beyond 64 bits")
    elif isinstance(value, str):
        try:
            value.encode("utf-8", "strict" if levels < 0 else "surrogatepass")
        except UnicodeEncodeError:
            raise ValueError(f"{path} is not valid Unicode text: {value!a:.80}") from None
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value!r}, not a finite number")
    elif isinstance(value, (list, tuple, dict)):
        items: Any = value.items() if (named := isinstance(value, dict)) else enumerate(value)
        for key, item in items:
            if named and not isinstance(key, str):
                raise ValueError(f"{path} has the key {key!r:.80} of type {type(key).__name__}, expected str")
            if named and not key.isascii():
                check_json(key, f"the key {key!a:.80} of {path}", levels)
            # Most leaves are plain text: no path is made to them.
            if levels == 1 or not (item is None or (isinstance(item, str) and item.isascii())):
                check_json(item, f"{path}.{key}" if named else f"{path}[{key}]", levels - 1)
    elif value is not None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise ValueError(
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


def storable_json(value: Any, depth: int = 0) -> Any:
    """JSON that a manifest can hold: integers beyond 64 bits as text, what is nested too deeply as a digest."""
    if type(value) is int and value not in INTEGERS:
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


def source_part(source: Any) -> dict[str, Any]:
    """What a fingerprint says of a source."""
    part: dict[str, Any] = storable_json(source.identity())
    return part


class _Missing:
    def __repr__(self) -> str:
        return "(missing)"


MISSING = _Missing()


@dataclass(frozen=True, slots=True)
class Difference:
    """One part that differs.

    Attributes:
        part: Where it is, such as ``processor.settings.gpr``.
        old: The stored value, or :data:`MISSING`.
        new: The current value, or :data:`MISSING`.
    """

    part: str
    old: object
    new: object

    def __str__(self) -> str:
        if self.new is MISSING:
            return f"{self.part}: missing now, was {_short(self.old)}"
        if self.old is MISSING:
            return f"{self.part}: new, {_short(self.new)}"
        return f"{self.part}: {_change(self.old, self.new)}"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identity of everything that decides what a store contains.

    Attributes:
        tree: Nested dict of JSON values; not to be changed.
    """

    tree: Mapping[str, Any] = field(hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", json.loads(canonical_json(self.tree)))

    @property
    def digest(self) -> str:
        """SHA-256 of the tree, 64 hexadecimal digits."""
        return sha256_json(self.tree)

    def to_dict(self) -> dict[str, Any]:
        """A copy of the tree, for the manifest."""
        return dict(json.loads(canonical_json(self.tree)))


Tree = Fingerprint | Mapping[str, Any]


def diff(stored: Tree, current: Tree) -> list[Difference]:
    """The parts that differ, in order of their names; empty if the two are equal."""
    return [part for part in _compare("", _tree(stored), _tree(current)) if part is not None]


def explain(old: Tree, new: Tree) -> list[str]:
    """One line per part that differs and a last line ``N other parts equal``; empty if nothing differs.

    Example:
        >>> explain({"format": 1, "settings": {"gpr": "any"}}, {"format": 1, "settings": {"gpr": "rule"}})
        ["settings.gpr: 'any' -> 'rule'", '1 other part equal']
    """
    parts = list(_compare("", _tree(old), _tree(new)))
    lines = [str(part) for part in parts if part is not None]
    equal = len(parts) - len(lines)
    return [*lines, f"{equal} other part{'' if equal == 1 else 's'} equal"] if lines else []


def _tree(value: Tree) -> Mapping[str, Any]:
    return value.tree if isinstance(value, Fingerprint) else Fingerprint(value).tree


def _compare(part: str, old: object, new: object) -> Iterator[Difference | None]:
    """One item per leaf: ``None`` for an equal one."""
    before, after = _branches(old, like=new), _branches(new, like=old)
    if before is not None and after is not None:
        for name in dict.fromkeys([*before, *after]):
            child = name if name.startswith("[") or not part else f".{name}"
            yield from _compare(part + child, before.get(name, MISSING), after.get(name, MISSING))
    elif MISSING not in (old, new) and canonical_json(old) == canonical_json(new):
        yield from [None] * _count(old)
    else:
        yield Difference(part, old, new)


def _branches(value: object, like: object = None) -> dict[str, Any] | None:
    """Children of a node of the tree by name, ``None`` for a leaf; an empty node is what the other one is."""
    if value in ({}, []):
        return {} if type(value) is type(like) and _branches(like) else None
    if isinstance(value, dict):
        is_tagged = len(value) == 1 and next(iter(value)).startswith("$")
        return None if is_tagged else {name.removeprefix("$"): value[name] for name in sorted(value)}
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return {f"[{position}]": item for position, item in enumerate(value)}
    return None


def _count(value: object) -> int:
    branches = _branches(value)
    return 1 if branches is None else sum(_count(child) for child in branches.values())


def _plain(value: object) -> object:
    """The content of a tagged leaf such as ``{"$array": "float32[3]:..."}``."""
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)).startswith("$"):
        return next(iter(value.values()))
    return value


def _short(value: object) -> str:
    if (count := _count(value)) > 1:
        return f"{count} parts"
    value = _plain(value)
    if isinstance(value, str) and (match := _DIGEST.fullmatch(value) or _SOURCE.fullmatch(value)):
        return value.replace(match["hash"], f"{match['hash'][:6]}..")
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _change(old: object, new: object) -> str:
    texts = f"{_short(old)} -> {_short(new)}"
    before, after = _plain(old), _plain(new)
    if not (isinstance(before, str) and isinstance(after, str)):
        return texts
    if (was := _DIGEST.fullmatch(before)) and (now := _DIGEST.fullmatch(after)):
        return f"{_array_change(was, now)} ({texts})"
    if _SOURCE.fullmatch(before) and _SOURCE.fullmatch(after):
        return f"code changed ({texts})"
    return texts


def _array_change(old: re.Match[str], new: re.Match[str]) -> str:
    words = [f"{old['kind']} -> {new['kind']}"] if old["kind"] != new["kind"] else []
    shapes = [[int(size) for size in match["shape"].split(",") if size] for match in (old, new)]
    if len(shapes[0]) != len(shapes[1]):
        words.append(f"shape {shapes[0]} -> {shapes[1]}")
    elif shapes[0] != shapes[1]:
        names = {1: ["entries"], 2: ["rows", "columns"]}.get(len(shapes[0])) or [
            f"along axis {axis}" for axis in range(len(shapes[0]))
        ]
        sizes = zip(*shapes, names, strict=True)
        words += [f"{before:,} -> {after:,} {name}" for before, after, name in sizes if before != after]
    return ", ".join(words) or "same shape, other values"
