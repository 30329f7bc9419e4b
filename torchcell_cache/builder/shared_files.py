"""What all samples of a generation share: base graph, columns, incidence index and the plan, as files of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from torchcell_cache.builder.plan import BuildPlan
from torchcell_cache.builder.shards import COLUMNS_FILE, INCIDENCE_FILE, PLAN_FILE, ShardPlan
from torchcell_cache.core.files import (
    fsync_dir,
    fsync_file,
    publish_new,
    replace_file,
    temp_path,
    write_atomic,
)
from torchcell_cache.core.ragged import smallest_unsigned
from torchcell_cache.errors import BuildFailedError
from torchcell_cache.graph.records import write_base_graph
from torchcell_cache.store.columns import Arrays, columns_bytes, count_removed_edges, table_to_arrays
from torchcell_cache.store.stamps import quick_digest


class SharedFiles:
    """Writes the files beside the shards.

    Args:
        plan: Source, processor and fingerprint.
        shards: The plan all workers share.
        directory: The generation being built; it exists.
        together: Whether several tasks build it at once. Whoever is first writes a file; the others make the same bytes
            and compare. Otherwise every file is written anew.
        say: Prints a line.
    """

    def __init__(
        self, plan: BuildPlan, shards: ShardPlan, directory: Path, together: bool, say: Callable[[str], None]
    ) -> None:
        self.plan, self.shards, self.directory, self.say = plan, shards, directory, say
        self.together = together
        self.index_ms = 0.0

    def write(self) -> None:
        """Write them all.

        Raises:
            BuildFailedError: If another task wrote other bytes.
            StorageError: If the file system refuses.
        """
        graph = self.plan.source.base_graph
        if graph is not None:
            self._write_base_graph(graph)
        table, topology = self.plan.table, self.plan.topology
        if table is not None and topology is not None:
            self._write_incidence()
        if table is not None:
            nodes = int(table.ids.max(initial=0)) + 1 if topology is None else topology.num_nodes
            columns: Arrays = table_to_arrays(table, nodes)
            if topology is not None:
                removed = count_removed_edges(graph, topology, table)
                columns["removed_edges"] = removed.astype(smallest_unsigned(int(removed.max(initial=0))))
            self._write(COLUMNS_FILE, columns_bytes(columns))
        self._write(PLAN_FILE, self.shards.to_bytes())

    def _write_incidence(self) -> None:
        removal = self.plan.removal
        index = removal.index
        self.index_ms = index.build_ms
        edges, types = index.num_edges, len(index.edge_types)
        self.say(f"incidence index: {index.build_ms:.0f} ms for {edges:,} edges of {types} edge types")
        self._write(INCIDENCE_FILE, removal.to_bytes())

    def _write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        if not self.together:
            write_atomic(path, data)
        elif path.exists() or not write_atomic(path, data, replace=False):
            self._compare(path, xxhash.xxh3_128_hexdigest(data))

    def _write_base_graph(self, graph: Any) -> None:
        """Two files by a library that writes plainly: in a directory of their own first, then renamed."""
        place = temp_path(self.directory / "base_graph")
        place.mkdir()
        try:
            write_base_graph(graph, place)
            for name in ("base_graph.safetensors", "base_graph.json"):
                self._publish(place / name, self.directory / name)
            fsync_dir(self.directory)
        finally:
            for leftover in place.iterdir():
                leftover.unlink()
            place.rmdir()

    def _publish(self, ours: Path, target: Path) -> None:
        fsync_file(ours)
        ours.chmod(0o444)
        if not self.together:
            replace_file(ours, target)
            return
        digest = quick_digest(ours)
        if target.exists() or not publish_new(ours, target):
            self._compare(target, digest)

    def _compare(self, path: Path, ours: str) -> None:
        theirs = quick_digest(path)
        if theirs != ours:
            raise BuildFailedError(
                f"another task wrote {path} with digest {theirs}, this one makes {ours} of the same source and settings",
                path=path,
                fix=f"use the same versions of everything on all nodes; else remove {os.fspath(path)} and run the tasks again",
            )
