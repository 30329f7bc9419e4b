"""Many readers at once: threads, processes, few descriptors, a store that is replaced meanwhile, someone else's store."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh
import pytest
import stores
import torch
from test_flip import in_child
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import StorageReadOnlyError
from torchcell_cache.store import records as store
from torchcell_cache.store.manifest import processed_dir

Room = Callable[[], Path]
MANY = 200


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 200 shards with two samples each."""
    root = tmp_path_factory.mktemp("many")
    graphs = [Data(x=torch.full((3, 2), float(k)), y=torch.tensor([k])) for k in range(2 * MANY)]
    tc.build(root, source=graphs, storage="full", shard_size=2, progress=False)
    return root


def check(graphs: list[Any], indices: list[int]) -> int:
    for graph, index in zip(graphs, indices, strict=True):
        assert int(graph.y) == index
        assert bool((graph.x == index).all())
    return len(indices)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings(root: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(root))


def read_with_few_descriptors(root: Path, threads: int, seconds: float, nuisance: bool) -> None:
    """Threads read at random while handles are evicted all the time (and closed, if there is a nuisance)."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    dataset, errors, counts = tc.PreprocessedDataset(root), [], []
    until = time.monotonic() + seconds

    def read(seed: int) -> None:
        chance, count = random.Random(seed), 0
        try:
            while time.monotonic() < until or count <= 400 // threads:  # a busy machine takes longer
                indices = [chance.randrange(2 * MANY) for _ in range(chance.choice([1, 2, 40]))]
                count += check(dataset.__getitems__(indices), indices)
        except BaseException as error:
            errors.append(repr(error))
        counts.append(count)

    workers = [threading.Thread(target=read, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    while nuisance and any(worker.is_alive() for worker in workers):
        dataset.close()
        time.sleep(0.001)
    for worker in workers:
        worker.join()
    assert not errors, errors
    assert check([dataset[k] for k in range(2 * MANY)], list(range(2 * MANY)))
    assert descriptors() < 64
    dataset.close()
    assert store.open_count() == 0
    assert sum(counts) > 400


@pytest.mark.parametrize("nuisance", [False, True])
@pytest.mark.parametrize("threads", [1, 8])
def test_two_hundred_shards_with_64_descriptors(many: Path, threads: int, nuisance: bool) -> None:
    process = fresh.call(
        read_with_few_descriptors, many, threads, 1.0, nuisance
    )  # which has no files of ours
    assert process.wait(120) == 0


def cycle(root: Path, times: int) -> None:
    for number in range(times):
        dataset = tc.PreprocessedDataset(root)
        check(dataset.__getitems__([0, 7, 2 * MANY - 1]), [0, 7, 2 * MANY - 1])
        assert dataset.columns["y"].shape == (2 * MANY,)
        if number % 10 == 0:
            pid = os.fork()
            if pid == 0:
                check(dataset.__getitems__([3]), [3])
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        dataset.close()


def leaks(root: Path, times: int) -> bytes:
    import gc

    cycle(root, 20)
    gc.collect()
    before = descriptors(), mappings(root)
    cycle(root, times)
    gc.collect()
    assert (descriptors(), mappings(root)) == before
    return b"ok"


def test_opening_closing_and_forking_leak_nothing(many: Path) -> None:
    assert in_child(lambda: leaks(many, 150), "leaks") == b"ok"


@pytest.mark.campaign
@pytest.mark.parametrize("ten_thousand", range(10))
def test_a_hundred_thousand_cycles_leak_nothing(many: Path, ten_thousand: int) -> None:
    assert in_child(lambda: leaks(many, 10_000), "leaks") == b"ok"


def generations_of_forks(root: Path, depth: int) -> int:
    """Each process reads, forks, and its child reads with what it inherited; returns the exit status."""
    dataset = tc.PreprocessedDataset(root)
    for level in range(depth):
        check(dataset.__getitems__([level, 5]), [level, 5])
        assert mappings(root) <= 6
        pid = os.fork()
        if pid:
            check([dataset[9]], [9])
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            return status if level == 0 else os._exit(status)
    os._exit(0)


def test_children_of_children_read_and_inherit_no_pile_of_handles(many: Path) -> None:
    assert generations_of_forks(many, 12) == 0


def read_for(root: Path, seed: int, seconds: float) -> bytes:
    chance, count, until = random.Random(seed), 0, time.monotonic() + seconds
    dataset = tc.PreprocessedDataset(root)
    while time.monotonic() < until or count == 0:
        indices = [chance.randrange(2 * MANY) for _ in range(32)]
        count += check(dataset.__getitems__(indices), indices)
    return str(count).encode()


def crowd(root: Path, processes: int, seconds: float) -> int:
    """Processes that read at the same time; none of them may write, lock or fail."""
    out, report = os.pipe()
    pids = []
    for seed in range(processes):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(report, read_for(root, seed, seconds) + b"\n")
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(report)
    with os.fdopen(out) as file:
        total = sum(map(int, file))
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * processes
    return total


def names_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_crowd_of_processes_reads_without_locks_or_new_files(many: Path) -> None:
    before = names_below(many)
    assert crowd(many, 64, 1.0) > 64 * 32
    assert names_below(many) == before
    assert not list(many.rglob("lock.mdb"))


@pytest.mark.campaign
@pytest.mark.parametrize(("processes", "seconds"), [(128, 60.0), (256, 600.0)])
def test_a_million_reads_by_more_processes_than_locks_allow(
    many: Path, processes: int, seconds: float, record_property: Callable[[str, object], None]
) -> None:
    reads = crowd(many, processes, seconds)
    record_property("reads", reads)
    assert reads > 1_000_000


def test_readers_stay_on_their_generation_while_others_are_published(room: Room) -> None:
    """The label of a sample names the generation that it was written for; nobody may ever see two of them mixed."""
    root, stop = room(), room() / "stop"

    def publish(tag: int) -> None:
        graphs = [Data(x=torch.full((2, 1), float(tag)), y=torch.tensor([tag])) for _ in range(12)]
        tc.build(root, source=graphs, storage="full", shard_size=4, on_stale="rebuild", progress=False)

    def read() -> bytes:
        seen = set()
        while not stop.exists():
            with stores.fresh_handles():
                dataset = tc.PreprocessedDataset(root)
                for _ in range(3):
                    graphs = dataset.__getitems__(list(range(12)))
                    tags = {int(g.y) for g in graphs} | {int(v) for g in graphs for v in g.x.flatten()}
                    tags |= {int(y) for y in dataset.columns["y"]}
                    assert len(tags) == 1, tags
                    seen |= tags
        return str(len(seen)).encode()

    publish(0)
    readers = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if int(read()) > 0 else 1
            finally:
                os._exit(status)
        readers.append(pid)
    for tag in range(1, 25):
        publish(tag)
    stop.touch()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in readers] == [0] * 4


def read_as_nobody(root: Path, shape: str) -> bytes:
    os.setgid(65534)
    os.setuid(65534)
    os.environ["TORCHCELL_CACHE_STAMPS"] = "/nonexistent/stamps"
    with pytest.raises(PermissionError):
        (processed_dir(root) / "probe").touch()
    outcome = stores.read_outcome(root, shape)
    with pytest.raises(StorageReadOnlyError, match=str(root)) as caught:
        stores.build(root, shape, on_stale="rebuild", storage="full", shard_size=2)
    assert caught.value.code == 73
    assert stores.build(root, shape)
    return outcome.encode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("shape", ["delta", "generic"])
def test_somebody_elses_read_only_store_can_be_read_and_not_built(room: Room, shape: str) -> None:
    root = room()
    stores.build(root, shape)
    root.parent.chmod(0o755)
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert in_child(lambda: read_as_nobody(root, shape), "nobody") == b"equal"


def test_files_of_a_store_cannot_be_written_by_accident(room: Room) -> None:
    root = room()
    stores.build(root, "delta")
    for path in processed_dir(root).rglob("*"):
        if path.is_file() and path.name not in (".lock", ".status.json"):
            assert path.stat().st_mode & 0o222 == 0, path


def test_a_reader_that_is_killed_leaves_nothing_behind(many: Path) -> None:
    before = names_below(many)
    pid = os.fork()
    if pid == 0:
        read_for(many, 1, 60)
        os._exit(0)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert names_below(many) == before
    assert read_for(many, 2, 0)
