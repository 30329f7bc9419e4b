"""``torchcell-cache preprocess``."""

from __future__ import annotations

from torchcell_cache.builder.api import build
from torchcell_cache.cli.registry import make_processor, make_source
from torchcell_cache.cli.settings import Settings
from torchcell_cache.errors import EXIT_OK

_PASSED = (
    "storage",
    "num_workers",
    "shard_size",
    "on_stale",
    "scratch",
    "allow_empty",
    "max_record_bytes",
    "progress",
)


def run(settings: Settings) -> int:
    """Build the store and print what is there now."""
    processor = make_processor(settings)
    source = make_source(settings)
    passed = {key: settings[key] for key in _PASSED}
    dataset = build(settings["root"], source=source, processor=processor, **passed)
    manifest = dataset.generation.manifest
    print(
        f"{dataset.root}: {len(dataset):,} samples as '{dataset.storage}', {len(manifest.shards)} shards, "
        f"content digest {dataset.content_digest}"
    )
    return EXIT_OK
