"""Samples that perturb the same nodes: kept apart, grouped, averaged or refused."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.choices import Replicates
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.ragged import means as column_means
from torchcell_cache.errors import SourceContractError

Float64Array = npt.NDArray[np.float64]
REPLICATES = get_args(Replicates)
"""Keep each as a sample; make one sample of several measurements, or of their mean; refuse them."""


def set_numbers(ids: Int64Array, ptr: Int64Array) -> Int64Array:
    """Number of each sample's set of nodes, ``[num_samples] int64``, in order of first appearance.

    Args:
        ids: Nodes, ascending and unique within a sample.
        ptr: Offsets of the samples.
    """
    data, bounds = ids.astype(np.int64).tobytes(), (8 * ptr).tolist()
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(data[a:b], len(known)) for a, b in pairwise(bounds)], dtype=np.int64)


def means(
    values: Float64Array, owner: Int64Array, num_samples: int, num_labels: int
) -> tuple[Float64Array, Float64Array]:
    """Mean of every column over the values there are, and how many there were for each label."""
    out = np.empty((num_samples, values.shape[1]))
    counts = np.empty((num_samples, num_labels))
    for k, column in enumerate(values.T):
        out[:, k] = column_means(column, owner, num_samples)
        if k < num_labels:
            counts[:, k] = np.bincount(owner[~np.isnan(column)], minlength=num_samples)
    return out, counts


def count_names(phenotypes: tuple[str, ...], statistics: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the statistics that say how many values a mean is of.

    Raises:
        SourceContractError: If one of them is a column already.
    """
    names = tuple(f"{name}_count" for name in phenotypes)
    if taken := sorted({*phenotypes, *statistics}.intersection(names)):
        raise SourceContractError(
            f"{taken} are columns already; means add statistics of these names",
            fix='rename them, or pass replicates="group"',
        )
    return names
