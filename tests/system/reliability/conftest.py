from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultlib import FaultServer, have_compiler

# What trials use; imported once, before the first fork.
WARM = (
    "numpy",
    "xxhash",
    "lmdb",
    "torchcell_cache.core.files",
    "torchcell_cache.core.locks",
    "torchcell_cache.store.manifest",
)


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    """The fault server, or a skip where no C compiler is (an error under CI)."""
    _need_compiler()
    server = FaultServer(tmp_path_factory.mktemp("faults"), WARM)
    yield server
    server.close()


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    """The fault server for whole builds: torch and the sources of the small stores are there before the first fork."""
    _need_compiler()
    server = FaultServer(
        tmp_path_factory.mktemp("builds"), (*WARM, "torch", "torchcell_cache.builder.run", "warmed")
    )
    yield server
    server.close()


def _need_compiler() -> None:
    if not have_compiler():
        message = "gcc is needed to build the fault injection library"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def reached(record_property: Callable[[str, object], None]) -> Callable[[str, int], int]:
    """Writes into the campaign's log how many of something were tried; gives the number back."""

    def write(what: str, count: int) -> int:
        record_property(what, count)
        return count

    return write


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Makes a new empty directory for each trial."""
    numbers = itertools.count()

    def make() -> Path:
        folder = tmp_path / f"trial{next(numbers)}"
        folder.mkdir()
        return folder

    return make


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """As ``fresh``, in memory where the machine has such a place: trials write and sync thousands of files."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK | os.X_OK)
    base = Path(tempfile.mkdtemp(prefix="torchcell_cache-", dir=memory if usable else tmp_path))
    numbers = itertools.count()

    def make() -> Path:
        folder = base / f"trial{next(numbers)}"
        folder.mkdir()
        return folder

    yield make
    shutil.rmtree(base, ignore_errors=True)
