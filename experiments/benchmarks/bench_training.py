"""Training on two ranks in the three modes of ``experiments.train``: same losses, how fast, how long data is waited for.

The graph is small: stock batches copy it once per sample, and two layers of messages over 28 copies of 2.55 million edges
need more memory than most machines have. A larger graph makes the differences larger, not smaller.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import torchcell_cache as tc
from experiments.benchmarks import ours
from experiments.benchmarks.context import Context
from experiments.benchmarks.report import OURS, PEER
from experiments.benchmarks.workload import make_workload

RANKS, BATCH_SIZE, EPOCHS = 2, 28, 2
MODES = {
    "shared": "torchcell_cache, shared batches",
    "preprocessed": "torchcell_cache store, stock PyG loading",
    "on_the_fly": "processor on the fly, stock PyG loading",
}
TARGET_WAIT, TIMEOUT = 1.0, 600
# Sums in another order: what float32 allows over a few dozen steps.
LOSS_TOLERANCE = 1e-3


def training_source(num_samples: int, scale: float, seed: int = 0) -> tc.PerturbationTable:
    """The benchmark's workload as a source for the training script."""
    workload = make_workload(seed, scale, num_samples)
    return ours.make_source(workload, workload.samples)


def run(ctx: Context, steps: int, scale: float) -> None:
    """Adds the rows: iterations per second, share of waiting, and how far the losses are apart."""
    # Several ranks open a store and never build one.
    tc.build(
        ctx.root / "train-store",
        source=training_source(_num_samples(steps), scale),
        processor=tc.LazySubgraphRepresentation(),
        storage="perturbation",
        progress=False,
    )
    results = {mode: _train(ctx, mode, steps, scale) for mode in MODES}
    where = f"{RANKS} ranks (gloo), batch {BATCH_SIZE} each, {_edges(scale):,} edges"
    base = results["preprocessed"][0]
    rate = ctx.report.row("train_rate", f"training, {where}", "/s")
    wait = ctx.report.row("train_wait", "share of that training spent waiting for data", "%", TARGET_WAIT)
    for mode, name in MODES.items():
        losses, per_second, share = results[mode]
        apart = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(losses, base, strict=True))
        if apart > LOSS_TOLERANCE:
            raise RuntimeError(f"losses of mode {mode} are {apart:.1e} away from those of stock loading")
        note = f"{len(losses)} losses, largest relative difference to stock loading {apart:.0e}"
        role = OURS if mode == "shared" else PEER
        rate.add(name, role, per_second, note)
        wait.add(name, role, 100 * share, "second epoch, rank 0")


def _num_samples(steps: int) -> int:
    """A tenth is held out; one batch more than the steps, so that rounding never costs one."""
    return round((steps + 0.5) * RANKS * BATCH_SIZE / 0.9)


def _edges(scale: float) -> int:
    from experiments.benchmarks.workload import EDGE_COUNTS

    return sum(max(1, round(count * scale)) for count in EDGE_COUNTS.values())


def _train(ctx: Context, mode: str, steps: int, scale: float) -> tuple[list[float], float, float]:
    """Losses of all steps, and of the last epoch iterations per second and share of waiting."""
    run_dir = ctx.root / f"train-{mode}"
    settings = {
        "mode": mode,
        "data": "tiny",
        "data.name": "benchmark",
        "data.source._target_": "experiments.benchmarks.bench_training.training_source",
        "data.source.num_samples": _num_samples(steps),
        "+data.source.scale": scale,
        "batch_size": BATCH_SIZE,
        "epochs": EPOCHS,
        "threads": 1,
        "device": "cpu",
        "progress": "false",
        "resume": "false",
        "root": ctx.root / "train-store",
        "run_dir": run_dir,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
    command += ["-m", "experiments.train", *(f"{name}={value}" for name, value in settings.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"training in mode {mode} failed:\n{done.stderr[-3000:]}")
    losses = [float(row["loss"]) for row in _rows(run_dir / "steps.csv")]
    last = _rows(run_dir / "epochs.csv")[-1]
    return losses, float(last["it_per_s"]), float(last["data_wait_share"])


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
