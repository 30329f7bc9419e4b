"""What ``append`` and ``update`` have in common."""

from __future__ import annotations

from collections.abc import Callable

from torchcell_cache.builder.grow import STORED
from torchcell_cache.cli.registry import make_processor, make_source
from torchcell_cache.cli.settings import Settings
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.api import Growth
from torchcell_cache.errors import EXIT_OK, SettingError
from torchcell_cache.store.manifest import read_manifest


def grow(settings: Settings, name: str, work: Callable[..., Growth]) -> int:
    """Grow the store and print what was computed and what was taken over."""
    if settings.choices["source"] != "none":
        # Before a source that may take minutes to read.
        read_manifest(local_path(settings["root"]))
    source = make_source(settings)
    if source is None:
        raise SettingError(
            f"{name} needs a source", fix="source=table source.path=..., or source=python source.file=..."
        )
    own = make_processor(settings)
    growth = work(
        settings["root"],
        source,
        STORED if own is None else own,
        num_workers=settings["num_workers"],
        progress=settings["progress"],
    )
    print(f"{growth}; content digest {growth.dataset.content_digest}")
    return EXIT_OK
