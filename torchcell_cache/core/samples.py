"""Value objects that pass between the rooms: one sample, a table of samples, and the names of theirs that no node has.

Nothing here knows torch, PyG or LMDB, so a build worker that only needs these starts in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.fingerprint import array_digest, sha256_json
from torchcell_cache.core.origins import Origins
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets, segments
from torchcell_cache.errors import SourceContractError

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData


@dataclass(frozen=True, slots=True, eq=False)
class UnknownNames:
    """Ragged text: sample ``i`` names ``names[k]`` for each ``k`` in ``codes[ptr[i]:ptr[i + 1]]``.

    Attributes:
        names: The distinct names, ascending, each named by some sample.
        codes: Ascending and unique within a sample, ``[sum of counts] int64``.
        ptr: Offsets into ``codes``, ``[num_samples + 1] int64``.
    """

    names: tuple[str, ...]
    codes: Int64Array
    ptr: Int64Array

    @classmethod
    def from_codes(cls, names: Sequence[str], codes: Int64Array, ptr: Int64Array) -> UnknownNames | None:
        """Without the names that nobody names; ``None`` if none is left, which is how most tables are."""
        used, codes = np.unique(codes.astype(np.int64), return_inverse=True)
        return cls(tuple(names[k] for k in used.tolist()), codes.reshape(-1), ptr) if len(used) else None

    @classmethod
    def from_rows(cls, rows: Sequence[Iterable[str]]) -> UnknownNames | None:
        """From the names of each sample, in any order."""
        names = sorted({name for row in rows for name in row})
        code = {name: k for k, name in enumerate(names)}
        codes = [sorted({code[name] for name in row}) for row in rows]
        flat = np.array([k for row in codes for k in row], dtype=np.int64)
        return cls.from_codes(names, flat, offsets(np.array([len(row) for row in codes], dtype=np.int64)))

    @classmethod
    def joined(cls, parts: Sequence[tuple[UnknownNames | None, int]]) -> UnknownNames | None:
        """Those of several tables, one after the other, each given with its number of samples."""
        there = [part for part, _ in parts if part is not None]
        names = sorted({name for part in there for name in part.names})
        code = {name: k for k, name in enumerate(names)}
        codes = [np.array([code[name] for name in part.names], dtype=np.int64)[part.codes] for part in there]
        counts = [
            np.zeros(count, dtype=np.int64) if part is None else np.diff(part.ptr) for part, count in parts
        ]
        return cls.from_codes(
            names, np.concatenate([np.empty(0, dtype=np.int64), *codes]), offsets(np.concatenate(counts))
        )

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __getitem__(self, index: int) -> tuple[str, ...]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return tuple(self.names[k] for k in self.codes[self.ptr[index] : self.ptr[index + 1]].tolist())

    def take(self, rows: Int64Array) -> UnknownNames | None:
        """Those of some samples, ``[n] int64``, in that order."""
        return UnknownNames.from_codes(self.names, *segments(self.codes, self.ptr, rows))

    def with_ids(self, ids: Int64Array, ptr: Int64Array, first: int) -> tuple[Int64Array, Int64Array]:
        """Perturbed ids with a number from ``first`` on for each name, so that sets of both can be compared."""
        owners = [np.repeat(np.arange(len(self)), np.diff(at)) for at in (ptr, self.ptr)]
        order = np.argsort(np.concatenate(owners), kind="stable")
        return np.concatenate([ids, self.codes + first])[order], ptr + self.ptr

    def digest(self) -> str:
        """SHA-256 of what each sample names, hexadecimal."""
        return sha256_json([list(self.names), array_digest(self.codes), array_digest(self.ptr)])


def without_names(
    ids: npt.NDArray[Any], ptr: Int64Array, first: int, names: Sequence[str]
) -> tuple[npt.NDArray[Any], Int64Array, UnknownNames | None]:
    """Inverse of :meth:`UnknownNames.with_ids`: ids of nodes, their offsets, and the names."""
    node = ids < first
    before = offsets(node)[ptr]
    return ids[node], before, UnknownNames.from_codes(names, ids[~node] - first, ptr - before)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One variant of the base graph, as a source hands it to a processor.

    Attributes:
        perturbed: Perturbed node ids, ascending, unique, ``[num_perturbed] int64``.
        values: One row per measurement, phenotypes first and statistics after them,
            ``[num_measurements, num_phenotypes + num_statistics] float32``; NaN where there is no value.
        phenotypes: Names of the phenotype columns.
        statistics: Names of the statistic columns.
        base_graph: The graph that all samples of the source share.
        index: Position in the source, or -1.
        source_id: The source's own name of this sample, or ``None``.
        unknown: Perturbed names that no node has, ascending; nothing is removed for them.

    Example:
        >>> tc.testing.tiny_source(4)[1].perturbed
        array([5, 7])
    """

    perturbed: Int64Array
    values: Float32Array
    phenotypes: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    base_graph: Data | HeteroData | None = field(default=None, repr=False)
    index: int = -1
    source_id: str | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SampleTable:
    """Many samples as ragged columns; row ``i`` is ``ids[ptr[i]:ptr[i+1]]`` and ``values[value_ptr[i]:value_ptr[i+1]]``.

    Attributes:
        ids: Perturbed node ids, ascending and unique within a sample, ``[sum of counts]`` of any integer dtype.
        ptr: Offsets into ``ids``, ``[num_samples + 1] int64``.
        values: Measurements, ``[num_measurements, num_phenotypes + num_statistics] float32``.
        value_ptr: Offsets into ``values``, ``[num_samples + 1] int64``.
        phenotypes: Names of the first columns of ``values``.
        statistics: Names of the remaining columns of ``values``.
        source_ids: One name per sample, or ``None`` where the position is the name.
        unknown: Perturbed names that no node has, or ``None`` where there are none.
        origins: What a database says of the measurements beyond their values, or ``None``.
    """

    ids: npt.NDArray[np.integer[Any]]
    ptr: Int64Array
    values: Float32Array
    value_ptr: Int64Array
    phenotypes: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    source_ids: Sequence[str] | None = None
    unknown: UnknownNames | None = None
    origins: Origins | None = None

    def __post_init__(self) -> None:
        width = len(self.phenotypes) + len(self.statistics)
        if self.values.ndim != 2 or self.values.shape[1] != width:
            raise SourceContractError(
                f"values has shape {self.values.shape}, expected [measurements, {width}] "
                f"for phenotypes {self.phenotypes} and statistics {self.statistics}"
            )
        lists = {"ptr": (self.ptr, len(self.ids)), "value_ptr": (self.value_ptr, len(self.values))}
        if self.unknown is not None:
            lists["unknown.ptr"] = self.unknown.ptr, len(self.unknown.codes)
        for name, (ptr, total) in lists.items():
            ends = ptr.ndim == 1 and len(ptr) > 0 and (ptr[0], ptr[-1]) == (0, total)
            if not ends or np.any(np.diff(ptr) < 0):
                raise SourceContractError(f"{name} must rise from 0 to {total}, got {ptr[:3]}..{ptr[-1:]}")
            if len(ptr) != len(self.ptr):
                raise SourceContractError(f"{len(self)} samples by ptr, {len(ptr) - 1} by {name}")

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def sample(self, index: int, base_graph: Data | HeteroData | None = None) -> Sample:
        """Row ``index`` as a :class:`Sample` of its own: arrays are copies."""
        return Sample(
            perturbed=self.ids[self.ptr[index] : self.ptr[index + 1]].astype(np.int64),
            values=self.values[self.value_ptr[index] : self.value_ptr[index + 1]].copy(),
            phenotypes=self.phenotypes,
            statistics=self.statistics,
            base_graph=base_graph,
            index=index,
            source_id=None if self.source_ids is None else self.source_ids[index],
            unknown=() if self.unknown is None else self.unknown[index],
        )

    def slice(self, start: int, stop: int) -> SampleTable:
        """Rows ``start`` to ``stop`` as views of the same columns."""
        ptr, value_ptr = self.ptr[start : stop + 1], self.value_ptr[start : stop + 1]
        return SampleTable(
            ids=self.ids[ptr[0] : ptr[-1]],
            ptr=ptr - ptr[0],
            values=self.values[value_ptr[0] : value_ptr[-1]],
            value_ptr=value_ptr - value_ptr[0],
            phenotypes=self.phenotypes,
            statistics=self.statistics,
            source_ids=None if self.source_ids is None else self.source_ids[start:stop],
            unknown=None if self.unknown is None else self.unknown.take(np.arange(start, stop)),
        )

    def take(self, rows: Int64Array) -> SampleTable:
        """Any rows, ``[n] int64``, in that order, as columns of their own."""
        ids, ptr = segments(self.ids, self.ptr, rows)
        values, value_ptr = segments(self.values, self.value_ptr, rows)
        names = None if self.source_ids is None else [self.source_ids[k] for k in rows.tolist()]
        unknown = None if self.unknown is None else self.unknown.take(rows)
        origins = None if self.origins is None else self.origins.take(rows, self.value_ptr)
        labels = self.phenotypes, self.statistics
        return SampleTable(ids, ptr, values, value_ptr, *labels, names, unknown, origins)

    def chunks(self, size: int) -> Iterator[SampleTable]:
        """Consecutive slices of at most ``size`` samples."""
        for start in range(0, len(self), size):
            yield self.slice(start, min(start + size, len(self)))
