"""Records in groups: little of a page is lost, each is found again, and what does not fit is said."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import CorruptShardError
from torchcell_cache.store.groups import LAST_KEY, disk_bytes
from torchcell_cache.store.records import ShardFiles, _Env, close_all, close_file, open_count, write_shard

GROUP = 1 << 16


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(0, 90), st.integers(1000, 9000), st.just(70_000)), min_size=1, max_size=60
    ),
    st.sampled_from([1, 4096, GROUP]),
    st.integers(1, 60),
    st.integers(0, 1 << 40),
    st.booleans(),
)
def test_every_record_is_found(tmp_path_factory, sizes, group_bytes, cut, first, tight) -> None:
    rng = np.random.default_rng(len(sizes))
    records = [rng.bytes(size) for size in sizes]
    path = tmp_path_factory.mktemp("g") / "shard"
    chunks = [records[k : k + cut] for k in range(0, len(records), cut)]
    write_shard(path, first, chunks, 1 if tight else 1 << 26, group_bytes)
    files = ShardFiles([str(path)], [path.stat().st_size], [first, first + len(records)], None, True)
    order = rng.permutation(len(records)).tolist()
    try:
        assert files.read([first + k for k in order], [0] * len(order)) == [records[k] for k in order]
        seen = files.visit(
            [first + k for k in order], [0] * len(order), lambda found: list(map(bytes, found))
        )
        assert seen == [records[k] for k in order]
    finally:
        close_file(path)
    again = path.with_name("again")
    write_shard(again, first, [records], 1 if tight else 1 << 26, group_bytes)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("size", [700, 2100, 4200, 5000, 6500, 9000, 40_000])
def test_a_file_is_hardly_larger_than_its_records(tmp_path, size) -> None:
    rng = np.random.default_rng(size)
    records = [rng.bytes(int(size * (0.8 + 0.4 * rng.random()))) for _ in range(800)]
    sizes = {}
    for group_bytes in (0, GROUP):
        path = tmp_path / str(group_bytes)
        write_shard(path, 0, [records], 1 << 26, group_bytes)
        sizes[group_bytes] = path.stat().st_size
        told = sum(disk_bytes(len(record), group_bytes) for record in records)
        assert 0.85 < told / sizes[group_bytes] < 1.15 or size < 2000
    assert sizes[GROUP] < 1.07 * sum(map(len, records)) + 16_384


@pytest.mark.parametrize("change", ["gone", "short", "others", "longer"])
def test_a_file_that_does_not_tell_where_its_records_lie(tmp_path, change) -> None:
    path = tmp_path / "s"
    write_shard(path, 0, [[bytes(3000)] * 50], 1 << 24, GROUP)
    options = {} if int(lmdb.__version__.split(".")[0]) < 3 else {"lib_version": 0}
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24, **options) as env,
        env.begin(write=True) as txn,
    ):
        key = LAST_KEY.to_bytes(8, "big")
        told = txn.get(key)
        changed = {
            "short": told[:-3],
            "others": told[:4] + bytes(4) + told[8:],
            "longer": told + bytes(4),
        }.get(change)
        txn.delete(key) if changed is None else txn.put(key, changed)
    files = ShardFiles([str(path)], [path.stat().st_size], [0, 50], None, True)
    with pytest.raises(CorruptShardError, match="where its records lie"):
        files.read([0], [0])
    close_all()
    path = tmp_path / "t"
    write_shard(path, 0, [[bytes(3000)] * 50], 1 << 24, GROUP)
    files = ShardFiles([str(path)], [path.stat().st_size], [0, 49], None, True)
    with pytest.raises(CorruptShardError, match="holds 50 records, the manifest says 49"):
        files.read([0], [0])
    close_all()


def test_files_may_be_closed_while_a_reader_learns_where_records_lie(tmp_path, monkeypatch) -> None:
    """What a thread has opened stays open until it is done, whenever another one closes all."""
    path = tmp_path / "s"
    write_shard(path, 0, [[bytes(3000)] * 50], 1 << 24, GROUP)
    files = ShardFiles([str(path)], [path.stat().st_size], [0, 50], None, True)
    learn = _Env.insist

    def interrupted(*arguments) -> None:
        other = threading.Thread(target=close_all)
        other.start()
        other.join()
        learn(*arguments)

    monkeypatch.setattr(_Env, "insist", interrupted)
    for k in range(5):
        assert files.read([k], [0]) == [bytes(3000)]
    close_all()
    assert open_count() == 0


def graphs(count: int, first: int = 0) -> list[Data]:
    generator = torch.Generator().manual_seed(first)
    return [Data(x=torch.rand(700 + k % 5, 1, generator=generator), y=float(first + k)) for k in range(count)]


def same(dataset, wanted) -> None:
    assert len(dataset) == len(wanted)
    for got, want in zip(dataset, wanted, strict=True):
        assert torch.equal(got.x, want.x)
        assert got.y == want.y


def test_whatever_is_done_with_a_store_holds(tmp_path) -> None:
    first, more = graphs(70), graphs(30, 1000)
    root = tmp_path / "s"
    quiet = {"progress": False}
    ds = tc.build(root, source=first, storage="delta", shard_size=16, **quiet)
    assert ds.generation.manifest.format_version == 2
    same(ds, first)
    assert tc.verify(root, level="full", source=first, **quiet).ok
    tc.append(root, more, **quiet)
    grown = tc.PreprocessedDataset(root)
    same(grown, first + more)
    assert tc.verify(root, level="quick", **quiet).ok
    assert tc.verify(root, level="full", **quiet).ok
    chosen = tc.save_subset(grown[[3, 99, 50]], tmp_path / "part", **quiet)
    same(chosen, [(first + more)[k] for k in (3, 99, 50)])
    assert tc.verify(tmp_path / "part", level="full", **quiet).ok
    shard = grown.generation.directory / "shard-00001.lmdb"
    before = shard.read_bytes()
    close_all()
    shard.chmod(0o644)
    damaged = bytearray(before)
    damaged[len(before) // 2] ^= 1
    shard.write_bytes(damaged)
    assert not tc.verify(root, level="full", **quiet).ok
    shard.write_bytes(before[:-4096])
    assert not tc.verify(root, level="quick", **quiet).ok
    with pytest.raises(CorruptShardError):
        tc.repair(root, **quiet)  # these graphs are their source's
    shard.write_bytes(before)
    same(tc.PreprocessedDataset(root), first + more)


def test_repair_makes_the_same_file_again(tmp_path) -> None:
    first = graphs(40)
    ds = tc.build(tmp_path, source=first, storage="delta", shard_size=16, progress=False)
    shard = ds.generation.directory / "shard-00001.lmdb"
    before = shard.read_bytes()
    close_all()
    shard.chmod(0o644)
    shard.write_bytes(before[:-1] + b"x" if before[-1:] != b"x" else before[:-1] + b"y")
    report = tc.repair(tmp_path, source=first, progress=False)
    assert report.rebuilt == ["shard-00001.lmdb"]
    again = tc.PreprocessedDataset(tmp_path)
    assert (again.generation.directory / "shard-00001.lmdb").read_bytes() == before
    same(again, first)


def test_a_store_of_the_first_version_grows_in_it(tmp_path, monkeypatch) -> None:
    from torchcell_cache.builder import plan

    first, more = graphs(20), graphs(10, 50)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "written_form", lambda generic, storage: {})
        tc.build(tmp_path / "old", source=first, storage="delta", progress=False)
    old = tc.PreprocessedDataset(tmp_path / "old")
    assert old.generation.manifest.format_version == 1
    again = tc.build(tmp_path / "old", source=first, storage="delta", progress=False)  # not stale
    assert again.generation.manifest.generation == old.generation.manifest.generation
    tc.append(tmp_path / "old", more, progress=False)
    grown = tc.PreprocessedDataset(tmp_path / "old")
    assert grown.generation.manifest.format_version == 1
    same(grown, first + more)
    assert tc.verify(tmp_path / "old", level="full", progress=False).ok


def test_an_older_package_says_to_upgrade(tmp_path) -> None:
    tc.build(tmp_path, source=graphs(3), storage="full", progress=False)
    manifest = json.loads((tmp_path / "processed" / "manifest.json").read_text())
    assert manifest["format_version"] == 2
    assert manifest["schema"]["group_bytes"] == GROUP
    assert "encodings" not in manifest["schema"]


def test_a_copy_of_the_store_reads_the_same(tmp_path: Path) -> None:
    first = graphs(30)
    tc.build(tmp_path / "a", source=first, storage="delta", shard_size=8, progress=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    same(tc.PreprocessedDataset(os.fspath(tmp_path / "b")), first)
