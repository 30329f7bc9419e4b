"""Stop signals, dead workers and failing samples: a clean end, the cause named, finished shards kept."""

from __future__ import annotations

import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stores
import torch
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import (
    BuildFailedError,
    BuildInterruptedError,
    CacheError,
    CacheNotFoundError,
    SampleError,
)

Room = Callable[[], Path]
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class At:
    """A processor that does something when it meets a given sample (by its label) , so many times."""

    def __init__(self, sample: int, action: str, folder: Path, times: int = 1_000) -> None:
        self.sample, self.action, self.folder = sample, action, str(folder)
        self.times, self.builder = times, os.getpid()

    def settings(self) -> dict[str, Any]:
        return {}

    def __call__(self, graph: Data) -> Data:
        met = len(list(Path(self.folder).iterdir()))
        if int(graph.y) == self.sample:
            Path(self.folder, f"{met}").touch()
        if int(graph.y) == self.sample and met < self.times:
            if self.action == "raise":
                raise ZeroDivisionError("no such gene")
            if self.action == "exit":
                os._exit(3)
            number = getattr(signal, self.action)
            os.kill(os.getpid() if number == signal.SIGKILL else self.builder, number)
        return stores.center(graph)


@pytest.fixture
def handlers() -> Iterator[dict[int, Any]]:
    """Handlers of the caller's own, which must be back after every build."""

    def mine(number: int, frame: Any) -> None:
        raise AssertionError("the build must listen itself")

    before = {number: signal.signal(number, mine) for number in STOP}
    yield dict.fromkeys(STOP, mine)
    assert {number: signal.getsignal(number) for number in STOP} == dict.fromkeys(STOP, mine)
    for number, handler in before.items():
        signal.signal(number, handler)


def build(root: Path, processor: Any, workers: int = 0, **settings: Any) -> Any:
    settings = {"shard_size": 3, "storage": "delta", "progress": False, **settings}
    return tc.build(root, source=stores.graphs(), processor=processor, num_workers=workers, **settings)


def finished(root: Path) -> set[str]:
    return {path.name for path in root.glob("processed/gen-*/shard-*.json")}


@pytest.mark.parametrize("number", STOP)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_finishes_the_shard_in_work_and_the_next_run_goes_on(
    room: Room, handlers: dict[int, Any], number: int, workers: int
) -> None:
    undisturbed = room()
    build(undisturbed, At(-1, "", room()))
    root = room()
    with pytest.raises(
        BuildInterruptedError, match=f"(?s)stopped cleanly by {number.name}.*same command again"
    ) as caught:
        build(root, At(4, number.name, room(), times=1), workers)
    assert caught.value.code == 75
    assert type(pickle.loads(pickle.dumps(caught.value))) is BuildInterruptedError
    kept = finished(root)
    assert 0 < len(kept) <= 7  # two quick workers may finish the last shard before they hear of it
    assert stores.temporaries(root) == []
    with pytest.raises(CacheNotFoundError):
        tc.PreprocessedDataset(root)
    times = {name: next(root.glob(f"processed/gen-*/{name}")).stat().st_mtime_ns for name in kept}
    build(root, At(-1, "", room()), workers)
    assert stores.facts(root) == stores.facts(undisturbed)
    for name, written in times.items():
        assert next(root.glob(f"processed/gen-*/{name}")).stat().st_mtime_ns == written, (
            "a finished shard was redone"
        )


def interrupted_group(root: Path, shape: str, number: int, delay: float) -> tuple[int, bool]:
    """Fork a build with workers, signal the whole group as a terminal or SLURM does; its exit code, as the CLI's."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            for each in STOP:
                signal.signal(each, signal.SIG_DFL)
            stores.build(root, shape, 2, shard_size=2)
            status = 0
        except CacheError as error:
            status = error.code
        finally:
            os._exit(status)
    time.sleep(delay)
    os.killpg(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stores.temporaries(root) == []


def signal_groups(room: Room, shape: str, trials: int, seed: int) -> None:
    stores.arguments(shape)
    undisturbed = room()
    begun = time.monotonic()
    stores.build(undisturbed, shape, 2, shard_size=2)
    span, wanted, chance = time.monotonic() - begun, stores.facts(undisturbed), random.Random(seed)
    codes = []
    for number in range(trials):
        root = room()
        sent = STOP[number % 3]
        code, clean = interrupted_group(root, shape, sent, chance.uniform(0.02, 0.8 * span))
        # Before the build listens the signal does what it always does; afterwards it is 75 or a finished build.
        assert code in (0, 75, -sent), f"trial {number} of seed {seed}"
        assert clean or code == -sent
        codes.append(code)
        stores.build(root, shape, 2, shard_size=2)
        assert stores.facts(root) == wanted
        assert stores.temporaries(root) == []
        stores.remove(root)
    assert codes.count(75) >= trials // 4


@pytest.mark.parametrize(("shape", "trials"), [("delta", 3), ("generic", 18)])
def test_a_signal_to_the_whole_group_at_any_moment_ends_cleanly(room: Room, shape: str, trials: int) -> None:
    signal_groups(room, shape, trials, seed=2)


@pytest.mark.campaign
@pytest.mark.parametrize("hundred", range(10))
@pytest.mark.parametrize("shape", ["delta", "generic"])
def test_a_thousand_signals_to_the_whole_group(room: Room, shape: str, hundred: int) -> None:
    signal_groups(room, shape, 100, seed=int(time.time()))


def test_a_signal_that_comes_too_late_to_stop_a_shard_is_obeyed(room: Room, handlers: dict[int, Any]) -> None:
    root = room()
    last = At(stores.COUNT - 1, "SIGTERM", room(), times=1)
    with pytest.raises(BuildInterruptedError, match="100 %"):
        build(root, last, shard_size=stores.COUNT)
    with pytest.raises(CacheNotFoundError):
        tc.PreprocessedDataset(root)
    build(root, At(-1, "", room()), shard_size=stores.COUNT)
    stores.assert_all_samples(tc.PreprocessedDataset(root), "generic")


def test_a_build_outside_the_main_thread_leaves_signals_alone(room: Room, handlers: dict[int, Any]) -> None:
    root = room()
    thread = threading.Thread(target=build, args=(root, stores.center))
    thread.start()
    thread.join()
    stores.assert_all_samples(tc.PreprocessedDataset(root), "generic")


def test_a_worker_killed_once_is_replaced(room: Room) -> None:
    root, marks = room(), room()
    ds = build(root, At(7, "SIGKILL", marks, times=1), workers=2)
    assert len(list(marks.iterdir())) == 2
    stores.assert_all_samples(ds, "generic")
    assert stores.temporaries(root) == []


@pytest.mark.parametrize(("action", "cause"), [("SIGKILL", "killed by SIGKILL"), ("exit", "exited with 3")])
def test_a_worker_killed_twice_stops_the_build_and_names_the_cause(
    room: Room, action: str, cause: str
) -> None:
    root = room()
    with pytest.raises(BuildFailedError, match=rf"shard 2: its worker was {cause} 2 times") as caught:
        build(root, At(7, action, room()), workers=2)
    assert "lower num_workers and run the same command again" in str(caught.value)
    assert "shard-00000.json" in finished(root)
    build(root, At(-1, action, room()), workers=2)
    stores.assert_all_samples(tc.PreprocessedDataset(root), "generic")
    assert stores.temporaries(root) == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sample", [0, 10, stores.COUNT - 1])
def test_a_sample_that_raises_is_named_and_finished_shards_are_kept(
    room: Room, workers: int, sample: int
) -> None:
    root = room()
    with pytest.raises(SampleError, match=rf"sample {sample}: ZeroDivisionError.*no such gene") as caught:
        build(root, At(sample, "raise", room()), workers)
    assert 'raise ZeroDivisionError("no such gene")' in str(caught.value), "the original traceback"
    assert type(pickle.loads(pickle.dumps(caught.value))) is SampleError
    kept = finished(root)
    if not workers:
        assert kept == {f"shard-{k:05d}.json" for k in range(sample // 3)}
    with pytest.raises(CacheNotFoundError):
        tc.PreprocessedDataset(root)
    build(root, At(-1, "raise", room()), workers)
    stores.assert_all_samples(tc.PreprocessedDataset(root), "generic")
    assert stores.temporaries(root) == []


class BadSource(torch.utils.data.Dataset):
    """A source that fails on one sample."""

    def __len__(self) -> int:
        return stores.COUNT

    def __getitem__(self, index: int) -> Data:
        if index == 4:
            raise KeyError("row 4 went away")
        return stores.graphs()[index]


@pytest.mark.parametrize("version", [None, "1"])
def test_a_source_that_raises_is_named(room: Room, version: str | None) -> None:
    source = tc.sources.PygSource(BadSource(), version=version)
    with pytest.raises(SampleError, match=r"sample 4: KeyError.*row 4 went away"):
        tc.build(room(), source=source, storage="full", shard_size=3, progress=False)
