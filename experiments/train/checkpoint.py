"""Checkpoints that are whole or absent, and CSV logs that fit them."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside, flush, rename: a killed run leaves the previous checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path, signature: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint, or ``None``; refuses one of a run with other settings."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    changed = {
        k: (state["signature"].get(k), v) for k, v in signature.items() if state["signature"].get(k) != v
    }
    if changed:
        text = ", ".join(f"{k}: {old!r} then, {new!r} now" for k, (old, new) in changed.items())
        raise SystemExit(f"{path} is of a run with other settings ({text}); pass run_dir=... or resume=false")
    return state


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }


def restore(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])


class CsvLog:
    """Rows keyed by (epoch, step); reopening drops the rows after the checkpoint, which will come again."""

    def __init__(self, path: Path, columns: tuple[str, ...], before: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[list[str]] = []
        if path.is_file() and before > (0, 0):
            with path.open(newline="") as file:
                kept = list(csv.reader(file))[1:]
            rows = [row for row in kept if (int(row[0]), int(row[1])) < before]
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("w", newline="") as file:
            csv.writer(file).writerows([list(columns), *rows])
        temporary.replace(path)  # a run killed here keeps its rows
        self.file = path.open("a", newline="")
        self.writer = csv.writer(self.file)

    def add(self, *row: Any) -> None:
        self.writer.writerow(row)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()
