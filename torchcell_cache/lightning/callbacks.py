"""What a training on a store says of itself, and how it ends in time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import EXIT_INTERRUPTED, SettingError, install_line

try:
    # The two packages are one program twice, and their classes do not know each other: take the one that is in use.
    if TYPE_CHECKING or "pytorch_lightning" not in sys.modules or "lightning.pytorch" in sys.modules:
        import lightning.pytorch as pl
    else:
        import pytorch_lightning as pl
except ImportError as error:
    raise SettingError(
        f"torchcell_cache.lightning needs Lightning, which cannot be imported ({error})",
        fix=install_line("lightning"),
    ) from None

__all__ = ["DataWaitCallback", "PreemptionCallback", "pl"]

_WAITS = (".train_dataloader_next", ".batch_to_device")


class DataWaitCallback(pl.Callback):
    """Says through ``self.log`` whether training waits for data, so every logger gets it.

    ``it_per_s``: steps per second since the last time, validation left out; ``data_wait_share``: the share of that time, 0 to
    1, in which the loop waited for a batch and moved it to its device; ``samples_seen``: samples over all ranks (this rank's,
    times the number of ranks), counted on through checkpoints.

    Args:
        every_n_steps: How often; by default as often as the trainer logs.
        prog_bar: Whether the progress bar shows the first two.

    Example:
        >>> from torchcell_cache.lightning import DataWaitCallback
        >>> DataWaitCallback(every_n_steps=50).every_n_steps  # Trainer(callbacks=[...])
        50
    """

    def __init__(self, every_n_steps: int | None = None, *, prog_bar: bool = False) -> None:
        given = every_n_steps
        self.every_n_steps = None if given is None else whole_number("every_n_steps", given, 1)
        self.prog_bar, self.samples_seen = prog_bar, 0
        self._asked = 0.0
        self._restart()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch Lightning's own measuring points, which stand right around the loader and the copy to the device."""
        profiler = trainer.profiler
        start, stop = profiler.start, profiler.stop

        def started(name: str) -> None:
            start(name)
            if name.endswith(_WAITS):
                self._asked = time.perf_counter()

        def stopped(name: str) -> None:
            if name.endswith(_WAITS) and not trainer.validating:
                self._waited += time.perf_counter() - self._asked
            stop(name)

        profiler.start, profiler.stop = started, stopped
        self._restart()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Watch no more."""
        for name in ("start", "stop"):
            vars(trainer.profiler).pop(name, None)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Validation is no step."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Go on counting."""
        self._begun += time.perf_counter() - self._paused

    # What happens between epochs is none either.
    on_train_epoch_end, on_train_epoch_start = on_validation_start, on_validation_end

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log now and then."""
        size = getattr(batch, "num_graphs", None)
        if size is None:
            size = len(batch) if hasattr(batch, "__len__") else 1
        self.samples_seen += int(size) * trainer.world_size
        self._steps += 1
        if trainer.global_step % (self.every_n_steps or trainer.log_every_n_steps):
            return  # in step with the trainer, which logs what it finds
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        said = {"it_per_s": self._steps / seconds, "data_wait_share": self._waited / seconds}
        for name, value in {**said, "samples_seen": float(self.samples_seen)}.items():
            # In 64 bits: a float32 counts to 16 million.
            exact = torch.tensor(value, dtype=torch.float64, device="cpu")
            shown = self.prog_bar and name in said
            pl_module.log(name, exact, on_step=True, on_epoch=False, batch_size=1, prog_bar=shown)
        self._restart()

    def _restart(self) -> None:
        self._begun = self._paused = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Samples seen so far."""
        return {"samples_seen": self.samples_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self.samples_seen = int(state_dict["samples_seen"])


class PreemptionCallback(pl.Callback):
    """On SIGTERM, SIGUSR1 or SIGUSR2: a checkpoint after the step that runs, on all ranks after the same one, and exit 75.

    ``fit`` then raises ``SystemExit`` (75 on rank 0: the same command goes on; 0 on the others). Pass
    ``SLURMEnvironment(auto_requeue=False)`` as a plugin where Lightning runs under SLURM: its own handler saves wherever a
    step stands.

    Args:
        path: The checkpoint to write, on storage that all nodes share; give it to ``fit(ckpt_path=...)`` if it is there.
        signals: What to listen to.

    Example:
        >>> from torchcell_cache.lightning import PreemptionCallback
        >>> PreemptionCallback("runs/first/last.ckpt").path.name
        'last.ckpt'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        signals: Sequence[int] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
    ) -> None:
        self.path, self.signals = Path(local_path(path)), tuple(signals)
        self._heard, self._before = 0, dict[int, Any]()
        self._group: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen; in place of Lightning, whose handler would speak to other ranks in the middle of a step."""
        for number in self.signals:
            self._before[number] = signal.signal(number, self._note)
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def _note(self, number: int, frame: Any) -> None:
        self._heard = self._heard or number

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if any rank was asked to."""
        stop = bool(self._heard)
        # Answered alike on all ranks, at once: a signal to a job step has also ended what loggers run beside the ranks.
        if self._group is not None:
            flag = torch.tensor([int(stop)], device="cpu")  # of a gloo group
            torch.distributed.all_reduce(flag, group=self._group)
            stop = bool(flag.item())
        if not stop:
            return
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            name = signal.Signals(self._heard).name if self._heard else "another rank's signal"
            print(
                f"{name}: stopped; {self.path} is there, the same command goes on",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(EXIT_INTERRUPTED if trainer.is_global_zero else 0)

    def on_train_end(self, trainer: Any, pl_module: Any, exception: BaseException | None = None) -> None:
        """Give the signals back."""
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, before)
        self._group = None

    on_exception = on_train_end
