"""The incidence index against a scan of every edge."""

from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import cases, cell_graph, plain_graph
from hypothesis import given, settings
from torch_geometric.data import Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.errors import CorruptIndexError, GraphMismatchError, SourceContractError
from torchcell_cache.graph.fields import graph_digest
from torchcell_cache.graph.removal import Removal
from torchcell_cache.graph.topology import topology_of


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_lookup_equals_a_scan(case) -> None:
    index = tc.IncidenceIndex.build(case.base)
    for key in case.base.edge_types:
        if key[0] == key[2] == "gene":
            edges = case.base[key].edge_index.t().tolist()
            for node in range(case.base["gene"].num_nodes):
                want = [position for position, ends in enumerate(edges) if node in ends]
                assert index.lookup(key, node).tolist() == want


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_removed_is_the_sorted_union(case) -> None:
    index = tc.IncidenceIndex.build(case.base)
    ptr = np.cumsum([0, *map(len, case.perturbed)])
    ids = np.array([k for p in case.perturbed for k in p], dtype=np.int64)
    positions, offsets = index.removed(ids, ptr)
    for row, perturbed in enumerate(case.perturbed):
        got = positions[offsets[row] : offsets[row + 1]].tolist()
        want = set()
        for node in perturbed:
            for domain in index.topology.domains:
                want.update((index.lookup(domain.key, node) + domain.start).tolist())
        assert got == sorted(want)


def test_many_nodes_take_the_wide_sort() -> None:
    random = np.random.default_rng(0)
    count = 70_000
    graph = Data(edge_index=torch.from_numpy(random.integers(0, count, (2, 5_000))), num_nodes=count)
    index = tc.IncidenceIndex.build(graph)
    for node in graph.edge_index[:, :20].flatten().tolist():
        want = np.flatnonzero((graph.edge_index.numpy() == node).any(axis=0))
        assert index.lookup(None, node).tolist() == want.tolist()


@pytest.mark.parametrize(
    ("gpr", "gpr_by"), [("any", "gene"), ("any", "reaction"), ("rule", "gene"), ("rule", "reaction")]
)
def test_saved_and_mapped_it_answers_the_same(tmp_path: Path, gpr: str, gpr_by: str) -> None:
    graph = cell_graph()
    built = Removal.build(graph, node_type=None, gpr=gpr, gpr_by=gpr_by, graph_digest=graph_digest(graph))
    path = tmp_path / "incidence.safetensors"
    path.write_bytes(built.to_bytes())
    loaded = Removal.load(path, built.topology)
    ids, ptr = np.array([0, 2, 4, 5]), np.array([0, 0, 2, 4])
    for got, want in zip(loaded.removed(ids, ptr), built.removed(ids, ptr), strict=True):
        assert got.tolist() == want.tolist()
    assert loaded.to_bytes() == built.to_bytes()


def test_another_or_changed_graph_is_refused() -> None:
    graph = cell_graph()
    index = tc.IncidenceIndex.build(graph)
    index.check_graph(graph_digest(cell_graph()))
    graph["gene", "physical", "gene"].edge_index[0, 0] += 1
    with pytest.raises(GraphMismatchError, match="belongs to base graph"):
        index.check_graph(graph_digest(graph))


def test_an_index_that_does_not_fit_the_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "incidence.safetensors"
    path.write_bytes(tc.IncidenceIndex.build(plain_graph(8)).to_bytes())
    with pytest.raises(CorruptIndexError, match="do not fit"):
        tc.IncidenceIndex.load(path, topology_of(plain_graph(9)))


def test_reports_what_it_cost() -> None:
    index = tc.IncidenceIndex.build(cell_graph())
    assert index.build_ms > 0
    assert index.num_edges == 20 + 7 + 0 + 8 + 7
    assert len(index.edge_types) == 5


def broken(change):
    graph = cell_graph()
    change(graph)
    return graph


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (broken(lambda g: g["gene", "physical", "gene"].edge_index[1].fill_(99)), "there are 9 nodes"),
        (broken(lambda g: g["gene", "gpr", "reaction"].__delitem__("hyperedge_index")), "no hyperedge_index"),
        (
            broken(lambda g: g["gene", "physical", "gene"].__setitem__("edge_index", torch.zeros(3, 2))),
            r"\[2, n\]",
        ),
        (HeteroData(), "node_type"),
        *(
            (broken(lambda g, v=value: g["gene", "physical", "gene"].__setitem__("edge_index", v)), said)
            for value, said in (
                (torch.zeros(2, 3, dtype=torch.int16), r"torch.int16 \[2, 3\], expected .*int64"),
                (torch.zeros(2, 3, dtype=torch.uint8), "torch.uint8"),  # torch takes these for masks
                (torch.zeros(2, 3, dtype=torch.bool), "torch.bool"),
                (torch.zeros(2, 3, dtype=torch.complex64), "torch.complex64"),
                (torch.zeros(4, dtype=torch.long), r"torch.int64 \[4\]"),
                (np.zeros((2, 3), dtype=np.int64), r"int64 \[2, 3\], expected a tensor"),
                ([[0], [1]], r"list \[\]"),
            )
        ),
    ],
)
def test_a_graph_unfit_for_deletion_says_why(graph, message) -> None:
    with pytest.raises(SourceContractError, match=message):
        tc.IncidenceIndex.build(graph)


@pytest.mark.parametrize(
    "name", ["SubgraphRepresentation", "LazySubgraphRepresentation", "KHopSubgraph", "Perturbation"]
)
@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("gene", "x", torch.ones(5, 2)),
        ("gene", "x", torch.ones(9)),
        ("gene", "x", torch.tensor(1.0)),
        (("reaction", "rmr", "metabolite"), "stoichiometry", torch.ones(2)),
    ],
)
def test_fields_that_are_cut_have_a_row_for_each(tmp_path: Path, name, where, field, value) -> None:
    """Found when the store is made, not when it is read."""
    graph = tc.testing.tiny_graph()
    graph[where][field] = value
    source, processor = tc.testing.tiny_source(3, graph), getattr(tc, name)(*[1][: name == "KHopSubgraph"])
    with pytest.raises(tc.errors.CacheError, match=rf"{field} of the base graph's .*expected \d+ rows"):
        tc.build(tmp_path / "s", source=source, processor=processor, progress=False)
