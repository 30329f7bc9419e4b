"""The base graph as two files.

``base_graph.safetensors`` holds the tensors, each under the canonical JSON of its ``[store, name]``; dtypes
that older safetensors lack are stored as another dtype of the same bits. ``base_graph.json`` holds graph
class, stores, the order of the fields, each tensor's dtype and shape, and all other values as typed JSON.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from torchcell_cache.codec.layout import (
    DTYPES,
    TENSOR,
    VALUE,
    FieldKey,
    Layout,
    StoreKey,
    TensorValue,
    canonical_json,
    field_label,
    store_from_json,
    store_to_json,
)
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import (
    fsync_file,
    make_dirs_durable,
    remove_stale_temps,
    replace_file,
    temp_path,
)
from torchcell_cache.core.sealed import strict_json
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import CorruptShardError, FormatError, RecordTooLargeError, SettingError
from torchcell_cache.graph.arrays import DTYPES as ARRAY_DTYPES
from torchcell_cache.graph.arrays import map_arrays
from torchcell_cache.graph.fields import flatten, unflatten
from torchcell_cache.graph.typed_json import MAX_JSON_BYTES, dump_json, tag, untag
from torchcell_cache.graph.values import TORCH_DTYPES, to_array, to_tensor

TENSORS_FILE = "base_graph.safetensors"
VALUES_FILE = "base_graph.json"
FORMAT = "torchcell_cache base graph"
VERSION = 1

_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "BF16",
    "uint16": "I16", "uint32": "I32", "uint64": "I64",
    "complex64": "I64", "complex128": "F64",
}  # fmt: skip
_ALIGNMENT = 64


def save_base_graph(graph: Data | HeteroData, directory: str | os.PathLike[str]) -> Path:
    """Write a base graph into a directory, which is made if it is not there; equal graphs give equal bytes.

    A graph that is there already is replaced; whoever has it loaded keeps the old one.

    Args:
        graph: The base graph.
        directory: Where ``base_graph.safetensors`` and ``base_graph.json`` are to be.

    Returns:
        The directory, which :func:`load_base_graph` and ``source.base_graph=`` take.

    Raises:
        UnsupportedValueError: Naming the attribute that cannot be stored.
        RecordTooLargeError: If the values that are not tensors take more than 64 MiB as text.
        StorageError: If the file system refuses.

    Example:
        >>> where = tc.save_base_graph(tc.testing.tiny_graph(), "cell")
        >>> tc.load_base_graph("cell")["gene"].num_nodes
        8
    """
    if not isinstance(graph, Data | HeteroData):
        raise SettingError(
            f"a base graph is a Data or HeteroData, got {type(graph).__name__}",
            fix="tc.save_base_graph(graph, directory)",
        )
    place = make_dirs_durable(local_path(directory, "directory"))
    remove_stale_temps(place)
    with storage_errors(place), base_graph_files(graph, place) as work:
        for name in (TENSORS_FILE, VALUES_FILE):  # a new inode: the old one may be mapped
            replace_file(work / name, place / name)
    return place


@contextlib.contextmanager
def base_graph_files(graph: Any, directory: Path) -> Iterator[Path]:
    """The two files, whole and synced, in a directory of their own, to be renamed from there."""
    work = temp_path(directory / "base_graph")
    work.mkdir()
    try:
        write_base_graph(graph, work)
        for name in (TENSORS_FILE, VALUES_FILE):
            fsync_file(work / name)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_base_graph(graph: Data | HeteroData, directory: str | Path) -> None:
    """The two files, plainly: making them durable and visible is the caller's work.

    Raises:
        UnsupportedValueError: Naming the attribute that cannot be stored.
        RecordTooLargeError: If the values that are not tensors take more than 64 MiB as text.
    """
    layout, values = flatten(graph)
    tensors: dict[str, tuple[str, TensorValue]] = {}
    stores = []
    items = iter(zip(layout.keys, values, strict=True))
    for store, names in layout.stores:
        described: list[Any] = []
        for _ in names:
            key, value = next(items)
            if isinstance(value, Tensor):
                array = to_array(value, field_label(key))
                tensors[_tensor_name(key)] = (_NAMES.get(DTYPES[array.dtype].name, "U8"), array)
                described.append([key[1], {TENSOR: [DTYPES[array.dtype].name, list(value.shape)]}])
            else:
                described.append([key[1], {VALUE: tag(value, field_label(key))}])
        stores.append([store_to_json(store), described])
    document = {"format": FORMAT, "version": VERSION, "graph": layout.graph, "stores": stores}
    text = dump_json(document)
    if len(text) > MAX_JSON_BYTES:
        raise RecordTooLargeError(
            f"the base graph's other values take {len(text):,} bytes as text, at most {MAX_JSON_BYTES:,}",
            fix="hold them as tensors or numpy arrays of numbers",
        )
    _write_tensors(tensors, Path(directory) / TENSORS_FILE)
    (Path(directory) / VALUES_FILE).write_bytes(text)


def _tensor_name(key: FieldKey) -> str:
    return canonical_json([store_to_json(key[0]), key[1]]).decode("ascii")


def _write_tensors(tensors: dict[str, tuple[str, TensorValue]], path: Path) -> None:
    """Write a safetensors file tensor by tensor.

    The library's writer wants a copy of everything in memory and reports a full disk as its own error type.
    Larger element types come first, so every tensor is aligned when the file is mapped.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name][1].array.itemsize, name))
    header, offset = {}, 0
    for name in order:
        dtype, (code, array) = tensors[name]
        shape = [*array.shape, 2] if DTYPES[code].name == "complex128" else list(array.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            code, array = tensors[name][1]
            file.write(array.astype(DTYPES[code].carrier, copy=False).reshape(-1).view("u1").data)


def load_base_graph(directory: str | os.PathLike[str]) -> Data | HeteroData:
    """Read a base graph back; its tensors map the file, so all processes of a node share one copy.

    Args:
        directory: Where :func:`save_base_graph` wrote it.

    Raises:
        CorruptShardError: If a file is missing, damaged, or does not fit the other.
        FormatError: If it was written by another version.

    Example:
        >>> _ = tc.save_base_graph(ds.base_graph, "graph")
        >>> tc.load_base_graph("graph").node_types
        ['gene', 'reaction', 'metabolite']
    """
    path = local_path(directory, "directory") / VALUES_FILE
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CorruptShardError(
                f"{path}: {path.stat().st_size:,} bytes, at most {MAX_JSON_BYTES:,}", path=path
            )
        document = strict_json(path.read_bytes())
        arrays = _mapped(path.with_name(TENSORS_FILE))
        return unflatten(*_assemble(document, arrays, path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CorruptShardError(f"{error.filename}: the base graph is missing", path=error.filename) from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, RuntimeError) as error:
        if isinstance(error, CorruptShardError | FormatError):
            raise
        raise CorruptShardError(f"{path}: not a base graph ({error})", path=path) from None


def _assemble(document: Any, arrays: dict[str, npt.NDArray[Any]], path: Path) -> tuple[Layout, list[Any]]:
    said = (document.get("format"), document.get("version")) if isinstance(document, dict) else ()
    if said != (FORMAT, VERSION):
        raise FormatError(f"{path}: not a '{FORMAT}' of version {VERSION}", path=path)
    if set(document) != {"format", "version", "graph", "stores"}:
        raise CorruptShardError(f"{path}: has the keys {sorted(document)}", path=path)
    values: list[Any] = []
    stores: list[tuple[StoreKey, tuple[tuple[str, str], ...]]] = []
    for store_data, described in document["stores"]:
        store, names = store_from_json(store_data), []
        for name, description in described:
            if not isinstance(name, str) or not isinstance(description, dict):
                raise ValueError(f"field {str(name)[:40]} of {str(store)[:40]} is not described")
            [(kind, content)] = description.items()
            names.append((name, kind))
            if kind == TENSOR:
                array = arrays.pop(_tensor_name((store, name)), None)
                values.append(_typed(array, content, (store, name), path))
            else:
                values.append(untag(content))
        stores.append((store, tuple(names)))
    if arrays:
        raise CorruptShardError(f"{path}: does not name the tensors {sorted(arrays)[:5]}", path=path)
    return Layout(document["graph"], tuple(stores)), values


def _mapped(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The stored arrays, mapped privately: a write to such a tensor changes this process's page, not the file."""
    try:
        return map_arrays(path, mmap.ACCESS_COPY)[0]
    except FormatError as error:
        raise CorruptShardError(f"{path}: not a safetensors file ({error})", path=path) from None


def _typed(array: npt.NDArray[Any] | None, content: Any, key: FieldKey, path: Path) -> Tensor:
    """The tensor under its own dtype, checked against what the JSON says."""
    name, shape = content
    code = next((code for code, dtype in DTYPES.items() if dtype.name == name), 0)
    if array is None or code not in TORCH_DTYPES:
        raise CorruptShardError(
            f"{path}: tensor {field_label(key)} of dtype {name} is missing or unknown", path=path
        )
    extents = [*shape, 2] if name == "complex128" else shape
    if array.dtype != ARRAY_DTYPES[_NAMES.get(name, "U8")] or list(array.shape) != extents:
        found, expected = f"{array.dtype}{list(array.shape)}", f"{name}{shape}"
        raise CorruptShardError(
            f"{path}: tensor {field_label(key)} is {found}, expected {expected}", path=path
        )
    # No-element arrays cannot be viewed in another width.
    plain = array.view(DTYPES[code].carrier) if array.size else np.empty(extents, DTYPES[code].carrier)
    return to_tensor(TensorValue(code, plain[..., 0] if name == "complex128" else plain))
