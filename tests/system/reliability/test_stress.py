"""Builds, appends, updates, repairs, gc, verify and eight readers on one root, writers killed: nothing wrong or left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import stores
import stress
from commands import tree
from test_flip import in_child

import torchcell_cache as tc

Room = Callable[[], Path]
KINDS = ("delta", "generic")


def stressed(place: Path, kind: str, seconds: float, readers: int) -> bytes:
    """Run, then bring the store and a new one to the same end, where they must have the same files."""
    place.mkdir(parents=True, exist_ok=True)
    stress.finish(place / "undisturbed", kind, [2, 1])  # loads what the processes would load each for itself
    counts = stress.run(place, kind, seconds, readers)
    log, root = stress.Log(place / "oracle.jsonl"), place / "store"
    used = max(line.get("batch", 0) for line in log.lines())
    first = 2 * used
    for who, batch in (("builder", first), ("appender", first + 1), ("appender", first + 3)):
        log.add(who, "begin", op="last", batch=batch)  # for a run that goes on after this one was killed
    undisturbed = place / "undisturbed"
    shutil.rmtree(undisturbed, ignore_errors=True)
    for each in (root, undisturbed):
        stress.finish(each, kind, [first, first + 1, first + 3])
    assert tree(root) == tree(undisturbed)
    assert stores.facts(root) == stores.facts(undisturbed)
    assert tc.verify(root, "full", progress=False).ok
    return json.dumps(counts).encode()


def of_the_campaign(name: str, otherwise: Path) -> Path:
    """A place that stays, if there is one for the campaign: a run that is killed goes on there."""
    place = os.environ.get("TORCHCELL_CACHE_CAMPAIGN")
    return Path(place).resolve() / name if place else otherwise


def test_seconds_of_everything_at_once(room: Room) -> None:
    counts = json.loads(in_child(lambda: stressed(room(), "delta", 2.5, 3), "stress"))
    assert counts["samples"] > 100
    assert sum(count for what, count in counts.items() if what.endswith(" killed")) >= 1


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
def test_minutes_of_everything_at_once(
    tmp_path: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    place = of_the_campaign(f"stress-{kind}", tmp_path)
    counts = json.loads(in_child(lambda: stressed(place, kind, 240.0, 8), kind))
    record_property("counts", counts)
    assert counts["samples"] > 10_000
    assert min(counts[f"{who} killed"] for who in stress.VICTIMS) > 30


def test_the_oracle_notices_what_was_not_published() -> None:
    def line(who: str, event: str, batch: int, **more: object) -> dict[str, object]:
        return {"who": who, "event": event, "batch": batch, **more}

    lines = [line("builder", "begin", 2), line("builder", "end", 2), line("appender", "begin", 1)]
    stress.assert_possible(lines, 2, [2])
    stress.assert_possible(lines, 2, [2, 1])
    lines += [line("appender", "end", 1, content=[2, 1]), line("builder", "begin", 4)]
    stress.assert_possible(lines, 3, [2])  # opened before it returned
    stress.assert_possible(lines, 5, [4])
    lines += [line("builder", "end", 4), line("appender", "begin", 3)]
    for wrong in ([2, 1], [4, 3, 1], [4, 1, 1], [4, 5], [6], [1], [4, 2]):
        with pytest.raises(AssertionError):
            stress.assert_possible(lines, len(lines), wrong)
    with pytest.raises(AssertionError):
        stress.assert_possible(lines[:5], 4, [2])  # lacks what had been added
    with pytest.raises(AssertionError):
        stress.counted(
            [{"who": "reader1", "event": "read", "generation": "g", "content": c} for c in ([2], [4])]
        )
