"""Training on knock-outs: one process, or several under ``torchrun``; see README.md."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import torchcell_cache as tc
from experiments.train.checkpoint import CsvLog, load_checkpoint, restore, save_checkpoint, training_state
from experiments.train.data import Data, load_data, sample_indices, targets
from experiments.train.model import HeteroGin
from experiments.train.parts import STEP, where_it_went
from experiments.train.preemption import StopSignal, leave, listen, stop_listening
from experiments.train.watching import Line, Loggers, profiled
from torchcell_cache.cli.bench.step import Marks
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import CacheError

EPOCH_COLUMNS = ("epoch", "steps", "train_loss", "val_loss", "seconds", "it_per_s", "data_wait_share")


class Trainer:
    """The plain loop.

    Args:
        cfg: The configuration.
        data: Base graph and loaders.
        device: Where to train.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, cfg: DictConfig, data: Data, device: torch.device, rank: int, world_size: int) -> None:
        self.cfg, self.data, self.device, self.rank, self.world_size = cfg, data, device, rank, world_size
        self.model = make_model(cfg, data).to(device)
        self.runner: nn.Module = self.model
        if world_size > 1:
            self.runner = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **cfg.optimizer)
        self.path = local_path(cfg.run_dir, "run_dir") / "last.pt"
        self.epoch, self.step, self.loss_sum, self.steps_run = 0, 0, 0.0, 0
        self.pending: list[Tensor] = []
        self.samples: list[list[int]] = []
        self.stop_signal, self.preempted = StopSignal(world_size), False
        state = load_checkpoint(self.path, signature(cfg)) if cfg.resume else None
        if state is not None:
            restore(state, self.model, self.optimizer)
            self.epoch, self.step, self.loss_sum = state["epoch"], state["step"], state["loss_sum"]
            data.train.load_state_dict(state["loader"])
            self._say(f"going on at epoch {self.epoch}, step {self.step}, from {self.path}")
        self.logs: list[CsvLog] = []
        self.loggers: Loggers | None = None
        self.line = Line(cfg.report_every if cfg.progress and not sys.stderr.isatty() else None, self._say)
        if rank == 0:
            self.loggers = Loggers(cfg, self.path.parent)
            at = self.epoch, self.step
            self.logs = [
                CsvLog(self.path.with_name("steps.csv"), ("epoch", "step", "loss"), at),
                CsvLog(self.path.with_name("epochs.csv"), EPOCH_COLUMNS, (self.epoch, 0)),
            ]
            if cfg.log_samples:
                columns = ("epoch", "step", "rank", "samples")
                self.logs.append(CsvLog(self.path.with_name("samples.csv"), columns, at))

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)

    def fit(self) -> None:
        """Train to the last epoch, to ``stop_after``, or to a signal.

        Raises:
            SystemExit: With 75, after a signal; the same command goes on.
        """
        with profiled(
            self.path.parent if self.cfg.profile and self.rank == 0 else None, self._say
        ) as self.profile:
            self._run_epochs()
        for log in [*self.logs, *([self.loggers] if self.loggers else [])]:
            log.close()
        self.stop_signal.barrier()  # the checkpoint is there before any rank ends, and with it, perhaps, its job
        if self.preempted:
            self._say(
                f"{self.stop_signal.name}: stopped at epoch {self.epoch}, step {self.step}, which {self.path} holds; "
                "the same command goes on"
            )
            leave()

    def _run_epochs(self) -> None:
        while self.epoch < self.cfg.epochs:
            self.data.train.set_epoch(self.epoch)
            begun, waited, steps = self._train_epoch()
            seconds = time.perf_counter() - begun
            if self._stopping():
                rate, share = steps / max(seconds, 1e-9), waited / max(seconds, 1e-9)
                self._say(f"stopped after {steps} steps: {rate:.3f} it/s, waiting for data {share:.2%}")
                break
            self._write_losses()
            val_loss = self._validate()
            rate, share = steps / max(seconds, 1e-9), waited / max(seconds, 1e-9)
            if self.loggers is not None:
                train_loss = self.loss_sum / max(self.step, 1)
                row = (self.epoch, self.step, train_loss, val_loss, seconds, rate, share)
                self.logs[1].add(*row)
                self.logs[1].flush()
                named = dict(zip(EPOCH_COLUMNS[2:], row[2:], strict=True))
                self.loggers.log(self._number(self.step), epoch=self.epoch, **named)
                self._say(
                    f"epoch {self.epoch}: train {train_loss:.5f}, validation {val_loss:.5f}, {rate:.2f} it/s, "
                    f"waiting for data {share:.2%}"
                )
            self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
            self._save()

    def _train_epoch(self) -> tuple[float, float, int]:
        self.runner.train()
        left = self.data.train.steps_left
        hidden = (
            not self.cfg.progress or self.rank > 0 or not sys.stderr.isatty()
        )  # bars are unreadable in logs
        begun, waited, steps = time.perf_counter(), 0.0, 0
        with tqdm(total=left, desc=f"epoch {self.epoch}", unit="it", disable=hidden, leave=False) as bar:
            batches = iter(self.data.train)
            while True:
                asked, marks = time.perf_counter(), Marks(self.device) if self.steps_run == STEP else None
                batch = next(batches, None)
                if batch is None:
                    break
                if self.cfg.log_samples:
                    self.samples.append(sample_indices(self.data.train, batch))
                batch = batch.to(self.device)
                waited += time.perf_counter() - asked
                self._step(batch, marks)
                self.preempted = self.stop_signal.agreed()
                steps += 1
                bar.update()
                self.profile()
                if self.rank == 0:
                    later = (self.cfg.epochs - self.epoch - 1) * len(self.data.train)
                    self.line(self.epoch, steps, left, later, begun, waited, self.loss)
                if self._stopping() or (
                    self.cfg.checkpoint_every and self.step % self.cfg.checkpoint_every == 0
                ):
                    self._write_losses()
                    self._save()
                if self._stopping():
                    break
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return begun, waited, steps

    def _step(self, batch: Any, marks: Marks | None) -> None:
        if marks is not None:
            marks("data")
            self.model.mark = marks
        loss = nn.functional.mse_loss(self.runner(batch), targets(batch, self.data))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if marks is not None:
            marks("backward")
        self.optimizer.step()
        if marks is not None:
            marks("optimizer")
            size = self.cfg.batch_size if self.world_size == 1 else None
            self._say(where_it_went(self.model, self.data, size, marks, self.step + 1))
        self.loss = loss.detach()
        self.pending.append(self.loss)
        self.step += 1
        self.steps_run += 1

    def _stopping(self) -> bool:
        return self.preempted or (self.cfg.stop_after is not None and self.steps_run >= self.cfg.stop_after)

    def _write_losses(self) -> None:
        """Losses of the steps since the last call, the mean over ranks; one transfer for all of them."""
        if not self.pending:
            return
        losses = torch.stack(self.pending).double()
        if self.world_size > 1:
            dist.all_reduce(losses)
            losses /= self.world_size
        values = losses.tolist()
        self.loss_sum += sum(values)
        if self.loggers is not None:
            for k, value in enumerate(values, self.step - len(values)):
                self.logs[0].add(self.epoch, k, value)
                self.loggers.log(self._number(k), loss=value)
            self.logs[0].flush()
        self.pending.clear()
        if self.cfg.log_samples:
            self._write_samples()

    def _number(self, step: int) -> int:
        """A step of this epoch, counted over all epochs."""
        return self.epoch * len(self.data.train) + step

    def _write_samples(self) -> None:
        """Which rank saw which samples in the steps since the last call, ``samples.csv``."""
        ranks = self.stop_signal.gathered(self.samples)
        if self.rank == 0:
            for k, steps in enumerate(zip(*ranks, strict=True), self.step - len(self.samples)):
                for rank, indices in enumerate(steps):
                    self.logs[2].add(self.epoch, k, rank, " ".join(map(str, indices)))
            self.logs[2].flush()
        self.samples.clear()

    @torch.no_grad()
    def _validate(self) -> float:
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.data.validation.set_epoch(0)
        for batch in self.data.validation:
            if isinstance(batch, tc.SharedGraphBatch) and len(batch) == 0:  # an uneven last step
                continue
            batch = batch.to(self.device)
            error = self.model(batch) - targets(batch, self.data)
            total += torch.stack([error.double().square().sum(), torch.tensor(len(error)).to(total)])
        if self.world_size > 1:
            dist.all_reduce(total)
        return float(total[0] / total[1])

    def _save(self) -> None:
        if self.rank:
            return
        state = {
            **training_state(self.model, self.optimizer),
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "loader": self.data.train.state_dict(),
            "signature": signature(self.cfg),
        }
        save_checkpoint(self.path, state)


def make_model(cfg: DictConfig, data: Data) -> HeteroGin:
    """The model, its parameters a function of the seed alone."""
    torch.manual_seed(cfg.seed)
    return HeteroGin(data.base_graph, **cfg.model)


def signature(cfg: DictConfig) -> dict[str, Any]:
    """What must not change between a checkpoint and its resumption; the number of ranks may."""
    names = ("mode", "seed", "batch_size", "val_share")
    return {
        **{name: cfg[name] for name in names},
        "data": OmegaConf.to_container(cfg.data, resolve=True),
        "model": OmegaConf.to_container(cfg.model, resolve=True),
    }


def place(cfg: DictConfig) -> tuple[torch.device, int, int]:
    """Device, rank and number of ranks of this process, as ``torchrun`` or a SLURM job step tells them."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if cfg.device != "cuda" and not (cfg.device == "auto" and torch.cuda.is_available()):
        return torch.device("cpu"), rank, world_size
    # A job step may show each task its own GPU only, which is then number 0.
    local = int(os.environ.get("LOCAL_RANK", "0")) % max(torch.cuda.device_count(), 1)
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device, rank, world_size


@contextmanager
def process_group(device: torch.device, world_size: int) -> Iterator[None]:
    """Join the group of all ranks if there are several and this process has not joined yet."""
    joins = world_size > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if joins:
            dist.destroy_process_group()


def run(cfg: DictConfig) -> None:
    """Train as configured."""
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    if cfg.trainer not in ("plain", "lightning"):
        raise SystemExit(f"trainer={cfg.trainer!r} is none of plain, lightning")
    device, rank, world_size = place(cfg)
    if cfg.trainer == "lightning":
        from experiments.train.lightning_trainer import fit

        stop_listening()  # Lightning has its own way with signals
        with process_group(device, world_size):
            fit(cfg, device, rank, world_size)
        return
    listen()
    try:
        data = load_data(cfg, rank, world_size, device)
        with process_group(device, world_size):
            Trainer(cfg, data, device, rank, world_size).fit()
    finally:
        stop_listening()


@hydra.main(config_path=str(Path(__file__).parent / "conf"), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Entry point of ``python -m experiments.train``."""
    try:
        run(cfg)
    except CacheError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.code) from None
