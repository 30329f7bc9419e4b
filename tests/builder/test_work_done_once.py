"""What a build does once: look at the source, hash the base graph, build the index, make each record.

Calls are counted by the interpreter itself, whoever makes them and under whatever name.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest

import torchcell_cache as tc
from torchcell_cache.builder.plan import make_plan
from torchcell_cache.codec.deletions import encode
from torchcell_cache.graph.fields import graph_digests
from torchcell_cache.graph.incidence import IncidenceIndex

COUNTED: dict[CodeType, str] = {
    make_plan.__code__: "plan",
    graph_digests.__code__: "hash of the base graph",
    IncidenceIndex.build.__func__.__code__: "index",  # type: ignore[attr-defined]
}


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Calls of what is counted, and samples encoded, while the body runs in this thread."""
    found: Counter[str] = Counter()

    def see(frame: Any, event: str, argument: Any) -> None:
        if event != "call":
            return
        if frame.f_code in COUNTED:
            found[COUNTED[frame.f_code]] += 1
        elif frame.f_code is encode.__code__:
            found["samples encoded"] += len(frame.f_locals["table"])

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        yield found
    finally:
        sys.setprofile(before)


def source(count: int, seed: int = 0, graph: Any = None) -> Any:
    return tc.testing.tiny_source(count, tc.testing.tiny_graph(12) if graph is None else graph, seed=seed)


@pytest.mark.parametrize("storage", ["delta", "perturbation"])
@pytest.mark.parametrize("shard_size", [7, 1000])
def test_a_build(tmp_path: Path, storage: str, shard_size: int) -> None:
    settings = {"processor": tc.LazySubgraphRepresentation(), "storage": storage, "shard_size": shard_size}
    with counting() as found:
        tc.build(tmp_path, source=source(30), progress=False, **settings)
    assert found == {"plan": 1, "hash of the base graph": 1, "index": 1, "samples encoded": 30}


def test_a_build_by_workers_encodes_nothing_here(tmp_path: Path) -> None:
    settings = {"processor": tc.LazySubgraphRepresentation(), "storage": "delta", "shard_size": 7}
    with counting() as found:
        tc.build(tmp_path, source=source(30), progress=False, num_workers=2, **settings)
    assert found == {"plan": 1, "hash of the base graph": 1, "index": 1}


def test_auto_measures_on_the_first_samples_and_builds_no_second_index(tmp_path: Path) -> None:
    with counting() as found:
        tc.build(tmp_path, source=source(30), processor=tc.SubgraphRepresentation(), progress=False)
    assert (found["plan"], found["hash of the base graph"], found["index"]) == (1, 1, 1)
    assert found["samples encoded"] == 30 + 2 * 30  # once in each of two storages, to compare them


def test_records_of_a_processor_with_an_index_of_its_own(tmp_path: Path) -> None:
    with counting() as found:
        tc.build(tmp_path, source=source(30), processor=tc.KHopSubgraph(1), storage="full", progress=False)
    assert found == {"plan": 1, "hash of the base graph": 1, "index": 1}


GROWN: dict[str, Callable[[Path, Any, Any], Any]] = {
    "append": lambda root, base, more: tc.append(root, source(9, 5, base), progress=False),
    "update": lambda root, base, more: tc.update(root, more, progress=False),
}


@pytest.mark.parametrize("how", GROWN)
def test_growing(tmp_path: Path, how: str) -> None:
    base = tc.testing.tiny_graph(12)
    settings = {"processor": tc.LazySubgraphRepresentation(), "storage": "delta", "shard_size": 10}
    tc.build(tmp_path, source=source(30, 0, base), progress=False, **settings)
    changed = source(30, 0, base)
    values = changed.table.values.copy()
    values[0] = np.float32(7)
    object.__setattr__(changed.table, "values", values)
    with counting() as found:
        growth = GROWN[how](tmp_path, base, changed)
    assert (found["plan"], found["hash of the base graph"], found["index"]) == (1, 1, 1)
    assert found["samples encoded"] == growth.recomputed == (9 if how == "append" else 1)


def test_a_subset_hashes_nothing_again(tmp_path: Path) -> None:
    settings = {"processor": tc.LazySubgraphRepresentation(), "storage": "delta"}
    dataset = tc.build(tmp_path / "whole", source=source(30), progress=False, **settings)
    with counting() as found:
        tc.save_subset(dataset[3:9], tmp_path / "part", progress=False)
    assert not found


def test_verify_hashes_the_base_graph_once(tmp_path: Path) -> None:
    settings = {"processor": tc.LazySubgraphRepresentation(), "storage": "delta"}
    tc.build(tmp_path, source=source(30), progress=False, **settings)
    with counting() as found:
        assert tc.verify(tmp_path, level="full", progress=False).ok
    assert (found["hash of the base graph"], found["index"]) == (1, 1)
