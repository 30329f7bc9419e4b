"""Training on knock-outs: one process, or several under ``torchrun``; see README.md."""

from __future__ import annotations

import os
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
from experiments.train.data import Data, load_data, targets
from experiments.train.model import HeteroGin

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
        self.path = Path(cfg.run_dir) / "last.pt"
        self.epoch, self.step, self.loss_sum, self.steps_run = 0, 0, 0.0, 0
        self.pending: list[Tensor] = []
        state = load_checkpoint(self.path, signature(cfg, world_size)) if cfg.resume else None
        if state is not None:
            restore(state, self.model, self.optimizer)
            self.epoch, self.step, self.loss_sum = state["epoch"], state["step"], state["loss_sum"]
            data.train.load_state_dict(state["loader"])
        self.logs: list[CsvLog] = []
        if rank == 0:
            at = self.epoch, self.step
            self.logs = [
                CsvLog(self.path.with_name("steps.csv"), ("epoch", "step", "loss"), at),
                CsvLog(self.path.with_name("epochs.csv"), EPOCH_COLUMNS, (self.epoch, 0)),
            ]

    def fit(self) -> None:
        """Train to the last epoch, or to ``stop_after``."""
        while self.epoch < self.cfg.epochs:
            self.data.train.set_epoch(self.epoch)
            begun, waited, steps = self._train_epoch()
            if self._stopping():
                break
            seconds = time.perf_counter() - begun
            self._write_losses()
            val_loss = self._validate()
            rate, share = steps / max(seconds, 1e-9), waited / max(seconds, 1e-9)
            if self.rank == 0:
                train_loss = self.loss_sum / max(self.step, 1)
                row = (self.epoch, self.step, train_loss, val_loss, seconds, rate, share)
                self.logs[1].add(*row)
                self.logs[1].flush()
                print(
                    f"epoch {self.epoch}: train {train_loss:.5f}, validation {val_loss:.5f}, {rate:.2f} it/s, "
                    f"waiting for data {share:.2%}",
                    flush=True,
                )
            self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
            self._save()
        for log in self.logs:
            log.close()

    def _train_epoch(self) -> tuple[float, float, int]:
        self.runner.train()
        left = len(self.data.train) - self.step
        hidden = not self.cfg.progress or self.rank > 0
        begun, waited, steps = time.perf_counter(), 0.0, 0
        with tqdm(total=left, desc=f"epoch {self.epoch}", unit="it", disable=hidden, leave=False) as bar:
            batches = iter(self.data.train)
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                batch = batch.to(self.device)
                waited += time.perf_counter() - asked
                self._step(batch)
                steps += 1
                bar.update()
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

    def _step(self, batch: Any) -> None:
        loss = nn.functional.mse_loss(self.runner(batch), targets(batch, self.data))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.pending.append(loss.detach())
        self.step += 1
        self.steps_run += 1

    def _stopping(self) -> bool:
        return self.cfg.stop_after is not None and self.steps_run >= self.cfg.stop_after

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
        if self.rank == 0:
            for k, value in enumerate(values, self.step - len(values)):
                self.logs[0].add(self.epoch, k, value)
            self.logs[0].flush()
        self.pending.clear()

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
            "signature": signature(self.cfg, self.world_size),
        }
        save_checkpoint(self.path, state)


def make_model(cfg: DictConfig, data: Data) -> HeteroGin:
    """The model, its parameters a function of the seed alone."""
    torch.manual_seed(cfg.seed)
    return HeteroGin(data.base_graph, **cfg.model)


def signature(cfg: DictConfig, world_size: int) -> dict[str, Any]:
    """What must not change between a checkpoint and its resumption."""
    names = ("mode", "seed", "batch_size", "val_share")
    return {
        **{name: cfg[name] for name in names},
        "world_size": world_size,
        "data": OmegaConf.to_container(cfg.data, resolve=True),
        "model": OmegaConf.to_container(cfg.model, resolve=True),
    }


@contextmanager
def process_group(cfg: DictConfig) -> Iterator[tuple[torch.device, int, int]]:
    """Device, rank and number of ranks; joins the group if ``torchrun`` started this process and it has not yet."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = cfg.device == "cuda" or (cfg.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    joins = world_size > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device, rank, world_size
    finally:
        if joins:
            dist.destroy_process_group()


def run(cfg: DictConfig) -> None:
    """Train as configured."""
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    if cfg.trainer not in ("plain", "lightning"):
        raise SystemExit(f"trainer={cfg.trainer!r} is none of plain, lightning")
    with process_group(cfg) as (device, rank, world_size):
        if cfg.trainer == "lightning":
            from experiments.train.lightning_trainer import fit

            fit(cfg, device, rank, world_size)
            return
        data = load_data(cfg, rank, world_size, device)
        Trainer(cfg, data, device, rank, world_size).fit()


@hydra.main(config_path=str(Path(__file__).parent / "conf"), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Entry point of ``python -m experiments.train``."""
    run(cfg)
