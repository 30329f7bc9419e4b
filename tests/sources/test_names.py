"""Names meet nodes: exact, stripped, by alias; what does not match is shown from both sides."""

from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from graphs import cell_graph
from hypothesis import given, settings
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, SettingError, SourceContractError
from torchcell_cache.sources.name_lists import NameLists
from torchcell_cache.sources.names import UNKNOWN, NodeNames, as_texts, read_aliases, resolve
from torchcell_cache.sources.neo4j.experiments import TableBuilder

NODES = ["YAL001C", "YAL002W", "YAL003W-A", "851262"]
Number = Enum("Number", {"SEVEN": 7}, type=int)
name = st.sampled_from(["A", "B", "C", "X", "Y", " B ", "C\t"])
rows = st.lists(st.lists(name, max_size=4), max_size=8)


@settings(max_examples=200, deadline=None)
@given(rows, st.sampled_from(UNKNOWN[1:]))
def test_policies_against_a_loop(table, policy) -> None:
    known = {"A": 0, "B": 1, "C": 2}
    found = resolve(NameLists.from_rows(table), NodeNames(list(known)), policy)
    wanted = [[known.get(n.strip(), -1) for n in row] for row in table]
    kept = [k for k, row in enumerate(wanted) if policy != "skip" or -1 not in row]
    assert (list(range(len(table))) if found.rows is None else found.rows.tolist()) == kept
    nodes = [found.ids[a:b].tolist() for a, b in zip(found.ptr, found.ptr[1:], strict=False)]
    assert nodes == [[n for n in wanted[k] if n >= 0] for k in kept]
    changed = [row for row in wanted if -1 in row] if policy != "skip" else []
    assert (found.changed, found.emptied) == (len(changed), sum(set(row) == {-1} for row in changed))
    distinct = {n.strip() for row in table for n in row}
    assert (found.report.matched, found.report.unmatched) == (
        len(distinct & set(known)),
        len(distinct - set(known)),
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(rows, min_size=1, max_size=3))
def test_columns_of_names_beside_each_other(tables) -> None:
    size = min(map(len, tables))
    parts = [NameLists.from_rows(table[:size]) for table in tables]
    joined = [[n.strip() for table in tables for n in table[k]] for k in range(size)]
    assert NameLists.beside(parts).lists() == joined


@pytest.mark.parametrize(
    ("given_name", "said"),
    [
        ("4932.YAL001C", "prefix"),
        ("sgd:YAL001C", "prefix"),
        ("yal001c", "letter case"),
        ("YAL001C_dma1", "suffix"),
        ("YAL001C.1", "suffix"),
        ("'YAL001C'", "quotes"),
        ("851262.0", "number"),
        ("YAL003W\u2011A", "alike"),
        ("YAL003W\u2013A", "alike"),
        ("\uff39AL001C", "alike"),
        *((f"YAL001C{joint}YAL002W", "separator") for joint in (";", ":", "::", "_", " ", "*", ", ", "|")),
        ("['YAL001C', 'YAL002W']", "several names"),
        ("YAL001C\u0394", "suffix"),
        ("\u0394YAL001C", "prefix"),
    ],
)
def test_a_name_that_almost_matches_is_explained(given_name, said) -> None:
    nodes = NodeNames(NODES)
    with pytest.raises(SourceContractError, match=rf"row 1: (.|\n)*{said}") as caught:
        resolve(NameLists.from_rows([["YAL002W"], [given_name]]), nodes)
    assert given_name in str(caught.value)
    assert any(node in str(caught.value).rpartition(";")[2] for node in NODES)
    assert 'unknown="skip"' in caught.value.fix


def test_exact_names_are_never_bent() -> None:
    nodes = NodeNames(["a", "A", "1.A", "A_1"])
    assert nodes.positions(["A", "a", "A_1", "1.A", " A ", "B", "1.a"]).tolist() == [1, 0, 3, 2, 1, -1, -1]


def test_numbers_count_as_their_digits() -> None:
    nodes = NodeNames(np.array([851262, 7]))
    assert nodes.positions(["851262", "7", "07"]).tolist() == [0, 1, -1]
    assert as_texts([3, 4.0, np.int64(5), "6", Number.SEVEN]) == ["3", "4", "5", "6", "7"]
    for bad in (True, None, float("nan"), 1.5, b"x"):
        with pytest.raises(SourceContractError, match="expected text"):
            as_texts(["A", bad])


def test_aliases_from_a_mapping_or_a_file(tmp_path) -> None:
    path = tmp_path / "aliases.tsv"
    path.write_text(
        "\ufeffTFC3\tYAL001C\r\nVPS8\tYAL002W\r\nYAL002W\tYAL001C\r\ngone\tYXX\r\n", encoding="utf-8"
    )
    for aliases in (
        path,
        str(path),
        {"TFC3": "YAL001C", "VPS8 ": " YAL002W", "YAL002W": "YAL001C", "gone": "YXX"},
    ):
        nodes = NodeNames(NODES, aliases)
        names = ["TFC3", "VPS8", "YAL002W", "gone"]
        assert nodes.positions(names).tolist() == [0, 1, 1, -1]  # a name that a node has is that node
        report = nodes.report(names, nodes.positions(names))
        assert (report.matched, report.renamed, report.unmatched) == (3, 2, 1)
        assert all(word in str(report) for word in ("3 of 4", "2 of them", "'gone'", "'YAL003W-A'"))


def test_alias_tables_that_say_two_things_are_refused(tmp_path) -> None:
    path = tmp_path / "aliases.csv"
    path.write_text("TFC3,YAL001C\nTFC3,YAL002W\n")
    with pytest.raises(SourceContractError, match="'TFC3' stands for 'YAL001C' and for 'YAL002W'"):
        read_aliases(path)
    path.write_text("TFC3,YAL001C,essential\n")
    with pytest.raises(SourceContractError, match="3 cells"):
        read_aliases(path)
    with pytest.raises(SettingError, match="aliases"):
        read_aliases(3)  # type: ignore[arg-type]


def _table(names: list, looked_up: str) -> object:
    graph = tc.testing.tiny_graph(num_genes=len(names))
    graph["gene"].node_ids = names
    return tc.PerturbationTable(graph, [[looked_up]])


def _experiments(names: list, looked_up: str) -> object:
    builder = TableBuilder(NodeNames(names))
    parsed = type("P", (), {"genes": [looked_up], "condition": "", "labels": {}, "statistics": {}})()
    builder.add("e", lambda: parsed)
    return builder.table()


@pytest.mark.parametrize("look_up", [_table, _experiments])
def test_a_name_of_several_nodes_is_refused_where_it_is_looked_up(look_up) -> None:
    names = ["A", "B", "A", "B2", "C"]
    with pytest.raises(CacheError, match=r"'A' is the name of .* twice \(nodes 0 and 2\)"):
        look_up(names, "A")
    look_up(names, "B")


def test_positions_need_no_names() -> None:
    graph = tc.testing.tiny_graph(num_genes=4)
    graph["gene"].node_ids = ["A"] * 4
    assert tc.PerturbationTable(graph, [[2], [0]])[0].perturbed.tolist() == [2]


def test_a_selection_by_a_name_of_several_nodes_is_refused(tmp_path) -> None:
    graph = tc.testing.tiny_graph(num_genes=4)
    graph["gene"].node_ids = ["A", "B", "A", "C"]
    source = tc.PerturbationTable(graph, [[0], [1], [2]])
    dataset = tc.build(tmp_path / "s", source=source, processor=tc.Perturbation(), progress=False)
    assert tc.select(dataset, genes=["B"]).tolist() == [1]
    with pytest.raises(SettingError, match="'A' is the name of several nodes"):
        tc.select(dataset, genes=["A"])


def test_a_million_names_are_no_loop_over_pairs() -> None:
    names = [f"N{k}" for k in range(200_000)]
    found = NodeNames(names).positions(reversed(names))
    assert found[:2].tolist() == [199_999, 199_998]


def test_a_table_says_which_names_fit(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("genes,f\nTFC1|Y002,1\nY003,2\n")
    source = tc.PerturbationTable.from_csv(path, cell_graph(), aliases={"TFC1": "Y001"})
    assert [source[k].perturbed.tolist() for k in range(2)] == [[1, 2], [3]]


def test_what_met_and_what_did_not_stands_in_the_report() -> None:
    rows = [["Y001", "YXX"], ["Y002"], ["y003"]]
    skipped = tc.PerturbationTable(cell_graph(), rows, unknown="skip").report()
    dropped = tc.PerturbationTable(cell_graph(), rows, unknown="drop").report()
    for said in (skipped, dropped):
        assert "2 of 4 names are nodes of the base graph; not among them 'YXX', 'y003'" in said
        assert "nodes are 'Y000', 'Y003'" in said
        assert "'y003' and 'Y003' differ in letter case only" in said
    assert "2 of 3 rows are left out" in skipped
    assert (
        "2 of 3 samples perturb fewer nodes than their row names, 1 of them perturb no node at all" in dropped
    )
    assert tc.PerturbationTable(cell_graph(), [["Y001"]]).report() == ""


DATES = {"1-Oct": "OCT1", "1-oct": "OCT1", "7-Sep": "SEPT7", "2-Mar-2023": "MARCH2", "2023-12-01": "DEC1"}  # fmt: skip


@pytest.mark.parametrize("date", DATES)
def test_a_name_that_a_spreadsheet_made_a_date_of_is_told(tmp_path: Path, date) -> None:
    (tmp_path / "t.csv").write_text(f"genes,fitness\n{date},1\n")
    graph = tc.sources.cell_graph(["YAL001C", DATES[date], "OCT10"])
    with pytest.raises(
        SourceContractError, match=f"'{date}' is a date, which a spreadsheet made of '{DATES[date]}'"
    ):
        tc.PerturbationTable.from_csv(tmp_path / "t.csv", graph)
    (tmp_path / "genes.txt").write_text(f"YAL001C\nYAL002W\n{date}\n")
    for genes in (["YAL001C", date], tmp_path / "genes.txt"):
        with pytest.raises(
            SourceContractError, match=f"'{date}' is a date, which a spreadsheet made of a name"
        ):
            tc.sources.cell_graph(genes)


@pytest.mark.parametrize("name", ["1-Okt", "OCT1", "10-1", "1-10-Oct", "YAL001C-A", "dec-1", "1-Decoy"])
def test_a_name_that_is_no_date_is_a_name(name) -> None:
    assert tc.sources.cell_graph([name])["gene"].node_ids == [name]


def test_a_name_that_an_alias_leads_nowhere_and_one_that_is_missing(tmp_path: Path) -> None:
    graph = tc.sources.cell_graph(["YAL001C", "YBR002W"])
    with pytest.raises(
        SourceContractError, match=r"'old' is not .*, nor is 'mid', which aliases have for it"
    ):
        tc.PerturbationTable(graph, [["old"]], aliases={"old": "mid", "mid": "YAL001C"})
    (tmp_path / "t.csv").write_text("query,array,fitness\nYAL001C,YBR002W,1\nYAL001C,NA,1\n")
    with pytest.raises(
        SourceContractError, match=r"row 1: 'NA' is not (.|\n)*fix: leave it out, or its cell empty"
    ):
        tc.PerturbationTable.from_csv(tmp_path / "t.csv", graph, perturbed=["query", "array"])
    (tmp_path / "aliases.tsv").write_text('"alias"\t"gene"\n"old"\t"YAL001C"\n')  # as R writes it
    source = tc.PerturbationTable(graph, [["old"]], aliases=tmp_path / "aliases.tsv")
    assert source[0].perturbed.tolist() == [0]


def test_messages_stay_short_however_long_a_cell_is(tmp_path: Path) -> None:
    graph, long = tc.sources.cell_graph(["YAL001C"]), "x y" * 50_000
    names = f"{long},1,a", f"YAL001C|{long},1,a", f"YAL001C,1,{long}\nYAL001C,2,{long}"
    for row in (*names, f"YAL001C,{long},a\nYAL001C,1,b"):
        (tmp_path / "t.csv").write_text(f"genes,fitness,id\n{row}\n")
        with pytest.raises(SourceContractError) as caught:
            tc.PerturbationTable.from_csv(tmp_path / "t.csv", graph, id_column="id")
        assert len(str(caught.value)) < 1000
    source = tc.PerturbationTable(graph, [["YAL001C"], [long]], unknown="skip")
    assert len(source.report()) < 1000
