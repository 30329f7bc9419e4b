"""Commit steps under every fault: the old state or the new one afterwards, and a re-run succeeds."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faultlib import FOREVER, MUTATING, Fault, FaultServer

from torchcell_cache.atomic import make_dirs_durable, publish_new, remove_stale_temps, temp_path, write_atomic
from torchcell_cache.errors import (
    CacheNotFoundError,
    StorageFullError,
    StorageLostError,
    StorageReadOnlyError,
)
from torchcell_cache.manifest import (
    FileEntry,
    Manifest,
    ShardEntry,
    processed_dir,
    read_manifest,
    read_sidecar,
    write_manifest,
    write_sidecar,
)

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


def put_nothing(folder: Path) -> None:
    pass


CASES = {
    "replace": (put_old_file, replace, content_of, "old"),
    "publish_first": (put_nothing, publish_first, content_of, "none"),
    "manifest_first": (put_nothing, manifest_first, generation_of, "none"),
    "manifest_next": (put_old_manifest, manifest_next, generation_of, "old"),
    "sidecar": (put_nothing, sidecar, shard_of, "none"),
}
Case = tuple[Callable[[Path], None], Callable[[Path], object], Callable[[Path], str], str]


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    numbers = itertools.count()

    def make() -> Path:
        folder = tmp_path / f"trial{next(numbers)}"
        folder.mkdir()
        return folder

    return make


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


def test_killed_at_every_call(faults: FaultServer, fresh, case: Case) -> None:
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


def test_every_call_fails_once_or_from_then_on(faults: FaultServer, fresh, case: Case) -> None:
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


def test_short_writes_are_completed(faults: FaultServer, fresh, case: Case) -> None:
    prepare, work, state, _ = case
    folder = fresh()
    prepare(folder)
    trial = faults.run_trial(work, folder, prefix=folder, fault=Fault("short", ops=["write"], times=5))
    assert (trial.outcome, trial.fired) == ("ok", 5)
    assert state(folder) == "new"


def test_a_failed_fsync_is_not_tried_again_and_publishes_nothing(faults: FaultServer, fresh) -> None:
    folder = fresh()
    put_old_file(folder)
    fault = Fault("fail", ops=MUTATING, error=errno.EIO, at=3)
    trial = faults.run_trial(replace, folder, prefix=folder, fault=fault, log=True)
    assert isinstance(trial.error, StorageLostError)
    assert [call.op for call in trial.log] == ["create", "write", "unlink"]
    assert content_of(folder) == "old"


def test_an_error_that_close_reports_publishes_nothing(faults: FaultServer, fresh) -> None:
    folder = fresh()
    put_old_file(folder)
    fault = Fault("fail_after", ops=["close"], error=errno.EDQUOT, match=".tmp-")
    trial = faults.run_trial(replace, folder, prefix=folder, fault=fault)
    assert isinstance(trial.error, StorageFullError)
    assert content_of(folder) == "old"


# NFS: the operation happens and reports failure, because the server saw the request twice.


@pytest.mark.parametrize(
    ("work", "op", "number"),
    [
        (replace, "rename", errno.ENOENT),
        (publish_first, "link", errno.EEXIST),
        (manifest_first, "link", errno.EEXIST),
        (manifest_first, "mkdir", errno.EEXIST),
        (publish_first, "unlink", errno.ENOENT),
    ],
)
def test_success_reported_as_failure_is_success(
    faults: FaultServer, fresh, work, op: str, number: int
) -> None:
    folder = fresh()
    trial = faults.run_trial(work, folder, prefix=folder, fault=Fault("fail_after", ops=[op], error=number))
    assert (trial.outcome, trial.value, trial.fired) == ("ok", True, 1), trial.error
    assert "new" in (content_of(folder), generation_of(folder))
    assert temporaries(folder) == []


def test_a_rename_that_really_failed_is_a_failure(faults: FaultServer, fresh) -> None:
    folder = fresh()
    put_old_file(folder)
    trial = faults.run_trial(
        replace, folder, prefix=folder, fault=Fault("fail", ops=["rename"], error=errno.ENOENT)
    )
    assert isinstance(trial.error, FileNotFoundError)
    assert content_of(folder) == "old"


# File systems without hard links, and those that cannot rename conditionally either.


def publish_where(folder: Path, taken: bool) -> bool:
    temporary = temp_path(folder / "f")
    temporary.write_bytes(NEW)
    if taken:
        (folder / "f").write_bytes(OLD)
    return publish_new(temporary, folder / "f")


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_publishing_without_hard_links(faults: FaultServer, fresh, number: int, taken: bool) -> None:
    folder = fresh()
    fault = Fault("fail", ops=["link"], error=number)
    trial = faults.run_trial(publish_where, folder, taken, prefix=folder, fault=fault)
    assert (trial.outcome, trial.value) == ("ok", not taken)
    assert content_of(folder) == ("old" if taken else "new")
    assert list(folder.iterdir()) == [folder / "f"]


def publish_with_nothing_atomic(folder: Path, taken: bool) -> bool:
    import ctypes

    class LibraryWithoutRenameat2:
        def __init__(self, *_: object, **__: object) -> None: ...

    ctypes.CDLL = LibraryWithoutRenameat2  # type: ignore[assignment,misc] # a libc that lacks the call: musl
    return publish_where(folder, taken)


@pytest.mark.parametrize("taken", [False, True])
def test_publishing_without_links_and_without_conditional_rename(
    faults: FaultServer, fresh, taken: bool
) -> None:
    folder = fresh()
    fault = Fault("fail", ops=["link"], error=errno.EPERM)
    trial = faults.run_trial(publish_with_nothing_atomic, folder, taken, prefix=folder, fault=fault)
    assert (trial.outcome, trial.value) == ("ok", not taken), trial.error
    assert content_of(folder) == ("old" if taken else "new")
    assert list(folder.iterdir()) == [folder / "f"]


def race(folder: Path, builders: int, rounds: int) -> list[int]:
    """Winners per round, when `builders` processes publish the same name at the same time."""
    winners = []
    for number in range(rounds):
        gate_out, gate_in = os.pipe()
        children = []
        for builder in range(builders):
            child = os.fork()
            if child == 0:
                os.close(gate_in)
                os.read(gate_out, 1)  # returns for all of them when the last writer closes
                won = write_atomic(folder / f"f{number}", str(builder).encode() * 1000, replace=False)
                os._exit(1 if won else 0)
            children.append(child)
        os.close(gate_out)
        os.close(gate_in)
        winners.append(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    return winners


@pytest.mark.parametrize("links", [True, False])
def test_of_many_publishers_exactly_one_wins(faults: FaultServer, fresh, links: bool) -> None:
    folder = fresh()
    fault = Fault() if links else Fault("fail", ops=["link"], error=errno.EPERM, times=FOREVER)
    trial = faults.run_trial(race, folder, 8, 50, prefix=folder, fault=fault)
    assert trial.value == [1] * 50
    for path in folder.iterdir():
        assert len(set(path.read_bytes())) == 1
        assert path.stat().st_size == 1000
    assert temporaries(folder) == []


def test_nothing_is_named_before_it_is_synced_and_every_name_is_synced(faults: FaultServer, fresh) -> None:
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


def test_a_directory_made_by_a_killed_run_is_synced_by_the_next(faults: FaultServer, fresh) -> None:
    folder = fresh()
    processed_dir(folder).mkdir()
    log = faults.run_trial(manifest_first, folder, prefix=folder, log=True).log
    assert str(folder) in [call.path for call in log if call.op == "fsync"]
