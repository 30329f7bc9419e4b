"""``torchcell-cache stage``."""

from __future__ import annotations

from torchcell_cache.cli.settings import Settings
from torchcell_cache.errors import EXIT_OK
from torchcell_cache.remote.copies import stage


def run(settings: Settings) -> int:
    """Copy the store and print the copy's root, and nothing else, on stdout."""
    root = stage(
        settings["root"],
        settings["to"],
        keep=settings["keep"],
        wait=settings["wait"],
        progress=settings["progress"],
        storage_options=settings["storage_options"],
    )
    print(root)
    return EXIT_OK
