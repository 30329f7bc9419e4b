"""Large output buffers, used again once nothing refers to them.

A batch of 28 expanded at yeast scale is 1.1 GB. Into fresh memory that costs several times what it costs into memory
that has been touched before, because the kernel hands out and clears every page. A buffer is given out again only when no
tensor, view or array refers to it any more, and whoever takes it writes all of it, so an edit in place never survives.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_SMALL_BYTES = 1 << 16
_PER_NAME = 3
"""Batches alive at once: the one in use, the one being made, and one waiting in a prefetch thread."""


def _idle_references() -> int:
    """References that the interpreter counts for a list's item inside a loop over the list and nowhere else."""
    for item in [np.ones(1, dtype=np.uint8)]:
        return sys.getrefcount(item)
    raise AssertionError


_IDLE = _idle_references()


class BufferPool:
    """Memory for the outputs of one store on one device; on accelerators torch's own allocator does this.

    Args:
        device: Where the buffers live.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[Hashable, list[npt.NDArray[np.uint8]]] = {}
        self._lock = threading.Lock()

    def take(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of undefined content; the caller writes all of it."""
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        if self.device.type != "cpu" or size < _SMALL_BYTES:
            return torch.empty(shape, dtype=dtype, device=self.device)
        with self._lock:
            memory = torch.from_numpy(self._idle(name, size)[:size])
        return memory.view(dtype).view(shape)

    def take_flags(self, name: Hashable, size: int, value: bool) -> Tensor:
        """A flat ``[size] bool`` tensor full of ``value``."""
        flags = self.take(name, (size,), torch.bool)
        if self.device.type == "cpu" and size:
            flags.numpy().fill(value)  # a memset; torch's own fill of bool takes twice as long on one thread
            return flags
        return flags.fill_(value)

    def _idle(self, name: Hashable, size: int) -> npt.NDArray[np.uint8]:
        held = self._buffers.setdefault(name, [])
        small = False
        for buffer in held:
            if sys.getrefcount(buffer) == _IDLE:
                if len(buffer) >= size:
                    return buffer
                small = True
        if small:  # a larger batch than before: it will be the rule from now on
            self._buffers[name] = held = [b for b in held if len(b) >= size]
        fresh = np.empty(size, dtype=np.uint8)
        if len(held) < _PER_NAME:
            held.append(fresh)
        return fresh

    def clear(self) -> None:
        """Let go of all buffers; those still in use live on with their users."""
        with self._lock:
            self._buffers.clear()

    def held_bytes(self) -> int:
        """Bytes kept, in use or not."""
        return sum(len(buffer) for held in self._buffers.values() for buffer in held)
