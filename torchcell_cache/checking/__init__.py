"""Finding and mending damage: verification level by level, and repair shard by shard."""
