"""``torchcell-cache select``."""

from __future__ import annotations

import json
from typing import Any

from torchcell_cache.cli.settings import Settings
from torchcell_cache.core.digests import digest_of
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.index_file import npy_path, save_indices
from torchcell_cache.data.select import select
from torchcell_cache.errors import EXIT_OK, SettingError

_CHOOSING = ("where", "list", "genes", "match", "without", "n", "seed", "stratify", "bins")


def run(settings: Settings) -> int:
    """Choose samples, write them where asked to, and say how many they are."""
    conditions = {key: settings[key] for key in _CHOOSING if settings[key] not in (None, [])}
    if not conditions.keys() & {"where", "list", "genes", "without", "n"}:
        raise SettingError(
            "select needs a condition: where=, list=, genes=, without= or n=",
            fix="torchcell-cache select --help",
        )
    if settings["out"] is not None:
        npy_path("out", settings["out"])  # said before any work is done
    if settings["store"] is not None:
        local_path(settings["store"], "store")
    dataset = PreprocessedDataset(settings["root"], indices=settings["indices"])
    listed = {"listed" if key == "list" else key: value for key, value in conditions.items()}
    chosen = select(dataset, **listed)
    if len(chosen) == 0:
        raise SettingError(
            f"no sample of {len(dataset):,} fulfils the conditions", fix="fewer or wider conditions"
        )
    view, facts = dataset[chosen], _facts(dataset, chosen, conditions)
    if settings["out"] is not None:
        facts["out"] = str(save_indices(settings["out"], view, made_by=conditions))
    if settings["store"] is not None:
        from torchcell_cache.data.api import save_subset

        made = save_subset(
            view,
            settings["store"],
            shard_size=settings["shard_size"],
            on_stale=settings["on_stale"],
            made_by=conditions,
            progress=settings["progress"],
        )
        facts["store"], facts["content_digest"] = str(made.generation.root), made.content_digest
    print(json.dumps(facts, indent=1) if settings["json"] else _text(facts))
    return EXIT_OK


def _facts(dataset: PreprocessedDataset, chosen: Any, conditions: dict[str, Any]) -> dict[str, Any]:
    return {
        "root": str(dataset.generation.root),
        "samples": len(dataset),
        "chosen": len(chosen),
        "xxh3": digest_of(dataset.positions(chosen)),
        "made_by": conditions,
    }


def _text(facts: dict[str, Any]) -> str:
    lines = [f"{facts['chosen']:,} of {facts['samples']:,} samples of {facts['root']}"]
    if "out" in facts:
        lines.append(f"indices: {facts['out']}")
    if "store" in facts:
        lines.append(f"store: {facts['store']}, content digest {facts['content_digest']}")
    if len(lines) == 1:
        lines.append(
            "nothing written: out=chosen.npy writes an index file, store=directory a store of its own"
        )
    return "\n".join(lines)
