"""A bounded cache: what was used longest ago goes, what is open stays, and the samples are right all the time."""

import gc
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forks
import numpy as np
import pytest
from loading import build, make_source
from object_store import Fault, s3, unreliable

import torchcell_cache as tc
from torchcell_cache.remote.byte_locks import ByteLocks
from torchcell_cache.remote.opening import cached_files, make_room
from torchcell_cache.testing import assert_same_graph

__all__ = ["s3", "unreliable"]


@pytest.fixture
def remote(tmp_path: Path):
    """A pushed store of 12 shards, and what its files take."""
    store = build(tmp_path / "store", make_source(count=84), storage="delta").root
    url = f"file://{tmp_path}/bucket/ko"
    tc.push(store, url, progress=False)
    manifest = tc.PreprocessedDataset(store).generation.manifest
    shared = sum(entry.size for entry in manifest.files)
    shard = max(entry.file.size for entry in manifest.shards)
    assert len(manifest.shards) == 12
    return store, url, shared, shard


def shards_in(cache: Path) -> list[str]:
    return sorted(file.path.name for file in cached_files(cache) if file.path.suffix == ".lmdb")


def total(cache: Path) -> int:
    return sum(file.size for file in cached_files(cache))


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, remote) -> None:
    store, url, shared, shard = remote
    limit = shared + 3 * shard
    ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", cache_bytes=limit)
    wanted = tc.PreprocessedDataset(store)
    for k in range(len(ds)):
        assert_same_graph(ds[k], wanted[k])
        assert total(tmp_path / "c") <= limit
    assert shards_in(tmp_path / "c") == [f"shard-{k:05d}.lmdb" for k in (9, 10, 11)]
    _ = ds[9 * 7], ds[0]
    assert shards_in(tmp_path / "c")[0] == "shard-00000.lmdb"


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shuffled_batches_from_a_cache_smaller_than_the_store(tmp_path: Path, remote, shards: int) -> None:
    store, url, shared, shard = remote
    limit = shared + shards * shard
    ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", cache_bytes=limit)
    order = np.random.default_rng(shards).permutation(84)
    wanted = tc.PreprocessedDataset(store)
    for start in range(0, 84, 28):
        rows = order[start : start + 28].tolist()
        mine, theirs = ds.read_batch(rows), wanted.read_batch(rows)
        assert mine.labels("fitness").tolist() == theirs.labels("fitness").tolist()
        for k, (a, b) in enumerate(zip(ds.__getitems__(rows), wanted.__getitems__(rows), strict=True)):
            assert_same_graph(a, b), k
        assert total(tmp_path / "c") <= limit


def test_streams_and_shard_by_shard_orders_read_a_bounded_cache(tmp_path: Path, remote) -> None:
    _, url, shared, shard = remote
    ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", cache_bytes=shared + 4 * shard)
    sampler = tc.DistributedShardSampler(ds, batch_size=6, shuffle=True)
    seen = [k for b in tc.CacheLoader(ds, batch_sampler=sampler) for k in b.indices.tolist()]
    assert sorted(seen) == list(range(84))
    assert total(tmp_path / "c") <= shared + 4 * shard


def test_threads_and_eviction(tmp_path: Path, remote) -> None:
    store, url, shared, shard = remote
    ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", cache_bytes=shared + 4 * shard)
    wanted = [float(g["gene"].phenotype_values.sum()) for g in tc.PreprocessedDataset(store)]

    def read(seed: int) -> bool:
        order = np.random.default_rng(seed).permutation(84).tolist()
        return all(float(ds[k]["gene"].phenotype_values.sum()) == wanted[k] for k in order)

    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # four threads may have four shards open, and fetch more
        assert all(pool.map(read, range(6)))


def test_eight_processes_read_under_eviction(tmp_path: Path, remote) -> None:
    store, url, shared, shard = remote
    limit = shared + 9 * shard
    wanted = [float(g["gene"].phenotype_values.sum()) for g in tc.PreprocessedDataset(store)]

    def reader(seed: int):
        def read():
            warnings.simplefilter("ignore", RuntimeWarning)
            ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", cache_bytes=limit)
            most = 0
            for k in np.random.default_rng(seed).permutation(84).tolist():
                if float(ds[k]["gene"].phenotype_values.sum()) != wanted[k]:
                    return "a wrong sample"
                most = max(most, total(tmp_path / "c"))
            return most

        return read

    answers = forks.together([reader(k) for k in range(8)], tmp_path / "answers")
    peaks = [answer.get("value") for answer in answers]
    assert all(isinstance(peak, int) for peak in peaks), answers
    assert max(peaks) <= limit + 8 * shard  # each may be fetching one
    make_room(tmp_path / "c", 0, limit)
    assert total(tmp_path / "c") <= limit


def test_what_another_process_has_open_stays(tmp_path: Path, remote) -> None:
    _, url, shared, _ = remote
    (tmp_path / "answers").mkdir()

    def hold():
        ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c")
        _ = ds[0]
        (tmp_path / "ready").touch()
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return len([ds[k] for k in range(7)])

    other = forks.start(hold, tmp_path / "answers", "0")
    while not (tmp_path / "ready").exists():
        assert other.is_alive()
    ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c")
    _ = ds[7]
    del ds
    gc.collect()
    with pytest.warns(RuntimeWarning, match="all the rest of it is open"):
        make_room(tmp_path / "c", 0, 1)
    assert shards_in(tmp_path / "c") == ["shard-00000.lmdb"]
    assert total(tmp_path / "c") > shared
    (tmp_path / "go").touch()
    forks.finish([other])
    assert (tmp_path / "answers" / "0.json").read_text() == '{"value": 7}'
    make_room(tmp_path / "c", 0, 1)
    assert cached_files(tmp_path / "c") == []


def test_a_child_keeps_what_it_reads_when_its_parent_lets_go(tmp_path: Path, remote) -> None:
    store, url, shared, shard = remote
    wanted = [float(g["gene"].phenotype_values.sum()) for g in tc.PreprocessedDataset(store)]
    ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", cache_bytes=shared + 3 * shard)
    _ = ds[0], ds[7]
    (tmp_path / "answers").mkdir()

    def read():
        warnings.simplefilter("ignore", RuntimeWarning)
        return [float(ds[k]["gene"].phenotype_values.sum()) for k in (*range(21), *range(21))]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        child = forks.start(read, tmp_path / "answers", "0")
        assert [float(g["gene"].phenotype_values.sum()) for g in ds] == wanted
        forks.finish([child])
    assert (tmp_path / "answers" / "0.json").read_text() == f'{{"value": {wanted[:21] * 2}}}'


def test_a_killed_downloader_keeps_nobody_waiting(tmp_path: Path, unreliable) -> None:
    url, options, proxy, direct = unreliable
    store = build(tmp_path / "store", make_source(), storage="delta").root
    tc.push(store, url, storage_options=direct, progress=False)
    ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=direct)
    (tmp_path / "answers").mkdir()
    proxy.faults.append(Fault("hang", where="shard-00000"))

    def stuck():
        return len(list(tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", storage_options=options)))

    other = forks.start(stuck, tmp_path / "answers", "0")
    while not list((tmp_path / "c").rglob(".tmp-shard*")):
        assert other.is_alive()
        time.sleep(0.01)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert len(list(ds)) == 23


def test_damage_in_the_cache_is_fetched_again(tmp_path: Path, remote) -> None:
    store, url, _, _ = remote
    ds = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", download="all")
    directory = ds.generation.directory
    del ds
    gc.collect()
    tc.PreprocessedDataset(store).close()
    for name in ("shard-00001.lmdb", "columns.safetensors"):
        (directory / name).chmod(0o644)
        data = bytearray((directory / name).read_bytes())
        data[len(data) // 2] ^= 1
        (directory / name).write_bytes(data)
    (directory / "shard-00002.lmdb").unlink()
    again = tc.PreprocessedDataset(url, cache_dir=tmp_path / "c")
    for mine, theirs in zip(again, tc.PreprocessedDataset(store), strict=True):
        assert_same_graph(mine, theirs)


def test_threads_that_open_a_lock_file_at_once_share_its_descriptor(tmp_path: Path) -> None:
    """On a second descriptor that nobody remembers, a lock would last as long as the process."""
    with ThreadPoolExecutor(8) as pool:
        for number in range(100):
            locks, together = ByteLocks(tmp_path / str(number)), threading.Barrier(8)

            def take(byte: int, locks=locks, together=together) -> bool:
                together.wait()
                return locks.shared(byte)

            assert all(pool.map(take, range(8)))
            locks.close()
            assert all(map(ByteLocks(tmp_path / str(number)).exclusive, range(8))), number


def test_byte_locks_exclude_other_descriptors_only(tmp_path: Path) -> None:
    first, second = ByteLocks(tmp_path / "lock"), ByteLocks(tmp_path / "lock")
    assert first.shared(3)
    assert second.shared(3)
    assert not first.exclusive(3)
    assert first.exclusive(4)
    assert not second.shared(4)
    second.release(3)
    assert first.exclusive(3)
    assert not second.shared(3)
    assert first.shared(3)
    assert second.shared(3)
    first.close()
    assert second.exclusive(4)
