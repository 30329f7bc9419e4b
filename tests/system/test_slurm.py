"""The batch scripts on a real SLURM of two nodes: array and repair, the chain, preemption without a sample lost or repeated."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from cluster import NODES, Cluster, free_ports, two_nodes, until
from services import require

import torchcell_cache as tc

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "slurm"
SCRIPTS = sorted([*SLURM.glob("*.slurm"), *SLURM.glob("*.sh")])
SAMPLES, SHARD_SIZE = 48, 8
EPOCHS, BATCH = 12, 2
SOURCE = f"""\
import os, pathlib, time

import torchcell_cache as tc


def make_source():
    hold = pathlib.Path(__file__).with_name("hold-" + os.environ.get("SLURM_ARRAY_TASK_ID", ""))
    while hold.exists():
        hold.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(0.1)
    return tc.testing.tiny_source({SAMPLES}, tc.testing.tiny_graph(24))
"""
pytestmark = pytest.mark.xdist_group("slurm")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as running:
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory whose name needs quoting everywhere."""
    place = tmp_path / "it's a place, 100% [odd]"
    (place / "logs").mkdir(parents=True)
    (place / "knockouts.py").write_text(SOURCE, encoding="utf-8")
    return place


def settings_of(place: Path) -> dict[str, str]:
    return {
        "ROOT": str(place / "store"),
        "PROJECT": str(ROOT),
        "PYTHON": sys.executable,
        "SCRATCH": str(place / "scratch"),
        "LOGS": str(place / "logs"),
        "OMP_NUM_THREADS": "1",
    }


def source_of(place: Path) -> list[str]:
    return [
        "source=python",
        f"source.file={place / 'knockouts.py'}",
        f"shard_size={SHARD_SIZE}",
        "storage=delta",
    ]


def local_digest(tmp_path: Path) -> str:
    ds = tc.build(
        tmp_path / "local",
        source=tc.testing.tiny_source(SAMPLES, tc.testing.tiny_graph(24)),
        processor=tc.LazySubgraphRepresentation(),
        shard_size=SHARD_SIZE,
        storage="delta",
        progress=False,
    )
    return str(ds.content_digest)


def logs(place: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted((place / "logs").glob("*.out")))


def number_in(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


def log(place: Path, pattern: str) -> str:
    """A job's log; readable without a terminal."""
    (path,) = (place / "logs").glob(pattern)
    text = path.read_bytes().decode()
    assert "\r" not in text
    assert "\x1b" not in text
    return text


def test_scripts_are_clean() -> None:
    assert len(SCRIPTS) == 7
    for path in SCRIPTS:
        subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("given", "missing"), [({}, "ROOT="), ({"ROOT": "/nowhere/store"}, "RUN_DIR=")], ids=["root", "run_dir"]
)
def test_what_is_missing_is_said_before_anything_is_submitted(given: dict[str, str], missing: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("ROOT", "RUN_DIR")} | given
    done = subprocess.run(
        [SLURM / "submit.sh", "source=ecoli", "--"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert missing in done.stderr


def test_what_sbatch_refuses_ends_the_submission(tmp_path: Path) -> None:
    """No job goes in that depends on one which is not there, and nothing is said to be submitted."""
    refusing = tmp_path / "bin" / "sbatch"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\necho asked >> asked\necho sbatch: error: no such partition >&2\nexit 1\n")
    refusing.chmod(0o755)
    paths = {"ROOT": str(tmp_path / "store"), "RUN_DIR": str(tmp_path / "run"), "TASKS": "3"}
    done = subprocess.run(
        ["bash", str(SLURM / "submit.sh"), "source=ecoli", "--", "epochs=1"],
        env={**os.environ, **paths, "PATH": f"{refusing.parent}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such partition" in done.stderr
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_tasks_killed_cancelled_or_never_run_are_named_and_repaired(
    cluster: Cluster, place: Path, tmp_path: Path
) -> None:
    settings, source = {**settings_of(place), "TASKS": "4"}, source_of(place)
    holds = [place / "hold-1", place / "hold-2"]
    for hold in holds:
        hold.touch()

    def submit(name: str, *options: str) -> str:
        output = f"--output={place / 'logs'}/{name}.out".replace("100%", "100%%")
        script = SLURM / ("finalize.slurm" if name.startswith("finalize") else "preprocess_array.slurm")
        return cluster.sbatch(output, *options, "--cpus-per-task=1", script, *source, **settings)

    array = submit("array-%a", "--array=0-2")  # the last task is never submitted
    first = submit("finalize", f"--dependency=afterany:{array}")
    pids = lambda: [number_in(hold.with_suffix(".pid")) for hold in holds]  # noqa: E731
    until(lambda: all(pids()), 60, lambda: logs(place))
    os.kill(pids()[0], signal.SIGKILL)
    cluster.run(["scancel", f"{array}_2"])  # ends with 75, and yet is not requeued
    assert cluster.wait(array) == "CANCELLED+COMPLETED+FAILED", logs(place)
    assert cluster.wait(first) == "FAILED"
    text = log(place, "finalize.out")
    named = {int(task) for task in re.findall(r"shard \d+ \(task (\d)\): missing", text)}
    assert named == {1, 2, 3}, text
    with pytest.raises(tc.errors.CacheNotFoundError):
        tc.PreprocessedDataset(place / "store")

    for hold in holds:
        hold.unlink()
    repair, publish = re.findall(r"^(?:repair|then): *(.*)$", text, re.MULTILINE)
    assert re.search(r"--array=1-3 ", repair), repair
    for line in (repair, publish):
        given = {
            "SCRATCH": settings["SCRATCH"],
            "SBATCH_OUTPUT": str(place / "logs" / "again-%j.out").replace("100%", "100%%"),
        }
        done = cluster.run(["bash", "-c", line], given)
        assert cluster.wait(done.stdout.split()[-1]) == "COMPLETED", logs(place)
    assert tc.PreprocessedDataset(place / "store").content_digest == local_digest(tmp_path)
    assert tc.verify(place / "store", level="full").ok
    assert not list((place / "scratch").iterdir())


def rows(directory: Path, name: str) -> list[dict[str, str]]:
    path = directory / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def undisturbed(place: Path, training: list[str]) -> list[fresh.Process]:
    """Two ranks of the same training without a cluster; they depend on nothing and wait for the store themselves."""
    paths = {"root": place / "store", "run_dir": place / "quiet", "stage": place / "copy"}
    given = ["{}='{}'".format(name, str(path).replace("'", "\\'")) for name, path in paths.items()]
    command = [sys.executable, "-m", "experiments.train", "mode=shared", "wait=120", *given, *training]
    there = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    there |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [{**os.environ, **there, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [fresh.Process(command, cwd=ROOT, env=environment) for environment in ranks]


def test_the_chain_trains_through_preemption_without_losing_or_repeating_a_sample(
    cluster: Cluster, place: Path, tmp_path: Path
) -> None:
    settings = {
        **settings_of(place),
        "TASKS": "2",
        "CPUS_PER_TASK": "1",
        "CPUS_PER_RANK": "1",
        "RUN_DIR": str(place / "preempted"),
        "STAGE_DIR": str(place / "disk of %N"),
        "CHECKPOINT_EVERY": "5",
    }
    training = ["data=tiny", f"epochs={EPOCHS}", f"batch_size={BATCH}", "model.hidden=8", "log_samples=true"]
    done = cluster.run([SLURM / "submit.sh", *source_of(place), "--", *training], settings)
    names, jobs = zip(*(line.split()[:2] for line in done.stdout.splitlines()), strict=True)
    assert names == ("build", "finalize", "train")
    build, finalize, train = jobs
    whole = undisturbed(place, [*training, "checkpoint_every=5"])
    assert cluster.wait(finalize) == "COMPLETED", logs(place)
    assert cluster.state(build) == "COMPLETED"
    assert f"content digest {local_digest(tmp_path)}" in log(place, f"finalize-{finalize}.out")

    steps = lambda run: len(rows(place / run, "steps"))  # noqa: E731
    until(lambda: steps("preempted") > 10 and steps("quiet"), 60, lambda: logs(place))
    # From here on only the copies on the nodes' own disks are left.
    shards = [*(place / "store").rglob("shard-*.lmdb")]
    assert len(shards) == SAMPLES // SHARD_SIZE
    for shard in shards:
        shard.unlink()

    cluster.run(["scancel", "--signal=TERM", train])  # the job checkpoints and requeues itself
    until(lambda: "start 1" in log(place, f"train-{train}.out"), 60, lambda: logs(place))
    after = steps("preempted")
    until(lambda: steps("preempted") > after + 5, 60, lambda: logs(place))
    cluster.run(["scontrol", "requeue", train])  # as a preemption does
    assert [rank.wait(90) for rank in whole] == [0, 0]
    until(lambda: "start 2" in log(place, f"train-{train}.out"), 60, lambda: logs(place))
    assert cluster.wait(train) == "COMPLETED", logs(place)

    text = log(place, f"train-{train}.out")
    assert text.count("the same command goes on") == 2, text
    assert text.count("going on at epoch") == 2, text
    assert sorted(path.name for path in place.glob("disk of *")) == [f"disk of {node}" for node in NODES]
    same_run(place / "preempted", place / "quiet")


@pytest.mark.campaign
def test_eight_ranks_without_a_store_build_none_and_say_the_same(cluster: Cluster, place: Path) -> None:
    settings = {**settings_of(place), "RUN_DIR": str(place / "run"), "STAGE_DIR": ""}
    output = f"--output={place / 'logs'}/eight.out".replace("100%", "100%%")
    options = ("--ntasks-per-node=4", "--cpus-per-task=1")
    job = cluster.sbatch(output, *options, SLURM / "train_ddp.slurm", "data=tiny", **settings)
    assert cluster.wait(job) == "FAILED"
    lines = re.findall(r"^(\d): (.*)$", log(place, "eight.out"), re.MULTILINE)
    assert sorted(rank for rank, _ in lines) == [str(k) for k in range(8)], lines
    assert len({text for _, text in lines}) == 1
    assert "torchcell-cache preprocess" in lines[0][1]
    assert not (place / "store").exists()


@pytest.mark.campaign
def test_a_sweep_by_submitit_goes_on_after_its_signal(cluster: Cluster, place: Path, tmp_path: Path) -> None:
    require(find_spec("submitit"), "hydra-submitit-launcher is not installed: the extra 'cluster'")
    local_digest(tmp_path)
    runs = tmp_path / "sweep"
    settings = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.timeout_min=10",
        "hydra.launcher.max_num_timeout=2",
        "hydra.launcher.cpus_per_task=1",
        f"hydra.launcher.submitit_folder={runs}/logs",
        f"hydra.sweep.dir={runs}",
        "data=tiny",
        "epochs=60",
        "threads=1",
        f"root={tmp_path}/local",
        f"run_dir={runs}/seed-${{seed}}",
        "seed=0,1",
        "log_samples=true",
    ]
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.train", "-m", *settings]
    with (tmp_path / "out").open("w") as out:
        sweep = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        until(lambda: len(rows(runs / "seed-0", "steps")) > 5, 60, (tmp_path / "out").read_text)
        job = cluster.run(["squeue", "-h", "-o", "%A %j"]).stdout.split()[0]
        cluster.run(["scancel", "--signal=USR2", job])
        assert sweep.wait(120) == 0, (tmp_path / "out").read_text()
    finally:
        sweep.kill()
    assert " Restarts=1 " in cluster.run(["scontrol", "--oneliner", "show", "job"]).stdout
    for seed in (0, 1):
        seen = [tuple(row.values()) for row in rows(runs / f"seed-{seed}", "samples")]
        per_epoch = len(seen) / 60
        assert [(int(row[0]), int(row[1])) for row in seen] == [
            (epoch, step) for epoch in range(60) for step in range(int(per_epoch))
        ]


def same_run(found: Path, expected: Path) -> None:
    """The same steps with the same samples on the same ranks, the same losses, the same weights, each sample once."""
    for name in ("steps", "samples"):
        assert rows(found, name) == rows(expected, name)
    states = [torch.load(run / "last.pt", weights_only=True) for run in (found, expected)]
    weights: list[dict[str, Any]] = [state["model"] for state in states]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    for epoch in range(EPOCHS):
        here = [row["samples"].split() for row in rows(found, "samples") if int(row["epoch"]) == epoch]
        seen = [int(k) for indices in here for k in indices]
        assert len(seen) == len(set(seen)) > SAMPLES // 2
