"""Reads the pickled records of a torchcell store in a process of its own; what a pickle names is never called.

Started as ``python -P pickled_records.py FILE COUNT DIRECTORY CHECKED``. Three names are known, and each stands for a function of
this file that keeps bytes; any other name ends the reading. Bytes of tensors are read by ``torch.load(weights_only=True)``, when
they are wanted. Before each record its number is printed. DIRECTORY gets arrays and JSON, nothing that has to be unpickled.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import resource
import signal
import sys
import warnings
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from torchcell_cache.store.records import opened

MAX_RECORD_BYTES = 1 << 28
OUTCOME, COLUMNS = "outcome.json", "columns.npz"
_CPU_SECONDS = 30  # of one record: tuples within tuples take for ever as keys of a dictionary
_SPARE_BYTES, _BYTES_PER_SAMPLE = 2 << 30, 2048
LABELS = ("phenotype_values", "phenotype_type_indices", "phenotype_sample_indices")
STATISTICS = ("phenotype_stat_values", "phenotype_stat_type_indices", "phenotype_stat_sample_indices")
TENSORS = dict(zip(("perturbation_indices", *LABELS, *STATISTICS), "qfqqfqq", strict=True))
"""Fields of a record's genes, by the type of number they are kept as."""


class RefusedError(Exception):
    """A record that names something else than torchcell's records do."""


class Stored(NamedTuple):
    """A tensor that nobody has read yet."""

    data: Any
    offset: Any
    size: Any
    stride: Any

    def numbers(self) -> npt.NDArray[Any]:
        """Its numbers, of one dimension; every bound is checked."""
        if not isinstance(self.data, bytes):
            raise ValueError("the data of a tensor are no bytes")
        try:
            storage = torch.load(io.BytesIO(self.data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            if named is None:
                raise ValueError(f"the data of a tensor cannot be read: {str(error)[:100]!r}") from None
            raise RefusedError(f"a tensor in it names {named[1]}") from None
        if not isinstance(storage, torch.storage.TypedStorage):
            raise ValueError(f"the data of a tensor are a {type(storage).__name__}")
        empty = torch.empty(0, dtype=storage.dtype, device="cpu")
        flat = empty.set_(storage.untyped()).numpy()  # type: ignore[no-untyped-call]
        (count,), (step,) = self.size, self.stride
        last = self.offset + max(count - 1, 0) * step
        if count and not (0 <= self.offset <= last < len(flat) and step > 0 and 0 < count <= len(flat)):
            raise ValueError(f"a tensor of {count} numbers does not fit its {len(flat)}")
        return flat[self.offset : last + 1 : step] if count else flat[:0]


def _bytes(data: Any) -> Any:
    return data


def _tensor(data: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Stored:
    return Stored(data, offset, size, stride)


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch.storage", "_load_from_bytes"): _bytes,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): dict,  # hooks of a tensor, empty
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name that torchcell's records have."""
        known = _NAMES.get((module, name))
        if known is None:
            raise RefusedError(f"its pickle names {module}.{name}")
        return known


def record_of(data: bytes) -> dict[str, Any]:
    """A record, its tensors unread.

    Raises:
        RefusedError: If it names a class or function that such records do not have.
        ValueError: If it is no such record; other errors of ``pickle`` for damage.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, expected {MAX_RECORD_BYTES:,} at most")
    record = _Reader(io.BytesIO(data)).load()
    if not isinstance(record, dict) or not {"gene", "node_masks", "edge_masks"} <= record.keys():
        raise ValueError("it is none of torchcell's: no gene, node_masks and edge_masks")
    return record


class Columns:
    """Records as columns."""

    def __init__(self, checked: set[int]) -> None:
        self.checked = checked
        self.flat = {name: array(kind) for name, kind in {**TENSORS, "ids_pert": "q", "removed": "q"}.items()}
        self.counts = {name: array("q") for name in self.flat}
        self.words: dict[str, int] = {}
        self.same: dict[str, Any] = {}

    def add(self, index: int, record: dict[str, Any]) -> None:
        """Note one record."""
        genes = record["gene"]
        for name, kind in TENSORS.items():
            given = genes.get(name)
            numbers = np.empty(0) if given is None else _stored(given).numbers()
            self._extend(name, numbers.astype(np.dtype(kind)))
        names = genes["ids_pert"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("ids_pert is no list of names")
        self._extend("ids_pert", np.array([self.words.setdefault(n, len(self.words)) for n in names], "q"))
        masks = {**record["node_masks"], **record["edge_masks"]}
        keys = sorted(masks, key=str)
        self._agree("keys", [[key] if isinstance(key, str) else [str(part) for part in key] for key in keys])
        self._agree("sizes", [int(masks[key]["mask_size"]) for key in keys])
        self._agree("phenotypes", [str(name) for name in genes["phenotype_types"]])
        if genes.get("phenotype_stat_types") is not None:
            self._agree("statistics", [str(name) for name in genes["phenotype_stat_types"]])
        for key in keys if index in self.checked else ():
            self._extend("removed", _stored(masks[key]["false_indices"]).numbers().astype(np.int64))

    def _extend(self, name: str, numbers: npt.NDArray[Any]) -> None:
        self.flat[name].frombytes(numbers.tobytes())
        self.counts[name].append(len(numbers))

    def _agree(self, what: str, value: Any) -> None:
        if self.same.setdefault(what, value) != value:
            raise ValueError(f"its {what} are {value}, those of records before it {self.same[what]}")

    def write(self, directory: Path) -> None:
        """Arrays as ``COLUMNS``, the rest as ``OUTCOME``."""
        columns = {**self.flat, **{f"{name}.count": part for name, part in self.counts.items()}}
        arrays: dict[str, Any] = {name: np.array(part, part.typecode) for name, part in columns.items()}
        np.savez(directory / COLUMNS, **arrays)
        (directory / OUTCOME).write_text(json.dumps({**self.same, "words": list(self.words)}))


def _stored(value: Any) -> Stored:
    if not isinstance(value, Stored):
        raise ValueError(f"a {type(value).__name__} stands where a tensor should")
    return value


def _limit_memory(count: int) -> None:
    """A few bytes of a pickle can ask for any amount of memory."""
    with contextlib.suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = used + _SPARE_BYTES + _BYTES_PER_SAMPLE * count
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))


def main(file: str, count: str, directory: str, checked: str) -> None:
    """Entry point of the process."""
    warnings.simplefilter("ignore")  # TypedStorage is deprecated, and what such records hold
    columns = Columns(set(json.loads(checked)))
    outcome: dict[str, Any] = {}
    try:
        get = opened(file, Path(file).stat().st_size, readonly=True, create=False).begin().get
        _limit_memory(int(count))
        for index in range(int(count)):
            os.write(1, b"%d\n" % index)
            signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
            outcome = {"sample": index}
            data = get(b"%d" % index)
            if data is None:
                raise ValueError("there is none, though metadata.json counts it")
            columns.add(index, record_of(data))
        signal.setitimer(signal.ITIMER_PROF, 0)
        columns.write(Path(directory))
    except RefusedError as error:
        outcome |= {"refused": str(error)}
    except Exception as error:
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        outcome |= {"failed": said[:300]}
    if "refused" in outcome or "failed" in outcome:
        (Path(directory) / OUTCOME).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
