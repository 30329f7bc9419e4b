"""Stores that an earlier version built: they open, verify, serve what they served, and are not stale."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import cells as cell_files
import pytest

import torchcell_cache as tc

FOLDER = Path(__file__).parent / "golden"
sys.path.insert(0, str(FOLDER))  # a user's module is known by its name: it must be importable as `makers`

import makers  # noqa: E402
import makers_2  # noqa: E402
import served  # noqa: E402

SETUPS = {**makers.setups(), **makers_2.setups()}
EXPECTED: dict[str, Any] = {
    name: expected
    for file in ("expected.json", "expected_2.json")
    for name, expected in json.loads((FOLDER / file).read_text()).items()
}
NAMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(name == "cells" and not cell_files.INSTALLED, reason=cell_files.REASON)
    )
    for name in SETUPS
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    for file in ("stores.tar.xz", "stores_2.tar.xz"):
        with tarfile.open(FOLDER / file) as archive:
            archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_serves_what_it_served(stores: Path, name: str) -> None:
    found, wanted = served.of_dataset(tc.PreprocessedDataset(stores / name)), EXPECTED[name]
    assert {key: found["columns"].get(key) for key in wanted["columns"]} == wanted["columns"]
    assert {**found, "columns": {}} == {**wanted, "columns": {}}


@pytest.mark.parametrize("name", NAMES)
def test_verifies(stores: Path, name: str) -> None:
    report = tc.verify(stores / name, level="full")
    assert report.ok, str(report)


def _source(name: str, scratch: Path) -> Any:
    return makers.table() if name == "appended" else SETUPS[name]["source"](scratch)


@pytest.mark.parametrize("name", NAMES)
def test_is_not_stale(stores: Path, name: str, tmp_path: Path) -> None:
    """The same source, processor and storage find the store and build nothing."""
    settings = {"shard_size": 3, **SETUPS[name], "source": _source(name, tmp_path), "progress": False}
    if name == "appended":
        del settings["storage"], settings["shard_size"]
        assert tc.update(stores / name, **settings).recomputed == 0
        return
    before = sorted(path.name for path in (stores / name / "processed").glob("gen-*"))
    assert tc.build(stores / name, **settings).content_digest == EXPECTED[name]["content_digest"]
    assert sorted(path.name for path in (stores / name / "processed").glob("gen-*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_processor_still_makes_these_samples(stores: Path, name: str, tmp_path: Path) -> None:
    """Built anew from the same things, the content is the same."""
    settings = {"shard_size": 3, **SETUPS[name], "source": _source(name, tmp_path), "progress": False}
    dataset = tc.build(tmp_path / "again", **settings)
    assert served.of_dataset(dataset)["samples"] == EXPECTED[name]["samples"]


def test_setups_and_stores_are_the_same(stores: Path) -> None:
    assert sorted(EXPECTED) == sorted(SETUPS) == sorted(path.name for path in stores.iterdir())
