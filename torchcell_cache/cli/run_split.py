"""``torchcell-cache split``."""

from __future__ import annotations

from typing import Any

from torchcell_cache.cli.settings import Settings
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.dividing import PARTS
from torchcell_cache.data.split_groups import split_by_group
from torchcell_cache.data.split_nodes import split_by_perturbation, split_random
from torchcell_cache.data.splits import Splits
from torchcell_cache.errors import EXIT_OK, SettingError


def run(settings: Settings) -> int:
    """Split the store, print the parts and save them where asked to."""
    if settings["out"] is not None:
        local_path(settings["out"], "out")  # said before any work is done
    dataset = PreprocessedDataset(settings["root"], indices=settings["indices"])
    splits = _split(dataset, settings)
    where = None if settings["out"] is None else splits.save(settings["out"], overwrite=settings["overwrite"])
    print(splits.summary())
    print(f"saved to {where}" if where else "nothing written: out=directory saves the split")
    return EXIT_OK


def _split(dataset: PreprocessedDataset, settings: Settings) -> Splits:
    shared: dict[str, Any] = {key: settings[key] for key in ("seed", "stratify", "bins", "progress")}
    if settings["by"] == "group":
        if settings["column"] is None:
            raise SettingError("by=group needs the column whose values are groups", fix="column=donor")
        named = {part: settings[part] for part in PARTS}
        return split_by_group(dataset, settings["column"], settings["fractions"], **named, **shared)
    if settings["column"] is not None or any(settings[part] for part in PARTS):
        raise SettingError("column=, train=, val= and test= name groups", fix="by=group")
    if settings["by"] == "random":
        return split_random(dataset, settings["fractions"], **shared)
    own = {key: settings[key] for key in ("seen_fractions", "names", "controls")}
    return split_by_perturbation(dataset, settings["fractions"], **own, **shared)
