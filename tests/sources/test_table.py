"""``PerturbationTable``: what it accepts, and how it says no."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from graphs import cell_graph, plain_graph

import torchcell_cache as tc
from torchcell_cache.errors import SettingError, SourceContractError


@pytest.fixture
def graph():
    return cell_graph()


def test_names_ids_arrays_and_ragged_arrays_mean_the_same(graph) -> None:
    by_name = tc.PerturbationTable(graph, [["Y003", "Y001"], ["Y008"], []])
    by_id = tc.PerturbationTable(graph, [[3, 1], (8,), []])
    by_grid = tc.PerturbationTable(graph, np.array([[3, 1], [8, -1], [-1, -1]]))
    ragged = tc.PerturbationTable(graph, (np.array([3, 1, 8]), np.array([0, 2, 3, 3])))
    for source in (by_name, by_id, by_grid, ragged):
        assert [source[k].perturbed.tolist() for k in range(3)] == [[1, 3], [8], []]
        assert source.identity() == by_name.identity()


def test_a_sample_carries_its_base_graph_and_values(graph) -> None:
    source = tc.PerturbationTable(graph, [[1], [2]], phenotypes={"f": [0.5, np.nan]}, source_ids=["a", "b"])
    assert source[-1].base_graph is graph
    assert source[0].values.tolist() == [[0.5]]
    assert np.isnan(source[1].values).all()
    assert [source[k].source_id for k in range(2)] == ["a", "b"]
    assert source.phenotype_info == ["f"]
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize(
    ("perturbations", "policy", "message"),
    [
        ([["Y001"], ["YXX"]], {}, r"row 1: 'YXX' is not a node"),
        ([["Y001"], ["Y002", "Y002"]], {}, r"row 1: 'Y002' is given twice"),
        ([["Y001"], [99]], {}, r"row 1: id 99 is outside 0\.\.8"),
        ([["Y001"], []], {"empty": "error"}, r"row 1 perturbs nothing"),
        (["Y001"], {}, r"row 0: 'Y001' is one text"),
        (np.zeros((2, 2)), {}, r"must be \[num_samples, k\] integers"),
    ],
)
def test_broken_rows_are_named(graph, perturbations, policy, message) -> None:
    with pytest.raises(SourceContractError, match=message):
        tc.PerturbationTable(graph, perturbations, **policy)


def test_policies_keep_what_the_user_wants_to_keep(graph) -> None:
    source = tc.PerturbationTable(graph, [["Y001", "YXX"], ["Y2"] * 2], unknown="drop")
    assert [source[k].perturbed.tolist() for k in range(2)] == [[1], []]
    source = tc.PerturbationTable(graph, [["Y002", "Y002"]], duplicate="unique")
    assert source[0].perturbed.tolist() == [2]
    with pytest.raises(SourceContractError, match="row 1: 'f' is NaN"):
        tc.PerturbationTable(graph, [[1], [2]], phenotypes={"f": [1.0, np.nan]}, nan="error")
    with pytest.raises(SettingError, match="'error', 'skip', 'drop'"):
        tc.PerturbationTable(graph, [], unknown="ignore")


def test_columns_that_do_not_fit_are_named(graph) -> None:
    with pytest.raises(SettingError, match="'f' has 1 values for 2 samples"):
        tc.PerturbationTable(graph, [[1], [2]], phenotypes={"f": [1.0]})
    with pytest.raises(SettingError, match="phenotype and as statistic"):
        tc.PerturbationTable(graph, [[1]], phenotypes={"f": [1.0]}, statistics={"f": [1.0]})
    with pytest.raises(SourceContractError, match="duplicate id 'a' at rows 0 and 1"):
        tc.PerturbationTable(graph, [[1], [2]], source_ids=["a", "a"])


def test_names_need_a_base_graph_with_names() -> None:
    with pytest.raises(SourceContractError, match="no node_ids"):
        tc.PerturbationTable(plain_graph(), [["Y001"]])
    assert tc.PerturbationTable(plain_graph(), [[1]])[0].perturbed.tolist() == [1]


ROWS = "strain,genes,fitness,note\na,Y001|Y004,0.5,x\nb, Y002 ,1.25,y\n"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".tsv.gz", ".parquet"])
def test_tables_from_files(tmp_path: Path, graph, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    text = ROWS if suffix == ".csv" else ROWS.replace(",", "\t")
    if suffix == ".parquet":
        pd.DataFrame(
            {"strain": ["a", "b"], "genes": ["Y001|Y004", "Y002"], "fitness": [0.5, 1.25]}
        ).to_parquet(path)
    elif suffix.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    source = tc.PerturbationTable.from_csv(path, graph, phenotypes=["fitness"], id_column="strain")
    assert [source[k].perturbed.tolist() for k in range(2)] == [[1, 4], [2]]
    assert [source[k].values.tolist() for k in range(2)] == [[[0.5]], [[1.25]]]
    assert source[1].source_id == "b"
    assert tc.PerturbationTable.from_csv(path, graph, id_column="strain").phenotype_info == ["fitness"]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("genes,f\nY001,abc\n", {"phenotypes": ["f"]}, "row 0: 'abc' in column 'f' is not a number"),
        ("genes,f\nY001,\n", {"phenotypes": ["f"]}, "row 0: 'f' is NaN"),
        ("genes,f\n,1\n", {"phenotypes": ["f"]}, "row 0 perturbs nothing"),
        ("gene,f\nY001,1\n", {}, r"no column 'genes'; it has \['gene', 'f'\]"),
        ("genes,f\nY001\n", {}, "row 0 has 1 cells, the header has 2"),
        ("", {}, "is empty"),
    ],
)
def test_broken_files_name_row_and_value(tmp_path: Path, graph, text, arguments, message) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(SourceContractError, match=message):
        tc.PerturbationTable.from_csv(path, graph, **arguments)


def test_a_missing_file_is_named(tmp_path: Path, graph) -> None:
    with pytest.raises(SourceContractError, match="no file at"):
        tc.PerturbationTable.from_csv(tmp_path / "nothing.csv", graph)
