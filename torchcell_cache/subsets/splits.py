"""Splits without leaks: by perturbed node, and at random.

A model that has seen ``A`` and ``B`` deleted does better on ``A, B`` than on nodes it never saw. A random split of samples hides
that: nearly every test node is a training node. Here nodes are divided first, and test samples are told apart by how many of
their nodes no training sample perturbs (the "simulation split" of GEARS, Roohani et al. 2023, for any number of nodes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.errors import SettingError
from torchcell_cache.processors.base import choice
from torchcell_cache.record import Int64Array
from torchcell_cache.subsets.select import perturbed_of
from torchcell_cache.subsets.split_sets import Splits
from torchcell_cache.subsets.strata import column, divide, strata_of

NAMES = ("unseen", "gears")
_SAMPLES, _NODES = 0, 1


def split_random(
    dataset: Any,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    seed: int = 0,
    stratify: str | None = None,
    bins: int = 10,
) -> Splits:
    """Samples dealt out at random.

    Args:
        dataset: A store or a view of it.
        fractions: Shares of training, validation and test samples; two shares leave out validation.
        seed: Seed; the same split on every machine and numpy version.
        stratify: Column whose classes or quantiles every part has in proportion.
        bins: Number of quantiles.

    Raises:
        SettingError: If an argument is wrong.
    """
    parts = _checked(fractions)
    strata = _sample_strata(dataset, stratify, bins)
    part = divide(strata, parts, seed, _SAMPLES)
    made_by = _made_by("split_random", fractions, seed, stratify, bins)
    return Splits(dataset, _named(part, fractions), {}, made_by)


def split_by_perturbation(
    dataset: Any,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    seen_fractions: Sequence[float] | None = None,
    seed: int = 0,
    stratify: str | None = None,
    bins: int = 10,
    names: str = "unseen",
) -> Splits:
    """Nodes divided into training, validation and test nodes, and samples by the nodes they perturb.

    * A sample all of whose nodes are training nodes is a training sample, or by ``seen_fractions`` one of validation or test
      (a combination that is new, of nodes that are not).
    * Any other sample belongs to ``val`` if its held-out nodes are all validation nodes, to ``test`` if they are all test
      nodes, and to ``mixed`` if it has both: scoring those would test on nodes that chose the model.

    * A training node may happen to be in no training sample; a test sample that shares such a node with a validation sample
      is ``mixed`` too.

    So no training sample perturbs a held-out node, and a node that training never saw is in validation samples or in test
    samples, never in both.
    Groups count what training really saw: ``test_unseen1`` has one node that no training sample perturbs, whatever set the
    node was put in.

    Args:
        dataset: A store or a view of it.
        fractions: Shares of the *nodes* for training, validation and test; two shares leave out validation. Of pairs, about
            the square of the first share end up in training, of triples the cube.
        seen_fractions: How samples of training nodes only are shared out; ``fractions`` if ``None``, ``(1, 0, 0)`` keeps
            them all for training.
        seed: Seed; the same split on every machine and numpy version.
        stratify: Column (a label) whose classes or quantiles are kept in proportion: samples by their value, nodes by the
            mean over the samples that perturb them.
        bins: Number of quantiles.
        names: Names of the groups: ``unseen`` (``test_unseen0`` to ``test_unseen3`` and on) or ``gears``
            (``test_unseen_single``, ``test_combo_seen0`` to ``test_combo_seen2`` and on).

    Raises:
        SettingError: If an argument is wrong, or the store knows no perturbed nodes.
    """
    parts = _checked(fractions)
    seen_parts = parts if seen_fractions is None else _checked(seen_fractions, len(fractions))
    choice("names", names, NAMES)
    ids, ptr = perturbed_of(dataset)
    owner = np.repeat(np.arange(len(dataset)), np.diff(ptr))
    node_part = _divide_nodes(dataset, ids, owner, parts, seed, stratify, bins)

    held = np.zeros((3, len(dataset)), dtype=np.int64)
    for which in (1, 2):
        held[which] = np.bincount(owner[node_part[ids] == which], minlength=len(dataset))
    part = np.where(held[1] > 0, np.where(held[2] > 0, 3, 1), np.where(held[2] > 0, 2, 0))
    known = np.flatnonzero(part == 0)
    strata = _sample_strata(dataset, stratify, bins)[known]
    part[known] = divide(strata, seen_parts, seed, _SAMPLES)
    part[_shared_with_validation(part, ids, owner)] = 3

    made_by = _made_by("split_by_perturbation", fractions, seed, stratify, bins)
    made_by |= {"seen_fractions": None if seen_fractions is None else list(map(float, seen_fractions))}
    named = _named(part, fractions)
    named["mixed"] = np.flatnonzero(part == 3)
    groups = _groups(named, ids, ptr, owner, names)
    return Splits(dataset, named, groups, {**made_by, "names": names})


def unseen_counts(ids: Int64Array, ptr: Int64Array, train: Int64Array) -> Int64Array:
    """How many nodes of each sample no training sample perturbs, ``[num_samples] int64``.

    Args:
        ids: Perturbed ids of all samples.
        ptr: Offsets into ``ids``, ``[num_samples + 1]``.
        train: Training samples.
    """
    count = len(ptr) - 1
    owner = np.repeat(np.arange(count), np.diff(ptr))
    training = np.zeros(count, dtype=bool)
    training[train] = True
    seen = np.zeros(int(ids.max(initial=-1)) + 1, dtype=bool)
    seen[ids[training[owner]]] = True
    return np.bincount(owner[~seen[ids]], minlength=count).astype(np.int64)


def _shared_with_validation(part: Int64Array, ids: Int64Array, owner: Int64Array) -> npt.NDArray[np.bool_]:
    """Test samples that perturb a node which validation samples perturb and training samples do not, ``[n] bool``."""
    seen, validated = (np.zeros(int(ids.max(initial=-1)) + 1, dtype=bool) for _ in range(2))
    seen[ids[part[owner] == 0]] = True
    validated[ids[part[owner] == 1]] = True
    shared = np.bincount(owner[(validated & ~seen)[ids]], minlength=len(part)) > 0
    found: npt.NDArray[np.bool_] = shared & (part == 2)
    return found


def gears_name(num_perturbed: int, num_unseen: int) -> str:
    """GEARS' name of a group: ``unseen_single``, ``combo_seen0`` to ``combo_seen2``; continued for more nodes.

    Samples that perturb nothing are ``control``, single nodes that training saw (GEARS has none) ``seen_single``.
    """
    if num_perturbed == 0:
        return "control"
    if num_perturbed == 1:
        return "unseen_single" if num_unseen else "seen_single"
    return f"combo_seen{num_perturbed - num_unseen}"


def _divide_nodes(
    dataset: Any,
    ids: Int64Array,
    owner: Int64Array,
    parts: Sequence[float],
    seed: int,
    stratify: str | None,
    bins: int,
) -> Int64Array:
    """Part of each node, ``[largest id + 1] int64``; only nodes that some sample perturbs are dealt out."""
    nodes = np.unique(ids)
    strata = np.zeros(len(nodes), dtype=np.int64)
    if stratify is not None and len(nodes):
        values = column(dataset, stratify, "stratify").astype(np.float64)[owner]
        known = ~np.isnan(values)
        size = int(nodes[-1]) + 1
        total = np.bincount(ids[known], weights=values[known], minlength=size)
        with np.errstate(invalid="ignore"):
            strata = strata_of((total / np.bincount(ids[known], minlength=size))[nodes], bins)
    out = np.zeros(int(ids.max(initial=-1)) + 1, dtype=np.int64)
    out[nodes] = divide(strata, parts, seed, _NODES)
    return out


def _groups(
    named: dict[str, Int64Array], ids: Int64Array, ptr: Int64Array, owner: Int64Array, names: str
) -> dict[str, Int64Array]:
    unseen, sizes = unseen_counts(ids, ptr, named["train"]), np.diff(ptr)
    most = int(sizes.max(initial=0))
    code = sizes * (most + 1) + unseen if names == "gears" else unseen
    out: dict[str, Int64Array] = {}
    for part in ("val", "test"):
        rows = named.get(part, np.zeros(0, dtype=np.int64))
        merged: dict[str, list[Int64Array]] = {}
        for value in np.unique(code[rows]).tolist():
            name = gears_name(*divmod(value, most + 1)) if names == "gears" else f"unseen{value}"
            merged.setdefault(name, []).append(rows[code[rows] == value])
        out |= {f"{part}_{name}": np.sort(np.concatenate(merged[name])) for name in sorted(merged)}
    return out


def _sample_strata(dataset: Any, stratify: str | None, bins: int) -> Int64Array:
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise SettingError(f"bins={bins!r}: expected a whole number from 1 on")
    if stratify is None:
        return np.zeros(len(dataset), dtype=np.int64)
    return strata_of(column(dataset, stratify, "stratify"), bins)


def _checked(fractions: Sequence[float], length: int | None = None) -> tuple[float, float, float]:
    """Three shares that sum to 1; of two, the second is that of the test part."""
    try:
        values = [float(share) for share in fractions]
    except (TypeError, ValueError):
        raise SettingError(f"fractions={fractions!r}: expected numbers") from None
    wanted = (2, 3) if length is None else (length,)
    good = (
        len(values) in wanted
        and all(0 <= v <= 1 for v in values)
        and math.isclose(sum(values), 1, abs_tol=1e-6)
    )
    if not good:
        raise SettingError(
            f"fractions={fractions!r}: expected {' or '.join(map(str, wanted))} shares from 0 to 1 that sum to 1",
            fix="fractions=(0.8, 0.1, 0.1)",
        )
    return (values[0], 0.0, values[1]) if len(values) == 2 else (values[0], values[1], values[2])


def _named(part: npt.NDArray[Any], fractions: Sequence[float]) -> dict[str, Int64Array]:
    names = {"train": 0, "val": 1, "test": 2}
    if len(fractions) == 2:
        del names["val"]
    return {name: np.flatnonzero(part == which) for name, which in names.items()}


def _made_by(
    function: str, fractions: Sequence[float], seed: int, stratify: str | None, bins: int
) -> dict[str, Any]:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise SettingError(f"seed={seed!r}: expected a whole number")
    shares = list(map(float, fractions))
    return {"function": function, "fractions": shares, "seed": int(seed), "stratify": stratify, "bins": bins}
