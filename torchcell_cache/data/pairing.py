"""What a user says about pairs, checked and as positions of the store: controls, strata, tables, values of categories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.batch.pairs import PairedBatch
from torchcell_cache.core.checks import names_or_none, suggestion
from torchcell_cache.core.indexing import as_positions
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.view import column_of
from torchcell_cache.errors import SettingError
from torchcell_cache.store.expression import Expression

_OWN = ("x", "y", "batch", "ptr", "num_nodes", "samples", "fields", "num_controls", "is_padding")
_SHOWN = 5


def controls_of(dataset: Any, control: Any) -> Int64Array:
    """Store positions of the controls among the samples of a dataset."""
    if isinstance(control, str):
        columns = {"index": dataset.positions(), **dataset.columns}
        control = Expression(control).mask(columns, len(dataset), dataset.categories)
    try:
        found: Int64Array = dataset.positions(as_positions(control, len(dataset)))
    except IndexError as error:
        raise SettingError(
            f"control=: {error}", fix="an expression, a mask or indices of the dataset"
        ) from None
    if not len(found):
        raise SettingError(
            f"control= holds for none of {len(dataset):,} cells",
            fix="PairedCells(all_cells, control=...)[indices] if this is a view: views keep the controls",
        )
    return found


def strata_of(
    dataset: Any, is_control: npt.NDArray[np.bool_], within: Any, drawn: bool
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Controls by stratum, where each stratum starts, and the stratum of every sample."""
    names = [within] if isinstance(within, str) else names_or_none("within", within) or []
    if not names:
        raise SettingError("within= names no column", fix='within="donor", or leave it out')
    whole, here = PreprocessedDataset._of(dataset.generation), dataset.positions()
    columns = {name: column_of(whole, name, "within", numbers=True) for name in names}
    for name, found in columns.items():
        lost = int((found[here] != found[here]).sum())
        if lost and drawn:
            raise SettingError(
                f"within={name!r}: {lost:,} cells have no {name}, so there is no control of theirs",
                fix=f'leave them out: select(ds, "isfinite({name})")',
            )
    _, stratum = np.unique(np.stack([*columns.values()], axis=1), axis=0, return_inverse=True)
    stratum = np.asarray(stratum, dtype=np.int64).reshape(-1)
    counts = np.bincount(stratum[is_control], minlength=int(stratum.max(initial=0)) + 1)
    bare = here[counts[stratum[here]] == 0]
    if len(bare) and drawn:
        first = bare[np.unique(stratum[bare], return_index=True)[1]]
        shown = ", ".join(
            " and ".join(_shown(whole, name, found[at]) for name, found in columns.items())
            for at in first[:_SHOWN].tolist()
        )
        more = f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
        raise SettingError(
            f"within={within!r}: there is no control for {len(bare):,} cells, those of {shown}{more}",
            fix="leave these cells out, or a coarser column",
        )
    pool = np.flatnonzero(is_control)
    return pool[np.argsort(stratum[pool], kind="stable")], offsets(counts), stratum


def _shown(dataset: Any, name: str, value: Any) -> str:
    """``donor 'D1'`` for a code, ``batch 3`` for a number."""
    known = dataset.categories.get(name)
    return f"{name} {value:g}" if known is None else f"{name} {known[int(value)]!r}"


def read_table(table: Any) -> npt.NDArray[Any]:
    """A table of controls, or the file of one, as an array."""
    if not isinstance(table, str | os.PathLike):
        return np.asarray(table.detach().cpu() if hasattr(table, "detach") else table)
    path = local_path(table, "table")
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        fix = "np.save(path, paired_cells.table())"
        raise SettingError(f"table {path} cannot be read: {error}", path=path, fix=fix) from None
    return found


def stored_table(
    dataset: Any, table: npt.NDArray[Any], count: int, is_control: npt.NDArray[np.bool_], known: bool
) -> npt.NDArray[Any]:
    """A table of controls by store position, checked."""
    fix = f"whole numbers [{len(dataset)}, {count}]: the controls of each cell, as indices into the dataset"
    found = table[:, None] if table.ndim == 1 and count == 1 else table
    if found.shape != (len(dataset), count) or found.dtype.kind not in "iu":
        raise SettingError(f"table= is {found.dtype} {list(found.shape)}", fix=fix)
    if len(found) and not 0 <= int(found.min()) <= int(found.max()) < len(dataset):
        raise SettingError(f"table= names cells {found.min()}..{found.max()} of {len(dataset):,}", fix=fix)
    here = dataset.positions()
    found = here[found]
    if known and not bool(is_control[found].all()):
        row, k = np.argwhere(~is_control[found])[0].tolist()
        raise SettingError(
            f"table= gives cell {row} the control {int(found[row, k])}, which control= does not hold for",
            fix="leave out control=; the table alone says what is a control",
        )
    if len(np.unique(here)) < len(here):
        raise SettingError(
            "the dataset has a cell twice, and a table one row per cell", fix="pair the store, then view"
        )
    out = np.zeros((len(dataset.generation), count), dtype=np.int32)
    out[here] = found
    return out


def by_category(
    dataset: Any, given: Mapping[str, Any], category: str | None
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, list[Any]]]:
    """Per field the category of each sample of the store and the value of each category."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise SettingError(
            f"per_category={given!r:.200}: expected a mapping", fix='{"de_idx": {"A+ctrl": [3, 7]}}'
        )
    whole, here, codes, values = PreprocessedDataset._of(dataset.generation), dataset.positions(), {}, {}
    coded_as: dict[str, npt.NDArray[Any]] = {}
    for name, per in given.items():
        if not name.isidentifier() or name in _OWN or hasattr(PairedBatch, name):
            raise SettingError(f"per_category[{name!r}]: this name is taken, or none", fix="another name")
        if not isinstance(per, Mapping) and not callable(per):
            raise SettingError(
                f"per_category[{name!r}] is {type(per).__name__}, expected a mapping or a function of a category's name"
            )
        at = _category(dataset, name, per, category)
        known = dataset.categories[at]
        if at not in coded_as:  # fields of one category share its codes, in a byte or two per cell
            numbers = np.nan_to_num(whole.columns[at], nan=-1)
            coded_as[at] = numbers.astype(np.min_scalar_type(-len(known) - 1))
        codes[name] = coded_as[at]
        present = np.unique(codes[name][here])
        if present[:1].tolist() == [-1]:
            lost = int((codes[name][here] < 0).sum())
            raise SettingError(
                f"per_category[{name!r}]: {lost:,} cells have no {at}", fix="leave them out of the view"
            )
        texts = {code: known[code] for code in present.tolist()}
        if isinstance(per, Mapping) and (missing := [text for text in texts.values() if text not in per]):
            shown = ", ".join(map(repr, missing[:_SHOWN])) + ", ..." * (len(missing) > _SHOWN)
            raise SettingError(
                f"per_category[{name!r}] has no value for {len(missing):,} names of {at!r} that cells have: {shown}"
                f"{suggestion(missing[0], map(str, per), False)}",
                fix="a value for each of them, or category= for another column",
            )
        value = per.__getitem__ if isinstance(per, Mapping) else per
        values[name] = [value(texts[code]) if code in texts else None for code in range(len(known))]
    return codes, values


def _category(dataset: Any, name: str, per: Any, category: str | None) -> str:
    """The column of names that a field is about."""
    known: dict[str, list[str]] = dataset.categories
    if category is not None:
        if category not in known:
            valid = suggestion(str(category), list(known))
            raise SettingError(f"category={category!r:.200} is no column of names of this store{valid}")
        return category
    fits = list(known)
    if len(fits) > 1 and isinstance(per, Mapping):
        fits = [at for at in known if {n for n in dataset.names(at) if n is not None} <= set(per)]
    if len(fits) != 1:
        raise SettingError(
            f"per_category[{name!r}] may be about any of the columns of names {', '.join(known) or '(there are none)'}",
            fix="category=... says which",
        )
    return fits[0]
