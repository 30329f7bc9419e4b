"""Phenotype fields of a sample, in torchcell's coordinate form."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch

from torchcell_cache.core.choices import Statistics
from torchcell_cache.core.ragged import Float32Array

STATISTICS = get_args(Statistics)
"""Which samples have the ``phenotype_stat_*`` fields: those with a statistic, or all of them."""


def _coordinates(values: Float32Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    measurement, column = np.nonzero(~np.isnan(values))
    return (
        torch.from_numpy(values[measurement, column]),
        torch.from_numpy(column.astype(np.int64)),
        torch.from_numpy(measurement.astype(np.int64)),
    )


def phenotype_fields(
    values: Float32Array, phenotypes: tuple[str, ...], statistics: tuple[str, ...], always: bool = False
) -> dict[str, Any]:
    """The ``phenotype_*`` fields of one sample.

    Values come measurement by measurement, within one in the order of the names. A sample without any value has one NaN
    of type 0 and sample 0; the ``phenotype_stat_*`` fields are there only if the sample has a statistic, or ``always``.

    Args:
        values: ``[num_measurements, num_phenotypes + num_statistics] float32``, NaN for no value.
        phenotypes: Names of the first columns.
        statistics: Names of the remaining columns.
        always: Give a sample without a statistic empty ``phenotype_stat_*`` fields.

    Returns:
        ``phenotype_values [k] float32``, ``phenotype_type_indices [k] int64``, ``phenotype_sample_indices [k] int64``,
        ``phenotype_types`` (names) and, with statistics, the same four under ``phenotype_stat_*``.
    """
    split = len(phenotypes)
    value, kind, sample = _coordinates(values[:, :split])
    if len(value) == 0:
        value = torch.full((1,), torch.nan, dtype=torch.float32, device="cpu")
        kind, sample = (
            torch.zeros(1, dtype=torch.long, device="cpu"),
            torch.zeros(1, dtype=torch.long, device="cpu"),
        )
    out: dict[str, Any] = {
        "phenotype_values": value,
        "phenotype_type_indices": kind,
        "phenotype_sample_indices": sample,
        "phenotype_types": list(phenotypes),
    }
    if statistics or always:
        value, kind, sample = _coordinates(values[:, split:])
        if len(value) or always:
            out["phenotype_stat_values"] = value
            out["phenotype_stat_type_indices"] = kind
            out["phenotype_stat_sample_indices"] = sample
            out["phenotype_stat_types"] = list(statistics)
    return out
