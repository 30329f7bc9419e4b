"""Whether the build pays: hours without the cache, hours and bytes with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torchcell_cache.cli.bench.store import BenchReport
from torchcell_cache.core.progress import human_bytes, human_seconds


def investment(report: BenchReport) -> dict[str, Any] | None:
    """What ``epochs`` cost without the cache and with it: hours of one core for data, bytes, and when the build has paid.

    ``None`` without ``epochs``; figures that could not be measured are ``None``.
    """
    facts = report.facts
    if facts.get("epochs") is None:
        return None
    per_epoch = facts["samples"] / report.batch_size / 3.6e6  # ms a batch to hours an epoch
    fly, shared = report.cost("on the fly", "pyg collate"), report.cost("batch")
    expanded, built = report.cost("batch", "expand"), facts["build_seconds"]
    once = None if built is None else float(built) / 3600
    hours = {
        name: None if cost is None else cost * per_epoch * facts["epochs"]
        for name, cost in (("without", fly), ("shared", shared), ("pyg", expanded))
    }
    gained = None if fly is None or shared is None else (fly - shared) * per_epoch
    after = None if gained is None or once is None or gained <= 0 else max(1, math.ceil(once / gained))
    return {
        "epochs": facts["epochs"],
        "hours_without": hours["without"],
        "hours_build": once,
        "hours_with": hours["shared"],
        "hours_with_pyg_batches": hours["pyg"],
        "bytes": facts["store_bytes"],
        "paid_after_epochs": after,
    }


def paid(report: BenchReport) -> Iterator[str]:
    """Whether the build pays, in one sentence."""
    found = investment(report)
    if found is None:
        return
    epochs, without, build, shared = (
        found[k] for k in ("epochs", "hours_without", "hours_build", "hours_with")
    )
    if without is None or build is None or shared is None:
        yield f"what {epochs:,} epochs cost without the cache cannot be said: processing or building was not measured"
        return
    stay = f"{human_seconds(3600 * shared)} with it, after {human_seconds(3600 * build)} to build {human_bytes(found['bytes'])}"
    count = found["paid_after_epochs"]
    after = (
        "it never pays" if count is None else f"it has paid after {count:,} epoch{'' if count == 1 else 's'}"
    )
    yield f"{epochs:,} epochs: {human_seconds(3600 * without)} of one core for data without the cache, {stay}; {after}"
