"""The helpers users run on their own processors and sources."""

import copy
import math
import random

import pytest
import torch
from graphs import cell_graph, plain_graph, random_case
from torch_geometric.data import Batch, Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.testing import assert_same_graph, check_processor, check_source, tiny_graph, tiny_source


def sample():
    graph = HeteroData()
    graph["gene"].x = torch.tensor([[1.0, math.nan], [3.0, 0.0]])
    graph["gene"].node_ids = ["a", "b"]
    graph["gene"].num_nodes = 2
    graph["gene"].flag = True
    graph["gene"].nested = {"k": (1, [2.0, None]), "z": b"x"}
    graph["gene"].h = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    graph["gene"].c = torch.tensor([1 + 2j])
    graph["gene"].empty = torch.zeros(0, 3)
    graph["gene", "to", "gene"].edge_index = torch.tensor([[0], [1]])
    graph.y = torch.tensor([1.5])
    return graph


def put(store, name, value):
    def change(graph):
        (graph if store is None else graph[store])[name] = value

    return change


def drop_and_append(graph):
    value = graph["gene"]._mapping.pop("x")
    graph["gene"]._mapping["x"] = value


def swap_stores(graph):
    graph["first"].x = torch.ones(1)
    graph.__dict__["_node_store_dict"] = {k: graph._node_store_dict[k] for k in ("first", "gene")}


GENE = "gene"
CHANGES = {
    "value": (put(GENE, "x", torch.tensor([[1.0, math.nan], [3.5, 0.0]])), r"gene\.x: element \[1, 0\] is 3.5, expected 3.0"),
    "negative zero": (put(GENE, "x", torch.tensor([[1.0, math.nan], [3.0, -0.0]])), r"gene\.x: element \[1, 1\] is -0.0"),
    "dtype": (put(GENE, "x", torch.tensor([[1.0, math.nan], [3.0, 0.0]]).double()), r"gene\.x: has dtype torch.float64"),
    "shape": (put(GENE, "empty", torch.zeros(3, 0)), r"gene\.empty: has shape \[3, 0\], expected \[0, 3\]"),
    "bfloat16": (put(GENE, "h", torch.tensor([1.0, 2.5], dtype=torch.bfloat16)), r"gene\.h: element \[1\]"),
    "complex": (put(GENE, "c", torch.tensor([1 - 2j])), r"gene\.c: element"),
    "bool for int": (put(GENE, "flag", 1), r"gene\.flag: is a int 1, expected bool True"),
    "text": (put(GENE, "node_ids", ["a", "c"]), r"gene\.node_ids: item 1 is 'c', expected 'b'"),
    "tuple for list": (put(GENE, "node_ids", ("a", "b")), r"gene\.node_ids: is a tuple"),
    "length": (put(GENE, "node_ids", ["a"]), r"gene\.node_ids: has 1 items, expected 2"),
    "nested": (put(GENE, "nested", {"k": (1, [2, None]), "z": b"x"}), r"gene\.nested: \['k'\] item 1 item 0 is a int"),
    "dict order": (put(GENE, "nested", {"z": b"x", "k": (1, [2.0, None])}), r"gene\.nested: keys: order"),
    "extra key": (put(GENE, "more", 1), r"keys of gene: not expected \['more'\]"),
    "extra global": (put(None, "more", 1), r"keys of \(global\): not expected"),
    "key order": (drop_and_append, r"keys of gene: order"),
    "missing edge": (put(("gene", "to", "gene"), "edge_index", torch.zeros(2, 0).long()), r"gene\|to\|gene\.edge_index: has"),
    "extra store": (put("other", "x", 1), r"stores: not expected \['other'\]"),
}  # fmt: skip


def test_the_same_graph_is_the_same() -> None:
    assert_same_graph(sample(), sample())
    assert_same_graph(plain_graph(), plain_graph())
    assert_same_graph(Data(), Data())


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_every_difference_is_named(change, message) -> None:
    changed = copy.deepcopy(sample())
    change(changed)
    with pytest.raises(AssertionError, match=message):
        assert_same_graph(changed, sample())


def test_order_of_stores_counts() -> None:
    one, other = sample(), sample()
    other["first"].x = torch.ones(1)
    swap_stores(one)
    with pytest.raises(AssertionError, match="stores: order"):
        assert_same_graph(one, other)


def test_kinds_of_graphs_and_other_things() -> None:
    with pytest.raises(AssertionError, match="is a Data, expected HeteroData"):
        assert_same_graph(Data(), HeteroData())
    with pytest.raises(AssertionError, match="expected Data, HeteroData or a Batch"):
        assert_same_graph([1], Data())


def test_one_element_of_a_strided_column_is_comparable() -> None:
    column = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:1, 1]
    assert column.stride() == (2,)
    assert_same_graph(Data(y=column), Data(y=torch.tensor([2.0])))
    with pytest.raises(AssertionError, match="y"):
        assert_same_graph(Data(y=column), Data(y=torch.tensor([2.5])))


def test_nan_is_compared_by_its_bits() -> None:
    odd = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert_same_graph(Data(x=odd), Data(x=odd.clone()))
    with pytest.raises(AssertionError, match="element"):
        assert_same_graph(Data(x=odd), Data(x=torch.tensor([math.nan])))
    assert_same_graph(Data(y=math.nan), Data(y=math.nan))
    with pytest.raises(AssertionError, match=r"expected 0\.0"):
        assert_same_graph(Data(y=-0.0), Data(y=0.0))


def test_batches_are_compared_with_what_they_know_of_their_parts() -> None:
    source, processor = random_case(cell_graph()).source(), tc.LazySubgraphRepresentation()

    def batch(*indices):
        return Batch.from_data_list([processor(source[k]) for k in indices])

    assert_same_graph(batch(1, 2), batch(1, 2))
    with pytest.raises(AssertionError):
        assert_same_graph(batch(1, 2), batch(2, 1))
    one, other = (Batch.from_data_list([plain_graph(), plain_graph()]) for _ in range(2))
    assert_same_graph(one, other)
    one._slice_dict["x"][1] += 1
    with pytest.raises(AssertionError, match="_slice_dict of the batch"):
        assert_same_graph(one, other)


@pytest.mark.parametrize("options", [{}, {"metabolism": False}, {"num_features": 0}, {"homogeneous": True}])
@pytest.mark.parametrize("name", ["LazySubgraphRepresentation", "SubgraphRepresentation", "Perturbation"])
def test_tiny_graphs_are_good_base_graphs(options, name) -> None:
    source = tiny_source(6, tiny_graph(**options))
    assert check_source(source) == []
    processor = getattr(tc, name)()
    for index in range(6):
        assert processor(source[index]) is not None


def test_tiny_graph_has_the_awkward_parts() -> None:
    graph = tiny_graph()
    edges = graph["gene", "physical", "gene"].edge_index
    assert edges[:, 0].tolist() == edges[:, 1].tolist()
    assert (edges[0] == edges[1]).any()
    assert 7 not in edges
    assert graph["gene", "genetic", "gene"].edge_index.shape == (2, 0)
    assert_same_graph(tiny_graph(seed=3), tiny_graph(seed=3))
    assert tc.LazySubgraphRepresentation(gpr="rule")(tiny_source()[2]) is not None


def unsorted_set(sample):
    return Data(names=list({f"name{k}" for k in range(40)}), x=torch.ones(1))


def noisy(sample):
    return Data(x=torch.tensor([random.random()]))


def changes_base(sample):
    sample.base_graph["gene"].x[0, 0] += 1
    return Data(x=sample.base_graph["gene"].x.clone())


def sometimes_a_field(sample):
    return Data(x=torch.ones(1)) if sample.index % 2 else Data(x=torch.ones(1), z=1)


def sometimes_double(sample):
    return Data(x=torch.ones(1, dtype=torch.float64 if sample.index else torch.float32))


def bad_names(sample):
    return Data(pert_index=torch.ones(2), my_batch=torch.ones(1), face=torch.ones(1), ptr=1, num_nodes=2)


def unstorable(sample):
    return Data(x=object())


FINDINGS = {
    unsorted_set: "PYTHONHASHSEED",
    noisy: "a second run gives another result: x: element",
    changes_base: "changes the base graph",
    sometimes_a_field: r"different fields: (missing|not expected|missing .*)",
    sometimes_double: "float64",
    bad_names: "pert_index",
    unstorable: "x is a builtins.object",
}


@pytest.mark.parametrize(("processor", "finding"), FINDINGS.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_check_processor_finds_what_is_wrong(processor, finding) -> None:
    import re

    found = check_processor(processor, tiny_source())
    assert found
    assert any(re.search(finding, text) for text in found), found


def test_check_processor_names_every_risky_attribute() -> None:
    found = "\n".join(check_processor(bad_names, tiny_source()))
    assert all(name in found for name in ("pert_index", "my_batch", "face", "ptr"))


def test_good_processors_pass() -> None:
    assert check_processor(tc.LazySubgraphRepresentation(), tiny_source(), 3) == []
    assert check_processor(lambda sample: Data(x=torch.ones(sample.index)), tiny_source()) == []
    assert check_processor(None, [Data(x=torch.ones(2)), Data(x=torch.ones(3))]) == []


def test_check_source_finds_what_is_wrong() -> None:
    class Source(list):
        def __getitem__(self, index):
            return Data(x=torch.tensor([random.random()]))

    found = "\n".join(check_source(Source([1, 2])))
    assert "is another one when it is read again" in found
    assert "a second read gives another graph" in found
    assert "raises nothing, expected IndexError" in found
    assert check_source(random_case(cell_graph()).source()) == []
    assert check_source([plain_graph(), plain_graph(seed=1)]) == []
    assert any("__len__" in text or "len()" in text for text in check_source(3))


def test_check_source_compares_the_table_with_the_samples() -> None:
    class Shifted(tc.PerturbationTable):
        def __getitem__(self, index):
            return super().__getitem__(index if index >= len(self) else (index + 1) % len(self))

    inner = tiny_source()
    source = Shifted(inner.base_graph, [[0], [1, 2], [3]], phenotypes={"a": [1, 2, 3]})
    assert any("differs from the table's row" in text for text in check_source(source))
