"""Parts of :class:`torchcell_cache.batch.SharedGraphBatch`."""
