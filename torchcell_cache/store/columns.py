"""Columns of a store: one row per sample, so that nothing about samples needs a record read.

Held in ``columns.safetensors``: ``perturbed`` (ragged, with ``perturbed_count``), ``values`` (with ``value_count`` only
where some sample does not have exactly one measurement), ``removed_edges`` and, if the source names its samples,
``source_ids`` (UTF-8 bytes with ``source_id_length``). If samples perturb names that no node has: the distinct ones
``unknown_names`` (as ``source_ids``) and, ragged, ``unknown`` with ``unknown_count``. What a database says of measurements
beyond their values stands in ``origin_*``. Further columns of a generic store keep their own names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.origins import Origins
from torchcell_cache.core.ragged import (
    Int64Array,
    offsets,
    ragged_arange,
    ragged_rows,
    segments,
    shrunk,
    smallest_unsigned,
)
from torchcell_cache.core.samples import SampleTable, UnknownNames
from torchcell_cache.errors import CorruptShardError, SettingError, SourceContractError
from torchcell_cache.graph.arrays import arrays_to_bytes, map_arrays
from torchcell_cache.graph.topology import Topology, endpoints

Arrays = dict[str, npt.NDArray[Any]]
ORIGIN = "origin_"

_FEW_PAIRS = 64


def names_apart(labels: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """A column name for each label: its own, or ``label.<name>`` where the store has a column of that name itself."""
    out = {label: label for label in labels}
    own = {"index", *taken}
    used = {*own, *out}
    for label in [label for label in out if label in own]:
        while out[label] in used:
            out[label] = f"label.{out[label]}"
        used.add(out[label])
    return out


def table_to_arrays(table: SampleTable, num_nodes: int) -> Arrays:
    """The arrays that hold a table, in the smallest dtypes that fit."""
    out: Arrays = {
        "perturbed": table.ids.astype(smallest_unsigned(max(num_nodes - 1, 0))),
        "perturbed_count": shrunk(np.diff(table.ptr)),
        "values": table.values,
    }
    value_counts = np.diff(table.value_ptr)
    if bool((value_counts != 1).any()):
        out["value_count"] = shrunk(value_counts)
    if table.source_ids is not None:
        out["source_ids"], out["source_id_length"] = encoded(table.source_ids)
    if table.unknown is not None:
        out["unknown"] = table.unknown.codes.astype(smallest_unsigned(len(table.unknown.names) - 1))
        out["unknown_count"] = shrunk(np.diff(table.unknown.ptr))
        out["unknown_names"], out["unknown_name_length"] = encoded(table.unknown.names)
    if table.origins is not None:
        for name, array in table.origins.arrays().items():
            out[f"{ORIGIN}{name}"] = shrunk(array) if np.issubdtype(array.dtype, np.integer) else array
        out[f"{ORIGIN}words"], out[f"{ORIGIN}word_length"] = encoded(table.origins.words)
    return out


def encoded(names: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Names as one block of UTF-8 bytes and the length of each."""
    encoded = [name.encode() for name in names]
    lengths = np.array([len(name) for name in encoded], dtype=np.uint32)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), lengths


class Names(Sequence[str]):
    """Names kept as one block of UTF-8 bytes; nothing per sample lives in Python."""

    def __init__(self, data: npt.NDArray[np.uint8], lengths: npt.NDArray[Any]) -> None:
        self.data, self.lengths = data, lengths

    @cached_property
    def ptr(self) -> Int64Array:
        """Where each begins; eight bytes per name that a process has of its own, hence not before one is asked for."""
        return offsets(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return self.data[self.ptr[index] : self.ptr[index + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[k] for k in range(len(self)))


def arrays_to_table(arrays: Arrays, phenotypes: tuple[str, ...], statistics: tuple[str, ...]) -> SampleTable:
    """The table held by arrays; the inverse of :func:`table_to_arrays`.

    Raises:
        CorruptShardError: If the columns do not fit together.
    """
    try:
        ptr = offsets(arrays["perturbed_count"])
        lengths = arrays.get("value_count")
        value_ptr = np.arange(len(ptr), dtype=np.int64) if lengths is None else offsets(lengths)
        names = Names(arrays["source_ids"], arrays["source_id_length"]) if "source_ids" in arrays else None
        unknown = None
        if "unknown" in arrays:
            known = Names(arrays["unknown_names"], arrays["unknown_name_length"])
            unknown = UnknownNames.from_codes(known, arrays["unknown"], offsets(arrays["unknown_count"]))
        origins = None
        if f"{ORIGIN}words" in arrays:
            words = list(Names(arrays[f"{ORIGIN}words"], arrays[f"{ORIGIN}word_length"]))
            own = {n.removeprefix(ORIGIN): array for n, array in arrays.items() if n.startswith(ORIGIN)}
            origins = Origins.from_arrays(words, own)
        more = phenotypes, statistics, names, unknown, origins
        return SampleTable(arrays["perturbed"], ptr, arrays["values"], value_ptr, *more)
    except (KeyError, IndexError, UnicodeDecodeError, SourceContractError) as error:
        raise CorruptShardError(f"the stored columns do not fit together: {error}") from None


def is_number(column: npt.NDArray[Any]) -> bool:
    """Whether a column has one number per sample."""
    return column.ndim == 1 and column.dtype.kind in "biuf"


def single_columns(columns: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """Columns of one value per sample; those of several as ``y[0]``, ``y[1]``, ..., axes of length 1 left out."""
    out: Arrays = {}
    for name, column in columns.items():
        wide = column.reshape(len(column), *(size for size in column.shape[1:] if size != 1))
        for at in np.ndindex(wide.shape[1:]):
            out[name + "".join(f"[{k}]" for k in at)] = wide[(slice(None), *at)]
    return out


def columns_bytes(arrays: Arrays) -> bytes:
    """Serialised form."""
    return arrays_to_bytes(arrays)


def load_columns(path: str | Path) -> Arrays:
    """Map the columns file."""
    return map_arrays(path)[0]


def count_removed_edges(graph: Any, topology: Topology, table: SampleTable) -> npt.NDArray[np.int64]:
    """Number of edges (all ``edge`` domains) each sample removes, ``[num_samples] int64``.

    The sum of the degrees, less the edges between two perturbed nodes, which would count twice. Those are looked up in
    the sorted list of connected pairs; a bit matrix answers first for the many pairs without an edge.
    """
    num_nodes = topology.num_nodes
    degree = np.zeros(num_nodes, dtype=np.int64)
    keys = []
    for domain in topology.domains:
        if domain.role != "edge":
            continue
        src, dst = endpoints(graph, domain)
        inner = [(src, dst)[row] for row in topology.ends_of(domain)]
        for row in inner:
            degree += np.bincount(row, minlength=num_nodes)
        if len(inner) == 2:
            loops = src == dst
            degree -= np.bincount(src[loops], minlength=num_nodes)
            low, high = np.minimum(src, dst)[~loops], np.maximum(src, dst)[~loops]
            keys.append(low * num_nodes + high)
    ids = table.ids.astype(np.int64)
    total = _sums(degree[ids], table.ptr)
    if keys:
        total -= _edges_between(np.sort(np.concatenate(keys)), ids, table.ptr, num_nodes)
    return total


def _edges_between(
    keys: Int64Array, ids: Int64Array, ptr: Int64Array, num_nodes: int
) -> npt.NDArray[np.int64]:
    """Edges among each sample's own nodes; ``keys`` are sorted ``low * num_nodes + high`` with repeats.

    By pairs of a sample's nodes, or by the edges of its nodes where those are fewer: work grows with the size of a sample.
    """
    counts, first = np.diff(ptr), np.searchsorted(keys, np.arange(num_nodes + 1) * num_nodes)
    edges = _sums(np.diff(first)[ids], ptr)
    by_edges = counts * (counts - 1) // 2 > edges + _FEW_PAIRS
    out = np.zeros(len(counts), dtype=np.int64)
    for rows, count in ((np.flatnonzero(~by_edges), _by_pairs), (np.flatnonzero(by_edges), _by_edges)):
        if len(rows):
            out[rows] = count(keys, first, *segments(ids, ptr, rows), num_nodes)
    return out


def _sums(values: npt.NDArray[Any], ptr: Int64Array) -> Int64Array:
    """Sum of each sample's values, ``[n] int64``."""
    total = offsets(values)
    return total[ptr[1:]] - total[ptr[:-1]]


def _by_edges(
    keys: Int64Array, first: Int64Array, ids: Int64Array, ptr: Int64Array, num_nodes: int
) -> Int64Array:
    """Of the edges that begin at a sample's nodes, those that end at them."""
    owner = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    at, edge_ptr = ragged_rows(first, ids)
    far = np.repeat(owner, np.diff(edge_ptr)) * num_nodes + keys[at] % num_nodes
    mine = owner * num_nodes + ids  # ascending: ids ascend within a sample
    inside = mine[np.minimum(np.searchsorted(mine, far), len(mine) - 1)] == far
    return _sums(_sums(inside, edge_ptr), ptr)


def _by_pairs(
    keys: Int64Array, first: Int64Array, ids: Int64Array, ptr: Int64Array, num_nodes: int
) -> Int64Array:
    """How often each pair of a sample's nodes stands among the edges."""
    counts = np.diff(ptr)
    out = np.zeros(len(counts), dtype=np.int64)
    bits = None
    if num_nodes <= 1 << 15 and len(counts) > 10_000:
        bits = np.zeros((num_nodes * num_nodes + 7) // 8, dtype=np.uint8)
        np.bitwise_or.at(bits, keys >> 3, (1 << (keys & 7)).astype(np.uint8))
    for distance in range(1, int(counts.max(initial=0))):
        left = np.maximum(counts - distance, 0)
        rows, start = np.repeat(np.arange(len(counts)), left), ragged_arange(ptr[:-1], left)
        pair = ids[start] * num_nodes + ids[start + distance]  # ids ascend within a sample
        if bits is not None:
            hit = (bits[pair >> 3] >> (pair & 7).astype(np.uint8)) & 1 == 1
            rows, pair = rows[hit], pair[hit]
        found = np.searchsorted(keys, pair, side="right") - np.searchsorted(keys, pair, side="left")
        out += np.bincount(rows, weights=found, minlength=len(counts)).astype(np.int64)
    return out


def categories_of(graph: Any) -> dict[str, list[str]]:
    """The names behind the codes of a store's columns of names, by column; none for most stores."""
    found = getattr(graph, "obs_categories", None)
    if not isinstance(found, dict):
        return {}
    return {str(name): [str(each) for each in names] for name, names in found.items()}


def named(codes: npt.NDArray[Any], names: Sequence[str]) -> npt.NDArray[np.object_]:
    """Codes as names, ``None`` where there is none (a negative code or NaN), ``[n] object``."""
    known = np.asarray(codes >= 0)
    out = np.full(len(known), None, dtype=object)
    out[known] = np.array([*names, None], dtype=object)[:-1][np.asarray(codes)[known].astype(np.int64)]
    return out


def names_in(known: Mapping[str, Sequence[str]], column: str) -> Sequence[str]:
    """The names behind the codes of one column, of those that a store has.

    Raises:
        SettingError: If it is no column of names; says which there are.
    """
    if column not in known:
        raise SettingError(
            f"{column!r} is no column of names; this store has {', '.join(known) or 'none'}",
            fix="labels(...) gives numbers; AnnDataSource(categories=[...]) and texts of graphs make columns of names",
        )
    return known[column]
