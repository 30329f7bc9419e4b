"""``torchcell-cache append``."""

from __future__ import annotations

from torchcell_cache.builder.grow import append
from torchcell_cache.cli.growth import grow
from torchcell_cache.cli.settings import Settings


def run(settings: Settings) -> int:
    """Run the command."""
    return grow(settings, "append", append)
