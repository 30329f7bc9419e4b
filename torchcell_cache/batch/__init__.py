"""Samples on their way to a model."""

from torchcell_cache.batch import deletions, graphs  # noqa: F401 - all kinds of batches make themselves known
from torchcell_cache.batch.batch import SharedGraphBatch
from torchcell_cache.batch.device import release
from torchcell_cache.batch.pyg_fields import Coordinates

__all__ = ["Coordinates", "SharedGraphBatch", "release"]
