"""Pushing and pulling again: after an interruption, after the store grew, over another store."""

import time
from pathlib import Path

import pytest
from loading import build, make_source
from object_store import pull, push, s3, store, system, unreliable

import torchcell_cache as tc
from torchcell_cache.errors import StaleCacheError, StorageError
from torchcell_cache.remote.bucket import Bucket
from torchcell_cache.store.manifest import processed_dir, read_manifest

__all__ = ["s3", "store", "unreliable"]


def test_another_store_is_not_overwritten_by_chance(tmp_path: Path, store: Path, s3) -> None:
    url, options = s3
    push(store, url, options)
    reader = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=options)
    first = read_manifest(store)
    build(store, make_source(seed=5), storage="delta", on_stale="rebuild")
    with pytest.raises(StaleCacheError, match="overwrite=true"):
        push(store, url, options)
    assert tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=options).content_digest == (
        first.content_digest
    )
    push(store, url, options, overwrite=True)
    assert len(list(reader)) == 23  # pinned: its objects are still there
    assert reader.content_digest == first.content_digest
    fresh = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=options)
    assert fresh.content_digest == read_manifest(store).content_digest != first.content_digest
    pull(url, tmp_path / "copy", options)
    other = build(tmp_path / "other", make_source(seed=7), storage="delta")
    with pytest.raises(StaleCacheError, match="choose another root"):
        pull(url, other.root, options)
    pull(url, other.root, options, overwrite=True)
    assert tc.verify(other.root, "full", progress=False).ok


def test_a_store_that_grew_sends_what_is_new(tmp_path: Path, unreliable) -> None:
    url, options, proxy, _ = unreliable
    store = build(tmp_path / "store", make_source(count=21), storage="delta").root
    push(store, url, options)
    proxy.requests.clear()
    tc.append(store, make_source(count=9, seed=3), progress=False)
    push(store, url, options, overwrite=True)
    done = {path.rpartition("/")[2]: method for method, path in proxy.requests if path.endswith(".lmdb")}
    assert done == {
        **{f"shard-0000{k}.lmdb": "COPY" for k in range(3)},
        "shard-00003.lmdb": "PUT",
        "shard-00004.lmdb": "PUT",
    }
    assert tc.verify(pull(url, tmp_path / "copy", options), "full", progress=False).ok


def test_an_interrupted_push_goes_on(tmp_path: Path, store: Path, unreliable) -> None:
    url, options, proxy, direct = unreliable
    push(store, url, options)
    gen = read_manifest(store).generation
    system(direct).rm(f"{url}/processed/manifest.json")
    system(direct).rm(f"{url}/processed/{gen}/shard-00002.lmdb")
    proxy.requests.clear()
    push(store, url, options)
    sent = [path.rpartition("/")[2].split("?")[0] for method, path in proxy.requests if method == "PUT"]
    assert sent == ["shard-00002.lmdb", ".pushed.json", "manifest.json", "card.html", "manifest.json"]
    proxy.requests.clear()
    push(store, url, options)
    assert not [path for method, path in proxy.requests if method == "PUT"]


def test_what_ends_after_a_failure_is_not_sent_again(tmp_path: Path, store: Path, monkeypatch) -> None:
    url, sent, put_file = f"file://{tmp_path}/bucket", list[str](), Bucket.put_file

    def put(bucket: Bucket, source: Path, name: str) -> None:
        if fails and source.name == "shard-00000.lmdb":
            raise StorageError("no")
        time.sleep(0.2 * fails)
        put_file(bucket, source, name)
        sent.append(name)

    monkeypatch.setattr(Bucket, "put_file", put)
    fails = True
    with pytest.raises(StorageError):
        tc.push(store, url, progress=False)
    first, fails = set(sent), False
    sent.clear()
    tc.push(store, url, progress=False)
    assert first
    assert not first & set(sent)


def test_an_interrupted_pull_goes_on(tmp_path: Path, store: Path, unreliable) -> None:
    url, options, proxy, _ = unreliable
    push(store, url, options)
    copy = pull(url, tmp_path / "copy", options)
    (processed_dir(copy) / "manifest.json").unlink()
    (processed_dir(copy) / read_manifest(store).generation / "shard-00001.lmdb").unlink()
    proxy.requests.clear()
    pull(url, copy, options)
    assert proxy.fetched(".lmdb") == proxy.fetched("shard-00001.lmdb") == 1
    assert proxy.fetched(".safetensors") == 0
    assert tc.verify(copy, "full", progress=False).ok


def test_a_card_stands_beside_what_was_pushed(tmp_path: Path) -> None:
    ds = build(tmp_path / "private" / "knockouts", make_source(count=9), storage="delta")
    url = f"file://{tmp_path}/bucket/knockouts"
    tc.push(ds.root, url, progress=False)
    page = (tmp_path / "bucket" / "knockouts" / "card.html").read_text()
    assert all(
        part in page
        for part in ("<h1>knockouts</h1>", ds.content_digest, f"PreprocessedDataset(&#x27;{url}&#x27;)")
    )
    assert "private" not in page
    assert tc.PreprocessedDataset(url, cache_dir=tmp_path / "c").content_digest == ds.content_digest
    assert tc.verify(tc.pull(url, tmp_path / "copy", progress=False), "full", progress=False).ok
