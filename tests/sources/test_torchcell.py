"""The lab's own package trains from our stores: built in one process, read in another with another hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fresh
import pytest
import torchcell_checks as checks
import torchcell_client as client

LIMIT = 280
pytestmark = pytest.mark.xdist_group("torchcell")  # its two processes run once for all


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What each check of each process said."""
    if client.fetched() is None:
        pytest.skip("torchcell cannot be fetched: PyPI is not reachable")
    folder = tmp_path_factory.mktemp("torchcell")
    out = {}
    for stage, run in {"build": fresh.run, "read": subprocess.run}.items():
        environment = {**os.environ, "PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "1"}  # fresh has its own
        command = [sys.executable, str(Path(checks.__file__)), stage, str(folder)]
        done = run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, done.stderr[-4000:]
        out[stage] = json.loads((folder / f"{stage}.json").read_text())
    return out


@pytest.mark.parametrize(("stage", "name"), [(s, n) for s, names in checks.CHECKS.items() for n in names])
def test_with_torchcell_itself(outcomes: dict[str, dict[str, str]], stage: str, name: str) -> None:
    assert outcomes[stage][name] == "ok", outcomes[stage][name]


def test_generic_classes_are_rewritten() -> None:
    """The syntax of Python 3.12 as it was before, decorated, with bounds, with and without bases."""
    text = (
        '"""Doc."""\nfrom __future__ import annotations\nimport abc\n\n'
        "class A[T: abc.ABC]:\n    def f[U: type](self, x: U) -> U:\n        return x\n\n"
        "class B[T](A[T]):\n    pass\n\nclass C[T](abc.ABC):\n    pass\n\ndef g[\n    T\n](x: T) -> T:\n    return x\n"
    ).replace("def g[\n    T\n](", "def g[T](")
    names: dict[str, object] = {}
    exec(compile(client.without_type_parameters(text), "generic", "exec"), names)
    assert names["A"][int]
    assert names["B"]().f(3) == 3
    assert names["C"][int]
    assert names["g"](1) == 1
