"""Every file-system call of a build refused, once and for ever: a typed error, nothing wrong published, resumable."""

from __future__ import annotations

import errno
import itertools
import pickle
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import stores
from faultlib import DATA, FOREVER, MUTATING, SYNC, Fault, FaultServer
from test_flip import in_child

import torchcell_cache as tc
from torchcell_cache.errors import (
    CacheError,
    StorageError,
    StorageFullError,
    StorageLostError,
    StorageReadOnlyError,
)

Room = Callable[[], Path]
OPS = (*MUTATING, "close")
ERRORS: dict[int, type[StorageError]] = {
    errno.ENOSPC: StorageFullError,
    errno.EDQUOT: StorageFullError,
    errno.EIO: StorageLostError,
    errno.EROFS: StorageReadOnlyError,
    errno.EACCES: StorageReadOnlyError,
    errno.EFBIG: StorageFullError,
    errno.ESTALE: StorageLostError,
    errno.EPERM: StorageReadOnlyError,
}


def assert_typed(error: BaseException | None, number: int, call: Any) -> None:
    """A storage error that says where, why and what to do. LMDB tells of some failures as another kind of storage."""
    assert isinstance(error, ERRORS[number]), (call, errno.errorcode[number], repr(error))
    assert error.fix
    assert error.path
    assert error.code == 73
    assert type(pickle.loads(pickle.dumps(error))) is type(error)


def refuse_everywhere(
    builds: FaultServer, room: Room, shape: str, numbers: Sequence[int], step: int
) -> dict[str, int]:
    root = room()
    trial = builds.run_trial(stores.build, root, shape, prefix=root, fault=Fault(ops=OPS), log=True)
    wanted, log = stores.facts(root), trial.log
    counts = {"typed": 0, "survived": 0}
    cases: Iterator[Any] = itertools.product(enumerate(log, start=1), numbers, (1, FOREVER))
    for (at, call), number, times in itertools.islice(cases, 0, None, step):
        root = room()
        fault = Fault("fail", at=at, ops=OPS, error=number, times=times)
        trial = builds.run_trial(stores.build, root, shape, prefix=root, fault=fault)
        where = (at, call.op, call.path, errno.errorcode[number], times, shape)
        if trial.outcome == "ok":  # progress, locks and tidying up are not worth a failed build
            assert stores.facts(root) == wanted, where
            counts["survived"] += 1
        else:
            assert trial.outcome == "raised", (where, trial)
            assert_typed(trial.error, number, where)
            assert stores.is_published(root) is False or stores.facts(root) == wanted, where
            counts["typed"] += 1
        stores.build(root, shape)
        assert stores.facts(root) == wanted, where
        assert stores.read_outcome(root, shape) == "equal", where
        assert stores.temporaries(root) == [], where
        stores.remove(root)
    return counts


@pytest.mark.parametrize("shape", ["delta", "generic"])
def test_every_refusal_is_typed_and_the_build_goes_on_afterwards(
    builds: FaultServer, room: Room, shape: str
) -> None:
    numbers = (errno.ENOSPC, errno.EIO, errno.EROFS)
    counts = refuse_everywhere(builds, room, shape, numbers, step=9)
    assert counts["typed"] > 40
    assert sum(counts.values()) > 60


@pytest.mark.campaign
@pytest.mark.parametrize("shape", stores.SHAPES)
def test_every_call_with_every_error(
    builds: FaultServer, room: Room, shape: str, reached: Callable[[str, int], int]
) -> None:
    counts = refuse_everywhere(builds, room, shape, tuple(ERRORS), step=1)
    reached("cases", sum(counts.values()))
    assert counts["typed"] > 1000


@pytest.mark.parametrize("shape", ["delta", "generic"])
def test_short_writes_are_completed_or_refused_never_believed(
    builds: FaultServer, room: Room, shape: str
) -> None:
    root = room()
    trial = builds.run_trial(stores.build, root, shape, prefix=root, fault=Fault(ops=DATA))
    wanted, done = stores.facts(root), 0
    for at, times in itertools.product(range(1, trial.calls + 1), (1, 3)):
        root = room()
        fault = Fault("short", at=at, ops=DATA, times=times)
        trial = builds.run_trial(stores.build, root, shape, prefix=root, fault=fault)
        assert trial.outcome == "ok" or isinstance(trial.error, StorageError), (at, trial.error)
        stores.build(root, shape)
        assert stores.facts(root) == wanted
        assert stores.read_outcome(root, shape) == "equal"
        done += 1
        stores.remove(root)
    assert done > 30


@pytest.mark.parametrize("shape", ["delta", "generic"])
def test_a_file_whose_sync_failed_is_written_anew_never_synced_again(
    builds: FaultServer, room: Room, shape: str
) -> None:
    """After a failed fsync the kernel may have dropped the pages and says so once: a second fsync would lie."""
    root = room()
    fault = Fault(ops=SYNC)
    syncs = builds.run_trial(stores.build, root, shape, prefix=root, fault=fault).calls
    wanted, refused = stores.facts(root), 0
    for at in range(1, syncs + 1):
        root = room()
        fault = Fault("fail_after", at=at, ops=SYNC, error=errno.EIO)
        trial = builds.run_trial(stores.build, root, shape, prefix=root, fault=fault, log=True)
        if trial.outcome == "ok":
            continue
        assert isinstance(trial.error, StorageLostError), trial.error
        failed = trial.log[at - 1].path
        assert Path(failed).is_dir() or failed not in [call.path for call in trial.log[at:]], "synced again"
        refused += 1
        stores.build(root, shape)
        assert stores.facts(root) == wanted
        stores.remove(root)
    assert refused > syncs // 2


def full_disk(root: Path, limit: int) -> bytes:
    """`RLIMIT_FSIZE` is the quota that anyone can set."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        stores.build(root, "full", shard_size=stores.COUNT)
    except StorageFullError as error:
        answer = f"{type(error).__name__} {'same command again' in str(error)}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    stores.build(root, "full", shard_size=stores.COUNT)
    return answer.encode()


@pytest.mark.parametrize("limit", [3_000, 9_000, 20_000])
def test_a_file_size_limit_is_a_full_disk(room: Room, limit: int) -> None:
    root = room()
    assert in_child(lambda: full_disk(root, limit), "limit") == b"StorageFullError True"
    assert stores.read_outcome(root, "full") == "equal"


def test_too_little_space_is_refused_before_anything_is_built(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchcell_cache.builder import generation

    root = room()
    monkeypatch.setattr(generation, "free_bytes", lambda path: 1000)
    with pytest.raises(StorageFullError, match=r"needs about .* 1\.0 KB are free"):
        stores.build(root, "delta")
    assert not list(root.rglob("shard-*"))


def failing_read(root: Path, shape: str) -> str:
    with stores.fresh_handles():
        try:
            dataset = tc.PreprocessedDataset(root)
            dataset.__getitems__(list(range(len(dataset))))
        except CacheError as error:
            return type(error).__name__
    return "ok"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_read_that_the_file_system_refuses_is_typed(builds: FaultServer, room: Room, number: int) -> None:
    root = room()
    stores.build(root, "delta")
    ops = ("open", "read", "stat")
    clean = builds.run_trial(failing_read, root, "delta", prefix=root, fault=Fault(ops=ops), log=True)
    assert clean.calls > 20
    for at, times in itertools.product(range(1, clean.calls + 1), (1, FOREVER)):
        fault = Fault("fail", at=at, ops=ops, error=number, times=times)
        trial = builds.run_trial(failing_read, root, "delta", prefix=root, fault=fault)
        assert trial.outcome == "ok", (at, times, trial.error)
        # The tensor library opens its file twice and says of the second time only that it could not.
        known = () if at < clean.calls else ("CorruptShardError",)
        assert trial.value in ("ok", "StorageLostError", *known), (at, times)
