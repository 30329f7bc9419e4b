"""Every command that writes, on small stores below one directory, and what has to be there before it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch_geometric.data import HeteroData

import torchcell_cache as tc

SIZE = 20


@functools.cache
def cell() -> HeteroData:
    return tc.testing.tiny_graph()


def table(count: int, seed: int = 1) -> Any:
    return tc.testing.tiny_source(count, cell(), seed=seed)


def build(place: Path) -> None:
    processor = tc.LazySubgraphRepresentation()
    settings: dict[str, Any] = {"storage": "delta", "shard_size": 5, "progress": False}
    tc.build(place / "store", source=table(SIZE), processor=processor, **settings)


def append(place: Path) -> None:
    if len(tc.PreprocessedDataset(place / "store")) == SIZE:  # else the kill came after publishing
        tc.append(place / "store", table(7, 9), progress=False)


def update(place: Path) -> None:
    tc.update(place / "store", table(SIZE + 3), progress=False)


def subset(place: Path) -> None:
    chosen = tc.PreprocessedDataset(place / "store")[[1, 5, 17]]
    tc.save_subset(chosen, place / "smaller", progress=False)


def repair(place: Path) -> None:
    tc.repair(place / "store", progress=False)


def indices(place: Path) -> None:
    tc.save_indices(place / "chosen" / "i.npy", tc.PreprocessedDataset(place / "store")[[1, 5]])


def splits(place: Path) -> None:
    tc.split_random(tc.PreprocessedDataset(place / "store"), seed=1).save(place / "splits")


def base_graph(place: Path) -> None:
    tc.save_base_graph(cell(), place / "cell")


def push(place: Path) -> None:
    tc.push(place / "store", f"file://{place}/bucket", progress=False)


def pull(place: Path) -> None:
    tc.pull(f"file://{place}/bucket", place / "pulled", progress=False)


def stage(place: Path) -> None:
    tc.stage(place / "store", place / "node", progress=False)


def gc(place: Path) -> None:
    tc.gc(place / "store", keep=1)


def damage(place: Path) -> None:
    shard = next((place / "store").rglob("shard-00001.lmdb"))
    shard.chmod(0o644)
    shard.write_bytes(b"nothing" * 100)


BEFORE: dict[Callable[[Path], None], tuple[Callable[[Path], None], ...]] = {
    build: (),
    append: (build,),
    update: (build,),
    subset: (build,),
    repair: (build, damage),
    indices: (build,),
    splits: (build,),
    base_graph: (),
    push: (build,),
    pull: (build, push),
    stage: (build,),
    gc: (build, update),
}


def prepared(room: Callable[[], Path], command: Callable[[Path], None]) -> Path:
    """A new place with what has to be there before a command."""
    place = room()
    for step in BEFORE[command]:
        step(place)
    return place


def tree(place: Path) -> list[str]:
    """Names of all files and directories; what names of generations and copies hold by chance is left out."""
    names = (str(path.relative_to(place)) for path in place.rglob("*"))
    return sorted(re.sub(r"-[0-9a-f]{16}(-[0-9a-f]+)?", "", name) for name in names)
