"""Publishing on file systems that are not POSIX, and by many publishers at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faultlib import FOREVER, Fault, FaultServer
from test_commit_faults import (
    NEW,
    OLD,
    content_of,
    generation_of,
    manifest_first,
    publish_first,
    put_old_file,
    replace,
    temporaries,
)

from torchcell_cache.core.files import publish_new, temp_path, write_atomic
from torchcell_cache.errors import StorageLostError

Fresh = Callable[[], Path]

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
    faults: FaultServer, fresh: Fresh, work, op: str, number: int
) -> None:
    folder = fresh()
    trial = faults.run_trial(work, folder, prefix=folder, fault=Fault("fail_after", ops=[op], error=number))
    assert (trial.outcome, trial.value, trial.fired) == ("ok", True, 1), trial.error
    assert "new" in (content_of(folder), generation_of(folder))
    assert temporaries(folder) == []


def test_a_rename_that_really_failed_is_a_failure(faults: FaultServer, fresh: Fresh) -> None:
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
def test_publishing_without_hard_links(faults: FaultServer, fresh: Fresh, number: int, taken: bool) -> None:
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
    faults: FaultServer, fresh: Fresh, taken: bool
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
def test_of_many_publishers_exactly_one_wins(faults: FaultServer, fresh: Fresh, links: bool) -> None:
    folder = fresh()
    fault = Fault() if links else Fault("fail", ops=["link"], error=errno.EPERM, times=FOREVER)
    trial = faults.run_trial(race, folder, 8, 50, prefix=folder, fault=fault)
    assert trial.value == [1] * 50
    for path in folder.iterdir():
        assert len(set(path.read_bytes())) == 1
        assert path.stat().st_size == 1000
    assert temporaries(folder) == []


# Reading over a network.


def put_manifest(folder: Path) -> None:
    assert manifest_first(folder)


@pytest.mark.parametrize("op", ["open", "read"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_manifest_that_the_server_lost_is_a_storage_error(
    faults: FaultServer, fresh: Fresh, op: str, number: int
) -> None:
    folder = fresh()
    put_manifest(folder)
    fault = Fault("fail", ops=[op], error=number, match="manifest.json")
    trial = faults.run_trial(generation_of, folder, prefix=folder, fault=fault)
    assert isinstance(trial.error, StorageLostError)
    assert "manifest.json" in str(trial.error)
    assert generation_of(folder) == "new"


def look_three_times(folder: Path) -> list[str]:
    return [generation_of(folder) for _ in range(3)]


def test_a_manifest_that_is_seen_late_is_absent_and_then_there(faults: FaultServer, fresh: Fresh) -> None:
    folder = fresh()
    put_manifest(folder)
    fault = Fault("fail", ops=["open", "stat"], error=errno.ENOENT, times=2, match="manifest.json")
    trial = faults.run_trial(look_three_times, folder, prefix=folder, fault=fault)
    assert trial.value == ["none", "none", "new"]
