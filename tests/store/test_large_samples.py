"""Samples that perturb very many nodes, and headers that claim very many dimensions: work is counted, not timed."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from torch_geometric.data import HeteroData

import torchcell_cache as tc
from torchcell_cache.errors import CorruptRecordError, FormatError
from torchcell_cache.graph.arrays import arrays_from_bytes
from torchcell_cache.graph.typed_json import value_from_json


def graph_of(num_nodes, edges, more=()):
    graph = HeteroData()
    graph["gene"].num_nodes = num_nodes
    for name, pairs in (("a", edges), ("b", more)):
        graph["gene", name, "gene"].edge_index = (
            torch.tensor(list(pairs), dtype=torch.long).reshape(-1, 2).t()
        )
    return graph


def removed_edges(graph, rows, root, storage="perturbation"):
    source = tc.PerturbationTable(graph, rows, phenotypes={"f": [0.5] * len(rows)})
    ds = tc.build(
        root, source=source, processor=tc.LazySubgraphRepresentation(), storage=storage, progress=False
    )
    return ds.columns["removed_edges"].tolist()


pairs = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60)


@settings(max_examples=25, deadline=None)
@given(
    edges=pairs, more=pairs, rows=st.lists(st.sets(st.integers(0, 29), max_size=30), min_size=1, max_size=5)
)
def test_removed_edges_of_samples_of_any_size(tmp_path_factory, edges, more, rows) -> None:
    """Repeated edges, both directions, loops, samples of none to all nodes: counted by looking at every edge."""
    root = tmp_path_factory.mktemp("edges") / "s"
    found = removed_edges(graph_of(30, edges, more), [sorted(row) for row in rows], root)
    assert found == [sum(a in row or b in row for a, b in (*edges, *more)) for row in rows]


def calls_of(act):
    """How many functions, of Python or of C, run."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("storage", ["perturbation", "delta", "full"])
def test_work_does_not_grow_with_the_square_of_a_sample(tmp_path, storage) -> None:
    """Ten times the perturbed nodes: about the same calls, each on ten times the elements."""

    def cost(size, name):
        graph = graph_of(size, [(0, 1), (1, 2), (2, 0)])
        rows = [list(range(size)), [0]]
        count = calls_of(lambda: removed_edges(graph, rows, tmp_path / name, storage))
        ds = tc.PreprocessedDataset(tmp_path / name)
        return count + calls_of(lambda: (ds[0], ds.read_batch([0, 1]).to_pyg()))

    cost(300, "warm")
    assert cost(7_000, "large") < 1.5 * cost(700, "small")


HEADERS = {
    "700,000 dimensions": [2**62] * 700_000,
    "65 dimensions of one": [1] * 65,
    "no list": 5,
    "text": ["4"],
    "halves": [1.5],
    "truth": [True],
    "huge": [10**30, 0],
    "negative": [-1, -4],
}


@pytest.mark.parametrize("shape", HEADERS.values(), ids=HEADERS)
def test_impossible_shapes_in_a_header(shape) -> None:
    data = save({"x": np.arange(4, dtype=np.float32)})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["x"]["shape"] = shape
    text = json.dumps(header).encode()
    with pytest.raises(FormatError, match="array 'x'") as caught:
        arrays_from_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :], "x.safetensors")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("form", ['{"a":["<f4",%s,"AAAAAA=="]}', '{"T":["float32",%s,"AAAAAA=="]}'])
@pytest.mark.parametrize(
    "shape", [[2**62] * 700_000, [1] * 65, [1, 1.5], [True], "4", [-1, -1]], ids=lambda s: str(s)[:9]
)
def test_impossible_shapes_in_a_record(form, shape) -> None:
    with pytest.raises(CorruptRecordError, match="a shape must be a list") as caught:
        value_from_json((form % json.dumps(shape)).encode())
    assert len(str(caught.value)) < 500
    assert value_from_json((form % json.dumps([1] * 64)).encode()).shape == (1,) * 64
