"""What makes stores, returning datasets: :mod:`torchcell_cache.builder` makes generations, these functions open them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

from torchcell_cache.builder import array, grow, run, subset
from torchcell_cache.core.choices import OnStale
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.index_file import plain_values
from torchcell_cache.data.view import store_view
from torchcell_cache.errors import SettingError

__all__ = ["Growth", "append", "build", "finalize", "import_torchcell", "save_subset", "update"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class Growth(grow.Growth):
    """What an update did, see :class:`torchcell_cache.builder.grow.Growth`."""

    @classmethod
    def _of(cls, growth: grow.Growth) -> Growth:
        return cls(*(getattr(growth, field.name) for field in fields(growth)))

    @cached_property
    def dataset(self) -> PreprocessedDataset:
        """The store as it is now."""
        return PreprocessedDataset._of(self.generation)


def _opened(make: Callable[P, T], hold: Callable[[T], R], name: str) -> Callable[P, R]:
    """``make``, whose generation is held by a dataset; ``name`` is the type it returns then."""

    @functools.wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return hold(make(*args, **kwargs))

    call.__annotations__ = {**make.__annotations__, "return": name}
    return call


build = _opened(run.build, PreprocessedDataset._of, "PreprocessedDataset")
finalize = _opened(array.finalize, PreprocessedDataset._of, "PreprocessedDataset")
append = _opened(grow.append, Growth._of, "Growth")
update = _opened(grow.update, Growth._of, "Growth")


def import_torchcell(
    root: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str],
    base_graph: Any,
    trust: bool = False,
    num_samples: int = 100,
    progress: bool = True,
    **settings: Any,
) -> PreprocessedDataset:
    """Make a store of one that torchcell's own ``Neo4jPreprocessedCellDataset`` made, and open it.

    Its pickles are read in a process of its own, in which nothing that they name is called. Perturbed genes and labels are
    taken, masks are made anew from ``base_graph``; random samples are compared with what the old store has. It does not say
    which dataset a measurement is of, nor the type of a perturbation: a store built from torchcell's dataset does.

    Args:
        root: Directory of the new store.
        store: Root of the old one.
        base_graph: The cell graph it was made with.
        trust: That its maker is trusted: files of LMDB can crash the process that reads them.
        num_samples: Random samples that are compared.
        progress: Whether to print progress.
        **settings: Those of :func:`build`: ``storage``, ``num_workers``, ``on_stale`` and others.

    Raises:
        UnsafeContentError: If it is not trusted, or a record names a class or function that such records do not have.
        CacheNotFoundError: If there is no such store.
        SourceContractError: If a record is damaged, or the base graph is another one.
        CacheError: What :func:`build` raises.

    Example:
        >>> tc.import_torchcell(  # doctest: +SKIP
        ...     "stores/tmi", store="old/preprocessed", base_graph=source.cell_graph, trust=True
        ... )
        PreprocessedDataset(332313)
    """
    from torchcell_cache.processors.lazy import LazySubgraphRepresentation
    from torchcell_cache.sources.torchcell_store import torchcell_store

    if local_path(root) == local_path(store, "store"):
        raise SettingError(f"root={root} is the old store", fix="root=<another directory>")
    source = torchcell_store(store, base_graph, trust=trust, num_samples=num_samples, progress=progress)
    return build(root, source=source, processor=LazySubgraphRepresentation(), progress=progress, **settings)


def save_subset(
    view: PreprocessedDataset,
    root: str | os.PathLike[str],
    *,
    shard_size: int | None = None,
    on_stale: OnStale = "error",
    made_by: dict[str, Any] | None = None,
    progress: bool = True,
) -> PreprocessedDataset:
    """Write the samples of a view as a store of their own, and open it.

    Sample ``k`` of the store is sample ``k`` of the view to the bit; the view's ``transform`` is not applied. The fingerprint
    says which store they come from (its content digest and source) and which samples they are. Interrupted, the same call
    continues; a store that is there already and holds the same selection is opened.

    Args:
        view: A view of a store: ``dataset[...]``.
        root: Directory of the new store.
        shard_size: Samples per shard; by storage if ``None``.
        on_stale: What to do with another store at ``root``: ``error``, ``rebuild`` or ``warn``.
        made_by: How the samples were chosen, plain JSON values; part of the fingerprint.
        progress: Whether to print progress.

    Raises:
        SettingError: If the view is empty, or ``root`` is the store itself.
        StaleCacheError: If another store is at ``root``.
        CorruptRecordError: If a record of the old store is damaged.
        StorageError: If the file system refuses.

    Example:
        >>> tc.save_subset(ds[ds.columns["perturbed_count"] == 2], "stores/pairs", progress=False)
        PreprocessedDataset(3)
    """
    chosen = store_view(view, "save_subset copies from")
    made_by, positions = plain_values(made_by), chosen.positions()
    made = subset.copy_samples(
        chosen.generation,
        positions,
        root,
        shard_size=shard_size,
        on_stale=on_stale,
        made_by=made_by,
        progress=progress,
    )
    return PreprocessedDataset._of(made)
