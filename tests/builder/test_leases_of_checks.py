"""What checks or copies a generation keeps it: gc and writers at the same time make no store look damaged."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import torchcell_cache as tc
from torchcell_cache.builder.generations import read_or_recover
from torchcell_cache.store.lease import keeping
from torchcell_cache.store.manifest import read_manifest

GRAPH = tc.testing.tiny_graph()


class Acting(io.StringIO):
    """A terminal on which, once something is printed, something else happens first."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def isatty(self):
        return True

    def write(self, text):
        act, self.act = self.act, None
        if act is not None:
            act()
        return super().write(text)


@pytest.fixture
def root(tmp_path):
    rows = [[f"G{k}"] for k in range(4)]
    tc.build(
        tmp_path / "s",
        source=tc.PerturbationTable(GRAPH, rows),
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        shard_size=2,
        progress=False,
    )
    return tmp_path / "s"


def grow_and_clean(root):
    tc.append(root, tc.PerturbationTable(GRAPH, [["G4"]]), progress=False)
    tc.gc(root, keep=1)


USES = {
    "quick": lambda root: tc.verify(root, "quick").ok,
    "full": lambda root: tc.verify(root, "full").ok,
    "source": lambda root: (
        tc.verify(root, "full", tc.PerturbationTable(GRAPH, [[f"G{k}"] for k in range(4)])).ok
    ),
    "stage": lambda root: len(tc.PreprocessedDataset(tc.stage(root, root.parent / "staged"))) == 4,
    "push": lambda root: bool(tc.push(root, f"file://{root.parent}/b")),
}


@pytest.mark.parametrize("use", USES)
def test_a_store_that_is_cleaned_up_meanwhile_is_whole(root, monkeypatch, use):
    stream = Acting(lambda: grow_and_clean(root))
    monkeypatch.setattr(sys, "stderr", stream)
    assert USES[use](root)
    assert stream.act is None


def test_a_generation_published_between_reading_and_leasing_is_taken_instead(root):
    """The manifest is read, then the store grows and the old generation goes, then the lease is taken."""
    calls = []

    def read(where):
        manifest = read_manifest(where)
        calls.append(manifest.generation)
        if len(calls) == 1:
            grow_and_clean(where)
        return manifest

    with keeping(root, read, lambda found: found) as manifest:
        assert manifest.num_samples == 5
        assert (root / "processed" / manifest.generation / "manifest.json").is_file()
    assert len(calls) == 2


def test_the_lease_ends_with_the_check(root):
    first = read_manifest(root).generation
    with keeping(root, read_or_recover, lambda found: found[0]):
        tc.append(root, tc.PerturbationTable(GRAPH, [["G4"]]), progress=False)
        assert tc.gc(root, keep=1) == []
    assert tc.gc(root, keep=1) == [first]


def test_verify_takes_no_lock(root):
    """Two checks and a writer's lock at once: nobody waits."""
    from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
    from torchcell_cache.store.manifest import processed_dir

    with BuilderLock(processed_dir(root) / LOCK_NAME), ThreadPoolExecutor(2) as pool:
        reports = [pool.submit(tc.verify, root, "full", progress=False) for _ in range(2)]
        assert all(report.result(60).ok for report in reports)
