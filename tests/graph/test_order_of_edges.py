"""A base graph made from Python sets: its edges come in another order in each process, and the store stands all the same."""

import sys
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.graph.compare import reordered_parts

NAMES = [f"G{k}" for k in range(12)]
PAIRS = [(a, b) for a in range(12) for b in range(a) if (a * 7 + b) % 3 == 0]
same = tc.testing.assert_same_graph


def cell(order: list[int] | None = None, **change: Any) -> HeteroData:
    """A cell whose edges, reactions' genes and dicts are in an order of one's own."""
    order = list(range(len(PAIRS))) if order is None else order
    pairs = torch.tensor(PAIRS).t()[:, order]
    graph = HeteroData()
    graph["gene"].node_ids = list(NAMES)
    graph["gene"].num_nodes = len(NAMES)
    graph["gene"].x = torch.arange(24.0).view(12, 2)
    graph["gene", "physical", "gene"].edge_index = pairs.contiguous()
    graph["gene", "physical", "gene"].edge_attr = torch.arange(float(len(PAIRS)))[order]
    graph["gene", "physical", "gene"].source = [f"lab {k % 2}" for k in order]
    graph["reaction"].num_nodes = 4
    columns = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]])[:, sorted(range(5), key=lambda k: order[k])]
    graph["gene", "gpr", "reaction"].hyperedge_index = columns
    graph["gene", "gpr", "reaction"].num_edges = 4
    genes = {
        f"r{k}": [NAMES[g] for g in columns[0][columns[1] == k].tolist()] for k in set(order) & {0, 1, 2}
    }
    graph["gene", "gpr", "reaction"].genes = genes
    graph["gene", "gpr", "reaction"].indices = {k: [NAMES.index(g) for g in v] for k, v in genes.items()}
    for name, value in change.items():
        graph["gene", "physical", "gene"][name] = value
    return graph


ORDERS = [list(reversed(range(len(PAIRS)))), [*range(5, len(PAIRS)), *range(5)]]


def table(graph: Any, count: int = 6, first: int = 0) -> tc.PerturbationTable:
    names = [[NAMES[k % 12], NAMES[(k * 5 + 1) % 12]] for k in range(first, first + count)]
    labels = [float(k) for k in range(first, first + count)]
    return tc.PerturbationTable(
        graph, [list(dict.fromkeys(n)) for n in names], phenotypes={"f": labels}, node_type="gene"
    )


class Ends:
    """A user's own processor, whose result depends on the order of edges."""

    def process(self, base_graph: Any, sample: Any) -> Data:
        index = base_graph["gene", "physical", "gene"].edge_index
        touched = torch.isin(index, torch.from_numpy(sample.perturbed)).any(dim=0)
        return Data(edges=touched.nonzero().flatten(), y=torch.from_numpy(sample.values[0]))

    def settings(self) -> dict[str, Any]:
        return {}


CASES = [
    (tc.LazySubgraphRepresentation(), "perturbation"),
    (tc.LazySubgraphRepresentation(), "delta"),
    (tc.SubgraphRepresentation(), "delta"),
    (tc.LazySubgraphRepresentation(), "full"),
    (Ends(), "full"),
    (Ends(), "delta"),
]


@pytest.mark.parametrize(
    ("processor", "storage"), CASES, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_everything_goes_on_the_stored_graph(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], processor: Any, storage: str
) -> None:
    order = ORDERS[storage == "delta"]
    options: dict[str, Any] = {"processor": processor, "storage": storage, "shard_size": 4}
    tc.build(tmp_path, source=table(cell()), **options, progress=False)
    capfd.readouterr()
    dataset = tc.build(tmp_path, source=table(cell(order)), **options)
    said = capfd.readouterr().err
    assert said.count("another order") == 1
    assert "gene|physical|gene" in said.replace("', '", "|")
    same(dataset.base_graph, cell())

    def check(dataset: Any, count: int) -> None:
        whole = table(cell(), count)
        assert len(dataset) == count
        for k, graph in enumerate(dataset):
            same(graph, processor.process(cell(), whole[k]))

    check(dataset, 6)
    tc.PreprocessedDataset(tmp_path, source_dataset=table(cell(order)))
    grown = tc.append(tmp_path, table(cell(order), 3, 6), processor)
    assert capfd.readouterr().err.count("another order") == 1
    same(grown.dataset.base_graph, cell())
    check(grown.dataset, 9)
    changed = tc.update(tmp_path, table(cell(order), 10), processor, progress=False)
    check(changed.dataset, 10)
    assert changed.recomputed < 10
    report = tc.verify(tmp_path, source=table(cell(order), 10), processor=processor, progress=False)
    assert report.ok, report
    assert "another order" in str(report)
    shard = next((changed.dataset.generation.directory).glob("shard-00001.lmdb"))
    shard.chmod(0o644)
    shard.write_bytes(b"damaged")
    tc.repair(tmp_path, table(cell(order), 10), processor, progress=False)
    check(tc.PreprocessedDataset(tmp_path), 10)


@pytest.mark.parametrize(
    "change",
    [
        {"edge_attr": torch.arange(float(len(PAIRS))) + 1},
        {"edge_attr": torch.zeros(len(PAIRS))},
        {"source": ["lab 0"] * len(PAIRS)},
        {"source": [f"lab {(k + 1) % 2}" for k in ORDERS[0]]},
        {"edge_index": torch.tensor(PAIRS).t().flip(0)},
        {"extra": torch.ones(3)},
    ],
)
def test_another_edge_is_another_graph(tmp_path: Path, change: dict[str, Any]) -> None:
    assert reordered_parts(cell(), cell(ORDERS[0])) is not None
    assert reordered_parts(cell(), cell(ORDERS[0], **change)) is None
    processor = tc.LazySubgraphRepresentation()
    tc.build(tmp_path, source=table(cell()), processor=processor, progress=False)
    with pytest.raises(tc.errors.StaleCacheError):
        tc.build(tmp_path, source=table(cell(ORDERS[0], **change)), processor=processor, progress=False)


def test_order_matters_where_it_says_something() -> None:
    one, other = cell(), cell()
    other["gene"].node_ids = other["gene"].node_ids[::-1]
    assert reordered_parts(one, other) is None
    other = cell()
    other["gene", "gpr", "reaction"].indices["r0"].reverse()  # no longer the indices of the genes beside it
    assert reordered_parts(one, other) is None
    other["gene", "gpr", "reaction"].genes["r0"].reverse()
    assert reordered_parts(one, other) == ["gene|gpr|reaction"] or reordered_parts(one, other)
    layers = [HeteroData(), HeteroData()]
    for graph, sizes in zip(layers, ([64, 32], [32, 64]), strict=True):
        graph["gene"].num_nodes = 3
        graph["gene"].sizes = sizes
    assert reordered_parts(*layers) is None


def test_samples_that_are_graphs_are_not_moved(tmp_path: Path) -> None:
    """Masks of their own would fit the other order."""

    def source(order: list[int] | None, count: int) -> Any:
        graph = cell(order)
        samples = [Data(mask=torch.arange(len(PAIRS)) == k) for k in range(count)]
        return tc.sources.PygSource(samples, base_graph=graph)

    tc.build(tmp_path, source=source(None, 3), storage="full", progress=False)
    with pytest.raises(tc.errors.StaleCacheError, match="another base graph"):
        tc.append(tmp_path, source(ORDERS[0], 2), progress=False)


@settings(max_examples=60, deadline=None)
@given(
    edges=st.lists(st.tuples(*[st.integers(0, 3)] * 2, st.integers(0, 1)), max_size=8),
    data=st.data(),
    flip=st.booleans(),
)
def test_the_multiset_of_edges_decides(edges: list[tuple[int, int, int]], data: Any, flip: bool) -> None:
    """Against Python's own sorting, homogeneous graphs included; edges may occur twice."""
    other = data.draw(st.permutations(edges))
    if flip and other:
        at = data.draw(st.integers(0, len(other) - 1))
        a, b, w = other[at]
        other = [*other[:at], (b, a, w), *other[at + 1 :]]

    def graph(rows: list[tuple[int, int, int]]) -> Data:
        ends = torch.tensor([[r[0] for r in rows], [r[1] for r in rows]], dtype=torch.int64).view(
            2, len(rows)
        )
        return Data(
            x=torch.zeros(4, 1), edge_index=ends, edge_attr=torch.tensor([r[2] for r in rows]).float()
        )

    parts = reordered_parts(graph(edges), graph(other))
    assert (parts is not None) == (sorted(edges) == sorted(other))
    assert bool(parts) == (sorted(edges) == sorted(other) and edges != other)


SCRIPT = """
import sys, torch, torchcell_cache as tc
from torch_geometric.data import HeteroData
names = [f"G{k}" for k in range(9)]
links = {(a, b) for a in names for b in names if a < b}
cell = HeteroData()
cell["gene"].node_ids, cell["gene"].num_nodes = names, len(names)
cell["gene", "to", "gene"].edge_index = torch.tensor([[names.index(a), names.index(b)] for a, b in links]).t().contiguous()
rows = [["G0"], ["G3", "G4"], ["G8"]]
first = tc.PerturbationTable(cell, rows[:2], phenotypes={"f": [0.5, 0.25]})
for storage in ("delta", "perturbation", "full"):
    root = f"{sys.argv[1]}/{storage}"
    tc.build(root, source=first, processor=tc.LazySubgraphRepresentation(), storage=storage, progress=False)
    dataset = tc.append(root, tc.PerturbationTable(cell, rows[2:], phenotypes={"f": [1.0]}), progress=False).dataset \\
        if sys.argv[2] == "append" else tc.PreprocessedDataset(root)
    for graph in dataset:
        store = graph["gene", "to", "gene"]
        kept = store.edge_index[:, store.mask]
        gone = set(graph["gene"].perturbation_indices.tolist())
        print(len(gone), kept.size(1), bool(gone & set(kept.flatten().tolist())))
"""


def test_processes_with_other_hash_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "build"])
    exec(SCRIPT, {})  # here Python drew its seed, there it has one that nobody draws
    done = fresh.run([sys.executable, "-c", SCRIPT, str(tmp_path), "append"], text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 28 False", "2 21 False", "1 28 False"] * 3


def ontology(order: list[int], **change: Any) -> HeteroData:
    """Genes annotated with terms, as torchcell's graph has them: rows come from sets of genes."""
    rows = torch.tensor([(0, 1), (0, 4), (1, 4), (2, 7), (2, 9)])[order]
    graph = HeteroData()
    graph["gene"].num_nodes = 12
    terms = graph["gene_ontology"]
    terms.num_nodes = 3
    terms.term_gene_mapping = rows
    terms.term_to_gene_dict = {t: [g for term, g in rows.tolist() if term == t] for t in (0, 1, 2)}
    state = torch.cat([rows.float(), rows[:, :1].float(), torch.ones(5, 1)], dim=1)
    terms.go_gene_strata_state = state
    terms.strata = torch.tensor([0, 1, 2])
    graph["gene", "has_annotation", "gene_ontology"].edge_index = rows.flip(1).t().contiguous()
    for name, value in change.items():
        terms[name] = value
    return graph


def test_annotations_of_terms_in_another_order() -> None:
    one, other = ontology([0, 1, 2, 3, 4]), ontology([4, 1, 0, 3, 2])
    assert len(reordered_parts(one, other) or ()) == 2
    assert reordered_parts(one, ontology([0, 1, 2, 3, 4])) == []
    broken = other["gene_ontology"].go_gene_strata_state.clone()
    broken[2, 2] += 1
    for change in (
        {"go_gene_strata_state": broken},
        {"term_to_gene_dict": {0: [1, 4], 1: [4], 2: [7]}},
        {"strata": torch.tensor([1, 0, 2])},
        {"term_gene_mapping": other["gene_ontology"].term_gene_mapping[[0, 1, 2, 4, 3]]},
    ):
        assert reordered_parts(one, ontology([4, 1, 0, 3, 2], **change)) is None


def test_rows_of_another_shape_or_dtype_are_other_rows() -> None:
    one = cell(more=torch.zeros(len(PAIRS), 2))
    for other in (torch.zeros(len(PAIRS), 2, 1), torch.zeros(len(PAIRS), 2, dtype=torch.int32)):
        assert reordered_parts(one, cell(ORDERS[0], more=other)) is None
    assert reordered_parts(one, cell(ORDERS[0], more=torch.zeros(len(PAIRS), 2)))
