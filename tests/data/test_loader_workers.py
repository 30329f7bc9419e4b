"""Worker processes: every start method, death, errors, and nothing that grows from epoch to epoch."""

import gc
import multiprocessing
import os
import signal
import time
import weakref
from pathlib import Path

import pytest
import torch
from loading import COUNT, build, graphs_of, make_source, rows, stock

import torchcell_cache as tc


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return build(tmp_path_factory.mktemp("workers"), make_source(), storage="perturbation")


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1), ("forkserver", 1)])
def test_every_start_method_gives_the_same_batches(ds, method, workers) -> None:
    want = stock(graphs_of(make_source()), batch_size=6)
    ds[0]  # the parent's handle is open when workers start
    loader = tc.CacheLoader(
        ds, 6, num_workers=workers, expand=True, multiprocessing_context=method, persistent_workers=True
    )
    for _ in range(3):
        for got, expected in zip(loader, want, strict=True):
            tc.testing.assert_same_graph(got, expected)


def test_the_order_does_not_depend_on_workers(ds) -> None:
    want = rows(tc.CacheLoader(ds, 3, True))
    for workers in (1, 3):
        assert rows(tc.CacheLoader(ds, 3, True, workers)) == want


def test_a_context_object_is_taken_too(ds) -> None:
    context = multiprocessing.get_context("fork")
    assert len(rows(tc.CacheLoader(ds, 5, num_workers=1, multiprocessing_context=context))) == 5


class Facts:
    """A collate function that tells about its process."""

    def __call__(self, samples):
        return {"threads": torch.get_num_threads(), "pid": os.getpid(), "random": torch.rand(()).item()}


def test_workers_use_one_thread_and_their_own_seeded_random_numbers(ds) -> None:
    def epoch(loader):
        facts = list(loader)
        assert {fact["threads"] for fact in facts} == {1}
        assert os.getpid() not in {fact["pid"] for fact in facts}
        return [fact["random"] for fact in facts]

    loader = tc.CacheLoader(ds, 3, num_workers=2, collate_fn=Facts())
    first, second = epoch(loader), epoch(loader)
    assert len({*first, *second}) == 2 * len(first)
    assert epoch(tc.CacheLoader(ds, 3, num_workers=2, collate_fn=Facts())) == first
    assert epoch(tc.CacheLoader(ds, 3, num_workers=2, collate_fn=Facts(), seed=1)) != first


class Dies:
    """A collate function whose process is killed in its second batch."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, samples):
        self.calls += 1
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(samples)


def test_a_worker_that_dies_is_an_error_within_seconds(ds) -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"DataLoader worker(.|\n)*(memory|num_workers=0)"):
        list(tc.CacheLoader(ds, 2, num_workers=2, collate_fn=Dies()))
    assert time.monotonic() - start < 30


def test_a_worker_killed_from_outside_is_an_error_within_seconds(ds) -> None:
    before = set(multiprocessing.active_children())
    loader = tc.CacheLoader(ds, 1, num_workers=2)
    iterator = iter(loader)
    next(iterator)
    victim = min(set(multiprocessing.active_children()) - before, key=lambda child: child.pid)
    start = time.monotonic()

    def rest():
        os.kill(victim.pid, signal.SIGKILL)
        return [time.sleep(0.05) for _ in iterator]

    with pytest.raises(RuntimeError, match="DataLoader worker"):
        rest()
    assert time.monotonic() - start < 30
    assert len(rows(loader)) == COUNT


def test_a_worker_that_hangs_is_an_error_after_the_timeout(ds) -> None:
    loader = tc.CacheLoader(ds, 2, num_workers=1, collate_fn=lambda samples: time.sleep(2), timeout=0.5)
    with pytest.raises(RuntimeError, match=r"timed out after 0\.5 seconds"):
        list(loader)


def test_errors_of_a_collate_fn_name_the_samples(ds) -> None:
    def fails(samples):
        raise KeyError("missing label")

    for workers in (0, 1):
        loader = tc.CacheLoader(ds, 4, True, workers, collate_fn=fails)
        first = ", ".join(map(str, loader.sampler.start_epoch().batch(0)[0]))
        loader.set_epoch(0)
        with pytest.raises(
            KeyError, match=rf"missing label(.|\n)*while making a batch of samples {first} of"
        ):
            list(loader)


def test_prepares_workers_as_asked(ds, tmp_path) -> None:
    def started(number):
        (tmp_path / str(number)).touch()

    rows(tc.CacheLoader(ds, 4, num_workers=2, worker_init_fn=started))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def resident_kib() -> int:
    fields = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("Private_Dirty"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"expand": True},
        {"num_workers": 1, "persistent_workers": True},
        {"num_workers": 1},
        {"num_workers": 1, "collate_fn": len},
    ],
    ids=["inline", "expanded", "persistent", "new workers", "collate_fn"],
)
def test_nothing_grows_over_fifty_epochs(ds, settings) -> None:
    loader = tc.CacheLoader(ds, 4, True, **settings)

    def state():
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), len(gc.get_objects()), resident_kib()

    def run(epochs):
        for _ in range(epochs):
            for batch in loader:
                del batch

    run(5)
    files, objects, memory = state()
    run(50)
    files_after, objects_after, memory_after = state()
    assert (
        files_after - files < 10
    )  # torch closes a worker's pipes a little later; one lost per epoch would be 50
    assert objects_after - objects < 500
    assert memory_after - memory < 2048


def test_a_dropped_loader_takes_its_workers_with_it(ds) -> None:
    """No reference cycle: persistent workers end with the loader, not whenever the garbage collector comes by."""
    gc.collect()
    gc.disable()
    try:
        loader = tc.CacheLoader(ds, 2, num_workers=2, persistent_workers=True)
        stream = iter(loader)
        next(stream)
        gone = weakref.ref(loader)
        del stream, loader
        assert gone() is None
    finally:
        gc.enable()
