"""Batches of any graphs: exactly PyG's, whichever way fields are stored, each record decoded at most once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.batch import graphs as batch_of_graphs
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.records import decode_graph


def same(got, want) -> bool:
    if torch.is_tensor(want):
        return (
            torch.is_tensor(got)
            and (got.dtype, got.shape) == (want.dtype, want.shape)
            and got.contiguous()
            .view(-1)
            .view(torch.uint8)
            .equal(want.contiguous().view(-1).view(torch.uint8))
        )
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[key], want[key]) for key in want)
    if isinstance(want, list | tuple):
        return type(got) is type(want) and len(got) == len(want) and all(map(same, got, want))
    return type(got) is type(want) and (got == want or got != got)


def assert_same_batch(got, want) -> None:
    assert type(got).__mro__ == type(want).__mro__
    assert [store._key for store in got.stores] == [store._key for store in want.stores]
    for one, other in zip(got.stores, want.stores, strict=True):
        assert list(one._mapping) == list(other._mapping), (list(one._mapping), list(other._mapping))
        for name, value in other._mapping.items():
            assert same(one._mapping[name], value), (one._key, name, one._mapping[name], value)
    assert same(got._slice_dict, want._slice_dict)
    assert same(got._inc_dict, want._inc_dict)
    assert got.num_graphs == want.num_graphs


def base_and_samples(seed: int, hetero: bool, has_base: bool):
    """A base graph or none, and samples that have its tensors, changes of them, and their own of any size."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    same_size = rng.random() < 0.5
    kinds = [
        torch.float32,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bfloat16,
        torch.bool,
        torch.float16,
    ]
    kind, other = (kinds[k] for k in rng.integers(0, len(kinds), 2))
    shared = torch.randint(0, 5, (2, 9))
    x = torch.zeros(12, 3)

    def some(*shape, dtype=kind):
        values = torch.randint(0, rng.integers(1, 400), shape) * (torch.rand(shape) < rng.random())
        return values.to(dtype)

    def fill(store, k: int, nodes: int) -> None:
        store.x = x.clone() if rng.random() < 0.3 else some(nodes, 3, dtype=x.dtype)
        if same_size and rng.random() < 0.3:
            store.x = x
        store.own = some(nodes, 2)
        store.mask = torch.rand(nodes) < 0.5
        store.y = some(dtype=other) if seed % 2 else some(1, 4, dtype=other)
        store.text = ["a", "b", "unperturbed"][k % 3]
        store.number, store.share, store.flag = k, k / 3, bool(k % 2)
        store.names = ["G1", "G2"][: k % 3]
        store.nothing = None
        store.pair = (k, "p")
        store.empty = some(0, 5)
        store.long, store.table = list(range(200)), torch.arange(100).view(2, 50)
        store.long_odd = list(range(200 + k // 5))
        if seed % 3 == 0:
            store.batch_of = "plate 1"

    def graph(k: int):
        nodes = 12 if same_size else int(rng.integers(1, 20))
        edges = torch.randint(0, nodes, (2, 9 if same_size else int(rng.integers(0, 12))))
        edges = shared if rng.random() < 0.3 or (seed % 5 == 0 and same_size) else edges
        if hetero:
            out = HeteroData()
            fill(out["gene"], k, nodes)
            out["reaction"].num_nodes = (nodes + 1, torch.tensor(nodes + 1))[seed % 2]
            out["gene", "p", "gene"].edge_index = edges
            out["gene", "p", "gene"].edge_attr = some(edges.size(1), 1)
            out["gene", "in", "reaction"].edge_index = edges.to(torch.int32)
            out.label = k
            return out
        out = Data()
        if seed % 4 == 0:
            out.num_nodes = (nodes, torch.tensor(nodes), np.int64(nodes))[seed // 4 % 3]
        fill(out, k, nodes)
        out.edge_index = edges
        out.node_index = torch.arange(k % 3)
        return out

    samples = [graph(k) for k in range(6)]
    base = None
    if has_base:
        base = HeteroData() if hetero else Data()
        (base["gene"] if hetero else base).x = x
        (base["gene", "p", "gene"] if hetero else base).edge_index = shared
    return base, samples


class Source:
    def __init__(self, base, samples) -> None:
        self.base_graph, self.samples = base, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, k: int):
        return self.samples[k]

    def identity(self):
        return {"class": "Source", "what": repr(torch.rand(1).item())}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 20), st.booleans(), st.booleans(), st.sampled_from(["full", "delta"]))
def test_every_field_is_as_pyg_collates_it(tmp_path_factory, seed, hetero, has_base, storage) -> None:
    base, samples = base_and_samples(seed, hetero, has_base)
    root = tmp_path_factory.mktemp("s") / "s"
    ds = tc.build(root, source=Source(base, samples), storage=storage, progress=False)
    for chosen in ([0, 1, 2, 3, 4, 5], [3], [5, 5, 0]):
        follow, exclude = ["x", "names"], ["flag"]
        want = Batch.from_data_list([samples[k] for k in chosen], follow, exclude)
        batch = ds.read_batch(chosen)
        assert_same_batch(batch.to_pyg(follow, exclude), want)
        assert_same_batch(batch.to_pyg(follow, exclude), want)


@pytest.mark.parametrize("storage", ["full", "delta"])
@pytest.mark.parametrize("has_base", [False, True])
def test_index_fields_of_any_shape_are_shifted_as_by_pyg(tmp_path, storage, has_base) -> None:
    """Without a dimension, with an empty or a third one, of narrow and of few values, shared and the sample's own."""
    rng, shared = np.random.default_rng(0), torch.arange(1200).view(2, 600) % 5

    def graph(k: int, alike: bool):
        size = 600 if alike else 3 + 200 * k
        return Data(
            x=torch.zeros(5 + k, 1),
            edge_index=shared if alike else torch.from_numpy(rng.integers(0, 5, (2, size))),
            wide_index=torch.from_numpy(rng.integers(-70_000, 70_000, (2, 3, size))),
            none_index=torch.zeros(0, size, dtype=torch.int32),
            flat_index=torch.from_numpy(rng.integers(0, 5, size)).to(torch.int16),
            few_index=torch.from_numpy(rng.choice([3, 1 << 40], (1, size))),
            **({"one_index": torch.tensor(k)} if alike else {}),
        )

    for alike in (True, False):
        samples = [graph(k, alike) for k in range(4)]
        base = Data(edge_index=shared, num_nodes=5) if has_base else None
        root = tmp_path / str(alike)
        ds = tc.build(root, source=Source(base, samples), storage=storage, progress=False)
        for chosen in ([0, 1, 2, 3], [2], [3, 3, 0]):
            got = ds.read_batch(chosen).to_pyg(["x"], ["flat_index"])
            assert_same_batch(got, Batch.from_data_list([samples[k] for k in chosen], ["x"], ["flat_index"]))


def test_samples_of_several_layouts_in_one_batch(tmp_path) -> None:
    """Another order of fields is PyG's to join; a field that some lack is told, and may be left out."""
    x = torch.eye(4)[[0, 1, 1, 2, 3, 0]]
    ordered = [Data(x=x, y=torch.ones(1)), Data(y=torch.zeros(1), x=x[:3]), Data(x=x + 1, y=torch.ones(1))]
    lacking = [Data(x=x, y=1.5), Data(x=x, y=2.5, extra=torch.ones(2)), Data(x=x[:2], y=3.5)]
    ds = tc.build(tmp_path, source=ordered + lacking, storage="delta", progress=False)
    assert_same_batch(ds.read_batch([0, 1, 2]).to_pyg(["x"]), Batch.from_data_list(ordered, ["x"]))
    with pytest.raises(SettingError, match="extra"):
        ds.read_batch([3, 4, 5]).to_pyg()
    got = ds.read_batch([3, 4, 5]).to_pyg(None, ["extra"])
    assert_same_batch(got, Batch.from_data_list(lacking, None, ["extra"]))


@pytest.mark.parametrize("storage", ["full", "delta"])
def test_records_are_decoded_once_and_equal_texts_parsed_once(tmp_path, monkeypatch, storage) -> None:
    samples = [
        Data(x=torch.rand(30, 1), y=torch.rand(1, 30), pert="ctrl" if k % 2 else "G1+G2", de=[1, 2])
        for k in range(8)
    ]
    ds = tc.build(tmp_path, source=samples, storage=storage, progress=False)
    decoded, parsed = [], []
    monkeypatch.setattr(batch_of_graphs, "decode_graph", lambda *a: decoded.append(1) or decode_graph(*a))
    from torchcell_cache.batch import pyg_records

    own = pyg_records.value_from_json
    monkeypatch.setattr(pyg_records, "value_from_json", lambda *a: parsed.append(a[0]) or own(*a))
    pyg_records._kept.cache_clear()
    got = ds.read_batch(range(8)).to_pyg()
    assert_same_batch(got, Batch.from_data_list(samples))
    assert not decoded
    assert sorted(parsed) == [b'"G1+G2"', b'"ctrl"', b"[1,2]"]
    got.de[0].append(3)
    assert got.de[1] == [1, 2]
    # What follows a rule of its own goes through PyG, each record decoded once.
    samples = [Data(x=torch.rand(3, 1), what={"a": k}) for k in range(8)]
    ds = tc.build(tmp_path / "other", source=samples, storage=storage, progress=False)
    decoded.clear()
    assert_same_batch(ds.read_batch(range(8)).to_pyg(), Batch.from_data_list(samples))
    assert len(decoded) <= 9


def test_workers_expand_what_is_the_samples_own(tmp_path) -> None:
    samples = [Data(x=torch.rand(4 + k % 3, 2), y=float(k), pert=f"G{k % 2}") for k in range(12)]
    ds = tc.build(tmp_path, source=samples, storage="delta", progress=False)
    loader = tc.CacheLoader(
        ds, 5, num_workers=1, expand=True, uneven="pad", follow_batch=["x"], exclude_keys=["pert"]
    )
    got = list(loader)
    for step, batch in enumerate(got):
        want = Batch.from_data_list(samples[5 * step : 5 * step + 5], ["x"], ["pert"])
        assert torch.equal(batch.x, want.x)
        assert torch.equal(batch.x_batch, want.x_batch)
        assert torch.equal(batch.y, want.y)
        assert "pert" not in batch
    assert len(got) == 3
