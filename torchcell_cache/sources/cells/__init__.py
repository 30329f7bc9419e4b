"""Parts of :class:`torchcell_cache.sources.cells.source.AnnDataSource`, one concern per file."""
