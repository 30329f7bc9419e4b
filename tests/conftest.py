"""Every test gets its own directory of digest stamps and one thread."""

import contextlib
import functools
import json
import multiprocessing
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fresh
import memory
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
_MEMORY = Path("/dev/shm")


def _has_room() -> bool:
    """Whether tests can write to memory: a build syncs thirty files, for which a disk takes a tenth of a second."""
    with contextlib.suppress(OSError):
        there, known = (
            os.statvfs(_MEMORY),
            re.findall(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text()),
        )
        free = min(there.f_bavail * there.f_frsize, *(int(kilobytes) << 10 for kilobytes in known))
        usable = os.access(_MEMORY, os.W_OK | os.X_OK) and not there.f_flag & os.ST_NOEXEC
        return usable and bool(known) and free >= 6 << 30
    return False


if _has_room():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

CAMPAIGN = os.environ.get("TORCHCELL_CACHE_CAMPAIGN")  # a directory that keeps what was done


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A campaign goes on where it was stopped: what passed, by its log, is left out."""
    log = Path(CAMPAIGN or os.devnull, "log.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    passed = {line["test"] for line in lines if line["outcome"] == "passed"}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]
    # What takes long comes first, so that no process is alone with it at the end.
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not {"system", "testing"} & {*item.nodeid.partition("::")[0].split("/")})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if CAMPAIGN and report.when == "call" and "PYTEST_XDIST_WORKER" not in os.environ:
        Path(CAMPAIGN).mkdir(parents=True, exist_ok=True)
        facts = {"outcome": report.outcome, "seconds": round(report.duration, 1)}
        line = {"test": report.nodeid, **facts, **dict(report.user_properties)}
        with Path(CAMPAIGN, "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file that is an ``xdist_group`` stay in one worker, whatever the versions of pytest and xdist."""
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def group(file: str) -> str | None:
        found = re.search(
            r"^pytestmark = .*xdist_group\(\"(\w+)\"", (config.rootpath / file).read_text(), re.M
        )
        return None if found is None else found[1]

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.partition("::")[0]) or nodeid

    return Groups(config, log) if config.getvalue("dist") in ("load", "loadgroup") else None


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    memory.settle()
    multiprocessing.set_forkserver_preload(["torch", "torch_geometric.data"])  # once, not in every process


@pytest.fixture(autouse=True, scope="session")
def _checks_fork_their_processes() -> None:
    """Another process with another hash seed, as ever; test_code_of_main starts Python itself."""
    from torchcell_cache.testing import elsewhere

    elsewhere.subprocess = SimpleNamespace(run=fresh.run, TimeoutExpired=subprocess.TimeoutExpired)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True, scope="session")
def _own_stamps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("stamps")
    path.chmod(0o700)
    before = os.environ.get("TORCHCELL_CACHE_STAMPS")
    os.environ["TORCHCELL_CACHE_STAMPS"] = str(path)
    yield
    if before is None:
        del os.environ["TORCHCELL_CACHE_STAMPS"]
    else:
        os.environ["TORCHCELL_CACHE_STAMPS"] = before
