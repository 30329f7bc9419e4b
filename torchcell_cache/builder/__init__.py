"""The build: plan, shards, workers, manifest. Start reading at :mod:`.api`."""
