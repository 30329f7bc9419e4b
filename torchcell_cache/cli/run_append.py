"""``torchcell-cache append``."""

from __future__ import annotations

from torchcell_cache.cli.growth import grow
from torchcell_cache.cli.settings import Settings
from torchcell_cache.data.api import append


def run(settings: Settings) -> int:
    """Run the command."""
    return grow(settings, "append", append)
