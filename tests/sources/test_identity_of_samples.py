"""Sources and settings that are not storable as they are: the processor decides, and identity still tells changes."""

import ast
import functools
import linecache
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData, TemporalData
from torch_geometric.edge_index import EdgeIndex

import torchcell_cache as tc
from torchcell_cache.graph.fields import graph_digest, item_digest

same = tc.testing.assert_same_graph
EDGES = [[0, 1], [1, 2]]
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS[CR]", "ignore:The PyTorch API of nested")


class PairData(Data):  # type: ignore[misc]
    """Two graphs as one sample, from PyG's documentation."""


class CellData(HeteroData):  # type: ignore[misc]
    """A user's own."""


def _cell(k: float) -> CellData:
    graph = CellData()
    graph["gene"].x = torch.full((3, 2), k)
    graph["gene", "to", "gene"].edge_index = torch.tensor(EDGES)
    return graph


def _plain(graph: Any) -> Data:
    return Data(**graph.to_dict())


KINDS: dict[str, tuple[Callable[[float], Any], Callable[[Any], Any]]] = {
    "subclass": (lambda k: PairData(x_s=torch.full((2, 2), k)), _plain),
    "subclass of HeteroData": (_cell, lambda graph: Data(x=graph["gene"].x)),
    "batch": (lambda k: Batch.from_data_list([Data(x=torch.full((2, 1), k))] * 2), lambda b: Data(x=b.x)),
    "temporal": (
        lambda k: TemporalData(src=torch.tensor([1]), dst=torch.tensor([2]), t=torch.tensor([k])),
        lambda data: Data(t=data.t),
    ),
    "coo": (lambda k: Data(a=(torch.eye(3) * k).to_sparse()), lambda g: Data(a=g.a.to_dense())),
    "csr": (lambda k: Data(a=(torch.eye(3) * k).to_sparse_csr()), lambda g: Data(a=g.a.to_dense())),
    "csc": (lambda k: Data(a=(torch.eye(3) * k).to_sparse_csc()), lambda g: Data(a=g.a.to_dense())),
    "edge index": (
        lambda k: Data(edge_index=EdgeIndex([[0, int(k) + 1], [1, 2]])),
        lambda g: Data(edge_index=g.edge_index.as_tensor()),
    ),
    "gradient": (
        lambda k: Data(x=torch.full((2,), k, requires_grad=True)),
        lambda g: Data(x=g.x.detach()),
    ),
    "tuple": (lambda k: (Data(x=torch.ones(2)), k), lambda pair: Data(x=pair[0].x, y=torch.tensor(pair[1]))),
    "dict": (lambda k: {"x": np.full(2, k)}, lambda item: Data(x=torch.from_numpy(item["x"]))),
    "tensor": (lambda k: torch.full((2,), k), lambda item: Data(x=item)),
    "set": (lambda k: Data(s={"a", f"b{k}"}), lambda g: Data(names=sorted(g.s))),
    "nested": (
        lambda k: Data(x=torch.nested.nested_tensor([torch.full((2,), k), torch.ones(3)])),
        lambda g: Data(x=torch.cat(g.x.unbind())),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_processor_makes_it_storable(tmp_path: Path, kind: str) -> None:
    make, processor = KINDS[kind]
    for storage in ("full", "delta", "auto"):
        settings: dict[str, Any] = {"processor": processor, "storage": storage, "progress": False}
        dataset = tc.build(tmp_path / storage, source=[make(1.0), make(2.0)], **settings)
        for got, want in zip(dataset, (make(1.0), make(2.0)), strict=True):
            same(got, processor(want))
        tc.build(tmp_path / storage, source=[make(1.0), make(2.0)], **settings)
        with pytest.raises(tc.errors.StaleCacheError, match="content"):
            tc.build(tmp_path / storage, source=[make(1.0), make(3.0)], **settings)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("dict", "tensor", "tuple")])
def test_without_a_processor_it_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    with pytest.raises(tc.errors.CacheError, match=r"(?s)sample 0: .*fix: "):
        tc.build(tmp_path, source=[KINDS[kind][0](1.0)], storage="full", progress=False)


class _Unknown:
    pass


def _drop(graph: Data) -> Data:
    return Data(x=graph.x)


def test_what_cannot_be_told_takes_a_version(tmp_path: Path) -> None:
    samples = [Data(x=torch.ones(1), other=_Unknown())]
    with pytest.raises(tc.errors.UnsupportedValueError, match=r"(?s)sample 0: .*other.*version="):
        tc.build(tmp_path, source=samples, processor=_drop, progress=False)
    source = tc.sources.PygSource(samples, version="first")
    same(tc.build(tmp_path, source=source, processor=_drop, progress=False)[0], Data(x=torch.ones(1)))


def test_digests_tell_things_apart() -> None:
    items = [make(k) for make, _ in KINDS.values() for k in (1.0, 2.0)]
    items += [
        (1, 2),
        [1, 2],
        (1, [2]),
        ((1,), 2),
        ([1], 2),
        ([1, 2],),
        "1",
        b"1",
        1,
        True,
        1.0,
        None,
        {},
        set(),
        [],
        (),
    ]
    items += [torch.ones(3), torch.ones(3, 1), torch.ones(2).double(), torch.ones(2).to_sparse(), np.ones(2)]
    digests = [item_digest(item) for item in items]
    assert len(set(digests)) == len(digests)
    assert digests[:2] == [item_digest(KINDS["subclass"][0](k)) for k in (1.0, 2.0)]
    plain = Data(x=torch.ones(2))
    assert item_digest(plain) == graph_digest(plain)  # as stores built before say


# Settings


class Noise:
    def __init__(self, seed: Any) -> None:
        self.seed = seed

    def __call__(self, data: Data) -> Data:
        return Data(x=data.x + float(np.random.default_rng(self.seed).random()))


class Declared(Noise):
    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed}


def deep(levels: int) -> list[Any]:
    out: list[Any] = []
    for _ in range(levels):
        out = [out]
    return out


@pytest.mark.parametrize("kind", [Noise, Declared])
@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 2**127 + 1, [1, 2**99], 10**5000], ids=range(5))
def test_large_integers(tmp_path: Path, kind: type[Noise], seed: Any) -> None:
    source = [Data(x=torch.ones(2))]
    if isinstance(seed, int) and seed < 0:
        seed = -seed  # numpy takes no negative ones
    same(tc.build(tmp_path, source=source, processor=kind(seed), progress=False)[0], kind(seed)(source[0]))
    tc.build(tmp_path, source=source, processor=kind(seed), progress=False)
    other = [*seed[:-1], seed[-1] + 1] if isinstance(seed, list) else seed + 1
    with pytest.raises(tc.errors.StaleCacheError, match="seed"):
        tc.build(tmp_path, source=source, processor=kind(other), progress=False)
    tc.append(tmp_path, [Data(x=torch.zeros(2))], kind(seed), progress=False)
    assert tc.verify(tmp_path, progress=False).ok


def test_deep_settings_and_many_appends(tmp_path: Path) -> None:
    class Deep(Noise):
        def __call__(self, data: Data) -> Data:
            return data

    processor = Deep(deep(40))
    tc.build(tmp_path, source=[Data(x=torch.ones(2))], processor=processor, progress=False)
    with pytest.raises(tc.errors.StaleCacheError):
        tc.build(tmp_path, source=[Data(x=torch.ones(2))], processor=Deep(deep(41)), progress=False)
    for k in range(36):
        grown = tc.append(tmp_path, [Data(x=torch.full((2,), float(k)))], processor, progress=False)
    assert [float(graph.x[0]) for graph in grown.dataset] == [1.0, *map(float, range(36))]


# Notebooks


def _cell_of_a_notebook(session: types.ModuleType, number: int, text: str) -> Any:
    """Run text as a kernel does: statement by statement, known to ``linecache`` under a name of its own."""
    name = f"/tmp/ipykernel_7/{number}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    for statement in ast.parse(text).body:
        exec(compile(ast.Module([statement], []), name, "exec"), session.__dict__)
    return session.make()


_IMPORTS = "import torch\nimport numpy as np\nfrom torch_geometric.data import Data\n"
_BODIES = {
    "class": """
class P:
    def process(self, base_graph, sample):
        return Data(y=torch.tensor([1.0]) + np.float32(1).item())
    def settings(self):
        return {}
def make():
    return P()
""",
    "function": """
def process(sample):
    return Data(y=torch.ones(1).add(1.0))
def make():
    return process
""",
    "helper": """
def helper(value):
    return torch.full((1,), value + np.abs(-1.0).item())
class P:
    def __call__(self, sample):
        return Data(y=helper(1.0))
def make():
    return P()
""",
    "decorated": """
def twice(function):
    def inner(sample):
        return Data(y=function(sample).y.mul(2.0))
    return inner
@twice
def process(sample):
    return Data(y=torch.ones(1))
def make():
    return process
""",
}


@pytest.mark.parametrize("body", _BODIES)
def test_the_same_code_in_a_cell_with_and_without_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    session = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", session)
    text, source = _BODIES[body], tc.testing.tiny_source(3)
    for number, cell in enumerate([_IMPORTS + text, text, f"x = 1\n{_IMPORTS}# a comment\n{text}"]):
        processor = _cell_of_a_notebook(session, number, cell)
        dataset = tc.build(tmp_path, source=source, processor=processor, storage="full", progress=False)
        assert dataset[0].y.item() == 2.0
    changed = _cell_of_a_notebook(session, 9, _IMPORTS + text.replace("1.0", "3.0").replace("2.0", "3.0"))
    with pytest.raises(tc.errors.StaleCacheError):
        tc.build(tmp_path, source=source, processor=changed, storage="full", progress=False)


def test_a_store_of_a_notebook_built_before_is_not_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions noted methods of such a cell a second time."""
    from torchcell_cache.builder import plan
    from torchcell_cache.builder.codehash import processor_part

    session = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", session)
    processor = _cell_of_a_notebook(session, 1, _IMPORTS + _BODIES["class"])
    source = tc.testing.tiny_source(3)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "processor_part", functools.partial(processor_part, by_statement=False))
        tc.build(tmp_path, source=source, processor=processor, storage="full", progress=False)
    tc.build(tmp_path, source=source, processor=processor, storage="full", progress=False)
    assert tc.verify(tmp_path, source=source, processor=processor, progress=False).ok
    tc.append(tmp_path, tc.testing.tiny_source(2, source.base_graph, seed=5), processor, progress=False)
