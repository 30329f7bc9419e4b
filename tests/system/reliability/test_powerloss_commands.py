"""Power cuts while commands other than the build write: what was there stays readable, and the command given again is done."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import powersim
import pytest
import stores
from commands import append, base_graph, build, gc, indices, pull, push, repair, splits, subset, tree, update
from faultlib import DATA, NAMES, SYNC, Call, Fault, FaultServer

import torchcell_cache as tc
from torchcell_cache.core.files import fsync_dir
from torchcell_cache.store.manifest import processed_dir, read_manifest

OPS = (*DATA, *SYNC, *NAMES, "copy", "ftruncate", "fallocate")
MARK = "begun"


def lose(place: Path) -> None:
    shard = next((place / "store").rglob("shard-00001.lmdb"))
    shard.unlink()
    fsync_dir(shard.parent)  # else it may be there again, and nothing to repair


BEFORE = {**commands.BEFORE, repair: (build, lose)}
COMMANDS = (append, update, subset, repair, indices, splits, base_graph, push, pull, gc)


def both(place: Path, command: Any) -> None:
    """All from an empty directory, so that the log has the bytes of what was there before, too."""
    shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined] # whose bytes the log would not have
    for step in BEFORE[command]:
        step(place)
    (place / MARK).mkdir()
    command(place)


def digests(place: Path) -> dict[str, str]:
    """Of each store below; a store is its published content."""
    roots = sorted(path.parent.parent for path in place.rglob("processed/manifest.json"))
    return {str(root.relative_to(place)): read_manifest(root).content_digest for root in roots}


def read_all(place: Path) -> None:
    """Every published store gives all of its samples, but for the shard that is to be mended."""
    with stores.fresh_handles():
        for name in digests(place):
            dataset = tc.PreprocessedDataset(place / name)
            lost = not (
                processed_dir(place / name) / dataset.generation.manifest.generation / "shard-00001.lmdb"
            ).exists()
            kept = [k for k in range(len(dataset)) if not (lost and 5 <= k < 10)]
            assert len(dataset.__getitems__(kept)) == len(kept)


def survive(builds: FaultServer, room: Callable[[], Path], command: Any, every: int) -> int:
    place = room()
    trial = builds.run_trial(both, place, command, prefix=place, fault=Fault(ops=OPS), log="data")
    assert trial.outcome == "ok", trial.error
    wanted, after, real = tree(place), digests(place), Path(os.path.realpath(place))
    log: list[Call] = trial.log
    start = next(k for k, call in enumerate(log) if call.path.endswith(f"/{MARK}"))
    made_safe = [*log[: start + 1], *(c for c in log[start:] if c.op != "mkdir" or not c.path.endswith(MARK))]
    checked = 0
    states = powersim.states(real, made_safe, range(start + 1, len(made_safe)), seed=1, samples=1)
    for turn, (number, state) in enumerate(states):
        if turn % every:
            continue
        there = room()
        powersim.materialise(state, real, there)
        (there / MARK).mkdir(exist_ok=True)
        read_all(there)
        if number == len(made_safe):
            assert digests(there) == after, "the command had returned"
        with stores.fresh_handles():
            command(there)
        left, lost = Counter(tree(there)) - Counter(wanted), Counter(wanted) - Counter(tree(there))
        assert not left, (number, turn, left)
        assert all(name.endswith(".status.json") for name in lost), (number, turn, lost)
        assert digests(there) == after, (number, turn)
        read_all(there)
        stores.remove(there)
        checked += 1
    return checked


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_power_cut_during_a_command(builds: FaultServer, room: Callable[[], Path], command: Any) -> None:
    assert survive(builds, room, command, every=60) >= 1


@pytest.mark.campaign
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_state_after_a_power_cut_during_a_command(
    builds: FaultServer, room: Callable[[], Path], command: Any, reached: Callable[[str, int], int]
) -> None:
    assert reached("states", survive(builds, room, command, every=1)) >= 20
