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

_OWN: dict[str, dict[str, Any]] = {
    "group": {"column": None, **{part: [] for part in PARTS}},
    "perturbation": {"seen_fractions": None, "names": "unseen", "controls": "random"},
}
"""Keys that only one way to split knows, with their defaults."""


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
    for by, own in _OWN.items():
        given = [f"{key}=" for key, default in own.items() if settings[key] != default]
        if by != settings["by"] and given:
            raise SettingError(
                f"{', '.join(given)} would mean nothing with by={settings['by']}",
                fix=f"by={by}, or without it",
            )
    shared: dict[str, Any] = {key: settings[key] for key in ("seed", "stratify", "bins", "progress")}
    if settings["by"] == "group":
        if settings["column"] is None:
            raise SettingError("by=group needs the column whose values are groups", fix="column=donor")
        named = {part: settings[part] for part in PARTS}
        return split_by_group(dataset, settings["column"], settings["fractions"], **named, **shared)
    if settings["by"] == "random":
        return split_random(dataset, settings["fractions"], **shared)
    own = {key: settings[key] for key in _OWN["perturbation"]}
    return split_by_perturbation(dataset, settings["fractions"], **own, **shared)
