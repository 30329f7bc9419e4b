"""One buffer per batch: what crosses a process boundary, and the one tensor that is moved to a device.

Little-endian, every section aligned to 8 bytes, so that a view of the buffer is the section itself::

    "TCGB" | u16 version 2 | u16 number of sections | u64 total bytes | 64 bytes owner's name, zero-padded
    per section: 24 bytes name | u64 offset | u64 rows | u64 columns (0: one-dimensional)
    the sections

What follows from the sections (means, coordinates, what an index says) is worked out where it is wanted.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchcell_cache.errors import FormatError

MAGIC, VERSION = b"TCGB", 2
_HEAD = struct.Struct("<4sHHQ64s")
_ENTRY = struct.Struct("<24sQQQ")

POINTS_INTO: dict[str, str] = {
    "perturbed_ptr": "perturbed",
    "value_ptr": "values",
    "word_ptr": "words",
    "removed_ptr": "removed",
    "record_ptr": "records",
}
"""Offsets ``[batch + 1]`` and the section they divide among the samples."""

DTYPES: dict[str, str] = {
    "indices": "<i8",
    "perturbed": "<i8",
    "values": "<f4",
    "words": "<u2",
    "removed": "<i8",
    "records": "|u1",
    **dict.fromkeys(POINTS_INTO, "<i8"),
}
"""Every section there can be, and its dtype."""

_MATRIX = "values"
_DTYPES = {name: np.dtype(text) for name, text in DTYPES.items()}
_NAMES = {name: name.encode().ljust(24, b"\0") for name in DTYPES}
_BY_BYTES = {encoded: name for name, encoded in _NAMES.items()}
_TORCH = {"<i8": torch.int64, "<f4": torch.float32, "<u2": torch.int16, "|u1": torch.uint8}

Sections: TypeAlias = dict[str, npt.NDArray[Any]]
Buffer: TypeAlias = npt.NDArray[np.uint8]
Places: TypeAlias = dict[str, tuple[int, int, tuple[int, ...]]]
"""Per section its first byte, its end and its shape."""


def pack(owner: str, sections: Sections) -> tuple[Buffer, Places]:
    """Sections in one fresh buffer, ``[num_bytes] uint8``, and where each lies in it; ``owner`` is whose numbers they hold."""
    at = _HEAD.size + _ENTRY.size * len(sections)
    parts: list[Any] = [b""]
    entries: list[bytes] = []
    places: Places = {}
    for name, array in sections.items():
        entries.append(_ENTRY.pack(_NAMES[name], at, len(array), array.shape[1] if array.ndim == 2 else 0))
        end = at + array.nbytes
        places[name] = (at, end, array.shape)
        at = -(-end // 8) * 8
        parts += [array, bytes(at - end)]
    parts[0] = _HEAD.pack(MAGIC, VERSION, len(sections), at, owner.encode()) + b"".join(entries)
    return np.frombuffer(bytearray().join(parts), dtype=np.uint8), places


def unpack(buffer: Any, owner: str) -> tuple[Buffer, Sections, Places]:
    """The buffer of :func:`pack` as a writable array, its sections as views of it, and where they lie.

    Raises:
        FormatError: If it is truncated, malformed, or of another owner.
    """
    array = np.frombuffer(buffer, dtype=np.uint8)
    array = array if array.flags.writeable else array.copy()
    if len(array) < _HEAD.size:
        raise FormatError(f"a packed batch has {len(array)} bytes, its header alone has {_HEAD.size}")
    magic, version, count, total, name = _HEAD.unpack_from(array.data)
    if magic != MAGIC or version != VERSION:
        raise FormatError(f"not a packed batch of version {VERSION}: {magic!r}, version {version}")
    if total != len(array) or _HEAD.size + count * _ENTRY.size > total:
        raise FormatError(f"a packed batch of {total} bytes and {count} sections came as {len(array)} bytes")
    if name.rstrip(b"\0") != owner.encode()[:64]:
        raise FormatError(
            f"this batch belongs to generation {name.rstrip(bytes(1)).decode('ascii', 'replace')!r}, got generation {owner!r}",
            fix="unpack it with the dataset it was read from",
        )
    sections: Sections = {}
    places: Places = {}
    at = _HEAD.size + count * _ENTRY.size
    for number in range(count):
        label, start, rows, columns = _ENTRY.unpack_from(array.data, _HEAD.size + number * _ENTRY.size)
        section = _BY_BYTES.get(label)
        if section is None or section in sections or (columns > 0 and section != _MATRIX) or rows > total:
            raise FormatError(f"a packed batch names section {label!r} with {rows} rows, {columns} columns")
        shape = (rows, columns) if section == _MATRIX else (rows,)
        end = start + rows * (columns if section == _MATRIX else 1) * _DTYPES[section].itemsize
        if start != at or end > total:
            raise FormatError(
                f"section '{section}' of a packed batch spans {start}..{end} of {total} bytes, expected it at {at}"
            )
        at = -(-end // 8) * 8
        sections[section] = array[start:end].view(_DTYPES[section]).reshape(shape)
        places[section] = (start, end, shape)
    if at != total:
        raise FormatError(f"the sections of a packed batch end at {at}, the batch at {total}")
    _check_lengths(sections)
    return array, sections, places


def _check_lengths(sections: Sections) -> None:
    count = len(sections["indices"]) if "indices" in sections else 0
    for name, target in POINTS_INTO.items():
        ptr, into = sections.get(name), sections.get(target)
        if ptr is None and into is None:
            continue
        good = ptr is not None and into is not None and len(ptr) == count + 1
        if not good or ptr[0] != 0 or ptr[-1] != len(into) or bool((ptr[1:] < ptr[:-1]).any()):  # type: ignore[index,arg-type]
            raise FormatError(f"'{name}' of a packed batch of {count} samples does not divide '{target}'")


def require(sections: Sections, names: set[str]) -> None:
    """Insist on exactly these sections, and at least one sample.

    Raises:
        FormatError: If one is missing or not expected.
    """
    if set(sections) != names or len(sections["indices"]) == 0:
        raise FormatError(
            f"a packed batch with the sections {sorted(sections)}: missing {sorted(names - set(sections))}, "
            f"not expected {sorted(set(sections) - names)}"
        )


def require_within(sections: Sections, limits: dict[str, int]) -> None:
    """Insist that sections hold numbers from 0 to below a limit each.

    Raises:
        FormatError: If one does not.
    """
    for name, limit in limits.items():
        array = sections[name]
        if len(array) and not 0 <= int(array.min()) <= int(array.max()) < limit:
            raise FormatError(f"'{name}' of a packed batch is not within 0..{limit - 1}")


def views(buffer: Tensor, places: Places) -> dict[str, Tensor]:
    """The sections as views of the buffer's bytes on any device; unsigned 16-bit words appear as ``int16``."""
    return {
        name: buffer[start:end].view(_TORCH[DTYPES[name]]).view(shape)
        for name, (start, end, shape) in places.items()
    }
