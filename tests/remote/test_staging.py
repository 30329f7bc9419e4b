"""Staged copies: the same store, verified, once per node, never a stale one, never taken from under a reader."""

import gc
import io
import os
import shutil
from pathlib import Path

import forks
import pytest
from loading import build, make_source

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.errors import (
    CacheNotFoundError,
    CorruptShardError,
    SettingError,
    StorageError,
    StorageFullError,
)
from torchcell_cache.remote.copies import KEPT_SECONDS, local_origin
from torchcell_cache.remote.transfer import Origin, check_space, entries_of, fill
from torchcell_cache.store.lease import LEASE_NAME
from torchcell_cache.store.manifest import copy_name, processed_dir, read_manifest
from torchcell_cache.store.shard_entry import FileEntry
from torchcell_cache.testing import assert_same_graph


@pytest.fixture
def store(tmp_path: Path) -> Path:
    build(tmp_path / "store", make_source(), storage="delta")
    return tmp_path / "store"


def stage(root, to, **settings):
    return tc.stage(root, to, progress=False, **settings)


def directory_of(root: Path) -> Path:
    return processed_dir(root) / read_manifest(root).generation


def damage(path: Path, at: int = 100) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def inodes(directory: Path):
    return {path.name: path.stat().st_ino for path in directory.iterdir()}


def make_old(copy: Path) -> None:
    old = (copy / LEASE_NAME).stat().st_mtime - KEPT_SECONDS - 10
    os.utime(copy / LEASE_NAME, (old, old))


def test_a_copy_is_the_same_store(tmp_path: Path, store: Path) -> None:
    copy = stage(store, tmp_path / "local" / "disk")
    assert copy.parent == tmp_path / "local" / "disk"
    assert copy.name == f"store-{read_manifest(store).digest[:16]}"
    assert tc.verify(copy, "full", progress=False).ok
    original, staged = tc.PreprocessedDataset(store), tc.PreprocessedDataset(copy)
    assert staged.content_digest == original.content_digest
    for k in range(len(original)):
        assert_same_graph(staged[k], original[k])
    shutil.rmtree(store)
    assert len(list(tc.PreprocessedDataset(copy))) == len(original)


def test_another_content_has_another_name_and_a_stale_copy_is_never_returned(
    tmp_path: Path, store: Path
) -> None:
    first = stage(store, tmp_path / "local")
    assert stage(store, tmp_path / "local") == first
    build(store, make_source(seed=5), storage="delta", on_stale="rebuild")
    second = stage(store, tmp_path / "local")
    assert second != first
    digests = [tc.PreprocessedDataset(root).content_digest for root in (store, second, first)]
    assert digests[0] == digests[1] != digests[2]
    assert len(list(processed_dir(second).glob("gen-*"))) == 1  # older generations do not travel


def test_of_many_processes_one_copies(tmp_path: Path, store: Path) -> None:
    works = [lambda: str(tc.stage(store, tmp_path / "local"))] * 6
    answers = forks.together(works, tmp_path / "answers")
    assert {answer.get("value") for answer in answers} == {str(stage(store, tmp_path / "local"))}
    said = forks.printed(tmp_path / "answers")
    assert said.count("staged ") == 1
    assert said.count("is there, checked") == 5


class StoppedError(Exception):
    """What ends a copier in the middle."""


def test_what_a_stopped_copier_finished_is_kept(tmp_path: Path, store: Path) -> None:
    manifest = read_manifest(store)
    real, work = local_origin(store, manifest), tmp_path / "local" / f".partial-{copy_name(store, manifest)}"
    entries = entries_of(manifest)

    def fetch(name: str):
        if name == entries[5].name:
            raise StoppedError
        return real.fetch(name)

    with pytest.raises(StoppedError):
        fill(manifest, work, entries, Origin("here", fetch, ""), lambda count: None)
    kept = inodes(directory_of_partial(work))
    assert {e.name for e in entries} > set(kept)
    copy = stage(store, tmp_path / "local")
    after = inodes(directory_of(copy))
    assert {name: after[name] for name in kept} == kept
    assert not work.exists()
    assert tc.verify(copy, "full", progress=False).ok


def directory_of_partial(work: Path) -> Path:
    [directory] = processed_dir(work).iterdir()
    return directory


@pytest.mark.parametrize("name", ["shard-00001.lmdb", "columns.safetensors", "base_graph.json"])
def test_damage_of_the_original_is_found_on_the_way(tmp_path: Path, store: Path, name: str) -> None:
    damage(directory_of(store) / name)
    with pytest.raises(CorruptShardError, match=f"{name} at .*the manifest says") as caught:
        stage(store, tmp_path / "local")
    assert f"torchcell-cache repair root={store}" in str(caught.value)
    assert [path.name for path in (tmp_path / "local").iterdir() if not path.name.startswith(".")] == []
    (directory_of(store) / name).unlink()
    with pytest.raises(CorruptShardError, match=f"{name} is missing"):
        stage(store, tmp_path / "local")


def test_a_file_that_grows_is_not_read_to_its_end(tmp_path: Path, store: Path) -> None:
    manifest = read_manifest(store)
    entry = entries_of(manifest)[0]
    with pytest.raises(CorruptShardError):
        fill(
            manifest, tmp_path / "x", [entry], Origin("it", lambda name: io.BytesIO(bytes(1 << 24)), ""), int
        )


def test_damage_of_a_copy_is_mended_file_by_file(tmp_path: Path, store: Path) -> None:
    copy = stage(store, tmp_path / "local")
    directory = directory_of(copy)
    before = inodes(directory)
    damage(directory / "shard-00001.lmdb")
    (directory / "shard-00002.lmdb").unlink()
    assert stage(store, tmp_path / "local") == copy
    after = inodes(directory)
    changed = {
        name for name in before if name.endswith(("lmdb", "safetensors")) and after[name] != before[name]
    }
    assert changed <= {"shard-00001.lmdb", "shard-00002.lmdb"}
    assert tc.verify(copy, "full", progress=False).ok
    (processed_dir(copy) / "manifest.json").unlink()
    assert tc.verify(stage(store, tmp_path / "local"), "full", progress=False).ok


def test_space_is_checked_before_the_first_byte(tmp_path: Path) -> None:
    entry = FileEntry("columns.safetensors", 1 << 60, "0" * 64, "0" * 32)
    with pytest.raises(StorageFullError, match="1,152,921,504,606,846,976 bytes"):
        check_space([entry], tmp_path)


def test_old_copies_go_but_never_one_that_is_read_or_young(tmp_path: Path, store: Path) -> None:
    local = tmp_path / "local"
    copies = []
    for seed in range(3):
        build(store, make_source(seed=seed), storage="delta", on_stale="rebuild")
        copies.append(stage(store, local))
    other = build(tmp_path / "elsewhere" / "store", make_source(seed=8), storage="delta").root
    foreign = stage(other, local)
    make_old(foreign)
    stage(store, local, keep=1)
    assert all(copy.is_dir() for copy in copies)  # all young
    for copy in copies[:2]:
        make_old(copy)
    reader = tc.PreprocessedDataset(copies[0])
    stage(store, local, keep=1)
    assert [copy.is_dir() for copy in copies] == [True, False, True]
    assert len(list(reader)) == len(reader)
    make_old(copies[0])
    del reader
    gc.collect()
    stage(store, local, keep=2)
    assert copies[0].is_dir()
    stage(store, local, keep=1)
    assert [copy.is_dir() for copy in copies] == [False, False, True]
    assert foreign.is_dir()  # of another store, though the name is the same
    with pytest.raises(SettingError, match="keep=0"):
        stage(store, local, keep=0)
    (local.parent / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        stage(store, local.parent / "file")


def test_another_process_that_reads_keeps_its_copy(tmp_path: Path, store: Path) -> None:
    copy = stage(store, tmp_path / "local")
    make_old(copy)
    build(store, make_source(seed=5), storage="delta", on_stale="rebuild")
    ready, answers = tmp_path / "ready", tmp_path / "answers"
    answers.mkdir()

    def read():
        ds = tc.PreprocessedDataset(copy)
        ready.touch()
        while not (tmp_path / "go").exists():
            pass
        return len(list(ds))

    reader = forks.start(read, answers, "0")
    while not ready.exists():
        assert reader.is_alive()
    stage(store, tmp_path / "local", keep=1)
    assert copy.is_dir()
    (tmp_path / "go").touch()
    forks.finish([reader])
    assert (answers / "0.json").read_text() == '{"value": 23}'
    make_old(copy)
    stage(store, tmp_path / "local", keep=1)
    assert not copy.exists()


def test_the_command_prints_the_root_and_nothing_else_on_stdout(tmp_path: Path, store: Path, capsys) -> None:
    local = tmp_path / "lo cal"
    for _ in range(2):
        assert main(["stage", f"root={store}", f"to={local}", "keep=2"]) == 0
        printed = capsys.readouterr()
        assert printed.out == f"{local}/store-{read_manifest(store).digest[:16]}\n"
        assert printed.err
    assert main(["stage", f"root={tmp_path}/none", f"to={local}"]) == CacheNotFoundError.code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len([line for line in printed.err.splitlines() if line.startswith("error")]) == 1
