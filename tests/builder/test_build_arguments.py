"""Arguments of no sensible type are refused by name, before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import torchcell_cache as tc
from torchcell_cache.errors import SettingError

WRONG: dict[str, list[Any]] = {
    "num_workers": ["2", 1.5, -1, None, [1], True],
    "shard_size": ["7", 0, 2.5, [3], -1, False],
    "max_record_bytes": ["1", 0, 1.5, None],
    "on_stale": [None, 3, "ignore", ["error"]],
    "storage": [None, 5, "deltas", ["full"]],
    "allow_empty": ["no", 2, []],
    "progress": ["yes", 5, []],
    "task": ["0", 1.0, None, -1, 2, True],
    "tasks": ["2", 0, None, 1.5, -1],
    "n": ["8", 1.5, None, []],
    "keep": ["2", 1.5, None, 0],
    "dry_run": ["no", 3],
    "unfinished": ["no", 3],
    "level": [None, 1, "deep", ["full"]],
    "num_samples": ["5", 1.5, None, -1],
    "seed": ["1", None, 1.5],
    "shard": ["0", 1.5, [0]],
}


def arguments(names: str, **good: Any) -> list[Any]:
    cases = [(name, value) for name in names.split() for value in WRONG[name]]
    return [pytest.param({**good, name: value}, name, id=f"{name}={value!r}") for name, value in cases]


def refused(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(SettingError, match=rf"\b{name}="):
        call()


@pytest.mark.parametrize(
    ("given", "name"),
    arguments("num_workers shard_size max_record_bytes on_stale storage allow_empty progress"),
)
def test_build(tmp_path: Path, given: dict[str, Any], name: str) -> None:
    root = tmp_path / "store"
    settings = {"source": tc.testing.tiny_source(5), "processor": tc.Perturbation(), **given}
    refused(name, lambda: tc.build(root, **settings))
    assert not root.exists()


@pytest.mark.parametrize(
    ("given", "name"),
    arguments("task tasks num_workers shard_size on_stale storage progress", task=0, tasks=2),
)
def test_build_part(tmp_path: Path, given: dict[str, Any], name: str) -> None:
    root = tmp_path / "store"
    refused(name, lambda: tc.build_part(root, source=tc.testing.tiny_source(5), **given))
    assert not root.exists()


@pytest.mark.parametrize(
    ("given", "name"), arguments("tasks shard_size on_stale storage progress allow_empty", tasks=2)
)
def test_finalize(tmp_path: Path, given: dict[str, Any], name: str) -> None:
    root = tmp_path / "store"
    refused(name, lambda: tc.finalize(root, source=tc.testing.tiny_source(5), **given))
    assert not root.exists()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    tc.build(root, source=tc.testing.tiny_source(5), processor=tc.Perturbation(), progress=False)
    return root


@pytest.mark.parametrize(("given", "name"), arguments("num_workers progress"))
def test_append_and_update(store: Path, given: dict[str, Any], name: str) -> None:
    refused(name, lambda: tc.append(store, tc.testing.tiny_source(2), **given))
    refused(name, lambda: tc.update(store, tc.testing.tiny_source(2), **given))


@pytest.mark.parametrize(("given", "name"), arguments("shard_size on_stale progress"))
def test_save_subset(store: Path, tmp_path: Path, given: dict[str, Any], name: str) -> None:
    dataset = tc.PreprocessedDataset(store)
    refused(name, lambda: tc.save_subset(dataset[:2], tmp_path / "part", **given))


@pytest.mark.parametrize(("given", "name"), arguments("keep dry_run unfinished"))
def test_gc(store: Path, given: dict[str, Any], name: str) -> None:
    refused(name, lambda: tc.gc(store, **given))


@pytest.mark.parametrize(("given", "name"), arguments("level num_samples seed progress"))
def test_verify(store: Path, given: dict[str, Any], name: str) -> None:
    refused(name, lambda: tc.verify(store, **given))


@pytest.mark.parametrize(("given", "name"), arguments("shard progress"))
def test_repair(store: Path, given: dict[str, Any], name: str) -> None:
    refused(name, lambda: tc.repair(store, **given))


@pytest.mark.parametrize(("given", "name"), arguments("n"))
def test_checks(given: dict[str, Any], name: str) -> None:
    refused(name, lambda: tc.testing.check_processor(None, tc.testing.tiny_source(5), **given))
    refused(name, lambda: tc.testing.check_source(tc.testing.tiny_source(5), **given))
