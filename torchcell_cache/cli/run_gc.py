"""``torchcell-cache gc``."""

from __future__ import annotations

from torchcell_cache.builder.cleanup import gc
from torchcell_cache.cli.settings import Settings
from torchcell_cache.errors import EXIT_OK


def run(settings: Settings) -> int:
    """Remove old generations and print their names."""
    removed = gc(settings["root"], settings["keep"], settings["unfinished"], settings["dry_run"])
    what = "would remove" if settings["dry_run"] else "removed"
    print(f"{what} {', '.join(removed)}" if removed else "nothing to remove")
    return EXIT_OK
