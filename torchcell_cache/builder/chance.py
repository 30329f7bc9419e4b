"""Random numbers that processors draw while they are run."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the generators of torch, numpy and ``random`` as they were."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def seeding() -> Callable[[int], None]:
    """What a forked worker calls before each shard: other numbers for each, the same whichever worker builds it."""
    begun = (torch.initial_seed(), random.getstate(), np.random.get_state(legacy=False))
    torch_seed, *others = (zlib.crc32(repr(state).encode()) for state in begun)

    def seed(shard: int) -> None:
        torch.manual_seed(torch_seed + shard)
        random.seed(others[0] + shard)
        np.random.seed((others[1] + shard) % (1 << 32))

    return seed
