"""Reactions, metabolites and genes of reactions, in the conventions of graphs and tables, against one plain model."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.errors import CacheError, SourceContractError
from torchcell_cache.sources import cell_graph

GENES = ["YAL001C", "YAL002W", "YBR001C", "YBR002W-A"]
A, B, C, D = GENES

# The model: reaction -> {metabolite: coefficient}; negative is consumed. Both roles occur.
models = st.dictionaries(
    st.sampled_from(["r1", "r2", "r3"]),
    st.dictionaries(
        st.sampled_from(["m1", "m2", "m3", "m4"]),
        st.sampled_from([-2.0, -1.0, -0.5, 0.25, 1.0, 3.0]),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
).filter(lambda model: {v > 0 for entry in model.values() for v in entry.values()} == {True, False})


def graph_of(model, convention, kind=nx.DiGraph, words=("reactant", "product")):
    """A networkx graph of the model, with all metabolites, in one of the ways people write it."""
    graph = kind()
    graph.add_nodes_from(sorted({m for entry in model.values() for m in entry}), node_type="metabolite")
    graph.add_nodes_from(model, node_type="reaction", genes={A}, subsystem="x")
    for reaction, entry in model.items():
        for metabolite, value in entry.items():
            word = words[value > 0]
            facts = {
                "torchcell": {"edge_type": word, "stoichiometry": abs(value)},
                "signed": {"stoichiometry": value},
                "signed words": {"edge_type": word.upper(), "stoichiometry": value},
                "flow": {"stoichiometry": abs(value)},
                "flow words": {"edge_type": word, "stoichiometry": abs(value)},
                "all of it": {"edge_type": word, "stoichiometry": value},
            }[convention]
            flows = convention in ("flow", "flow words", "all of it") and value < 0
            graph.add_edge(*((metabolite, reaction) if flows else (reaction, metabolite)), **facts)
    return graph


def read(network, genes=GENES, **more):
    cell = cell_graph(genes, {"net": [(A, B)]}, {"metabolism": network}, **more)
    reaction, rmr = cell["reaction"].node_ids, cell["reaction", "rmr", "metabolite"]
    found: dict = {name: {} for name in reaction}
    for r, m, value in zip(*rmr.hyperedge_index.tolist(), rmr.stoichiometry.tolist(), strict=True):
        found[reaction[r]][cell["metabolite"].node_ids[m]] = value
    assert rmr.num_edges == sum(map(len, found.values()))
    gpr = cell["gene", "gpr", "reaction"].hyperedge_index.t().tolist()
    return found, [(cell["gene"].node_ids[g], reaction[r]) for g, r in gpr], cell


@settings(max_examples=80, deadline=None)
@given(
    models,
    st.sampled_from(["torchcell", "signed", "signed words", "flow", "flow words", "all of it"]),
    st.sampled_from(
        [("reactant", "product"), ("substrate", "Product"), ("consumed", "produced"), ("input", "output")]
    ),
    st.sampled_from([nx.DiGraph, nx.MultiDiGraph, nx.Graph]),
)
def test_every_convention_gives_the_model(model, convention, words, kind):
    if convention == "flow" and kind is nx.Graph:
        with pytest.raises(SourceContractError, match=r"edge between 'r.*nothing says"):
            read(graph_of(model, convention, kind, words))
        return
    found, _, cell = read(graph_of(model, convention, kind, words))
    assert found == {reaction: model[reaction] for reaction in sorted(model)}
    assert cell["metabolite"].node_ids == sorted({m for entry in model.values() for m in entry})


def edge(*edges, kind=nx.DiGraph):
    graph = kind()
    graph.add_nodes_from(["m1", "m2"], node_type="metabolite")
    graph.add_nodes_from(["r1", "r2"], node_type="reaction", genes=[A])
    graph.add_edges_from(edges)
    return graph


REACTANT, PRODUCT = {"edge_type": "reactant"}, {"edge_type": "product"}


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (edge(("r1", "m1", {"stoichiometry": 2})), "'r1' and 'm1': nothing says"),
        (edge(("m1", "r1", {})), "'r1' and 'm1': nothing says"),
        (edge(("r1", "m1", {"edge_type": "catalyst"})), "'r1' and 'm1' has edge_type 'catalyst'"),
        (edge(("r1", "r2", REACTANT)), "joins two reactions"),
        (edge(("m1", "m2", REACTANT)), "joins two metabolites"),
        (edge(("r1", "m1", {"stoichiometry": -1, **PRODUCT})), "edge_type and the sign of stoichiometry contradict"),
        (edge(("r1", "m1", {"stoichiometry": -1, **REACTANT}), ("r2", "m1", REACTANT)), "'r2'.*contradict"),
        (edge(("m1", "r1", PRODUCT), ("r1", "m2", REACTANT)), "edge_type and the direction contradict"),
        (edge(("m1", "r1", {}), ("r1", "m1", {})), "goes both ways"),
        (edge(("r1", "m1", {"stoichiometry": None, **PRODUCT})), "no stoichiometry that is a number"),
        (edge(("r1", "m1", {"stoichiometry": "two", **PRODUCT})), "'stoichiometry': 'two'"),
        (edge(("r1", "m1", {"stoichiometry": float("nan"), **PRODUCT})), "no stoichiometry"),
        (edge(("r1", "m1", {"coefficient": 2.0, **PRODUCT})), "no stoichiometry.*'coefficient': 2.0"),
        (nx.DiGraph([("r1", "m1")]), "node 'r1' has no node_type"),
        (nx.complete_bipartite_graph(1, 2), "node 0 has no node_type.*bipartite"),
    ],
)  # fmt: skip
def test_edges_that_say_nothing_or_contradict_are_refused(network, words):
    with pytest.raises(SourceContractError, match=words):
        read(network)


def test_a_metabolite_on_both_sides_of_a_reaction():
    both = edge(("m1", "r1", {"stoichiometry": 2, **REACTANT}), ("r1", "m1", {"stoichiometry": 3, **PRODUCT}))
    store = cell_graph(GENES, None, {"metabolism": both})["reaction", "rmr", "metabolite"]
    assert sorted(store.stoichiometry.tolist()) == [-2, 3]


@pytest.mark.parametrize(
    "genes",
    [{A, B}, [B, A, A], (A, B), f"{A} and {B}", f"{A} | {B}", frozenset([A, B]), np.array([A, B])],
)
def test_genes_of_a_reaction(genes):
    graph = edge(("r1", "m1", REACTANT))
    graph.nodes["r1"]["genes"] = genes
    assert read(graph)[1] == [(A, "r1"), (B, "r1"), (A, "r2")]


def test_a_rule_in_place_of_genes_and_ids_of_two_kinds():
    graph = nx.DiGraph([(1, "m1", REACTANT)])
    graph.add_nodes_from(["m1", 2], node_type="metabolite")
    graph.add_nodes_from([1, "r2"], node_type="reaction", gene_reaction_rule=f"{A} or {B}")
    found, gpr, _ = read(graph)
    assert found == {"1": {"m1": -1.0}, "r2": {}}
    assert gpr == [(A, "1"), (B, "1"), (A, "r2"), (B, "r2")]


@pytest.mark.parametrize("genes", [None, float("nan"), "", (), {"r": 1}.keys() - {"r"}])
def test_a_reaction_without_genes(genes):
    graph = edge(("r1", "m1", REACTANT))
    graph.nodes["r1"]["genes"] = genes
    assert read(graph)[1] == [(A, "r2")]


@pytest.mark.parametrize("genes", [{A, 3.5}, [None], 7, True, f"{A}, {B}", [[A]]])
def test_genes_that_are_none_name_the_reaction(genes):
    graph = edge(("r1", "m1", REACTANT))
    graph.nodes["r1"]["genes"] = genes
    with pytest.raises(SourceContractError, match="reaction 'r1'"):
        read(graph)


# Tables


def tables(**more):
    return {
        "reactions": ["r1", "r2"],
        "metabolites": ["m1", "m2"],
        "rmr": (["r1", "r2"], ["m1", "m2"], [-1, 2]),
        **more,
    }


@pytest.mark.parametrize(
    ("rules", "entries", "texts"),
    [
        ([f"{A} and {B}", ""], [(A, "r1"), (B, "r1")], [f"{A} and {B}", ""]),
        ([f"{A} & ({B} | {C})", None], [(A, "r1"), (B, "r1"), (C, "r1")], [f"{A} & ({B} | {C})", ""]),
        ([f" {A} ", pd.NA], [(A, "r1")], [f" {A} ", ""]),
        (pd.Series([None, C]), [(C, "r2")], ["", C]),
        ({"r2": D}, [(D, "r2")], ["", D]),
        ([f"{A} or {B} or unknown", ""], [(A, "r1"), (B, "r1")], [f"{A} or {B} or unknown", ""]),
        ([f"old1 and {B}", "old2"], [(A, "r1"), (B, "r1"), (C, "r2")], [f"{A} and {B}", C]),
    ],
)
def test_gene_rules(rules, entries, texts):
    _, gpr, cell = read(tables(gene_rules=rules), aliases={"old1": A, "old2": C})
    assert sorted(gpr) == entries
    assert cell["reaction"].gene_rules == texts
    if "unknown" in texts[0]:
        assert "2 of 3 entries kept" in cell.notes[1]
        assert "'unknown'" in cell.notes[1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"gene_rules": [A.lower(), B.lower()]}, rf"'{A.lower()}'.*{A}.*letter case"),
        ({"gene_rules": ["", f"{A}/{B}"]}, f"reaction 'r2': the gene rule names '{A}/{B}', .*'{A}' is"),
        ({"gene_rules": ["", f"'{A}' or {B}"]}, "reaction 'r2'"),
        ({"gene_rules": ["", f"{A} + {B}"]}, "reaction 'r2'.*unexpected character"),
        ({"gene_rules": ["", f"{A} {B}"]}, "reaction 'r2'.*expected 'and'"),
        ({"gene_rules": ["", [A, B]]}, "reaction 'r2'.*expected text"),
        ({"gene_rules": [A]}, "1 gene_rules for 2 reactions"),
        ({"gene_rules": A}, "expected one per reaction"),
        ({"gene_rules": {"r9": A}}, "'r9', which is not one of the reactions"),
        ({"gpr": (["r1", "r2"], [A, B])}, "reaction"),
        ({"gpr": (["x", "y"], ["r1", "r2"])}, "none of the 2 gpr entries.*'x'"),
        ({"gpr": [(A, "r1", 1)]}, "entry 0 has 3 items"),
        ({"gpr": np.array([[A, "r1"], [B, "r2"]])}, "rows or columns"),
        ({"reactions": "r1"}, "expected a list of ids"),
        ({"reactions": ["r1", "r1"]}, "repeat: 'r1'"),
        ({"rmr": (["r1"], ["m1", "m2"], [1])}, "columns of 1 and 2 and 1 entries"),
        ({"rmr": (["r1"], ["m9"], [1])}, "metabolite 'm9'"),
        ({"rmr": (["r1"], ["m1"], ["x"])}, r"rmr of \(r1, m1\) is 'x'"),
        ({"rmr": (["r1"], ["m1"], [float("inf")])}, "is inf"),
        ({"rmr": (["r1"], ["m1"], [1e300])}, "is 1e"),
        ({"w_growth": ["a", "b"]}, r"w_growth of \(r1\)"),
    ],
)
def test_tables_that_are_none(more, words):
    with pytest.raises(CacheError, match=words):
        read(tables(**more))


def test_tables_in_their_forms():
    wanted = read(tables())[0]
    entries = [("r1", "m1", -1), ("r2", "m2", 2)]
    frame = pd.DataFrame(entries)
    for rmr in (entries, frame, tuple(frame[k] for k in range(3)), [list(entry) for entry in entries]):
        assert read(tables(rmr=rmr))[0] == wanted
    numbers = {"reactions": [1, 2], "metabolites": np.array([7, 8]), "rmr": (["1", 2], [7, "8"], [-1, 2])}
    assert read(numbers)[0] == {"1": {"7": -1.0}, "2": {"8": 2.0}}
    growth = [
        cell["reaction"].w_growth for cell in (read(tables(w_growth=w))[2] for w in ([0, 1], {"r2": 1}))
    ]
    assert torch.equal(*growth)


def test_a_build_by_rules_in_signs_and_old_names(tmp_path):
    cell = read(tables(gene_rules=[f"{A} & old", f"{C} | {D}"]), aliases={"old": B})[2]
    source = tc.PerturbationTable(cell, [[A], [B], [C], [C, D]])
    processor = tc.SubgraphRepresentation(gpr="rule")
    store = tc.build(tmp_path, source=source, processor=processor, progress=False)
    assert [store[k]["reaction"].num_nodes for k in range(4)] == [1, 1, 2, 1]
