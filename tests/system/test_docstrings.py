"""Examples in docstrings are run: what they show is what comes out, and no public function is without one."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, HeteroConv

import torchcell_cache as tc

OWNERS = (tc, tc.nn, tc.sources, tc.testing)
_FINDER = doctest.DocTestFinder(recurse=True, exclude_empty=True)


def examples() -> dict[str, doctest.DocTest]:
    """Every docstring of the package that has an example, by its place."""
    found = {}
    for info in pkgutil.walk_packages(tc.__path__, "torchcell_cache."):
        if Path(info.module_finder.path, info.name.rpartition(".")[2] + ".py").is_file() and ">>>" in Path(
            info.module_finder.path, info.name.rpartition(".")[2] + ".py"
        ).read_text(encoding="utf-8"):
            module = (
                pytest.importorskip(info.name)
                if ".lightning" in info.name
                else importlib.import_module(info.name)
            )
            found |= {test.name: test for test in _FINDER.find(module) if test.examples}
    return found


def public() -> list[tuple[str, Any]]:
    names = [(f"{owner.__name__}.{name}", getattr(owner, name)) for owner in OWNERS for name in owner.__all__]
    return [(name, value) for name, value in names if callable(value)]


@pytest.mark.parametrize(("name", "value"), public(), ids=[name for name, _ in public()])
def test_every_public_function_has_an_example(name: str, value: Any) -> None:
    assert ">>>" in (inspect.getdoc(value) or ""), f"{name} has no example"


def test_methods_that_give_data_away_have_an_example() -> None:
    names = (
        "to_arrow",
        "to_pandas",
        "to_polars",
        "to_parquet",
        "to_in_memory",
        "info",
        "plot",
        "card",
        "names",
    )
    assert [
        name for name in names if ">>>" not in (getattr(tc.PreprocessedDataset, name).__doc__ or "")
    ] == []


def test_examples_do_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    ds = tc.build(
        "stores/cell",
        source=tc.testing.tiny_source(12),
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        shard_size=4,
        progress=False,
    )
    known = {"tc": tc, "torch": torch, "np": np, "Data": Data, "GCNConv": GCNConv, "HeteroConv": HeteroConv}
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    tests = examples()
    for test in tests.values():
        test.globs |= {**known, "ds": ds, "here": str(tmp_path)}
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
    assert runner.tries > 80
    assert len(tests) > 60
