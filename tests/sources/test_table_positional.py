"""Columns of pandas, Arrow, numpy and torch count by position, whatever index they carry."""

import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from graphs import cell_graph
from hypothesis import given
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.core.indexing import as_positions
from torchcell_cache.errors import CacheError, SettingError, SourceContractError
from torchcell_cache.sources.columns import frame_parts

GRAPH = cell_graph()  # genes Y000 to Y008
FRAME = pd.DataFrame(
    {
        "genes": ["Y000|Y004", "Y001", "Y002|Y003", "Y008"],
        "query": ["Y000", "Y001", None, "Y008"],
        "array": ["Y004", "", "Y002", np.nan],
        "fitness": [0.75, 0.5, 0.25, 1.0],
        "se": [0.01, 0.02, 0.03, 0.04],
        "id": list("abcd"),
    }
)


def shapes_of(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The frame in other orders, with other indices."""
    return {
        "sorted": frame.sort_values("fitness"),
        "filtered": frame[frame.fitness < 0.9],
        "reversed": frame[::-1],
        "repeated index": frame.set_index(pd.Index([7, 7, 0, 0])),
        "text index": frame.set_index("id", drop=False),
        "two-level index": frame.set_index(["id", "genes"], drop=False),
        "one row": frame.iloc[[2]],
        "no row": frame.iloc[:0],
        "dates as index": frame.set_index(pd.date_range("2024", periods=4)),
    }


SHAPES = shapes_of(FRAME)


def rows_of(source: tc.PerturbationTable) -> list[tuple[Any, ...]]:
    names = GRAPH["gene"].node_ids
    return [
        (
            "|".join(names[k] for k in source[row].perturbed.tolist()),
            *source[row].values[0].tolist(),
            source[row].source_id,
        )
        for row in range(len(source))
    ]


@pytest.mark.parametrize("how", ["series", "frame", "arrow", "arrays", "nullable", "arrow-backed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_stay_together(shape: str, how: str) -> None:
    df = SHAPES[shape]
    wanted = [
        (g, float(np.float32(f)), float(np.float32(s)), i)
        for g, f, s, i in zip(df.genes, df.fitness, df.se, df.id, strict=True)
    ]
    genes, labels, statistics = df.genes.str.split("|"), {"fitness": df.fitness}, {"se": df.se}
    if how == "frame":
        labels, statistics = df[["fitness"]], df[["se"]]
    elif how == "arrow":
        table = pa.Table.from_pandas(df.assign(genes=genes), preserve_index=False)
        genes, labels, statistics = (
            table["genes"],
            table.select(["fitness"]),
            {"se": table["se"].combine_chunks()},
        )
    elif how == "arrays":
        genes, labels = genes.to_numpy(), {"fitness": torch.tensor(df.fitness.to_numpy().copy())}
    elif how == "nullable":
        df = df.convert_dtypes()
        labels, statistics = df[["fitness"]], {"se": df.se}
    elif how == "arrow-backed":
        labels = {"fitness": df.fitness.astype("double[pyarrow]")}
    source = tc.PerturbationTable(
        GRAPH,
        genes,
        phenotypes=labels,
        statistics=statistics,
        source_ids=df.id if how != "arrays" else df.id.values,
    )
    assert rows_of(source) == wanted
    assert source.table.phenotypes == ("fitness",)
    assert source.table.statistics == ("se",)


@pytest.mark.parametrize("shape", SHAPES)
def test_query_and_array_columns(shape: str) -> None:
    """A cell without a name perturbs nothing; by a loop over the rows."""
    df = SHAPES[shape]
    wanted = [
        sorted(name for name in (q, a) if isinstance(name, str) and name)
        for q, a in zip(df["query"], df["array"], strict=True)
    ]
    tables = [df[["query", "array"]], df[["query", "array"]].to_numpy()]
    tables.append(pa.Table.from_pandas(df[["query", "array"]].replace("", None), preserve_index=False))
    for given_as in tables:
        source = tc.PerturbationTable(GRAPH, given_as, phenotypes={"fitness": df.fitness})
        assert [row[0].split("|") if row[0] else [] for row in rows_of(source)] == wanted


def test_a_frame_of_ids_with_gaps() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [4.0, np.nan, 5.0]}, index=[2, 1, 0])
    source = tc.PerturbationTable(GRAPH, frame)
    assert [source[k].perturbed.tolist() for k in range(3)] == [[1, 4], [2], [3, 5]]
    for bad in (4.5, True, np.inf):
        with pytest.raises(SourceContractError, match="row 2"):
            tc.PerturbationTable(GRAPH, frame.assign(b=[4.0, np.nan, bad]).astype({"b": object}))


def test_a_series_of_labels_is_named_by_its_name() -> None:
    assert tc.PerturbationTable(GRAPH, [[0]], phenotypes=FRAME.fitness[:1]).table.phenotypes == ("fitness",)
    for given_as in ([0.5], np.array([0.5]), pd.Series([0.5]), "fitness", pd.DataFrame([[0.5]])):
        with pytest.raises(SettingError, match="phenotypes"):
            tc.PerturbationTable(GRAPH, [[0]], phenotypes=given_as)
    twice = pd.DataFrame([[0.5, 0.25]], columns=["f", "f"])
    with pytest.raises(SettingError, match="'f' is the name of two columns"):
        tc.PerturbationTable(GRAPH, [[0]], phenotypes=twice)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (pd.Series(["a", None], index=[1, 0]), "row 1: source id None"),
        (pd.Series(["a", "a"]), "'a' at rows 0 and 1"),
        (pd.Series([1, 2]), "row 0: source id 1 is not text"),
        ([b"a", b"b"], "row 0: source id b'a'"),
        (["a", np.nan], "row 1: source id nan"),
        ({"a": 1, "b": 2}, "source_ids is dict"),
        ("ab", "source_ids is str"),
        (["a"], "1 source_ids for 2 samples"),
    ],
)
def test_source_ids_that_are_none(bad: Any, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        tc.PerturbationTable(GRAPH, [[0], [1]], source_ids=bad)


VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(VALUES, max_size=3), min_size=1, max_size=4), st.randoms())
def test_repeated_measurements_in_every_container(rows: list[list[float]], random: Any) -> None:
    index = random.sample(range(100), len(rows))
    plain = tc.PerturbationTable(GRAPH, [[0]] * len(rows), phenotypes={"f": rows})
    for column in (
        pd.Series(rows, index=index),
        [np.array(row) for row in rows],
        [tuple(row) for row in rows],
        [torch.tensor(row) for row in rows],
        [pd.Series(row, index=range(50, 50 + len(row)), dtype=float) for row in rows],
        pa.array(rows, pa.list_(pa.float64())),
    ):
        other = tc.PerturbationTable(GRAPH, [[0]] * len(rows), phenotypes={"f": column})
        assert other.identity() == plain.identity()
    assert [plain[k].values[:, 0].tolist() for k in range(len(rows))] == rows


def test_one_column_of_several_measurements_beside_one_of_one() -> None:
    columns = {"f": pd.Series([0.5, [0.25, 1.0], []], index=[5, 5, 5]), "g": np.array([1.0, 2.0, 3.0])}
    table = tc.PerturbationTable(GRAPH, [[0], [1], [2]], phenotypes=columns).table
    assert table.value_ptr.tolist() == [0, 1, 3, 4]
    wanted = [[0.5, 1], [0.25, 2], [1, np.nan], [np.nan, 3]]
    assert np.array_equal(table.values, np.float32(wanted), equal_nan=True)


def test_a_series_picks_samples_and_weighs_them_by_position(tmp_path: Any) -> None:
    source = tc.PerturbationTable(GRAPH, [[k] for k in range(6)], phenotypes={"f": np.arange(6.0)})
    ds = tc.build(tmp_path, source=source, processor=tc.Perturbation(), progress=False)
    frame = pd.DataFrame({"at": [4, 1, 5], "keep": [True, False, True]}, index=[1, 2, 0])
    assert ds[frame["at"]].positions().tolist() == [4, 1, 5]
    assert ds[ds.label_df.sort_values("f", ascending=False)["index"]].positions().tolist() == [
        5,
        4,
        3,
        2,
        1,
        0,
    ]
    assert as_positions(frame.keep, 3).tolist() == [0, 2]
    weights = pd.Series([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], index=[5, 4, 3, 2, 1, 0])
    assert set(tc.WeightedCacheSampler(ds, 4, weights=weights).weights.nonzero()[0].tolist()) == {1}
    costs = tc.BalancedCostBatchSampler(ds, 2, costs=pd.Series(range(6), index=range(5, -1, -1))).costs
    assert costs.tolist() == [0, 1, 2, 3, 4, 5]


def test_frames_are_told_from_arrays() -> None:
    assert frame_parts(pa.table({"a": [1]}))
    assert not any(
        frame_parts(x) for x in (FRAME.fitness, np.zeros((2, 2)), torch.zeros(2), {"a": [1]}, [[1]])
    )
    assert len(frame_parts(FRAME)[1]) == 6


def test_a_million_rows_take_seconds() -> None:
    """No loop in Python that grows with the square of the table, and few that grow with it."""
    count = 1_000_000
    random = np.random.default_rng(0)
    labels = {"f": random.random(count), "n": random.integers(0, 2**24, count)}
    begun = time.process_time()
    grid = tc.PerturbationTable(
        GRAPH, np.stack([np.arange(count) % 5, np.full(count, 7)], 1), phenotypes=labels
    )
    names = np.array(GRAPH["gene"].node_ids)[grid.table.ids].reshape(-1, 2)
    lists = tc.PerturbationTable(
        GRAPH, names.tolist(), phenotypes=pd.DataFrame(labels), replicates="mean", nan="skip"
    )
    assert len(grid) == count
    assert len(lists) == 5
    assert time.process_time() - begun < 30


def test_a_frame_of_one_column_is_that_column() -> None:
    """list(frame) would be its column names."""
    frame = pd.DataFrame(
        {"genes": [["Y001"], ["Y002", "Y003"]], 0: [0.5, 0.25], "id": ["a", "b"]}, index=[1, 0]
    )
    source = tc.PerturbationTable(
        GRAPH, frame["genes"], phenotypes={"f": frame[[0]]}, source_ids=frame[["id"]]
    )
    assert rows_of(source) == [("Y001", 0.5, "a"), ("Y002|Y003", 0.25, "b")]
    for column in (frame, frame[[0, "id"]]):
        with pytest.raises(SourceContractError, match="frame of"):
            tc.PerturbationTable(GRAPH, [[0], [1]], phenotypes={"f": column})


@pytest.mark.parametrize("dtype", [int, bool, float])
def test_a_frame_of_zeros_and_ones_is_no_frame_of_ids(dtype: type) -> None:
    ones = pd.DataFrame({"Y001": [1, 0], "Y003": [1, 1]}, index=[1, 0]).astype(dtype)
    with pytest.raises(SourceContractError, match="columns are nodes"):
        tc.PerturbationTable(GRAPH, ones)
    lists = [ones.columns[row] for row in ones.to_numpy(dtype=bool)]
    source = tc.PerturbationTable(GRAPH, lists)
    assert [source[k].perturbed.tolist() for k in range(2)] == [[1, 3], [3]]


def test_sparse_and_nested_tensors() -> None:
    nested = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=torch.jagged)
    for rows in (nested, list(nested.unbind()), torch.tensor([[1, 2], [3, -1]]).to_sparse()):
        source = tc.PerturbationTable(GRAPH, rows, phenotypes={"f": torch.tensor([0.0, 2.0]).to_sparse()})
        assert [source[k].perturbed.tolist() for k in range(2)] == [[1, 2], [3]]
        assert source.table.values.tolist() == [[0], [2]]
    several = tc.PerturbationTable(GRAPH, [[0], [1]], phenotypes={"f": nested})
    assert [several[k].values[:, 0].tolist() for k in range(2)] == [[1, 2], [3]]
