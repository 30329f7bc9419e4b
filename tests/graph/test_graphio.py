"""Graphs to bytes and back: base graph files, typed JSON, digests, samples relative to a base graph."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import random
import struct
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch_geometric.data import Batch, Data, HeteroData

from torchcell_cache.codec import generic
from torchcell_cache.codec.layout import DTYPES, TensorValue
from torchcell_cache.errors import (
    CorruptRecordError,
    CorruptShardError,
    FormatError,
    RecordTooLargeError,
    UnsupportedValueError,
)
from torchcell_cache.graph.fields import flatten, graph_digest, graph_digests, item_digest, unflatten
from torchcell_cache.graph.files import load_base_graph, save_base_graph
from torchcell_cache.graph.records import BaseFields, decode_graph, encode_graph
from torchcell_cache.graph.typed_json import value_from_json, value_to_json
from torchcell_cache.graph.values import is_same_tensor, to_array, to_tensor

torch.set_num_threads(1)
TYPED = (CorruptRecordError, FormatError, RecordTooLargeError)
ALL_DTYPES = [getattr(torch, name) for name, _ in DTYPES.values()]


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def same(one: Any, other: Any) -> bool:
    """Equality of type and of every bit, independent of the package's own comparisons."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (one.dtype, one.shape, raw(one)) == (other.dtype, other.shape, raw(other))
    if isinstance(one, np.ndarray | np.generic):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return bool(one == other)


def parts(graph: Data | HeteroData) -> list[Any]:
    if isinstance(graph, Data):
        return [(None, dict(graph._store._mapping))]
    out: list[Any] = [(None, dict(graph._global_store._mapping))]
    out += [(key, dict(store._mapping)) for key, store in graph._node_store_dict.items()]
    return out + [(key, dict(store._mapping)) for key, store in graph._edge_store_dict.items()]


def same_graph(one: Any, other: Any) -> bool:
    return type(one) is type(other) and same(parts(one), parts(other))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(ALL_DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    rng = draw(st.randoms(use_true_random=False))
    if dtype is torch.bool:
        return torch.tensor([rng.random() < 0.3 for _ in range(math.prod(shape))], dtype=torch.bool).reshape(
            shape
        )
    itemsize = torch.empty(0, dtype=dtype).element_size()
    bits = torch.tensor(list(rng.randbytes(math.prod(shape) * itemsize)), dtype=torch.uint8)
    tensor = bits.view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if tensor.ndim > 1 and draw(st.booleans()) else tensor


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(1 << 62, 1 << 70),
    st.floats(),
    st.text(st.characters(codec=None), max_size=5),
    st.binary(max_size=5),
)
arrays = st.sampled_from(
    [
        np.arange(6, dtype=np.int16).reshape(2, 3).T,
        np.array([np.nan, -0.0, np.inf]),
        np.array(["a", "bcd"]),
        np.array([b"x"]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.zeros((0, 3), dtype=np.float32),
        np.array(5, dtype=">i4"),
        np.float32(1.5),
        np.int64(7),
        np.bool_(True),
        np.str_("gene"),
        np.str_(""),
        np.str_("a\0"),
        np.bytes_(b"\0"),
        np.complex64(1j),
        np.datetime64("2020-01-01T00:00:00.5"),
    ]
)
keys = st.one_of(scalars, st.tuples(scalars, scalars))
values = st.recursive(
    st.one_of(scalars, arrays),
    lambda inner: st.one_of(
        st.lists(st.one_of(inner, tensors()), max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(st.tuples(keys, inner), max_size=3).map(dict),
    ),
    max_leaves=8,
)
fields = st.dictionaries(
    st.sampled_from(
        ["x", "edge_index", "num_nodes", "num_edges", "node_ids", "y", "batch", "mask", "a.b", "ß"]
    ),
    st.one_of(tensors(), values),
    max_size=4,
)


@st.composite
def graphs(draw: st.DrawFn) -> Data | HeteroData:
    if draw(st.booleans()):
        data = Data()
        data._store._mapping.update(draw(fields))
        return data
    graph = HeteroData()
    graph._global_store._mapping.update(draw(fields))
    for key in draw(st.lists(st.sampled_from(["gene", "reaction", "a|b", "c.d"]), unique=True)):
        graph[key]._mapping.update(draw(fields))
    edge_types = [("gene", "r1", "gene"), ("gene", "r2", "gene"), ("gene", "gpr", "reaction")]
    for edge_type in draw(st.lists(st.sampled_from(edge_types), unique=True)):
        graph[edge_type]._mapping.update(draw(fields))
    return graph


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_flatten_and_unflatten(graph: Data | HeteroData) -> None:
    again = unflatten(*flatten(graph))
    assert same_graph(again, graph)
    assert again is not graph
    assert repr(again) == repr(graph)


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_base_graph_files(tmp_path_factory: pytest.TempPathFactory, graph: Data | HeteroData) -> None:
    first, second = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("base")
    save_base_graph(graph, first)
    loaded = load_base_graph(first)
    assert same_graph(loaded, graph)
    assert graph_digests(loaded) == graph_digests(graph)
    save_base_graph(loaded, second)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@settings(max_examples=150, deadline=None)
@given(graphs(), graphs(), st.sampled_from(["full", "delta"]), st.randoms(use_true_random=False))
def test_samples_round_trip(base: Any, graph: Any, mode: str, rng: random.Random) -> None:
    own = graph._store._mapping if isinstance(graph, Data) else graph._global_store._mapping
    for name, value in parts(base)[0][1].items():
        if rng.random() < 0.5:
            own[name] = value.clone() if isinstance(value, torch.Tensor) and rng.random() < 0.5 else value
    fields_ = BaseFields(base)
    before = pickle.dumps(parts(graph))
    layout, body = encode_graph(graph, fields_, mode)
    assert pickle.dumps(parts(graph)) == before
    decoded = decode_graph(body, {layout.id: layout}, fields_)
    assert same_graph(decoded, graph)
    assert len(encode_graph(graph, fields_, "delta")[1]) <= len(encode_graph(graph, fields_, "full")[1])
    _, alone = encode_graph(graph, BaseFields(None), mode)
    assert same_graph(decode_graph(alone, {layout.id: layout}, BaseFields(None)), graph)


@settings(max_examples=300, deadline=None)
@given(values)
def test_typed_json(value: Any) -> None:
    text = value_to_json(value)
    assert same(value_from_json(text), value)
    assert value_to_json(value_from_json(text)) == text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def cell() -> HeteroData:
    """A small graph of torchcell's shape."""
    torch.manual_seed(0)
    graph = HeteroData()
    graph["gene"].node_ids = [f"G{k}" for k in range(600)]
    graph["gene"].num_nodes = 600
    graph["gene"].x = torch.randn(600, 8)
    graph["reaction"].num_nodes = 40
    graph["metabolite"].num_nodes = 3
    for name in ("physical", "regulatory"):
        graph["gene", name, "gene"].edge_index = torch.randint(0, 600, (2, 20_000))
        graph["gene", name, "gene"].num_edges = 20_000
    graph["gene", "empty", "gene"].edge_index = torch.zeros(2, 0, dtype=torch.int64)
    graph["reaction", "rmr", "metabolite"].stoichiometry = torch.tensor([1.0, -1.0])
    return graph


def masked(base: HeteroData) -> HeteroData:
    """The base graph's own objects plus masks, as a lazy processor returns them."""
    graph = HeteroData()
    for store, mapping in parts(base)[1:]:
        graph[store]._mapping.update(mapping)
    for name in ("physical", "regulatory"):
        edge_index = base["gene", name, "gene"].edge_index
        graph["gene", name, "gene"].mask = (edge_index != 7).all(0)
    graph["gene"].perturbation_indices = torch.tensor([7])
    graph["gene"].ids_pert = ["G7"]
    return graph


def test_what_a_sample_shares_costs_nothing_and_is_the_base_graphs_own() -> None:
    base = cell()
    fields_ = BaseFields(base)
    graph = masked(base)
    layout, full = encode_graph(graph, fields_, "full")
    _, delta = encode_graph(graph, fields_, "delta")
    assert len(full) < 2 * 20_000 / 8 + 500
    assert len(delta) < 600
    for body in (full, delta):
        decoded = decode_graph(body, {layout.id: layout}, fields_)
        assert same_graph(decoded, graph)
        assert decoded["gene"].x is base["gene"].x
        assert decoded["gene"].node_ids is base["gene"].node_ids
        edge_type = ("gene", "physical", "gene")
        assert decoded[edge_type].edge_index is base[edge_type].edge_index
        decoded[edge_type].mask[0] = False  # fresh memory, not a view of the record


def test_delta_finds_equal_content_and_small_changes() -> None:
    base = cell()
    graph = HeteroData()
    graph["gene"].x = base["gene"].x.clone()
    graph["gene"].x[3] = float("nan")
    graph["gene", "physical", "gene"].edge_index = base["gene", "physical", "gene"].edge_index.clone()
    fields_ = BaseFields(base)
    layout, delta = encode_graph(graph, fields_, "delta")
    _, full = encode_graph(graph, fields_, "full")
    assert len(delta) < 200
    assert len(full) > 320_000
    assert same_graph(decode_graph(delta, {layout.id: layout}, fields_), graph)


def test_layout_does_not_depend_on_the_base_graph() -> None:
    base = cell()
    graph = masked(base)
    assert (
        encode_graph(graph, BaseFields(base), "full")[0].id
        == encode_graph(graph, BaseFields(None), "delta")[0].id
    )


def test_digest_is_of_the_content() -> None:
    one, other = cell(), cell()
    assert graph_digest(one) == graph_digest(other)
    other["gene"].x = other["gene"].x.t().contiguous().t()
    for name in ("physical", "regulatory"):
        edge_index = other["gene", name, "gene"].edge_index
        other["gene", name, "gene"].edge_index = torch.stack([edge_index, edge_index])[1]
    assert graph_digests(one) == graph_digests(other)
    digests = graph_digests(one)
    assert digests["gene.x"].startswith("float32[600,8]:")
    assert digests["gene|regulatory|gene.edge_index"].startswith("int64[2,20000]:")
    assert digests["gene.num_nodes"].startswith("json:")
    assert len(digests["gene.x"].split(":")[1]) == 32
    assert json.loads(digests["(node types)"]) == ["gene", "reaction", "metabolite"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda g: g["gene", "physical", "gene"].edge_index.__setitem__((0, 5), 599),
            {"gene|physical|gene.edge_index"},
        ),
        (lambda g: g["gene"].x.__setitem__((0, 0), -0.0), {"gene.x"}),
        (lambda g: g["gene"].node_ids.__setitem__(3, "other"), {"gene.node_ids"}),
        (lambda g: g["gene"].__setattr__("num_nodes", 601), {"gene.num_nodes"}),
        (lambda g: g["gene"].__setattr__("x", g["gene"].x.double()), {"gene.x"}),
        (lambda g: g["gene"].__setattr__("x", g["gene"].x.reshape(8, 600)), {"gene.x"}),
        (lambda g: g["gene"].__setattr__("y", 1), {"gene.y", "(order of fields)"}),
        (lambda g: g["gene"].update({"node_ids": g["gene"]._mapping.pop("node_ids")}), {"(order of fields)"}),
        (lambda g: g["new"], {"(node types)", "(order of fields)"}),
        (lambda g: g["gene", "new", "gene"], {"(edge types)", "(order of fields)"}),
    ],
)
def test_digests_name_what_changed(change: Any, named: set[str]) -> None:
    one, other = cell(), cell()
    one["gene"].x[0, 0] = other["gene"].x[0, 0] = 0.0
    change(other)
    before, after = graph_digests(one), graph_digests(other)
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == named
    assert graph_digest(one) != graph_digest(other)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_through_every_way(dtype: torch.dtype, tmp_path: Path) -> None:
    itemsize = torch.empty(0, dtype=dtype).element_size()
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, (24 * itemsize,), dtype=torch.uint8)
    graph = Data(
        a=bits.view(dtype).reshape(2, 12), b=bits[:itemsize].view(dtype).reshape(()), odd=torch.ones(3) > 0
    )
    graph.c = torch.empty(0, 4, dtype=dtype)
    graph.d = graph.a.t()
    value = to_array(graph.a)
    assert same(to_tensor(TensorValue(value.dtype, value.array.copy())), graph.a)
    for mode in ("full", "delta"):
        layout, body = encode_graph(graph, BaseFields(Data(d=graph.a.t().contiguous())), mode)
        again = decode_graph(body, {layout.id: layout}, BaseFields(Data(d=graph.a.t().contiguous())))
        assert same_graph(again, graph)
    save_base_graph(graph, tmp_path)
    assert same_graph(load_base_graph(tmp_path), graph)


def test_conjugated_and_negated_views_are_resolved() -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    graph = Data(conj=z.conj(), imag=z.conj().imag)
    layout, body = encode_graph(graph, BaseFields(Data(conj=z, imag=z.imag)), "full")
    again = decode_graph(body, {layout.id: layout}, BaseFields(Data(conj=z, imag=z.imag)))
    assert again.conj.tolist() == [1 - 2j, 3 + 4j]
    assert again.imag.tolist() == [-2.0, 4.0]


def test_same_tensor() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    assert is_same_tensor(x, x)
    assert is_same_tensor(x, x[:])
    assert is_same_tensor(x, x.detach())
    others = [
        x.clone(),
        x.t(),
        x[:2],
        x[1:],
        x.reshape(4, 3),
        x.view(torch.int32),
        x.reshape(-1),
        x.t().reshape(3, 4),
    ]
    assert not any(is_same_tensor(x, other) for other in others)
    z = torch.tensor([1j])
    assert not is_same_tensor(z, z.conj())


Point = namedtuple("Point", "x y")


class Text(str):
    pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.eye(3).to_sparse(), "layout torch.sparse_coo"),
        (torch.ones(2, requires_grad=True), "requires a gradient"),
        (torch.nn.Parameter(torch.ones(2)), "Parameter"),
        (torch.empty(2, device="meta"), "meta"),
        (torch.empty(0, 1 << 62), "refuses|too big"),
        (lambda: None, "function"),
        (object(), "builtins.object"),
        ({1, 2}, "builtins.set"),
        (Point(1, 2), "Point"),
        (OrderedDict(a=1), "OrderedDict"),
        (Text("a"), "Text"),
        ([1, {"a": object()}], "builtins.object"),
        ({"a": (b"", {1})}, "builtins.set"),
        ({frozenset(): 1}, "key of type frozenset"),
        (np.array([object()]), "dtype object"),
        (np.zeros(2, dtype=[("a", "i4")]), "dtype"),
        (np.longdouble(1), "dtype"),
        (np.ma.masked_array([1]), "MaskedArray"),
        (1j, "builtins.complex"),
        (Path("x"), "Path"),
        (Data(), "Data"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unsupported_values_are_named(value: Any, text: str, tmp_path: Path) -> None:
    graph = HeteroData()
    graph["gene"]._mapping["adj"] = value
    with pytest.raises(
        UnsupportedValueError, match=rf"gene\.adj .*({text}).*a record can hold dense strided"
    ):
        encode_graph(graph, BaseFields(None), "full")
    with pytest.raises(UnsupportedValueError, match=r"gene\.adj"):
        save_base_graph(graph, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_endless_nesting_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UnsupportedValueError, match=r"x is nested more than 32"):
        encode_graph(Data(x=endless), BaseFields(None), "full")
    with pytest.raises(UnsupportedValueError, match="holds itself"):
        item_digest(Data(x=endless))


def test_names_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyG looks for "__" in names until it has warned of them once: only then such a graph comes about.
    monkeypatch.setattr("torch_geometric.data.hetero_data._DISPLAYED_TYPE_NAME_WARNING", True)
    data, of_node, of_edge = Data(), HeteroData(), HeteroData()
    data._store._mapping[3] = torch.ones(1)
    of_node["a"]._mapping[("b",)] = torch.ones(1)
    of_edge["a", 1, "a"].edge_index = torch.ones(2, 1)
    of_value, of_numpy = Data(), Data()
    of_value._store._mapping[None] = "a text"
    of_numpy[np.str_("rel")] = "a text"  # neither topology nor columns would take it
    for graph, name in (
        (data, "3"),
        (of_node, r"\('b',\)"),
        (of_edge, "1"),
        (of_value, "None"),
        (of_numpy, ".*rel.*"),
    ):
        for check in (flatten, graph_digests):
            with pytest.raises(UnsupportedValueError, match=f"the name {name} of a .* is no plain text"):
                check(graph)


def test_other_graph_classes_are_refused() -> None:
    class Mine(Data):
        pass

    for graph in (Mine(x=torch.ones(1)), Batch.from_data_list([Data(x=torch.ones(1))]), object(), None):
        with pytest.raises(UnsupportedValueError, match="expected torch_geometric"):
            flatten(graph)  # type: ignore[arg-type]


def test_too_much_text() -> None:
    graph = Data(names=["x" * 1000] * 17_000)
    with pytest.raises(RecordTooLargeError, match="16,777,216"):
        encode_graph(graph, BaseFields(None), "full")
    layout, body = encode_graph(graph, BaseFields(Data(names=list(graph.names))), "full")
    assert len(body) < 100
    text = b'["' + b"x" * (17 << 20) + b'"]'
    hostile = generic.encode(layout, [text], [None], "full")
    with pytest.raises(RecordTooLargeError, match="16,777,216"):
        decode_graph(hostile, {layout.id: layout}, BaseFields(None))


BAD_JSON = [
    b"",
    b"\xff",
    b"nan",
    b"NaN",
    b"[1,]",
    b"[" * 100_000,
    b"[" * 40 + b"]" * 40,
    b'{"t":[1],"t":[2]}',
    b"{}",
    b'{"x":1}',
    b'{"t":1}',
    b'{"d":1}',
    b'{"d":[[1]]}',
    b'{"d":[[1,2],[1,3]]}',
    b'{"d":[[[1],2]]}',
    b'{"f":"00"}',
    b'{"f":1}',
    b'{"i":5}',
    b'{"i":"__import__"}',
    b'{"b":"*"}',
    b'{"b":1}',
    b'{"s":"zz"}',
    b'{"a":["|O",[1],"AAAAAAAAAAA="]}',
    b'{"a":["<i4",[2],"AAAAAA=="]}',
    b'{"a":["<i4",[-1],"AAAAAA=="]}',
    b'{"a":["<U0",[1000000000000],""]}',
    b'{"a":["<i8",[0,4611686018427387904],""]}',
    b'{"a":["<i8",[' + b"0," * 99 + b'0],""]}',
    b'{"a":["<M8[xx]",[1],"AAAAAAAAAAA="]}',
    b'{"a":[1,2]}',
    b'{"a":["<f4,<f4",[1],"AAAAAAAAAAA="]}',
    b'{"T":["float32",[3],"AAAAAA=="]}',
    b'{"T":["object",[],""]}',
    b'{"T":["bool",[1],"Ag=="]}',
    b'{"n":["<i4",""]}',
    b'{"n":["<U1","eAAAA9=="]}',
    b'{"n":["U",5]}',
    b'{"n":["S","x"]}',
    b'{"n":["|b1","Ag=="]}',
    b"1" * 5000,
]


@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:20].decode("latin1"))
def test_bad_json_in_a_record(text: bytes) -> None:
    layout, _ = encode_graph(Data(v=1), BaseFields(None), "full")
    body = generic.encode(layout, [text], [None], "full")
    with pytest.raises(CorruptRecordError, match="v does not hold typed JSON"):
        decode_graph(body, {layout.id: layout}, BaseFields(None))


def test_mutated_json_raises_only_typed_errors() -> None:
    rng = random.Random(3)
    value = {
        "a": (1.5, float("nan"), [1, 2]),
        2: np.arange(3),
        "t": [torch.ones(2), np.str_("x"), b"y", 1 << 80],
    }
    text = value_to_json(value)
    for _ in range(20_000):
        mutant = bytearray(text)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(mutant))
            if rng.random() < 0.5:
                mutant[at] = rng.choice(b'{}[]",:0123456789-eEatdfTnsib<>|=A')
            else:
                mutant[at : at + rng.randrange(4)] = rng.choice(
                    (b"", b"[", b"]", b'"', b"0", b"null", b"1e999")
                )
        with contextlib.suppress(CorruptRecordError):
            value_from_json(bytes(mutant))


class Canary:
    fired: list[str] = []  # noqa: RUF012 - one list for the process is the point

    def __reduce__(self) -> Any:
        return (Canary.fired.append, ("code ran",))


def test_nothing_executes(tmp_path: Path) -> None:
    torch.save(Canary(), tmp_path / "canary.pt")
    base = cell()
    layout, body = encode_graph(masked(base), BaseFields(base), "full")
    text_layout, _ = encode_graph(Data(v=1), BaseFields(None), "full")
    for payload in (pickle.dumps(Canary()), (tmp_path / "canary.pt").read_bytes()):
        for hostile in (payload, body[:1] + payload, body + payload):
            with pytest.raises(TYPED):
                decode_graph(hostile, {layout.id: layout}, BaseFields(base))
        planted = generic.encode(text_layout, [payload], [None], "full")
        with pytest.raises(CorruptRecordError):
            decode_graph(planted, {text_layout.id: text_layout}, BaseFields(None))
        for name in ("base_graph.json", "base_graph.safetensors"):
            save_base_graph(base, tmp_path)
            (tmp_path / name).write_bytes(payload)
            with pytest.raises((CorruptShardError, FormatError)):
                load_base_graph(tmp_path)
    assert Canary.fired == []


def test_the_librarys_own_reader_agrees(tmp_path: Path) -> None:
    base = cell()
    base["gene"].flag = torch.tensor([True, False, True])
    base["gene"].half = torch.ones(3, dtype=torch.bfloat16)
    save_base_graph(base, tmp_path)
    tensors_ = load_file(tmp_path / "base_graph.safetensors")
    assert same(tensors_['["gene","x"]'], base["gene"].x)
    assert same(
        tensors_['[["gene","physical","gene"],"edge_index"]'], base["gene", "physical", "gene"].edge_index
    )
    assert same(tensors_['["gene","half"]'], base["gene"].half)
    assert len(tensors_) == sum(
        isinstance(v, torch.Tensor) for _, mapping in parts(base) for v in mapping.values()
    )


def test_loaded_tensors_map_the_file(tmp_path: Path) -> None:
    save_base_graph(cell(), tmp_path)
    before = (tmp_path / "base_graph.safetensors").read_bytes()
    loaded = load_base_graph(tmp_path)
    spans = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("base_graph.safetensors") and str(tmp_path) in line
    ]
    for tensor in (loaded["gene"].x, loaded["gene", "physical", "gene"].edge_index):
        assert any(start <= tensor.data_ptr() < stop for start, stop in spans)
        assert tensor.data_ptr() % 8 == 0
    loaded["gene"].x.zero_()
    assert (tmp_path / "base_graph.safetensors").read_bytes() == before


def test_tensors_that_share_storage_are_saved_whole(tmp_path: Path) -> None:
    x = torch.arange(12.0).reshape(3, 4)
    graph = Data(x=x, y=x, row=x[1], column=x[:, 1], again=x.t())
    save_base_graph(graph, tmp_path)
    assert same_graph(load_base_graph(tmp_path), graph)


def rewrite(directory: Path, change: Any) -> None:
    path = directory / "base_graph.json"
    document = json.loads(path.read_text())
    result = change(document)
    path.write_text(json.dumps(document if result is None else result))


DAMAGE: dict[str, tuple[Any, type[Exception]]] = {
    "not an object": (lambda d: [d], FormatError),
    "other format": (lambda d: d.update(format="x"), FormatError),
    "newer version": (lambda d: d.update(version=2), FormatError),
    "unknown key": (lambda d: d.update(extra=1), CorruptShardError),
    "missing key": (lambda d: d.pop("graph") and None, CorruptShardError),
    "unknown graph": (lambda d: d.update(graph="Batch"), FormatError),
    "stores not a list": (lambda d: d.update(stores=5), CorruptShardError),
    "store not a pair": (lambda d: d["stores"].append([]), CorruptShardError),
    "double store": (
        lambda d: d["stores"].append(["zeta", []]) or d["stores"].append(["zeta", []]),
        FormatError,
    ),
    "unknown kind": (lambda d: d["stores"][1][1].append(["q", {"pickle": 1}]), FormatError),
    "two kinds": (lambda d: d["stores"][1][1].append(["q", {"value": 1, "tensor": 1}]), CorruptShardError),
    "unknown tag": (lambda d: d["stores"][1][1].append(["q", {"value": {"z": 1}}]), CorruptShardError),
    "missing tensor": (
        lambda d: d["stores"][1][1].append(["q", {"tensor": ["float32", [1]]}]),
        CorruptShardError,
    ),
    "unnamed tensor": (lambda d: d["stores"][1][1].pop(2) and None, CorruptShardError),
    "other shape": (
        lambda d: d["stores"][1][1][2].__setitem__(1, {"tensor": ["float32", [8, 600]]}),
        CorruptShardError,
    ),
    "other dtype": (
        lambda d: d["stores"][1][1][2].__setitem__(1, {"tensor": ["int32", [600, 8]]}),
        CorruptShardError,
    ),
    "unknown dtype": (
        lambda d: d["stores"][1][1][2].__setitem__(1, {"tensor": ["object", [600, 8]]}),
        CorruptShardError,
    ),
    "unhashable dtype": (
        lambda d: d["stores"][1][1][2].__setitem__(1, {"tensor": [["x"], []]}),
        CorruptShardError,
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_base_graph_json(name: str, tmp_path: Path) -> None:
    change, error = DAMAGE[name]
    save_base_graph(cell(), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(error):
        load_base_graph(tmp_path)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def test_any_part_of_base_graph_json_replaced_by_anything(tmp_path: Path) -> None:
    graph = HeteroData()
    graph["gene"].node_ids = ["a", "b"]
    graph["gene"].x = torch.ones(2, 3)
    graph["gene"].c = torch.ones(2, dtype=torch.complex128)
    graph["gene"].t = (1, {"a": 2.5})
    graph["gene", "r", "gene"].edge_index = torch.zeros(2, 4, dtype=torch.int64)
    save_base_graph(graph, tmp_path)
    text = (tmp_path / "base_graph.json").read_text()
    for place in places(json.loads(text))[1:]:
        for other in (
            None,
            True,
            -1,
            1.5,
            "x",
            "",
            [],
            {},
            [1],
            {"tensor": []},
            {"value": 1},
            [["a"]],
            1 << 70,
        ):
            document = json.loads(text)
            inside = document
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = other
            (tmp_path / "base_graph.json").write_text(json.dumps(document))
            with contextlib.suppress(CorruptShardError, FormatError):
                loaded = load_base_graph(tmp_path)
                assert same([loaded["gene"].x, loaded["gene"].c], [graph["gene"].x, graph["gene"].c])


def test_damaged_base_graph_files(tmp_path: Path) -> None:
    save_base_graph(cell(), tmp_path)
    tensors_, text = tmp_path / "base_graph.safetensors", tmp_path / "base_graph.json"
    whole, document = tensors_.read_bytes(), text.read_bytes()
    for damaged in (b"", whole[:7], whole[:100], whole[:-1], whole + b"\0", b"\xff" * 8 + whole[8:]):
        tensors_.write_bytes(damaged)
        with pytest.raises(CorruptShardError, match="not a safetensors file"):
            load_base_graph(tmp_path)
    tensors_.write_bytes(whole)
    for damaged in (
        b"",
        document[:-1],
        b"[" * 100_000,
        b"\xff" + document,
        document.replace(b'"version"', b'"format"'),
    ):
        text.write_bytes(damaged)
        with pytest.raises((CorruptShardError, FormatError)):
            load_base_graph(tmp_path)
    with text.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(CorruptShardError, match="67,108,865 bytes"):
        load_base_graph(tmp_path)
    text.unlink()
    with pytest.raises(CorruptShardError, match=r"base_graph\.json: the base graph is missing"):
        load_base_graph(tmp_path)
    text.write_bytes(document)
    tensors_.unlink()
    with pytest.raises(CorruptShardError, match=r"base_graph\.safetensors: the base graph is missing"):
        load_base_graph(tmp_path)
