"""Code of a user's that would end the process stops the build with an error like any other; a Ctrl-C still interrupts."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import SampleError
from torchcell_cache.sources.pyg import PygSource

COUNT, BAD = 9, 4


class StopError(BaseException):
    """An error that is no ``Exception``, as test frameworks and event loops have."""


class MuteError(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def leave(code: Any) -> Callable[[], None]:
    return lambda: sys.exit(code)


def give(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


WAYS: dict[str, tuple[Callable[[], None], str]] = {
    "exit 3": (leave(3), "SystemExit .*exited with 3"),
    "exit": (leave(None), "SystemExit .*exited with None"),
    "exit with a text": (leave("no licence"), "SystemExit .*exited with no licence"),
    "quit": (give(SystemExit(2)), "SystemExit .*exited with 2"),
    "interrupt": (give(KeyboardInterrupt("mine")), "KeyboardInterrupt .*mine"),
    "cancelled": (give(asyncio.CancelledError("late")), "CancelledError .*late"),
    "closed": (give(GeneratorExit("over")), "GeneratorExit .*over"),
    "own": (give(StopError("enough")), "StopError .*enough"),
    "mute": (give(MuteError()), "MuteError .*cannot be printed"),
}


def graphs() -> list[Data]:
    return [Data(x=torch.ones(3, 2) * k, y=torch.tensor([float(k)])) for k in range(COUNT)]


class Ends:
    """A processor that ends at one sample."""

    cache_version = 1

    def __init__(self, action: Callable[[], None] | None) -> None:
        self.action = action

    def settings(self) -> dict[str, Any]:
        return {}

    def __call__(self, data: Data) -> Data:
        if self.action is not None and int(data.y) == BAD:
            self.action()
        return data


class Ended(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A source that ends at one sample."""

    def __init__(self, action: Callable[[], None] | None) -> None:
        self.action, self.graphs = action, graphs()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Data:
        if self.action is not None and index == BAD:
            self.action()
        return self.graphs[index]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("storage", "workers"), [("full", 0), ("delta", 2), ("auto", 0)])
def test_in_the_processor(tmp_path: Path, way: str, storage: str, workers: int) -> None:
    action, text = WAYS[way]
    settings = {"storage": storage, "num_workers": workers, "shard_size": 3, "progress": False}
    if way == "interrupt" and storage == "auto":
        pytest.skip("before the build listens itself it cannot be told from a Ctrl-C")
    with pytest.raises(SampleError, match=rf"sample {BAD}: {text}") as caught:
        tc.build(tmp_path, source=graphs(), processor=Ends(action), **settings)
    assert "run the same command again" in str(caught.value)
    tc.build(tmp_path, source=graphs(), processor=Ends(None), **settings)
    assert len(tc.PreprocessedDataset(tmp_path)) == COUNT


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workers", [0, 2])
def test_in_the_source(tmp_path: Path, way: str, workers: int) -> None:
    action, text = WAYS[way]
    settings = {"storage": "full", "num_workers": workers, "shard_size": 3, "progress": False}
    with pytest.raises(SampleError, match=rf"sample {BAD}: {text}"):
        tc.build(tmp_path, source=PygSource(Ended(action), version="1"), **settings)
    tc.build(tmp_path, source=PygSource(Ended(None), version="1"), **settings)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "interrupt"])
def test_in_the_source_while_it_is_identified(tmp_path: Path, way: str) -> None:
    action, text = WAYS[way]
    with pytest.raises(SampleError, match=rf"sample {BAD}: {text}"):
        tc.build(tmp_path, source=Ended(action), storage="full", progress=False)


class Asked(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A source whose every answer can fail."""

    base_graph = None

    def __init__(self, what: str, action: Callable[[], None]) -> None:
        self.what, self.action, self.graphs = what, action, graphs()

    def _answer(self, what: str, value: Any) -> Any:
        if what == self.what:
            self.action()
        return value

    def __len__(self) -> int:
        return int(self._answer("len", COUNT))

    def __getitem__(self, index: int) -> Data:
        return self.graphs[index]

    def identity(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._answer("identity", {"class": "Asked"})
        return answer

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._answer("notes", ()))

    def items(self, start: int, stop: int) -> Any:
        return self._answer("items", iter(self.graphs[start:stop]))


@pytest.mark.parametrize("what", ["len", "identity", "notes"])
@pytest.mark.parametrize(
    ("action", "text"), [(leave(3), "SystemExit: exited with 3"), (give(OSError("gone")), "OSError: gone")]
)
def test_a_source_that_cannot_say_what_it_is(
    tmp_path: Path, what: str, action: Callable[[], None], text: str
) -> None:
    with pytest.raises(tc.errors.SourceContractError, match=f"asked what it is, raised {text}"):
        tc.build(tmp_path, source=Asked(what, action), storage="full", progress=False)


@pytest.mark.parametrize("action", [leave(3), give(OSError("gone"))])
def test_checks_and_updates_say_it_too(tmp_path: Path, action: Callable[[], None]) -> None:
    for what in ("len", "identity"):
        found = tc.testing.check_source(Asked(what, action))
        assert len(found) == 1, found
        assert "the source, asked" in found[0]
    found = tc.testing.check_source(PygSource(Ended(action), version="1"), n=COUNT)
    assert [line for line in found if line.startswith(f"sample {BAD}: reading it raised")] == found, found
    found = tc.testing.check_processor(None, Asked("len", action))
    assert len(found) == 1, found
    assert "the source, asked" in found[0]
    tc.build(tmp_path, source=Asked("", action), storage="full", progress=False)
    with pytest.raises(tc.errors.SourceContractError, match="asked what it is, raised"):
        tc.update(tmp_path, Asked("identity", action), progress=False)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("action", "text"), [(leave(4), "exited with 4"), (give(OSError("gone")), "gone")])
def test_a_run_that_does_not_begin(
    tmp_path: Path, workers: int, action: Callable[[], None], text: str
) -> None:
    settings = {"storage": "full", "num_workers": workers, "shard_size": 3, "progress": False}
    with pytest.raises(SampleError, match=rf"sample \d: \w+ in the source: {text}"):
        tc.build(tmp_path, source=Asked("items", action), **settings)
    tc.build(tmp_path, source=Asked("", action), **settings)


class Copied(Ends):
    """A processor whose copies are none."""

    def __init__(self, copied: Callable[[], Any]) -> None:
        super().__init__(None)
        self.copied = copied

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copied()


@pytest.mark.parametrize("copied", [leave(1), lambda: None, lambda: 5, give(OSError())])
def test_a_processor_that_cannot_be_copied_is_used_itself(tmp_path: Path, copied: Callable[[], Any]) -> None:
    for storage, workers in (("auto", 0), ("full", 2)):
        settings = {"storage": storage, "num_workers": workers, "shard_size": 3, "progress": False}
        dataset = tc.build(tmp_path / storage, source=graphs(), processor=Copied(copied), **settings)
        assert [int(graph.y) for graph in dataset] == list(range(COUNT))


def test_a_class_is_no_processor(tmp_path: Path) -> None:
    with pytest.raises(tc.errors.SettingError, match="is a class, expected an object of it"):
        tc.build(tmp_path, source=tc.testing.tiny_source(3), processor=tc.Perturbation, progress=False)


class Silent(Ends):
    """A processor that cannot say what its settings are."""

    def settings(self) -> dict[str, Any]:
        raise OSError("no settings")


def test_a_processor_that_cannot_say_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(tc.errors.SourceContractError, match="OSError: no settings"):
        tc.build(tmp_path, source=graphs(), processor=Silent(None), progress=False)


def test_checks_find_it(tmp_path: Path) -> None:
    for way in ("exit 3", "own", "cancelled"):
        action, text = WAYS[way]
        found = tc.testing.check_processor(Ends(action), graphs(), n=COUNT)
        assert len(found) == 1, found
        assert found[0] == f"sample {BAD}: " + text.replace(" .*", ": ")
    tc.build(tmp_path, source=graphs(), processor=Ends(None), storage="full", progress=False)
    report = tc.verify(tmp_path, source=graphs(), processor=Ends(leave(3)), progress=False)
    assert [p.sample for p in report.problems if p.sample is not None] == [BAD]
    assert "SystemExit: exited with 3" in str(report)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_real_interrupt_interrupts(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):  # while auto measures, nothing is begun yet
            tc.build(tmp_path / "a", source=graphs(), processor=Ends(interrupt), progress=False)
        with pytest.raises(tc.errors.BuildInterruptedError, match="SIGINT"):
            tc.build(
                tmp_path / "b",
                source=graphs(),
                processor=Ends(interrupt),
                storage="full",
                shard_size=3,
                progress=False,
            )
        with pytest.raises(KeyboardInterrupt):
            tc.testing.check_processor(Ends(interrupt), graphs(), n=COUNT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_no_interrupt_can_be_real(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            tc.build(tmp_path, source=graphs(), processor=Ends(WAYS["interrupt"][0]), progress=False)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert type(caught[0]) is SampleError


class Numbers:
    """Numbers the samples it meets: what it gives depends on what it met before."""

    cache_version = 1

    def __init__(self) -> None:
        self.met, self.seen = 0, [torch.zeros(1)]

    def settings(self) -> dict[str, Any]:
        return {}

    def __call__(self, data: Data) -> Data:
        self.met += 1
        self.seen[0] += 1
        data.met, data.seen = self.met, self.seen[0].clone()
        return data


def test_what_a_processor_gathers_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    many = [graph for _ in range(4) for graph in graphs()]
    for workers in (2, 3):
        settings = {"storage": "full", "shard_size": 4, "progress": False}
        dataset = tc.build(
            tmp_path / str(workers), source=many, processor=Numbers(), num_workers=workers, **settings
        )
        assert [graph.met for graph in dataset] == [k % 4 + 1 for k in range(len(many))]
        assert [int(graph.seen) for graph in dataset] == [k % 4 + 1 for k in range(len(many))]


class Toggles:
    """Writes to the base graph through numpy, which torch does not count, and takes it back at the next call."""

    cache_version = 1

    def __init__(self, every: int) -> None:
        self.every, self.calls, self.sign = every, 0, 1

    def settings(self) -> dict[str, Any]:
        return {}

    def process(self, base_graph: Any, sample: Any) -> Data:
        self.calls += 1
        if self.calls % self.every == 0:
            base_graph["gene"].x.numpy()[0] += self.sign
            self.sign = -self.sign
        return Data(
            y=torch.from_numpy(sample.values[:1, :1].copy()), edge_index=torch.zeros(2, 0, dtype=torch.long)
        )


@pytest.mark.parametrize("every", [1, 2, 3])
def test_writes_through_numpy_that_are_taken_back_are_seen(every: int) -> None:
    found = tc.testing.check_processor(Toggles(every), tc.testing.tiny_source(12))
    assert any("changes the base graph" in line and "gene.x" in line for line in found), found
