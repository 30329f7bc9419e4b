"""``SharedGraphBatch``: samples on their way to a model, without a copy of the base graph."""

from __future__ import annotations

from torchcell_cache.batching.resident import release
from torchcell_cache.batching.shared import Coordinates, SharedGraphBatch

__all__ = ["Coordinates", "SharedGraphBatch", "release"]
