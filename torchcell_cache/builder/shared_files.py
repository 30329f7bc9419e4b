"""What all samples of a generation share: base graph, columns, incidence index and the plan, as files of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import BuildFailedError
from torchcell_cache.graph.files import write_base_graph
from torchcell_cache.graph.topology import Topology
from torchcell_cache.store.columns import columns_bytes, count_removed_edges, table_to_arrays
from torchcell_cache.store.manifest import GRAPH_FILES
from torchcell_cache.store.stamps import quick_digest


def write_shared_files(
    plan: BuildPlan, shards: ShardPlan, directory: Path, together: bool, console: Callable[[str], None]
) -> float:
    """Write the files beside the shards; returns how many milliseconds the index took.

    ``together``, several tasks do it at once: whoever is first writes a file, the others make the same bytes and compare.
    Otherwise every file is written anew.

    Raises:
        BuildFailedError: If another task wrote other bytes.
        StorageError: If the file system refuses.
    """

    def write(name: str, data: bytes) -> None:
        path = directory / name
        if (together and path.exists()) or not write_atomic(path, data, replace=not together):
            _compare(path, xxhash.xxh3_128_hexdigest(data))

    graph, table, topology, index_ms = plan.base_graph, plan.table, plan.topology, 0.0
    if graph is not None:
        with base_graph_files(graph, directory) as place:
            for name in GRAPH_FILES:
                publish_graph_file(place / name, directory / name, together)
    if table is not None and topology is not None:
        index, index_ms = plan.removal.index, plan.removal.index.build_ms
        edges, types = index.num_edges, len(index.edge_types)
        console(f"incidence index: {index_ms:.0f} ms for {edges:,} edges of {types} edge types")
        write(INCIDENCE_FILE, plan.removal.to_bytes())
    if table is not None:
        write(COLUMNS_FILE, columns_of(table, topology, graph))
    write(PLAN_FILE, shards.to_bytes())
    return index_ms


def columns_of(table: SampleTable, topology: Topology | None, graph: Any) -> bytes:
    """The columns' file of samples that a source gives."""
    removed = None if topology is None else count_removed_edges(graph, topology, table)
    return table_columns(table, topology, removed)


def table_columns(table: SampleTable, topology: Topology | None, removed: Any) -> bytes:
    """Samples as columns in the smallest dtypes; ``removed`` are numbers of edges, ``[n]``, if any can go."""
    nodes = int(table.ids.max(initial=0)) + 1 if topology is None else topology.num_nodes
    columns = table_to_arrays(table, nodes)
    if removed is not None:
        columns["removed_edges"] = removed.astype(smallest_unsigned(int(removed.max(initial=0))))
    return columns_bytes(columns)


@contextmanager
def base_graph_files(graph: Any, directory: Path) -> Iterator[Path]:
    """The two files of a base graph, by a library that writes plainly: in a directory of their own, to be renamed from there."""
    place = temp_path(directory / "base_graph")
    place.mkdir()
    try:
        write_base_graph(graph, place)
        yield place
        fsync_dir(directory)
    finally:
        shutil.rmtree(place)


def publish_graph_file(ours: Path, target: Path, together: bool = False) -> None:
    """Give a file its place, or compare it with the one that another task put there."""
    fsync_file(ours)
    ours.chmod(0o444)
    if not together:
        replace_file(ours, target)
        return
    digest = quick_digest(ours)
    if target.exists() or not publish_new(ours, target):
        _compare(target, digest)


def _compare(path: Path, ours: str) -> None:
    theirs = quick_digest(path)
    if theirs != ours:
        what = f"another task wrote {path} with digest {theirs}, this one makes {ours} of the same source and settings"
        fix = f"use the same versions of everything on all nodes; else remove {path} and run the tasks again"
        raise BuildFailedError(what, path=path, fix=fix)
