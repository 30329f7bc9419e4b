"""What to type next: fix lines that name the store they speak of."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

StrPath = str | os.PathLike[str]
PROCESSED_NAME = "processed"
RAW_NAME = "raw"
USED_NAME = ".used"
"""In the cache directory of an address: what was used last."""


def root_argument(root: StrPath) -> str:
    """``root=...`` as one types it in a shell."""
    return shlex.quote(f"root={os.fspath(root)}")


def repair_hint(path: StrPath | None) -> str:
    """What mends the file: the command for the store it belongs to, or where it would come from again."""
    parents = list(Path(path).parents) if path is not None else []
    place = next((parent for parent in parents if parent.name in (PROCESSED_NAME, RAW_NAME)), None)
    if place is None:
        return "torchcell-cache repair root=..."
    if place.name == RAW_NAME:
        return f"rm -r {shlex.quote(str(place))}, then fetch again"
    if os.path.isdir(place.parent / USED_NAME):  # noqa: PTH112 - which never raises
        return f"rm -r {shlex.quote(str(place.parent))}, then open the dataset again: it is a cache of an address"
    root = root_argument(place.parent)
    return f"torchcell-cache repair {root}  (or build again: torchcell-cache preprocess {root} ...)"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as ``sbatch --array`` takes them, such as ``3,7-9``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
