"""What an earlier run of the same build left behind: finished shards to keep, temporary files to remove."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from torchcell_cache.builder.shards import ShardPlan, shard_name
from torchcell_cache.core.files import remove_stale_temps
from torchcell_cache.errors import CacheError
from torchcell_cache.store.manifest import ShardEntry, processed_dir, read_sidecar, sidecar_path
from torchcell_cache.store.stamps import quick_digest


def finished_shards(directory: Path, plan: ShardPlan, share: Sequence[int]) -> list[ShardEntry]:
    """Shards of an earlier run that are whole, their digests checked; anything doubtful is built again.

    Args:
        directory: The generation being built.
        plan: Its plan.
        share: Numbers of the shards to look at.
    """
    whole = []
    for shard in share:
        entry = None
        with contextlib.suppress(OSError):  # a file that cannot be read is replaced
            try:
                entry = read_sidecar(directory, shard)
            except CacheError:
                sidecar_path(directory, shard).unlink(missing_ok=True)
            if entry is not None and _is_whole(directory / shard_name(shard), entry, plan):
                whole.append(entry)
    return whole


def _is_whole(path: Path, entry: ShardEntry, plan: ShardPlan) -> bool:
    fits = (entry.start, entry.stop) == plan.span(entry.index) and entry.seed == plan.seed
    return (
        fits
        and path.is_file()
        and path.stat().st_size == entry.file.size
        and quick_digest(path) == entry.file.xxh3
    )


def tidy(root: Path, directory: Path, scratch: Path | None, exclusive: bool) -> None:
    """Remove what killed builders and killed workers left behind.

    Args:
        root: Root of the store.
        directory: The generation being built.
        scratch: Node-local directory, or ``None``; other builds may use it, so only what the dead left goes.
        exclusive: Whether nobody else builds this store.
    """
    for place in (directory, processed_dir(root)):
        remove_stale_temps(place, exclusive=exclusive)
    if scratch is not None:
        remove_stale_temps(scratch)
