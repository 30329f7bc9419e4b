"""Genetic interaction scores of double and triple knock-outs, derived from their fitness.

The definitions are those of the trigenic screens (Kuzmin et al. 2018, https://doi.org/10.1126/science.aao1729), with
fitness as a fraction of the wild type:

- digenic, of a double: ``epsilon_ab = f_ab - f_a f_b``;
- trigenic, of a triple: ``tau_abc = f_abc - f_a f_b f_c - epsilon_ab f_c - epsilon_ac f_b - epsilon_bc f_a``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Float32Array, Int64Array
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.measurements import Measurements
from torchcell_cache.sources.perturbed_ids import RaggedIds, ragged_ids

Float64Array = npt.NDArray[np.float64]
SCORES = ("epsilon", "tau")


def interaction_scores(
    ids: Any, ptr: Any, fitness: Any, rows: Int64Array | None = None
) -> tuple[Float32Array, Float32Array]:
    """Digenic and trigenic scores of a table of knock-outs.

    Args:
        ids: Deleted genes of all samples, ``[num_ids] int64``; sample ``k`` is ``ids[ptr[k]:ptr[k + 1]]``.
        ptr: ``[num_samples + 1] int64``.
        fitness: As a fraction of the wild type, ``[num_samples]``; NaN is "not measured".
        rows: What errors call the samples, ``[num_samples]``; their positions by default.

    Returns:
        ``epsilon`` and ``tau``, ``[num_samples] float32`` each, computed in double precision. NaN for samples that
        are no double (no triple), and where a knock-out that the formula needs is not in the table.

    Raises:
        SettingError: If there is not one fitness per knock-out.
        SourceContractError: If one knock-out stands in the table twice, so that its fitness would be ambiguous; if ids and
            offsets do not fit each other, or a value is no number.
    """
    given = ragged_ids(ids, ptr)
    rows = np.arange(len(given)) if rows is None else rows
    fitness = Measurements.from_columns({"fitness": fitness}, len(given)).values[:, 0]
    if len(fitness) != len(given):
        raise SettingError(f"{len(fitness)} fitness values for {len(given)} knock-outs, expected one each")
    known = _KnockOuts(given, rows)
    (_, double, triple), (_, pairs, triples) = known.rows, known.genes
    epsilon, tau = np.full((2, len(fitness)), np.nan)
    with np.errstate(invalid="ignore"):  # an infinite fitness makes scores that are infinite or none
        f_a, f_b = (known.of(fitness, gene) for gene in pairs.T)
        epsilon[double] = fitness[double] - f_a * f_b
        a, b, c = triples.T
        f_a, f_b, f_c = (known.of(fitness, gene) for gene in (a, b, c))
        pairwise = (
            known.of(epsilon, a, b) * f_c + known.of(epsilon, a, c) * f_b + known.of(epsilon, b, c) * f_a
        )
        tau[triple] = fitness[triple] - f_a * f_b * f_c - pairwise
    for name, scores in zip(SCORES, (epsilon, tau), strict=True):
        large = np.isfinite(scores) & (np.abs(scores) > np.finfo(np.float32).max)
        if large.any():
            at = int(np.argmax(large))
            raise SourceContractError(
                f"row {rows[at]}: '{name}' is {scores[at]}, beyond what float32 holds (3.4e38)",
                fix="give the fitness as a fraction of the wild type",
            )
    return epsilon.astype(np.float32), tau.astype(np.float32)


def with_scores(
    given: RaggedIds,
    measured: Measurements,
    labels: tuple[str, ...],
    interactions: bool | str,
    rows: Int64Array,
) -> tuple[Float64Array, tuple[str, ...]]:
    """Values with the labels ``epsilon`` and ``tau`` after the other labels.

    Args:
        given: Deleted nodes of all samples.
        measured: Measurements of all samples, labels first.
        labels: Names of the labels.
        interactions: Name of the label that is the fitness; ``True``: ``fitness``, or the only label.
        rows: What errors call the samples.

    Raises:
        SettingError: If there is no such label, one of that name is there already, or a sample has several measurements.
        SourceContractError: If one knock-out stands in the table twice.
    """
    label, said, fix = interactions, f"interactions={interactions!r}", "interactions=False"
    if label is True:
        label = labels[0] if len(labels) == 1 else "fitness"
    if not isinstance(label, str):
        raise SettingError(f"{said} is neither True nor the name of a label")
    if label not in labels:
        fix = "interactions='<label>', the fitness as a fraction of the wild type"
        raise SettingError(f"{said}: no label {label!r}; there are {list(labels)}", fix=fix)
    if taken := sorted(set(labels).intersection(SCORES)):
        raise SettingError(f"{said}: {taken} are labels already", fix=fix)
    if bool((np.diff(measured.ptr) != 1).any()):
        raise SettingError(
            "interactions need one fitness per knock-out, and some samples do not have exactly one measurement",
            fix='replicates="mean"',
        )
    values, split = measured.values, len(labels)
    scores = interaction_scores(given.ids, given.ptr, values[:, labels.index(label)], rows)
    added = np.stack(scores, axis=1).astype(np.float64)
    return np.concatenate([values[:, :split], added, values[:, split:]], axis=1), (*labels, *SCORES)


class _KnockOuts:
    """The singles, doubles and triples of a table, to be found by their genes."""

    def __init__(self, given: RaggedIds, called: Int64Array) -> None:
        names, ids = np.unique(
            given.ids, return_inverse=True
        )  # small numbers: three of them must fit into one
        self.width = len(names) + 1
        sizes = np.diff(given.ptr)
        self.rows = [np.flatnonzero(sizes == size) for size in (1, 2, 3)]
        places = (given.ptr[rows][:, None] + np.arange(k + 1) for k, rows in enumerate(self.rows))
        self.genes = [np.sort(ids[place], axis=1) for place in places]
        keys = np.concatenate([self._keys(*genes.T) for genes in self.genes])
        order = np.argsort(keys, kind="stable")
        self.keys, self.at = keys[order], np.concatenate(self.rows)[order]
        if len(repeated := np.flatnonzero(np.diff(self.keys) == 0)):
            first, second = called[self.at[repeated[0] : repeated[0] + 2]]
            raise SourceContractError(
                f"rows {first} and {second} are the same knock-out, so its fitness is ambiguous",
                fix='keep one of them, or pass replicates="mean"',
            )

    def of(self, values: Float64Array, *genes: Int64Array) -> Float64Array:
        """The value of each knock-out named by its genes, ascending; NaN where it is not in the table."""
        wanted = self._keys(*genes)
        if not len(self.keys):
            return np.full(len(wanted), np.nan)
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, values[self.at[at]], np.nan)

    def _keys(self, *genes: Int64Array) -> Int64Array:
        """One number per row of genes."""
        out = np.zeros(len(genes[0]), dtype=np.int64)
        for column in genes:
            out = out * self.width + column + 1
        return out
