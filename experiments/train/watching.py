"""What a run says while it runs: a line now and then, loggers beside the CSV files, a profile of a few steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from torchcell_cache.core.progress import human_seconds

LOGGERS = ("csv", "tensorboard", "wandb")


class Line:
    """A plain line every ``seconds``: where the epoch is, loss, speed, waiting, time left."""

    def __init__(self, seconds: float | None, say: Callable[[str], None]) -> None:
        self.seconds, self.say, self.last = seconds, say, time.perf_counter()

    def __call__(
        self, epoch: int, done: int, left: int, later: int, begun: float, waited: float, loss: Any
    ) -> None:
        """After a step of this part of an epoch: ``left`` were to be done in it, ``later`` more in later epochs."""
        now = time.perf_counter()
        if self.seconds is None or now - self.last < self.seconds:
            return
        self.last, rate = now, done / max(now - begun, 1e-9)
        here, all_of_it = (human_seconds(steps / rate) for steps in (left - done, left - done + later))
        self.say(
            f"epoch {epoch}: {done:,}/{left:,} steps ({100 * done // max(left, 1)} %), loss {float(loss):.5f}, {rate:.2f} it/s, "
            f"waiting for data {waited / max(now - begun, 1e-9):.2%}, {here} left in the epoch, {all_of_it} in all"
        )


class Loggers:
    """What ``logger=`` names besides the CSV files, which are always written."""

    def __init__(self, cfg: DictConfig, directory: Path) -> None:
        names: Sequence[str] = [cfg.logger] if isinstance(cfg.logger, str) else cfg.logger
        for name in names:
            if name not in LOGGERS:
                raise SystemExit(f"logger={name!r} is none of {', '.join(LOGGERS)}")
        self.board = self.run = None
        directory.mkdir(parents=True, exist_ok=True)
        settings: Any = OmegaConf.to_container(cfg, resolve=True)
        try:
            if "tensorboard" in names:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(directory / "tensorboard"))
            if "wandb" in names:
                import wandb

                # One run, however often it is stopped: its name is its id. WANDB_MODE=offline keeps it here.
                name = directory.name
                self.run = wandb.init(
                    project="torchcell_cache", id=name, name=name, dir=directory, config=settings
                )
        except ImportError as error:
            raise SystemExit(f"logger={','.join(names)}: {error}; pip install tensorboard wandb") from None

    def log(self, step: int, **values: float) -> None:
        """Values of a step, counted over all epochs."""
        for name, value in values.items():
            if self.board is not None:
                self.board.add_scalar(name, value, step)
        if self.run is not None:
            self.run.log(values, step=step)

    def close(self) -> None:
        """Write all of it."""
        if self.board is not None:
            self.board.close()
        if self.run is not None:
            self.run.finish()


@contextlib.contextmanager
def profiled(directory: Path | None, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Profile eight steps after four: a table, and ``profile.json`` for chrome://tracing. Call what it gives after each step."""
    if directory is None:
        yield lambda: None
        return

    def ready(found: Any) -> None:
        found.export_chrome_trace(str(directory / "profile.json"))
        say(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))

    schedule = torch.profiler.schedule(wait=2, warmup=2, active=8, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=ready) as profiler:
        yield profiler.step
