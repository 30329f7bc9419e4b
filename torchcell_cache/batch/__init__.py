"""Samples on their way to a model."""

from torchcell_cache.batch import restricted, selected_cells  # noqa: F401 - all kinds of batches make themselves known
from torchcell_cache.batch.batch import Coordinates, SharedGraphBatch
from torchcell_cache.batch.device import release

__all__ = ["Coordinates", "SharedGraphBatch", "release"]
