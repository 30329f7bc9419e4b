"""Numbers, ids, rules and repeats of a metabolism: read right, or refused with the entry and what to type next."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from torchcell_cache.errors import CacheError, SettingError
from torchcell_cache.graph.rules import parse_rule
from torchcell_cache.sources import cell_graph

GENES = ["YAL001C", "YAL002W", "YBR001C", "YBR002W-A"]
A, B, C, D = GENES


def read(network, **more):
    """Stoichiometry as (reaction, metabolite, value), genes as (gene, reaction), and the graph."""
    cell = cell_graph(GENES, {"net": [(A, B)]}, {"metabolism": network}, **more)
    reaction, rmr = cell["reaction"].node_ids, cell["reaction", "rmr", "metabolite"]
    ends = zip(*rmr.hyperedge_index.tolist(), rmr.stoichiometry.tolist(), strict=True)
    entries = [(reaction[r], cell["metabolite"].node_ids[m], value) for r, m, value in ends]
    gpr = cell["gene", "gpr", "reaction"].hyperedge_index.t().tolist()
    return entries, [(GENES[gene], reaction[r]) for gene, r in gpr], cell


def tables(**more):
    base = {"reactions": ["r1", "r2"], "metabolites": ["m1", "m2"]}
    return {**base, "rmr": [("r1", "m1", -1), ("r2", "m2", 2)], **more}


def graph(*edges, genes=(A,), kind=nx.DiGraph):
    found = kind()
    found.add_nodes_from(["m1", "m2"], node_type="metabolite")
    found.add_nodes_from(["r1", "r2"], node_type="reaction", genes=list(genes))
    found.add_edges_from((a, b, {"edge_type": "reactant", **facts}) for a, b, facts in edges)
    return found


def refused(network, words, **more):
    with pytest.raises(CacheError, match=words) as caught:
        read(network, **more)
    assert caught.value.fix, caught.value


NO_NUMBERS = [
    True,
    "1_0",
    b"1",
    2j,
    None,
    pd.NA,
    np.ma.masked,
    2**24 + 1,
    np.datetime64("2020"),
    [1.0],
    "\u0661",
    10**400,
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_values_that_are_no_numbers(value):
    refused(tables(rmr=(["r1"], ["m1"], [value])), r"rmr of \(r1, m1\) is")
    refused(tables(w_growth=[value, 0]), r"w_growth of \(r1\) is")
    refused(tables(w_growth={"r1": value}), r"w_growth of \(r1\) is")
    if type(value) is not int:  # which is a float by then
        refused(graph(("r1", "m1", {"stoichiometry": value})), "'r1' and 'm1'|\\(r1, m1\\)")


@pytest.mark.parametrize("value", ["2", 2, np.float32(2), " 2.0 ", np.int8(2), "2e0"])
def test_values_that_are_numbers(value):
    assert read(tables(rmr=(["r1"], ["m1"], [value])))[0] == [("r1", "m1", 2.0)]
    assert read(graph(("r1", "m1", {"stoichiometry": value})))[0] == [("r1", "m1", -2.0)]
    assert read(tables(w_growth=[value, 0]))[2]["reaction"].w_growth.tolist() == [2, 0]


def test_a_coefficient_under_another_name_is_no_1():
    for facts in ({"coefficient": "2"}, {"weight": 2}, {"value": np.float64(2)}):
        refused(graph(("r1", "m1", facts)), "no stoichiometry that is a number")
    for facts in ({"reversible": True}, {"note": "irreversible"}, {}):
        assert read(graph(("r1", "m1", facts)))[0] == [("r1", "m1", -1.0)]
    assert read(graph(("r1", "m1", {"edge_type": float("nan"), "stoichiometry": -2})))[0] == [
        ("r1", "m1", -2)
    ]


@pytest.mark.parametrize(
    "entries",
    [
        [("r1", "m1", -1), ("r1", "m1", -2)],
        [("r1", "m1", 1), ("r2", "m2", 1), ("r1", "m1", 1)],
        [("r1", "m1", 0)],
        [("r1", "m1", -0.0)],
        [("r1", "m1", 1e-60)],
    ],
)
def test_entries_that_stand_there_twice_or_say_nothing(entries):
    refused(tables(rmr=entries), r"rmr: \(r1, m1\) (stands there twice|has the coefficient 0)")
    both = [("r1", "m1", -1), ("r1", "m1", 2)]
    assert read(tables(rmr=both))[0] == both, "consumed and produced"


def test_ids_in_their_forms():
    for reactions in ({"r1": 1, "r2": 2}, {"r1": 1, "r2": 2}.keys(), pd.Series(["r1", "r2"], index=[9, 3])):
        assert read(tables(reactions=reactions))[2]["reaction"].node_ids == ["r1", "r2"]
    assert read(tables(reactions=pd.DataFrame({"id": ["r1", "r2"]})))[0] == read(tables())[0]
    numbers = {"reactions": [1, 2], "metabolites": [7.0, 8.0], "rmr": ([1.0, 2.0], ["7", 8], [1, 1])}
    assert read(numbers)[0] == [("1", "7", 1.0), ("2", "8", 1.0)]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"reactions": {"r1", "r2"}}, "is set, expected one value per row"),
        ({"reactions": b"r1"}, "expected a list of ids"),
        ({"reactions": ["r1", "r2", " "]}, "a reaction has no id"),
        ({"reactions": ["r1", " r1"]}, "repeat: 'r1'"),
        ({"reactions": ["True", "r2"], "rmr": [(True, "m1", 1)]}, "True, expected text"),
        ({"rmr": [(b"r1", "m1", 1)]}, "expected text"),
        ({"rmr": [(None, "m1", 1)]}, "expected text"),
        ({"rmr": pd.DataFrame({"m": ["m1"], "r": ["r1"], "c": [1]})}, "'m1', which is not one of the reactions"),
        ({"rmr": pd.DataFrame([[-1, 0], [0, 2]], index=["m1", "m2"], columns=["r1", "r2"])}, "2 columns, expected 3"),
        ({"rmr": None}, "is NoneType"),
        ({"gpr": {"r1": [A]}}, "is dict"),
        ({"gpr": [(A, "r9")]}, "'r9', which is not one of the reactions"),
        ({"gene_rules": {A, B}}, "is set"),
        ({"gene_rules": {"r1": A, " r1": B}}, "a reaction twice"),
        ({"gene_rules": pd.Series([A, B], index=["r2", "r1"])}, "in another order"),
        ({"w_growth": pd.Series([0, 1], index=["r2", "r1"])}, "in another order"),
        ({"gene_rules": [B, ""], "gpr": [(A, "r1")]}, f"differ on gene '{A}' and reaction 'r1'"),
        ({"fluxes": []}, "unknown"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(more, words):
    refused(tables(**more), words)


@pytest.mark.parametrize("network", [5, "model.xml", [], None, type("Model", (), {"reactions": []})()])
def test_what_is_no_metabolism(network):
    refused(network, "expected a networkx graph or a mapping of tables")


def test_rules_by_name_and_repeats():
    assert read(tables(gene_rules={" r1 ": A}))[1] == [(A, "r1")]
    assert read(tables(gene_rules=pd.Series([A, B], index=["r1", "r2"])))[1] == [(A, "r1"), (B, "r2")]
    assert read(tables(gene_rules=[f"{A} and {B}", ""], gpr=[(B, "r1"), (A, "r1")]))[1] == [
        (B, "r1"),
        (A, "r1"),
    ]
    entries, cell = read(tables(gpr=[(A, "r1"), (A, "r1"), ("old", "r1")]), aliases={"old": A})[1:]
    assert entries == [(A, "r1")]
    assert "3 of 3 entries kept; 2 listed more than once" in cell.notes[1]


@pytest.mark.parametrize(
    "gap", [None, np.nan, pd.NA, "", " ", "nan", "NaN", "None", "NA", "<NA>", "-", "null"]
)
def test_a_rule_that_is_a_gap(gap):
    _, genes, cell = read(tables(gene_rules=[A, gap]))
    assert genes == [(A, "r1")]
    assert cell["reaction"].gene_rules == [A, ""]
    named = graph(("r1", "m1", {}))
    named.nodes["r1"]["genes"] = gap
    assert read(named)[1] == [(A, "r2")]


MALFORMED = [
    *(
        f"{A} and",
        f"({A}",
        f"{A})",
        "()",
        f"{A}()",
        "and",
        f"{A} and and {B}",
        f"or {A}",
        f"({A})({B})",
        f"{A} {B}",
    ),
    *(
        f"{A},{B}",
        f"{A};{B}",
        f"{A}+{B}",
        f"not {A}",
        f"!{A}",
        f"{A} xor {B}",
        f"{A} &&& {B}",
        f"{A} and | {B}",
    ),
    *(
        f"\u200b{A}",
        f"{A} \u2227 {B}",
        f"[{A}]",
        "{" + A + "}",
        f"{A}\0",
        "(" * 3000 + A,
        f"{A} | {B} and {C}",
    ),
]


@pytest.mark.parametrize("rule", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_rules_name_the_reaction(rule):
    refused(tables(gene_rules=["", rule]), "reaction 'r2': malformed gene rule at character")
    named = graph(("r1", "m1", {}))
    named.nodes["r1"]["genes"] = rule
    refused(named, "reaction 'r1': malformed gene rule at character")


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (f"{A} AND {B} Or {C}", [{A, B}, {C}]),
        (f"{A}&&{B}||{C}", [{A, B}, {C}]),
        (f"{A} and ({B} or ({C} and ({D})))", [{A, B}, {A, C, D}]),
        (f"{A} or {A} and {B}", [{A}]),
        ("(" * 20000 + A + ")" * 20000, [{A}]),
        (" or ".join([A, B] * 5000), [{A}, {B}]),
        (f"\t{A}\n or\u00a0{B} ", [{A}, {B}]),
        ("and1 or orx", [{"and1"}, {"orx"}]),
        ("é.1 and b-2:c/d", [{"é.1", "b-2:c/d"}]),
    ],
)
def test_rules_in_their_forms(rule, wanted):
    assert sorted(map(sorted, parse_rule(rule))) == sorted(map(sorted, wanted))


def test_a_rule_of_a_model_says_what_to_write():
    from torchcell_cache.graph.rules import GeneRules

    with pytest.raises(CacheError, match="reaction 1 \\('PFK'\\): malformed") as caught:
        GeneRules.from_strings(["", f"({A}"], GENES, reaction_ids=["HEX", "PFK"])
    assert '"and" and "or"' in str(caught.value.fix)
    assert str(caught.value).count("fix:") == 1
    many = [f"g{k}" for k in range(26)]
    with pytest.raises(SettingError, match=r"reaction 0: .*limit 4096"):
        GeneRules.from_strings(
            [" and ".join(f"({a} or {b})" for a, b in zip(many[::2], many[1::2], strict=True))], many
        )
