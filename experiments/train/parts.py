"""Where a training step goes, and what the shared mode would make of it; said once in a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import torchcell_cache as tc
from experiments.train.data import Data, targets
from experiments.train.model import HeteroGin
from torchcell_cache.cli.bench.step import Marks

STEP = 1
"""The step that is looked at: the second of a run, since the first one makes what later ones use again."""


def where_it_went(model: HeteroGin, data: Data, size: int | None, marks: Marks, step: int) -> str:
    """A step's milliseconds by part; with ``size`` samples also what it would take on shared batches, if it is not on them.

    Parameters and their gradients stay as they are.
    """
    parts = ", ".join(f"{name} {ms:.1f}" for name, ms in marks.ms.items())
    text = f"step {step}: {sum(marks.ms.values()):.1f} ms ({parts})"
    part: Any = getattr(data.train, "dataset", None)
    if size is not None and not isinstance(data.train, tc.CacheLoader) and hasattr(part, "read_batch"):
        for _ in range(2):
            shared = model.mark = Marks(marks.device)
            batch = part.read_batch(range(min(size, len(part)))).to(marks.device)
            shared("data")
            loss = nn.functional.mse_loss(model(batch), targets(batch, data))
            torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            shared("backward")
        before, now = (sum(ms for name, ms in m.ms.items() if name != "optimizer") for m in (marks, shared))
        text += f"; mode=shared would take {now:.1f} ms, {before / now:.1f} times as fast"
    model.mark = lambda part: None
    return text
