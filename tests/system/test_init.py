"""``torchcell-cache init``: a project of a user's own, made of nothing but what the installed package carries."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fresh
import pytest
from cluster import Cluster, two_nodes, until

import torchcell_cache as tc
from torchcell_cache.cli import main

pytestmark = pytest.mark.xdist_group("slurm")
ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "torchcell_cache" / "cli" / "templates"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in a place whose name needs quoting."""
    place = tmp_path / "it's mine, 100% [odd]"
    assert main(["init", "train", str(place)]) == 0
    assert main(["init", "slurm", str(place)]) == 0
    return place


def test_files_are_written_once_and_never_over_a_users_own(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert made >= {
        "train.py",
        "knockouts.py",
        "conf/config.yaml",
        "README.md",
        "slurm/submit.sh",
        "slurm/rank.sh",
    }
    assert len(made) == sum(path.is_file() for path in TEMPLATES.rglob("*"))
    for path in project.rglob("*.py"):
        compile(path.read_text(), path, "exec")
    for path in [*project.rglob("*.sh"), *project.rglob("*.slurm")]:
        subprocess.run(["bash", "-n", path], check=True)
    for path in project.rglob("*.*"):
        assert path.is_dir() or "experiments" not in path.read_text(), path
    assert os.access(project / "slurm" / "submit.sh", os.X_OK)
    capsys.readouterr()
    assert main(["init", "train", str(project), "json=true"]) == 0, "the same again changes nothing"
    assert {Path(name).name for name in json.loads(capsys.readouterr().out)["files"]} >= {
        "train.py",
        "config.yaml",
    }
    (project / "train.py").write_text("mine")
    assert main(["init", "what=train", f"to={project}"]) == 2
    said = capsys.readouterr().err
    assert "train.py already" in said
    assert "overwrite=true" in said
    assert (project / "train.py").read_text() == "mine"
    assert main(["init", "train", str(project), "overwrite=true"]) == 0
    assert "CacheDataModule" in (project / "train.py").read_text()
    assert main(["init", "trian", str(project)]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_a_wheel_carries_them(tmp_path: Path) -> None:
    """What hatch puts into the wheel are the files below the package, whatever their names."""
    builders = importlib.import_module("hatchling.builders.wheel")
    carried = {file.distribution_path for file in builders.WheelBuilder(str(ROOT)).recurse_included_files()}
    wanted = {str(path.relative_to(ROOT)) for path in TEMPLATES.rglob("*") if path.is_file()}
    assert wanted
    assert wanted <= carried
    assert "torchcell_cache/py.typed" in carried


# Training, preempted and resumed


def environment() -> dict[str, str]:
    own = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("SLURM_", "WANDB_")) and k not in ("RANK", "WORLD_SIZE")
    }
    return {
        **own,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WANDB_SILENT": "true",
        "MASTER_ADDR": "127.0.0.1",
    }


SETTINGS = [
    "epochs=2",
    "batch_size=4",
    "devices=2",
    "threads=1",
    "model.hidden=8",
    "model.layers=1",
    "log_every=1",
]


def rows(run: Path, name: str) -> list[str]:
    """A metric's values over all parts of a run, in their order."""
    parts = sorted(
        run.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])
    )
    return [
        row[name] for path in parts for row in csv.DictReader(path.read_text().splitlines()) if row.get(name)
    ]


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_are_preempted_and_go_on(project: Path, tmp_path: Path) -> None:
    """Lightning, Hydra, W&B offline and CSV on two gloo ranks; the samples of both parts are each sample once per epoch."""
    pytest.importorskip("lightning")
    pytest.importorskip("wandb", reason="wandb is not installed")
    run = tmp_path / "run"
    script = project / "train.py"
    # A step that takes its time, so that the signal comes in the middle of an epoch, and says what it saw.
    script.write_text(
        script.read_text().replace(
            'return self._loss(batch, "loss")',
            "import time; time.sleep(0.15 if self.trainer.ckpt_path is None else 0); "
            "print(self.current_epoch, *batch.indices.tolist(), file=open(f'seen-{os.getpid()}', 'a')); "
            'return self._loss(batch, "loss")',
        )
    )
    seen = lambda: [line.split() for path in project.glob("seen-*") for line in path.read_text().splitlines()]  # noqa: E731
    command = [sys.executable, "train.py", *SETTINGS, f"run_dir={run}", "logger=[csv,wandb]"]
    out = tmp_path / "first.out"
    with out.open("w") as file:
        streams = (0, file.fileno(), file.fileno())
        # The other rank is started by Lightning.
        first = fresh.Process(command, streams, project, environment())
        try:
            until(
                lambda: len(seen()) >= 8 or first.poll() is not None,
                120,
                out.read_text,
            )
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 75, out.read_text()
        finally:
            first.kill()
    assert "the same command goes on" in out.read_text()
    assert (run / "last.ckpt").is_file()
    then = fresh.run(command, cwd=project, env=environment(), text=True, timeout=180)
    assert then.returncode == 0, then.stdout + then.stderr
    assert "going on from" in then.stdout
    train = len(
        tc.split_by_perturbation(
            tc.PreprocessedDataset(project / "stores/knockouts"), seed=0, progress=False
        ).train
    )
    for epoch in range(2):
        samples = [k for at, *line in seen() for k in line if int(at) == epoch]
        assert len(samples) == len(set(samples)) == train - train % 2, "less one that two ranks cannot share"
    assert (project / "stores/knockouts/processed/manifest.json").is_file()
    assert {"loss", "val_loss", "it_per_s", "data_wait_share"} <= {
        name for path in run.glob("csv/*/metrics.csv") for name in path.read_text().splitlines()[0].split(",")
    }
    assert float(rows(run, "samples_seen")[-1]) == 2 * (train - train % 2)
    assert len([*run.glob("wandb/offline-run-*-run/run-run.wandb")]) == 2, "one run of W&B in two parts"


# Jobs


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as running:
        yield running


def fakes(place: Path, **programs: str) -> dict[str, str]:
    """Programs of the cluster that only write down what they were asked."""
    place.mkdir(exist_ok=True)
    for name, body in programs.items():
        (place / name).write_text(f"#!/bin/bash\n{body}\n")
        (place / name).chmod(0o755)
    return {**environment(), "PATH": f"{place}:{os.environ['PATH']}"}


CONFIG = "if [ \"$2\" = config ]; then echo 'MaxArraySize            = 3'; fi"


def test_more_tasks_than_an_array_may_have_become_several_arrays(project: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    sbatch = f'echo "$TASK_OFFSET $*" >> {asked}; wc -l < {asked}'
    env = fakes(tmp_path / "bin", sbatch=sbatch, scontrol=CONFIG) | {
        "ROOT": str(tmp_path / "s"),
        "TASKS": "7",
    }
    done = subprocess.run(
        [project / "slurm/submit.sh", "source=ecoli"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = asked.read_text().splitlines()
    assert [re.findall(r"^(\d) .*--array=(\S+)", line) for line in lines] == [
        [("0", "0-2")],
        [("3", "0-2")],
        [("6", "0-0")],
        [],
    ]
    assert "--dependency=afterany:1:2:3 " in lines[3]
    assert "tasks 3-5 of 7" in done.stdout
    for k, task in enumerate([0, 2]):
        job = {
            "SLURM_JOB_ID": "9",
            "SLURM_ARRAY_JOB_ID": "8",
            "SLURM_ARRAY_TASK_ID": str(task),
            "TASK_OFFSET": str(3 * k),
        }
        env = (
            fakes(tmp_path / "bin", srun='echo "$@"', scontrol=CONFIG)
            | job
            | {"ROOT": "r", "TASKS": "7", "SCRATCH": ""}
        )
        script = project / "slurm/preprocess_array.slurm"
        said = subprocess.run(
            ["bash", script], env={**env, "PROJECT": str(project)}, capture_output=True, text=True, check=True
        )
        assert f" task={3 * k + task} tasks=7" in said.stdout


def test_missing_shares_are_repaired_by_the_array_that_has_them(project: Path, tmp_path: Path) -> None:
    srun = "echo '  fix: sbatch --array=0-1,4-6 slurm/preprocess_array.slurm' >&2; exit 75"
    env = fakes(tmp_path / "bin", srun=srun, scontrol=CONFIG)
    env |= {"SLURM_JOB_ID": "9", "ROOT": "r", "TASKS": "7", "PROJECT": str(project)}
    done = subprocess.run(
        ["bash", project / "slurm/finalize.slurm", "source=x"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    found = re.findall(r"^repair: .*?(TASK_OFFSET=\d )?sbatch --array=(\S+) ", done.stdout, re.MULTILINE)
    assert found == [("", "0-1"), ("TASK_OFFSET=3 ", "1-2"), ("TASK_OFFSET=6 ", "0")]


def test_jobs_find_their_folder_or_say_which_variable_names_it(
    cluster: Cluster, project: Path, tmp_path: Path
) -> None:
    """``sbatch`` runs a copy of the script; here it is called from a folder that has no slurm/."""
    (tmp_path / "elsewhere").mkdir()
    own = {
        **cluster.environment,
        "ROOT": str(tmp_path / "s"),
        "PYTHON": "/bin/echo",
        "SCRATCH": "",
        "TASKS": "1",
    }
    elsewhere = project.parent / "copy.slurm"
    shutil.copy(project / "slurm/preprocess.slurm", elsewhere)
    found = {}
    for script in (project / "slurm/preprocess.slurm", elsewhere):
        log = tmp_path / f"{script.parent.name}.out"
        command = ["sbatch", "--parsable", f"--output={str(log).replace('%', '%%')}", script, "source=a b"]
        job = subprocess.run(
            command, cwd=tmp_path / "elsewhere", env=own, capture_output=True, text=True, check=True
        ).stdout.strip()
        found[script] = (cluster.wait(job), log.read_text())
    state, said = found[project / "slurm/preprocess.slurm"]
    assert state == "COMPLETED", said
    assert f"-m torchcell_cache preprocess root={tmp_path}/s num_workers=2 source=a b" in said
    state, said = found[elsewhere]
    assert state == "FAILED"
    assert "PROJECT=/folder/that/holds/slurm is needed" in said


@pytest.mark.campaign
def test_a_project_of_ones_own_on_a_cluster(cluster: Cluster, project: Path, tmp_path: Path) -> None:
    """Built by an array, trained on two nodes, preempted, resumed; submitted from another folder."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    settings: dict[str, Any] = {
        **{
            "ROOT": tmp_path / "store",
            "RUN_DIR": tmp_path / "run",
            "LOGS": tmp_path / "logs",
            "PYTHON": sys.executable,
        },
        **{
            "SCRATCH": tmp_path / "scratch",
            "STAGE_DIR": tmp_path / "disk of %N",
            "PYTHONPATH": ROOT,
            "TASKS": 2,
        },
        **{"CPUS_PER_TASK": 1, "CPUS_PER_RANK": 1, "OMP_NUM_THREADS": 1, "WANDB_SILENT": "true", "NODES": 2},
    }
    build = ["source=python", f"source.file={project / 'knockouts.py'}", "storage=delta"]
    training = [
        "epochs=6",
        *(s for s in SETTINGS if not s.startswith(("epochs", "devices"))),
        "logger=[csv,wandb]",
    ]
    done = cluster.run(
        [project / "slurm/submit.sh", *build, "--", *training], {k: str(v) for k, v in settings.items()}
    )
    train = done.stdout.split()[-3]
    run, logs = tmp_path / "run", lambda: "\n".join(p.read_text() for p in (tmp_path / "logs").glob("*.out"))
    until(lambda: len(rows(run, "loss")) > 5, 180, logs)
    cluster.run(["scancel", "--signal=TERM", train])
    until(lambda: "start 1" in logs(), 120, logs)
    assert cluster.wait(train, 240) == "COMPLETED", logs()
    assert "the same command goes on" in logs()
    assert "going on from" in logs()
    steps = int(re.findall(r"epochs: 6, steps: (\d+)", logs())[0])
    assert len(rows(run, "loss")) == steps - 1, "that of the step before the checkpoint is not logged"
