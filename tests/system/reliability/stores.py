"""Small stores of every kind for the fault tests, and what must be true of them afterwards."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import torch
from graphs import cell_graph, random_case
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.core.files import file_digest
from torchcell_cache.errors import CacheError, CacheNotFoundError
from torchcell_cache.store import records as store
from torchcell_cache.store.manifest import (
    MANIFEST_NAME,
    Manifest,
    manifest_path,
    processed_dir,
    read_manifest,
)
from torchcell_cache.store.shard_entry import FileEntry

SHAPES = ("delta", "perturbation", "full", "generic")
COUNT = 21
SHARD = 7


def center(graph: Data) -> Data:
    """A user's processor for plain PyG samples: replaces features, keeps the rest."""
    graph = graph.clone()
    graph.x = graph.x - graph.x.mean(dim=0)
    return graph


@functools.cache
def case() -> Any:
    return random_case(cell_graph(num_genes=12), num_samples=COUNT, seed=11)


@functools.cache
def graphs() -> list[Data]:
    random = np.random.default_rng(5)
    edges = torch.from_numpy(random.integers(0, 6, (2, 9)))
    return [
        Data(
            x=torch.from_numpy(random.standard_normal((6, 4)).astype(np.float32)),
            edge_index=edges,
            y=torch.tensor([float(k)]),
            name=f"sample {k}",
        )
        for k in range(COUNT)
    ]


@functools.cache
def arguments(shape: str) -> dict[str, Any]:
    """Source, processor and storage of a shape of build."""
    if shape == "generic":
        return {"source": graphs(), "processor": center, "storage": "delta"}
    return {"source": case().source(), "processor": tc.LazySubgraphRepresentation(), "storage": shape}


def build(root: str | Path, shape: str, num_workers: int = 0, **changes: Any) -> str:
    """Build (or go on building) a store; returns its content digest."""
    settings = {**arguments(shape), "shard_size": SHARD, "progress": False, **changes}
    return str(tc.build(root, num_workers=num_workers, **settings).content_digest)


@functools.cache
def expected(shape: str) -> list[dict[Any, dict[str, Any]]]:
    """The stores of every sample by the slow definition, not by the code under test."""
    if shape == "generic":
        return [oracle.stores_of(center(graph)) for graph in graphs()]
    given = case()
    return [
        oracle.lazy(given.base, ids, rows, given.phenotypes, given.statistics)
        for ids, rows in zip(given.perturbed, given.measurements, strict=True)
    ]


def assert_all_samples(dataset: Any, shape: str) -> None:
    """Every sample equals the slow definition, read one by one and together."""
    wanted = expected(shape)
    assert len(dataset) == len(wanted)
    for graph, want in zip(dataset.__getitems__(list(range(len(wanted)))), wanted, strict=True):
        oracle.assert_stores_equal(oracle.stores_of(graph), want)
    oracle.assert_stores_equal(oracle.stores_of(dataset[len(wanted) // 2]), wanted[len(wanted) // 2])


def facts(root: str | Path) -> dict[str, Any]:
    """What two builds of the same thing must have in common: every digest of every file."""
    manifest = read_manifest(root)
    return {
        "generation": manifest.generation,
        "content_digest": manifest.content_digest,
        "schema": manifest.schema,
        "fingerprint": manifest.fingerprint,
        "files": {entry.name: entry.sha256 for entry in files_of(manifest)},
    }


def files_of(manifest: Manifest) -> list[Any]:
    return [*manifest.files, *(shard.file for shard in manifest.shards)]


def is_published(root: str | Path) -> bool:
    """Whether a reader finds a store; anything but that and ``CacheNotFoundError`` is an error."""
    try:
        tc.PreprocessedDataset(root)
    except CacheNotFoundError:
        return False
    return True


def temporaries(root: str | Path) -> list[str]:
    """Names of temporary files and directories anywhere below."""
    return [
        str(Path(place, name))
        for place, folders, names in os.walk(root)
        for name in (*folders, *names)
        if name.startswith(".tmp-")
    ]


@contextlib.contextmanager
def fresh_handles() -> Iterator[None]:
    """Nothing open before, nothing open afterwards."""
    store.close_all()
    try:
        yield
    finally:
        store.close_all()


def read_outcome(root: str | Path, shape: str) -> str:
    """``equal``, the name of the typed error, or an assertion: what a reader that opens everything gets."""
    with fresh_handles(), warnings.catch_warnings():
        try:
            dataset = tc.PreprocessedDataset(root)
            assert_all_samples(dataset, shape)
            base, columns = dataset.base_graph, dataset.columns
            if shape != "generic":
                oracle.assert_stores_equal(oracle.stores_of(base), oracle.stores_of(case().base))
                assert len(dataset.label_df) == COUNT
                assert [ids.tolist() for ids in dataset.perturbed] == case().perturbed
            else:
                assert columns["y"].tolist() == list(range(COUNT))
        except CacheError as error:
            return type(error).__name__
    return "equal"


def copy_store(source: Path, target: Path) -> Path:
    """A copy with files that can be edited."""
    shutil.copytree(source, target, symlinks=True)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def remove(root: Path) -> None:
    """Make room: trials are many."""
    store.close_all()
    shutil.rmtree(root)


def fit_digests(root: Path) -> None:
    """Seal a manifest that vouches for the files as they are now, as an attacker or a broken tool could."""
    manifest = read_manifest(root)
    folder = processed_dir(root) / manifest.generation

    def fit(entry: FileEntry) -> FileEntry:
        return FileEntry(entry.name, *file_digest(folder / entry.name))

    fitted = replace(
        manifest,
        files=tuple(map(fit, manifest.files)),
        shards=tuple(replace(shard, file=fit(shard.file)) for shard in manifest.shards),
    )
    put_manifest(root, fitted)


def edit_records(root: Path, number: int, change: Callable[[list[bytes]], None]) -> None:
    """A shard's file with other records in it, sealed as they come; ``fit_digests`` makes it that of the store."""
    manifest = read_manifest(root)
    entry, size = manifest.shards[number], manifest.schema.get("group_bytes", 0)
    path = processed_dir(root) / manifest.generation / entry.file.name
    files = store.ShardFiles([str(path)], [path.stat().st_size], [entry.start, entry.stop], None, size > 0)
    records = files.read(range(entry.start, entry.stop), [0] * (entry.stop - entry.start))
    store.close_file(path)
    change(records)
    path.unlink()
    store.write_shard(path, entry.start, [records], 1 << 24, size)


def put_manifest(root: Path, manifest: Manifest) -> None:
    """Write a manifest in both places, whatever is there."""
    for path in (manifest_path(root), processed_dir(root) / manifest.generation / MANIFEST_NAME):
        path.write_bytes(manifest.to_bytes())
