"""Every test gets its own directory of digest stamps and one thread."""

import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import fresh
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """``-n`` alone would make what a module makes once in every worker: tests of a group stay together."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadgroup"
    if hasattr(config, "workerinput"):  # a worker hears only what was typed
        config.option.loadgroup = True


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
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
