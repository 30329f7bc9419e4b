"""Splits without leaks: by perturbed node, and at random.

A model that has seen ``A`` and ``B`` deleted does better on ``A, B`` than on nodes it never saw. A random split of samples hides
that: nearly every test node is a training node. Here nodes are divided first, and test samples are told apart by how many of
their nodes no training sample perturbs (the "simulation split" of GEARS, Roohani et al. 2023, for any number of nodes). What is
dealt out are perturbed *sets*: replicates, reciprocal crosses and the cells of one condition are never torn apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import Controls, GroupNames
from torchcell_cache.core.ragged import Int64Array, means, ragged_rows
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.dividing import (
    checked_fractions,
    divide,
    first_of,
    first_of_set,
    named_parts,
    planned,
    strata_of,
)
from torchcell_cache.data.samplers.weighted import Float64Array
from torchcell_cache.data.select import perturbed_of
from torchcell_cache.data.splits import Splits

NAMES = get_args(GroupNames)
CONTROLS = get_args(Controls)
_SAMPLES, _NODES = 0, 1


def split_random(
    dataset: PreprocessedDataset,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    seed: int = 0,
    stratify: str | None = None,
    bins: int = 10,
    progress: bool = True,
) -> Splits:
    """Samples dealt out at random: replicates of one perturbed set end up in several parts, which is said.

    A sample that a view repeats goes to one part.

    Args:
        dataset: A store or a view of it.
        fractions: Shares of training, validation and test samples; two shares leave out validation.
        seed: Seed; the same split on every machine and numpy version.
        stratify: Column whose classes or quantiles every part has in proportion.
        bins: Number of quantiles.
        progress: Console on stderr what is to know about the split, see :attr:`Splits.notes`.

    Raises:
        SettingError: If an argument is wrong.

    Example:
        >>> splits = tc.split_random(ds, (0.5, 0.25, 0.25), stratify="fitness", progress=False)
        >>> {name: len(rows) for name, rows in splits.parts.items()}
        {'train': 6, 'val': 3, 'test': 3}
    """
    how, values = planned(dataset, "split_random", fractions, seed, stratify, bins)
    rows, of = np.unique(first_of(dataset.positions()), return_inverse=True)
    stratum = strata_of(values[rows], how["bins"])
    part = divide(stratum, checked_fractions(how["fractions"]), how["seed"], _SAMPLES)[of]
    return Splits(dataset, named_parts(part, how), {}, how).said(progress)


def split_by_perturbation(
    dataset: PreprocessedDataset,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    seen_fractions: Sequence[float] | None = None,
    seed: int = 0,
    stratify: str | None = None,
    bins: int = 10,
    names: GroupNames = "unseen",
    controls: Controls = "random",
    progress: bool = True,
) -> Splits:
    """Nodes divided into training, validation and test nodes, and perturbed sets by the nodes in them.

    All samples that perturb the same set of nodes (replicates, reciprocal crosses, other environments, the cells of one
    condition) go to one part together:

    * A set all of whose nodes are training nodes goes to training, or by ``seen_fractions`` to validation or test
      (a combination that is new, of nodes that are not).
    * Any other set belongs to ``val`` if its held-out nodes are all validation nodes, to ``test`` if they are all test
      nodes, and to ``mixed`` if it has both: scoring those would test on nodes that chose the model.
    * A training node may happen to be in no training sample; a test sample that shares such a node with a validation sample
      is ``mixed`` too.

    So no two parts have a perturbed set in common, no training sample perturbs a held-out node, and a node that training
    never saw is in validation samples or in test samples, never in both. Samples that perturb nothing (controls) are
    exempt.
    Groups count what training really saw: ``test_unseen1`` has one node that no training sample perturbs, whatever set the
    node was put in.

    Args:
        dataset: A store or a view of it.
        fractions: Shares of the *nodes* for training, validation and test; two shares leave out validation. Of pairs, about
            the square of the first share end up in training, of triples the cube.
        seen_fractions: How sets of training nodes only are shared out; ``fractions`` if ``None``, ``(1, 0, 0)`` keeps
            them all for training.
        seed: Seed; the same split on every machine and numpy version.
        stratify: Column (a label) whose classes or quantiles are kept in proportion: sets by the mean over their samples,
            nodes by the mean over the sets they are in.
        bins: Number of quantiles.
        names: Names of the groups: ``unseen`` (``test_unseen0`` to ``test_unseen3`` and on) or ``gears``
            (``test_unseen_single``, ``test_combo_seen0`` to ``test_combo_seen2`` and on).
        controls: Where samples that perturb nothing go: ``random``, each for itself by ``seen_fractions``, or ``train``.
        progress: Console on stderr what is to know about the split (parts that came out empty), see :attr:`Splits.notes`.

    Raises:
        SettingError: If an argument is wrong, or the store knows no perturbed nodes.

    Example:
        >>> splits = tc.split_by_perturbation(ds, (0.8, 0.1, 0.1), stratify="fitness", progress=False)
        >>> loader = tc.CacheLoader(splits.view("train"), batch_size=32, shuffle=True)
    """
    how, values = planned(dataset, "split_by_perturbation", fractions, seed, stratify, bins)
    if seen_fractions is not None:
        checked_fractions(seen_fractions, len(fractions), "seen_fractions")
    how |= {
        "seen_fractions": None if seen_fractions is None else [float(share) for share in seen_fractions],
        "names": choice("names", names, NAMES),
        "controls": choice("controls", controls, CONTROLS),
    }
    ids, ptr = perturbed_of(dataset)
    # In the order of their first samples: without replicates, set k is sample k.
    first = np.minimum(first_of_set(ids, ptr), first_of(dataset.positions()))
    rows, set_of = np.unique(first, return_inverse=True)
    at, set_ptr = ragged_rows(ptr, rows)
    part = _dealt(ids[at], set_ptr, means(values, set_of, len(rows)), how)[set_of]
    named = named_parts(part, how)
    named["mixed"] = np.flatnonzero(part == 3)
    return Splits(dataset, named, _groups(named, ids, ptr, names), how).said(progress)


def _dealt(ids: Int64Array, ptr: Int64Array, values: Float64Array, how: dict[str, Any]) -> Int64Array:
    """Part of each different perturbed set, ``[num_sets] int64``: train, val, test, mixed."""
    parts = checked_fractions(how["fractions"])
    seen_parts = checked_fractions(how["seen_fractions"] or how["fractions"])
    count, nodes = len(ptr) - 1, np.unique(ids)
    owner = np.repeat(np.arange(count), np.diff(ptr))
    node_part = np.zeros(int(ids.max(initial=-1)) + 1, dtype=np.int64)
    stratum = strata_of(means(values[owner], ids, len(node_part))[nodes], how["bins"])
    node_part[nodes] = divide(stratum, parts, how["seed"], _NODES)
    val, test = (np.bincount(owner[node_part[ids] == k], minlength=count) > 0 for k in (1, 2))
    part = val + 2 * test.astype(np.int64)
    dealt = part == 0
    if how["controls"] == "train":
        dealt &= np.diff(ptr) > 0
    part[dealt] = divide(strata_of(values, how["bins"])[dealt], seen_parts, how["seed"], _SAMPLES)
    # Test sets with a node that validation sets perturb and training sets do not.
    seen, validated = (_marked(ids, part[owner] == k) for k in (0, 1))
    shared = np.bincount(owner[(validated & ~seen)[ids]], minlength=count) > 0
    part[shared & (part == 2)] = 3
    return part


def _marked(ids: Int64Array, which: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which nodes are among the chosen of ``ids``, ``[largest id + 1] bool``."""
    out = np.zeros(int(ids.max(initial=-1)) + 1, dtype=np.bool_)
    out[ids[which]] = True
    return out


def gears_name(num_perturbed: int, num_unseen: int) -> str:
    """GEARS' name of a group: ``unseen_single``, ``combo_seen0`` to ``combo_seen2``; continued for more nodes.

    Samples that perturb nothing are ``control``, single nodes that training saw (GEARS has none) ``seen_single``.
    """
    if num_perturbed == 0:
        return "control"
    if num_perturbed == 1:
        return "unseen_single" if num_unseen else "seen_single"
    return f"combo_seen{num_perturbed - num_unseen}"


def _groups(
    named: dict[str, Int64Array], ids: Int64Array, ptr: Int64Array, names: str
) -> dict[str, Int64Array]:
    """Samples of validation and test by how many of their nodes no training sample perturbs."""
    sizes, count = np.diff(ptr), len(ptr) - 1
    owner = np.repeat(np.arange(count), sizes)
    seen = _marked(ids, np.isin(owner, named["train"]))
    unseen = np.bincount(owner[~seen[ids]], minlength=count)
    out: dict[str, Int64Array] = {}
    for part in ("val", "test"):
        rows = named.get(part, np.zeros(0, dtype=np.int64))
        pairs, which = np.unique(np.stack([sizes[rows], unseen[rows]], axis=1), axis=0, return_inverse=True)
        called = [gears_name(*pair) if names == "gears" else f"unseen{pair[1]}" for pair in pairs.tolist()]
        for name in sorted(set(called)):
            out[f"{part}_{name}"] = rows[
                np.isin(which.reshape(-1), [k for k, n in enumerate(called) if n == name])
            ]
    return out
