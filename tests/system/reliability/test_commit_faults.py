"""Commit steps under every fault: the old state or the new one afterwards, and a re-run succeeds."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faultlib import FOREVER, MUTATING, Fault, FaultServer

from torchcell_cache.core.files import make_dirs_durable, remove_stale_temps, share_file, write_atomic
from torchcell_cache.errors import (
    CacheNotFoundError,
    StorageFullError,
    StorageLostError,
    StorageReadOnlyError,
)
from torchcell_cache.store.manifest import Manifest, processed_dir, read_manifest, write_manifest
from torchcell_cache.store.shard_entry import FileEntry, ShardEntry, read_sidecar, write_sidecar

OLD, NEW = b"old" * 50_000, b"brand new" * 40_000
KILLS = ("kill_before", "kill_after", "kill_torn")
ERRORS = {
    errno.ENOSPC: StorageFullError,
    errno.EDQUOT: StorageFullError,
    errno.EFBIG: StorageFullError,
    errno.EROFS: StorageReadOnlyError,
    errno.EACCES: StorageReadOnlyError,
    errno.EIO: StorageLostError,
    errno.ESTALE: StorageLostError,
}


def entry(name: str) -> FileEntry:
    return FileEntry(name, 4096, "ab" * 32, "cd" * 16)


def manifest(generation: str) -> Manifest:
    shard = ShardEntry(0, 0, 3, entry("shard-00000.lmdb"), 12345, (1, 2))
    return Manifest(
        generation=generation,
        num_samples=3,
        shard_size=4,
        storage="delta",
        schema={},
        fingerprint={"base_graph": "ef" * 32},
        content_digest="ab" * 16,
        files=(entry("base_graph.json"),),
        shards=(shard,),
    )


# Workloads: each brings the folder from its old to its new state, however often it is run.


def replace(folder: Path) -> object:
    return write_atomic(folder / "f", NEW)


def publish_first(folder: Path) -> object:
    return write_atomic(folder / "f", NEW, replace=False)


def manifest_first(folder: Path) -> object:
    make_dirs_durable(processed_dir(folder))
    return write_manifest(folder, manifest("gen-new"))


def manifest_next(folder: Path) -> object:
    return write_manifest(folder, manifest("gen-new"), expect_generation="gen-old")


def sidecar(folder: Path) -> object:
    directory = make_dirs_durable(processed_dir(folder) / "gen-new")
    return write_sidecar(directory, manifest("gen-new").shards[0])


def share(folder: Path) -> object:
    share_file(folder / "source", folder / "another")
    return share_file(folder / "source", folder / "f")


# What a reader sees: "old", "new" or an error that no state explains.


def content_of(folder: Path) -> str:
    path = folder / "f"
    return {None: "none", OLD: "old", NEW: "new"}[path.read_bytes() if path.exists() else None]


def generation_of(folder: Path) -> str:
    try:
        return read_manifest(folder).generation.removeprefix("gen-")
    except CacheNotFoundError:
        return "none"


def shard_of(folder: Path) -> str:
    found = read_sidecar(processed_dir(folder) / "gen-new", 0)
    assert found in (None, manifest("gen-new").shards[0])
    return "none" if found is None else "new"


def put_old_file(folder: Path) -> None:
    (folder / "f").write_bytes(OLD)


def put_old_manifest(folder: Path) -> None:
    make_dirs_durable(processed_dir(folder))
    assert write_manifest(folder, manifest("gen-old"))


def put_source(folder: Path) -> None:
    (folder / "source").write_bytes(NEW)


def put_nothing(folder: Path) -> None:
    pass


CASES = {
    "replace": (put_old_file, replace, content_of, "old"),
    "publish_first": (put_nothing, publish_first, content_of, "none"),
    "manifest_first": (put_nothing, manifest_first, generation_of, "none"),
    "manifest_next": (put_old_manifest, manifest_next, generation_of, "old"),
    "share": (put_source, share, content_of, "none"),
    "sidecar": (put_nothing, sidecar, shard_of, "none"),
}
Fresh = Callable[[], Path]
Case = tuple[Callable[[Path], None], Callable[[Path], object], Callable[[Path], str], str]


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def temporaries(folder: Path) -> list[str]:
    return [name for _, _, names in os.walk(folder) for name in names if name.startswith(".tmp-")]


def settle(
    faults: FaultServer, folder: Path, work: Callable[[Path], object], state: Callable[[Path], str]
) -> None:
    """Run again without faults, clean as a build does, and find the new state and nothing else."""
    trial = faults.run_trial(work, folder, prefix=folder)
    assert trial.outcome == "ok", trial.error
    assert state(folder) == "new"
    for directory, _, _ in os.walk(folder):
        remove_stale_temps(directory)
    assert temporaries(folder) == []


def test_killed_at_every_call(faults: FaultServer, fresh: Fresh, case: Case) -> None:
    prepare, work, state, old = case
    folder = fresh()
    prepare(folder)
    calls = faults.run_trial(work, folder, prefix=folder).calls
    assert calls >= 5
    seen = set()
    for at, action in itertools.product(range(1, calls + 1), KILLS):
        folder = fresh()
        prepare(folder)
        trial = faults.run_trial(work, folder, prefix=folder, fault=Fault(action, at=at))
        assert trial.outcome == "killed"
        seen.add(state(folder))
        settle(faults, folder, work, state)
    assert seen == {old, "new"}


def test_every_call_fails_once_or_from_then_on(faults: FaultServer, fresh: Fresh, case: Case) -> None:
    prepare, work, state, old = case
    folder = fresh()
    prepare(folder)
    ops = (*MUTATING, "close")
    calls = faults.run_trial(work, folder, prefix=folder, fault=Fault(ops=ops)).calls
    for at, (number, kind), times in itertools.product(range(1, calls + 1), ERRORS.items(), (1, FOREVER)):
        folder = fresh()
        prepare(folder)
        fault = Fault("fail", at=at, ops=ops, error=number, times=times)
        trial = faults.run_trial(work, folder, prefix=folder, fault=fault)
        assert trial.outcome == "ok" or type(trial.error) is kind, (at, number, trial)
        assert state(folder) == "new" if trial.outcome == "ok" else state(folder) in (old, "new")
        assert times == FOREVER or temporaries(folder) == [] or trial.outcome == "ok"
        settle(faults, folder, work, state)


def test_short_writes_are_completed(faults: FaultServer, fresh: Fresh, case: Case) -> None:
    prepare, work, state, _ = case
    folder = fresh()
    prepare(folder)
    trial = faults.run_trial(work, folder, prefix=folder, fault=Fault("short", ops=["write"], times=5))
    assert (trial.outcome, trial.fired) == ("ok", 0 if work is share else 5)
    assert state(folder) == "new"


def test_a_failed_fsync_is_not_tried_again_and_publishes_nothing(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    put_old_file(folder)
    fault = Fault("fail", ops=MUTATING, error=errno.EIO, at=3)
    trial = faults.run_trial(replace, folder, prefix=folder, fault=fault, log=True)
    assert isinstance(trial.error, StorageLostError)
    assert [call.op for call in trial.log] == ["create", "write", "unlink"]
    assert content_of(folder) == "old"


def test_an_error_that_close_reports_publishes_nothing(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    put_old_file(folder)
    fault = Fault("fail_after", ops=["close"], error=errno.EDQUOT, match=".tmp-")
    trial = faults.run_trial(replace, folder, prefix=folder, fault=fault)
    assert isinstance(trial.error, StorageFullError)
    assert content_of(folder) == "old"


def test_nothing_is_named_before_it_is_synced_and_every_name_is_synced(
    faults: FaultServer, fresh: Fresh
) -> None:
    folder = fresh()
    log = faults.run_trial(manifest_first, folder, prefix=folder, log=True).log
    steps = [(call.op, os.path.relpath(call.path, folder)) for call in log]
    temporary = next(path for op, path in steps if op == "create")
    assert steps == [
        ("mkdir", "processed"),
        ("fsync", "processed"),
        ("fsync", "."),
        ("create", temporary),
        ("write", temporary),
        ("fsync", temporary),
        ("link", temporary),
        ("unlink", temporary),
        ("fsync", "processed"),
    ]


def test_a_directory_made_by_a_killed_run_is_synced_by_the_next(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    processed_dir(folder).mkdir()
    log = faults.run_trial(manifest_first, folder, prefix=folder, log=True).log
    assert str(folder) in [call.path for call in log if call.op == "fsync"]
