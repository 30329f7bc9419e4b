"""Rows behind each other: where each begins, and what belongs to some of them."""

from __future__ import annotations

import torch
from torch import Tensor


def offsets_of(rows: Tensor, count: int) -> Tensor:
    """Where each of ``count`` rows begins if what belongs to them is sorted, ``[count + 1] int64``."""
    out = torch.zeros(count + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(torch.bincount(rows, minlength=count), 0, out=out[1:])
    return out


def ranges(ptr: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What belongs to each of some rows: the place in ``rows`` it belongs to, and its own place."""
    counts = ptr[rows + 1] - ptr[rows]
    owner = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    begin = ptr[rows] - (counts.cumsum(0) - counts)
    return owner, torch.arange(len(owner), device=rows.device) + begin[owner]
