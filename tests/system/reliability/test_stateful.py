"""A store's whole life in random order against a model that is a dictionary: build, kill, damage, read, verify, rebuild."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from faultlib import Fault, FaultServer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_flip import flip, forget_checks, published_files
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, CacheNotFoundError, StaleCacheError
from torchcell_cache.store import records as store
from torchcell_cache.store.manifest import manifest_path

COUNT = 9
SERVER: list[FaultServer] = []


def graphs(version: int) -> list[Data]:
    """Every value names version and sample, so that no mixture can look right."""
    return [
        Data(x=torch.full((2, 2), float(version)), y=torch.tensor([100 * version + k])) for k in range(COUNT)
    ]


def build(root: Path, version: int, workers: int = 0, on_stale: str = "error") -> Any:
    settings = {"storage": "full", "shard_size": 4, "progress": False, "num_workers": workers}
    return tc.build(root, source=graphs(version), on_stale=on_stale, **settings)


def build_and_forget(root: Path, version: int, on_stale: str) -> None:
    build(root, version, on_stale=on_stale)


class Life(RuleBasedStateMachine):
    """``published`` is the version that readers must get, ``damaged`` whether a bit of it was flipped."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        base = tempfile.mkdtemp(prefix="torchcell_cache-", dir=memory if os.access(memory, os.W_OK) else None)
        self.root = Path(base) / "store"
        self.root.mkdir()
        self.published: int | None = None
        self.damaged = False
        self.handles: list[tuple[Any, int]] = []
        self.moves = itertools.count()

    def teardown(self) -> None:
        store.close_all()
        shutil.rmtree(self.root.parent)

    @initialize(version=st.integers(0, 2))
    def first(self, version: int) -> None:
        self.wanted = version

    # What users do

    @rule(version=st.integers(0, 2))
    def edit_the_source(self, version: int) -> None:
        self.wanted = version

    @precondition(lambda self: not self.damaged)
    @rule(workers=st.sampled_from([0, 0, 2]))
    def build_again(self, workers: int) -> None:
        try:
            dataset = build(self.root, self.wanted, workers)
        except StaleCacheError:
            assert self.published not in (None, self.wanted)
            return
        assert self.published in (None, self.wanted)
        self.published = self.wanted
        self.check(dataset, self.wanted)

    @precondition(lambda self: not self.damaged)
    @rule()
    def rebuild(self) -> None:
        self.check(build(self.root, self.wanted, on_stale="rebuild"), self.wanted)
        self.published = self.wanted

    @precondition(lambda self: not self.damaged)
    @rule(
        at=st.integers(1, 70),
        action=st.sampled_from(["kill_before", "kill_after", "kill_torn", "fail", "short"]),
    )
    def disturbed_build(self, at: int, action: str) -> None:
        before = self.published
        fault = Fault(action, at=at, error=5)
        SERVER[0].run_trial(
            build_and_forget, self.root, self.wanted, "rebuild", prefix=self.root, fault=fault
        )
        try:
            found = int(tc.PreprocessedDataset(self.root)[0].y) // 100
        except CacheNotFoundError:
            found = None
        assert found in (before, self.wanted)
        self.published = found

    @precondition(lambda self: self.published is not None and not self.damaged)
    @rule()
    def open_a_handle(self) -> None:
        assert self.published is not None
        self.handles.append((tc.PreprocessedDataset(self.root), self.published))

    @precondition(lambda self: bool(self.handles))
    @rule(
        index=st.integers(0, COUNT - 1),
        which=st.integers(0, 5),
        way=st.sampled_from(["one", "all", "pickle", "fork"]),
    )
    def read(self, index: int, which: int, way: str) -> None:
        dataset, version = self.handles[which % len(self.handles)]
        if way == "pickle":
            dataset = pickle.loads(pickle.dumps(dataset))
        if way == "one":
            assert int(dataset[index].y) == 100 * version + index
        elif way == "fork":
            pid = os.fork()
            if pid == 0:
                os._exit(0 if int(dataset[index].y) == 100 * version + index else 1)
            assert os.waitpid(pid, 0)[1] == 0
        else:
            self.check(dataset, version)

    @rule()
    def close_everything(self) -> None:
        store.close_all()

    @precondition(lambda self: not self.damaged)
    @rule()
    def move_the_root(self) -> None:
        self.handles.clear()
        self.root = self.root.rename(self.root.with_name(f"moved{next(self.moves)}"))

    # What happens to a store

    @precondition(lambda self: self.published is not None and not self.damaged)
    @rule(which=st.integers(0, 20), place=st.floats(0, 1, exclude_max=True))
    def flip_a_bit_and_back(self, which: int, place: float) -> None:
        """Readers get the right samples or a typed error, verify finds it; nobody had the file open."""
        self.handles.clear()
        store.close_all()
        files = published_files(self.root)
        path = files[which % len(files)]
        bit = int(place * 8 * path.stat().st_size)
        path.chmod(0o644)
        flip(path, bit)
        forget_checks()
        assert not self.is_sound()
        with pytest.raises(CacheError):
            self.read_everything(self.published)
        flip(path, bit)

    @precondition(lambda self: self.published is not None and not self.damaged)
    @rule()
    def lose_the_manifest(self) -> None:
        self.handles.clear()
        manifest_path(self.root).unlink()
        self.published = None

    @precondition(lambda self: self.published is not None)
    @rule(which=st.integers(0, 20))
    def lose_a_file(self, which: int) -> None:
        self.handles.clear()
        store.close_all()
        files = published_files(self.root)[1:]
        files[which % len(files)].unlink(missing_ok=True)
        self.damaged = True

    @precondition(lambda self: self.damaged)
    @rule()
    def make_it_whole_again(self) -> None:
        """Without the manifest the same call finds out what is left and builds the rest."""
        assert not self.is_sound()
        version = self.published
        assert version is not None
        manifest_path(self.root).unlink()
        self.check(build(self.root, version), version)
        self.damaged = False

    # What always holds

    @invariant()
    def readers_get_what_was_published(self) -> None:
        if self.damaged:
            return
        try:
            dataset = tc.PreprocessedDataset(self.root)
        except CacheNotFoundError:
            assert self.published is None
            return
        assert self.published is not None
        self.check(dataset, self.published)

    @invariant()
    def nothing_is_written_beside_the_root(self) -> None:
        assert [path.name for path in self.root.parent.iterdir()] == [self.root.name]

    def is_sound(self) -> bool:
        try:
            return bool(tc.verify(self.root, level="full", progress=False).ok)
        except CacheError:
            return False

    def read_everything(self, version: int | None) -> None:
        assert version is not None
        dataset = tc.PreprocessedDataset(self.root)
        self.check(dataset, version)
        assert dataset.columns["y"].tolist() == [100 * version + k for k in range(COUNT)]

    def check(self, dataset: Any, version: int) -> None:
        for index, graph in enumerate(dataset.__getitems__(list(range(COUNT)))):
            assert int(graph.y) == 100 * version + index
            assert bool((graph.x == version).all())


def live(builds: FaultServer, examples: int, steps: int, derandomize: bool) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    SERVER[:] = [builds]
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_store_lives_through_anything(builds: FaultServer) -> None:
    live(builds, examples=15, steps=25, derandomize=True)


@pytest.mark.campaign
@pytest.mark.parametrize("hundred", range(20))
def test_two_thousand_lives(builds: FaultServer, hundred: int) -> None:
    live(builds, examples=100, steps=60, derandomize=False)
