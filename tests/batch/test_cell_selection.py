"""Node selection on stores of cells: what PyG's ``subgraph`` makes of each cell, and the genes expressed most."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import INSTALLED, REASON, dense_on, gene_graph, made_up, write
from services import require
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GraphConv

import torchcell_cache as tc
from torchcell_cache.graph.compare import first_difference

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
GENES = [f"Q{k}" for k in range(20)]
PICKED = [17, 2, 5, 11]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A file of 30 cells, the cells, and a directory."""
    require(INSTALLED, REASON)
    root = tmp_path_factory.mktemp("selection")
    cells = made_up(30, GENES)
    cells.obs["guide"] = [["ctrl", "Q3", "Q7+Q1"][k % 3] for k in range(30)]
    return write(cells, root / "c.h5ad"), cells, root


def store(made: Any, name: str, graph: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    path, _, root = made
    source = tc.AnnDataSource(path, gene_graph(GENES, 2) if graph is None else graph, **kwargs)
    return tc.build(root / name, source=source, processor=None, storage="delta", progress=False), source


def oracle(sample: Any, nodes: list[int], kind: str | None) -> Any:
    """PyG's own subgraph, the lists that it leaves alone cut too."""
    keep = torch.tensor(sorted(nodes))
    out = sample.clone()
    store = out._store if kind is None else out[kind]
    store.__dict__.pop("_cached_attr", None)  # PyG's memory of what is a node field
    for name in ("node_ids", "ids_pert", "perturbation_indices"):
        if name in store:
            store[name] = 0  # in its place, so that the order of the fields stays
    part = out.subgraph(keep) if kind is None else out.subgraph({kind: keep})
    names, before = part if kind is None else part[kind], sample if kind is None else sample[kind]
    names.node_ids = [before.node_ids[k] for k in keep.tolist()]
    names.num_nodes = len(keep)
    if "ids_pert" in before:
        ids = before.perturbation_indices.tolist()
        names.perturbation_indices = torch.tensor(
            [sorted(nodes).index(k) for k in ids if k in nodes], dtype=torch.int64
        )
        names.ids_pert = [before.node_ids[k] for k in ids if k in nodes]
    return part


@pytest.mark.parametrize("storage", ["delta", "full"])
def test_restricted_cells_are_pygs_subgraphs(made: Any, storage: str) -> None:
    path, _, root = made
    source = tc.AnnDataSource(path, gene_graph(GENES, 2), categories=["cell_type"], y="cell_type")
    ds = tc.build(root / f"plain-{storage}", source=source, processor=None, storage=storage, progress=False)
    rows = [4, 0, 29, 4]
    batch = ds.read_batch(rows)
    small = batch.restrict("gene", PICKED)
    wanted = [oracle(source[k], PICKED, "gene") for k in rows]
    for at in range(4):
        assert first_difference(small[at], wanted[at]) is None
    assert first_difference(small.to_pyg(), Batch.from_data_list(wanted)) is None
    assert small.nodes.tolist() == sorted(PICKED)
    assert torch.equal(small.features("gene"), batch.features("gene")[:, sorted(PICKED)])
    assert small.names("cell_type") == batch.names("cell_type")
    base = oracle(ds.base_graph, PICKED, "gene")
    edges = "gene", "physical", "gene"
    assert torch.equal(small.base_graph[edges].edge_index, base[edges].edge_index)
    for other in (pickle.loads(pickle.dumps(small)), small.to("cpu"), small.pin_memory()):
        assert torch.equal(other.features("gene"), small.features("gene").clone())
        assert torch.equal(other.nodes, small.nodes)
    with pytest.raises(tc.errors.SettingError, match="restricted to 4 nodes already"):
        small.restrict("gene", [1])
    layer = GraphConv(3, 2)
    dense = layer(small.features("gene").clone(), small.base_graph[edges].edge_index)
    pyg = small.to_pyg()
    assert torch.allclose(dense.flatten(0, 1), layer(pyg["gene"].x, pyg[edges].edge_index), atol=1e-5)


def test_most_expressed_is_the_mean_over_the_batch(made: Any) -> None:
    _, cells, _ = made
    for name, kwargs in (("x", {}), ("own", {"field": "expression"}), ("col", {"column": 1})):
        ds, _ = store(made, f"most-{name}", **kwargs)
        rows = [1, 7, 13, 20]
        mean = dense_on(cells, GENES)[rows].astype(np.float64).mean(axis=0)
        wanted = sorted(np.lexsort((np.arange(20), -mean))[:6].tolist())
        batch = ds.read_batch(rows)
        assert batch.select_nodes("gene", 6).nodes.tolist() == wanted
        given = torch.from_numpy(dense_on(cells, GENES)[rows])
        assert batch.select_nodes("gene", 6, values=given).nodes.tolist() == wanted
        if name == "own":
            assert batch.select_nodes("gene", 6, values="expression").nodes.tolist() == wanted
        else:
            number = 2 if name == "x" else 1
            assert batch.select_nodes("gene", 6, values=number).nodes.tolist() == wanted
            with pytest.raises(tc.errors.SettingError, match=r"has the columns 0\.\."):
                batch.select_nodes("gene", 6, values=3)


def test_a_draw_among_the_expressed_genes(made: Any) -> None:
    _, cells, _ = made
    ds, _ = store(made, "draw", target_sum=1e4, log1p=True)
    batch = ds.read_batch([2])
    expressed = set(np.flatnonzero(dense_on(cells, GENES)[2]).tolist())
    draws = [
        batch.select_nodes("gene", 3, strategy="random_expressed", step=k, weighted=k % 2 > 0).nodes.tolist()
        for k in range(12)
    ]
    assert all(set(nodes) <= expressed and len(nodes) == 3 for nodes in draws)
    assert len({tuple(nodes) for nodes in draws}) > 3
    again = ds.read_batch([2]).select_nodes("gene", 3, strategy="random_expressed", step=0)
    assert again.nodes.tolist() == draws[0]
    assert batch.select_nodes("gene", strategy="all").nodes.tolist() == list(range(20))


def test_perturbed_genes_are_always_there(made: Any) -> None:
    ds, source = store(made, "pert", perturbation="guide")
    rows = [1, 2, 3]
    batch = ds.read_batch(rows)
    small = batch.select_nodes("gene", 5)
    assert {1, 3, 7} <= set(small.nodes.tolist())
    nodes = small.nodes.tolist()
    assert [nodes[k] for k in small.perturbed.tolist()] == [3, 1, 7]
    assert small.perturbed_ptr.tolist() == [0, 1, 3, 3]
    wanted = [oracle(source[k], nodes, "gene") for k in rows]
    assert first_difference(small.to_pyg(), Batch.from_data_list(wanted)) is None
    with pytest.raises(tc.errors.SettingError, match=r"nodes \[3\] are perturbed in cells of this batch"):
        batch.restrict("gene", [1, 7, 9])
    without = batch.restrict(
        "gene", [1, 7], allow_wild_type=True
    )  # as many nodes as the second cell perturbs
    assert [list(cell["gene"].ids_pert) for cell in without] == [[], ["Q1", "Q7"], []]
    near = batch.select_nodes("gene", 8, strategy="perturbed_neighbourhood")
    assert {1, 3, 7} <= set(near.nodes.tolist())
    assert len(near.nodes) == 8
    with pytest.raises(tc.errors.SettingError, match="perturb 3 different nodes"):
        batch.select_nodes("gene", 2)


def test_a_homogeneous_graph_and_stores_that_grew(made: Any) -> None:
    _, _, root = made
    graph = Data(edge_index=torch.randint(20, (2, 47)), num_nodes=20)
    graph.node_ids = GENES
    ds, source = store(made, "data", graph)
    small = ds.read_batch([0, 5]).restrict(None, PICKED)
    wanted = [oracle(source[k], PICKED, None) for k in (0, 5)]
    assert first_difference(small.to_pyg(), Batch.from_data_list(wanted)) is None
    more = made_up(9, GENES, seed=4)
    grown = tc.append(
        root / "data", tc.AnnDataSource(write(more, root / "d.h5ad"), graph), progress=False
    ).dataset
    mean = dense_on(more, GENES)[[0, 8]].astype(np.float64).mean(axis=0)
    wanted = sorted(np.lexsort((np.arange(20), -mean))[:4].tolist())
    assert grown.read_batch([30, 38]).select_nodes(None, 4).nodes.tolist() == wanted
    tc.save_subset(grown[[30, 38]], root / "part")
    part = tc.PreprocessedDataset(root / "part").read_batch([0, 1])
    assert part.select_nodes(None, 4).nodes.tolist() == wanted


def halve(graph: Any) -> Any:
    edges = graph["gene", "physical", "gene"]
    edges.edge_index = edges.edge_index[:, ::2]
    return graph


def test_cells_whose_edges_a_processor_changed_are_refused(made: Any) -> None:
    path, _, root = made
    source = tc.AnnDataSource(path, gene_graph(GENES))
    ds = tc.build(root / "halved", source=source, processor=halve, storage="delta", progress=False)
    with pytest.raises(tc.errors.SettingError, match="holds whole graphs"):
        ds.read_batch([0]).select_nodes("gene", 4)


def test_a_loader_of_selected_cells(made: Any, tmp_path: Path) -> None:
    ds, _ = store(made, "loader")
    for batch in tc.CacheLoader(ds, batch_size=10, num_workers=1):
        assert batch.select_nodes("gene", 4).features("gene").shape == (10, 4, 3)
