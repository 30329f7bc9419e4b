"""What users pass by mistake to ``AnnDataSource``, and what files hold that no matrix may: answered, never misread."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import INSTALLED, gene_graph
from services import require
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, SettingError, SourceContractError

if INSTALLED:
    import anndata
    import h5py
    import pandas as pd
    from scipy import sparse

GENES = ["A", "B", "C", "D"]
COUNTS = np.array([[1, 0, 2, 0], [0, 3, 0, 4], [0, 0, 0, 0], [5, 6, 7, 8]], dtype=np.float32)


@pytest.fixture(autouse=True)
def _installed() -> None:
    require(INSTALLED, "needs anndata and scanpy (the extra singlecell)")


def cells(matrix: Any = COUNTS, **obs: Any) -> Any:
    table = pd.DataFrame(obs or {"v": np.arange(4.0)}, index=[f"c{k}" for k in range(4)])
    return anndata.AnnData(matrix, obs=table, var=pd.DataFrame(index=GENES))


def source(given: Any = ..., graph: Any = None, **settings: Any) -> Any:
    given, graph = cells() if given is ... else given, gene_graph(GENES) if graph is None else graph
    return tc.AnnDataSource(given, graph, **settings)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "phenotypes number": ({"phenotypes": 5}, "phenotypes is 5, expected"),
    "phenotypes set": ({"phenotypes": {"v", "w"}}, "phenotypes is .*, expected"),
    "phenotypes of numbers": ({"phenotypes": [5]}, r"phenotypes is \[5\]"),
    "categories mapping": ({"categories": {"v": 1}}, "categories is"),
    "perturbation": ({"perturbation": 1.5}, "perturbation is 1.5"),
    "control number": ({"perturbation": "v", "control": 0}, "control is 0"),
    "control nan": ({"perturbation": "v", "control": np.nan}, "control is nan"),
    "separators": ({"perturbation": "v", "separator": ["+", ";"]}, "separator is"),
    "separator number": ({"perturbation": "v", "separator": 5}, "separator is 5"),
    "target bool": ({"target_sum": True}, "target_sum=True: expected a positive number"),
    "target text": ({"target_sum": "1e4"}, "target_sum='1e4': expected a positive number"),
    "target complex": ({"target_sum": 1j}, "target_sum=1j"),
    "target beyond float32": ({"target_sum": 1e308}, "target_sum=1e.308"),
    "target nothing in float32": ({"target_sum": 1e-300}, "target_sum=1e-300"),
    "log1p text": ({"log1p": "no"}, "log1p='no': expected True or False"),
    "raw text": ({"raw": "false"}, "raw='false': expected True or False"),
    "genes text": ({"n_top_genes": "10"}, "n_top_genes='10': expected a whole number from 1 on"),
    "genes half": ({"n_top_genes": 2.5}, "n_top_genes=2.5"),
    "genes bool": ({"n_top_genes": True}, "n_top_genes=True"),
    "cells text": ({"n_top_genes": 2, "hvg_cells": "5"}, "hvg_cells='5'"),
    "flavour unused": ({"flavor": "x"}, "flavor='x' is not one of"),
    "field number": ({"field": 5}, "field is 5, expected text"),
    "field empty": ({"field": ""}, "field is empty"),
    "column text": ({"column": "0"}, "column='0'"),
    "column bool": ({"column": False}, "column=False"),
    "version empty": ({"version": " "}, "version=' '"),
    "options": ({"storage_options": "x"}, "storage_options is str, expected a mapping"),
    "gene column": ({"gene_column": 5}, "var has no column 5; it has none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments(case: str) -> None:
    settings, message = WRONG[case]
    with pytest.raises(CacheError, match=message):
        source(**settings)


def test_arguments_that_are_welcome() -> None:
    """``None`` for no column, numbers of any library, a column by its number's text."""
    given = cells(v=np.arange(4.0))
    given.obs[5] = [1.0, 2.0, 3.0, 4.0]
    none = {
        "phenotypes": None,
        "categories": None,
        "perturbation": None,
        "control": None,
        "storage_options": None,
    }
    assert source(given, **none).identity() == source(given).identity()
    assert source(given, phenotypes="5").table.values[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    for ten in (10, 10.0, np.float32(10), torch.tensor(10.0), np.int64(10)):
        scaled = source(given, target_sum=ten)
        assert scaled.identity()["target_sum"] == 10
        assert scaled[3]["gene"].x[:, 0].sum().item() == pytest.approx(10)


def graph_with(**fields: Any) -> Data:
    graph = Data(**fields)
    graph.node_ids = GENES
    return graph


BASES: dict[str, tuple[Callable[[], Any], str]] = {
    "mapping": (lambda: {"gene": 1}, "base_graph is dict, expected a Data or HeteroData"),
    "list": (lambda: [gene_graph(GENES)], "base_graph is list"),
    "none": (lambda: Ellipsis, "base_graph is ellipsis"),
    "sparse": (lambda: graph_with(x=torch.ones(4, 2).to_sparse()), "sparse_coo.*expected float32"),
    "fewer names": (lambda: graph_with(num_nodes=6), "4 names for 6 nodes"),
}


@pytest.mark.parametrize("case", BASES)
def test_base_graphs(case: str) -> None:
    make, message = BASES[case]
    with pytest.raises(SourceContractError, match=message):
        source(graph=make())


def test_columns_that_say_two_things(tmp_path: Path) -> None:
    twice = cells(v=np.arange(4.0))
    twice.obs = pd.concat([twice.obs, twice.obs], axis=1)
    with pytest.raises(SourceContractError, match="obs has 2 columns 'v'"):
        source(twice, phenotypes="v")
    with pytest.raises(SourceContractError, match=r"obs column 'v' holds list.*expected names"):
        source(cells(v=[[1], [2], [3], [4]]), categories="v")
    with pytest.raises(SourceContractError, match="var has no names"):
        source(anndata.AnnData(np.zeros((2, 0), np.float32)))
    for given in (cells(-COUNTS), written(cells(-COUNTS), tmp_path)):
        with pytest.raises(SourceContractError, match=r"(AnnData object 0|c.h5ad).*cell 0 .*value -1"):
            source(given, log1p=True)[0]


def written(given: Any, where: Path) -> Path:
    given.write_h5ad(where / "c.h5ad")
    return where / "c.h5ad"


@pytest.mark.parametrize("unknown", ["error", "skip", "keep", "drop"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_category_that_no_cell_has_says_nothing(tmp_path: Path, unknown: str, on_disk: bool) -> None:
    """A filtered screen keeps the names of guides that went with its cells."""
    guides = pd.Categorical(["A", "B", "ctrl", "A+B"], categories=["gone", "A", "B", "ctrl", "A+B", "lost+A"])
    given = cells(g=guides)
    found = source(written(given, tmp_path) if on_disk else given, perturbation="g", unknown=unknown)
    assert [cell["gene"].ids_pert for cell in found] == [["A"], ["B"], [], ["A", "B"]]
    assert not [line for line in found.notes if "gone" in line or "lost" in line]


def test_cells_without_an_entry_are_called_that() -> None:
    found = source(cells(g=["A", None, "B", "Z"]), perturbation="g", unknown="skip")
    assert [cell["gene"].ids_pert for cell in found] == [["A"], ["B"]]
    assert found.notes[-1].endswith(
        "1 of 4 cells have no entry, 1 name 1 genes that the base graph does not have (Z): left out"
    )
    bare = source(cells(g=["A", None, "B", "C"]), perturbation="g", unknown="skip")
    assert bare.notes[-1].endswith("1 of 4 cells have no entry: left out")


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "frame": (lambda path: pd.DataFrame(COUNTS), "files is DataFrame"),
    "array": (lambda path: COUNTS, "files is ndarray"),
    "open file": (lambda path: io.BytesIO(path.read_bytes()), "files is BytesIO"),
    "set": (lambda path: {path}, "files is set, which has no order"),
    "mapping": (lambda path: {path: 1}, "files is dict"),
    "nested": (lambda path: [[path]], "files holds list"),
    "nothing": (lambda path: None, "files is NoneType"),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_no_file(case: str, tmp_path: Path) -> None:
    make, message = FILES[case]
    with pytest.raises(SettingError, match=message):
        source(make(written(cells(), tmp_path)))


def test_paths_of_all_kinds(tmp_path: Path) -> None:
    path = written(cells(), tmp_path)
    for given in (str(path), path, str(path).encode(), [path], (str(path),), pd.Series([str(path)])):
        assert len(source(given)) == 4


def _replace(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, data=value)

    return change


def _set(name: str, at: int, value: int) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[name][at] = value

    return change


def _attribute(name: str, key: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[name].attrs[key] = value

    return change


DAMAGED: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "one dimension": ("dense", _replace("X", np.ones(4)), r"X has shape \[4\], expected cells x variables"),
    "three dimensions": ("dense", _replace("X", np.ones((4, 4, 2))), r"shape \[4, 4, 2\]"),
    "one number": ("dense", _replace("X", 1.0), r"shape \[\]"),
    "fewer cells": ("dense", _replace("X", np.ones((3, 4))), "matrix has 3 cells, obs 4"),
    "fewer genes": ("dense", _replace("X", np.ones((4, 3))), "matrix has 3 variables, var has 4"),
    "rows begin late": ("csr", _set("X/indptr", 0, 1), "row pointers"),
    "rows end early": ("csr", _set("X/indptr", 4, 7), "row pointers"),
    "rows fall": ("csr", _set("X/indptr", 1, 99), "row pointers"),
    "columns begin late": ("csc", _set("X/indptr", 0, 1), "column pointers"),
    "one row for all": ("csc", _replace("X/indices", [0]), "column pointers"),
    "another form": ("csr", _attribute("X", "encoding-type", "bsr_matrix"), "'bsr_matrix'"),
    "a table": ("csr", _attribute("X", "encoding-type", "dataframe"), "'dataframe'"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_matrices_that_are_none(case: str, tmp_path: Path) -> None:
    form, change, message = DAMAGED[case]
    forms = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
    path = written(cells(forms[form](COUNTS)), tmp_path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(SourceContractError, match=message) as caught:
        source(path)[0]
    assert "anndata.read_h5ad read it" not in str(caught.value)


GUIDES = ["Z", "Y+A", "A", "ctrl", "Z+A", "A+Y", "Z", "B"]


def test_kept_names_tell_cells_apart(tmp_path: Path) -> None:
    """Selections and splits see them as those of a table do, in which another reader found them."""
    obs = pd.DataFrame({"g": GUIDES}, index=[f"c{k}" for k in range(8)])
    given = anndata.AnnData(np.tile(COUNTS, (2, 1)), obs=obs, var=pd.DataFrame(index=GENES))
    rows = [[] if guide == "ctrl" else guide.split("+") for guide in GUIDES]
    table = tc.PerturbationTable(gene_graph(GENES), rows, unknown="keep", source_ids=list(obs.index))
    kept = source(given, perturbation="g", unknown="keep")
    mine = tc.build(tmp_path / "cells", source=kept, processor=None, shard_size=3, progress=False)
    other = tc.build(tmp_path / "table", source=table, processor=tc.Perturbation(), progress=False)
    for settings in (
        {"genes": "Z"},
        {"genes": ["Y", "A"], "match": "all"},
        {"without": ["Z", "B"]},
        {"genes": "A", "match": "only"},
    ):
        chosen = tc.select(mine, **settings)
        assert chosen.tolist() == tc.select(other, **settings).tolist()
    assert tc.select(mine, genes="Z").tolist() == [k for k, row in enumerate(rows) if "Z" in row]
    for seed in range(3):
        ours, theirs = (tc.split_by_perturbation(ds, (0.5, 0.5), seed=seed) for ds in (mine, other))
        assert {n: ours[n].tolist() for n in ours.names} == {n: theirs[n].tolist() for n in theirs.names}
    assert [cell["gene"].ids_pert for cell in mine][:3] == [["Z"], ["A", "Y"], ["A"]]
    for root, level in ((tmp_path / "cells", "quick"), (tmp_path / "cells", "full")):
        assert tc.verify(root, level, source=kept, progress=False).ok
    tc.append(
        tmp_path / "cells",
        source(given[:2], perturbation="g", unknown="keep"),
        processor=None,
        progress=False,
    )
    grown = tc.PreprocessedDataset(tmp_path / "cells")
    assert tc.select(grown, genes="Z").tolist() == [0, 4, 6, 8]
    part = tc.save_subset(grown[[9, 8, 2]], tmp_path / "part", progress=False)
    assert tc.select(part, genes="Y").tolist() == [0]
    assert "5 of 8 cells name 2 genes that the base graph does not have (Y, Z)" in kept.report()
