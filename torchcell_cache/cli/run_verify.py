"""``torchcell-cache verify``."""

from __future__ import annotations

import shlex
import sys

from torchcell_cache.builder.check.verify import verify
from torchcell_cache.cli.registry import make_processor, make_source
from torchcell_cache.cli.settings import Settings
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import EXIT_CORRUPT_OR_STALE, EXIT_OK
from torchcell_cache.store.waiting import wait_for_store


def run(settings: Settings) -> int:
    """Check the store and print the report."""
    processor = make_processor(settings)
    wait_for_store(local_path(settings["root"]), settings["wait"])
    report = verify(
        settings["root"],
        settings["level"],
        source=make_source(settings),
        processor=processor,
        num_samples=settings["num_samples"],
        seed=settings["seed"],
        progress=settings["progress"],
    )
    print(report.to_json() if settings["json"] else report)
    if report.ok:
        return EXIT_OK
    root = shlex.quote(f"root={settings['root']}")
    print(f"fix: torchcell-cache repair {root}", file=sys.stderr)
    return EXIT_CORRUPT_OR_STALE
