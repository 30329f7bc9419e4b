"""``torchcell-cache append``."""

from __future__ import annotations

from torchcell_cache.cli.registry import make_processor, make_source
from torchcell_cache.cli.settings import Settings
from torchcell_cache.errors import EXIT_OK, SettingError
from torchcell_cache.growing.update import STORED, append


def run(settings: Settings) -> int:
    """Grow the store and print what was computed and what was taken over."""
    source = make_source(settings)
    if source is None:
        raise SettingError(
            "append needs a source", fix="source=table source.path=..., or source=python source.file=..."
        )
    own = make_processor(settings)
    growth = append(
        settings["root"],
        source,
        STORED if own is None else own,
        num_workers=settings["num_workers"],
        progress=settings["progress"],
    )
    print(f"{growth}; content digest {growth.dataset.content_digest}")
    return EXIT_OK
