"""Files of a generation, checked; fetched first where the store lives elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from torchcell_cache.store.manifest import FileEntry, Manifest
from torchcell_cache.store.stamps import ensure_verified


class Fetcher(Protocol):
    """Brings files of a generation that are not on this disk yet."""

    def bring(self, entry: FileEntry) -> None:
        """Have a file in the generation's directory, whole, and keep it there while it is in use."""

    def bring_shards(self, shards: npt.NDArray[np.int64]) -> bool:
        """Have some shards; ``False`` if only one after the other fits."""

    def reopen(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """How another process opens the same generation, as ``__reduce__`` says it."""


def have_file(directory: Path, entry: FileEntry, fetcher: Fetcher | None) -> None:
    """Have a file of a generation in its directory, its digest checked.

    Raises:
        CorruptShardError: If it is not what the manifest says.
    """
    if fetcher is not None:
        fetcher.bring(entry)  # which checks it
        return
    ensure_verified(directory / entry.name, entry.size, entry.xxh3)


def have_shard(directory: Path, manifest: Manifest, fetcher: Fetcher | None, shard: int) -> None:
    """:func:`have_file` of a shard, by its number."""
    have_file(directory, manifest.shards[shard].file, fetcher)
