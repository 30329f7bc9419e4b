"""A shared batch beside a PyG batch: what to_pyg() keeps, what using one like the other says, restricted ones that travel."""

import copy
import pickle
import sys

import fresh
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.errors import SettingError

# Fields that are tuples, anywhere inside a sample

scalars = st.integers(-5, 5) | st.text("ab", max_size=2) | st.booleans()
values = st.recursive(
    scalars,
    lambda inner: (
        st.tuples(inner, inner)
        | st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from("xy"), inner, max_size=2)
    ),
    max_leaves=6,
)


def same(got, want):
    """Equal in value and in the type of every part."""
    if torch.is_tensor(want):
        return torch.is_tensor(got) and torch.equal(got, want)
    if type(got) is not type(want):
        return False
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[k], want[k]) for k in want)
    if isinstance(want, list | tuple):
        return len(got) == len(want) and all(map(same, got, want))
    return got == want


@pytest.mark.parametrize("workers", [0, 1])
def test_tuples_stay_tuples(tmp_path, workers) -> None:
    def graph(k):
        out = HeteroData()
        out["gene"].x = torch.full((2, 1), float(k))
        out["gene"].way = ("a", k)
        out["gene", "p", "gene"].edge_index = torch.tensor([[0], [1]])
        out.pair, out.nested = (k, k + 1), {"inner": [(k, ("b", 1.5)), ()]}
        out.metapath_dict = {("gene", "m", "gene"): [("gene", "gene"), ("gene", "p", "gene")]}
        return out

    graphs = [graph(k) for k in range(3)]
    ds = tc.build(tmp_path, source=graphs, processor=None, storage="full", progress=False)
    wanted = Batch.from_data_list(graphs)
    kind = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    made = [
        ds.read_batch([0, 1, 2]).to_pyg(),
        pickle.loads(pickle.dumps(ds.read_batch([0, 1, 2]))).to_pyg(),
        next(iter(tc.CacheLoader(ds, 3, expand=True, **kind))),
        next(iter(tc.CacheLoader(ds, 3, expand=True, device="cpu"))),
        next(iter(tc.StreamingCacheDataset(ds, 3, shuffle=False))).to_pyg(),
    ]
    for batch in made:
        for store, other in zip(batch.stores, wanted.stores, strict=True):
            for name, value in other.items():
                assert same(store[name], value), name
        assert batch.get_example(1).pair == (1, 2)


@settings(max_examples=20, deadline=None)
@given(st.lists(values, min_size=2, max_size=3))
def test_any_python_value_is_batched_as_by_pyg(tmp_path_factory, found) -> None:
    graphs = [Data(x=torch.ones(2, 1), what=value) for value in found]
    ds = tc.build(
        tmp_path_factory.mktemp("v") / "s", source=graphs, processor=None, storage="full", progress=False
    )
    try:
        wanted = Batch.from_data_list([ds[k] for k in range(len(graphs))]).what
    except Exception as error:  # PyG's own: dicts of other keys, numbers beside None
        expected = type(error)
    else:
        assert same(ds.read_batch(list(range(len(graphs)))).to_pyg().what, wanted)
        return
    with pytest.raises((expected, SettingError)) as caught:
        ds.read_batch(range(len(graphs))).to_pyg()
    assert type(caught.value.__cause__ or caught.value) is expected


# Used like a PyG batch


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    root = tmp_path_factory.mktemp("b") / "s"
    ds = tc.build(
        root,
        source=tc.testing.tiny_source(8),
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        progress=False,
    )
    return ds.read_batch([0, 1, 2])


PYG = {
    "a node type": lambda b: b["gene"],
    "an edge type": lambda b: b["gene", "physical", "gene"],
    "a slice": lambda b: b[:2],
    "a list": lambda b: b[[0, 1]],
    "a number that is none": lambda b: b[1.0],
    "x_dict": lambda b: b.x_dict,
    "edge_index_dict": lambda b: b.edge_index_dict,
    "y": lambda b: b.y,
    "num_nodes": lambda b: b.num_nodes,
    "to_data_list": lambda b: b.to_data_list(),
    "in": lambda b: "gene" in b,
}


@pytest.mark.parametrize("use", PYG.values(), ids=PYG)
def test_using_it_like_a_pyg_batch_says_where_that_is(batch, use) -> None:
    for one in (batch, batch.restrict("gene", sorted({0, 1, 2, *batch.perturbed.tolist()}))):
        with pytest.raises((SettingError, AttributeError), match=r"batch\.to_pyg\(\)"):
            use(one)


def test_what_a_batch_has_works_as_before(batch) -> None:
    assert batch[torch.tensor(1)] is not None
    assert not hasattr(batch, "x")
    assert getattr(batch, "x", 5) == 5
    for one in (copy.copy(batch), pickle.loads(pickle.dumps(batch))):
        assert one.indices.tolist() == [0, 1, 2]
    with pytest.raises(IndexError, match="sample 3 of a batch of 3"):
        _ = batch[3]


def test_an_error_inside_a_property_is_not_hidden(tmp_path) -> None:
    graphs = [Data(x=torch.ones(1, 1)) for _ in range(2)]
    ds = tc.build(tmp_path, source=graphs, storage="full", progress=False)
    with pytest.raises(SettingError, match="knows no perturbed nodes"):
        _ = ds.read_batch([0, 1]).perturbed


# Restricted batches


@pytest.mark.parametrize("storage", ["perturbation", "delta"])
def test_the_context_of_a_restricted_batch_travels(tmp_path, storage) -> None:
    """Also to a process that knows nothing of it; what it gives is the restricted graph's there too."""
    source, processor = tc.testing.tiny_source(8), tc.LazySubgraphRepresentation()
    ds = tc.build(tmp_path / "s", source=source, processor=processor, storage=storage, progress=False)
    small = ds.read_batch([0, 1]).restrict(
        "gene", sorted({0, 1, 2, *ds.read_batch([0, 1]).perturbed.tolist()})
    )
    back = pickle.loads(pickle.dumps(small.context))
    assert type(back) is type(small.context)
    tc.testing.assert_same_graph(back.base_graph, small.context.base_graph)
    assert back.topology.to_dict() == small.context.topology.to_dict()
    assert back.removal.index.positions.tolist() == small.context.removal.index.positions.tolist()
    assert back.has_removed is small.context.has_removed is False
    assert back.generation.manifest == ds.generation.manifest
    (tmp_path / "p").write_bytes(pickle.dumps((small.context, small)))
    script = (
        "import pickle, sys; g, b = pickle.load(open(sys.argv[1], 'rb')); "
        "print(g.topology.num_nodes, b.edge_mask(('gene', 'physical', 'gene')).long().sum().item())"
    )
    done = fresh.run(
        [sys.executable, "-c", script, str(tmp_path / "p")], capture_output=True, text=True, check=True
    )
    wanted = small.edge_mask(("gene", "physical", "gene")).long().sum().item()
    assert done.stdout.split() == [str(small.context.topology.num_nodes), str(wanted)]


def test_records_and_columns_are_not_given_under_other_numbers(batch) -> None:
    """They are the store's own and speak of its nodes; what speaks of the selected ones has none."""
    small = batch.restrict("gene", sorted({0, 1, 2, *batch.perturbed.tolist()}))
    assert small.generation is batch.generation
    assert small.generation.topology.num_nodes > small.context.topology.num_nodes
    for name in ("read", "read_columns", "graphs", "visit", "columns", "table", "table_reader"):
        assert hasattr(small.generation, name)
        assert not hasattr(small.context, name)
