"""Lightning on a store: a data module, the share of time that steps wait for data, checkpoints on preemption.

Needs Lightning (``pip install lightning``); nothing else of the package imports it.
"""

from torchcell_cache.lightning.callbacks import DataWaitCallback, PreemptionCallback
from torchcell_cache.lightning.data_module import CacheDataModule

__all__ = ["CacheDataModule", "DataWaitCallback", "PreemptionCallback"]
