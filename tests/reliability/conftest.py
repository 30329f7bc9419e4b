from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultlib import FaultServer, have_compiler

# What trials use; imported once, before the first fork.
WARM = (
    "numpy",
    "xxhash",
    "lmdb",
    "torchcell_cache.atomic",
    "torchcell_cache.lock",
    "torchcell_cache.manifest",
)


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    """The fault server, or a skip where no C compiler is (an error under CI)."""
    if not have_compiler():
        message = "gcc is needed to build the fault injection library"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    server = FaultServer(tmp_path_factory.mktemp("faults"), WARM)
    yield server
    server.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """Makes a new empty directory for each trial."""
    numbers = itertools.count()

    def make() -> Path:
        folder = tmp_path / f"trial{next(numbers)}"
        folder.mkdir()
        return folder

    return make
