"""What a source has to say: once on the console of rank 0, in the manifest, in ``info``."""

import json
import sys
from pathlib import Path
from typing import Any

import fresh
import pytest

import torchcell_cache as tc
from torchcell_cache.cli import main

NOTES = ("network: 40 edges kept, 2 left out", "labels: fitness (3 missing)")


class _Talking(tc.PerturbationTable):
    said: tuple[str, ...] = NOTES

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.notes = self.said


def _table(names: list[str], kind: type[tc.PerturbationTable] = _Talking) -> tc.PerturbationTable:
    values = [float(k) for k in range(len(names))]
    return kind(tc.testing.tiny_graph(), [[name] for name in names], phenotypes={"fitness": values})


def _build(root: Path, **more: Any) -> tc.PreprocessedDataset:
    return tc.build(root, source=_table(["G0", "G1"]), processor=tc.LazySubgraphRepresentation(), **more)


def _counts(text: str) -> list[int]:
    return [text.splitlines().count(note) for note in NOTES]


def test_said_once_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = _build(tmp_path)
    out, err = capfd.readouterr()
    assert (_counts(err), out) == ([1, 1], "")
    assert dataset.generation.manifest.created["notes"] == list(NOTES)
    _build(tmp_path)  # opens what is there
    assert _counts(capfd.readouterr().err) == [0, 0]


def test_progress_false_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = _build(tmp_path, progress=False)
    assert capfd.readouterr() == ("", "")
    assert dataset.generation.manifest.created["notes"] == list(NOTES)


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
def test_one_rank_says_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    rank: str,
    said: int,
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    _build(tmp_path)
    assert _counts(capfd.readouterr().err) == [said, said]


def test_info_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _build(tmp_path, progress=False)
    assert main(["info", f"root={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"  {note}" in lines for note in NOTES)
    assert main(["info", f"root={tmp_path}", "json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["built"]["notes"] == list(NOTES)


def test_a_store_that_grows_keeps_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _build(tmp_path / "s", progress=False)

    class Tail(_Talking):
        said = ("a second plate",)

    grown = tc.append(tmp_path / "s", _table(["G2"], Tail))
    assert _counts(capfd.readouterr().err) == [0, 0]
    assert grown.dataset.generation.manifest.created["notes"] == [*NOTES, "a second plate"]
    part = tc.save_subset(grown.dataset[:2], tmp_path / "part", progress=False)
    assert part.generation.manifest.created["notes"] == [*NOTES, "a second plate"]
    renewed = tc.update(tmp_path / "s", _table(["G0", "G3", "G2"], tc.PerturbationTable), progress=False)
    assert not set(NOTES) & set(renewed.dataset.generation.manifest.created["notes"])


def test_tasks_of_an_array_say_them_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {
        "source": _table(["G0", "G1"]),
        "processor": tc.LazySubgraphRepresentation(),
        "storage": "delta",
        "shard_size": 1,
        "tasks": 2,
    }
    for task in range(2):
        tc.build_part(tmp_path, task=task, **settings)
    dataset = tc.finalize(tmp_path, **settings)
    assert _counts(capfd.readouterr().err) == [1, 1]
    assert dataset.generation.manifest.created["notes"] == list(NOTES)


def test_training_reads_a_store_without_sources(tmp_path: Path) -> None:
    _build(tmp_path, progress=False)
    code = (
        "import sys, torchcell_cache as tc; tc.PreprocessedDataset(sys.argv[1])[0];"
        "print([n for n in sys.modules if n.startswith('torchcell_cache.sources')])"
    )
    done = fresh.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
