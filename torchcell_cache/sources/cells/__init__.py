"""Parts of :class:`torchcell_cache.sources.anndata.AnnDataSource`, one concern per file."""
