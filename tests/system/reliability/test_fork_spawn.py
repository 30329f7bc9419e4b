"""Datasets in other processes: forked, spawned and pickled, with handles open, while others read."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stores
import torch
from torch.utils.data import DataLoader as TorchLoader
from torch_geometric.loader import DataLoader

import torchcell_cache as tc
from torchcell_cache.errors import CorruptRecordError
from torchcell_cache.store import records as store
from torchcell_cache.store.manifest import processed_dir, read_manifest

Room = Callable[[], Path]


@pytest.fixture(params=["delta", "generic"])
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dataset(room: Room, shape: str) -> Any:
    root = room()
    stores.build(root, shape)
    store.close_all()
    return tc.PreprocessedDataset(root)


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    """torch warns of pinning without an accelerator and Python of forks beside threads; neither is the matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def keep(graphs: list[Any]) -> list[Any]:
    return graphs


def loaded(
    dataset: Any, context: str | None, workers: int, persistent: bool = False, epochs: int = 1
) -> list[list[Any]]:
    loader = TorchLoader(
        dataset,
        batch_size=4,
        num_workers=workers,
        collate_fn=keep,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    return [[graph for batch in loader for graph in batch] for _ in range(epochs)]


def assert_samples(graphs: list[Any], shape: str) -> None:
    for graph, want in zip(graphs, stores.expected(shape), strict=True):
        stores.oracle.assert_stores_equal(stores.oracle.stores_of(graph), want)


@pytest.mark.parametrize("persistent", [False, True])
def test_forked_workers_read_with_handles_open_before_the_fork(
    dataset: Any, shape: str, persistent: bool
) -> None:
    stores.assert_all_samples(dataset, shape)
    assert store.open_count() == 3
    for graphs in loaded(dataset, "fork", 2, persistent, epochs=2):
        assert_samples(graphs, shape)
    stores.assert_all_samples(dataset, shape)


@pytest.mark.parametrize(
    ("shape", "context"), [("delta", "spawn"), ("generic", "forkserver")], indirect=["shape"]
)
def test_workers_that_inherit_nothing(dataset: Any, shape: str, context: str) -> None:
    stores.assert_all_samples(dataset, shape)
    [graphs] = loaded(dataset, context, 1)
    assert_samples(graphs, shape)


def test_a_dataset_travels_as_a_few_bytes_and_reads_the_same(dataset: Any, shape: str) -> None:
    stores.assert_all_samples(dataset, shape)
    for given in (dataset, dataset[3:], tc.PreprocessedDataset(dataset.root, transform=stores.center)):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps(given, protocol)
            assert len(data) < 10_000
            again = pickle.loads(data)
            assert len(again) == len(given)
    assert_samples(pickle.loads(pickle.dumps(dataset)).__getitems__(range(stores.COUNT)), shape)
    assert b"lmdb" not in pickle.dumps(dataset)


def test_a_pickled_dataset_stays_on_its_generation(room: Room) -> None:
    root = room()
    stores.build(root, "delta")
    old = pickle.dumps(tc.PreprocessedDataset(root))
    stores.build(root, "perturbation", on_stale="rebuild")
    assert pickle.loads(old).storage == "delta"
    stores.assert_all_samples(pickle.loads(old), "delta")


def test_sixteen_children_and_their_parent_read_at_the_same_time(dataset: Any, shape: str) -> None:
    stores.assert_all_samples(dataset, shape)
    pids = []
    for _ in range(16):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for _ in range(3):
                    stores.assert_all_samples(dataset, shape)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    for _ in range(3):
        stores.assert_all_samples(dataset, shape)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 16


def test_a_fork_while_threads_are_reading(dataset: Any, shape: str) -> None:
    stop, errors = threading.Event(), []

    def read() -> None:
        try:
            while not stop.is_set():
                dataset.__getitems__([0, 8, 20])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    statuses = []
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.alarm(20)  # a lock that was held at the fork must not hang the child
                assert len(dataset.__getitems__([1, 9, 19])) == 3
                status = 0
            finally:
                os._exit(status)
        statuses.append(os.waitpid(pid, 0)[1])
    stop.set()
    for thread in threads:
        thread.join()
    assert (statuses, errors) == ([0] * 30, [])


def test_a_fork_while_threads_open_what_all_share(dataset: Any, room: Any) -> None:
    """What is made at the first read is being made by a thread at the fork; the child must not wait for that thread."""
    hung = []
    for _ in range(10):
        fresh = tc.PreprocessedDataset(stores.copy_store(Path(dataset.root), room() / "copy"))
        threads = [threading.Thread(target=fresh.__getitems__, args=([1, 8],)) for _ in range(4)]
        for thread in threads:
            thread.start()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.alarm(10)
                status = len(fresh.__getitems__([1, 9, 19])) != 3
            finally:
                os._exit(status)
        hung.append(os.waitpid(pid, 0)[1])
        for thread in threads:
            thread.join()
    assert hung == [0] * 10


def test_threads_share_a_dataset(dataset: Any, shape: str) -> None:
    errors = []

    def read(step: int) -> None:
        try:
            for k in range(60):
                index = k * step % stores.COUNT
                want = stores.expected(shape)[index]
                stores.oracle.assert_stores_equal(stores.oracle.stores_of(dataset[index]), want)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(step,)) for step in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_two_datasets_on_one_root_and_one_closed_under_the_other(dataset: Any, shape: str) -> None:
    other = tc.PreprocessedDataset(dataset.root)
    stores.assert_all_samples(dataset, shape)
    stores.assert_all_samples(other, shape)
    assert store.open_count() == 3
    other.close()
    stores.assert_all_samples(dataset, shape)


class Dying(torch.utils.data.Dataset):
    """Kills the worker that reads the sixth sample, once."""

    def __init__(self, dataset: Any, mark: Path) -> None:
        self.dataset, self.mark = dataset, mark

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if index == 5 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.dataset[index]


def test_a_worker_that_is_killed_spoils_nothing_for_the_next_epoch(
    dataset: Any, shape: str, room: Room
) -> None:
    before = sorted(str(path) for path in Path(dataset.root).rglob("*"))
    dying = Dying(dataset, room() / "died")
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        loaded(dying, "fork", 2)
    [graphs] = loaded(dying, "fork", 2)
    assert_samples(graphs, shape)
    assert sorted(str(path) for path in Path(dataset.root).rglob("*")) == before


def test_damage_met_in_a_worker_reaches_the_main_process_with_its_type(room: Room) -> None:
    root = room() / "built"
    stores.build(root, "delta")
    root = stores.copy_store(root, room() / "s")
    manifest = read_manifest(root)
    path = processed_dir(root) / manifest.generation / manifest.shards[1].file.name
    with stores.fresh_handles():
        record = tc.PreprocessedDataset(root).generation.read([8])[0]
    data = path.read_bytes()
    path.write_bytes(data.replace(record, record[:-1] + bytes([record[-1] ^ 1])))
    stores.fit_digests(root)
    for context in ("fork", "forkserver"):
        loader = DataLoader(
            tc.PreprocessedDataset(root), batch_size=21, num_workers=1, multiprocessing_context=context
        )
        with pytest.raises(CorruptRecordError, match=r"(?s)sample 8.*torchcell-cache repair root="):
            next(iter(loader))


def building(root: str, shape: str) -> None:
    stores.build(root, shape, 2)


@pytest.mark.parametrize(
    ("shape", "context"), [("delta", "fork"), ("generic", "forkserver")], indirect=["shape"]
)
def test_a_build_inside_a_child_process(room: Room, shape: str, context: str) -> None:
    root = room()
    process = multiprocessing.get_context(context).Process(target=building, args=(str(root), shape))
    process.start()
    process.join()
    assert process.exitcode == 0
    stores.assert_all_samples(tc.PreprocessedDataset(root), shape)
