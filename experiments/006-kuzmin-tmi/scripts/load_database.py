"""Load the table of knock-outs into the graph database, in torchcell's schema.

    python experiments/006-kuzmin-tmi/scripts/load_database.py [directory=...] [folder=...] [num_samples=...]

Into the server that ``NEO4J_URI`` names (with ``NEO4J_USER``, ``NEO4J_PASSWORD``, ``NEO4J_DATABASE``), or into an
embedded one whose files are kept in ``directory`` (``pip install '.[graphdb]'``). Loading the same rows
again changes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

from graph_database import DATASET, knockout_rows, login

from torchcell_cache.errors import CacheError
from torchcell_cache.sources import load_experiments


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the command, ``key=value``."""

    directory: str = "outputs/006-kuzmin-tmi/database"
    folder: str | None = None
    num_samples: str | None = None
    batch_size: str = "500"

    @classmethod
    def of(cls, arguments: list[str]) -> Settings:
        pairs = dict(argument.partition("=")[::2] for argument in arguments)
        valid = [field.name for field in fields(cls)]
        if "--help" in pairs or any(key not in valid for key in pairs):
            print(__doc__, f"keys: {', '.join(valid)}", sep="\n")
            raise SystemExit(0 if "--help" in pairs else 2)
        return cls(**pairs)


def main(arguments: list[str]) -> int:
    settings = Settings.of(arguments)
    begun = time.perf_counter()
    rows = knockout_rows(settings.folder, int(settings.num_samples) if settings.num_samples else None)
    with login(settings.directory) as server:
        count = load_experiments(rows=rows, dataset=DATASET, batch_size=int(settings.batch_size), **server)
    place = os.environ.get("NEO4J_URI") or str(Path(settings.directory))
    print(f"{place}: {count:,} knock-outs in {time.perf_counter() - begun:.1f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CacheError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
