"""Law 1 on real yeast data: STRING networks, yeast-GEM and FBA knock-outs. Set TORCHCELL_CACHE_YEAST to the folder."""

import os
from pathlib import Path

import numpy as np
import oracle
import pytest
from torch_geometric.data import HeteroData
from yeast_folder import graph_by_hand

import torchcell_cache as tc

pytestmark = pytest.mark.real_data
FOLDER = os.environ.get("TORCHCELL_CACHE_YEAST")


@pytest.fixture(scope="module")
def yeast() -> tuple[HeteroData, Path]:
    if not FOLDER or not Path(FOLDER).is_dir():
        pytest.skip("TORCHCELL_CACHE_YEAST does not name the yeast data folder")
    pytest.importorskip("cobra.io")
    folder = Path(FOLDER)
    return graph_by_hand(folder), folder


@pytest.mark.parametrize("gpr", ["any", "rule"])
@pytest.mark.parametrize("kind", ["lazy", "subgraph"])
def test_knockouts_equal_the_plain_definition_in_every_storage(
    tmp_path: Path, yeast, kind: str, gpr: str
) -> None:
    graph, folder = yeast
    source = tc.PerturbationTable.from_csv(folder / "fba_knockouts.tsv.gz", graph, phenotypes=["fitness"])
    assert len(source) == 146_207
    chosen = np.random.default_rng(0).choice(len(source), 40, replace=False)
    table = source.table
    few = tc.PerturbationTable(
        graph,
        [table.ids[table.ptr[k] : table.ptr[k + 1]].tolist() for k in chosen],
        phenotypes={"fitness": [float(table.values[k, 0]) for k in chosen]},
    )
    processor = {"lazy": tc.LazySubgraphRepresentation, "subgraph": tc.SubgraphRepresentation}[kind](gpr=gpr)
    define = {"lazy": oracle.lazy, "subgraph": oracle.subgraph}[kind]
    stores = [
        tc.build(tmp_path / s, source=few, processor=processor, storage=s, shard_size=16, progress=False)
        for s in ("perturbation", "delta", "full")
    ]
    for row in range(0, len(few), 4):
        sample = few[row]
        values = [{"fitness": float(sample.values[0, 0])}]
        want = define(graph, sample.perturbed.tolist(), values, ("fitness",), (), gpr)
        for ds in stores:
            oracle.assert_stores_equal(oracle.stores_of(ds[row]), want)


def test_all_knockouts_build_and_verify(tmp_path: Path, yeast) -> None:
    graph, folder = yeast
    source = tc.PerturbationTable.from_csv(folder / "fba_knockouts.tsv.gz", graph, phenotypes=["fitness"])
    ds = tc.build(
        tmp_path,
        source=source,
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        num_workers=2,
        progress=False,
    )
    assert len(ds) == 146_207
    edges = np.concatenate([graph[k].edge_index.numpy() for k in graph.edge_types if k[2] == "gene"], axis=1)
    removed = ds.columns["removed_edges"]
    for k in range(0, len(ds), 9_999):
        lost = ds.perturbed[k] if k < 1 else source[k].perturbed
        assert removed[k] == np.isin(edges, lost).any(axis=0).sum()
    assert tc.verify(tmp_path, level="full").ok
