"""``torchcell-cache repair``."""

from __future__ import annotations

from torchcell_cache.builder.check.repair import repair
from torchcell_cache.cli.registry import make_processor, make_source
from torchcell_cache.cli.settings import Settings
from torchcell_cache.errors import EXIT_OK


def run(settings: Settings) -> int:
    """Repair the store and print what was done."""
    processor = make_processor(settings)
    source = make_source(settings)
    print(repair(settings["root"], source, processor, settings["progress"], settings["shard"]))
    return EXIT_OK
