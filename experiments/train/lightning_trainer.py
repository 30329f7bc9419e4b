"""The same training by Lightning; only imported with ``trainer=lightning``."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from experiments.train.data import load_data, targets
from experiments.train.model import HeteroGin
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError

try:
    import lightning

    from torchcell_cache.lightning import DataWaitCallback
except (ImportError, SettingError):
    raise SystemExit("trainer=lightning needs Lightning: pip install '.[lightning]'") from None


class LightningGin(lightning.LightningModule):  # type: ignore[misc]
    """The model with its loss and optimizer."""

    def __init__(self, model: HeteroGin, data: Any, optimizer: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.data, self.settings = model, data, optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), **self.settings)

    def training_step(self, batch: Any, _: int) -> Tensor:
        wanted = targets(batch, self.data)
        loss = nn.functional.mse_loss(self.model(batch), wanted)
        self.log("loss", loss, on_step=True, on_epoch=False, batch_size=len(wanted), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        error = self.model(batch) - targets(batch, self.data)
        self.log("val_loss", error.square().mean(), batch_size=len(error), sync_dist=True, prog_bar=True)


def fit(cfg: DictConfig, device: torch.device, rank: int, world_size: int) -> None:
    """Train as configured, on one process or under ``torchrun``; Lightning's own files end up in ``run_dir``."""
    data = load_data(cfg, rank, world_size, device)
    torch.manual_seed(cfg.seed)
    model = HeteroGin(data.base_graph, **cfg.model)
    module = LightningGin(model, data, OmegaConf.to_container(cfg.optimizer, resolve=True))
    directory = local_path(cfg.run_dir, "run_dir")
    last = directory / "last.ckpt"
    every = lightning.pytorch.callbacks.ModelCheckpoint(directory, save_last=True, save_top_k=0)
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        max_epochs=cfg.epochs,
        max_steps=-1 if cfg.stop_after is None else cfg.stop_after,
        use_distributed_sampler=False,  # the loaders know their rank
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=bool(cfg.progress),
        enable_model_summary=False,
        callbacks=[every, DataWaitCallback()],
        logger=lightning.pytorch.loggers.CSVLogger(str(directory), name="lightning"),
    )
    resume = str(last) if cfg.resume and last.is_file() else None
    trainer.fit(module, data.train, data.validation, ckpt_path=resume, weights_only=False)
