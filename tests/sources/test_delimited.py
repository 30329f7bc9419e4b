"""Delimited files against the standard library and pandas: encodings, separators, quotes, packing, odd headers."""

import bz2
import csv
import gzip
import io
import lzma
import re
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow.feather
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.delimited import read_rows, read_text, separator_of
from torchcell_cache.sources.label_tables import Roles, read_table
from torchcell_cache.sources.yeast.gem import read_yeast_gem

TEXT = "gene,score,note\nYAL001C,0.5,café\nYAL002W,-1,x\n"
ROWS = [line.split(",") for line in TEXT.splitlines()]

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
cell = st.text(st.sampled_from("aZ09 ,;\t|\"'#éß中\n-."), max_size=6)
tables = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=5)
)


def written(path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


@quick
@given(
    tables, st.sampled_from([",", ";", "|"]), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans()
)
def test_quoted_tables_come_back_as_they_were_written(
    tmp_path: Path, rows, separator, end, mark, packed
) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator, lineterminator=end).writerows(rows)
    data = file.getvalue().encode("utf-8-sig" if mark else "utf-8")
    path = written(tmp_path / "t.csv", gzip.compress(data) if packed else data)
    assert list(read_rows(path, separator=separator)) == rows
    found = pd.read_csv(
        io.BytesIO(data), sep=separator, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False
    )
    assert found.to_numpy().tolist() == [[c.replace("\r\n", "\n") for c in row] for row in rows]


@quick
@given(tables, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_tabs_separate_and_quotes_are_text(tmp_path: Path, rows, end, encoding) -> None:
    rows = [[c.replace("\t", "").replace("\n", "") or "-" for c in row] for row in rows]
    path = written(tmp_path / "t.tsv", end.join("\t".join(row) for row in rows), encoding)
    assert list(read_rows(path, encoding=encoding.replace("-sig", ""))) == rows


@pytest.mark.parametrize(
    "encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "mac-roman"]
)
def test_other_encodings_are_refused_or_named(tmp_path: Path, encoding) -> None:
    path = written(tmp_path / "t.csv", TEXT, encoding)
    with pytest.raises(SourceContractError, match=r"t\.csv(.|\n)*encoding="):
        read_text(path)
    assert list(read_rows(path, encoding=encoding)) == ROWS


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_the_encoding_that_is_advised_is_the_right_one(tmp_path: Path, name, encoding) -> None:
    data = "genes,medium\nYAL001C,süß\n".encode(encoding)
    path = written(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(SourceContractError) as caught:
        read_text(path)
    advised = re.search('encoding="(.*)"', str(caught.value))
    assert advised
    assert list(read_rows(path, encoding=advised[1])) == [["genes", "medium"], ["YAL001C", "süß"]]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_no_encoding_is_advised_where_none_can_be_given(tmp_path: Path, encoding) -> None:
    (tmp_path / "t.tsv").write_bytes("YAL001C\tsüß\n".encode(encoding))
    (tmp_path / "t.yml").write_bytes("genes: [süß]\n".encode(encoding))
    graph = {"graphs": {"n": [("A", "B")]}, "gene_set": ["A", "B"]}
    readers = (
        lambda: list(read_rows(tmp_path / "t.tsv")),
        lambda: tc.sources.cell_graph(**graph, aliases=tmp_path / "t.tsv"),
        lambda: tc.sources.cell_graph(graphs=graph["graphs"], gene_set=tmp_path / "t.tsv"),
        lambda: read_yeast_gem(tmp_path / "t.yml"),
    )
    for read in readers:
        with pytest.raises(SourceContractError) as caught:
            read()
        assert caught.value.fix == "save it as UTF-8"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line", ["sep=,\r\n", '"sep=,"\r\n', "sep=;\n", "sep=,\r"])
def test_the_line_of_excel_that_names_the_separator_is_no_row(tmp_path: Path, line, encoding) -> None:
    path = written(tmp_path / "t.csv", line + "genes,fitness\nYAL001C,1\n", encoding)
    encoding = encoding.removesuffix("-sig")
    assert list(read_rows(path, encoding=encoding)) == [["genes", "fitness"], ["YAL001C", "1"]]
    for fast in (True, False):
        assert read_table(path, Roles(("genes",)), encoding=encoding, fast=fast).phenotypes["fitness"] == [1]
    path = written(tmp_path / "rows.csv", "a,b\n" + line + "c,d\n")
    assert len(list(read_rows(path))) == 3


def test_an_unknown_encoding_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="utf-99"):
        list(read_rows(written(tmp_path / "t.csv", TEXT), encoding="utf-99"))


@pytest.mark.parametrize("name", ["t.csv.gz", "t.csv", "T.CSV.GZ", "t.gz.csv"])
@pytest.mark.parametrize("packed", [True, False])
def test_gzip_is_known_by_its_content(tmp_path: Path, name, packed) -> None:
    data = TEXT.encode()
    path = written(tmp_path / name, gzip.compress(data) if packed else data)
    assert list(read_rows(path, separator=",")) == ROWS


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("t.csv"))
    return file.getvalue()


def _feather() -> bytes:
    file = io.BytesIO()
    pyarrow.feather.write_feather(pyarrow.table({"genes": ["A"]}), file)
    return file.getvalue()


PACKED = {
    "a tar archive": _tar(),
    "an Arrow file": _feather(),
    "packed by gzip twice": gzip.compress(gzip.compress(b"a,b\n")),
    "packed by bzip2": bz2.compress(b"a,b\n"),
    "packed by xz": lzma.compress(b"a,b\n"),
    "a database of SQLite": b"SQLite format 3\0",
    "an object of R": gzip.compress(b"X\n\0\0\0\3"),
}


@pytest.mark.parametrize("said", PACKED)
def test_files_that_are_something_else_are_called_so(tmp_path: Path, said) -> None:
    with pytest.raises(SourceContractError, match=rf"t\.csv\.gz is {said}"):
        list(read_rows(written(tmp_path / "t.csv.gz", PACKED[said])))


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("t.csv", TEXT)
    return file.getvalue()


BAD = {
    "cut.csv.gz": gzip.compress(TEXT.encode() * 50)[:-9],
    "flipped.csv.gz": gzip.compress(TEXT.encode() * 50)[:-20] + b"0" * 20,
    "random.csv.gz": bytes(range(128, 256)) * 3,
    "book.csv": _zip(),
    "frame.csv": b"PAR1 and so on",
    "zeros.csv": b"gene,score\nA,0\0.5\n",
    "open.csv": 'a,b\nc,"d\ne,f\n',
    "middle.csv": 'a,b\n"c"d,e\n',
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_such_text_are_named(tmp_path: Path, name) -> None:
    path = written(tmp_path / name, BAD[name])
    with pytest.raises(SourceContractError, match=name):
        list(read_rows(path))


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceContractError, match="nothing"):
        list(read_rows(tmp_path / "nothing.tsv"))
    with pytest.raises(SourceContractError, match="directory"):
        list(read_rows(tmp_path))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_long_cells_are_read_whatever_the_process_allows(tmp_path: Path, name) -> None:
    long = "x" * 140_000
    separator = separator_of(name)
    assert list(read_rows(written(tmp_path / name, f"a{separator}{long}\n"))) == [["a", long]]


@pytest.mark.parametrize(
    ("name", "separator"),
    [
        ("a.csv", ","),
        ("A.CSV", ","),
        ("a.Csv.GZ", ","),
        ("a.tsv", "\t"),
        ("a.tab", "\t"),
        ("a.txt", "\t"),
        ("a", "\t"),
    ],
)
def test_the_name_tells_the_separator(name, separator) -> None:
    assert separator_of(name) == separator
    assert separator_of("a.txt", ",") == ","


@pytest.mark.parametrize("separator", ["", ",,", '"', "\n", "\0"])
def test_what_separates_nothing_is_refused(tmp_path: Path, separator) -> None:
    with pytest.raises(SettingError, match="separator"):
        list(read_rows(written(tmp_path / "t.csv", TEXT), separator=separator))


def test_blanks_and_empty_lines(tmp_path: Path) -> None:
    text = "\ufeff\n protein1  protein2\t900 \r\n4932.A 4932.B 1\n   \n"
    path = written(tmp_path / "links.txt", text)
    assert list(read_rows(path, separator="blanks")) == [
        ["protein1", "protein2", "900"],
        ["4932.A", "4932.B", "1"],
    ]
    path = written(tmp_path / "t.csv", 'x,y\n\n"#b",z\n')
    assert list(read_rows(path)) == [["x", "y"], ["#b", "z"]]
