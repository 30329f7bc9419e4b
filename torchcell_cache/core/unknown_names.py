"""Names that samples perturb and no node has: kept with the sample, nothing is removed for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.digests import array_digest, sha256_json
from torchcell_cache.core.ragged import Int64Array, offsets, segments


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
    def of(cls, names: Sequence[str], codes: Int64Array, ptr: Int64Array) -> UnknownNames | None:
        """Without the names that nobody names; ``None`` if none is left, which is how most tables are."""
        used, codes = np.unique(codes.astype(np.int64), return_inverse=True)
        return cls(tuple(names[k] for k in used.tolist()), codes.reshape(-1), ptr) if len(used) else None

    @classmethod
    def of_rows(cls, rows: Sequence[Iterable[str]]) -> UnknownNames | None:
        """From the names of each sample, in any order."""
        names = sorted({name for row in rows for name in row})
        code = {name: k for k, name in enumerate(names)}
        codes = [sorted({code[name] for name in row}) for row in rows]
        flat = np.array([k for row in codes for k in row], dtype=np.int64)
        return cls.of(names, flat, offsets(np.array([len(row) for row in codes], dtype=np.int64)))

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
        return cls.of(
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
        return UnknownNames.of(self.names, *segments(self.codes, self.ptr, rows))

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
    return ids[node], before, UnknownNames.of(names, ids[~node] - first, ptr - before)
