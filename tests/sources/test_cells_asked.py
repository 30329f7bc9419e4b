"""Rows, side tables and a vocabulary of cells: anndata's own subset, pandas and plain loops are the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cells import INSTALLED, REASON, dense_on, gene_graph, made_up, write
from services import require
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.compare import first_difference
from torchcell_cache.testing import assert_same_graph

if INSTALLED:
    from cells import anndata, pd, scanpy

pytestmark = pytest.mark.filterwarnings("ignore")

GENES = [f"G{k}" for k in range(12)]
ASKED = {"categories": ["cell_type", "batch"], "phenotypes": ["score", "doublet"]}


@pytest.fixture(autouse=True)
def _libraries() -> None:
    require(INSTALLED, REASON)


def screen(count: int = 80, seed: int = 0):
    """Cells with conditions; G90 and G91 are no nodes, G11 is a node that the file does not measure."""
    cells = made_up(count, GENES[:11], seed=seed)
    draw = np.random.default_rng(seed)
    cells.obs["condition"] = draw.choice(["ctrl", "G1+ctrl", "G2+G11", "G90", "G3+G91"], count)
    return cells


def same(one, other) -> None:
    assert len(one) == len(other)
    assert first_difference(one.base_graph, other.base_graph) is None
    for k in range(0, len(one), 3):
        assert_same_graph(one[k], other[k])
    assert list(one.table.source_ids) == list(other.table.source_ids)
    assert np.array_equal(one.table.values, other.table.values, equal_nan=True)


MASKS = {
    "n > 300": lambda o: o.n > 300,
    "cell_type == 'NK' and not doublet": lambda o: (o.cell_type == "NK") & ~o.doublet,
    "batch in ('run0', 'run2') or score < -1": lambda o: o.batch.isin(["run0", "run2"]) | (o.score < -1),
    "isnan(cell_type) or n <= 500": lambda o: o.cell_type.isna() | (o.n <= 500),
}


@pytest.mark.parametrize(("where", "form"), list(zip(MASKS, ["memory", "csr", "csc", "dense"], strict=True)))
def test_rows_are_anndatas_own_subset(tmp_path: Path, where: str, form: str) -> None:
    cells, graph = made_up(70, GENES), gene_graph(GENES)
    mask = MASKS[where](cells.obs).to_numpy()
    wanted = tc.AnnDataSource(cells[mask].copy(), graph, **ASKED)
    given = cells if form == "memory" else write(cells, tmp_path / "c.h5ad", form)
    ways = [where, mask, mask.tolist(), np.flatnonzero(mask), torch.from_numpy(mask)]
    for rows in [*ways, pd.Series(mask, cells.obs_names)]:
        found = tc.AnnDataSource(given, graph, rows=rows, **ASKED)
        same(found, wanted)
        assert f"rows=: {mask.sum()} of 70 cells" in found.report()
    found = tc.AnnDataSource(given, graph, rows=np.flatnonzero(mask)[::-1], **ASKED)  # cells keep their order
    ds = tc.build(tmp_path / "s", source=found, processor=None, storage="delta", progress=False)
    dense = ds.read_batch(range(len(ds))).features("gene").numpy()[..., 0]
    assert np.array_equal(dense, dense_on(cells[mask], GENES))
    assert ds.source_ids == list(cells.obs_names[mask])
    assert list(ds.names("batch")) == list(cells.obs.batch[mask])


def test_views_of_cells_in_memory_are_their_copies() -> None:
    cells, graph = made_up(60, GENES), gene_graph(GENES)
    cells.layers["twice"] = cells.X * 2
    doublets = cells[cells.obs.doublet, GENES[4:9]]
    for view in (cells[cells.obs.n > 400], cells[::3], cells[[7, 3, 23, 50]], doublets, cells[5:50][::2]):
        assert view.is_view
        for more in ({}, {"layer": "twice"}, {"target_sum": 1e4, "log1p": True}):
            ways = [tc.AnnDataSource(each, graph, **ASKED, **more) for each in (view, view.copy())]
            same(*ways)
            assert ways[0].identity() == ways[1].identity()


def test_rows_of_several_files_are_numbered_on(tmp_path: Path) -> None:
    graph = gene_graph(GENES)
    parts = [made_up(count, GENES, seed=count) for count in (30, 25, 20)]
    files = [write(part, tmp_path / f"{k}.h5ad") for k, part in enumerate(parts)]
    obs = pd.concat([part.obs for part in parts])
    mask = ((obs.n > 500) & (np.arange(75) < 55)).to_numpy()  # nothing is left of the last file
    found = tc.AnnDataSource(files, graph, rows=mask, **ASKED)
    cut = [parts[0][mask[:30]].copy(), parts[1][mask[30:55]].copy()]
    same(found, tc.AnnDataSource(cut, graph, **ASKED))
    by_text = tc.AnnDataSource(files, graph, rows="n > 500", **ASKED)
    same(by_text, tc.AnnDataSource([part[part.obs.n > 500].copy() for part in parts], graph, **ASKED))
    plain, all_of_them = (tc.AnnDataSource(files, graph, rows=rows, **ASKED) for rows in (None, "n >= 0"))
    assert plain.identity() == all_of_them.identity()
    assert len({str(each.identity()) for each in (plain, found, by_text)}) == 3


def test_what_is_wrong_with_cells_that_are_left_out_does_not_matter(tmp_path: Path) -> None:
    cells, graph = screen(), gene_graph(GENES)
    path = write(cells, tmp_path / "c.h5ad")
    how = {"perturbation": "condition"}
    mask = ~cells.obs.condition.isin(["G90", "G3+G91"])
    found = tc.AnnDataSource(path, graph, **how, rows="condition not in ('G90', 'G3+G91')")
    assert len(found) == int(mask.sum())
    same(found, tc.AnnDataSource(path, graph, **how, unknown="skip"))
    both = tc.AnnDataSource(path, graph, **how, unknown="skip", rows="n > 500")
    assert list(both.table.source_ids) == list(cells.obs_names[mask & (cells.obs.n > 500)])
    cells.obs["large"] = 1.0
    cells.obs.loc[cells.obs_names[40], "large"] = 1e300
    with pytest.raises(SourceContractError, match=r"of cell 40 \(cell40\) is 1e\+300"):
        tc.AnnDataSource(cells, graph, phenotypes="large", rows=np.arange(30, 60))
    cells.obs.loc[cells.obs_names[50], "condition"] = np.nan
    with pytest.raises(SourceContractError, match="the first is cell 50"):
        tc.AnnDataSource(cells, graph, **how, unknown="drop", rows=np.arange(45, 60))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("n > 5000", "holds for none of 60 cells"),
        ([], "holds for none"),
        ([3, 3], "names a cell twice"),
        ([3, -57], "names a cell twice"),
        ([60], "out of range"),
        ([True] * 59, "a mask of 59 bools for 60"),
        (["cell3"], "integers or bools"),
        (3.5, "got float"),
        ("cell_type == 'NKT'", "did you mean 'NK'"),
        ("nn > 3", "no column 'nn'"),
        ("n >", "cannot be read"),
    ],
)
def test_rows_that_there_are_not(rows, message: str) -> None:
    cells = made_up(60, GENES)
    with pytest.raises((SettingError, SourceContractError), match=message):
        tc.AnnDataSource(cells, gene_graph(GENES), rows=rows)


def test_a_mask_in_another_order_is_refused() -> None:
    cells = made_up(60, GENES)
    turned = pd.Series(True, cells.obs_names[::-1])
    with pytest.raises(SettingError, match="in another order"):
        tc.AnnDataSource(cells, gene_graph(GENES), rows=turned)


def test_highly_variable_genes_are_those_of_the_rows(tmp_path: Path) -> None:
    cells, graph = made_up(90, GENES), gene_graph(GENES)
    how = {"target_sum": 1e4, "log1p": True, "n_top_genes": 4}
    mask = (cells.obs.n > 300).to_numpy()
    found = tc.AnnDataSource(write(cells, tmp_path / "c.h5ad"), graph, rows=mask, **how)
    same(found, tc.AnnDataSource(cells[mask].copy(), graph, **how))


# Side tables


def with_tables(cells):
    names = sorted({*cells.obs.condition})
    cells.uns["ranked"] = {n: np.array(GENES[k : k + 6], dtype=object) for k, n in enumerate(names)}
    cells.uns["counts"] = {name: np.arange(k) for k, name in enumerate(names)}
    cells.uns["frame"] = pd.DataFrame({"ctrl": ["G1", "G2"], "G90": ["G3", "G4"]})
    cells.uns["bare"] = "text"
    return cells


@pytest.mark.parametrize("form", ["memory", "file"])
def test_side_tables_are_what_uns_has(tmp_path: Path, form: str) -> None:
    cells, graph = with_tables(screen()), gene_graph(GENES)
    scanpy.tl.rank_genes_groups(cells, "condition", method="t-test")
    given = cells if form == "memory" else write(cells, tmp_path / "c.h5ad")
    uns = {"de": ("ranked", 3), "counts": "counts", "frame": "frame", "scanpy": ("rank_genes_groups", 5)}
    source = tc.AnnDataSource(given, graph, categories="condition", uns=uns)
    tc.build(tmp_path / "s", source=source, processor=None, storage="delta", progress=False)
    ds = tc.PreprocessedDataset(tmp_path / "s")
    names, ranked = sorted({*cells.obs.condition}), cells.uns["rank_genes_groups"]["names"]
    assert ds.category_tables == {
        "de": {name: GENES[k : k + 3] for k, name in enumerate(names)},
        "counts": {name: list(range(k)) for k, name in enumerate(names)},
        "frame": {"ctrl": ["G1", "G2"], "G90": ["G3", "G4"]},
        "scanpy": {name: ranked[name][:5].tolist() for name in names},
    }
    fields = {"de": ds.category_tables["de"], "pert": str}
    pairs = tc.PairedCells(ds, "condition == 'ctrl'", per_category=fields)
    for k in range(10):
        assert pairs[k].de == ds.category_tables["de"][cells.obs.condition.iloc[k]]
    bare = tc.AnnDataSource(given, graph, categories="condition")
    assert bare.identity() == tc.AnnDataSource(given, graph, categories="condition", uns=()).identity()
    assert "obs_tables" not in bare.base_graph


def test_a_plate_that_is_appended_takes_the_tables_of_the_store(tmp_path: Path) -> None:
    first, more, graph = with_tables(screen(40)), with_tables(screen(20, seed=5)), gene_graph(GENES)
    more.uns["ranked"] = {"ctrl": np.array(["G7"])}
    asked = {"categories": "condition", "uns": "ranked"}
    ds = tc.build(tmp_path, source=tc.AnnDataSource(first, graph, **asked), processor=None, progress=False)
    grown = tc.append(tmp_path, tc.AnnDataSource(more, graph, **asked), progress=False).dataset
    assert grown.category_tables == ds.category_tables
    assert len(grown) == 60
    with pytest.raises(SourceContractError, match="has other values for 'ctrl' than the files before it"):
        tc.AnnDataSource([first, more], graph, **asked)


@pytest.mark.parametrize(
    ("uns", "message"),
    [
        ("rankd", "uns has no 'rankd'; did you mean 'ranked'"),
        ("bare", "expected a list of genes for each category"),
        ("nested", r"uns\['nested'\]\['a'\] is object\[\]"),
        ("wide", r"is int64\[2, 2\]"),
        ({"x": ("ranked", 0)}, "expected a whole number"),
        (5, "uns"),
        ({"x": 5}, "uns"),
        ({"x": ("ranked", 1, 2)}, "uns"),
    ],
)
def test_what_is_no_side_table(uns, message: str) -> None:
    cells = with_tables(screen())
    cells.uns["nested"], cells.uns["wide"] = {"a": {"b": [1]}}, {"a": np.zeros((2, 2), dtype=int)}
    with pytest.raises((SettingError, SourceContractError), match=message):
        tc.AnnDataSource(cells, gene_graph(GENES), uns=uns)


# A vocabulary, and genes that are not measured


def parts_of(condition: str) -> list[str]:
    return [name for name in condition.split("+") if name != "ctrl"]


@pytest.mark.parametrize("unknown", ["error", "skip", "drop", "keep"])
@pytest.mark.parametrize("flat", [False, True])
def test_genes_are_numbered_by_a_vocabulary(tmp_path: Path, unknown: str, flat: bool) -> None:
    cells = screen()
    graph = Data(node_ids=GENES, num_nodes=12) if flat else gene_graph(GENES)
    words = ["G3", "G90", "G2", "G1", "G11", *(["G91"] if unknown == "error" else [])]
    how = {"perturbation": "condition", "categories": "condition", "unknown": unknown, "vocabulary": words}
    source = tc.AnnDataSource(cells, graph, **how)
    ds = tc.build(tmp_path, source=source, processor=None, storage="delta", progress=False)
    assert ds.base_graph.perturbation_vocabulary == words
    lost = {"G3+G91"} if "G91" not in words else set()
    rows = [k for k, c in enumerate(cells.obs.condition) if unknown != "skip" or c not in lost]
    assert len(ds) == len(rows)
    for at, row in enumerate(rows):
        names = parts_of(cells.obs.condition.iloc[row])
        found = ds[at]
        assert_same_graph(found, source[at])
        assert found.vocabulary_indices.tolist() == sorted(words.index(n) for n in names if n in words)
        store = found if flat else found["gene"]
        stays = [n for n in names if n in words or unknown == "keep"]
        nodes = sorted((n for n in stays if n in GENES), key=GENES.index)
        assert store.ids_pert == [*nodes, *(n for n in stays if n not in GENES)]
        assert store.perturbation_indices.tolist() == [GENES.index(n) for n in nodes]
    wanted = [k for k, row in enumerate(rows) if "G90" in cells.obs.condition.iloc[row]]
    assert tc.select(ds, genes=["G90"]).tolist() == wanted
    batch = ds.read_batch(range(len(ds))).to_pyg()
    flat_list = [int(v) for k in range(len(ds)) for v in ds[k].vocabulary_indices]
    assert batch.vocabulary_indices.tolist() == flat_list
    assert tc.verify(tmp_path, "full", progress=False).ok
    grown = tc.append(tmp_path, tc.AnnDataSource(screen(30, seed=3), graph, **how), progress=False)
    assert tc.verify(grown.dataset.root, "full", progress=False).ok


def test_a_vocabulary_by_other_names_and_without_perturbations() -> None:
    cells, graph = screen(), gene_graph(GENES)
    cells.obs["condition"] = cells.obs["condition"].str.replace("G90", "old").str.replace("G91", "G4")
    how = {"perturbation": "condition", "aliases": {"old": "G5"}}
    source = tc.AnnDataSource(cells, graph, vocabulary=GENES[::-1], **how)
    for k, condition in enumerate(cells.obs.condition):
        names = ["G5" if n == "old" else n for n in parts_of(condition)]
        assert source[k].vocabulary_indices.tolist() == sorted(11 - GENES.index(n) for n in names)
    with pytest.raises(SettingError, match="vocabulary= has 'G1' twice"):
        tc.AnnDataSource(cells, graph, vocabulary=["G1", "G2", "G1"], **how)
    with pytest.raises(SettingError, match="vocabulary= numbers perturbed genes"):
        tc.AnnDataSource(cells, graph, vocabulary=GENES)
    with pytest.raises(SourceContractError, match="'G11' is neither a name of the vocabulary nor a control"):
        tc.AnnDataSource(cells, graph, vocabulary=GENES[:6], **how)


def test_cells_whose_gene_is_not_measured_are_counted(tmp_path: Path) -> None:
    cells, graph = screen(), gene_graph(GENES)
    names = [parts_of(condition) for condition in cells.obs.condition]
    lost = [name for some in names for name in some if name not in cells.var_names]
    source = tc.AnnDataSource(cells, graph, perturbation="condition", unknown="keep")
    line = next(line for line in source.notes if "not measured" in line)
    count = sum(any(name in lost for name in some) for some in names)
    assert f": {count} of 80 cells are perturbed in a gene that is not measured (3 genes: " in line
    for name in ("G11", "G90", "G91"):
        assert f"{name} in {lost.count(name)}" in line
    ds = tc.build(tmp_path, source=source, processor=None, progress=False)
    assert line in ds.generation.manifest.created["notes"]
    cells.obs["condition"] = ["G1"] * 80
    assert "not measured" not in tc.AnnDataSource(cells, graph, perturbation="condition").report()
    obs, var = pd.DataFrame({"condition": ["G1", "G2", "G1"]}, list("abc")), pd.DataFrame(index=["G2", "G3"])
    other = anndata.AnnData(np.ones((3, 2), dtype=np.float32), obs, var)
    lines = tc.AnnDataSource([cells, other], graph, perturbation="condition").notes
    assert [line.partition(": ")[2] for line in lines if "not measured" in line] == [
        "2 of 3 cells are perturbed in a gene that is not measured (1 genes: G1 in 2)"
    ]
