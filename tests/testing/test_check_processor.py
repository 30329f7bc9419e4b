"""``check_processor``: what it says of processors that change their input, depend on the process, or cannot be checked."""

import dataclasses
import os
import sys
import threading
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform, Center, Compose, NormalizeFeatures

import torchcell_cache as tc
from torchcell_cache.graph.fields import graph_digest
from torchcell_cache.testing import elsewhere

check = tc.testing.check_processor


def graphs() -> list[Data]:
    return [
        Data(x=torch.rand(4, 2), edge_index=torch.tensor([[0, 1], [1, 2]]), y=torch.ones(1)) for _ in range(3)
    ]


def in_place(data: Data) -> Data:
    data.x += 1
    return data


def rebind(data: Data) -> Data:
    data.x = data.x / 2
    return data


def table_in_place(sample: Any) -> Data:
    y = torch.from_numpy(sample.values[:1, 0])
    y *= 10
    return Data(y=y)


@pytest.mark.parametrize("processor", [in_place, rebind, table_in_place], ids=lambda f: f.__name__)
def test_changes_its_input(processor: Any) -> None:
    source: Any = tc.testing.tiny_source() if processor is table_in_place else graphs()
    before = [graph_digest(g) for g in source] if isinstance(source, list) else source.table.values.copy()
    found = check(processor, source)
    assert len(found) == 1, found
    assert "changes its input" in found[0]
    if isinstance(source, list):
        assert [graph_digest(graph) for graph in source] == before
    else:
        torch.testing.assert_close(
            torch.tensor(source.table.values), torch.tensor(before), equal_nan=True, rtol=0, atol=0
        )


class Shallow(BaseTransform):  # type: ignore[misc]
    """As PyG writes them: a shallow copy, and fields bound anew."""

    def forward(self, data: Data) -> Data:
        data.x = data.x * 2
        return data


class Threshold:
    """With nearly everything that a class may be made of."""

    kinds = ("a", "b")

    def __init__(self, at: float) -> None:
        self.at = at

    @property
    def double(self) -> float:
        return 2 * self.at

    @classmethod
    def of(cls, at: float) -> "Threshold":
        return cls(at)

    @staticmethod
    def sign(x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    def __call__(self, data: Data) -> Data:
        return Data(x=self.sign(data.x - self.double), n=len(self.kinds))


def test_good_ones_pass() -> None:
    scale = 3.0

    @dataclasses.dataclass
    class Local:
        factor: float = 2.0

        def __call__(self, data: Data) -> Data:
            return Data(x=data.x * self.factor * scale)

    class Child(Threshold):
        def __call__(self, data: Data) -> Data:
            out = super().__call__(data)
            out.more = torch.zeros(1)
            return out

    steps = [NormalizeFeatures(), Shallow(), Threshold.of(0.5), Local(), Child(0.25)]
    assert check(Compose([*steps, lambda data: Data(x=data.x + scale)]), graphs(), 2) == []


def test_depends_on_the_process() -> None:
    kinds = [lambda: os.getpid(), lambda: hash("a"), lambda: [*{f"n{k}" for k in range(30)}]]
    source = [Data(kind=k) for k in range(3)]
    found = check(lambda data: Data(value=kinds[data.kind]()), source)
    assert sum("depends on the hash seed or the process" in text for text in found) == 3


HERE = os.getpid()


def dies(data: Data) -> Data:
    if os.getpid() != HERE:
        os._exit(9)
    return Data(x=data.x)


class Holds:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, data: Data) -> Data:
        return Data(x=data.x)


def waits(data: Data) -> Data:
    if os.getpid() != HERE:
        threading.Event().wait(60)
    return Data(x=data.x)


@pytest.mark.parametrize(
    ("processor", "why"),
    [(dies, "ended with 9"), (Holds(), "lock"), (waits, "no answer within")],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_what_could_not_be_checked_is_said(monkeypatch: pytest.MonkeyPatch, processor: Any, why: str) -> None:
    monkeypatch.setattr(sys.modules[__name__], "HERE", os.getpid())
    if processor is waits:
        monkeypatch.setattr(elsewhere, "_SECONDS", 0.2)
    # HERE is of this process; sent by value, as from a notebook
    monkeypatch.setattr(elsewhere, "_is_importable", lambda value: value.__module__ != __name__)
    [found] = check(processor, graphs(), 1)
    assert "could not be checked in another process" in found
    assert why in found


class Told:
    """A processor whose settings are what it was given."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def process(self, base_graph: Any, sample: Any) -> Any:
        return sample

    def settings(self) -> Any:
        return self.said() if callable(self.said) else self.said


@pytest.mark.parametrize(
    "processor",
    [
        *map(Told, ({"a": {1}}, None, {"a": torch.ones(1)}, {1: 2}, {"a": float("nan")}, lambda: 1 / 0)),
        *(Told, tc.LazySubgraphRepresentation, tc.GraphProcessor, Center, "lazy", 3, [Center()]),
    ],
    ids=lambda value: repr(getattr(value, "said", value)).partition(" at 0x")[0][:40],
)
def test_what_a_build_refuses_is_found(tmp_path: Path, processor: Any) -> None:
    source = [Data(pos=torch.rand(3, 2))]
    with pytest.raises(tc.errors.CacheError):
        tc.build(tmp_path / "s", source=source, processor=processor, progress=False)
    assert len(tc.testing.check_processor(processor, source)) == 1


def test_nothing_to_check_is_said() -> None:
    assert "could not be checked" in check(rebind, [])[0]
    assert "could not be checked" in check(rebind, graphs(), 0)[0]


def test_an_error_is_a_finding() -> None:
    def broken(data: Data) -> Data:
        return Data(x=data.missing.sum())

    [found] = check(broken, graphs())
    assert found.startswith("sample 0: AttributeError")


SCRIPT = """
import enum, functools, torch, torchcell_cache as tc
from torch_geometric.data import Data

class Kind(enum.Enum):
    A = 1

@functools.lru_cache
def factor(kind):
    return float(kind.value)

def helper(x):
    return x * FACTOR * factor(Kind.A)

FACTOR = 2.0

class Good:
    def __init__(self):
        self.kind = Kind.A
    def process(self, base_graph, sample):
        return Data(x=helper(sample.x))
    def settings(self):
        return {}

class Bad(Good):
    def process(self, base_graph, sample):
        graph = super().process(base_graph, sample)
        graph.names = list({f"n{k}" for k in range(30)})
        return graph

source = [Data(x=torch.ones(2)), Data(x=torch.zeros(2))]
print(["depends on the hash seed" in found for found in tc.testing.check_processor(Bad(), source)])
print("once")
"""


@pytest.mark.parametrize("how", ["script", "typed in"])
def test_code_of_main(tmp_path: Path, how: str) -> None:
    """A script without a guard, and code without a file, as in a notebook: neither is run again."""
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    command = [sys.executable, str(path)] if how == "script" else [sys.executable, "-c", SCRIPT]
    done = fresh.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["[True, True]", "once"], done.stderr


class _Reused:
    """Gives the same object every time, with other content."""

    def __init__(self) -> None:
        self.out = Data(x=torch.zeros(3, 2))

    def process(self, base_graph: Any, sample: Any) -> Any:
        self.out.x.copy_(sample.x)
        return self.out

    def settings(self) -> dict[str, Any]:
        return {}


def test_a_result_in_memory_that_is_used_again() -> None:
    samples = [Data(x=torch.full((3, 2), float(k))) for k in range(4)]
    assert tc.testing.check_processor(_Reused(), samples) == []
