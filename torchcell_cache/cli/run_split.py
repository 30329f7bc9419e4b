"""``torchcell-cache split``."""

from __future__ import annotations

from typing import Any

from torchcell_cache.cli.settings import Settings
from torchcell_cache.dataset import PreprocessedDataset
from torchcell_cache.errors import EXIT_OK
from torchcell_cache.subsets.splits import split_by_perturbation, split_random


def run(settings: Settings) -> int:
    """Split the store, print the parts and save them where asked to."""
    dataset = PreprocessedDataset(settings["root"], indices=settings["indices"])
    shared: dict[str, Any] = {key: settings[key] for key in ("seed", "stratify", "bins")}
    if settings["by"] == "random":
        splits = split_random(dataset, settings["fractions"], **shared)
    else:
        splits = split_by_perturbation(
            dataset,
            settings["fractions"],
            seen_fractions=settings["seen_fractions"],
            names=settings["names"],
            **shared,
        )
    where = None if settings["out"] is None else splits.save(settings["out"], overwrite=settings["overwrite"])
    print(splits.summary())
    print(f"saved to {where}" if where else "nothing written: out=directory saves the split")
    return EXIT_OK
