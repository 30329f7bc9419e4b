"""GEARS itself trains from our stores: every sample, batch and logged number is that of its own lists."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import fresh
import gears_checks as checks
import pytest

NEEDED = ("anndata", "scanpy", "sklearn", "networkx", "requests")
pytestmark = pytest.mark.xdist_group("gears")  # its process runs once for all


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each check said."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"GEARS needs {', '.join(missing)}")
    if checks.fetched() is None:
        pytest.skip("cell-gears cannot be fetched: PyPI is not reachable")
    folder = tmp_path_factory.mktemp("gears")
    done = fresh.run(
        [sys.executable, str(Path(checks.__file__)), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, str] = json.loads((folder / "outcomes.json").read_text())
    return found


@pytest.mark.parametrize("name", checks.CHECKS)
def test_with_gears_itself(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == "ok", outcomes[name]


def test_the_benchmark_runs() -> None:
    if missing := [name for name in ("anndata", "scipy") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"the benchmark needs {', '.join(missing)}")
    from experiments.gears import bench

    text = bench.run(small=True, rounds=1)
    assert text.count("\n| `PairedCells`, `CacheLoader`: `x` and `y` |") == 2
    assert "| 5,045 genes | Norman, 91,205 cells | Replogle, 162,751 cells |" in text
