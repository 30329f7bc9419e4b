"""What users pass by mistake to ``push``, ``pull``, ``stage`` and addresses: answered, and nothing is replaced or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import SettingError


def build(root: Path, count: int = 3) -> Path:
    graphs = [Data(x=torch.full((2,), float(k))) for k in range(count)]
    tc.build(root, source=graphs, storage="full", shard_size=2, progress=False)
    return root


def content(*places: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}


Call = Callable[[Path, str], Any]
QUIET = {"progress": False}
INSIDE: dict[str, Call] = {
    "itself": lambda root, url: tc.stage(root, root, **QUIET),
    "its processed": lambda root, url: tc.stage(root, root / "processed", **QUIET),
    "below": lambda root, url: tc.stage(str(root), root / "a" / "b", **QUIET),
    "by dots": lambda root, url: tc.stage(root, root.parent / "other" / ".." / root.name / "a", **QUIET),
    "by a link": lambda root, url: tc.stage(root, _link(root) / "a", **QUIET),
    "through a link": lambda root, url: tc.stage(_link(root), root / "a", **QUIET),
    "of an address": lambda root, url: tc.stage(url, root.parent / "bucket" / "a", **QUIET),
    "push to itself": lambda root, url: tc.push(root, f"file://{root}", **QUIET),
    "push below": lambda root, url: tc.push(root, f"file://{root}/a", **QUIET),
    "pull to the bucket": lambda root, url: tc.pull(url, root.parent / "bucket", **QUIET),
    "pull below": lambda root, url: tc.pull(url, root.parent / "bucket" / "a", **QUIET),
    "cache": lambda root, url: tc.PreprocessedDataset(url, cache_dir=root.parent / "bucket" / "a"),
}


def _link(root: Path) -> Path:
    (root.parent / "link").symlink_to(root)
    return root.parent / "link"


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, str]:
    root, url = build(tmp_path / "store"), f"file://{tmp_path}/bucket"
    tc.push(root, url, progress=False)
    return root, url


@pytest.mark.parametrize("case", INSIDE)
def test_a_place_in_the_store_itself(case: str, store: tuple[Path, str]) -> None:
    root, url = store
    before = content(root, root.parent / "bucket")
    with pytest.raises(SettingError, match="itself"):
        INSIDE[case](root, url)
    assert content(root, root.parent / "bucket") == before
    assert not (root / "a").exists()


def test_beside_the_store_is_fine(store: tuple[Path, str]) -> None:
    root, url = store
    for copy in (tc.stage(root, root.parent, **QUIET), tc.stage(root, f"{root}-copies", **QUIET)):
        assert len(tc.PreprocessedDataset(copy)) == 3
    assert len(tc.PreprocessedDataset(url, cache_dir=root.parent / "cache")) == 3


WRONG: dict[str, Call] = {
    "overwrite=": lambda root, url: tc.push(root, url, overwrite="false", **QUIET),
    "force=": lambda root, url: tc.push(root, url, force="no", **QUIET),
    "overwrite='no'": lambda root, url: tc.pull(url, root, overwrite="no", **QUIET),
    "progress=": lambda root, url: tc.stage(root, root.parent / "disk", progress="no"),
    "keep='2'": lambda root, url: tc.stage(root, root.parent / "disk", keep="2", **QUIET),
    "keep=1.5": lambda root, url: tc.stage(root, root.parent / "disk", keep=1.5, **QUIET),
    "keep=True": lambda root, url: tc.stage(root, root.parent / "disk", keep=True, **QUIET),
    "keep=0": lambda root, url: tc.stage(root, root.parent / "disk", keep=0, **QUIET),
    "storage_options is str": lambda root, url: tc.stage(
        url, root.parent / "disk", storage_options="x", **QUIET
    ),
    "storage_options is int": lambda root, url: tc.push(root, url, storage_options=5, **QUIET),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_text_is_no_truth_value_and_replaces_nothing(case: str, store: tuple[Path, str]) -> None:
    _, url = store
    other = build(store[0].parent / "other", 5)
    before = content(store[0].parent)
    with pytest.raises(SettingError, match=case):
        WRONG[case](other, url)
    assert content(store[0].parent) == before
