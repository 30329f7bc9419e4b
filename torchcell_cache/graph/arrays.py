"""Arrays in a safetensors file: written by the library, mapped read-only with numpy.

Mapping keeps one copy per node in the page cache whatever the number of ranks and workers, and needs no torch.
Format: https://github.com/huggingface/safetensors#format (8-byte header length, JSON header, then the data).
"""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from torchcell_cache.errors import FormatError

DTYPES = {
    "BOOL": "?", "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
}  # fmt: skip
_MAX_HEADER = 16 << 20
_MAX_DIMENSIONS = 64  # numpy's own limit
_METADATA = "torchcell_cache"


def arrays_to_bytes(arrays: dict[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None) -> bytes:
    """Serialise arrays in name order, so equal input gives equal bytes.

    The library writes metadata entries in random order; one entry that holds them all as JSON has only one order.
    """
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    return bytes(save(ordered, metadata={_METADATA: json.dumps(metadata or {}, sort_keys=True)}))


def map_arrays(
    path: str | Path, access: int = mmap.ACCESS_READ
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Map a safetensors file, read-only unless writing is to change this process's pages (``mmap.ACCESS_COPY``).

    Raises:
        FormatError: If the file is not a well-formed safetensors file of known dtypes.
    """
    path = Path(path)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < 8:
            raise FormatError(f"{path}: too short for a safetensors file", path=path)
        mapping = mmap.mmap(file.fileno(), 0, access=access)
    return arrays_from_bytes(mapping, path)


def arrays_from_bytes(
    data: bytes | mmap.mmap, path: str | Path
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """View the arrays of a safetensors file that is in memory or mapped.

    Raises:
        FormatError: If it is not a well-formed safetensors file of known dtypes.
    """
    path = Path(path)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
        raise FormatError(f"{path}: header of {length} bytes in a file of {len(data)}", path=path)
    try:
        header = json.loads(data[8 : 8 + length].decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: header is not JSON ({error})", path=path) from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: header is not a JSON object", path=path)
    try:
        entries = json.loads(header.pop("__metadata__", {}).get(_METADATA, "{}"))
        metadata = {str(key): str(value) for key, value in entries.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: its metadata is malformed ({error!r})", path=path) from None
    body = np.frombuffer(data, dtype=np.uint8, offset=8 + length)
    arrays = {name: _view(path, name, info, body) for name, info in header.items()}
    if sum(array.nbytes for array in arrays.values()) != len(body):
        raise FormatError(f"{path}: its arrays do not fill it", path=path)
    return arrays, metadata


def _view(path: Path, name: str, info: Any, body: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    try:
        dtype, shape = np.dtype(DTYPES[info["dtype"]]), info["shape"]
        if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:  # before they are multiplied
            raise ValueError(f"its shape is no list of at most {_MAX_DIMENSIONS} extents")
        start, stop = info["data_offsets"]
        if any(type(number) is not int for number in (*shape, start, stop)):
            raise TypeError("extents and offsets are whole numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: array '{name:.80}' has a malformed entry ({error!r})", path=path
        ) from None
    inside = 0 <= start <= stop <= len(body) and min(shape, default=0) >= 0
    if not inside or stop - start != math.prod(shape) * dtype.itemsize:
        raise FormatError(f"{path}: array '{name}' {shape} does not fit bytes {start}..{stop}", path=path)
    return body[start:stop].view(dtype).reshape(shape)
