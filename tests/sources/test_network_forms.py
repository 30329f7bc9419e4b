"""A network means the same with and without known genes, or is refused: no relation, number, header or gap is a gene."""

import gzip
from decimal import Decimal

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, SettingError, SourceContractError
from torchcell_cache.sources import cell_graph
from torchcell_cache.sources.gene_lists import gene_names

GENES = [f"Y{chr(65 + k)}L{k:03}{'CW'[k % 2]}" for k in range(8)]
A, B, C, D = GENES[:4]
TWO = [(A, B), (C, D)]
MATRIX = pd.DataFrame([[0, 1, 0], [1, 0, 1], [0, 1, 0]], index=GENES[:3], columns=GENES[:3])


def edges(genes, network, **more):
    graph = cell_graph(genes, {"net": network}, **more)
    names = graph["gene"].node_ids
    return [(names[a], names[b]) for a, b in graph["gene", "net", "gene"].edge_index.t().tolist()]


def refused(genes, network, words, **more):
    with pytest.raises(CacheError, match=words) as caught:
        edges(genes, network, **more)
    assert "'net'" in str(caught.value)
    assert caught.value.fix, caught.value


def right_or_refused(network, wanted, **more):
    """Both ways of reading; returns whether each was read."""
    read = []
    for genes in (GENES, None):
        try:
            found = edges(genes, network, **more)
        except CacheError as error:
            found, fix = None, error.fix
        assert fix if found is None else found == wanted
        read.append(found is not None)
    return read


def numbered(cells):
    return lambda n: [cells[k % len(cells)] for k in range(n)]


BESIDE = {
    "interaction": numbered(["physical", "genetic"]),
    "kind": numbered(["interacts-with"]),
    "how": numbered(["controls-state-change-of", "in-complex-with", "pp"]),
    "score": lambda n: [f"{k / 8 + 0.125}" for k in range(n)],
    "count": lambda n: [str(7 * k + 3) for k in range(n)],
    "row": lambda n: [str(k) for k in range(n)],
    "sure": numbered(["True", "False"]),
    "gap": numbered(["", "NA"]),
    "name": lambda n: [f"ABC{k}" for k in range(n)],
    "note": numbered(["yeast two-hybrid"]),
}
SIDES = [
    ("source", "target"),
    ("gene_a", "gene_b"),
    ("x", "y"),
    ("V1", "V2"),
    ("left", "right"),
    ("p", "q"),
    None,
]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_tables_of_any_columns(tmp_path_factory, data):
    draw = data.draw
    pairs = draw(st.lists(st.tuples(*[st.sampled_from(GENES)] * 2), unique=True, min_size=1, max_size=6))
    beside = draw(st.lists(st.sampled_from(sorted(BESIDE)), unique=True, max_size=3))
    sides = draw(st.sampled_from(SIDES))
    columns = {name: BESIDE[name](len(pairs)) for name in beside}
    one, other = sides or ("one", "two")
    ends = dict(zip((one, other), zip(*pairs, strict=True), strict=True))
    order = draw(st.permutations(sorted(columns)))
    at = sorted(draw(st.lists(st.integers(0, len(order)), min_size=2, max_size=2)))
    order = [*order[: at[0]], one, *order[at[0] : at[1]], other, *order[at[1] :]]
    frame = pd.DataFrame({**columns, **ends})[order]
    separator = draw(st.sampled_from("\t,;"))
    path = tmp_path_factory.mktemp("net") / ("net.csv" if separator != "\t" else "net.tsv")
    text = frame.to_csv(sep=separator, index=draw(st.booleans()), header=sides is not None)
    path.write_text(text.replace("\n", draw(st.sampled_from(["\n", "\r\n", "\r"]))), newline="")
    read = right_or_refused(path, pairs)
    if sides in SIDES[:2]:
        assert all(read)
        assert right_or_refused(frame, pairs) == [True, True]
    elif not {*beside} - {"score", "gap", "sure"} and len(pairs) > 1:
        assert read[1]


@pytest.mark.parametrize("relation", ["physical", "interacts-with", "controls-state-change-of", "->", "pp"])
@pytest.mark.parametrize("count", [1, 2])
def test_words_between_the_genes(tmp_path, relation, count):
    (tmp_path / "net.txt").write_text("".join(f"{a}\t{relation}\t{b}\n" for a, b in TWO[:count]))
    read = right_or_refused(tmp_path / "net.txt", TWO[:count])
    assert read[0]
    assert read[1] == (relation in ("->", "pp"))
    (tmp_path / "net.sif").write_text("".join(f"{a} {relation} {b} {D}\n" for a, b in TWO[:count]))
    assert right_or_refused(tmp_path / "net.sif", [(A, B), (A, D), (C, D)][: 2 * count]) == [True, True]


@pytest.mark.parametrize(("first", "header"), [("query", None), ("Z", False), ("Z", True), ("one two", True)])
def test_sif_that_begins_with_less_than_an_edge(tmp_path, first, header):
    """A node without edges, or a header with fewer names than rows have cells."""
    (tmp_path / "net.sif").write_text(f"{first}\n{A} pp {B} {C}\n")
    graph = tc.sources.cell_graph(graphs={"net": tmp_path / "net.sif"}, header=header)
    names = graph["gene"].node_ids
    edges = graph["gene", "net", "gene"].edge_index.T.tolist()
    assert {tuple(sorted((names[a], names[b]))) for a, b in edges} == {(A, B), (A, C)}


def test_sif_that_is_none(tmp_path):
    for text in (f"{A}\t{B}\n{C}\t{D}\n", f"{A}\tpp\t{B}\n{C} pp {D}\n"):
        (tmp_path / "net.sif").write_text(text)
        for genes in (GENES, None):
            refused(genes, tmp_path / "net.sif", r"row \d has \d cells")


def test_genes_in_three_columns_are_no_edges(tmp_path):
    (tmp_path / "net.tsv").write_text(f"{A}\t{B}\t{C}\n{B}\t{C}\t{D}\n")
    refused(GENES, tmp_path / "net.tsv", "3 columns hold genes")
    refused(None, tmp_path / "net.tsv", "3 columns could be names")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("n.mtx", "1 2\n", r"by its name, \.mtx"),
        ("n.txt", "%%MatrixMarket matrix coordinate real general\n4 4 1\n1 2 0.5\n", "MatrixMarket"),
        ("n.txt", '*Vertices 2\n1 "A"\n2 "B"\n*Edges\n1 2\n', "Pajek"),
        ("n.tsv", '<!DOCTYPE html>\n<html lang="en">\n', "XML or HTML"),
        ("n.txt", '<graph>\n<edge source="a" target="b"/>\n', "XML or HTML"),
        ("n.txt", '[{"source": "a", "target": "b"}]', "JSON"),
        ("n.txt", "graph [\n node [ id 0 ]\n]\n", "GML or DOT"),
        ("n.txt", "digraph {\n a -> b;\n}\n", "GML or DOT"),
        ("n.tsv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        ("n.tsv", f"{A}\t{B}\n".encode("utf-16"), "not text in utf-8"),
        ("n.tsv", f"{A}\t{B}\tmü\n".encode("latin-1"), "not text in utf-8"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_files_of_other_kinds(tmp_path, name, text, words, packed):
    path = tmp_path / (f"{name}.gz" if packed else name)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    for genes in (GENES, None, ["1", "2"]):
        refused(genes, path, words if not packed or "utf-8" not in words else "text in utf-8")


@pytest.mark.parametrize("kind", [int, float, bool, str])
def test_matrices_in_frames_and_files(tmp_path, kind):
    frame = MATRIX.astype(kind)
    forms = [frame, frame.reset_index(), frame.rename_axis("gene").reset_index(), frame.iloc[:2, :2]]
    for k, more in enumerate(
        ({}, {"index": False}, {"sep": "\t"}, {"index_label": "gene"}, {"header": False})
    ):
        frame.to_csv(tmp_path / f"{k}.csv", **more)
        forms.append(tmp_path / f"{k}.csv")
    (tmp_path / "r.tsv").write_text(frame.to_csv(sep="\t").removeprefix("\t"))
    for network in [*forms, tmp_path / "r.tsv"]:
        refused(GENES, network, "matrix|keeps none|cannot be told")
        refused(None, network, "cannot be told")
    numbers = pd.DataFrame([[0, 1], [1, 0]], index=[7, 8], columns=[7, 8])
    refused(None, numbers, "matrix")


@pytest.mark.parametrize(
    "gap", ["", "NA", "N/A", "<NA>", "nan", "NaN", "NaT", "None", "none", "null", "-", "--", "?", "."]
)
def test_cells_without_a_name(tmp_path, gap):
    pairs = [(A, B), (gap, C), (C, D), (D, f" {gap}")]
    (tmp_path / "net.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    for network in (tmp_path / "net.tsv", pairs, pd.DataFrame(pairs, columns=["source", "target"])):
        assert right_or_refused(network, TWO) == [True, True]
        assert "2 edges passed over" in cell_graph(None, {"net": network}).notes[0]
    assert edges(GENES, [(gap or A, C)], aliases={gap or "x": A}) == [(A, C)], "a gene may be called so"


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA, pd.NaT, np.ma.masked])
def test_values_without_a_name(gap):
    frame = pd.DataFrame({"source": [A, gap, C], "target": [B, D, D]})
    if gap is not np.ma.masked:
        for network in (frame, frame.astype("category")) if gap is not pd.NaT else (frame,):
            assert right_or_refused(network, TWO) == [True, True]
    for network in ([(A, B), (gap, D)], ([A, gap], [B, D])):
        refused(GENES, network, "edge 1 is")


@pytest.mark.parametrize(
    "value", [b"YAL000C", True, 1.5, float("inf"), 2j, (A, B), [A], np.datetime64("2020-01-01"), {A}]
)
def test_values_that_are_no_names(value):
    for genes in (GENES, None):
        refused(genes, pd.DataFrame({"source": [A, value], "target": [B, C]}, dtype=object), "expected text")
        refused(genes, ([A, value], [B, C]), "expected text")
    with pytest.raises(CacheError, match="expected text"):
        gene_names([A, value])


def test_frames_of_polars_and_arrow():
    columns = {"score": [0.5, 0.25, 1.0], "source": [A, C, None], "target": [B, D, A]}
    frames = [pd.DataFrame(columns)]
    for package, make in (("pyarrow", "table"), ("pyarrow", "record_batch"), ("polars", "DataFrame")):
        try:
            frames.append(getattr(__import__(package), make)(columns))
        except ImportError:
            continue
    for frame in frames:
        assert right_or_refused(frame, TWO, weights="score") == [True, True]
        store = cell_graph(GENES, {"net": frame}, weights="score")["gene", "net", "gene"]
        assert store.edge_weight.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    "network",
    [
        dict(TWO),
        iter(TWO),
        b"net.tsv",
        7,
        None,
        nx.Graph,
        nx.Graph(TWO).edges,
        nx.Graph([((A, 1), B)]),
        torch.eye(3).to_sparse(),
        torch.tensor([[0, 1, 2], [1, 2, 0]]),
        pd.DataFrame({"target": [B, D]}, index=[A, C]),
        pd.Series([1, 2], index=pd.MultiIndex.from_tuples(TWO)),
        "a\0b.tsv",
        ".",
    ],
)
def test_objects_that_hold_no_names(network):
    refused(None, network, "expected|positions|file|read")


def test_lines_that_hold_no_edge(tmp_path):
    lines = [
        "# by hand, on a day",
        "! and more",
        "% of it",
        "  # indented words here",
        f"{A} {B}",
        "",
        "  ",
        f"{C} {D} # sure",
    ]
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "net.txt").write_bytes(("\ufeff" + end.join([*lines, ""])).encode())
        assert right_or_refused(tmp_path / "net.txt", TWO) == [True, True]
    (tmp_path / "net.tsv").write_text("# a licence\n" * 1500 + f"{A}\t{B}\n{C}\t{D}\n")
    assert right_or_refused(tmp_path / "net.tsv", TWO) == [True, True]
    header = "source\ttarget\n"
    (tmp_path / "net.tsv").write_text(f"{header}{A}\t{B}\n \t\n{header}{C}\t{D}\n")  # files put together
    assert right_or_refused(tmp_path / "net.tsv", TWO) == [True, True]
    (tmp_path / "net.csv").write_text(f"{A};{B};0,5\n{C};{D};0,7\n")
    assert right_or_refused(tmp_path / "net.csv", TWO) == [True, True]


# Headers


@pytest.mark.parametrize(
    "header",
    ["u v", "i j", "x y", "X Y", "V1 V2", "Var1 Var2", "id1 id2", "left right", "Name Name.1", "0 1", "p q"],
)
def test_first_rows_that_are_a_header(tmp_path, header):
    for pairs in (TWO, TWO[:1]):
        (tmp_path / "net.txt").write_text("".join(f"{a} {b}\n" for a, b in [header.split(), *pairs]))
        assert right_or_refused(tmp_path / "net.txt", pairs) == [True, True]


@pytest.mark.parametrize("first", ["x", "Name", "Gene", "0", "gene_id", "V1", "symbol", "ORF", "id", "value"])
def test_a_gene_list_under_the_name_of_a_column(tmp_path, first):
    (tmp_path / "genes.txt").write_text("\n".join([first, *GENES, ""]))
    assert gene_names(tmp_path / "genes.txt") == GENES
    pd.Series(GENES, name=first).to_csv(tmp_path / "genes.csv", index=False)
    assert gene_names(str(tmp_path / "genes.csv")) == GENES


@pytest.mark.parametrize(
    "names",
    [["A", "B", "C"], ["x", "y"], ["Actb", "Nanog"], ["HO", "ACT1"], ["gene1", "gene2"], ["1", "2"], GENES],
)
def test_a_gene_list_that_begins_with_a_gene(tmp_path, names):
    (tmp_path / "genes.txt").write_text("\n".join(names))
    assert gene_names(tmp_path / "genes.txt") == sorted(names)


def test_first_lines_in_doubt_and_gaps_are_refused(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("\n".join(["essential", *GENES]))
    with pytest.raises(SourceContractError, match=r"genes.txt.*'essential'.*column or of a gene"):
        gene_names(path)
    for gap in ("NA", "<NA>", "nan", "None", "-"):
        path.write_text("\n".join([A, gap, B]))
        with pytest.raises(SourceContractError, match=r"line 2 holds .*no name"):
            gene_names(path)
        with pytest.raises(SourceContractError, match="gene 1 has no name"):
            gene_names([A, gap])


# Weights


@pytest.mark.parametrize(
    "weight",
    ["1_0", "1,5", "inf", "1e400", "nan", "-", "\u0661", "16777217", "0x10", "5%", "True", "1e39", ""],
)
def test_weights_in_text_that_are_none(tmp_path, weight):
    frame = pd.DataFrame({"source": [A], "target": [B], "w": [weight]})
    frame.to_csv(tmp_path / "net.tsv", sep="\t", index=False)
    for network in (tmp_path / "net.tsv", frame, nx.Graph([(A, B, {"w": weight})])):
        refused(GENES, network, rf"edge 0 \({A}, {B}\) has the weight", weights="w")


@pytest.mark.parametrize(
    "weight",
    [
        True,
        b"5",
        2j,
        None,
        pd.NA,
        np.datetime64("2020"),
        np.ma.masked,
        2**24 + 1,
        [1.0],
        10**400,
        np.timedelta64(5, "s"),
    ],
)
def test_weights_that_are_no_numbers(weight):
    refused(GENES, nx.Graph([(A, B, {"w": weight})]), "has the weight", weights="w")


@pytest.mark.parametrize(
    "weight",
    [
        -1,
        0,
        2.5,
        "2.5",
        " -3e-2 ",
        ".5",
        "5.",
        np.float64(0.1),
        np.int8(4),
        Decimal("0.1"),
        torch.tensor(0.5),
        2**24,
        1e38,
    ],
)
def test_weights_that_are_numbers(weight):
    graph = cell_graph(GENES, {"net": nx.Graph([(A, B, {"w": weight})])}, weights="w")
    assert graph["gene", "net", "gene"].edge_weight.tolist() == [np.float32(float(weight))]


def test_columns_of_weights():
    frame = pd.DataFrame([(A, B, 0.5), (C, D, 2e-60)])
    for column in (2, np.int64(2)):
        graph = cell_graph(None, {"net": frame}, weights=column)
        assert graph["gene", "net", "gene"].edge_weight.tolist() == [0.5, 0]
        assert "1 weights too small for float32" in graph.notes[0]
    labelled = frame[[2, 0, 1]].rename(columns={0: "source", 1: "target"})
    assert cell_graph(None, {"net": labelled}, weights=2)["gene", "net", "gene"].edge_weight[0] == 0.5
    for column, words in ((0, "holds the ends"), (3, "no column"), (-1, "no column"), (True, "no column")):
        with pytest.raises(SettingError, match=words):
            cell_graph(None, {"net": frame}, weights=column)


@pytest.mark.parametrize("genes", [["A1", "B2", "C3"], None])
@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_attributes_that_networkx_writes_at_the_end_of_a_line(tmp_path, separator, genes):
    graph = nx.DiGraph(
        [("A1", "B2", {"weight": 0.5, "note": "a, b"}), ("B2", "C3", {}), ("A1", "C3", {"x": {"y": 1}})]
    )
    nx.write_edgelist(graph, tmp_path / "net.txt", delimiter=separator)
    found = cell_graph(genes, {"net": tmp_path / "net.txt"})
    names = found["gene"].node_ids
    index = found["gene", "net", "gene"].edge_index
    assert [(names[a], names[b]) for a, b in index.t().tolist()] == list(graph.edges())


@pytest.mark.parametrize("genes", [["A1", "B2"], None])
def test_edges_of_a_multigraph_are_kept_and_counted(genes):
    graph = nx.MultiGraph([("A1", "B2"), ("A1", "B2"), ("B2", "B2")])
    found = cell_graph(genes, {"net": graph})
    assert found["gene", "net", "gene"].num_edges == 3
    assert found.notes == ("network net: 3 of 3 edges kept; 1 are there more than once, each kept",)


def test_genes_that_only_letter_case_tells_apart_are_said(tmp_path):
    networks = {"one": [("A1", "B2")], "other": [("a1", "B2"), ("c3", "C3")]}
    assert (
        cell_graph(None, networks).notes[-1] == "'A1' and 'a1' differ in letter case only, and are two genes"
    )
    assert len(cell_graph(["A1", "B2", "a1", "c3", "C3"], networks).notes) == 2


def test_dates_in_networks_without_known_genes_are_refused(tmp_path):
    (tmp_path / "net.csv").write_text("source,target\nA1,B2\n1-Oct,B2\n")
    with pytest.raises(SourceContractError, match="'1-Oct' is a date, which a spreadsheet made of a name"):
        cell_graph(None, {"net": tmp_path / "net.csv"})
    graph = cell_graph(["A1", "B2", "OCT1"], {"net": tmp_path / "net.csv"})
    assert "'1-Oct' is a date, which a spreadsheet made of 'OCT1'" in graph.notes[0]


def test_one_metabolism_at_a_time():
    tables = {"reactions": ["r1"], "metabolites": ["m1"], "rmr": [("r1", "m1", 1)]}
    with pytest.raises(SettingError, match="'metabolism', 'metabolism_bipartite', expected one metabolism"):
        cell_graph(["A1"], {}, {"metabolism": tables, "metabolism_bipartite": tables})
