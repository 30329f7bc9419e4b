"""What becomes of rows that are no plain samples: unknown names, strain names, replicates, and scores that follow."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from graphs import cell_graph
from hypothesis import given
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.interactions import interaction_scores
from torchcell_cache.sources.names import NodeNames
from torchcell_cache.sources.neo4j.experiments import Malformed, Parsed, TableBuilder, number
from torchcell_cache.sources.sample_rows import set_numbers

GRAPH = cell_graph()  # genes Y000 to Y008
NAMES = GRAPH["gene"].node_ids


def table(rows: Any, labels: Any = None, **policies: Any) -> tc.PerturbationTable:
    columns = {"f": np.arange(len(rows)) / 8} if labels is None else labels
    names = [f"s{k}" for k in range(len(rows))]
    return tc.PerturbationTable(GRAPH, rows, phenotypes=columns, source_ids=names, **policies)


def samples(source: tc.PerturbationTable) -> list[tuple[Any, ...]]:
    return [
        (
            source[k].source_id,
            [NAMES[n] for n in source[k].perturbed.tolist()],
            source[k].values[:, 0].tolist(),
        )
        for k in range(len(source))
    ]


# Unknown names

GIVEN = st.lists(
    st.lists(st.sampled_from(["Y000", "Y003", "Y005", "X1", "X2"]), max_size=3, unique=True), max_size=6
)


@given(GIVEN)
def test_unknown_names_by_policy(rows: list[list[str]]) -> None:
    """By a loop over the rows."""
    known = [[name for name in row if name in NAMES] for row in rows]
    whole = [k for k, row in enumerate(rows) if len(known[k]) == len(row)]
    skipped = table(rows, unknown="skip")
    assert samples(skipped) == [(f"s{k}", sorted(rows[k]), [k / 8]) for k in whole]
    dropped = table(rows, unknown="drop")
    assert samples(dropped) == [(f"s{k}", sorted(row), [k / 8]) for k, row in enumerate(known)]
    lost = {name for row in rows for name in row if name not in NAMES}
    if not lost:
        assert table(rows).identity() == skipped.identity() == dropped.identity()
        assert skipped.notes == dropped.notes == ()
        return
    count, emptied = len(rows) - len(whole), sum(not known[k] for k in range(len(rows)) if k not in whole)
    assert f"{count} of {len(rows)} rows are left out: a name is no node" in skipped.report()
    assert all(repr(name) in skipped.report() for name in lost)
    assert f"{count} of {len(rows)} samples perturb fewer nodes" in dropped.report()
    assert f"{emptied} of them perturb no node at all" in dropped.report()
    with pytest.raises(SourceContractError, match='unknown="skip"'):
        table(rows)


def test_a_row_that_is_left_out_breaks_no_other_rule() -> None:
    rows = [["X1", "Y000", "Y000"], ["Y001"], ["X1"], []]
    assert [s[0] for s in samples(table(rows, unknown="skip"))] == ["s1", "s3"]
    labels = {"f": [math.nan, 1.0, math.nan, 2.0]}
    assert len(table(rows, labels, unknown="skip", nan="error")) == 2
    with pytest.raises(SourceContractError, match="row 3 perturbs nothing"):
        table(rows, labels, unknown="skip", empty="error")
    with pytest.raises(SourceContractError, match="row 2: 'Y001' is given twice"):
        table([["X1"], ["Y002"], ["Y001", "Y001"]], unknown="skip")
    assert samples(table([["X1"]], unknown="skip")) == []


def test_notes_are_said_by_the_build_and_stand_in_the_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = table([["X1", "Y000"], ["Y001"]], unknown="skip")
    ds = tc.build(tmp_path / "s", source=source, processor=tc.Perturbation())
    assert "1 of 2 rows are left out: a name is no node" in capsys.readouterr().err
    assert list(source.notes) == ds.generation.manifest.created["notes"]


# Names out of the names of strains


@pytest.mark.parametrize(
    ("pattern", "strains"),
    [
        (r"^([^_]+)_", ["Y001_sn12", "Y002_dma3_x", "Y003"]),
        (r"(Y\d+)", ["hap Y001-del", "Y002", "(Y003)"]),
        (r"^(.*?)(?:-\d+)?$", ["Y001-5", "Y002", "Y003-17"]),
    ],
)
def test_names_are_taken_out_of_strain_names(pattern: str, strains: list[str]) -> None:
    """As pandas' str.extract does; what it does not find is looked up as it stands."""
    wanted = pd.Series(strains).str.extract(pattern)[0].fillna(pd.Series(strains)).tolist()
    source = table([[strain, "Y008"] for strain in strains], name=pattern)
    assert [s[1] for s in samples(source)] == [[name, "Y008"] for name in wanted]


def test_two_strains_of_one_gene_are_one_name_given_twice() -> None:
    with pytest.raises(SourceContractError, match="row 0: 'Y001' is given twice"):
        table([["Y001_a", "Y001_b"]], name="^([^_]+)_")
    assert samples(table([["Y001_a", "Y001_b"]], name="^([^_]+)_", duplicate="unique"))[0][1] == ["Y001"]
    with pytest.raises(SourceContractError, match="row 0: 'X1' is not a node"):
        table([["X1_a"]], name="^([^_]+)_")
    aliased = table([["ADH1_a"]], name="^([^_]+)_", aliases={"ADH1": "Y004"})
    assert samples(aliased)[0][1] == ["Y004"]


@pytest.mark.parametrize("pattern", ["(", "Y", "(Y)(0)", 5, b"(Y)"])
def test_patterns_that_are_none(pattern: Any) -> None:
    with pytest.raises(SettingError, match=re.escape(f"name={pattern!r}")):
        table([["Y001"]], name=pattern)


# Replicates

SETS = st.lists(st.sets(st.integers(0, 4), max_size=3), max_size=12)


@given(SETS)
def test_equal_sets_have_one_number(sets: list[set[int]]) -> None:
    ids = np.array([k for each in sets for k in sorted(each)], dtype=np.int64)
    found = set_numbers(ids, np.cumsum([0, *map(len, sets)]))
    first = {frozenset(each): None for each in sets}
    assert found.tolist() == [list(first).index(frozenset(each)) for each in sets]


@given(SETS, st.booleans())
def test_replicates_as_pandas_groups_them(sets: list[set[int]], gaps: bool) -> None:
    values = [math.nan if gaps and k % 3 == 0 else k / 4 for k in range(len(sets))]
    rows, labels = [sorted(each) for each in sets], {"f": values}
    frame = pd.DataFrame({"set": [",".join(NAMES[k] for k in row) for row in rows], "f": values})
    groups = frame.groupby("set", sort=False).f
    assert len(table(rows, labels)) == len(rows)
    grouped = table(rows, labels, replicates="group")
    assert {",".join(s[1]): [v for v in s[2] if not math.isnan(v)] for s in samples(grouped)} == {
        key: group.dropna().tolist() for key, group in groups
    }
    mean = table(rows, labels, replicates="mean")
    assert mean.table.values.flags.c_contiguous
    assert mean.table.statistics == ("f_count",)
    assert [",".join(s[1]) for s in samples(mean)] == list(frame.set.drop_duplicates())
    assert [s[0] for s in samples(mean)] == [f"s{k}" for k in frame.drop_duplicates("set").index]
    if rows:
        assert np.allclose(mean.table.values[:, 0], groups.mean().astype(np.float32), equal_nan=True)
        assert mean.table.values[:, 1].tolist() == groups.count().tolist()
    if len(groups) < len(rows):
        with pytest.raises(SourceContractError, match=r"rows \d+ and \d+ perturb the same nodes"):
            table(rows, labels, replicates="error")
        assert f"{len(rows)} rows perturb {len(groups)} different sets" in mean.report()
    else:
        assert table(rows, labels, replicates="error").identity() == table(rows, labels).identity()


def test_rows_of_replicates_are_those_of_the_table() -> None:
    rows = [["X"], ["Y001", "Y002"], ["Y003"], ["Y002", "Y001"]]
    with pytest.raises(SourceContractError, match="rows 1 and 3"):
        table(rows, replicates="error", unknown="skip")
    labels = {"f": [1.0, 2.0, 3.0, 4.0], "f_count": [1.0] * 4}
    with pytest.raises(SourceContractError, match="'f_count'"):
        table(rows, labels, replicates="mean", unknown="skip")
    several = {"f": [[1.0, 2.0], [3.0], [], [5.0, 7.0, 9.0]]}
    rows[0] = ["Y003"]
    assert samples(table(rows, several, replicates="group")) == [
        ("s0", ["Y003"], [1.0, 2.0]),
        ("s1", ["Y001", "Y002"], [3.0, 5.0, 7.0, 9.0]),
    ]
    assert [s[2] for s in samples(table(rows, several, replicates="mean"))] == [[1.5], [6.0]]


# Scores of interactions


def test_epsilon_and_tau_of_a_table() -> None:
    """By their definitions, gene by gene."""
    random = np.random.default_rng(3)
    rows = [list(c) for size in (0, 1, 2, 3) for c in itertools.combinations(range(5), size)]
    random.shuffle(rows)
    f = {frozenset(row): float(np.float32(random.random())) for row in rows}
    labels = {"size": np.arange(len(rows)), "growth": [f[frozenset(row)] for row in rows]}
    source = table(rows, labels, interactions="growth")
    assert source.table.phenotypes == ("size", "growth", "epsilon", "tau")

    def epsilon(a: int, b: int) -> float:
        return f[frozenset((a, b))] - f[frozenset((a,))] * f[frozenset((b,))]

    for k, row in enumerate(rows):
        wanted = [math.nan, math.nan]
        if len(row) == 2:
            wanted[0] = epsilon(*row)
        if len(row) == 3:
            a, b, c = row
            one = {x: f[frozenset((x,))] for x in row}
            lower = epsilon(a, b) * one[c] + epsilon(a, c) * one[b] + epsilon(b, c) * one[a]
            wanted[1] = f[frozenset(row)] - one[a] * one[b] * one[c] - lower
        assert np.allclose(source[k].values[0, 2:], wanted, atol=1e-6, equal_nan=True)


def test_interactions_of_replicates_and_of_what_is_missing() -> None:
    rows = [[1], [2], [1, 2], [2, 1], [1, 3]]
    labels = {"fitness": [0.5, 0.5, 0.25, 0.75, 0.5]}
    with pytest.raises(SourceContractError, match='replicates="mean"'):
        table(rows, labels, interactions=True)
    source = table(rows, labels, interactions=True, replicates="mean", nan="error")
    assert source.table.phenotypes == ("fitness", "epsilon", "tau")
    assert source.table.statistics == ("fitness_count",)
    assert source[2].values.tolist()[0][:2] == [0.5, 0.25]
    assert math.isnan(source[3].values[0, 1])  # the single of gene 3 is not there
    for columns, wanted in ((labels, "size"), ({"a": [1.0] * 5, "b": [1.0] * 5}, True)):
        with pytest.raises(SettingError, match="no label"):
            table(rows, columns, interactions=wanted)
    with pytest.raises(SettingError, match="interactions=5"):
        table([[1]], {"fitness": [1.0]}, interactions=5)
    with pytest.raises(SettingError, match="'epsilon'"):
        table([[1]], {"fitness": [1.0], "epsilon": [0.0]}, interactions=True)
    with pytest.raises(SettingError, match="one fitness per knock-out"):
        table([[1], [2]], {"fitness": [[1.0, 2.0], [1.0]]}, interactions=True)
    assert len(tc.PerturbationTable(GRAPH, [], phenotypes={"fitness": []}, interactions=True)) == 0


# From files and the command line

SGA = """Query Strain ID,Array Strain ID,fitness
Y001_sn1,Y002_dma1,0.5
Y002_sn7,Y001_dma9,0.25
Y001_sn1,,0.75
Y002_sn7,,1.0
,Y999_dma4,1.0
Y003_sn1,Y004_dma2,NA
"""


def test_a_screen_of_queries_and_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sga.csv"
    path.write_text(SGA)
    settings = {
        "perturbed": ["Query Strain ID", "Array Strain ID"],
        "name": "^([^_]+)_",
        "unknown": "skip",
        "nan": "skip",
        "replicates": "mean",
        "interactions": "fitness",
    }
    source = tc.PerturbationTable.from_csv(path, GRAPH, **settings)
    assert [s[1] for s in samples(source)] == [["Y001", "Y002"], ["Y001"], ["Y002"]]
    assert source[0].values.tolist()[0][:2] == [0.375, -0.375]
    assert len([note for note in source.notes if "left out" in note]) == 2
    tc.save_base_graph(GRAPH, tmp_path / "graph")
    with pytest.raises(SourceContractError, match=re.escape(str(path))):
        tc.PerturbationTable.from_csv(path, GRAPH, **{**settings, "nan": "error"})
    arguments = [f"source.{key}={value}" for key, value in settings.items() if isinstance(value, str)]
    columns = 'source.perturbed=["Query Strain ID","Array Strain ID"]'
    where = [f"root={tmp_path / 's'}", f"source.path={path}", f"source.base_graph={tmp_path / 'graph'}"]
    done = main(["preprocess", *where, "source=table", columns, *arguments, "processor.statistics=always"])
    said = capsys.readouterr().err
    assert done == 0, said
    assert "1 of 6 rows are left out: a value is NaN or infinite" in said
    ds = tc.PreprocessedDataset(tmp_path / "s")
    assert np.array_equal(ds.generation.table.values, source.table.values, equal_nan=True)
    assert ds.phenotype_info == ["fitness", "epsilon", "tau"]
    assert main(["info", f"root={tmp_path / 's'}"]) == 0
    assert "rows are left out" in capsys.readouterr().out


def test_one_column_with_a_hard_name_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Gene (ORF),growth [1/h]\nY001,0.5\n")
    tc.save_base_graph(GRAPH, tmp_path / "graph")
    where = [
        f"root={tmp_path / 's'}",
        f"source.path={tmp_path / 't.csv'}",
        f"source.base_graph={tmp_path / 'graph'}",
    ]
    assert main(["preprocess", *where, "source=table", "source.perturbed=Gene (ORF)", "progress=false"]) == 0
    assert tc.PreprocessedDataset(tmp_path / "s").phenotype_info == ["growth [1/h]"]


# Experiments of a database


def experiments(rows: list[list[str]], **policies: Any) -> TableBuilder:
    builder = TableBuilder(NodeNames(["A", "B", "C"]), **policies)
    for k, genes in enumerate(rows):
        builder.add(f"e{k}", lambda genes=genes, k=k: Parsed(genes, {"fitness": float(k)}))
    return builder


def test_experiments_by_the_same_policies() -> None:
    rows = [["A"], ["B", "X"], ["A"], ["X"]]
    dropped = experiments(rows, unknown="drop")
    assert dropped.table().ids.tolist() == [0, 1, 0]
    assert dropped.notes() == ("2 experiments delete fewer genes than they say: the graph has no 'X'",)
    skipped = experiments(rows, unknown="skip", replicates="mean")
    assert skipped.table().values.tolist() == [[1.0, 2.0]]
    assert skipped.notes() == (
        "2 experiments are left out: the graph has no 'X'",
        "2 experiments make 1 samples (replicates='mean')",
    )
    with pytest.raises(SourceContractError, match=r"perturb the same nodes \('e0' and 'e2'\)"):
        experiments(rows, unknown="skip", replicates="error").table()


@pytest.mark.parametrize("value", [1e300, -1e39, 10**400, 2**24 + 1, math.inf, -math.inf])
def test_labels_of_experiments_that_float32_cannot_hold(value: float) -> None:
    with pytest.raises(Malformed, match="fitness is"):
        number(value, "fitness")
    assert number(2**24, "fitness") == 2**24
    assert number(1e-60, "fitness") == 1e-60


def test_names_outside_the_graph_cannot_be_kept_where_nodes_have_none() -> None:
    nameless = cell_graph()
    del nameless["gene"].node_ids
    with pytest.raises(SourceContractError, match="it has no node_ids"):
        tc.PerturbationTable(nameless, [["X1"]], unknown="keep")


@pytest.mark.parametrize("ids", [[0.5, 1, 2], [True, False, True], [0, math.nan, 2]])
def test_scores_of_ids_that_are_none(ids: list[Any]) -> None:
    with pytest.raises(SourceContractError):
        interaction_scores(np.array(ids), np.array([0, 1, 2, 3]), [0.5, 0.5, 0.5])
    with pytest.raises(SourceContractError, match="'fitness' is"):
        interaction_scores([0, 1], [0, 1, 2], [0.5, 1j])
    with pytest.raises(SettingError, match="fitness"):
        interaction_scores([0, 1], [0, 1, 2], [0.5])


def test_a_build_of_nothing_says_what_was_left_out(tmp_path) -> None:
    source = tc.PerturbationTable(cell_graph(), [["strange"], ["y001"]], unknown="skip")
    with pytest.raises(SourceContractError, match=r"0 samples; .*'strange'.*; 2 of 2 rows are left out"):
        tc.build(tmp_path, source=source, progress=False)
