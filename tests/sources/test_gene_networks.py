"""Networks in the files and objects that labs have, against pandas, networkx and the edges they were written from."""

import gzip
import io
import re

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

GENES = [f"Y{chr(65 + k)}L{k:03}{'CW'[k % 2]}" for k in range(12)]
STRANGERS = [f"YZR9{k:02}W-A" for k in range(4)]
SYMBOLS = {name: f"ABC{k + 1}" for k, name in enumerate([*GENES, *STRANGERS])}
A, B, C, D = GENES[:4]

edge_lists = st.lists(
    st.tuples(st.sampled_from([*GENES, *STRANGERS]), st.sampled_from([*GENES, *STRANGERS])).filter(
        lambda edge: edge[0] != edge[1]
    ),
    unique=True,
    min_size=1,
    max_size=14,
).filter(lambda edges: any(a in GENES and b in GENES for a, b in edges))


def edges(graph, name="net"):
    names, index = graph["gene"].node_ids, graph["gene", name, "gene"].edge_index
    return [(names[a], names[b]) for a, b in index.t().tolist()]


def kept(pairs):
    return [(a, b) for a, b in pairs if a in GENES and b in GENES]


def frame_of(pairs, columns=("source", "target")):
    frame = pd.DataFrame(pairs, columns=list(columns))
    return frame.assign(score=np.arange(len(pairs)) / 8 + 0.125)


# Writers: the file's name and its text. Where a header may be left out, it is chosen by the caller.


def pandas_table(pairs, separator, index, header):
    frame = frame_of(pairs)
    return frame.to_csv(sep=separator, index=index, header=header)


def networkx_edgelist(pairs, data):
    graph = nx.DiGraph()
    graph.add_edges_from((a, b, {"weight": 0.5}) for a, b in pairs)
    written = io.BytesIO()
    nx.write_edgelist(graph, written, data=data)
    return written.getvalue().decode(), list(graph.edges())


def string_links(pairs):
    rows = "".join(f"4932.{a} 4932.{b} {k + 150}\n" for k, (a, b) in enumerate(pairs))
    return "protein1 protein2 combined_score\n" + rows


def biogrid(pairs):
    header = ["#BioGRID Interaction ID", "Entrez Gene Interactor A", "Entrez Gene Interactor B"]
    header += [f"{what} Interactor {side}" for what in ("BioGRID ID", "Systematic Name") for side in "AB"]
    header += [f"{what} Interactor {side}" for what in ("Official Symbol", "Synonyms") for side in "AB"]
    header += ["Experimental System", "Experimental System Type", "Score"]
    lines = ["\t".join(header)]
    for k, (a, b) in enumerate(pairs):
        numbers = [str(850000 + hash_of(name)) for name in (a, b)]
        ids = [str(31000 + hash_of(name)) for name in (a, b)]
        symbols = [SYMBOLS[a], SYMBOLS[b]]
        lines.append(
            "\t".join([str(k), *numbers, *ids, a, b, *symbols, "-", "x|y", "Two-hybrid", "physical", "-"])
        )
    return "\n".join(lines) + "\n"


def hash_of(name):
    return [*GENES, *STRANGERS].index(name)


def sif(pairs, separator):
    lines: dict = {}
    for a, b in pairs:
        lines.setdefault(a, [a, "pp"]).append(b)
    text = "".join(separator.join(cells) + "\n" for cells in lines.values())
    return text + f"{GENES[0]}\n", [(cells[0], b) for cells in lines.values() for b in cells[2:]]


@settings(max_examples=60, deadline=None)
@given(
    edge_lists, st.sampled_from([",", "\t", ";"]), st.booleans(), st.booleans(), st.booleans(), st.booleans()
)
def test_tables_that_pandas_wrote(tmp_path_factory, pairs, separator, index, header, packed, all_genes):
    folder = tmp_path_factory.mktemp("net")
    text = "\ufeff" + pandas_table(pairs, separator, index, header).replace("\n", "\r\n")
    name = f"net.{'CSV' if separator in ',;' else 'tsv'}{'.gz' if packed else ''}"
    (folder / name).write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    graph = cell_graph(GENES if all_genes else None, {"net": folder / name})
    again = pd.read_csv(
        io.StringIO(text.removeprefix("\ufeff")),
        sep=separator,
        header=0 if header else None,
        index_col=0 if index else None,
    )
    wanted = list(again.iloc[:, :2].itertuples(index=False, name=None))
    assert edges(graph) == (kept(wanted) if all_genes else wanted)
    assert graph["gene"].node_ids == (
        GENES if all_genes else sorted({name for edge in pairs for name in edge})
    )
    if header:  # without one, a first row of strangers stands for it
        left = len(pairs) - len(kept(pairs)) if all_genes else 0
        assert f"{len(pairs) - left} of {len(pairs)} edges kept" in graph.notes[0]
        strange = [name for edge in pairs for name in edge if name in STRANGERS] if all_genes else []
        assert not strange or any(name in graph.notes[0] for name in strange)


@settings(max_examples=60, deadline=None)
@given(
    edge_lists,
    st.sampled_from(
        [
            "string.txt",
            "string.tsv",
            "links.txt.gz",
            "biogrid.tab3.txt",
            "a.sif",
            "b.sif",
            "net.edgelist",
            "w.txt",
        ]
    ),
    st.booleans(),
)
def test_formats_of_databases_and_programs(tmp_path_factory, pairs, name, all_genes):
    path = tmp_path_factory.mktemp("net") / name
    wanted = pairs
    if name.startswith(("string", "links")):
        text = string_links(pairs)
        text = text.replace(" ", "\t") if name.endswith("tsv") else text
    elif name.startswith("biogrid"):
        text = biogrid(pairs)
    elif name.endswith(".sif"):
        text, wanted = sif(pairs, "\t" if name.startswith("a") else " ")
    else:
        text, wanted = networkx_edgelist(pairs, data=name == "net.edgelist" or ["weight"])
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    graph = cell_graph(GENES if all_genes else None, {"net": path})
    assert edges(graph) == (kept(wanted) if all_genes else wanted)


def test_biogrid_by_symbol_and_by_number(tmp_path):
    (tmp_path / "b.txt").write_text(biogrid([(A, B), (B, A), (C, D)]))
    symbols = [SYMBOLS[name] for name in GENES]
    assert edges(cell_graph(symbols, {"net": tmp_path / "b.txt"})) == [
        (SYMBOLS[a], SYMBOLS[b]) for a, b in ((A, B), (B, A), (C, D))
    ]
    entrez = [850000 + k for k in range(12)]
    assert edges(cell_graph(entrez, {"net": tmp_path / "b.txt"})) == [
        ("850000", "850001"),
        ("850001", "850000"),
        ("850002", "850003"),
    ]


@pytest.mark.parametrize(
    "change", [str.lower, lambda name: f"SGD:{name}", lambda name: f"{name}.1", lambda name: name[:-1]]
)
def test_names_that_meet_no_gene_are_shown_with_the_genes(tmp_path, change):
    pairs = [(change(A), change(B)), (change(C), change(D))]
    (tmp_path / "net.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    for network in (
        tmp_path / "net.tsv",
        pairs,
        nx.Graph(pairs),
        pd.DataFrame(pairs, columns=["source", "target"]),
    ):
        with pytest.raises(SourceContractError) as caught:
            cell_graph(GENES, {"net": network})
        assert all(word in str(caught.value) for word in ("'net'", "2 edges", repr(pairs[0][0]), repr(A)))
    for given_aliases in (dict(zip(map(change, GENES), GENES, strict=True)), tmp_path / "aliases.tsv"):
        if not isinstance(given_aliases, dict):
            given_aliases.write_text("".join(f"{change(name)}\t{name}\n" for name in GENES))
        for genes in (GENES, None):
            graph = cell_graph(genes, {"net": tmp_path / "net.tsv"}, aliases=given_aliases)
            assert edges(graph) == [(A, B), (C, D)]


def test_genes_that_no_edge_joins():
    with pytest.raises(SourceContractError, match=r"2 of 4 names.*no edge joins two"):
        cell_graph([A, C], {"net": [(A, B), (C, D)]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no edge"),
        ("# nothing but a comment\n", "holds no edge"),
        ("gene_a\tgene_b\n", "holds no edge"),
        (f"{A}\n{B}\n", "expected two columns"),
        (f"{A}\t{B}\n{C}\n", r"row 1 has 1 cells"),
        (f"{A}\t0.5\n{B}\t0.7\n", "column 2 holds numbers"),
        (f",{A},{B}\n{A},0,1\n{B},1,0\n", "column 2 holds numbers"),
        (f",i,j\ne1,{A},{B}\ne2,{C},{D}\n", "columns are '', 'i', 'j'"),
        (f"{A}\tphysical\t{B}\n{C}\tphysical\t{D}\n", "'physical' throughout"),
        (f"{A} {B} {C}\n{C} {D}\n", "adjacency list"),
        (f"4932.{A}\tTFC3\t1160\n4932.{B}\tVPS8\t1274\n", "taxon '4932.'.*'TFC3'"),
        ("entrez gene/locuslink:1\tentrez gene/locuslink:2\n", "no name of a gene"),
        ('{"a": 1}\n{"b": 2}\n', "is JSON, no table of edges"),
        (f"gene\tgene\n{A}\t{B}\n", "'gene' more than once"),
        (f"from_here\tother\n{A}\t{B}\n{C}\t{D}\n{A}\t{D}\n", "header=True"),
        (f"my.first\tmy.second\n{A}\t{B}\n{C}\t{D}\n{A}\t{D}\n", "header=True"),
    ],
)
def test_files_that_cannot_be_told_are_refused_by_name(tmp_path, text, words):
    (tmp_path / "net.txt").write_text(text)
    with pytest.raises(SourceContractError, match=words) as caught:
        cell_graph(None, {"web": tmp_path / "net.txt"})
    assert "'web'" in str(caught.value)
    assert "net.txt" in str(caught.value)


def test_adjacency_list_with_genes(tmp_path):
    nx.write_adjlist(nx.Graph([(A, B), (A, C), (A, D), (C, D)]), tmp_path / "net.txt")
    with pytest.raises(SourceContractError, match="adjacency list"):
        cell_graph(GENES, {"net": tmp_path / "net.txt"})


@pytest.mark.parametrize("suffix", ["graphml", "gml", "gexf"])
def test_graphs_that_are_no_table(tmp_path, suffix):
    getattr(nx, f"write_{suffix}")(nx.Graph([(A, B)]), tmp_path / f"net.{suffix}")
    with pytest.raises(SourceContractError, match=rf"(?s)no table of edges.*\.{suffix}.*networkx"):
        cell_graph(None, {"net": tmp_path / f"net.{suffix}"})


@pytest.mark.parametrize("header", [True, False, {"net": True}, {"net": False}])
def test_header_as_told(tmp_path, header):
    (tmp_path / "net.tsv").write_text("Q1\tQ2\nQ3\tQ4\n")
    told = header["net"] if isinstance(header, dict) else header
    graph = cell_graph(None, {"net": tmp_path / "net.tsv"}, header=header)
    assert edges(graph) == [("Q1", "Q2"), ("Q3", "Q4")][told:]
    with pytest.raises(SettingError, match="'other'"):
        cell_graph(None, {"net": tmp_path / "net.tsv"}, header={"other": True})


def test_genes_named_like_columns(tmp_path):
    (tmp_path / "net.tsv").write_text("gene1\tgene2\ngene3\tgene4\n")
    assert edges(cell_graph(None, {"net": tmp_path / "net.tsv"})) == [("gene1", "gene2"), ("gene3", "gene4")]


@pytest.mark.parametrize(
    ("columns", "at"),
    [
        (["score", "target", "source"], (2, 1)),
        (["id", "gene_b", "x", "gene_a"], (3, 1)),
        (["Query Strain ID", "Query ORF", "Array Strain ID", "Array ORF"], (1, 3)),
        (["regulator", "effect", "target"], (0, 2)),
        (["source_type", "target_type", "source", "target"], (2, 3)),
    ],
)
def test_columns_are_found_by_their_names(tmp_path, columns, at):
    pairs = [(A, B), (C, D)]
    rows = [[pair[at.index(k)] if k in at else f"w{k}" for k in range(len(columns))] for pair in pairs]
    frame = pd.DataFrame(rows, columns=columns)
    frame.to_csv(tmp_path / "net.csv", index=False)
    assert edges(cell_graph(GENES, {"net": tmp_path / "net.csv"})) == pairs
    assert edges(cell_graph(GENES, {"net": frame})) == pairs
    if "Query ORF" not in columns:  # of its two pairs of columns, only genes tell which is meant
        assert edges(cell_graph(None, {"net": frame})) == pairs


def test_rows_without_a_name_are_counted(tmp_path):
    (tmp_path / "net.tsv").write_text(f"{A}\t{B}\n-\t{C}\n{D}\t\nNaN\t{A}\n")
    graph = cell_graph(None, {"net": tmp_path / "net.tsv"})
    assert graph["gene"].node_ids == [A, B]
    assert "3 edges passed over" in graph.notes[0]


# In Python


@pytest.mark.parametrize("wrap", [list, np.array, pd.Series, pd.Index])
def test_pairs_of_columns_and_lists_of_pairs(wrap):
    ends = (wrap([A, C]), wrap([B, D]))
    assert edges(cell_graph(GENES, {"net": ends})) == [(A, B), (C, D)]
    for pairs in ([(A, B), (C, D)], [[A, B], [C, D]], [np.array([A, B]), np.array([C, D])]):
        assert edges(cell_graph(GENES, {"net": pairs})) == [(A, B), (C, D)]
    three = np.array([(A, B), (C, D), (A, D)])
    assert edges(cell_graph(GENES, {"net": three})) == edges(cell_graph(GENES, {"net": three.T}))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (np.array([[A, B], [C, D]]), "rows or columns"),
        ([(A, B, 5), (C, D, 7)], "entry 0 has 3 items"),
        ([A + B, C + D], "expected"),
        ("AB", "no file at AB"),
        ("https://string-db.org/net.tsv", "is an address"),
        ({(A, B), (C, D)}, "is set"),
        (([A, None], [B, C]), "None, expected text"),
        (([A, float("nan")], [B, C]), "nan, expected text"),
        ((np.array([0, 1]), np.array([2, 3])), "keeps none"),
        (torch.tensor([[0, 1, 2], [1, 2, 0]]), "keeps none"),
        (nx.Graph([(0, 1)]), "keeps none"),
    ],
)
def test_objects_that_are_no_network(network, words):
    with pytest.raises(CacheError, match=words) as caught:
        cell_graph(GENES, {"net": network})
    assert "'net'" in str(caught.value)


@pytest.mark.parametrize("network", [[], ([], []), nx.Graph(), pd.DataFrame({"source": [], "target": []})])
def test_an_empty_network_in_python_is_one(network):
    assert edges(cell_graph(GENES, {"net": network})) == []


def test_whole_numbers_are_names():
    for genes in (["1", "2"], [1, 2], np.array([1, 2])):
        for network in (([1], [2]), (["1"], ["2"]), np.array([[1, 2]]), nx.DiGraph([(1, 2)])):
            assert edges(cell_graph(genes, {"net": network})) == [("1", "2")]


# Directions, repeats, weights


@settings(max_examples=60, deadline=None)
@given(edge_lists, st.data())
def test_both_directions_of_any_network_is_the_undirected_one(tmp_path_factory, pairs, data):
    path = tmp_path_factory.mktemp("net") / "net.tsv"
    again = data.draw(st.lists(st.sampled_from(pairs), max_size=4))
    listed = [*pairs, *(edge[::-1] if data.draw(st.booleans()) else edge for edge in again)]
    path.write_text("".join(f"{a}\t{b}\n" for a, b in listed))
    wanted = nx.Graph(kept(listed)).to_directed()
    for network in (path, listed, nx.MultiDiGraph(listed)):
        found = edges(cell_graph(GENES, {"net": network}, both_directions=True))
        assert sorted(found) == sorted(wanted.edges())
    once = list(dict.fromkeys(kept(listed)))
    assert edges(cell_graph(GENES, {"net": path})) == once, "a file lists an edge again"
    assert edges(cell_graph(GENES, {"net": listed})) == kept(listed), "what Python says is taken as it stands"


@settings(max_examples=40, deadline=None)
@given(edge_lists, st.booleans(), st.booleans(), st.sampled_from(["file", "position", "frame", "networkx"]))
def test_weights_stay_with_their_edges(tmp_path_factory, pairs, both, self_loops, form):
    frame = frame_of(pairs)
    path = tmp_path_factory.mktemp("net") / "net.csv"
    frame.to_csv(path, index=False)
    graph = nx.from_pandas_edgelist(frame, edge_attr="score", create_using=nx.DiGraph)
    network = {"frame": frame, "networkx": graph}.get(form, path)
    cell = cell_graph(
        GENES,
        {"net": network, "bare": [(A, B)]},
        weights={"net": 2 if form == "position" else "score"},
        both_directions=both,
        self_loops=self_loops,
    )
    store = cell["gene", "net", "gene"]
    assert "edge_weight" not in cell["gene", "bare", "gene"]
    assert store.edge_weight.dtype == torch.float32
    table = {(a, b): float(w) for a, b, w in frame.itertuples(index=False)}
    for (a, b), weight in zip(edges(cell), store.edge_weight.tolist(), strict=True):
        assert weight == (1 if a == b else table.get((a, b), table.get((b, a))))


def test_what_pandas_makes_of_numbers_with_gaps(tmp_path):
    frame = pd.DataFrame({"source": [1, 2, None], "target": [2, 3, 1]}, dtype="float64")
    frame.to_csv(tmp_path / "net.csv", index=False)
    for network in (frame, tmp_path / "net.csv"):
        for genes in (None, [1, 2, 3]):
            assert edges(cell_graph(genes, {"net": network})) == [("1", "2"), ("2", "3")]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("A\tB\t-\n", "weight '-'"),
        ("A\tB\t1e300\n", "weight '1e300'"),
        ("A\tB\tinf\n", "weight 'inf'"),
        ("A\tB\t1\nC\tD\t2\nA\tB\t3\n", r"\(A, B\) with the weights 1.0 and 3.0"),
    ],
)
def test_weights_that_are_none(tmp_path, rows, words):
    (tmp_path / "net.tsv").write_text("source\ttarget\tscore\n" + rows)
    with pytest.raises(SourceContractError, match=words):
        cell_graph(list("ABCD"), {"net": tmp_path / "net.tsv"}, weights="score")
    with pytest.raises(SettingError, match=r"no column of weights 'wheight'.*'score'"):
        cell_graph(list("ABCD"), {"net": tmp_path / "net.tsv"}, weights="wheight")
    with pytest.raises(SettingError, match="pairs of names"):
        cell_graph(list("ABCD"), {"net": [("A", "B")]}, weights="score")


# Gene sets


def test_gene_sets_of_all_kinds(tmp_path):
    (tmp_path / "genes.txt").write_bytes(("\ufeff# all of them\r\n" + "\r\n".join([*GENES, ""])).encode())
    (tmp_path / "one.csv").write_text("systematic_name\n" + "\n".join(f'"{name} "' for name in GENES))
    frame = pd.DataFrame({"gene": GENES})
    kinds = [GENES, set(GENES), tuple(GENES), (name for name in GENES), np.array(GENES), dict.fromkeys(GENES)]
    kinds += [frame, frame["gene"], pd.Index(GENES), [f" {name}\n" for name in GENES]]
    kinds += [tmp_path / "genes.txt", str(tmp_path / "genes.txt"), tmp_path / "one.csv"]
    for genes in kinds:
        assert cell_graph(genes, {"net": [(A, B)]})["gene"].node_ids == GENES


@pytest.mark.parametrize(
    ("genes", "words"),
    [
        ("YAL001C", "gene_set='YAL001C' is text, but no file"),
        (b"YAL001C", "bytes"),
        (7, "is int"),
        ([A, None], "None, expected text"),
        ([A, ""], "gene 1 has no name"),
        ([[A, B]], "expected text"),
        (pd.DataFrame({"gene": [A], "alias": ["x"]}), "columns 'gene', 'alias'"),
        ([], "no genes"),
    ],
)
def test_gene_sets_that_are_none(genes, words):
    with pytest.raises(CacheError, match=words):
        cell_graph(genes, {"net": [(A, B)]})


@pytest.mark.parametrize(
    "text", [f"{A}\tABC1\n", f"{A}, {B}\n", f"gene,name\n{A},ABC1\n", f"{A} {B}\n", "\n# none\n"]
)
def test_gene_lists_that_are_tables_or_empty(tmp_path, text):
    (tmp_path / "genes.txt").write_text(text)
    with pytest.raises(SourceContractError, match=r"genes\.txt.*(line \d|no gene name)"):
        cell_graph(tmp_path / "genes.txt", {"net": [(A, B)]})


@pytest.mark.parametrize("graphs", [[(A, B)], "net.tsv", nx.Graph([(A, B)])])
def test_networks_need_names(graphs):
    with pytest.raises(SettingError, match="expected a mapping"):
        cell_graph(GENES, graphs)


# Notes


def test_notes_stay_beside_the_content_and_go_with_the_build(tmp_path, capsys):
    networks = {"one": [(A, B), (A, "YZR900W")], "two": [(C, D)]}
    graph = cell_graph(GENES, networks)
    assert [re.sub(r":.*", "", note) for note in graph.notes] == ["network one", "network two"]
    assert "1 of 2 edges kept, 1 left out" in graph.notes[0]
    assert "'YZR900W'" in graph.notes[0]
    bare = cell_graph(GENES, {"one": [(A, B)], "two": [(C, D)]})
    tc.testing.assert_same_graph(graph, bare)
    assert "notes" not in graph
    source = tc.PerturbationTable(graph, [[A], [B]], phenotypes={"fitness": [1.0, 0.5]})
    store = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation())
    assert graph.notes[0] in capsys.readouterr().err
    assert list(graph.notes) == store.generation.manifest.created["notes"][:2]
    assert source.report().startswith("\n".join(graph.notes))
    plain = tc.PerturbationTable(bare, [[A], [B]], phenotypes={"fitness": [1.0, 0.5]})
    tc.build(tmp_path, source=plain, processor=tc.LazySubgraphRepresentation())  # not stale


def test_a_graph_may_have_a_field_named_notes(tmp_path):
    graph = cell_graph(GENES, {"net": [(A, B)]})
    del vars(graph)["notes"]
    graph.notes = ["content"]
    source = tc.PerturbationTable(graph, [[A]], phenotypes={"fitness": [1.0]})
    store = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    assert "content" not in store.generation.manifest.created["notes"]
