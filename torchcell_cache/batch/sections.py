"""A batch on the host: named numpy arrays, ready to be laid into one buffer.

The same names stand for the same arrays in all three forms of a batch: decoded (here), packed into one buffer
(:mod:`.packing`) and as tensors on a device. What a device would need a data-dependent size for - where a measurement is
missing, which reactions a boolean rule switches off - is worked out here, so that nothing on the device has to ask back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.deletions import StructuredColumns
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets
from torchcell_cache.errors import FormatError
from torchcell_cache.graph.removal import ReactionRemoval

Sections: TypeAlias = dict[str, npt.NDArray[Any]]

DTYPES: dict[str, str] = {
    "indices": "<i8",
    "perturbed": "<i8",
    "perturbed_ptr": "<i8",
    "values": "<f4",
    "value_ptr": "<i8",
    "labels": "<f4",
    "words": "<u2",
    "word_ptr": "<i8",
    "removed": "<i8",
    "removed_ptr": "<i8",
    **{
        f"{kind}_{name}": dtype
        for kind in ("phenotype", "statistic")
        for name, dtype in (("values", "<f4"), ("types", "<i8"), ("samples", "<i8"), ("ptr", "<i8"))
    },
    "records": "|u1",
    "record_ptr": "<i8",
}
"""Every section there can be, and its dtype."""

POINTS_INTO: dict[str, str] = {
    "perturbed_ptr": "perturbed",
    "value_ptr": "values",
    "word_ptr": "words",
    "removed_ptr": "removed",
    "phenotype_ptr": "phenotype_values",
    "statistic_ptr": "statistic_values",
    "record_ptr": "records",
}
"""Offsets ``[batch + 1]`` and the section they divide among the samples."""

MATRICES = ("values", "labels")


def structured_sections(
    indices: Int64Array,
    columns: StructuredColumns,
    num_phenotypes: int,
    has_removed: bool,
    by_rule: ReactionRemoval | None,
) -> Sections:
    """Sections of a batch of structured records.

    Args:
        indices: Store positions of the samples, ``[batch] int64``.
        columns: Their decoded records.
        num_phenotypes: How many of the value columns are phenotypes; the others are statistics.
        has_removed: Whether records carry removed positions.
        by_rule: Reaction removal by gene rules, for stores without removed positions.
    """
    values = columns.values
    out: Sections = {
        "indices": indices,
        "perturbed_ptr": columns.ptr,
        "values": values,
        "value_ptr": columns.value_ptr,
    }
    once = len(values) == len(indices) and bool((columns.value_ptr[1:] > columns.value_ptr[:-1]).all())
    if not once:
        out["labels"] = mean_labels(values, columns.value_ptr)
    _coordinates(out, "phenotype", values[:, :num_phenotypes], columns.value_ptr, once, fill=True)
    if values.shape[1] > num_phenotypes:
        _coordinates(out, "statistic", values[:, num_phenotypes:], columns.value_ptr, once, fill=False)
    # What is of another length in every batch comes last, see direct.py.
    if has_removed:
        out["word_ptr"] = columns.word_ptr
    out["perturbed"] = columns.ids
    if has_removed:
        out["words"] = columns.words
    elif by_rule is not None:
        out["removed"], out["removed_ptr"] = by_rule.removed(columns.ids, columns.ptr)
    return out


def generic_sections(indices: Int64Array, records: list[bytes]) -> Sections:
    """Sections of a batch of generic records: the records themselves, decoded where they are used."""
    return {
        "indices": indices,
        "records": np.frombuffer(b"".join(records), dtype=np.uint8),
        "record_ptr": offsets(np.fromiter(map(len, records), dtype=np.int64, count=len(records))),
    }


def mean_labels(values: Float32Array, value_ptr: Int64Array) -> Float32Array:
    """Mean over each sample's measurements, NaN where it has no value, ``[batch, num_columns] float32``."""
    count = len(value_ptr) - 1
    owner = np.repeat(np.arange(count), np.diff(value_ptr))
    out = np.empty((count, values.shape[1]), dtype=np.float32)
    for column in range(values.shape[1]):
        known = ~np.isnan(values[:, column])
        total = np.bincount(owner[known], weights=values[known, column], minlength=count)
        with np.errstate(invalid="ignore", over="ignore"):
            out[:, column] = total / np.bincount(owner[known], minlength=count)
    return out


def _coordinates(
    out: Sections, kind: str, values: Float32Array, value_ptr: Int64Array, once: bool, *, fill: bool
) -> None:
    """Add the coordinate form of all samples' values, one sample after the other.

    Args:
        out: Where ``{kind}_values``, ``_types``, ``_samples`` (measurement numbers) and ``_ptr`` go.
        kind: ``phenotype`` or ``statistic``.
        values: ``[num_measurements, num_columns] float32``, NaN for no value.
        value_ptr: Offsets of the samples, ``[batch + 1] int64``.
        once: Whether every sample has one measurement.
        fill: Give a sample without any value one NaN of type 0 and measurement 0.
    """
    count, width = len(value_ptr) - 1, values.shape[1]
    known = values == values
    if once and width and known.all():
        found = values.ravel()
        types = np.tile(np.arange(width), count)
        samples = np.zeros(len(found), dtype=np.int64)
        ptr = np.arange(0, len(found) + 1, width)
    else:
        row, types = np.nonzero(known)
        found = values[row, types]
        owner = np.repeat(np.arange(count), np.diff(value_ptr))[row]
        samples = row - value_ptr[owner]
        per_sample = np.bincount(owner, minlength=count)
        ptr = offsets(per_sample)
        if fill and not per_sample.all():
            at = ptr[:-1][per_sample == 0]
            found = np.insert(found, at, np.float32(np.nan))
            types, samples = np.insert(types, at, 0), np.insert(samples, at, 0)
            ptr = offsets(np.maximum(per_sample, 1))
    out[f"{kind}_values"], out[f"{kind}_types"] = found, types
    out[f"{kind}_samples"], out[f"{kind}_ptr"] = samples, ptr


def require_sections(sections: Sections, required: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Insist on the sections a kind of batch has.

    Raises:
        FormatError: If one is missing or not expected.
    """
    wanted = set(required)
    missing, extra = wanted - set(sections), set(sections) - wanted - set(optional)
    if missing or extra or len(sections["indices"]) == 0:
        raise FormatError(
            f"a packed batch with the sections {sorted(sections)}: missing {sorted(missing)}, not expected {sorted(extra)}"
        )
