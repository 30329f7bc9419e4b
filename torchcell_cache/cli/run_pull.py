"""``torchcell-cache pull``."""

from __future__ import annotations

from torchcell_cache.cli.settings import Settings
from torchcell_cache.errors import EXIT_OK
from torchcell_cache.remote.pull import pull


def run(settings: Settings) -> int:
    """Pull the store and print the copy's root, and nothing else, on stdout."""
    root = pull(
        settings["url"],
        settings["root"],
        overwrite=settings["overwrite"],
        storage_options=settings["storage_options"],
        wait=settings["wait"],
        progress=settings["progress"],
    )
    print(root)
    return EXIT_OK
