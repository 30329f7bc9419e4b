"""How an epoch is drawn and read: samplers, epoch plans, workers and prefetch threads behind the loader."""
