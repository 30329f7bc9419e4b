"""``select``: samples by expression, by perturbed nodes, by list, and at random; from stored columns, reading no record."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, get_args

import numpy as np

from torchcell_cache.core.checks import (
    choice,
    gives_items,
    names_or_none,
    seed_number,
    suggestion,
    whole_number,
)
from torchcell_cache.core.choices import Match
from torchcell_cache.core.indexing import as_positions
from torchcell_cache.core.ragged import Int64Array, offsets, segments
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.dividing import draw, strata_of
from torchcell_cache.data.index_file import into_view, load_indices, of_store
from torchcell_cache.data.samplers.order import epoch_order
from torchcell_cache.data.samplers.weighted import MOST_BINS
from torchcell_cache.data.torchcell import perturbable_store
from torchcell_cache.data.view import column_of
from torchcell_cache.errors import CacheNotFoundError, SettingError
from torchcell_cache.processors.deletion import node_names
from torchcell_cache.store.columns import single_columns
from torchcell_cache.store.expression import Expression

MATCHES = get_args(Match)


def select(
    dataset: PreprocessedDataset,
    where: str | None = None,
    *,
    listed: Any = None,
    genes: Iterable[str] = (),
    match: Match = "any",
    without: Iterable[str] = (),
    n: int | None = None,
    seed: int = 0,
    stratify: str | None = None,
    bins: int = 10,
) -> Int64Array:
    """Samples of a dataset that fulfil all conditions given.

    Args:
        dataset: A store or a view of it.
        where: Expression over the dataset's columns, see :mod:`.expression`; ``index`` is the position in the store, ``y[7]`` the
            eighth of several values per sample.
        listed: Samples to start from, in that order: a file (``.npy`` index file, or text with a store position or a source
            id per line), or a sequence of source ids.
        genes: Names of nodes that a sample perturbs: at least one of them (``match="any"``), all of them, or nothing else.
        match: ``any``, ``all`` or ``only``.
        without: Names of nodes that a sample must not perturb.
        n: How many to draw at random from what is left. The same seed draws nested sets: ``n=100`` is part of ``n=1000``
            (without ``stratify``).
        seed: Seed of the draw; the same samples on every machine and numpy version.
        stratify: Column whose classes or quantiles the draw keeps in proportion.
        bins: Number of quantiles.

    Returns:
        Indices into ``dataset``, ``[n] int64``: ascending, or in the order of ``listed``.

    Raises:
        SettingError: If a column, node or id is unknown, or fewer than ``n`` samples are left.
        StaleCacheError: If ``listed`` is an index file of another store.

    Example:
        >>> tc.select(ds, "perturbed_count == 2 and not isnan(fitness)", without=["G0"])
        array([1, 2])
    """
    of_store("select", dataset)
    genes, without = (
        [names] if isinstance(names, str) else names_or_none(key, [None] if names is None else names) or []
        for key, names in (("genes", genes), ("without", without))
    )
    choice("match", match, MATCHES)
    rows = np.arange(len(dataset), dtype=np.int64) if listed is None else _listed(dataset, listed)
    kept = np.ones(len(dataset), dtype=bool)
    if where is not None:
        columns = {"index": dataset.positions(), **dataset.columns, **single_columns(dataset.columns)}
        kept &= Expression(where).mask(columns, len(dataset), dataset.categories)
    if genes:
        counts, sizes = count_perturbed(dataset, _node_ids(dataset, "genes", genes))
        kept &= {
            "any": counts > 0,
            "all": counts == len(set(genes)),
            "only": (counts == sizes) & (sizes > 0),
        }[match]
    if without:
        kept &= count_perturbed(dataset, _node_ids(dataset, "without", without))[0] == 0
    rows = rows[kept[rows]]
    if n is None:
        if stratify is not None:
            why = f"stratify={stratify!r} shapes a draw, and n= says how many to draw"
            raise SettingError(why, fix="n=1000")
        return rows
    n, bins, seed = whole_number("n", n, 0), whole_number("bins", bins, 1, most=MOST_BINS), seed_number(seed)
    if n > len(rows):
        raise SettingError(
            f"n={n:,}: {len(rows):,} samples fulfil the conditions", fix="a smaller n, or fewer conditions"
        )
    if stratify is None:
        return rows[np.sort(epoch_order(len(rows), seed, 0)[:n])]
    values = column_of(dataset, stratify, "stratify", numbers=True)[rows]
    return rows[draw(strata_of(values, bins), n, seed)]


# Perturbed nodes


def perturbed_of(dataset: Any) -> tuple[Int64Array, Int64Array]:
    """Perturbed ids of all samples of a dataset, ``[sum of counts] int64``, and their offsets, ``[n + 1] int64``.

    Names that no node has count as nodes behind the last one, see :func:`_first_unknown`.
    """
    table = dataset.generation.table
    if table is None:
        raise SettingError(
            "the store was not made from a table of perturbations, so it knows no perturbed nodes",
            fix="select by where= or listed=; split by split_random",
        )
    ids, ptr = table.ids.astype(np.int64), table.ptr
    if table.unknown is not None:
        ids, ptr = table.unknown.with_ids(ids, ptr, _first_unknown(dataset))
    return segments(ids, ptr, dataset.positions())


def _first_unknown(dataset: Any) -> int:
    """Number of the first name that no node has: behind all nodes."""
    largest = int(dataset.generation.table.ids.max(initial=0))
    return max(largest + 1, len(_names(dataset) or ()))


def count_perturbed(dataset: Any, nodes: Int64Array) -> tuple[Int64Array, Int64Array]:
    """How many of ``nodes`` each sample perturbs, and how many nodes at all, both ``[n] int64``."""
    ids, ptr = perturbed_of(dataset)
    total = offsets(np.isin(ids, nodes))
    return total[ptr[1:]] - total[ptr[:-1]], np.diff(ptr)


def _names(dataset: Any) -> list[str] | None:
    """Names of the perturbable nodes, by id."""
    store = perturbable_store(dataset.generation)
    return None if store is None else node_names(store)


def _node_ids(dataset: Any, key: str, wanted: list[str]) -> Int64Array:
    names, table = _names(dataset), dataset.generation.table
    if names is None:
        raise SettingError(
            "the base graph has no names of nodes (node_ids)", fix="select by where= or listed="
        )
    names = [str(name) for name in names]
    known = {name: node for node, name in enumerate(names)}
    repeated = len(known) < len(names)
    if table is not None and table.unknown is not None:
        known |= {name: node for node, name in enumerate(table.unknown.names, _first_unknown(dataset))}
    for name in wanted:
        if name not in known:  # without listing thousands of names
            span = f"it has {len(names):,}, from {names[0]!r} to {names[-1]!r}" if names else ""
            near = suggestion(name, names, False) or ";" * bool(names)
            raise SettingError(f"{key}: the base graph has no node {name!r}{near} {span}")
        if repeated and names.count(name) > 1:
            raise SettingError(f"{key}: {name!r} is the name of several nodes, so it does not say which one")
    return np.array([known[name] for name in wanted], dtype=np.int64)


# Lists


def _listed(dataset: Any, listed: Any) -> Int64Array:
    """Indices into the dataset of listed samples."""
    if not isinstance(listed, str | os.PathLike):
        if isinstance(listed, bytes) or not gives_items(listed):
            raise SettingError(
                f"listed={listed!r:.80}: expected a file or a list of source ids", fix='listed=["id1", "id2"]'
            )
        return _by_source_id(dataset, [str(item) for item in listed], "listed")
    path = local_path(listed, "list")
    if path.suffix == ".npy":
        return into_view(dataset, load_indices(path, dataset), str(path))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise CacheNotFoundError(
            f"no list {path}", path=path, fix="one store position or source id per line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"list {path} cannot be read: {error}", path=path) from None
    items = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    table = dataset.generation.table
    if table is not None and table.source_ids is not None:
        return _by_source_id(dataset, items, str(path))
    wrong = next((item for item in items if not (item.isascii() and item.isdigit())), None)
    if wrong is not None:
        raise SettingError(
            f"{path}: {wrong!r:.80} is no store position; the samples of this store have no source ids"
        )
    try:
        found = as_positions([int(item) for item in items], len(dataset.generation))
    except (IndexError, OverflowError) as error:
        raise SettingError(f"{path}: {error}", path=path) from None
    return into_view(dataset, found, str(path))


def _by_source_id(dataset: Any, wanted: list[str], origin: str) -> Int64Array:
    table = dataset.generation.table
    if table is None or table.source_ids is None:
        raise SettingError(
            f"{origin}: the samples of this store have no source ids", fix="list store positions"
        )
    here, needed, known = dataset.positions().tolist(), set(wanted), dict[str, int]()
    for position in sorted(set(here)):
        name = table.source_ids[position]
        if name in needed:
            if name in known:  # barcodes, which plates may share
                raise SettingError(
                    f"{origin}: samples {known[name]} and {position} are both called {name!r:.80}",
                    fix="list store positions, or select from a view that has one of them",
                )
            known[name] = position
    if len(known) < len(needed):
        known = {**dict(zip(table.source_ids, range(len(table)), strict=True)), **known}
    missing = next((name for name in wanted if name not in known), None)
    if missing is not None:
        near = suggestion(missing, table.source_ids[:2000], False)
        raise SettingError(f"{origin}: the store has no sample with source id {missing!r:.80}{near}")
    return into_view(dataset, np.array([known[name] for name in wanted], dtype=np.int64), origin)
