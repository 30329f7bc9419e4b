"""What a table takes as an id or a label: every value is what it says, or refused with its row."""

import datetime
import math
import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from graphs import cell_graph, plain_graph
from hypothesis import example, given
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, SettingError, SourceContractError

GRAPH = cell_graph()  # genes Y000 to Y008
LARGEST = float(np.finfo(np.float32).max)
RECORD = np.array([(0.5, 0.25)], dtype="f4,f4")[0]  # it has no dimension, but can be walked through


def ids_of(source: tc.PerturbationTable) -> list[list[int]]:
    return [source[k].perturbed.tolist() for k in range(len(source))]


def label(column: Any, **policies: Any) -> list[float]:
    source = tc.PerturbationTable(GRAPH, [[0]] * len(column), phenotypes={"f": column}, **policies)
    return [source[k].values[:, 0].tolist() for k in range(len(source))]


# Ids

NO_IDS = [
    1.9,
    np.float32(2.5),
    np.array(2.7),
    torch.tensor(1.5),
    math.nan,
    math.inf,
    None,
    pd.NA,
    pd.NaT,
    True,
    np.bool_(False),
    torch.tensor(True),
    b"Y001",
    np.bytes_(b"Y001"),
    1 + 0j,
    ["Y001"],
    {"Y001": 1},
    Decimal(1),
    datetime.date(2024, 1, 1),
    np.datetime64(3, "ns"),
    np.timedelta64(3, "ns"),
    2**70,
]


@pytest.mark.parametrize("with_names", [False, True])
@pytest.mark.parametrize("bad", NO_IDS, ids=repr)
def test_what_is_no_id_is_refused_with_its_row(bad: Any, with_names: bool) -> None:
    other = "Y002" if with_names else 2
    for rows in ([[other], [3, bad]], [(other,), (bad, other)], pd.Series([[other], [3, bad]], index=[1, 0])):
        with pytest.raises(SourceContractError, match="row 1"):
            tc.PerturbationTable(GRAPH, rows)


IDS = [
    3,
    3.0,
    np.int8(3),
    np.uint64(3),
    np.float64(3),
    np.array(3),
    torch.tensor(3),
    torch.tensor(3.0),
    "Y003",
]


@pytest.mark.parametrize("value", [*IDS, np.str_("Y003"), " Y003 "], ids=repr)
def test_one_node_in_every_way_to_say_it(value: Any) -> None:
    assert ids_of(tc.PerturbationTable(GRAPH, [[0, value], ["Y001"]])) == [[0, 3], [1]]


ROWS = [
    np.array([3, 1]),
    np.array([3.0, 1.0]),
    torch.tensor([3, 1]),
    {3, 1},
    frozenset((1, 3)),
    range(1, 4, 2),
    pd.Series([3, 1], index=[5, 9]),
    pd.array([3, 1], "Int64"),
    np.array(["Y003", "Y001"]),
    np.array(["Y001", 3], dtype=object),
    (k for k in (1, 3)),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_rows_of_every_kind(row: Any) -> None:
    assert ids_of(tc.PerturbationTable(GRAPH, [row, [2]])) == [[1, 3], [2]]


NO_ROWS = [
    "Y001",
    b"Y001",
    bytearray(b"\1"),
    None,
    math.nan,
    3,
    np.int64(3),
    np.array(3),
    {"Y001": 0.5},
    np.array([True, False, True]),
    torch.tensor([True]),
    pd.array([True, False]),
    np.array([[1, 2]]),
    np.array([3], "datetime64[ns]"),
    np.array([1.5]),
    pd.array([1, None], "Int64"),
    np.ma.array([1, 2], mask=[0, 1]),
]


@pytest.mark.parametrize("row", NO_ROWS, ids=repr)
def test_what_is_no_row_is_refused(row: Any) -> None:
    with pytest.raises(SourceContractError, match="row 1"):
        tc.PerturbationTable(GRAPH, [[0], row])


@pytest.mark.parametrize(
    "rows",
    [
        "Y001",
        None,
        3,
        {"a": [1]},
        {1, 2},
        np.array([1, 2]),
        np.array([[True]]),
        np.zeros((1, 1, 1), int),
        1.5,
    ],
    ids=repr,
)
def test_what_is_no_table_is_refused(rows: Any) -> None:
    with pytest.raises(CacheError):
        tc.PerturbationTable(GRAPH, rows)


def test_grids_say_where_they_are_wrong() -> None:
    grid = np.ma.array([[1, 8], [2, 3]], mask=[[0, 1], [0, 0]])
    assert ids_of(tc.PerturbationTable(GRAPH, grid)) == [[1], [2, 3]]
    assert ids_of(tc.PerturbationTable(GRAPH, torch.tensor([[1, -1], [2, 3]]))) == [[1], [2, 3]]
    assert ids_of(tc.PerturbationTable(GRAPH, np.array([["Y001", ""], ["Y002", None]], dtype=object))) == [
        [1],
        [2],
    ]
    for bad in (-2, 9):
        with pytest.raises(SourceContractError, match=f"row 1: .*{bad} is"):
            tc.PerturbationTable(GRAPH, np.array([[1, -1], [2, bad]]))
    for grid in (np.array([[1, -2]]), np.array([[1, 2**63 + 1]], dtype=np.uint64)):
        with pytest.raises(
            SourceContractError, match=r"row 0: .* is no id of a node\n.*-1 fills up shorter rows"
        ):
            tc.PerturbationTable(GRAPH, grid)
    with pytest.raises(SourceContractError, match="flatnonzero"):
        tc.PerturbationTable(GRAPH, np.eye(9, dtype=bool))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([0, 1.5, 2]), r"row 1: 1\.5"),
        (np.array([0.0, np.nan, 2]), "row 1: nan"),
        (np.array([0.0, -np.inf, 2]), "row 1: -inf is no whole number"),
        (np.array([0, 2**63 - 1, 2]), "row 1: id 9223372036854775807 is outside"),
        (np.array([True, False, True]), "bool"),
        (np.array(["Y001", "Y002", "Y003"]), "whole numbers"),
        (np.ma.array([0, 1, 2], mask=[0, 0, 1]), "row 1"),
        (np.array([0, 1, 9]), "row 1: id 9"),
        (np.array([0, 1]), "rise from 0 to 2"),
    ],
)
def test_ragged_ids_that_are_none(ids: Any, message: str) -> None:
    with pytest.raises(SourceContractError, match=message):
        tc.PerturbationTable(GRAPH, (ids, np.array([0, 1, 3])))
    floats = tc.PerturbationTable(GRAPH, (np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 3.0])))
    assert ids_of(floats) == [[0], [1, 2]]


@pytest.mark.parametrize("ptr", [[0, 2, 1, 3], [1, 3], [0, 1.5, 3], [False, True]])
def test_offsets_that_are_none(ptr: list[float]) -> None:
    with pytest.raises(SourceContractError):
        tc.PerturbationTable(GRAPH, (np.array([0, 1, 2]), np.array(ptr)))


def test_ids_and_names_in_one_table_need_names() -> None:
    assert ids_of(tc.PerturbationTable(GRAPH, [["Y001", 3], [2, "Y000"]])) == [[1, 3], [0, 2]]
    with pytest.raises(SourceContractError, match="row 1: id 9 is outside"):
        tc.PerturbationTable(GRAPH, [["Y001"], [9]])
    with pytest.raises(SourceContractError, match=r"row 1: 'Y001'.*no node_ids"):
        tc.PerturbationTable(plain_graph(), [[1], ["Y001", 2]])


ENTRIES = st.one_of(
    st.integers(-3, 12),
    st.floats(allow_nan=True),
    st.booleans(),
    st.none(),
    st.sampled_from(["Y000", "Y004", "XX", ""]),
    st.integers(-3, 12).map(np.int16),
    st.floats(width=32).map(np.float32),
    st.integers(0, 8).map(torch.tensor),
)


@given(st.lists(st.lists(ENTRIES, max_size=3), max_size=5))
@example([])
@example([[], []])
def test_any_rows_are_right_or_refused(rows: list[list[Any]]) -> None:
    """By a loop that looks at one entry at a time."""

    def node(entry: Any) -> int | None:
        if isinstance(entry, str):
            return GRAPH["gene"].node_ids.index(entry) if entry in GRAPH["gene"].node_ids else None
        if entry is None or isinstance(entry, bool):
            return None
        value = float(entry)
        return int(value) if value.is_integer() and 0 <= value < 9 else None

    wanted = [[node(entry) for entry in row] for row in rows]
    bad = [k for k, row in enumerate(wanted) if None in row or len(set(row)) < len(row)]
    if bad:
        with pytest.raises(SourceContractError) as caught:
            tc.PerturbationTable(GRAPH, rows)
        assert any(f"row {k}" in str(caught.value) for k in bad)
    else:
        assert ids_of(tc.PerturbationTable(GRAPH, rows)) == [sorted(row) for row in wanted]


# Labels

NO_LABELS = [
    "0.5",
    "TRUE",
    b"1",
    1 + 2j,
    np.complex64(1),
    torch.tensor(1j),
    datetime.datetime(2024, 1, 1),
    datetime.timedelta(1),
    np.datetime64("2024-01-01"),
    np.timedelta64(1, "D"),
    pd.Timestamp("2024-01-01"),
    pd.NaT,
    1e300,
    -1e39,
    10**400,
    2**24 + 1,
    -(2**24) - 1,
    np.int64(2**53 + 1),
    np.longdouble("1e4000"),
    Decimal("1e99"),
    Decimal("sNaN"),
    {"a": 1},
    {1.0},
    [[1.0]],
    object(),
]


@pytest.mark.parametrize("bad", NO_LABELS, ids=lambda bad: repr(bad).partition(" at 0x")[0])
def test_what_is_no_label_is_refused_with_its_row(bad: Any) -> None:
    for column in ([0.5, bad], [[0.5], [0.25, bad]], pd.Series([0.5, bad], index=[1, 0], dtype=object)):
        for role in ("phenotypes", "statistics"):
            with pytest.raises(SourceContractError, match="row 1: 'f' is"):
                tc.PerturbationTable(GRAPH, [[0], [1]], **{role: {"f": column}})


@pytest.mark.parametrize(
    "column",
    [
        np.array([0, 2**24 + 1]),
        np.array([2.0**24, 2.0**24 + 1]),
        np.array([np.nan, 2.0**24 + 1]),  # integers that a gap made floats
        np.array([0, 2**64 - 1], dtype=np.uint64),
        np.array([0, 2**63 - 1]),
        torch.tensor([0, 2**40 + 1]),
        torch.tensor([0, 1e300], dtype=torch.float64),
        torch.tensor([0, 1j]),
        np.array([1, np.finfo(np.longdouble).max]),
        pd.array([None, 2**30 + 1], "Int64"),
        np.ma.array([0, 2**30 + 1], mask=[1, 0]),
        pd.to_datetime(["2024-01-01", "2024-01-02"]),
        pd.Series(pd.to_datetime(["2024-01-01", "2024-01-02"], utc=True)),
        pd.to_timedelta([1, 2], "s"),
        np.array([[0, 2**63], [0, 2**24 + 1]], dtype=np.uint64),
        pd.Series([[0, 2**63], [2**24 + 1]]),  # of which numpy makes floats
        pd.Series([2**63, 2**24 + 1], dtype=object),
        np.array(["0.5", "1"]),
        pd.Series(["TRUE", "FALSE"]),
        pd.Categorical(["a", "b"]),
        pd.period_range("2024", periods=2, freq="D"),
        np.array([1, 1j]),
    ],
    ids=lambda column: f"{type(column).__name__} {column.dtype}",
)
def test_columns_float32_cannot_hold(column: Any) -> None:
    with pytest.raises(SourceContractError, match=r"row [01]: 'f' is"):
        label(column)


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pd.array([1, None], "Int64"), [1, math.nan]),
        (pd.array([0.5, None], "Float64"), [0.5, math.nan]),
        (pd.array([True, None], "boolean"), [1, math.nan]),
        (pd.Categorical([2, 5]), [2, 5]),
        (np.ma.array([7.0, 2.0], mask=[1, 0]), [math.nan, 2]),
        (np.ma.array([7, 2], mask=[1, 0]), [math.nan, 2]),
        (torch.tensor([1.5, 2], dtype=torch.bfloat16, requires_grad=True), [1.5, 2]),
        (torch.tensor([True, False]), [1, 0]),
        ([True, 0], [1, 0]),
        ([Decimal("0.5"), Fraction(1, 4)], [0.5, 0.25]),
        ([None, pd.NA], [math.nan, math.nan]),
        ([2**24, -(2**31)], [2**24, -(2**31)]),
        (np.array([3e10, 0.1]), [np.float32(3e10), np.float32(0.1)]),  # real numbers round as float32 does
        (np.array([0.1, 123456789.25]), [np.float32(0.1), np.float32(123456789.25)]),
        ([LARGEST, -LARGEST], [LARGEST, -LARGEST]),
        (np.array([0.5, 0.25], dtype=np.float16), [0.5, 0.25]),
        (range(2), [0, 1]),
    ],
)
def test_labels_that_are_numbers(column: Any, wanted: list[float]) -> None:
    found = [row[0] for row in label(column)]
    assert np.array_equal(np.float32(found), np.float32(wanted), equal_nan=True)


@pytest.mark.parametrize(
    "column", [{0: 0.5, 1: 0.5}, {0.5, 0.25}, "ab", 0.5, None, np.float64(2), RECORD], ids=repr
)
def test_columns_without_an_order_are_refused(column: Any) -> None:
    with pytest.raises(CacheError):
        tc.PerturbationTable(GRAPH, [[0], [1]], phenotypes={"f": column})


FLOATS = st.one_of(
    st.floats(width=64),
    st.integers(-(2**60), 2**60),
    st.none(),
    st.booleans(),
    st.floats(0, 1),
    st.just(1e-60),
)


@given(st.lists(FLOATS, min_size=1, max_size=5))
def test_any_column_of_numbers_is_right_or_refused(column: list[Any]) -> None:
    """numpy's float32 of each value, unless that is infinite, or another whole number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = [math.nan if v is None else float(np.float32(v)) for v in column]
    whole = all(
        v is None or not math.isfinite(v) or (float(v).is_integer() and abs(v) <= 2**53) for v in column
    )
    bad = {
        k
        for k, (v, w) in enumerate(zip(column, wanted, strict=True))
        if v is not None and math.isfinite(v) and (math.isinf(w) or (w != v and (whole or type(v) is int)))
    }
    if bad:
        with pytest.raises(SourceContractError) as caught:
            label(column)
        assert any(f"row {k}: " in str(caught.value) for k in bad)
    else:
        found = [row[0] for row in label(column)]
        assert np.array_equal(np.float32(found), np.float32(wanted), equal_nan=True)


# Missing and infinite labels

POLICY = {"a": [1.0, math.nan, 3.0, math.inf, 5.0], "b": [1.0, 2.0, 3.0, 4.0, -math.inf]}


def test_missing_and_infinite_labels_by_policy() -> None:
    rows = [[k] for k in range(5)]
    kept = tc.PerturbationTable(GRAPH, rows, phenotypes=POLICY, source_ids=list("vwxyz"))
    assert np.array_equal(kept.table.values[:, 0], np.float32(POLICY["a"]), equal_nan=True)
    assert any("'a': 1 values are infinite" in note for note in kept.notes)
    left = tc.PerturbationTable(GRAPH, rows, phenotypes=POLICY, source_ids=list("vwxyz"), nan="skip")
    assert ids_of(left) == [[0], [2]]
    assert [left[k].source_id for k in range(2)] == ["v", "x"]
    assert left.table.values.tolist() == [[1, 1], [3, 3]]
    assert "3 of 5 rows are left out: a value is NaN or infinite" in left.report()
    for columns, message in ((POLICY, "row 1: 'a' is NaN"), ({"b": POLICY["b"]}, "row 4: 'b' is -inf")):
        with pytest.raises(SourceContractError, match=message):
            tc.PerturbationTable(GRAPH, rows, phenotypes=columns, nan="error")
        with pytest.raises(SourceContractError, match=message):
            tc.PerturbationTable(GRAPH, rows, statistics=columns, nan="error")
    with pytest.raises(SettingError, match="nan='drop'"):
        tc.PerturbationTable(GRAPH, rows, nan="drop")


def test_values_that_become_zero_are_said() -> None:
    source = tc.PerturbationTable(GRAPH, [[0], [1]], statistics={"p": [1e-60, 0.5]})
    assert source.table.values.tolist() == [[0], [0.5]]
    assert "'p': 1 values are too small for float32 and count as 0" in source.report()


def test_what_fills_up_shorter_columns_is_no_missing_value() -> None:
    """Three measurements of one label beside one of another: nothing is missing there."""
    rows = [[k] for k in range(4)]
    columns = {"a": [[1.0, 2.0, 3.0], [1.0], [1.0, math.nan], [1.0]], "b": [[5.0], [5.0, 6.0], [5.0], []]}
    source = tc.PerturbationTable(GRAPH, rows, phenotypes=columns, nan="skip")
    assert ids_of(source) == [[0], [1]]
    assert source.table.value_ptr.tolist() == [0, 3, 5]
    for last, message in ((3, "row 2: 'a' is NaN"), (2, "")):
        part = {name: column[:last] for name, column in columns.items()}
        if message:
            with pytest.raises(SourceContractError, match=message):
                tc.PerturbationTable(GRAPH, rows[:last], phenotypes=part, nan="error")
        else:
            assert len(tc.PerturbationTable(GRAPH, rows[:last], phenotypes=part, nan="error")) == last
    with pytest.raises(SourceContractError, match="row 1: 'b' is NaN"):
        tc.PerturbationTable(GRAPH, [[0], [1]], phenotypes={"a": [[1.0]] * 2, "b": [[1.0], []]}, nan="error")
    with pytest.raises(SourceContractError, match="row 1 has no measurement"):
        tc.PerturbationTable(GRAPH, [[0], [1]], phenotypes={"a": [[1.0], []]}, nan="error")
