"""``PerturbationTable``: what it accepts, and how it says no."""

import gzip
import io
import math
from decimal import Decimal
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from graphs import cell_graph, plain_graph
from scipy import sparse
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, SettingError, SourceContractError


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


# What looks like an input and is something else

MASKED = np.ma.masked


@pytest.mark.parametrize("role", ["phenotypes", "statistics"])
@pytest.mark.parametrize(
    "column",
    [
        [0.5, MASKED],
        [0.5, np.ma.array(7.0, mask=True)],
        np.array([0.5, MASKED], dtype=object),
        np.ma.array([0.5, 7.0], mask=[0, 1]),
        np.ma.array([0.5, 7.0], mask=[0, 1], dtype=object),
        [[0.5], [MASKED]],
        [[0.5], np.ma.array([7.0], mask=[1])],
        pd.Series([0.5, MASKED], dtype=object),
        [pa.scalar(0.5), pa.scalar(None, pa.float64())],
    ],
)
def test_what_is_masked_is_no_measurement(graph, column, role) -> None:
    source = tc.PerturbationTable(graph, [[1], [2]], **{role: {"f": column}})
    assert np.array_equal(source.table.values, np.float32([[0.5], [np.nan]]), equal_nan=True)
    with pytest.raises(SourceContractError, match="row 1: 'f' is NaN"):
        tc.PerturbationTable(graph, [[1], [2]], **{role: {"f": column}}, nan="error")


def test_what_is_masked_is_no_node_and_no_name(graph) -> None:
    for row in ([2, MASKED], [MASKED], [2, np.ma.array(3, mask=True)], np.ma.array([2, 3], mask=[0, 1])):
        with pytest.raises(SourceContractError, match="row 1"):
            tc.PerturbationTable(graph, [[1], row])
    grids = [
        np.ma.array([[1, 3], [2, 4]], mask=[[0, 0], [0, 1]], dtype=dtype)
        for dtype in (np.int64, np.uint8, object)
    ]
    names = np.ma.array([["Y001", "Y003"], ["Y002", "Y004"]], mask=[[0, 0], [0, 1]])
    for grid in (*grids, names, pd.DataFrame([[1, 3], [2, MASKED]], dtype=object)):
        assert tc.PerturbationTable(graph, grid).table.ids.tolist() == [1, 3, 2]
    with pytest.raises(SourceContractError, match="row 1: source id"):
        tc.PerturbationTable(graph, [[1], [2]], source_ids=["a", MASKED])
    graph["gene"].node_ids = np.ma.array(graph["gene"].node_ids, mask=[1] + [0] * 8)
    with pytest.raises(SourceContractError, match="expected text"):
        tc.PerturbationTable(graph, [["Y001"]])


def test_records_are_columns_and_no_measurements(graph) -> None:
    records = np.array([(0.5, 1.0), (0.25, 2.0)], dtype=[("f", "f8"), ("g", "f4")])
    for each in (records, records.view(np.recarray), np.ma.array(records)):
        source = tc.PerturbationTable(graph, [[1], [2]], phenotypes=each)
        assert source.table.phenotypes == ("f", "g")
        assert source.table.values.tolist() == [[0.5, 1], [0.25, 2]]
        for column in (each, list(each), each.reshape(2, 1)):
            with pytest.raises(SourceContractError):
                tc.PerturbationTable(graph, [[1], [2]], phenotypes={"f": column})
    pairs = np.array([(1, 4), (2, 3)], dtype=[("query", "i4"), ("array", "u1")])
    assert tc.PerturbationTable(graph, pairs).table.ids.tolist() == [1, 4, 2, 3]
    with pytest.raises(SettingError, match="'index' of the frame holds numbers of rows"):
        tc.PerturbationTable(graph, [[1], [2]], phenotypes=pd.DataFrame({"f": [0.5, 1]}).to_records())


@pytest.mark.parametrize("duplicate", ["error", "unique"])
@pytest.mark.parametrize(
    "rows",
    [
        np.eye(9, dtype=np.int64),
        np.eye(9, dtype=np.uint8).tolist(),
        list(np.eye(9)),
        torch.eye(9, dtype=torch.int32).to_sparse(),
        [[0, 1, 1], [1, 0, 0]],
        [[4, 5], [0, 0, 0, 1, 0, 0, 0, 0, 0]],
        (np.array([0, 1, 0, 1]), np.array([0, 4])),
        pd.DataFrame({"a": [1, 0], "b": [0, 0], "c": [1, 0]}),
    ],
)
def test_zeros_and_ones_are_no_positions(graph, rows, duplicate) -> None:
    with pytest.raises(
        SourceContractError, match=r"row \d holds nothing but zeros and ones(.|\n)*flatnonzero"
    ):
        tc.PerturbationTable(graph, rows, duplicate=duplicate)


def test_positions_that_are_zero_and_one_are_positions(graph) -> None:
    for rows in ([[0, 1], [1], [0], []], np.array([[0, 1], [1, -1]]), [[1, 1], [0, 2]]):
        assert len(tc.PerturbationTable(graph, rows, duplicate="unique")) == len(rows)
    pair = Data(num_nodes=2, edge_index=torch.tensor([[0], [1]]))
    assert tc.PerturbationTable(pair, [[0, 1], [1, 0]]).table.ids.tolist() == [0, 1, 0, 1]
    with pytest.raises(SourceContractError, match="row 0 holds nothing but zeros and ones"):
        tc.PerturbationTable(pair, [[0, 0], [0, 1]], duplicate="unique")


ENTREZ = ["8", "851262", "3", "2", "850289", "0", "854000", "7", "855000"]


@pytest.mark.parametrize("as_number", [False, True])
@pytest.mark.parametrize("kind", ["list", "mixed", "grid", "frame", "floats"])
def test_a_number_that_names_another_node_is_no_position(graph, kind, as_number) -> None:
    graph["gene"].node_ids = [int(name) for name in ENTREZ] if as_number else ENTREZ
    rows = {
        "list": [[1], [2]],
        "mixed": [["7"], [2]],
        "grid": np.array([[1], [2]]),
        "frame": pd.DataFrame({"query": [1, 4], "array": [4, 2]}),
        "floats": [[1.0], [2.0]],
    }
    with pytest.raises(SourceContractError, match=r"row 1: 2 is the position .* name of node 3") as caught:
        tc.PerturbationTable(graph, rows[kind])
    assert "str(name)" in caught.value.fix
    with pytest.raises(SourceContractError, match=r"row 0: id 851262 is outside 0\.\.8(.|\n)*str\(name\)"):
        tc.PerturbationTable(graph, [[851262]])
    assert tc.PerturbationTable(graph, [["2"], ["7", "8"]]).table.ids.tolist() == [3, 0, 7]
    ragged = (np.array([2, 5]), np.array([0, 2]))
    assert tc.PerturbationTable(graph, ragged).table.ids.tolist() == [2, 5]
    assert tc.PerturbationTable(graph, [[1, 4, 7]]).table.ids.tolist() == [1, 4, 7]  # names of no other node


@pytest.mark.parametrize("count", [0, 8, 10])
def test_a_base_graph_has_a_name_for_each_node_or_none(graph, count) -> None:
    graph["gene"].node_ids = [f"Y{k:03d}" for k in range(count)]
    for rows in ([["Y001"]], [[1]]):
        with pytest.raises(SourceContractError, match=f"{count} node_ids for 9 nodes"):
            tc.PerturbationTable(graph, rows)


@pytest.mark.parametrize("ids", [np.arange(10, 19), torch.arange(10, 19), pd.Index(range(10, 19))])
def test_names_of_nodes_may_be_an_array(graph, ids) -> None:
    graph["gene"].node_ids = ids
    assert tc.PerturbationTable(graph, [["12"], ["18", 0]]).table.ids.tolist() == [2, 0, 8]


@pytest.mark.parametrize("bad", [["a", ""], ["a", " \t"], ["a", " a"], ["a ", "a"]])
def test_names_of_samples_tell_them_apart(graph, bad) -> None:
    with pytest.raises(SourceContractError, match="row"):
        tc.PerturbationTable(graph, [[1], [2]], source_ids=bad)


@pytest.mark.parametrize("cell", ["", " ", "NA", "nan", "None"])
def test_a_cell_without_a_name_names_no_sample(tmp_path: Path, graph, cell) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"id,genes,f\na,Y001,1\n{cell},Y002,2\n")
    with pytest.raises(SourceContractError, match=r"t\.csv: row 1: .* in column 'id' is no name"):
        tc.PerturbationTable.from_csv(path, graph, id_column="id")


def test_names_of_labels_are_text_of_python(graph) -> None:
    source = tc.PerturbationTable(
        graph, [[1]], phenotypes={np.str_("f"): [1.0]}, statistics={np.str_("s"): [1.0]}
    )
    assert [type(name) for name in (*source.table.phenotypes, *source.table.statistics)] == [str, str]
    for bad in ("", " ", 3, None, b"f"):
        with pytest.raises(SettingError, match="is the name of a column, expected text"):
            tc.PerturbationTable(graph, [[1]], phenotypes={bad: [1.0]})
    with pytest.raises(SettingError, match="name of two columns"):
        tc.PerturbationTable(graph, [[1]], phenotypes={"f": [1.0], " f": [2.0]})


NO_GRAPHS = [None, nx.path_graph(3), "graph", Path("graph"), [], {}, pd.DataFrame(), np.zeros((2, 2)), 3]


@pytest.mark.parametrize("other", NO_GRAPHS, ids=lambda other: type(other).__name__)
def test_what_is_no_base_graph_is_refused(tmp_path: Path, other) -> None:
    (tmp_path / "t.csv").write_text("genes,f\nY001,1\n")
    for make in (
        lambda: tc.PerturbationTable(other, [[0]]),
        lambda: tc.PerturbationTable.from_csv(tmp_path / "t.csv", other),
    ):
        with pytest.raises(SettingError, match=r"base_graph is .*expected Data or HeteroData(.|\n)*fix: "):
            make()


def test_files_and_frames_are_not_mixed_up(tmp_path: Path, graph) -> None:
    frame = pd.DataFrame({"genes": ["Y001"], "f": [1.0]})
    for path in (frame, graph, None, 3, io.StringIO("genes,f\n"), ["t.csv"], b"t.csv"):
        with pytest.raises(SettingError, match="expected the path of a file"):
            tc.PerturbationTable.from_csv(path, graph)
    with pytest.raises(SettingError, match="is an address"):
        tc.PerturbationTable.from_csv("s3://bucket/t.csv", graph)
    for path in ("t.csv", tmp_path / "t.csv"):
        with pytest.raises(SourceContractError, match="from_csv"):
            tc.PerturbationTable(graph, path)
        for role in ("phenotypes", "statistics"):
            with pytest.raises(SettingError, match="from_csv"):
                tc.PerturbationTable(graph, [[1]], **{role: path})


@pytest.mark.parametrize(
    ("interacting", "said"),
    [
        ([1e30, 1e30, 1.0], r"row 2: 'epsilon' is -1\.0*1?e\+60"),
        ([1e-5, 1.0, 3e38], ""),
        ([np.inf, 0.0, 1.0], ""),
        ([np.inf, 1e30, 1.0], ""),
    ],
)
def test_scores_that_float32_cannot_hold(graph, interacting, said) -> None:
    columns, rows = {"fitness": [1.0, *interacting]}, [["X"], ["Y001"], ["Y002"], ["Y001", "Y002"]]
    settings = {"phenotypes": columns, "interactions": True, "unknown": "skip"}
    if said:
        with pytest.raises(SourceContractError, match=said.replace("row 2", "row 3")):
            tc.PerturbationTable(graph, rows, **settings)
    else:
        f = np.float64(interacting)
        with np.errstate(invalid="ignore"):
            wanted = np.float32(f[2] - f[0] * f[1])
        found = tc.PerturbationTable(graph, rows, **settings).table.values[2, 1]
        assert np.array_equal(found, wanted, equal_nan=True)
    with pytest.raises(SourceContractError, match="rows 1 and 2 are the same knock-out"):
        tc.PerturbationTable(
            graph, [["X"], ["Y001"], ["Y001"]], phenotypes={"f": [1.0] * 3}, interactions=True, unknown="skip"
        )


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # torch: layouts and types of theirs are in beta
def test_sparse_quantized_and_masked_columns_are_their_values(graph) -> None:
    dense = np.array([[0.0], [2.0]])
    columns = [sparse.csr_array(dense), sparse.coo_matrix(dense), torch.tensor(dense).to_sparse()]
    columns.append(torch.quantize_per_tensor(torch.tensor([0.0, 2.0]), 0.5, 0, torch.quint8))
    for column in columns:
        source = tc.PerturbationTable(graph, [[1], [2]], phenotypes={"f": column})
        assert source.table.values.tolist() == dense.tolist()
    for column in (
        torch.zeros(2, device="meta"),
        pd.MultiIndex.from_tuples([(1, 2), (3, 4)]),
        np.array("ab"),
    ):
        for argument in ({"phenotypes": {"f": column}}, {"source_ids": column}):
            with pytest.raises(SourceContractError):
                tc.PerturbationTable(graph, [[1], [2]], **argument)
    for matrix in (sparse.csr_matrix(np.eye(9, dtype=int)), sparse.coo_array(np.eye(9, dtype=int))):
        with pytest.raises(SourceContractError, match="zeros and ones"):
            tc.PerturbationTable(graph, matrix)


@pytest.mark.parametrize(
    "infinite", [Decimal("Infinity"), Decimal("-Infinity"), np.float16(np.inf), math.inf]
)
def test_infinities_of_every_type_fall_under_the_policy(graph, infinite) -> None:
    columns = {"f": [0.5, infinite]}
    found = tc.PerturbationTable(graph, [[1], [2]], phenotypes=columns).table.values[1, 0]
    assert found == float(infinite)
    with pytest.raises(SourceContractError, match=r"row 1: 'f' is -?inf"):
        tc.PerturbationTable(graph, [[1], [2]], phenotypes=columns, nan="error")


def test_ids_with_offsets_in_a_list_are_ragged(graph) -> None:
    for ids, ptr in (([1, 2, 3], np.array([0, 1, 3])), (np.array([1, 2, 3]), [0, 1, 3])):
        source = tc.PerturbationTable(graph, (ids, ptr))
        assert [source[k].perturbed.tolist() for k in range(2)] == [[1], [2, 3]]


@pytest.mark.parametrize("name", ["", " ", "NA", "nan", "None"])
def test_what_stands_for_no_name_is_not_kept_as_one(graph, name) -> None:
    with pytest.raises(SourceContractError, match=r"row 1: .* is a missing value"):
        tc.PerturbationTable(graph, [["YXX"], ["Y001", name]], unknown="keep")
    graph["gene"].node_ids = [*graph["gene"].node_ids[:8], name.strip()]
    if name.strip():  # a gene of that name
        assert tc.PerturbationTable(graph, [["YXX"], [name]], unknown="keep").table.ids.tolist() == [8]


def test_half_a_character_is_no_text(graph) -> None:
    for arguments in ({"source_ids": ["a", "\ud800"]}, {"phenotypes": {"\udc80": [1.0, 2.0]}}):
        with pytest.raises(CacheError):
            tc.PerturbationTable(graph, [[1], [2]], **arguments)


def test_an_alias_file_that_is_wrong_is_named_and_not_the_table(tmp_path: Path, graph) -> None:
    (tmp_path / "t.csv").write_text("genes,f\nY001,1\n")
    with pytest.raises(SourceContractError, match=r"^no file at .*aliases\.tsv"):
        tc.PerturbationTable.from_csv(tmp_path / "t.csv", graph, aliases=tmp_path / "aliases.tsv")


@pytest.mark.parametrize("index", [slice(2), [0, 1], "0", 1.0, None])
def test_a_source_gives_one_sample_at_a_time(index):
    with pytest.raises(SettingError, match=r"one sample at a time, .* is no position"):
        tc.testing.tiny_source(4)[index]
    assert tc.testing.tiny_source(4)[np.int64(-1)].source_id == tc.testing.tiny_source(4)[3].source_id
