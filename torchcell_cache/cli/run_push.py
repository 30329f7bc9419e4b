"""``torchcell-cache push``."""

from __future__ import annotations

from torchcell_cache.cli.settings import Settings
from torchcell_cache.errors import EXIT_OK
from torchcell_cache.remote.push import push


def run(settings: Settings) -> int:
    """Push the store and print the address, and nothing else, on stdout."""
    url = push(
        settings["root"],
        settings["url"],
        overwrite=settings["overwrite"],
        force=settings["force"],
        storage_options=settings["storage_options"],
        progress=settings["progress"],
    )
    print(url)
    return EXIT_OK
