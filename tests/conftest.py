"""Every test gets its own directory of digest stamps and one thread."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


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
