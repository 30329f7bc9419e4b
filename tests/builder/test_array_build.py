"""Array builds: shares of shards by independent tasks give the store that a build in one go gives, killed or not."""

import copy
import io
import json
import os
import re
import time
from functools import partial
from pathlib import Path

import forks
import pytest
import torch
from graphs import cell_graph
from hypothesis import given
from hypothesis import strategies as st
from loading import build, make_source
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.core.hints import ranges
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.core.progress import Progress
from torchcell_cache.errors import (
    EXIT_INTERRUPTED,
    BuildFailedError,
    BuildIncompleteError,
    CacheNotFoundError,
    SettingError,
    StaleCacheError,
)
from torchcell_cache.graph.files import save_base_graph
from torchcell_cache.store.manifest import manifest_path, processed_dir

COUNT = 40
SIZE = 3
SHARDS = -(-COUNT // SIZE)


class Slowly:
    """A transform that takes its time, so that a kill finds it at work."""

    def __call__(self, data):
        time.sleep(0.002)
        data = copy.copy(data)
        data.z = data.x.sum(1)
        return data


def graphs(count=COUNT):
    return [Data(x=torch.full((2, 3), float(k)), y=torch.tensor([k % 3]), num_nodes=2) for k in range(count)]


CASES = {
    "perturbation": {"processor": tc.LazySubgraphRepresentation()},
    "delta": {"processor": tc.SubgraphRepresentation()},
    "full": {"processor": Slowly()},
}


def arguments(storage):
    source = graphs() if storage == "full" else make_source(COUNT)
    return {"source": source, "storage": storage, "shard_size": SIZE, "progress": False, **CASES[storage]}


def files_of(ds):
    manifest = ds.generation.manifest
    return {f.name: f.sha256 for f in (*manifest.files, *(s.file for s in manifest.shards))}


def generation_of(root: Path) -> Path:
    [directory] = processed_dir(root).glob("gen-*")
    return directory


def parts(root, tasks, **settings):
    return [tc.build_part(root, task=k, tasks=tasks, **settings) for k in range(tasks)]


def without(settings, *names):
    return {key: value for key, value in settings.items() if key not in names}


@pytest.mark.parametrize("storage", CASES)
def test_tasks_at_the_same_time_give_the_store_of_one_build(tmp_path: Path, storage: str) -> None:
    settings = arguments(storage)
    plain = tc.build(tmp_path / "plain", **settings)
    root, scratch = tmp_path / "array", tmp_path / "scratch"
    works = [
        lambda k=k: tc.build_part(root, task=k, tasks=4, scratch=scratch / str(k % 2), **settings).built
        for k in range(4)
    ]
    answers = forks.together(works, tmp_path / "answers")
    assert [answer.get("value") for answer in answers] == [4, 4, 3, 3], forks.printed(tmp_path / "answers")
    assert not manifest_path(root).exists()
    with pytest.raises(CacheNotFoundError):
        tc.PreprocessedDataset(root)
    built = tc.finalize(root, tasks=4, **settings)
    assert files_of(built) == files_of(plain)
    assert built.content_digest == plain.content_digest
    assert tc.verify(root, "full", progress=False).ok
    assert [p for p in scratch.rglob("*") if p.is_file()] == []


def test_shares_are_fixed_disjoint_and_complete(tmp_path: Path) -> None:
    settings = arguments("perturbation")
    done = parts(tmp_path, 5, **settings)
    assert sorted(shard for part in done for shard in part.shards) == list(range(SHARDS))
    assert [part.shards[0] for part in done] == [0, 1, 2, 3, 4]
    again = tc.build_part(tmp_path, task=3, tasks=5, **settings)
    assert (again.shards, again.built, again.published) == (done[3].shards, 0, False)


def test_more_tasks_than_shards_leave_some_without_work(tmp_path: Path) -> None:
    settings = {**arguments("perturbation"), "shard_size": 30}
    done = parts(tmp_path, 5, **settings)
    assert [part.shards for part in done] == [(0,), (1,), (), (), ()]
    assert len(tc.finalize(tmp_path, tasks=5, **settings)) == COUNT


def test_killed_tasks_that_run_again_give_the_same_store(tmp_path: Path) -> None:
    settings = arguments("full")
    plain = tc.build(tmp_path / "plain", **settings)
    root, place = tmp_path / "array", tmp_path / "answers"
    place.mkdir()
    killed = 0
    for round_ in range(6):
        processes = [
            forks.start(partial(run_part, root, k, settings), place, f"{round_}-{k}") for k in range(2)
        ]
        for k, process in enumerate(processes):
            time.sleep(0.01 + 0.008 * ((3 * round_ + k) % 5))
            process.kill()
        forks.finish(processes)
        killed += sum(process.exitcode == -9 for process in processes)
    assert killed > 2
    with pytest.raises(BuildIncompleteError):
        tc.finalize(root, tasks=2, **settings)
    parts(root, 2, **settings)
    assert files_of(tc.finalize(root, tasks=2, **settings)) == files_of(plain)
    leftovers = [p.name for p in root.rglob(".tmp-*")]
    assert leftovers == []


def run_part(root, task, settings):
    return tc.build_part(root, task=task, tasks=2, **settings).built


def test_finalize_names_what_is_missing_or_damaged_and_the_line_that_repairs_it(tmp_path: Path) -> None:
    settings = arguments("delta")
    plain = tc.build(tmp_path / "plain", **settings)
    root = tmp_path / "array"
    for task in (0, 1, 2, 4):
        tc.build_part(root, task=task, tasks=6, **settings)
    directory = generation_of(root)
    flipped, cut = directory / "shard-00001.lmdb", directory / "shard-00004.lmdb"
    for path in (flipped, cut):
        path.chmod(0o644)
    data = bytearray(flipped.read_bytes())
    data[5000] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:4096])
    (directory / "shard-00002.json").unlink()
    with pytest.raises(BuildIncompleteError) as caught:
        tc.finalize(root, tasks=6, script="my jobs/array.slurm", **settings)
    lines = str(caught.value).splitlines()
    assert caught.value.code == EXIT_INTERRUPTED
    assert lines[0] == f"7 of {SHARDS} shards are missing or damaged"
    assert [re.match(r" +shard (\d+) \(task (\d+)\): (.*)", line)[2] for line in lines[1:-1]] == list(
        "1234535"
    )
    assert "digest" in lines[1]
    assert "4,096 bytes" in lines[4]
    assert lines[-1] == "  fix: sbatch --array=1-5 'my jobs/array.slurm'"
    assert not manifest_path(root).exists()
    for task in (1, 2, 3, 4, 5):
        tc.build_part(root, task=task, tasks=6, **settings)
    assert files_of(tc.finalize(root, tasks=6, **settings)) == files_of(plain)


def test_after_publishing_tasks_and_finalize_have_nothing_to_do(tmp_path: Path) -> None:
    settings = arguments("perturbation")
    with pytest.raises(BuildIncompleteError, match="--array=0-2 "):
        tc.finalize(tmp_path, tasks=3, **settings)
    parts(tmp_path, 3, **settings)
    first = tc.finalize(tmp_path, tasks=3, **settings)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert tc.finalize(tmp_path, tasks=3, **settings).content_digest == first.content_digest
    part = tc.build_part(tmp_path, task=1, tasks=3, **settings)
    assert (part.built, part.published) == (0, True)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    other = {**settings, "source": make_source(COUNT, seed=9)}
    with pytest.raises(StaleCacheError):
        tc.build_part(tmp_path, task=0, tasks=3, **other)
    parts(tmp_path, 3, **other, on_stale="rebuild")
    assert tc.PreprocessedDataset(tmp_path).content_digest == first.content_digest
    again = tc.finalize(tmp_path, tasks=3, **other, on_stale="rebuild")
    assert tc.PreprocessedDataset(tmp_path).content_digest == again.content_digest != first.content_digest


def test_a_plain_build_finishes_a_half_done_array_build(tmp_path: Path) -> None:
    settings = arguments("delta")
    tc.build_part(tmp_path / "array", task=1, tasks=2, **settings)
    kept = generation_of(tmp_path / "array") / "shard-00001.lmdb"
    inode = kept.stat().st_ino
    ds = tc.build(tmp_path / "array", **without(settings, "storage"))
    assert ds.storage == "delta"
    assert kept.stat().st_ino == inode
    assert files_of(ds) == files_of(tc.build(tmp_path / "plain", **settings))


def test_what_auto_means_is_settled_by_the_first_task(tmp_path: Path) -> None:
    settings = without(arguments("perturbation"), "storage")
    tc.build_part(tmp_path, task=0, tasks=2, **settings)
    [note] = processed_dir(tmp_path).glob(".storage-*.json")
    settled = json.loads(note.read_text())["storage"]
    other = {"perturbation": "delta", "delta": "perturbation"}[settled]
    second = tmp_path / "second"
    processed_dir(second).mkdir(parents=True)
    (processed_dir(second) / note.name).write_text(json.dumps({"storage": other}))
    parts(second, 2, **settings)
    assert tc.finalize(second, tasks=2, **settings).storage == other
    tc.build_part(tmp_path, task=1, tasks=2, **settings)
    assert tc.finalize(tmp_path, tasks=2, **settings).storage == settled


def test_a_task_that_makes_other_shared_files_stops(tmp_path: Path) -> None:
    settings = arguments("delta")
    tc.build_part(tmp_path, task=0, tasks=2, **settings)
    for name in ("columns.safetensors", "base_graph.json", "incidence.safetensors"):
        path = generation_of(tmp_path) / name
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(whole[:-1] + b" ")
        with pytest.raises(BuildFailedError, match=f"another task wrote .*{name}"):
            tc.build_part(tmp_path, task=1, tasks=2, **settings)
        path.write_bytes(whole)
    tc.build_part(tmp_path, task=1, tasks=2, **settings)
    assert len(tc.finalize(tmp_path, tasks=2, **settings)) == COUNT


class Until:
    """A transform that stops at one sample until a file appears."""

    def __init__(self, gate: str) -> None:
        self.gate = gate

    def __call__(self, data):
        if (
            int(data.x[0, 0]) == 7
        ):  # in the second shard of task 0: the first is read ahead to estimate its size
            Path(f"{self.gate}.there").touch()
            parent = os.getppid()
            while not Path(self.gate).exists() and os.getppid() == parent:
                time.sleep(0.01)
        return data


def test_tasks_neither_wait_for_each_other_nor_clean_up_after_the_living(tmp_path: Path) -> None:
    root, place, gate = tmp_path / "array", tmp_path / "answers", tmp_path / "gate"
    place.mkdir()
    settings = {**arguments("full"), "processor": Until(str(gate))}
    task = forks.start(partial(run_part, root, 0, settings), place, "0")
    while not Path(f"{gate}.there").exists():
        time.sleep(0.01)
    in_work = sorted(p.name for p in generation_of(root).glob(".tmp-*"))
    assert in_work
    assert tc.build_part(root, task=1, tasks=2, **settings).built == SHARDS // 2
    assert sorted(p.name for p in generation_of(root).glob(".tmp-*")) == in_work
    # A build in one go, a repair or gc would have to wait: they want the lock for themselves.
    assert not BuilderLock(processed_dir(root) / LOCK_NAME).acquire()
    with pytest.raises(BuildIncompleteError):
        tc.finalize(root, tasks=2, **settings)
    gate.touch()
    forks.finish([task])
    assert json.loads((place / "0.json").read_text()) == {"value": SHARDS - SHARDS // 2}
    assert len(tc.finalize(root, tasks=2, **settings)) == COUNT


def test_empty_sources_and_wrong_numbers(tmp_path: Path) -> None:
    empty = tc.PerturbationTable(cell_graph(), [], phenotypes={"f": []})
    settings = {
        "source": empty,
        "processor": tc.LazySubgraphRepresentation(),
        "storage": "delta",
        "progress": False,
    }
    assert tc.build_part(tmp_path, task=0, tasks=1, allow_empty=True, **settings).shards == ()
    assert len(tc.finalize(tmp_path, tasks=1, allow_empty=True, **settings)) == 0
    for task, tasks in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(SettingError, match="expected task=0"):
            tc.build_part(tmp_path, task=task, tasks=tasks, **settings)


@given(st.sets(st.integers(0, 30), min_size=1))
def test_ranges_are_what_sbatch_reads(numbers) -> None:
    read = set()
    for word in ranges(numbers).split(","):
        first, _, last = word.partition("-")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == numbers
    assert ranges({1, 2, 3, 7}) == "1-3,7"


# The command line


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    save_base_graph(cell_graph(), tmp_path)
    (tmp_path / "ko.csv").write_text("genes,fitness\n" + "".join(f"Y00{k % 9},0.{k}\n" for k in range(9)))
    table = [f"source.path={tmp_path}/ko.csv", "source.phenotypes=[fitness]", f"source.base_graph={tmp_path}"]
    rest = ["storage=delta", "shard_size=2", "num_workers=0", "progress=false"]
    return ["preprocess", f"root={tmp_path}/store", "source=table", *table, *rest]


def test_tasks_status_and_finalize_on_the_command_line(tmp_path: Path, command, capsys, monkeypatch) -> None:
    status = ["status", f"root={tmp_path}/store"]
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert main([*command, "task=0", "tasks=3"]) == 0
    assert capsys.readouterr().out.startswith("task 0 of 3: 2 shards there, 2 of them built now")
    assert main(status) == EXIT_INTERRUPTED
    said = capsys.readouterr().out
    assert "array build: 1 of 3 tasks complete, 0 running" in said
    assert "task 0: complete, 2/2 shards" in said
    assert "(job 77_0)" in said
    assert "not begun: 1-2" in said
    assert main([*command, "finalize=true", "tasks=3", "script=a.slurm"]) == EXIT_INTERRUPTED
    said = capsys.readouterr().err
    assert "error: 3 of 5 shards are missing or damaged" in said
    assert "fix: sbatch --array=1-2 a.slurm" in said
    assert main([*command, "task=1", "tasks=3"]) == 0
    assert main([*command, "task=2", "tasks=3"]) == 0
    capsys.readouterr()
    assert main(status) == EXIT_INTERRUPTED
    assert "finalize=true tasks=3 publishes" in capsys.readouterr().out
    assert main([*command, "finalize=true", "tasks=3"]) == 0
    assert "content digest" in capsys.readouterr().out
    assert main([*command, "finalize=true", "tasks=3"]) == 0
    assert main(status) == 0
    assert "array build" not in capsys.readouterr().out.split("content digest")[2]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["task=1"], "the number of tasks"),
        (["finalize=true"], "the number of tasks"),
        (["tasks=3"], "task=... or finalize=true"),
        (["task=0", "tasks=2", "finalize=true"], "one run does one of them"),
        (["task=5", "tasks=2"], "expected task=0 to task=1"),
    ],
)
def test_half_given_array_arguments_are_refused(command, capsys, extra, message) -> None:
    assert main([*command, *extra]) == 2
    assert message in capsys.readouterr().err


def test_a_killed_task_is_dead_in_the_status(tmp_path: Path, capsys) -> None:
    root, place, gate = tmp_path / "array", tmp_path / "answers", tmp_path / "gate"
    place.mkdir()
    settings = {**arguments("full"), "processor": Until(str(gate))}
    task = forks.start(partial(run_part, root, 0, settings), place, "0")
    while not Path(f"{gate}.there").exists():
        time.sleep(0.01)
    assert main(["status", f"root={root}"]) == 0
    assert "task 0: building, 1/7 shards" in capsys.readouterr().out
    task.kill()
    forks.finish([task])
    assert main(["status", f"root={root}", "json=true"]) == EXIT_INTERRUPTED
    array = json.loads(capsys.readouterr().out)["unfinished"][0]["array"]
    assert (array["to_repeat"], array["not_begun"], array["running"]) == ([0], [1], [])


def test_a_log_gets_one_plain_line_per_twentieth_or_half_minute(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("torchcell_cache.core.progress.time.monotonic", lambda: now[0])
    quick, slow = io.StringIO(), io.StringIO()
    meter = Progress(100_000, 0, None, stream=quick)
    for _ in range(100_000):
        now[0] += 0.01  # 1,000 s in all: 5 % take 50 s
        meter(1)
    meter = Progress(1_000_000, 0, None, stream=slow)
    for _ in range(600):
        now[0] += 1.0
        meter(1)
    for stream, least, most in ((quick, 30, 45), (slow, 19, 20)):
        text = stream.getvalue()
        assert least <= len(text.splitlines()) <= most
        assert "\r" not in text
        assert "\x1b" not in text


def test_a_build_helper_of_the_tests_agrees_with_an_array_build(tmp_path: Path) -> None:
    plain = build(tmp_path / "plain", make_source(), storage="delta")
    settings = {"source": make_source(), "processor": tc.LazySubgraphRepresentation(), "storage": "delta"}
    parts(tmp_path / "array", 3, **settings, shard_size=100, progress=False)
    built = tc.finalize(tmp_path / "array", tasks=3, **settings, shard_size=100, progress=False)
    assert built.content_digest == plain.content_digest  # whatever the shards
