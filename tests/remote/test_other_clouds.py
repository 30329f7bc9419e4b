"""Stores in Google's and Azure's object stores, as their emulators serve them."""

import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest
from graphs import cell_graph, random_case
from loading import build
from object_store import Fault, pull, push, store
from other_clouds import Cloud

import torchcell_cache as tc
from torchcell_cache.errors import (
    CacheNotFoundError,
    RemoteAccessError,
    StaleCacheError,
    StorageLostError,
)
from torchcell_cache.remote import bucket as bucket_module
from torchcell_cache.store.manifest import read_manifest
from torchcell_cache.testing import assert_same_graph

__all__ = ["store"]
pytestmark = pytest.mark.campaign  # two more services to start, one of them fetched by npm
_COUNT = itertools.count()


@pytest.fixture(params=["gs", "az"])
def cloud(request, monkeypatch) -> Cloud:
    monkeypatch.setattr(bucket_module, "_FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(bucket_module, "_SYSTEMS", {})  # each test logs in for itself
    return Cloud(request.param, f"lab-{os.getpid()}-{next(_COUNT)}", monkeypatch)


def opened(cloud: Cloud, place: Path, **settings):
    return tc.PreprocessedDataset(cloud.url, cache_dir=place, storage_options=cloud.options, **settings)


def assert_same_samples(ds, root: Path) -> None:
    for mine, theirs in zip(ds, tc.PreprocessedDataset(root), strict=True):
        assert_same_graph(mine, theirs)


def first(count: int) -> tc.PerturbationTable:
    perturbed = random_case(cell_graph(), num_samples=23, seed=2).perturbed
    labels = {"fitness": np.arange(count, dtype=np.float32)}
    return tc.PerturbationTable(cell_graph(), perturbed[:count], phenotypes=labels)


def test_push_read_pull_and_stage(tmp_path: Path, store: Path, cloud: Cloud) -> None:
    assert push(store, cloud.url, cloud.options) == cloud.url
    lazily = opened(cloud, tmp_path / "lazy")
    assert cloud.proxy.fetched(".lmdb") == 0
    assert lazily.content_digest == tc.PreprocessedDataset(store).content_digest
    assert_same_samples(lazily, store)
    assert tc.verify(pull(cloud.url, tmp_path / "copy", cloud.options), "full", progress=False).ok
    staged = tc.stage(cloud.url, tmp_path / "local", storage_options=cloud.options, progress=False)
    assert staged.name == f"ko-{read_manifest(store).digest[:16]}"
    assert_same_samples(opened(cloud, tmp_path / "all", download="all"), store)


def test_a_store_that_grows_is_pushed_again(tmp_path: Path, cloud: Cloud) -> None:
    root = tmp_path / "grown"
    build(root, first(9), storage="delta")
    push(root, cloud.url, cloud.options)
    before = opened(cloud, tmp_path / "c")
    assert len(before) == 9
    tc.append(root, first(23), progress=False)
    push(root, cloud.url, cloud.options, overwrite=True)
    assert_same_samples(opened(cloud, tmp_path / "d"), root)
    assert [int(g["gene"].perturbation_indices.sum()) for g in before] == [
        int(g["gene"].perturbation_indices.sum()) for g in tc.PreprocessedDataset(root)[:9]
    ]  # whoever opened the old one goes on reading it


@pytest.mark.parametrize("kind", ["drop", "truncate", "flip"])
def test_a_bad_connection_is_tried_again(tmp_path: Path, store: Path, cloud: Cloud, kind: str) -> None:
    push(store, cloud.url, cloud.options)
    faults = [Fault(kind, 1, where) for where in ("shard-00001.lmdb", "columns.safetensors")]
    cloud.proxy.faults += faults
    assert_same_samples(opened(cloud, tmp_path), store)
    assert [fault.met for fault in faults] == [1, 1]


def test_a_server_that_falls_silent_is_asked_again(
    tmp_path: Path, store: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cloud.name == "az":
        pytest.skip("Azure's library has a timeout of its own, of minutes")
    monkeypatch.setattr(bucket_module, "_SILENCE_S", 2.0)
    push(store, cloud.url, cloud.options)
    fault = Fault("hang", 1, "shard-00001.lmdb")
    cloud.proxy.faults.append(fault)
    begun = time.monotonic()
    assert_same_samples(opened(cloud, tmp_path), store)
    assert fault.met == 1
    assert time.monotonic() - begun < 50  # the proxy says nothing for a minute


def test_what_is_not_there_is_named(tmp_path: Path, store: Path, cloud: Cloud) -> None:
    with pytest.raises(CacheNotFoundError, match=f"no complete store at {cloud.url}"):
        opened(cloud, tmp_path)
    nowhere = cloud.url.replace("lab-", "nobody-")
    with pytest.raises(StorageLostError, match=f"cannot write {nowhere}/.*\n.*create the bucket"):
        push(store, nowhere, cloud.options)


def test_a_bucket_that_was_changed_meanwhile(tmp_path: Path, store: Path, cloud: Cloud) -> None:
    push(store, cloud.url, cloud.options)
    ds = opened(cloud, tmp_path / "c")
    other = tmp_path / "other"
    build(other, first(5), storage="delta")
    cloud.system().rm(cloud.url.partition("://")[2], recursive=True)
    push(other, cloud.url, cloud.options)
    with pytest.raises((StorageLostError, StaleCacheError, CacheNotFoundError), match="shard-00001"):
        _ = ds[8]
    assert_same_samples(opened(cloud, tmp_path / "c"), other)


def test_wrong_credentials(tmp_path: Path, store: Path, cloud: Cloud) -> None:
    if cloud.name == "gs":
        pytest.skip("Google's emulator checks none")
    push(store, cloud.url)
    cloud.log_in("bm90IHRoZSBrZXk=")
    bucket_module._SYSTEMS.clear()
    with pytest.raises(RemoteAccessError, match="not allowed to read az://") as caught:
        opened(cloud, tmp_path)
    assert "bm90IHRoZSBrZXk" not in str(caught.value)


def test_cells_are_read_from_there(tmp_path: Path, cloud: Cloud) -> None:
    anndata = pytest.importorskip("anndata")
    random = np.random.default_rng(3)
    names = [f"g{k}" for k in range(12)]
    cells = anndata.AnnData(random.poisson(1.0, (30, 12)).astype(np.float32))
    cells.var_names, cells.obs["condition"] = names, ["ctrl", "g1", "g2+ctrl"] * 10
    cells.write_h5ad(tmp_path / "cells.h5ad")
    address = cloud.url.replace("stores/ko", "cells.h5ad")
    cloud.system().put_file(str(tmp_path / "cells.h5ad"), address.partition("://")[2])
    graph = tc.testing.tiny_graph(num_genes=12)
    graph["gene"].node_ids = names
    settings = {"perturbation": "condition", "control": "ctrl"}
    there = tc.AnnDataSource(address, graph, storage_options=cloud.options, **settings)
    here = tc.AnnDataSource(tmp_path / "cells.h5ad", graph, **settings)
    for root, source in (("a", there), ("b", here)):
        build(tmp_path / root, source, processor=None, storage="delta")
    assert_same_samples(tc.PreprocessedDataset(tmp_path / "a"), tmp_path / "b")
