"""Tables of labels: what is a label, what is no number, and the fast reader against the plain one and pandas."""

import csv
import gzip
import io
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from graphs import cell_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, SettingError, SourceContractError
from torchcell_cache.sources.delimited import MISSING
from torchcell_cache.sources.label_tables import Roles, read_table

GENES = Roles(("genes",))


def quick(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


@pytest.fixture
def read(tmp_path: Path):
    """A file of this text as a source."""
    graph = cell_graph()

    def of(text: str | bytes, name: str = "screen.csv", **settings) -> tc.PerturbationTable:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tc.PerturbationTable.from_csv(path, graph, **settings)

    return of


def labels(source) -> dict[str, list[float]]:
    table = source.table
    return {
        name: table.values[:, k].tolist() for k, name in enumerate((*table.phenotypes, *table.statistics))
    }


def outcome(path: Path, roles: Roles, fast: bool, **settings):
    try:
        found = read_table(path, roles, fast=fast, **settings)
    except CacheError as error:
        return type(error).__name__, str(error)
    columns = {**found.phenotypes, **found.statistics}
    return (
        found.perturbed.lists(),
        repr({k: v.tolist() for k, v in columns.items()}),
        found.source_ids,
        found.notes,
    )


# The two readers


ODD = (
    "0.5",
    "-2.5e3",
    "+1",
    ".5",
    "5.",
    "1e400",
    "inf",
    "-Infinity",
    "nan",
    "NAN",
    "nan(1)",
    "1_0",
    "95%",
    "0,5",
    "0x10",
    "9007199254740993",
    "x",
    "G1|G2",
    "-",
    "1.2.3",
    "NA",
)
odd_cells = st.sampled_from([*ODD, " 3 ", "\u22125", "\uff11\uff12", "ok 5", "\u00a07", ""])
cells = st.one_of(
    odd_cells, st.text(st.sampled_from(' ,;"\t\n\rab1.|é-'), max_size=4), st.sampled_from(sorted(MISSING))
)
grids = st.lists(st.lists(cells, min_size=1, max_size=3), max_size=5)


@quick(250)
@given(grids, st.sampled_from(",\t;"), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.booleans())
def test_the_fast_reader_is_the_plain_one(tmp_path: Path, grid, separator, end, final, named) -> None:
    text = end.join(separator.join(row) for row in [["genes", "a"], *grid]) + end * final
    path = tmp_path / "t.txt"
    path.write_bytes(text.encode())
    roles = Roles(("genes",), phenotypes=("a",)) if named else GENES
    assert outcome(path, roles, True, delimiter=separator) == outcome(path, roles, False, delimiter=separator)


@quick(150)
@given(grids, st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), st.sampled_from(["\n", "\r\n"]))
def test_the_fast_reader_is_the_plain_one_on_quoted_tables(tmp_path: Path, grid, quoting, end) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=quoting, lineterminator=end)
    writer.writerows([["genes", "a", "b"], *([*row, "", ""][:3] for row in grid)])
    path = tmp_path / "t.csv"
    path.write_bytes(file.getvalue().encode())
    assert outcome(path, GENES, True) == outcome(path, GENES, False)


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@quick(60)
@given(
    st.lists(st.one_of(numbers.map(repr), st.sampled_from(sorted(MISSING))), min_size=1, max_size=6),
    st.sampled_from([(".csv", ","), (".tsv", "\t"), (".CSV.GZ", ","), (".tab", "\t")]),
    st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_labels_as_pandas_reads_them(tmp_path: Path, column, kind, encoding, end) -> None:
    (suffix, separator), path = kind, tmp_path / "t"
    rows = [["genes", "fitness", "note"], *(["Y001", cell, "é"] for cell in column)]
    data = "".join(separator.join(row) + end for row in rows).encode(encoding)
    path = tmp_path / f"t{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("GZ") else data)
    wanted = pd.read_csv(
        io.BytesIO(data), sep=separator, encoding=encoding, na_values=["None"], float_precision="round_trip"
    )
    for fast in (True, False):
        found = read_table(path, GENES, encoding=None if "utf-8" in encoding else encoding, fast=fast)
        np.testing.assert_array_equal(found.phenotypes["fitness"], wanted["fitness"].to_numpy(np.float64))
        missing = int(wanted["fitness"].isna().sum())
        labels = f"labels fitness ({missing:,} without a value)" if missing else "labels fitness"
        assert found.notes == (f"{path.name}: {len(column)} rows; {labels}; no labels: note",)


@pytest.mark.parametrize("blank", ["\x1c", "\x1f", "\x85", "\u2028", "\u00a0", "\x0b"])
def test_blanks_of_every_kind_around_a_number_mean_nothing(tmp_path: Path, blank) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"genes,f\nY001,{blank}-1e3{blank}\nY002,{blank}NA\n", encoding="utf-8")
    for fast in (True, False):
        np.testing.assert_array_equal(read_table(path, GENES, fast=fast).phenotypes["f"], [-1000, np.nan])


def test_a_large_table_is_one_chunk_after_the_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genes = [[f"Y{k:03d}" for k in row] for row in rng.integers(0, 700, (60_000, 2)).tolist()]
    frame = pd.DataFrame(
        {"genes": ["|".join(row) for row in genes], "f": rng.random(60_000), "id": range(60_000)}
    )
    for name, roles in (
        ("t.csv", Roles(("genes",), id_column="id")),
        ("t.parquet", Roles(("genes",), id_column="id")),
    ):
        frame.to_csv(tmp_path / name, index=False) if name == "t.csv" else frame.to_parquet(tmp_path / name)
        found = read_table(tmp_path / name, roles)
        assert found.perturbed.lists() == genes
        assert found.phenotypes["f"].tolist() == frame["f"].tolist()
        assert found.source_ids == list(map(str, range(60_000)))


def test_without_pyarrow_the_standard_library_reads(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "t.csv"
    path.write_text("genes,f\nA|B,1\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "torchcell_cache.sources.arrow_columns", raising=False)
    monkeypatch.delattr(tc.sources, "arrow_columns", raising=False)
    assert outcome(path, GENES, True) == outcome(path, GENES, False)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceContractError, match="pip install"):
        read_table(tmp_path / "t.parquet", GENES)


# What is a label


def test_what_became_a_label_is_said(read, capsys, tmp_path) -> None:
    source = read("genes,fitness,strain,empty,plate\nY001,0.5,a1,,3\nY002,NA,b2,,4\n", nan="keep")
    assert source.table.phenotypes == ("fitness", "empty", "plate")
    said = (
        "screen.csv: 2 rows; labels fitness (1 without a value), empty (2 without a value), plate; "
        "no labels: strain"
    )
    assert said in source.notes
    assert said in source.report()
    tc.build(tmp_path / "s", source=source, processor=tc.Perturbation(), progress=True)
    assert said in capsys.readouterr().err
    tc.build(tmp_path / "quiet", source=source, processor=tc.Perturbation(), progress=False)
    assert said not in capsys.readouterr().err


@pytest.mark.parametrize("marker", sorted(MISSING))
@pytest.mark.parametrize("row", [0, 1, 149])
def test_missing_values_fall_under_the_policy_wherever_they_stand(read, marker, row) -> None:
    column = ["0.5"] * 150
    column[row] = marker
    text = "genes,fitness\n" + "".join(f"Y00{k % 9},{cell}\n" for k, cell in enumerate(column))
    found = labels(read(text, nan="keep"))["fitness"]
    assert [k for k, value in enumerate(found) if math.isnan(value)] == [row]
    with pytest.raises(SourceContractError, match=rf"screen\.csv: row {row}: 'fitness' is NaN"):
        read(text)


ALMOST = [
    "95%",
    "0,5",
    "2_5",
    "\u22120.5",
    "1,234",
    "1.234,5",
    "<0.01",
    "1 000",
    "0.5*",
    "\u20130.5",
    "0.5 \u00b1 0.1",
    "0.5 (0.1)",
    "0.5[0.1]",
    "(0.5)",
    "1.0D-3",
    "2.5x10^-3",
    "2.5 \u00d7 10\u22123",
    "12,34,567",
    "$1.50",
    "\u20ac0,5",
    "3\u20ac",
]


@pytest.mark.parametrize("cell", [*ALMOST, "-", "n.d.", "TRUE", "0.5h", "#DIV/0!", "1/2", "na", "?", "0x1F"])
@pytest.mark.parametrize("first", [True, False])
def test_a_column_that_mixes_numbers_and_text_is_refused(read, cell, first) -> None:
    column = [cell, "0.5"] if first else ["0.5", cell]
    rows = "".join(f'Y00{k},"{text}",3\n' for k, text in enumerate(column))
    with pytest.raises(SourceContractError, match=f"row {0 if first else 1}") as caught:
        read(f"genes,fitness,n\n{rows}")
    assert all(word in str(caught.value) for word in (repr(cell), "'fitness'", "'0.5'"))


@pytest.mark.parametrize("cell", ALMOST)
def test_a_column_of_numbers_of_another_locale_is_no_text(read, cell) -> None:
    with pytest.raises(SourceContractError, match=r"row 0: .* in column 'fitness' is not a number") as caught:
        read(f'genes,fitness,n\nY001,"{cell}",3\nY002,"{cell}",4\n')
    assert repr(cell) in str(caught.value)


@pytest.mark.parametrize(
    "cell",
    [
        "2024-01-31",
        "01.02.2024",
        "1.02.24",
        "1.2.3",
        "96-7",
        "A01",
        "YAL001C",
        "TRUE",
        "n.d.",
        "-",
        "1)",
        "3 x 100",
        "24 h",
    ],
)
def test_a_column_of_text_is_left_out_and_listed(read, cell) -> None:
    source = read(f"genes,other,n\nY001,{cell},3\nY002,{cell},4\n")
    assert labels(source) == {"n": [3, 4]}
    assert "no labels: other" in source.report()


@pytest.mark.parametrize(
    "text", ["genes\nY001\n", "genes,essential\nY001,TRUE\nY002,FALSE\n", "id,genes\nx,Y001\n"]
)
def test_a_table_without_labels_is_refused_unless_asked_for(read, text) -> None:
    with pytest.raises(SourceContractError, match=r"no column of numbers(.|\n)*phenotypes=\[\]"):
        read(text)
    source = read(text, phenotypes=[])
    assert source.table.phenotypes == ()
    assert "labels none" in source.report()


def test_labels_that_are_named(read) -> None:
    text = "genes,fitness,note,fitness_se\nY001,0.5,x,0.25\n"
    for given_names in ("fitness", ["fitness"], ("fitness",)):
        assert labels(read(text, phenotypes=given_names)) == {"fitness": [0.5]}
    assert read(text, phenotypes="fitness", statistics="fitness_se").table.statistics == ("fitness_se",)
    assert read(text, statistics=["fitness_se"]).table.phenotypes == ()
    for more in ("", 'Y002,0.5,"1,5",\n'):
        with pytest.raises(SourceContractError, match="row 0: 'x' in column 'note' is not a number"):
            read(text + more, phenotypes=["note"])
    with pytest.raises(SourceContractError, match="no column 'f'; it has"):
        read(text, phenotypes=["f"])


def test_whole_numbers_that_would_change_are_refused(read) -> None:
    for value in ("9007199254740993", "-36028797018963969", "18446744073709551615"):
        with pytest.raises(SourceContractError, match=f"row 1: '{value}' in column 'n' has more digits"):
            read(f"genes,n\nY001,1\nY002,{value}\n")


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**60 + 2**20, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("kind", ["csv", "plain", "int", "decimal", "text"])
def test_whole_numbers_of_every_file_stay_whole_or_are_refused(tmp_path: Path, value, kind) -> None:
    """A Parquet column of whole numbers must not be compared after it was rounded."""
    path = tmp_path / ("t.csv" if kind in ("csv", "plain") else "t.parquet")
    if path.suffix == ".csv":
        path.write_text(f"genes,n\nA,1\nB,{value}\n")
    else:
        whole = pa.array([1, value], pa.uint64() if value >= 2**63 else pa.int64())
        column = {
            "int": whole,
            "decimal": whole.cast(pa.decimal128(30, 0)),
            "text": pa.array(["1", str(value)]),
        }
        pq.write_table(pa.table({"genes": ["A", "B"], "n": column[kind]}), path)
    with pytest.raises(SourceContractError, match=rf"row 1: '{value}' in column 'n' has more digits"):
        read_table(path, GENES, fast=kind != "plain")


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("cell", ["1e400", "-1e400", "9" * 400, "1.5E309", " 1e400 "])
def test_a_number_beyond_floats_is_no_infinity(tmp_path: Path, cell, fast) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"genes,n\nA,1\nB,{cell}\n")
    with pytest.raises(SourceContractError, match=r"row 1: .* in column 'n' is beyond what float32 holds"):
        read_table(path, GENES, fast=fast)
    path.write_text("genes,n\nA,1\nB,inf\nC,-Infinity\n")
    assert read_table(path, GENES, fast=fast).phenotypes["n"].tolist() == [1, math.inf, -math.inf]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", ["Unnamed: 0", "index", "level_0", "rownames", "...1", "X", "Unnamed: 0.1"])
def test_numbers_of_rows_are_no_labels(tmp_path: Path, name, fast) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{name},genes,f\n0,A,0.5\n2,B,0.25\n")
    found = read_table(path, GENES, fast=fast)
    assert list(found.phenotypes) == ["f"]
    assert f"no labels: {name} (numbers of rows)" in found.notes[0]
    assert list(read_table(path, Roles(("genes",), phenotypes=(name,))).phenotypes) == [name]
    if not name.startswith("Unnamed"):  # measurements that are called like numbers of rows
        path.write_text(f"{name},genes,f\n1,A,0.5\n1,B,0.25\n")
        assert list(read_table(path, GENES, fast=fast).phenotypes) == [name, "f"]
        path.write_text(f"{name},genes,f\n1.25,A,0.5\n1,B,0.25\n")
        assert list(read_table(path, GENES, fast=fast).phenotypes) == [name, "f"]


@pytest.mark.parametrize(
    "names", [np.array(["f"]), pd.Index(["f"]), pd.Series(["f"]), (n for n in "f"), np.str_("f")]
)
def test_names_of_columns_in_every_container(read, names) -> None:
    source = read("genes,f,g\nY001,1,2\n", phenotypes=names)
    assert source.table.phenotypes == ("f",)
    assert type(source.table.phenotypes[0]) is str


def test_a_header_that_r_wrote_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"genes","f"\n"1","A",0.5\n"2","B",1\n')
    for fast in (True, False):
        with pytest.raises(
            SourceContractError, match=r"row 0 has 3 cells, the header has 2(.|\n)*col.names=NA"
        ):
            read_table(path, GENES, fast=fast)


# The files


@pytest.mark.parametrize("header", ["genes,f,genes,f", "genes,genes,f", "genes, genes,f"])
def test_a_header_with_names_twice_is_refused_with_all_of_them(read, header) -> None:
    names = [name.strip() for name in header.split(",")]
    with pytest.raises(SourceContractError, match="more than once") as caught:
        read(f"{header}\nY001,1,Y002,2\n")
    assert all((repr(name) in str(caught.value)) == (names.count(name) > 1) for name in names)


def test_stray_quotes_in_tabs_are_text(read) -> None:
    text = 'genes\tnote\tf\nY001\t"5 prime\t0.5\nY002\t3" end\t1\nY003\t"a" b\t2\n'
    assert labels(read(text, "screen.tsv")) == {"f": [0.5, 1, 2]}


def test_an_open_quote_in_a_csv_does_not_swallow_rows(read) -> None:
    with pytest.raises(SourceContractError, match="quote"):
        read('genes,note,f\nY001,"5 prime,0.5\nY002,ok,0.75\nY003,3" end,0.25\n')


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff", "genes,f\n"])
def test_files_without_rows_are_refused(read, text) -> None:
    with pytest.raises(SourceContractError, match=r"screen\.csv (is empty|has a header but no rows)"):
        read(text)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_named(read, delimiter) -> None:
    text = f"genes{delimiter}f\nY001+Y002{delimiter}0.5\n"
    if delimiter != "|":
        with pytest.raises(SourceContractError, match="pass delimiter="):
            read(text)
    source = read(text, delimiter=delimiter, separator="+")
    assert source[0].perturbed.tolist() == [1, 2]
    with pytest.raises(SettingError, match="separator is empty"):
        read(text, separator="")


def test_several_columns_of_names(read) -> None:
    source = read("query,array,f\nY001,Y002|Y003,1\nY004,,2\n", perturbed=["query", "array"])
    assert [source[k].perturbed.tolist() for k in range(2)] == [[1, 2, 3], [4]]


def test_a_fast_and_a_plain_row_of_another_length(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for row, fast in itertools.product(["Y001", "Y001,1,2", "Y001,1,"], (True, False)):
        path.write_text(f"genes,f\nY002,1\n{row}\n")
        with pytest.raises(SourceContractError, match=r"t\.csv: row 1 has \d cells, the header has 2"):
            read_table(path, GENES, fast=fast)


# Parquet


def parquet(path: Path, columns: dict, **settings) -> Path:
    pd.DataFrame(columns, **settings).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pd.array([0.5, pd.NA], "Float64"), [0.5, math.nan]),
        (pd.array([3, pd.NA], "Int64"), [3, math.nan]),
        (pd.array([True, pd.NA], "boolean"), [1, math.nan]),
        (pd.array(["0.5", None], "string"), [0.5, math.nan]),
        (pd.Categorical([7, 8]), [7, 8]),
        (pd.Categorical(["0.5", "NA"]), [0.5, math.nan]),
        ([None, None], [math.nan, math.nan]),
        (np.array([1, 2], np.float16), [1, 2]),
        (np.array([1, 2], np.uint8), [1, 2]),
    ],
)
def test_types_of_parquet_that_are_numbers(tmp_path: Path, column, values) -> None:
    path = parquet(tmp_path / "t.parquet", {"genes": ["Y001", "Y002"], "f": column})
    found = labels(tc.PerturbationTable.from_csv(path, cell_graph(), nan="keep"))
    np.testing.assert_array_equal(found["f"], values)


@pytest.mark.parametrize(
    "column", [pd.to_datetime(["2024-01-01", None]), ["x", None], [[1.0], [2.0]], [b"1", b"2"]]
)
def test_types_of_parquet_that_are_none(tmp_path: Path, column) -> None:
    path = parquet(tmp_path / "t.parquet", {"genes": ["Y001", "Y002"], "f": column, "n": [1, 2]})
    source = tc.PerturbationTable.from_csv(path, cell_graph())
    assert labels(source) == {"n": [1, 2]}
    assert "no labels: f" in source.report()
    with pytest.raises(SourceContractError, match=r"row 0: .* in column 'f' is not a number"):
        tc.PerturbationTable.from_csv(path, cell_graph(), phenotypes="f")


def test_lists_of_names_and_an_index_in_parquet(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "t.parquet", {"genes": [["Y001", "Y004"], ["Y002"]], "f": [1.0, 2.0]}, index=[7, 3]
    )
    source = tc.PerturbationTable.from_csv(path, cell_graph())
    assert [source[k].perturbed.tolist() for k in range(2)] == [[1, 4], [2]]
    assert labels(source) == {"f": [1, 2]}
    index = pd.Index(["Y001", "Y002"], name="genes")
    path = parquet(tmp_path / "i.parquet", {"f": [1.0, 2.0]}, index=index)
    assert tc.PerturbationTable.from_csv(path, cell_graph())[1].perturbed.tolist() == [2]


LISTS = pa.array([["Y001", "Y004"], ["Y002", "Y003"]])
NAMES = [
    (pa.array(["Y001|Y004", None], pa.string_view()), [[1, 4], []]),
    (pa.array(["Y001|Y004", None], pa.large_string()), [[1, 4], []]),
    (pa.array(["Y001|Y004", "Y002"]).dictionary_encode(), [[1, 4], [2]]),
    (LISTS.cast(pa.list_(pa.string(), 2)), [[1, 4], [2, 3]]),
    (LISTS.cast(pa.large_list(pa.string())), [[1, 4], [2, 3]]),
]


@pytest.mark.parametrize(("names", "wanted"), NAMES, ids=[str(names.type) for names, _ in NAMES])
def test_names_of_every_type_of_parquet(tmp_path: Path, names, wanted) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table([names, pa.array([1.0, 2.0]), pa.array([3, 4])], names=["genes", "f", ""]), path)
    source = tc.PerturbationTable.from_csv(path, cell_graph(), empty="keep")
    assert [source[k].perturbed.tolist() for k in range(2)] == wanted
    assert source.table.phenotypes == ("f",)


@pytest.mark.parametrize("ids", [[b"a", b"b"], [["a"], ["b"]], ["a", None]])
def test_what_names_no_sample_in_parquet(tmp_path: Path, ids) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"genes": ["Y001", "Y002"], "f": [1.0, 2.0], "id": ids}), path)
    with pytest.raises(SourceContractError, match=r"t\.parquet: .*column 'id'"):
        tc.PerturbationTable.from_csv(path, cell_graph(), id_column="id")


@pytest.mark.parametrize("data", [b"", b"no parquet", b"PAR1" * 9])
def test_what_is_no_parquet_is_named(tmp_path: Path, data) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(data)
    with pytest.raises(SourceContractError, match=r"t\.parquet cannot be read as Parquet"):
        tc.PerturbationTable.from_csv(path, cell_graph())
    for names, said in (
        ([0.5], "double"),
        ([[["Y001"]]], "list"),
        ([[{"g": "Y001"}]], "struct"),
        ([b"Y001"], "binary"),
    ):
        with pytest.raises(SourceContractError, match=rf"holds .*{said}.*, expected names"):
            tc.PerturbationTable.from_csv(parquet(path, {"genes": names, "f": [1]}), cell_graph())
    (tmp_path / "parts.parquet").mkdir()
    with pytest.raises(SourceContractError, match=r"parts\.parquet is a directory"):
        tc.PerturbationTable.from_csv(tmp_path / "parts.parquet", cell_graph())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("header", [",genes,f", ",genes,f,,", '"","genes","f"'])
def test_columns_without_a_name_are_no_labels(tmp_path: Path, header, fast) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n0,Y001,0.5{',,' if header.endswith(',') else ''}\n")
    found = read_table(path, GENES, fast=fast)
    assert list(found.phenotypes) == ["f"]
    assert f"no labels: {3 if header.endswith(',') else 1} without a name" in found.notes[0]
    ids = Roles(("genes",), id_column="")
    if header.endswith(","):
        with pytest.raises(SourceContractError, match="no one column ''"):
            read_table(path, ids, fast=fast)
    else:
        assert read_table(path, ids, fast=fast).source_ids == ["0"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("Genes,f", "letter case"),
        ("# by hand", "it has"),
        ("genes f", "delimiter=' '"),
        ('"genes;f"', "delimiter=';'"),
    ],
)
def test_a_column_that_is_not_there_is_looked_for(read, header, said) -> None:
    with pytest.raises(SourceContractError, match="no column 'genes'") as caught:
        read(f"{header}\nY001{',1' if ',' in header else ''}\n")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"encoding": 8}, "encoding=8"),
        ({"encoding": "hex"}, "encoding='hex'"),
        ({"encoding": "a\0"}, "encoding="),
        ({"delimiter": 8}, "delimiter=8"),
        ({"phenotypes": [3]}, "3 is no name"),
        ({"perturbed": [None]}, "None is no name"),
        ({"perturbed": []}, "names no column"),
        ({"perturbed": 1}, "perturbed: 1 is no name"),
        ({"phenotypes": 1}, "phenotypes: 1 is no name"),
        ({"phenotypes": {"f"}}, "is no name of a column"),
        ({"phenotypes": {"f": "g"}}, "is no name of a column"),
        ({"phenotypes": b"f"}, "is no name of a column"),
        ({"statistics": 1.5}, "statistics: 1.5 is no name"),
        ({"id_column": ["genes"]}, "id_column="),
        ({"id_column": 3}, "id_column=3"),
        ({"separator": 1}, "separator=1"),
        ({"separator": None}, "separator=None"),
        ({"separator": b"|"}, "separator="),
    ],
)
def test_settings_of_reading_that_are_none(read, setting, said) -> None:
    with pytest.raises(SettingError, match=said):
        read("genes,f\nY001,1\n", **setting)
