"""Splits without leaks: by perturbed node, and at random.

A model that has seen ``A`` and ``B`` deleted does better on ``A, B`` than on nodes it never saw. A random split of samples hides
that: nearly every test node is a training node. Here nodes are divided first, and test samples are told apart by how many of
their nodes no training sample perturbs (the "simulation split" of GEARS, Roohani et al. 2023, for any number of nodes). What is
dealt out are perturbed *sets*: replicates, reciprocal crosses and the cells of one condition are never torn apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

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
    strata,
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
    parts, how, values = planned(dataset, "split_random", fractions, seed, stratify, bins)
    rows, of = np.unique(first_of(dataset.positions()), return_inverse=True)
    stratum = strata(None if values is None else values[rows], len(rows), how["bins"])
    part = divide(stratum, parts, how["seed"], _SAMPLES)[of]
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
    parts, how, values = planned(dataset, "split_by_perturbation", fractions, seed, stratify, bins)
    seen_parts = (
        parts
        if seen_fractions is None
        else checked_fractions(seen_fractions, len(fractions), "seen_fractions")
    )
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
    sets = _Sets(ids[at], set_ptr, None if values is None else means(values, set_of, len(rows)), how["bins"])
    part = sets.dealt(parts, seen_parts, how["seed"], controls == "train")[set_of]

    named = named_parts(part, how)
    named["mixed"] = np.flatnonzero(part == 3)
    return Splits(dataset, named, _groups(named, ids, ptr, names), how).said(progress)


class _Sets:
    """The different perturbed sets of a dataset, each once, and the values they are stratified by, NaN for none."""

    def __init__(self, ids: Int64Array, ptr: Int64Array, values: Float64Array | None, bins: int) -> None:
        self.ids, self.values, self.bins, self.count = ids, values, bins, len(ptr) - 1
        self.owner = np.repeat(np.arange(self.count), np.diff(ptr))
        self.empty = np.diff(ptr) == 0

    def dealt(
        self, parts: Sequence[float], seen_parts: Sequence[float], seed: int, controls_train: bool
    ) -> Int64Array:
        """Part of each set, ``[num_sets] int64``: train, val, test, mixed."""
        node_part = self._divided_nodes(parts, seed)[self.ids]
        val, test = (np.bincount(self.owner[node_part == k], minlength=self.count) > 0 for k in (1, 2))
        part = val + 2 * test.astype(np.int64)
        dealt = part == 0
        if controls_train:
            dealt &= ~self.empty
        part[dealt] = divide(strata(self.values, self.count, self.bins)[dealt], seen_parts, seed, _SAMPLES)
        part[self._shared_with_validation(part)] = 3
        return part

    def _divided_nodes(self, parts: Sequence[float], seed: int) -> Int64Array:
        """Part of each node, ``[largest id + 1] int64``; only nodes that some set perturbs are dealt out."""
        nodes = np.unique(self.ids)
        values = None
        if self.values is not None and len(nodes):
            values = means(self.values[self.owner], self.ids, int(nodes[-1]) + 1)[nodes]
        out = np.zeros(int(self.ids.max(initial=-1)) + 1, dtype=np.int64)
        out[nodes] = divide(strata(values, len(nodes), self.bins), parts, seed, _NODES)
        return out

    def _shared_with_validation(self, part: Int64Array) -> npt.NDArray[np.bool_]:
        """Test sets with a node that validation sets perturb and training sets do not, ``[num_sets] bool``."""
        seen, validated = (_marked(self.ids, part[self.owner] == k) for k in (0, 1))
        shared = np.bincount(self.owner[(validated & ~seen)[self.ids]], minlength=self.count) > 0
        found: npt.NDArray[np.bool_] = shared & (part == 2)
        return found


def _marked(ids: Int64Array, which: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which nodes are among the chosen of ``ids``, ``[largest id + 1] bool``."""
    out = np.zeros(int(ids.max(initial=-1)) + 1, dtype=np.bool_)
    out[ids[which]] = True
    return out


def unseen_counts(ids: Int64Array, ptr: Int64Array, train: Int64Array) -> Int64Array:
    """How many nodes of each sample no training sample perturbs, ``[num_samples] int64``."""
    count = len(ptr) - 1
    owner = np.repeat(np.arange(count), np.diff(ptr))
    training = np.zeros(count, dtype=bool)
    training[train] = True
    seen = _marked(ids, training[owner])
    return np.bincount(owner[~seen[ids]], minlength=count).astype(np.int64)


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
