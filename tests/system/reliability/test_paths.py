"""Roots with every kind of name, and names inside a store that point out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import stores

import torchcell_cache as tc
from torchcell_cache.core.sealed import seal
from torchcell_cache.errors import CacheError
from torchcell_cache.store.manifest import manifest_path, processed_dir, read_manifest

Room = Callable[[], Path]
NAMES = [
    "sp ace",
    "é 中文 🧬",
    "new\nline",
    "quo'te\"s",
    "$HOME;rm -rf",
    "-dash",
    "percent%s{}",
    "tab\t",
    "b" * 255,
]
HOSTILE = [
    "../../escape",
    "/etc/passwd",
    "gen-x/../../../escape",
    "gen-" + "a" * 300,
    "gen-a\x00b",
    "gen-a/b",
    ".",
    "",
    "gen-É",
    "GEN-A",
    "gen-a\n",
    *(
        "..",
        "...",
        "gen-a/",
        "./gen-a",
        "//gen-a",
        "gen-a/../gen-b",
        "gen-a\r",
        "gen-a ",
        " gen-a",
        "gen-a\x7f",
    ),
    *("C:\\escape", "\\\\server\\share", "~/escape", "$HOME", "%2e%2e/escape", "file:///etc/passwd", "gen-*"),
    *("gen-\u202e", "gen-\u2024\u2024", "-rf", "nul", ".tmp-gen", "shard-00000.lmdb/..", "manifest.json"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [0, 2])
def test_any_name_of_a_root_works(room: Room, name: str, workers: int) -> None:
    root = room() / name
    stores.build(root, "delta" if workers else "generic", workers)
    assert stores.read_outcome(root, "delta" if workers else "generic") == "equal"
    assert stores.temporaries(root) == []


def test_text_bytes_home_and_relative_roots(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    home = room()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    stores.build("~/a", "delta")
    stores.build("b/c", "delta")
    assert stores.facts(home / "a") == stores.facts(home / "b/c")
    dataset = tc.PreprocessedDataset("b/c")
    monkeypatch.chdir("/")
    stores.assert_all_samples(dataset, "delta")


def test_a_root_behind_symbolic_links(room: Room) -> None:
    place = room()
    (place / "real").mkdir()
    (place / "link").symlink_to(place / "real")
    (place / "link2").symlink_to("link")
    stores.build(place / "link2", "delta")
    assert stores.read_outcome(place / "link", "delta") == "equal"
    assert stores.read_outcome(place / "real", "delta") == "equal"
    stores.build(place / "real", "delta")


def test_a_name_that_is_too_long_is_said(room: Room) -> None:
    with pytest.raises(CacheError, match=r"name too long|File name too long"):
        stores.build(room() / ("x" * 256), "delta")
    with pytest.raises(CacheError, match=r"name too long|File name too long"):
        tc.PreprocessedDataset(room() / ("x" * 256))


def test_a_root_that_is_a_file_is_refused(room: Room) -> None:
    path = room() / "file"
    path.write_text("mine")
    with pytest.raises(OSError, match=str(path)):
        stores.build(path, "delta")
    with pytest.raises(CacheError):
        tc.PreprocessedDataset(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("part", ["generation", "file", "shard"])
def test_a_manifest_that_names_a_place_outside_is_refused(room: Room, part: str) -> None:
    """By whoever reads it, who touches nothing outside."""
    place = room()
    root, wanted = place / "s", {"outside.txt": b"mine"}
    (place / "outside.txt").write_bytes(wanted["outside.txt"])
    stores.build(root, "delta")
    content = manifest_path(root).read_bytes()
    manifest_path(root).chmod(0o644)
    inside = sorted(root.rglob("*"))
    for hostile in HOSTILE:
        document = json.loads(content)
        del document["digest"]
        named = {"generation": document, "file": document["files"][0], "shard": document["shards"][0]["file"]}
        named[part]["generation" if part == "generation" else "name"] = hostile
        manifest_path(root).write_bytes(seal(document))
        for read in (
            tc.PreprocessedDataset,
            lambda root: tc.gc(root, keep=1),
            lambda root: tc.push(root, f"file://{place}/bucket", progress=False),
            lambda root: tc.stage(root, place / "node", progress=False),
            lambda root: tc.pull(f"file://{root}", place / "pulled", progress=False),
            lambda root: tc.append(root, stores.case().source(), progress=False),
        ):
            with pytest.raises(CacheError):
                read(root)
        assert sorted(root.rglob("*")) == inside, hostile
        made = [path for path in place.rglob("*") if path.is_file() and root not in path.parents]
        assert {p.name: p.read_bytes() for p in made} == wanted, hostile


def test_a_generation_or_manifest_that_is_a_link_or_device(room: Room) -> None:
    """A link in the manifest's place is refused; links below only lead to bytes whose digests are checked."""
    root, outside = room() / "s", room()
    stores.build(root, "delta")
    content = manifest_path(root).read_bytes()
    (outside / "manifest.json").write_bytes(content)
    manifest_path(root).unlink()
    for make in (
        lambda: manifest_path(root).symlink_to(outside / "manifest.json"),
        lambda: manifest_path(root).mkdir(),
        lambda: os.mkfifo(manifest_path(root)),
    ):
        make()
        with pytest.raises(CacheError):
            tc.PreprocessedDataset(root)
        manifest_path(root).rmdir() if manifest_path(root).is_dir() else manifest_path(root).unlink()
    manifest_path(root).write_bytes(content)
    assert stores.read_outcome(root, "delta") == "equal"


def test_unknown_files_are_left_alone(room: Room) -> None:
    root = room()
    processed_dir(root).mkdir()
    mine = [
        root / "notes.txt",
        processed_dir(root) / "mine.bin",
        processed_dir(root) / ".tmp-mine",
        root / ".tmp-x",
    ]
    for path in mine:
        path.write_text("mine")
    stores.build(root, "delta")
    stores.build(root, "perturbation", on_stale="rebuild")
    (processed_dir(root) / read_manifest(root).generation / "extra").write_text("mine")
    assert stores.read_outcome(root, "perturbation") == "equal"
    assert [path.read_text() for path in mine] == ["mine"] * 4
