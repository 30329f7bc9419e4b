"""Cells of H5AD files: every feature is anndata's, normalised as scanpy does it, whatever the file's form."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import pickle
import sys
from pathlib import Path

import fresh
import numpy as np
import pytest
import torch
from cells import INSTALLED, REASON, dense_on, gene_graph, made_up, read, real_file, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services import require
from torch_geometric.data import Batch, Data

import torchcell_cache as tc
from torchcell_cache.graph.compare import first_difference
from torchcell_cache.testing import assert_same_graph

if INSTALLED:
    from cells import anndata, pd, scanpy, sparse

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)

GENES = [f"G{k}" for k in range(60)]
NODES = [*reversed(GENES[:50]), "UNMEASURED", "NEITHER"]


@pytest.fixture(autouse=True)
def _libraries() -> None:
    require(INSTALLED, REASON)


def built(source, root: Path, **kwargs):
    return tc.build(root, source=source, processor=None, **{"storage": "delta", "progress": False, **kwargs})


def features(ds, column: int = 0) -> np.ndarray:
    parts = [ds.read_batch(range(k, min(k + 256, len(ds)))).features("gene") for k in range(0, len(ds), 256)]
    return torch.cat([part.clone() for part in parts])[..., column].numpy()


def normalised(cells, target_sum=1e4, log1p=True):
    out = cells.copy()
    scanpy.pp.normalize_total(out, target_sum=target_sum)
    if log1p:
        scanpy.pp.log1p(out)
    return out


# Equality


@pytest.mark.parametrize("raw", [False, True], ids=["scaled dense X", "sparse raw.X"])
def test_every_feature_of_the_real_cells_is_anndatas(raw: bool, tmp_path: Path) -> None:
    cells = read(real_file())
    matrix = cells.raw.X if raw else cells.X
    names = [*reversed(cells.var_names), "NOT-THERE"]
    source = tc.AnnDataSource(
        real_file(),
        gene_graph(names),
        raw=raw,
        phenotypes=["n_counts"],
        categories=["bulk_labels"],
        y="bulk_labels",
    )
    wanted = dense_on(cells, names, matrix)
    ds = built(source, tmp_path, shard_size=300)
    assert np.array_equal(features(ds).view(np.uint32), wanted.view(np.uint32))
    for k in (0, 299, 300, 699):
        assert first_difference(ds[k], source[k]) is None
        assert np.array_equal(ds[k]["gene"].x[:, 0].numpy(), wanted[k])
    assert ds.base_graph.obs_categories == {"bulk_labels": list(cells.obs.bulk_labels.cat.categories)}
    assert [int(ds[k].y) for k in range(5)] == cells.obs.bulk_labels.cat.codes[:5].tolist()
    assert np.array_equal(ds.columns["n_counts"], cells.obs.n_counts.to_numpy(np.float32))


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_normalisation_is_scanpys(kind: str, tmp_path: Path) -> None:
    cells = made_up(300, GENES)
    path = write(cells, tmp_path / "cells.h5ad", kind)
    source = tc.AnnDataSource(path, gene_graph(NODES), target_sum=1e4, log1p=True)
    wanted = dense_on(normalised(cells), NODES)
    found = features(built(source, tmp_path / "store"))
    assert np.array_equal(found, wanted)
    assert found[150].max() == 0  # a cell without counts stays as it is
    plain = tc.AnnDataSource(path, gene_graph(NODES), target_sum=10.0)
    assert np.array_equal(
        features(built(plain, tmp_path / "plain")), dense_on(normalised(cells, 10.0, log1p=False), NODES)
    )


def test_values_that_are_not_counts_are_scanpys_to_rounding(tmp_path: Path) -> None:
    cells = made_up(200, GENES, floats=True)
    cells.X.data = np.abs(cells.X.data)
    source = tc.AnnDataSource(
        write(cells, tmp_path / "c.h5ad", "dense"), gene_graph(NODES), target_sum=1e3, log1p=True
    )
    np.testing.assert_allclose(
        features(built(source, tmp_path / "s")), dense_on(normalised(cells, 1e3), NODES), rtol=1e-5
    )


def test_scaled_values_are_not_taken_for_counts(tmp_path: Path) -> None:
    cells = read(real_file())
    source = tc.AnnDataSource(real_file(), gene_graph(list(cells.var_names)), log1p=True)
    with pytest.raises(tc.errors.SampleError, match="target_sum and log1p are for counts\n  fix: raw=True"):
        built(source, tmp_path)


def test_nullable_and_bool_columns(tmp_path: Path) -> None:
    cells = made_up(4, GENES)
    cells.obs["day"] = pd.array([1, None, 3, 4], dtype="Int64")
    cells.obs["treated"] = pd.array([True, False, None, True], dtype="boolean")
    source = tc.AnnDataSource(
        write(cells, tmp_path / "c.h5ad"),
        gene_graph(NODES),
        phenotypes=["day"],
        categories=["treated", "doublet"],
    )
    assert np.array_equal(source.table.values[:, 0], [1, np.nan, 3, 4], equal_nan=True)
    assert source.categories["treated"] == ["False", "True"]
    assert [source[k].obs_codes[0, 0].item() for k in range(4)] == [1, 0, -1, 1]


def test_layers_and_wide_whole_numbers(tmp_path: Path) -> None:
    cells = made_up(50, GENES)
    cells.layers["counts"] = cells.X.astype(np.int64)
    cells.layers["double"] = cells.X.toarray().astype(np.float64) * 2
    cells.X = cells.X * 0
    path = write(cells, tmp_path / "c.h5ad")
    for layer in ("counts", "double"):
        source = tc.AnnDataSource(path, gene_graph(NODES), layer=layer)
        assert np.array_equal(
            features(built(source, tmp_path / layer)), dense_on(cells, NODES, cells.layers[layer])
        )


def test_several_files_with_their_own_genes_and_categories(tmp_path: Path) -> None:
    one, two = made_up(40, GENES), made_up(30, [*GENES[30:], "UNMEASURED"], seed=1)
    two.obs["cell_type"] = pd.Categorical(["Mono"] * 10 + ["B cell"] * 20)
    files = [write(one, tmp_path / "1.h5ad", "csc"), write(two, tmp_path / "2.h5ad", "dense")]
    source = tc.AnnDataSource(
        files,
        gene_graph(NODES),
        phenotypes=["score", "n", "doublet"],
        categories=["cell_type", "batch"],
        y="cell_type",
    )
    ds = built(source, tmp_path / "store", shard_size=16)
    wanted = np.concatenate([dense_on(one, NODES), dense_on(two, NODES)])
    assert np.array_equal(features(ds), wanted)
    kinds = ds.base_graph.obs_categories
    assert kinds["cell_type"] == ["B cell", "NK", "T cell", "never seen", "Mono"]
    codes = np.array([int(ds[k].obs_codes[0, 0]) for k in range(70)])
    names = [*one.obs["cell_type"].astype(object), *two.obs["cell_type"].astype(object)]
    assert [kinds["cell_type"][c] if c >= 0 else None for c in codes] == [
        name if isinstance(name, str) else None for name in names
    ]
    assert codes[1] == -1 == int(ds[1].y)
    batch = ds.read_batch([1, 0, 69])
    assert torch.isnan(batch.labels("cell_type")[0])
    assert batch.labels("cell_type")[1:].tolist() == [codes[0], codes[69]]
    obs = pd.concat([one.obs, two.obs])
    assert np.array_equal(ds.columns["score"], obs["score"].to_numpy(np.float32))
    assert np.array_equal(ds.columns["doublet"], obs["doublet"].to_numpy(np.float32))
    assert ds[5].obs_values.tolist() == [obs[["score", "n", "doublet"]].iloc[5].to_numpy(np.float32).tolist()]
    assert ds.phenotype_info == ["score", "n", "doublet", "cell_type", "batch"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 1 << 30), st.sampled_from(["csr", "csc"]), st.sampled_from(["<f4", "<f8", "<i4", "|u1"])
)
def test_any_matrix_is_read_as_anndata_reads_it(tmp_path: Path, seed: int, kind: str, dtype: str) -> None:
    """Explicit zeros, elements out of order and named twice, NaN and infinity, cells of any length."""
    random = np.random.default_rng(seed)
    count, nnz = int(random.integers(1, 40)), int(random.integers(0, 200))
    pool = np.array([0, 1, 2, 3, 100, 7], dtype=dtype)
    if pool.dtype.kind == "f":
        pool[-3:] = np.nan, np.inf, -2.5
    place = random.integers(0, count, nnz), random.integers(0, len(GENES), nnz)
    values = pool[random.integers(0, len(pool), nnz)]
    order = np.argsort(place[0 if kind == "csr" else 1], kind="stable")
    minor = place[1 if kind == "csr" else 0][order].astype(np.int32)
    major = np.bincount(place[0 if kind == "csr" else 1], minlength=count if kind == "csr" else len(GENES))
    shape = (count, len(GENES))
    form = sparse.csr_matrix if kind == "csr" else sparse.csc_matrix
    matrix = form((values[order], minor, np.concatenate([[0], np.cumsum(major)])), shape=shape)
    cells = anndata.AnnData(matrix, var=pd.DataFrame(index=GENES))
    path = tmp_path / f"{seed}-{kind}.h5ad"
    cells.write_h5ad(path)
    source = tc.AnnDataSource(path, gene_graph(NODES))
    found = np.stack([graph["gene"].x[:, 0].numpy() for graph in source.items(0, count)])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, dense_on(cells, NODES, read(path).X))
    path.unlink()


# Alignment


def test_the_report_says_what_matched(tmp_path: Path) -> None:
    source = tc.AnnDataSource(write(made_up(5, GENES), tmp_path / "c.h5ad"), gene_graph(NODES))
    found = source.alignments[0]
    assert (found.matched, found.missing, found.unused) == (50, ("UNMEASURED", "NEITHER"), tuple(GENES[50:]))
    assert "50 of 52 genes of the base graph measured (zero: UNMEASURED, NEITHER)" in source.report()
    assert "10 of 60 variables are not in it (left out: G50, " in source.report()
    assert source.base_graph["gene"].measured.tolist() == [True] * 50 + [False] * 2


def test_genes_by_a_column_of_var(tmp_path: Path) -> None:
    cells = made_up(20, GENES)
    nodes = [name.lower() for name in NODES]
    source = tc.AnnDataSource(write(cells, tmp_path / "c.h5ad"), gene_graph(nodes), gene_column="symbol")
    assert np.array_equal(features(built(source, tmp_path / "s")), dense_on(cells, NODES))


def test_where_the_expression_goes(tmp_path: Path) -> None:
    cells = made_up(20, GENES)
    path, graph = write(cells, tmp_path / "c.h5ad"), gene_graph(NODES, features=3)
    before, wanted = copy.deepcopy(graph), dense_on(cells, NODES)
    own = graph["gene"].x
    appended = built(tc.AnnDataSource(path, graph), tmp_path / "1").read_batch([3, 4]).features()
    assert torch.equal(appended[0], torch.cat([own, torch.from_numpy(wanted[3])[:, None]], dim=1))
    replaced = built(tc.AnnDataSource(path, graph, column=1), tmp_path / "2").read_batch([3, 4]).features()
    assert torch.equal(replaced[1][:, [0, 2]], own[:, [0, 2]])
    assert np.array_equal(replaced[1][:, 1], wanted[4])
    ds = built(tc.AnnDataSource(path, graph, field="expression"), tmp_path / "3")
    assert ds[0]["gene"].x is ds.base_graph["gene"].x
    assert np.array_equal(ds.read_batch([7]).features("gene", "expression")[0, :, 0], wanted[7])
    assert first_difference(graph, before) is None


def test_a_homogeneous_graph(tmp_path: Path) -> None:
    cells = made_up(20, GENES)
    graph = Data(edge_index=torch.randint(52, (2, 90)), num_nodes=52)
    graph.node_ids = NODES
    source = tc.AnnDataSource(write(cells, tmp_path / "c.h5ad"), graph, categories=["batch"], y="batch")
    ds = built(source, tmp_path / "s")
    batch = ds.read_batch([2, 0])
    assert np.array_equal(batch.features()[..., 0], dense_on(cells, NODES)[[2, 0]])
    assert first_difference(batch.to_pyg(), Batch.from_data_list([source[2], source[0]])) is None


# Perturb-seq


def test_perturbed_genes(tmp_path: Path) -> None:
    cells = made_up(6, GENES)
    cells.obs["guide"] = pd.Categorical(["ctrl", "G3+ctrl", "G7+G2", "", "G2", "G2+G2"])
    cells.obs["second"] = ["G1", "ctrl", "ctrl", "", "ctrl", "G3"]
    path = write(cells, tmp_path / "c.h5ad")
    source = tc.AnnDataSource(path, gene_graph(NODES), perturbation=["guide", "second"])
    ds = built(source, tmp_path / "s")
    wanted = [{"G1"}, {"G3"}, {"G7", "G2"}, set(), {"G2"}, {"G2", "G3"}]
    assert [set(ds[k]["gene"].ids_pert) for k in range(6)] == wanted
    assert [{NODES[i] for i in ids} for ids in ds.perturbed] == wanted
    assert ds.columns["perturbed_count"].tolist() == [1, 1, 2, 0, 1, 2]
    batch = ds.read_batch([2, 3, 0])
    assert batch.perturbed_ptr.tolist() == [0, 2, 2, 3]
    assert first_difference(batch.to_pyg(), Batch.from_data_list([source[k] for k in (2, 3, 0)])) is None
    cells.obs["guide"] = pd.Categorical(["ctrl", "G3", "G55", "ctrl", "ctrl", "non-targeting"])
    path = write(cells, tmp_path / "d.h5ad")
    with pytest.raises(tc.errors.SourceContractError, match="'G55' is neither a node"):
        tc.AnnDataSource(path, gene_graph(NODES), perturbation="guide", control=["ctrl", "non-targeting"])
    cells.obs["guide"] = pd.Categorical(["ctrl", "G3", None, "ctrl", "ctrl", "ctrl"])
    unsaid = write(cells, tmp_path / "e.h5ad")
    with pytest.raises(
        tc.errors.SourceContractError, match=r"no value for 1 cells, the first is cell 2.*\n.*'ctrl'"
    ):
        tc.AnnDataSource(unsaid, gene_graph(NODES), perturbation="guide")
    dropped = tc.AnnDataSource(path, gene_graph(NODES), perturbation="guide", unknown="drop")
    assert [list(dropped[k]["gene"].ids_pert) for k in range(3)] == [[], ["G3"], []]


# Highly variable genes


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_highly_variable_genes_are_scanpys(flavor: str, tmp_path: Path) -> None:
    cells = made_up(300, GENES)
    path = write(cells, tmp_path / "c.h5ad")
    source = tc.AnnDataSource(
        path, gene_graph(NODES), target_sum=1e4, log1p=True, n_top_genes=12, flavor=flavor, hvg_cells=300
    )
    log = normalised(cells)
    shared = log[:, [name for name in NODES if name in GENES]].copy()
    scanpy.pp.highly_variable_genes(shared, n_top_genes=12, flavor=flavor)
    chosen = set(shared.var_names[shared.var.highly_variable])
    assert len(chosen) >= 12  # more where dispersions tie
    assert {NODES[k] for k in torch.nonzero(source.base_graph["gene"].measured).flatten()} == chosen
    keep = np.array([name in chosen for name in NODES])
    assert np.array_equal(features(built(source, tmp_path / "s")), dense_on(log, NODES) * keep)
    assert f"{len(chosen)} highly variable genes keep their expression" in source.report()
    assert (
        source.identity() != tc.AnnDataSource(path, gene_graph(NODES), target_sum=1e4, log1p=True).identity()
    )


def test_seurat_v3_looks_at_counts(tmp_path: Path) -> None:
    cells = made_up(200, GENES)
    path = write(cells, tmp_path / "c.h5ad")
    kwargs = {"target_sum": 1e4, "log1p": True, "n_top_genes": 10, "flavor": "seurat_v3"}
    if importlib.util.find_spec("skmisc") is None:
        with pytest.raises(tc.errors.SettingError, match="pip install scikit-misc"):
            tc.AnnDataSource(path, gene_graph(NODES), **kwargs)
        return
    counts = cells[:, [name for name in NODES if name in GENES]].copy()
    scanpy.pp.highly_variable_genes(counts, n_top_genes=10, flavor="seurat_v3")
    source = tc.AnnDataSource(path, gene_graph(NODES), **kwargs)
    chosen = {NODES[k] for k in torch.nonzero(source.base_graph["gene"].measured).flatten()}
    assert chosen == set(counts.var_names[counts.var.highly_variable])


def test_the_choice_looks_at_a_bounded_sample_of_cells(tmp_path: Path) -> None:
    path = write(made_up(900, GENES), tmp_path / "c.h5ad")
    some = tc.AnnDataSource(path, gene_graph(NODES), log1p=True, n_top_genes=5, hvg_cells=128)
    again = tc.AnnDataSource(path, gene_graph(NODES), log1p=True, n_top_genes=5, hvg_cells=128)
    assert some.identity() == again.identity()
    assert some.identity()["highly_variable"]["cells"] == 128


# Building


def test_chunks_single_cells_and_workers_make_the_same_store(tmp_path: Path) -> None:
    cells = made_up(150, GENES)
    cells.obs["guide"] = np.where(np.arange(150) % 3, "G4", "ctrl")
    kwargs = {"phenotypes": ["score"], "categories": ["batch"], "perturbation": "guide", "log1p": True}
    path = write(cells, tmp_path / "c.h5ad", "csc")
    source = tc.AnnDataSource(path, gene_graph(NODES), **kwargs)
    for storage in ("delta", "full"):
        here = built(source, tmp_path / f"{storage}0", storage=storage, shard_size=32)
        forked = built(source, tmp_path / f"{storage}2", storage=storage, shard_size=32, num_workers=2)
        assert here.content_digest == forked.content_digest
        for k in range(0, 150, 7):
            assert_same_graph(here[k], source[k])
    assert tc.verify(tmp_path / "delta0", source=source, progress=False).ok
    assert len(list((tmp_path / "delta0/processed").glob("gen-*/shard-*.lmdb"))) == 5


class Short(tc.AnnDataSource if INSTALLED else object):
    """Ends early."""

    def items(self, start, stop):
        return itertools.islice(super().items(start, stop), 3)

    def field_chunks(self, start, stop):
        return iter(())


def test_a_source_that_ends_early_is_an_error(tmp_path: Path) -> None:
    source = Short(write(made_up(10, GENES), tmp_path / "c.h5ad"), gene_graph(NODES))
    with pytest.raises(tc.errors.SampleError, match="asked for samples 0 to 10 and ended at 0"):
        built(source, tmp_path / "s")
    with pytest.raises(tc.errors.SampleError, match=r"sample 3: .*asked for samples 0 to 10 and ended at 3"):
        tc.build(tmp_path / "t", source=source, processor=double, storage="delta", progress=False)


def double(graph):
    graph["gene"].x = graph["gene"].x * 2
    return graph


def test_a_transform_as_processor(tmp_path: Path) -> None:
    cells = made_up(40, GENES)
    source = tc.AnnDataSource(write(cells, tmp_path / "c.h5ad"), gene_graph(NODES))
    ds = tc.build(
        tmp_path / "s",
        source=source,
        processor=double,
        storage="delta",
        num_workers=2,
        shard_size=10,
        progress=False,
    )
    assert np.array_equal(features(ds), 2 * dense_on(cells, NODES))
    with pytest.raises(tc.errors.SourceContractError, match="which would be lost"):
        tc.build(tmp_path / "t", source=source, processor=tc.LazySubgraphRepresentation(), progress=False)


def test_batches_equal_pygs_and_travel(tmp_path: Path) -> None:
    cells = made_up(70, GENES)
    source = tc.AnnDataSource(
        write(cells, tmp_path / "c.h5ad"), gene_graph(NODES, 2), categories=["cell_type"], y="cell_type"
    )
    ds = built(source, tmp_path / "s")
    rows = [5, 69, 5, 35, 1]
    batch = ds.read_batch(rows)
    pyg = Batch.from_data_list([source[k] for k in rows])
    assert first_difference(batch.to_pyg(), pyg) is None
    assert torch.equal(batch.features("gene").flatten(0, 1), pyg["gene"].x)
    unpacked = tc.SharedGraphBatch.unpack(ds.generation, batch.pack())
    assert torch.equal(unpacked.features("gene"), batch.features("gene"))
    assert torch.equal(
        built(source, tmp_path / "f", storage="full").read_batch(rows).features(), batch.features()
    )
    loader = tc.CacheLoader(ds, batch_size=16, num_workers=1)
    assert np.array_equal(torch.cat([b.features().clone() for b in loader])[..., 2], dense_on(cells, NODES))
    with pytest.raises(tc.errors.SettingError, match="no 'protein' in the samples"):
        batch.features("protein")
    with pytest.raises(tc.errors.SettingError, match=r"no tensor gene\.z"):
        batch.features("gene", "z")


def test_a_source_travels_without_what_it_has_open(tmp_path: Path) -> None:
    source = tc.AnnDataSource(write(made_up(30, GENES), tmp_path / "c.h5ad", "csc"), gene_graph(NODES))
    first = source[3]
    again = pickle.loads(pickle.dumps(source))
    assert first_difference(again[3], first) is None
    assert again.identity() == source.identity()


def test_a_remote_file(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    cells = made_up(30, GENES)
    local = write(cells, tmp_path / "c.h5ad")
    fsspec.filesystem("memory").pipe_file("/cells/c.h5ad", local.read_bytes())
    source = tc.AnnDataSource("memory://cells/c.h5ad", gene_graph(NODES), categories=["batch"])
    assert np.array_equal(
        features(built(source, tmp_path / "s", num_workers=2, shard_size=8)), dense_on(cells, NODES)
    )
    assert source.identity() == tc.AnnDataSource(local, gene_graph(NODES), categories=["batch"]).identity()
    with pytest.raises(tc.errors.SourceContractError, match="no such file"):
        tc.AnnDataSource("memory://cells/d.h5ad", gene_graph(NODES))


# Identity


def test_a_changed_file_makes_the_store_stale_and_a_touched_one_does_not(tmp_path: Path) -> None:
    cells, graph = made_up(30, GENES), gene_graph(NODES)
    path = write(cells, tmp_path / "c.h5ad")
    source = tc.AnnDataSource(path, graph)
    built(source, tmp_path / "s")
    os.utime(path, ns=(1, 1))
    with pytest.raises(tc.errors.SourceContractError, match="was changed while it was in use"):
        source[0]
    built(tc.AnnDataSource(path, graph), tmp_path / "s")  # opens: the content is the same
    cells.X.data[5] += 1
    write(cells, path)
    with pytest.raises(tc.errors.StaleCacheError, match=r"source\.files"):
        built(tc.AnnDataSource(path, graph), tmp_path / "s")
    for changed in (
        {"log1p": True},
        {"target_sum": 1e4},
        {"categories": ["batch"]},
        {"layer": None, "column": 0},
    ):
        assert tc.AnnDataSource(path, graph, **changed).identity() != tc.AnnDataSource(path, graph).identity()
    named = tc.AnnDataSource(path, graph, version="2026-11")
    assert named.identity()["version"] == "2026-11"
    assert "files" not in named.identity()


WRONG = {
    "no file": ({"files": "nowhere.h5ad"}, "nowhere.h5ad: no such file"),
    "no files": ({"files": []}, "files is empty"),
    "not hdf5": ({"files": "text.h5ad"}, "is not an H5AD file"),
    "layer": ({"layer": "counts"}, r"no layer 'counts'.*layers \[\]"),
    "raw": ({"raw": True}, "no raw/X"),
    "layer and raw": ({"raw": True, "layer": "a"}, "are two matrices"),
    "column of obs": ({"phenotypes": ["scroe"]}, "obs has no column 'scroe'; it has cell_type, batch, score"),
    "names as numbers": (
        {"phenotypes": ["cell_type"]},
        r"expected numbers\n  fix: categories=\['cell_type'\]",
    ),
    "texts as numbers": ({"phenotypes": ["batch"]}, "expected numbers"),
    "twice": ({"phenotypes": ["n"], "categories": ["n"]}, "name one twice"),
    "y": ({"y": "cell_type"}, "neither among phenotypes nor categories"),
    "gene column": ({"gene_column": "ensembl"}, "var has no column 'ensembl'; it has symbol"),
    "other names": ({"gene_column": "symbol"}, "no name in var column 'symbol' is a node"),
    "target": ({"target_sum": 0}, "expected a positive number"),
    "flavour": ({"n_top_genes": 5, "flavor": "surat"}, "'seurat', 'cell_ranger', 'seurat_v3'"),
    "top": ({"n_top_genes": 0}, "n_top_genes=0: expected a whole number from 1 on"),
    "unknown": ({"perturbation": "batch", "unknown": "ignore"}, "'error', 'skip', 'drop', 'keep'"),
    "column": ({"column": 2}, "no node field 'x'"),
    "separator": ({"separator": ""}, "separator is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_answered(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs, message = WRONG[case]
    monkeypatch.chdir(tmp_path)
    Path("text.h5ad").write_text("no")
    write(made_up(5, GENES), tmp_path / "c.h5ad")
    files = kwargs.get("files", "c.h5ad")
    rest = {key: value for key, value in kwargs.items() if key != "files"}
    with pytest.raises(tc.errors.CacheError, match=message):
        tc.AnnDataSource(files, gene_graph(NODES), **rest)


def test_graphs_and_files_that_do_not_fit(tmp_path: Path) -> None:
    cells = made_up(5, GENES)
    cells.var_names = [*GENES[:-2], "G1", "G2"]
    twice = write(cells, tmp_path / "twice.h5ad")
    with pytest.raises(tc.errors.SourceContractError, match="names 2 genes more than once: G1, G2"):
        tc.AnnDataSource(twice, gene_graph(NODES))
    path = write(made_up(5, GENES), tmp_path / "c.h5ad")
    nameless = gene_graph(NODES)
    del nameless["gene"]["node_ids"]
    with pytest.raises(tc.errors.SourceContractError, match="no node_ids"):
        tc.AnnDataSource(path, nameless)
    double_x = gene_graph(NODES, 2)
    double_x["gene"].x = double_x["gene"].x.double()
    with pytest.raises(tc.errors.SourceContractError, match=r"torch\.float64.*expected float32"):
        tc.AnnDataSource(path, double_x)
    with pytest.raises(tc.errors.SettingError, match="not one of the 2 columns"):
        tc.AnnDataSource(path, gene_graph(NODES, 2), column=2)
    taken = gene_graph(NODES)
    taken.obs_codes = torch.zeros(1)
    with pytest.raises(tc.errors.SourceContractError, match="'obs_codes' already"):
        tc.AnnDataSource(path, taken, categories=["batch"])
    source = tc.AnnDataSource(path, gene_graph(NODES))
    with pytest.raises(IndexError, match="cell 5 of 5"):
        source[5]
    assert first_difference(source[-1], source[4]) is None


# The command line


def test_the_command_line_builds_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchcell_cache.cli import main
    from torchcell_cache.graph.files import save_base_graph

    cells = made_up(20, GENES)
    path = write(cells, tmp_path / "c.h5ad")
    (tmp_path / "graph").mkdir()
    save_base_graph(gene_graph(NODES), tmp_path / "graph")
    root = f"root={tmp_path / 'store'}"
    chosen = ["source=anndata", f"source.files=[{path}]", f"source.base_graph={tmp_path / 'graph'}"]
    chosen += ["source.categories=[batch]", "source.y=batch", "source.log1p=true", "processor=none"]
    assert main(["preprocess", root, *chosen, "storage=delta", "num_workers=0"]) == 0
    assert "50 of 52 genes of the base graph measured" in capsys.readouterr().err
    ds = tc.PreprocessedDataset(tmp_path / "store")
    np.testing.assert_array_equal(features(ds), np.log1p(dense_on(cells, NODES)))
    assert main(["verify", root, *chosen]) == 0
    assert main(["preprocess", root, *chosen[:-1], "processor=lazy"]) == 2
    assert "processor=none" in capsys.readouterr().err
    assert main(["preprocess", root, chosen[0], f"source.files={tmp_path}/d.h5ad", *chosen[2:]]) == 2
    assert "did you mean 'c.h5ad'" in capsys.readouterr().err


def test_the_example_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.single_cell.__main__ import main

    assert main([f"root={tmp_path / 'store'}", "epochs=1"]) > 0.5
    assert "the largest type is 34%" in capsys.readouterr().out


# Memory

PEAK = """
import sys
import torch
import torchcell_cache as tc
from cells import gene_graph
torch.set_num_threads(1)
genes = [f"G{k}" for k in range(int(sys.argv[2]))]
for path in sys.argv[3:]:
    source = tc.AnnDataSource(path, gene_graph(genes), phenotypes=["n"], target_sum=1e4, log1p=True)
    tc.build(sys.argv[1] + path.replace("/", "-"), source=source, processor=None, storage="delta", progress=False)
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def written(path: Path, count: int, genes: int) -> Path:
    """Many cells by repeating some, with obs that differ."""
    some = made_up(1000, [f"G{k}" for k in range(genes)], density=0.6)
    cells = anndata.concat([some] * (count // 1000), index_unique="-")
    cells.obs["n"] = np.arange(count)
    cells.write_h5ad(path)
    return path


def check_peak(tmp_path: Path, count: int, genes: int) -> None:
    """The high-water mark of one process after ``count`` cells, and after ten times as many."""
    files = written(tmp_path / "1.h5ad", count, genes), written(tmp_path / "10.h5ad", 10 * count, genes)
    here = Path(__file__).parents[1] / "support"
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PEAK, f"{tmp_path}/store", str(genes), *map(str, files)]
    done = fresh.run(command, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    small, large = (int(line) / 1024 for line in done.stdout.split())
    size = files[1].stat().st_size / 2**20
    assert size > 40
    assert large - small < 0.5 * size, (small, large, size)


def test_peak_memory_does_not_grow_with_the_number_of_cells(tmp_path: Path) -> None:
    check_peak(tmp_path, 3_000, 600)


@pytest.mark.campaign
def test_peak_memory_at_full_size(tmp_path: Path) -> None:
    check_peak(tmp_path, 20_000, 2_000)


# Growing


def cell_files(tmp_path: Path) -> tuple[list[Path], dict]:
    paths = []
    for number, count in enumerate((30, 13)):
        cells = made_up(count, GENES, seed=number)
        cells.obs["cell_type"] = pd.Categorical(cells.obs["cell_type"], categories=["NK", "B cell", "T cell"])
        paths.append(write(cells, tmp_path / f"{number}.h5ad"))
    return paths, {"phenotypes": ["score"], "categories": ["cell_type"], "log1p": True, "target_sum": 1e4}


def test_new_cells_are_appended(tmp_path: Path) -> None:
    paths, kept = cell_files(tmp_path)
    graph = gene_graph(NODES)
    first = built(tc.AnnDataSource(paths[0], graph, **kept), tmp_path / "store", shard_size=8)
    with pytest.raises(
        tc.errors.SourceContractError, match=r"'measured' already(.|\n)*earlier AnnDataSource was given"
    ):
        tc.AnnDataSource(paths[1], first.base_graph, **kept)
    growth = tc.append(tmp_path / "store", tc.AnnDataSource(paths[1], graph, **kept), progress=False)
    assert (growth.recomputed, growth.linked_shards) == (13, 3)
    whole = built(tc.AnnDataSource(paths, graph, **kept), tmp_path / "whole", shard_size=8)
    assert growth.dataset.content_digest == whole.content_digest
    assert np.array_equal(features(growth.dataset), features(whole))
    assert tc.verify(tmp_path / "store", level="full", progress=False).ok
    other = read(paths[1])
    other.obs["cell_type"] = pd.Categorical(["T cell", "platelet"] + ["NK"] * 11)
    tail = tc.AnnDataSource(write(other, tmp_path / "other.h5ad"), graph, **kept)
    with pytest.raises(
        tc.errors.StaleCacheError, match=r"names that the store does not have: platelet\n  fix: update"
    ):
        tc.append(tmp_path / "store", tail, progress=False)


def test_cells_made_in_another_way_are_not_appended(tmp_path: Path) -> None:
    paths, kept = cell_files(tmp_path)
    graph = gene_graph(NODES)
    built(tc.AnnDataSource(paths[0], graph, **kept), tmp_path / "store", shard_size=8)
    tc.append(tmp_path / "store", tc.AnnDataSource(paths[1], graph, **kept), progress=False)
    other = tc.AnnDataSource(paths[1], graph, **{**kept, "log1p": not kept.get("log1p", False)})
    with pytest.raises(tc.errors.StaleCacheError, match=r"made in different ways(.|\n)*log1p"):
        tc.append(tmp_path / "store", other, progress=False)


def test_changed_expression_is_found_though_no_label_changed(tmp_path: Path) -> None:
    paths, kept = cell_files(tmp_path)
    graph = gene_graph(NODES)
    built(tc.AnnDataSource(paths[0], graph, **kept), tmp_path / "store", shard_size=8)
    cells = read(paths[0])
    cells.X.data[:] = cells.X.data[::-1].copy()
    source = tc.AnnDataSource(write(cells, tmp_path / "changed.h5ad"), graph, **kept)
    growth = tc.update(tmp_path / "store", source, progress=False)
    whole = built(source, tmp_path / "whole", shard_size=8)
    assert np.array_equal(features(growth.dataset), features(whole))
    assert growth.dataset.content_digest == whole.content_digest


def test_cells_need_a_graph(tmp_path: Path) -> None:
    paths, _ = cell_files(tmp_path)
    with pytest.raises(tc.errors.SourceContractError, match="base_graph is None"):
        tc.AnnDataSource(paths[0], None)
