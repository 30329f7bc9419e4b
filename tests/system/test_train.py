"""The training script: three ways to feed one model, the same losses; stopped and resumed, the same losses."""

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from cluster import free_ports
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from experiments.train.data import load_data, targets
from experiments.train.preemption import listen, stop_listening
from experiments.train.train import Trainer, run

pytestmark = pytest.mark.xdist_group("train")  # what its fixtures make is made once

ROOT = Path(__file__).resolve().parents[2]
MODES = ("on_the_fly", "preprocessed", "shared")
EPOCHS, BATCH = 2, 4


def configured(
    base: Path, *, mode: str = "shared", run_dir: str | None = None, **settings: Any
) -> DictConfig:
    fixed = {
        "data": "tiny",
        "mode": mode,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "val_share": 0.125,
        "progress": "false",
        "device": "cpu",
        "model.hidden": 8,
        "root": base / "store",
        "run_dir": base / (run_dir or mode),
    }
    overrides = [f"{key}={value}" for key, value in {**fixed, **settings}.items()]
    with initialize_config_dir(str(ROOT / "experiments/train/conf"), version_base="1.3"):
        return compose("config", overrides)


def column(path: Path, name: str) -> torch.Tensor:
    with path.open(newline="") as file:
        return torch.tensor([float(row[name]) for row in csv.DictReader(file)], dtype=torch.float64)


def losses(directory: Path) -> dict[str, torch.Tensor]:
    return {
        "steps": column(directory / "steps.csv", "loss"),
        "train": column(directory / "epochs.csv", "train_loss"),
        "validation": column(directory / "epochs.csv", "val_loss"),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of each mode to the end."""
    base = tmp_path_factory.mktemp("train")
    for mode in MODES:
        run(configured(base, mode=mode))
    return base


def test_where_a_step_goes_is_said_once(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ["data", "expansion", "layer-1", "layer-2", "read-out", "backward", "optimizer"]
    for mode in MODES:
        run(configured(tmp_path, mode=mode, root=trained / "store", epochs=1))
        (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("step 2: ")]
        assert [part.replace("layer ", "layer-").split()[0] for part in line.split("(")[1].split(", ")][
            :7
        ] == parts
        assert ("; mode=shared would take " in line) == (mode == "preprocessed")
        expected = losses(trained / mode)["steps"][:7]
        assert torch.equal(losses(tmp_path / mode)["steps"], expected)  # it changes nothing


def test_three_modes_give_the_same_losses(trained: Path) -> None:
    fly, stored, shared = (losses(trained / mode) for mode in MODES)
    assert len(fly["steps"]) == EPOCHS * 7
    for name, expected in fly.items():
        assert torch.equal(stored[name], expected), name
        torch.testing.assert_close(shared[name], expected, rtol=1e-4, atol=1e-6)
    assert float(fly["train"][-1]) < float(fly["train"][0])


@pytest.mark.parametrize(("mode", "stop_after"), [("on_the_fly", 3), ("shared", 7), ("shared", 9)])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(trained: Path, mode: str, stop_after: int) -> None:
    name = f"{mode}-{stop_after}"
    run(configured(trained, mode=mode, run_dir=name, stop_after=stop_after))
    assert len(column(trained / name / "steps.csv", "loss")) == stop_after
    run(configured(trained, mode=mode, run_dir=name))
    for key, expected in losses(trained / mode).items():
        assert torch.equal(losses(trained / name)[key], expected), key
    first, second = (torch.load(trained / n / "last.pt", weights_only=True) for n in (mode, name))
    assert all(torch.equal(second["model"][key], value) for key, value in first["model"].items())


def test_a_killed_run_drops_what_came_after_its_checkpoint(trained: Path) -> None:
    run(configured(trained, run_dir="killed", checkpoint_every=2, stop_after=4))
    with (trained / "killed" / "steps.csv").open("a") as file:
        file.write("0,4,99.0\n0,5,99.0\n")
    run(configured(trained, run_dir="killed"))
    assert torch.equal(losses(trained / "killed")["steps"], losses(trained / "shared")["steps"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_ends_in_a_checkpoint_and_75(trained: Path, number: int) -> None:
    name = f"signalled-{number}"
    cfg = configured(trained, run_dir=name, log_samples="true")
    device = torch.device("cpu")
    heard = 0

    class Signalled(Trainer):
        def _step(self, batch: Any, marks: Any) -> None:
            nonlocal heard
            super()._step(batch, marks)
            if self.steps_run == 9:
                os.kill(os.getpid(), number)
                heard += 1

    listen()
    try:
        with pytest.raises(SystemExit) as stopped:
            Signalled(cfg, load_data(cfg, 0, 1, device), device, 0, 1).fit()
    finally:
        stop_listening()
    assert (stopped.value.code, heard) == (75, 1)
    assert len(column(trained / name / "steps.csv", "loss")) == 9
    run(cfg)
    for key, expected in losses(trained / "shared").items():
        assert torch.equal(losses(trained / name)[key], expected), key
    rows = samples(trained / name)
    assert len(rows) == EPOCHS * 7
    for epoch in range(EPOCHS):
        seen = [int(k) for row in rows if row["epoch"] == str(epoch) for k in row["samples"].split()]
        assert len(seen) == len(set(seen)) == 28
    assert signal.getsignal(number) == signal.SIG_DFL


def test_whoever_listened_before_is_told_after_the_checkpoint(trained: Path) -> None:
    """As submitit's handler, which puts its job back into the queue."""
    told = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
    try:
        listen()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert told == []
        with pytest.raises(SystemExit):
            run(configured(trained, run_dir="told"))
        assert told == [signal.SIGUSR1]
        assert (trained / "told" / "last.pt").is_file()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_checkpoint_of_other_settings_is_refused(trained: Path) -> None:
    with pytest.raises(SystemExit, match="batch_size: 4 then, 5 now"):
        run(configured(trained, run_dir="shared", batch_size=5))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mode": "cached"}, "on_the_fly, preprocessed, shared"),
        ({"trainer": "keras"}, "plain, lightning"),
        ({"data.label": "size"}, "fitness"),
    ],
)
def test_misspelt_settings_are_named(trained: Path, settings: dict[str, str], text: str) -> None:
    with pytest.raises(SystemExit, match=text):
        run(configured(trained, **settings))


def test_labels_of_both_kinds_of_batches(trained: Path) -> None:
    found = []
    for mode in MODES:
        data = load_data(configured(trained, mode=mode), 0, 1, torch.device("cpu"))
        data.train.set_epoch(0)
        found.append(torch.cat([targets(batch, data) for batch in data.train]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert bool(found[0].isfinite().all())


def test_two_ranks_give_the_same_losses_in_all_modes(tmp_path: Path, trained: Path) -> None:
    """Over gloo: all modes agree, and two ranks with half the batch each take one rank's steps."""
    shutil.copytree(trained / "store", tmp_path / "store")  # several ranks never build one
    (port,) = free_ports(1)
    ranks = [fresh.call(two_ranks, tmp_path, **as_torchrun_sets(rank, port)) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    fly, stored, shared = (losses(tmp_path / mode) for mode in MODES)
    run(configured(trained, run_dir="wide", batch_size=2 * BATCH))
    wide = losses(trained / "wide")
    for name, expected in fly.items():
        assert torch.equal(stored[name], expected), name
        torch.testing.assert_close(shared[name], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(shared[name], wide[name], rtol=1e-4, atol=1e-6)
    for mode in MODES[1:]:
        fewer_ranks_go_on(tmp_path, mode, trained)


def as_torchrun_sets(rank: int, port: int) -> dict[str, str]:
    """What a rank of two finds in its environment."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    return {"MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in names.items()}}


def two_ranks(base: Path) -> None:
    """The three modes one after the other in one process group."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    for mode in MODES:
        run(configured(base, mode=mode))
    # For a run that goes on with another number of ranks, in either kind of loader.
    for mode in MODES[1:]:
        run(configured(base, mode=mode, run_dir=f"fewer-{mode}", stop_after=2, log_samples="true"))
    torch.distributed.destroy_process_group()


def fewer_ranks_go_on(base: Path, mode: str, trained: Path) -> None:
    """What two ranks began one rank ends: each sample once in every epoch, the order as ever."""
    name = f"fewer-{mode}"
    run(configured(base, mode=mode, run_dir=name, log_samples="true"))
    run(configured(trained, mode=mode, run_dir=f"alone-{mode}", log_samples="true", resume="false"))
    found, alone = (
        [[int(row["epoch"]), int(k)] for row in samples(path) for k in row["samples"].split()]
        for path in (base / name, trained / f"alone-{mode}")
    )
    assert found == alone
    assert len(alone) == EPOCHS * len({k for _, k in alone})
    assert [row["rank"] for row in samples(base / name)][:6] == ["0", "1", "0", "1", "0", "0"]


def samples(directory: Path) -> list[dict[str, str]]:
    with (directory / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_line(tmp_path: Path) -> None:
    out = start(
        "experiments.train",
        "data=tiny",
        "mode=shared",
        "epochs=1",
        f"root={tmp_path}/store",
        f"run_dir={tmp_path}/run",
        "threads=1",
        "num_workers=1",
        "progress=false",
    )
    assert "waiting for data" in out
    assert 0 <= float(column(tmp_path / "run" / "epochs.csv", "data_wait_share")) <= 1


@pytest.mark.filterwarnings("ignore")
def test_a_run_says_how_it_goes(trained: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line now and then, TensorBoard and W&B beside the CSV files, a profile; the training is the same."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loud = {"progress": "true", "report_every": "0", "profile": "true", "logger": "[csv,tensorboard,wandb]"}
    run(configured(trained, run_dir="watched", **loud))
    said, directory = capsys.readouterr().out, trained / "watched"
    assert "epoch 1: 3/7 steps (42 %), loss " in said
    line = r"epoch 0: 7/7 steps \(100 %\), loss [\d.]+, [\d.]+ it/s, waiting for data [\d.]+%, 0.0 s left in the epoch, .* in all"
    assert re.search(line, said)
    assert "Self CPU" in said
    assert json.loads((directory / "profile.json").read_text())["traceEvents"]
    expected = losses(trained / "shared")
    assert torch.equal(losses(directory)["steps"], expected["steps"])
    board = accumulator.EventAccumulator(str(directory / "tensorboard"))
    board.Reload()
    found = torch.tensor([event.value for event in board.Scalars("loss")], dtype=torch.float64)
    torch.testing.assert_close(found, expected["steps"])
    assert [event.step for event in board.Scalars("val_loss")] == [7, 14]
    (record,) = directory.glob("wandb/offline-run-*/run-watched.wandb")
    assert b"data_wait_share" in record.read_bytes()
    run(configured(trained, run_dir="silent", report_every="0"))
    assert "steps (" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="csv, tensorboard, wandb"):
        run(configured(trained, run_dir="none", logger="wadb"))


@pytest.mark.skipif(importlib.util.find_spec("lightning") is not None, reason="Lightning is installed")
def test_without_lightning_the_option_says_what_to_install(trained: Path) -> None:
    with pytest.raises(SystemExit, match=r"torchcell-cache\[lightning\]"):
        run(configured(trained, trainer="lightning"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
def test_lightning_takes_the_same_steps(trained: Path, mode: str) -> None:
    pytest.importorskip("lightning", reason="the lightning extra is not installed")
    run(configured(trained, mode=mode, trainer="lightning", run_dir=f"lightning-{mode}"))
    with (trained / f"lightning-{mode}/lightning/version_0/metrics.csv").open(newline="") as file:
        found = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    expected = losses(trained / mode)["steps"]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-4, atol=1e-6)


def start(*arguments: str) -> str:
    """Run a module in a process of its own; its output, or a failure with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    done = fresh.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
