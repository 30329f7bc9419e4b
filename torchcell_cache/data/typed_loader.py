"""``CacheLoader`` as type checkers see it: which batches come out, by what goes in. Never imported when a program runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar, Unpack, overload

import torch
from torch.utils.data import ConcatDataset, Subset
from torch_geometric.data import Batch

from torchcell_cache.data import loader
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.samplers.base import CacheSampler, Common

T = TypeVar("T")
R = TypeVar("R")
B_co = TypeVar("B_co", covariant=True)
Stored = PreprocessedDataset | Subset[Any] | ConcatDataset[Any]


class Batches(Protocol[B_co]):
    """A dataset, known by the batches that it reads."""

    def read_batch(self, indices: Any) -> B_co:
        """A batch."""


class LoaderOptions(Common, total=False):
    """What a :class:`~torchcell_cache.CacheLoader` takes besides, for type checkers; its own signature says it again."""

    batch_size: int
    shuffle: bool
    num_workers: int
    sampler: Iterable[int] | CacheSampler | None
    batch_sampler: Iterable[Sequence[int]] | None
    drop_removed: bool
    follow_batch: Sequence[str] | None
    exclude_keys: Sequence[str] | None
    device: torch.device | str | int | None
    prefetch_factor: int
    pin_memory: bool
    persistent_workers: bool
    multiprocessing_context: Any
    timeout: float
    worker_init_fn: Callable[[int], None] | None
    indices: Any


class CacheLoader(loader.CacheLoader, Generic[T]):
    """See :class:`torchcell_cache.data.loader.CacheLoader`; ``order`` is ``batch_size, shuffle, num_workers``."""

    @overload
    def __init__(
        self: CacheLoader[R],
        dataset: Batches[R],
        *order: int,
        expand: Literal[False] = False,
        collate_fn: None = None,
        **options: Unpack[LoaderOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: CacheLoader[Batch],
        dataset: Stored,
        *order: int,
        expand: Literal[True],
        collate_fn: None = None,
        **options: Unpack[LoaderOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: CacheLoader[R],
        dataset: Stored,
        *order: int,
        expand: bool = False,
        collate_fn: Callable[[list[Any]], R],
        **options: Unpack[LoaderOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: CacheLoader[Any],
        dataset: Stored,
        *order: int,
        expand: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None: ...
    def __init__(self, dataset: Any, *order: Any, **options: Any) -> None: ...

    def __iter__(self) -> Iterator[T]:
        return super().__iter__()
