"""Perturbed ids and measurements of any samples from memory, for batches: no file is touched, nothing is parsed.

The columns of a store hold what its records hold besides the removed positions. They take a dozen bytes per sample, so a
reader keeps a private copy whose digest it has checked itself, and gathers from that. Records stay the place that single
samples, verification and repair read; stores too large for a copy are read from records altogether.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from torchcell_cache.core.hints import repair_hint
from torchcell_cache.core.ragged import Float32Array, Int64Array, ascends, segments
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import CorruptShardError
from torchcell_cache.graph.arrays import arrays_from_bytes
from torchcell_cache.store.columns import arrays_to_table
from torchcell_cache.store.stamps import insist_digest

MAX_BYTES = 64 << 20
"""Largest columns file that a reading process copies."""


class TableReader:
    """Gathers rows of a table that does not change."""

    def __init__(self, table: SampleTable) -> None:
        self.ids, self.values = table.ids, table.values
        counts, measured = np.diff(table.ptr), np.diff(table.value_ptr)
        self._each = _same(counts)
        self._ptr = None if self._each is not None else table.ptr
        self._once = _same(measured) == 1
        self._value_ptr = None if self._once else table.value_ptr
        self._rows = None if self._each is None else self.ids.reshape(len(counts), self._each)

    @classmethod
    def load(
        cls,
        path: Path,
        digest: str,
        phenotypes: tuple[str, ...],
        statistics: tuple[str, ...],
        num_samples: int,
        num_nodes: int,
    ) -> TableReader:
        """Read a columns file whole and check it.

        Raises:
            CorruptShardError: If the file is not what the manifest says, or not of such samples.
        """
        data = path.read_bytes()
        insist_digest(path, xxhash.xxh3_128_hexdigest(data), digest)
        wanted = ("perturbed", "perturbed_count", "values", "value_count")
        arrays = arrays_from_bytes(data, path)[0]
        kept = {name: array.copy() for name, array in arrays.items() if name in wanted}
        table = arrays_to_table(kept, phenotypes, statistics)
        numbers = table.ids.dtype.kind in "iu" and table.values.dtype == np.float32
        rise = ascends(table.ids, table.ptr)
        within = len(table.ids) == 0 or 0 <= int(table.ids.min()) <= int(table.ids.max()) < num_nodes
        if not (numbers and within and rise and len(table) == num_samples):
            said = f"{path} is no table of {num_samples:,} samples on {num_nodes:,} nodes"
            raise CorruptShardError(said, path=path, fix=repair_hint(path))
        return cls(table)

    def perturbed(self, indices: Int64Array) -> tuple[npt.NDArray[Any], Int64Array]:
        """Perturbed ids of the samples, one after the other, and their offsets."""
        if self._rows is not None and self._each is not None:
            return self._rows[indices].reshape(-1), np.arange(len(indices) + 1) * self._each
        assert self._ptr is not None
        return segments(self.ids, self._ptr, indices)

    def measurements(self, indices: Int64Array) -> tuple[Float32Array, Int64Array]:
        """Measurements of the samples, ``[num_measurements, num_columns] float32``, and their offsets."""
        if self._value_ptr is None:
            return self.values[indices], np.arange(len(indices) + 1)
        return segments(self.values, self._value_ptr, indices)


def _same(counts: npt.NDArray[Any]) -> int | None:
    """The number that all of them are, or ``None``."""
    return int(counts[0]) if len(counts) and bool((counts == counts[0]).all()) else None
