"""Splits that keep donors, batches or plates apart: all samples of a group go to one part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from torchcell_cache.core.checks import suggestion
from torchcell_cache.core.ragged import Int64Array, means
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.dividing import PARTS, checked_fractions, divide, named_parts, planned, strata_of
from torchcell_cache.data.splits import Splits
from torchcell_cache.data.view import column_of
from torchcell_cache.errors import SettingError

_MOST_LISTED = 20


def split_by_group(
    dataset: PreprocessedDataset,
    column: str,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    train: Iterable[Any] = (),
    val: Iterable[Any] = (),
    test: Iterable[Any] = (),
    seed: int = 0,
    stratify: str | None = None,
    bins: int = 10,
    progress: bool = True,
) -> Splits:
    """Groups of samples (of one donor, batch, plate, environment) dealt out whole.

    A group is a value of a stored column; samples without a value are one group more. As long as there are as many groups
    as parts, no part that has a share stays empty. The same perturbed set may well be in several groups, and so in several
    parts, which is said.

    Args:
        dataset: A store or a view of it.
        column: The column, one of ``dataset.columns``.
        fractions: Shares of the *groups* for training, validation and test; two shares leave out validation.
        train: Groups that go to training: names where the store knows names (``dataset.categories``), else numbers. A part
            whose groups are named here gets no others: the rest is dealt out among the other parts.
        val: Groups that go to validation, likewise.
        test: Groups that go to test, likewise.
        seed: Seed; the same split on every machine and numpy version.
        stratify: Column (a label) whose classes or quantiles are kept in proportion, groups by the mean over their samples.
        bins: Number of quantiles.
        progress: Console on stderr what is to know about the split, see :attr:`Splits.notes`.

    Raises:
        SettingError: If an argument is wrong, there is no such column or group, a group is named twice, or a sample has
            measurements of several groups.

    Example:
        >>> splits = tc.split_by_group(ds, "perturbed_count", test=[3], progress=False)
        >>> ds.columns["perturbed_count"][splits.test].tolist()
        [3, 3, 3]
    """
    how, values = planned(dataset, "split_by_group", fractions, seed, stratify, bins)
    groups = _Groups(dataset, column)
    named = {name: groups.numbers(name, given) for name, given in zip(PARTS, (train, val, test), strict=True)}
    how |= {"column": column, **{name: list(map(str, given)) for name, given in named.items() if given}}
    if named["val"] and len(how["fractions"]) == 2:
        raise SettingError(
            "val= names groups, and two fractions leave out validation", fix="fractions=(0.8, 0.1, 0.1)"
        )
    stratum = strata_of(means(values, groups.of, len(groups.values)), how["bins"])
    part = _dealt(stratum, named, how)
    return Splits(dataset, named_parts(part[groups.of], how), {}, how).said(progress)


class _Groups:
    """The groups that a column makes: their ``values``, ascending, and ``of`` each sample its group, ``[n] int64``."""

    def __init__(self, dataset: Any, column: str) -> None:
        if not isinstance(column, str):
            raise SettingError(f"column={column!r:.80}: expected the name of one column")
        self.column = column
        values = column_of(dataset, column, "column")
        if values.ndim != 1:
            raise SettingError(
                f"column {column!r} has {list(values.shape[1:])} values per sample, groups need one"
            )
        _refuse_several(dataset, column)
        self.values, of = np.unique(values, return_inverse=True)
        self.of: Int64Array = of.reshape(-1).astype(np.int64)
        self._names: list[str] | None = dataset.categories.get(column)

    def numbers(self, part: str, given: Iterable[Any]) -> dict[Any, int]:
        """Number of each named group, by what it was called."""
        given = given.tolist() if hasattr(given, "tolist") else given
        wanted = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
        return {label: self._number(part, label) for label in wanted}

    def _number(self, part: str, label: Any) -> int:
        value: Any = None
        if self._names is not None:
            value = self._names.index(label) if label in self._names else None
        else:
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                # In the column's own precision: 30.1 finds the float32 that stands for it.
                value = np.asarray(float(label), dtype=np.result_type(self.values, np.float32))
        if value is not None:
            found = np.flatnonzero((self.values == value) | ((value != value) & (self.values != self.values)))
            if len(found):
                return int(found[0])
        shown = self.values[:_MOST_LISTED].tolist()  # what groups there are, not all of thousands
        listed = [f"{k:g}" for k in shown]
        if self._names is not None:
            listed = [self._names[int(k)] for k in shown if 0 <= k < len(self._names)]
        raise SettingError(
            f"{part}={label!r} is no {self.column} of these samples{suggestion(str(label), listed)}"
        )


def _refuse_several(dataset: Any, column: str) -> None:
    """A sample measured in several groups has their mean as its value, which is none of them."""
    table = dataset.generation.table
    names = () if table is None else (*table.phenotypes, *table.statistics)
    if table is None or column not in names or bool((np.diff(table.value_ptr) <= 1).all()):
        return
    values = table.values[:, names.index(column)]
    owner = np.repeat(np.arange(len(table)), np.diff(table.value_ptr))
    pairs = np.unique(np.stack([owner, values], axis=1)[~np.isnan(values)], axis=0)
    rows = dataset.positions()
    several = np.isin(rows, pairs[1:, 0][np.diff(pairs[:, 0]) == 0])
    if several.any():
        at = int(rows[int(np.argmax(several))])
        own = pairs[pairs[:, 0] == at, 1]
        raise SettingError(
            f"sample {at} has measurements of several {column}: {own[0]:g} to {own[-1]:g}",
            fix="a table with one row per measurement (replicates='keep')",
        )


def _dealt(stratum: Int64Array, named: dict[str, dict[Any, int]], how: dict[str, Any]) -> Int64Array:
    """Part of each group, ``[num_groups] int64``; none that has a share is empty as far as there are groups."""
    part = np.full(len(stratum), -1, dtype=np.int64)
    for k, name in enumerate(PARTS):
        for label, number in named[name].items():
            if part[number] >= 0:
                both = f"{PARTS[part[number]]} and for {name}"
                raise SettingError(f"{how['column']} {label!r} is named for {both}")
            part[number] = k
    rest = np.flatnonzero(part < 0)
    given = np.array(checked_fractions(how["fractions"])) * [not named[name] for name in PARTS]
    if not len(rest):
        return part
    if not given.any():
        raise SettingError(
            f"{len(rest)} of {len(part)} groups are named for no part, and no other part has a share",
            fix="name them too, or leave one part's groups out",
        )
    dealt = divide(stratum[rest], given / given.sum(), how["seed"])
    for k in np.flatnonzero(given > 0).tolist():
        sizes = np.bincount(dealt, minlength=len(given))
        if sizes[k] == 0 and sizes.max() > 1:  # the largest gives its last one away
            dealt[np.flatnonzero(dealt == sizes.argmax())[-1]] = k
    part[rest] = dealt
    return part
