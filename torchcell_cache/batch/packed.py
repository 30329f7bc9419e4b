"""One buffer per batch: what crosses a process boundary, and the one tensor that is moved to a device.

Little-endian, every section aligned to 8 bytes, so that a view of the buffer is the section itself::

    "TCGB" | u16 version 1 | u16 number of sections | u64 total bytes | 64 bytes generation name, zero-padded
    per section: 24 bytes name | u64 offset | u64 rows | u64 columns (0: one-dimensional)
    the sections
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchcell_cache.batch.sections import DTYPES, MATRICES, POINTS_INTO, Sections
from torchcell_cache.errors import FormatError

MAGIC, VERSION = b"TCGB", 1
_HEAD = struct.Struct("<4sHHQ64s")
_ENTRY = struct.Struct("<24sQQQ")
_DTYPES = {name: np.dtype(text) for name, text in DTYPES.items()}
_NAMES = {name: name.encode().ljust(24, b"\0") for name in DTYPES}
_BY_BYTES = {encoded: name for name, encoded in _NAMES.items()}
_TORCH = {"<i8": torch.int64, "<f4": torch.float32, "<u2": torch.int16, "|u1": torch.uint8}

Buffer = npt.NDArray[np.uint8]
Places = dict[str, tuple[int, int, tuple[int, ...]]]
"""Per section its first byte, its end and its shape."""


def entry_words(number: int) -> tuple[int, int]:
    """Where an entry of the head keeps its section's offset and number of rows, in 8-byte words of the buffer."""
    at = (_HEAD.size + number * _ENTRY.size) >> 3
    return at + 3, at + 4


def pack(generation: str, sections: Sections) -> tuple[Buffer, Places]:
    """Lay sections into one fresh buffer.

    Args:
        generation: Name of the generation they were read from.
        sections: The arrays.

    Returns:
        The buffer, ``[num_bytes] uint8``, and where each section lies in it.
    """
    at = _HEAD.size + _ENTRY.size * len(sections)
    entries: list[bytes] = []
    places: Places = {}
    for name, array in sections.items():
        columns = array.shape[1] if array.ndim == 2 else 0
        entries.append(_ENTRY.pack(_NAMES[name], at, len(array), columns))
        end = at + array.size * _DTYPES[name].itemsize
        places[name] = (at, end, array.shape)
        at = -(-end // 8) * 8
    buffer = np.empty(at, dtype=np.uint8)
    head = _HEAD.pack(MAGIC, VERSION, len(sections), at, generation.encode()) + b"".join(entries)
    buffer[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    for name, (start, end, _) in places.items():
        buffer[start:end].view(_DTYPES[name])[:] = sections[name].reshape(-1)
        if end % 8:
            buffer[end : end + (-end % 8)] = 0  # padding: equal batches give equal bytes
    return buffer, places


def unpack(buffer: Any, generation: str) -> tuple[Buffer, Sections, Places]:
    """Check a packed buffer and view its sections.

    Args:
        buffer: What :func:`pack` returned, as an array or as bytes; bytes are copied once.
        generation: Name of the generation it must belong to.

    Returns:
        The buffer as a writable array, its sections as views of it, and where they lie.

    Raises:
        FormatError: If it is truncated, malformed, or of another generation.
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
    if name.rstrip(b"\0") != generation.encode():
        raise FormatError(
            f"this batch belongs to generation {name.rstrip(bytes(1)).decode('ascii', 'replace')!r}, "
            f"got generation {generation!r}",
            fix="unpack it with the dataset it was read from",
        )
    sections: Sections = {}
    places: Places = {}
    at = _HEAD.size + count * _ENTRY.size
    for number in range(count):
        label, start, rows, columns = _ENTRY.unpack_from(array.data, _HEAD.size + number * _ENTRY.size)
        section = _BY_BYTES.get(label)
        if section is None or section in sections or (columns > 0 and section not in MATRICES):
            raise FormatError(f"a packed batch names section {label!r} with {columns} columns")
        shape = (rows, columns) if section in MATRICES else (rows,)
        end = start + rows * (columns if section in MATRICES else 1) * _DTYPES[section].itemsize
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
    for name, array in sections.items():
        kind, _, part = name.partition("_")
        same = f"{kind}_values" if part in ("types", "samples") else "indices" if name == "labels" else name
        if len(array) != len(sections.get(same, ())):
            raise FormatError(f"'{name}' and '{same}' of a packed batch differ in length")


def arrays(buffer: Buffer, places: Places) -> Sections:
    """The sections as views of the buffer."""
    return {
        name: buffer[start:end].view(_DTYPES[name]).reshape(shape)
        for name, (start, end, shape) in places.items()
    }


def views(tensor: Tensor, places: Places) -> dict[str, Tensor]:
    """The sections as views of the buffer's bytes on any device.

    Args:
        tensor: The bytes, ``[num_bytes] uint8``.
        places: Where the sections lie.

    Returns:
        One tensor per section; unsigned 16-bit words appear as ``int16``.
    """
    out: dict[str, Tensor] = {}
    for name, (start, end, shape) in places.items():
        dtype = _TORCH[DTYPES[name]]
        if end == start:
            out[name] = torch.empty(shape, dtype=dtype, device=tensor.device)
        else:
            out[name] = tensor[start:end].view(dtype).view(shape)
    return out
