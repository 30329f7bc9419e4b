"""What networks, servers and people do to a bucket ends in the right bytes or in an error that says what to do."""

import time
from pathlib import Path

import numpy as np
import pytest
from loading import build, make_source
from object_store import Fault, s3, system, unreliable

import torchcell_cache as tc
from torchcell_cache.errors import (
    CacheError,
    CacheNotFoundError,
    CorruptManifestError,
    CorruptShardError,
    RemoteAccessError,
    RemoteUnavailableError,
    SettingError,
    StorageLostError,
)
from torchcell_cache.remote import bucket as bucket_module
from torchcell_cache.store.manifest import processed_dir, read_manifest
from torchcell_cache.testing import assert_same_graph

__all__ = ["s3", "unreliable"]

FOREVER = float("inf")
NO_RETRIES = {"config_kwargs": {"retries": {"max_attempts": 1}, "read_timeout": 3}}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch) -> None:
    monkeypatch.setattr(bucket_module, "_FIRST_PAUSE_S", 0.005)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "store"
    build(root, make_source(), storage="delta")
    return root


@pytest.fixture
def remote(store: Path, unreliable):
    """``(url, options through the proxy, proxy, options without)`` of a bucket that holds the store."""
    url, options, proxy, direct = unreliable
    tc.push(store, url, storage_options=direct, progress=False)
    return url, {**options, **NO_RETRIES}, proxy, direct


def open_at(place: Path, url, options, **settings):
    return tc.PreprocessedDataset(url, cache_dir=place, storage_options=options, **settings)


def assert_same_samples(ds, store: Path) -> None:
    for mine, theirs in zip(ds, tc.PreprocessedDataset(store), strict=True):
        assert_same_graph(mine, theirs)


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        *((kind, "shard-00001.lmdb") for kind in ("drop", "truncate", "SlowDown", "InternalError", "flip")),
        *((kind, "processed/manifest.json") for kind in ("drop", "truncate", "flip")),
        ("flip", "columns.safetensors"),
        ("hang", "shard-00001.lmdb"),
    ],
)
def test_what_passes_is_tried_again(tmp_path: Path, store: Path, remote, kind: str, where: str) -> None:
    url, options, proxy, _ = remote
    times = 1 if kind == "hang" else 2
    fault = Fault(kind, times, where)
    proxy.faults.append(fault)
    assert_same_samples(open_at(tmp_path, url, options), store)
    assert fault.met == times


@pytest.mark.parametrize("chunk", [1000, 4096, 12288])
def test_large_files_come_in_ranges(tmp_path: Path, store: Path, remote, monkeypatch, chunk: int) -> None:
    url, options, proxy, _ = remote
    monkeypatch.setattr(bucket_module, "_CHUNK", chunk)
    sizes = {e.file.name: e.file.size for e in read_manifest(store).shards}
    proxy.faults += [Fault(kind, 1, "shard-00001.lmdb") for kind in ("drop", "truncate", "flip")]
    assert_same_samples(open_at(tmp_path, url, options), store)
    assert all(fault.met for fault in proxy.faults)
    assert proxy.fetched("shard-00002.lmdb") == -(-sizes["shard-00002.lmdb"] // chunk)


def test_wrong_bytes_for_ever_never_become_a_sample(tmp_path: Path, store: Path, remote) -> None:
    url, options, proxy, _ = remote
    fault = Fault("flip", FOREVER, "shard-00001.lmdb")
    proxy.faults.append(fault)
    ds = open_at(tmp_path, url, options)
    with pytest.raises(CorruptShardError, match=r"shard-00001\.lmdb") as caught:
        _ = ds[8]
    assert f"torchcell-cache push root=... url={url} force=true" in str(caught.value)
    assert not list(tmp_path.rglob("shard-00001.lmdb"))
    assert not list(tmp_path.rglob(".tmp-*"))
    assert f"{url}/processed/gen-" in str(caught.value)
    with pytest.raises(CorruptShardError):
        tc.pull(url, tmp_path / "copy", storage_options=options, progress=False)
    with pytest.raises(CacheNotFoundError):
        tc.PreprocessedDataset(tmp_path / "copy")
    fault.left = 0
    assert_same_samples(ds, store)
    tc.pull(url, tmp_path / "copy", storage_options=options, progress=False)
    assert_same_samples(tc.PreprocessedDataset(tmp_path / "copy"), store)
    proxy.faults.append(Fault("flip", FOREVER, "processed/manifest.json"))
    with pytest.raises(CorruptManifestError, match=f"{url}/processed/manifest.json"):
        open_at(tmp_path, url, options)


def test_a_server_that_stays_away(tmp_path: Path, store: Path, remote) -> None:
    url, options, proxy, _ = remote
    ds = open_at(tmp_path, url, options)
    fault = Fault("InternalError", FOREVER)
    proxy.faults.append(fault)
    with pytest.raises(RemoteUnavailableError, match=r"cannot read s3://.*4 tries") as caught:
        _ = ds[0]
    assert caught.value.code == 75
    fault.left = 0
    assert_same_samples(ds, store)


@pytest.mark.parametrize("code", ["ExpiredToken", "AccessDenied"])
def test_credentials_that_expire_are_named_at_once_and_may_be_renewed(
    tmp_path: Path, store: Path, remote, code: str
) -> None:
    url, options, proxy, _ = remote
    ds = open_at(tmp_path, url, options)
    fault = Fault(code, FOREVER)
    proxy.faults.append(fault)
    with pytest.raises(RemoteAccessError, match=r"not allowed to read s3://.*shard-00001.*") as caught:
        _ = ds[8]
    assert "aws sso login" in str(caught.value)
    assert fault.met == 1  # trying again would not help
    fault.left = 0
    assert_same_samples(ds, store)


def test_no_credentials_at_all(tmp_path: Path, store: Path, s3, monkeypatch) -> None:
    url, options = s3
    tc.push(store, url, storage_options=options, progress=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RemoteAccessError, match="AWS_PROFILE"):
        open_at(tmp_path, url, {**options, "use_ssl": False})  # a connection of its own


@pytest.mark.parametrize("kind", ["drop", "SlowDown", "InternalError"])
def test_a_push_survives_what_passes(tmp_path: Path, store: Path, unreliable, kind: str) -> None:
    url, options, proxy, direct = unreliable
    proxy.faults += [Fault(kind, 2, "shard-00002", "PUT"), Fault(kind, 1, "/manifest.json", "PUT")]
    tc.push(store, url, storage_options={**options, **NO_RETRIES}, progress=False)
    assert all(fault.met for fault in proxy.faults)
    assert_same_samples(open_at(tmp_path, url, direct), store)


def test_a_push_that_ends_early_publishes_nothing(tmp_path: Path, store: Path, unreliable) -> None:
    url, options, proxy, direct = unreliable
    fault = Fault("AccessDenied", FOREVER, "shard-00002", "PUT")
    proxy.faults.append(fault)
    with pytest.raises(RemoteAccessError, match="not allowed to write"):
        tc.push(store, url, storage_options=options, progress=False)
    with pytest.raises(CacheNotFoundError):
        open_at(tmp_path, url, direct)
    fault.left = 0
    tc.push(store, url, storage_options=options, progress=False)
    assert_same_samples(open_at(tmp_path, url, direct), store)
    with pytest.raises((StorageLostError, SettingError, RemoteAccessError), match="no-such-bucket"):
        tc.push(store, "s3://no-such-bucket-here/x", storage_options=direct, progress=False)


def test_a_damaged_store_is_not_published(tmp_path: Path, s3) -> None:
    url, options = s3
    store = build(tmp_path / "store", make_source(), storage="delta").root
    path = processed_dir(store) / read_manifest(store).generation / "shard-00001.lmdb"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptShardError, match=r"shard-00001\.lmdb"):
        tc.push(store, url, storage_options=options, progress=False)
    with pytest.raises(CacheNotFoundError):
        open_at(tmp_path, url, options)


def test_a_bucket_that_changes_under_a_reader(tmp_path: Path, remote, store: Path) -> None:
    url, options, _, direct = remote
    ds = open_at(tmp_path, url, options)
    wanted = tc.PreprocessedDataset(store)
    assert_same_graph(ds[0], wanted[0])
    other = build(tmp_path / "other", make_source(seed=5), storage="delta")
    tc.push(other.root, url, storage_options=direct, overwrite=True, progress=False)
    assert_same_graph(ds[8], wanted[8])  # the old generation's objects are still there
    old = f"{url}/processed/{ds.generation.manifest.generation}"
    system(direct).rm(f"{old}/shard-00002.lmdb")
    with pytest.raises(StorageLostError, match=r"shard-00002\.lmdb was removed") as caught:
        _ = ds[15]
    assert "open the dataset again" in str(caught.value)
    system(direct).pipe_file(f"{old}/shard-00003.lmdb", b"something else")
    with pytest.raises(CorruptShardError, match=r"shard-00003\.lmdb"):
        _ = ds[22]
    assert_same_graph(ds[1], wanted[1])  # what is here stays
    assert_same_samples(open_at(tmp_path, url, options), other.root)


def test_an_object_that_is_longer_or_damaged_is_put_again_by_force(tmp_path: Path, remote, store) -> None:
    url, options, _, direct = remote
    name = f"{url}/processed/{read_manifest(store).generation}/shard-00001.lmdb"
    system(direct).pipe_file(name, system(direct).cat_file(name) + b"x")
    ds = open_at(tmp_path, url, options)
    with pytest.raises(CorruptShardError, match="the manifest says"):
        _ = ds[8]
    tc.push(store, url, storage_options=direct, progress=False, force=True)
    assert_same_samples(ds, store)


def test_random_faults_give_right_samples_or_errors(tmp_path: Path, store: Path, remote) -> None:
    url, options, proxy, _ = remote
    wanted = list(tc.PreprocessedDataset(store))
    random = np.random.default_rng(0)
    kinds = ["drop", "truncate", "flip", "SlowDown", "InternalError", "AccessDenied"]
    read, refused, unhelpful, deadline = 0, 0, 0, time.monotonic() + 3
    while time.monotonic() < deadline or not (read and refused):
        names = [
            "manifest",
            "columns",
            "base_graph",
            "shard-00000",
            "shard-00001",
            "shard-00002",
            "shard-00003",
        ]
        proxy.faults = [
            Fault(str(random.choice(kinds)), int(random.integers(1, 7)), name)
            for name in names
            if random.random() < 0.3
        ]
        try:
            ds = open_at(tmp_path / str(read + refused), url, options)
            for k in random.permutation(len(wanted)).tolist():
                assert_same_graph(ds[k], wanted[k])
            read += 1
        except CacheError as error:
            refused += 1
            unhelpful += "fix:" not in str(error)
    assert not unhelpful
