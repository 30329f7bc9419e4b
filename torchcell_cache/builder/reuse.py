"""Taking over what is the same from a store's generation into the one that follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from torchcell_cache.builder.difference import Flags
from torchcell_cache.builder.resume import finished_shards
from torchcell_cache.builder.shards import RecordMaker, ShardPlan, StructuredMaker, build_shard, shard_name
from torchcell_cache.codec.envelope import CHECKSUM_BYTES
from torchcell_cache.core.files import share_file
from torchcell_cache.errors import CacheError
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import ShardEntry, read_sidecar, write_sidecar

_RUN = 512
"""Samples of which records are read and made together."""


class Adoption:
    """Shards of a new generation that need not, or not wholly, be made again.

    Args:
        old: The store's generation.
        directory: The new generation's directory.
        shards: Its plan; with the old shards' seed.
        same: Samples whose record is the same, ``[num_samples] bool``.
    """

    def __init__(self, old: Generation, directory: Path, shards: ShardPlan, same: Flags) -> None:
        self.old, self.directory, self.shards, self.same = old, directory, shards, same
        self.kept = self.linked = 0

    def run(self, maker: RecordMaker, report: Callable[[int], None], stopped: Callable[[], bool]) -> None:
        """Link shards that are the same, and rebuild those that are so in part from their records.

        Args:
            maker: Makes the records of samples that are not the same.
            report: Called with the number of samples done since the last call.
            stopped: Asked before each shard whether to leave the others to the next run.
        """
        done = {e.index for e in finished_shards(self.directory, self.shards, range(self.shards.num_shards))}
        for shard in range(self.shards.num_shards):
            if stopped():
                return
            start, stop = self.shards.span(shard)
            kept = int(self.same[start:stop].sum())
            if not kept:
                continue
            if shard in done:  # by an earlier run of the same update
                self.kept += kept
                continue
            entry = self._entry(shard)
            if kept == stop - start and entry is not None and (entry.start, entry.stop) == (start, stop):
                self._link(shard, entry)
                self.linked += 1
                self.kept += kept
                report(kept)
            elif self._can_mix(maker, start, stop, entry):
                mixed = MixedMaker(self.old, maker, self.same, entry)
                build_shard(self.directory, self.shards, mixed, shard, report)
                self.kept += kept

    def _entry(self, shard: int) -> ShardEntry | None:
        """The old shard as its own side file has it, which knows more than the manifest."""
        if shard >= len(self.old.manifest.shards):
            return None
        stored = self.old.manifest.shards[shard]
        try:
            entry = read_sidecar(self.old.directory, shard)
        except (CacheError, OSError):
            entry = None
        whole = entry is not None and replace(entry, stats={}) == replace(stored, stats={})
        return entry if whole else (stored if self.shards.records == "structured" else None)

    def _link(self, shard: int, entry: ShardEntry) -> None:
        name = shard_name(shard)
        share_file(self.old.directory / name, self.directory / name)
        write_sidecar(self.directory, entry)

    def _can_mix(self, maker: RecordMaker, start: int, stop: int, entry: ShardEntry | None) -> bool:
        """Structured records stand for themselves; of others the side file must tell what all the kept ones hold."""
        if isinstance(maker, StructuredMaker):
            return True
        kept = np.flatnonzero(self.same[start:stop])
        return (
            entry is not None
            and len(kept) == entry.stop - entry.start
            and bool((kept == np.arange(len(kept))).all())
        )


class MixedMaker:
    """Records of a store where they are the same, new ones elsewhere.

    Args:
        old: The store's generation.
        maker: Makes the others.
        same: Samples whose record is the same.
        entry: The old shard's side file, for records that are not structured.
    """

    def __init__(self, old: Generation, maker: RecordMaker, same: Flags, entry: ShardEntry | None) -> None:
        self.old, self.maker, self.same, self.entry = old, maker, same, entry
        self._made: tuple[int, int] | None = None

    def bodies(self, start: int, stop: int) -> Iterator[list[bytes]]:
        """Bodies of samples ``start`` to ``stop``."""
        if isinstance(self.maker, StructuredMaker):
            for at in range(start, stop, _RUN):
                yield self._mixed(self.maker, at, min(at + _RUN, stop))
            return
        first = start + int(self.same[start:stop].sum())
        for at in range(start, first, _RUN):
            yield self._stored(np.arange(at, min(at + _RUN, first)))
        self._made = (first, stop)
        if first < stop:
            yield from self.maker.bodies(first, stop)

    def _stored(self, indices: Any) -> list[bytes]:
        return [record[CHECKSUM_BYTES:] for record in self.old.read(indices)]

    def _mixed(self, maker: StructuredMaker, start: int, stop: int) -> list[bytes]:
        same = self.same[start:stop]
        out: list[bytes] = [b""] * (stop - start)
        kept, made = np.flatnonzero(same), np.flatnonzero(~same)
        for rows, bodies in (
            (kept, self._stored(kept + start)),
            (made, maker.bodies_of(made + start) if len(made) else []),
        ):
            for row, body in zip(rows.tolist(), bodies, strict=True):
                out[row] = body
        return out

    def extras(self, start: int, stop: int) -> dict[str, Any]:
        """Facts of kept and new records together."""
        if isinstance(self.maker, StructuredMaker) or self.entry is None or self._made is None:
            return {"layouts": {}, "stats": {}}
        first, last = self._made
        stored = self.entry.stats
        if first == last:
            return {"layouts": stored.get("layouts", {}), "stats": stored}
        new = self.maker.extras(first, last)
        layouts = dict(sorted({**stored.get("layouts", {}), **new["layouts"]}.items()))
        stats: dict[str, Any] = {"layouts": layouts}
        a, b = stored.get("y"), new["stats"].get("y")
        if a is not None and b is not None and a["dtype"] == b["dtype"] and a["shape"][1:] == b["shape"][1:]:
            shape = [a["shape"][0] + b["shape"][0], *a["shape"][1:]]
            stats["y"] = {"dtype": a["dtype"], "shape": shape, "hex": a["hex"] + b["hex"]}
        return {"layouts": layouts, "stats": stats}
