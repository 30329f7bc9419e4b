"""Gene rules against plain evaluation of the boolean expression."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.rules import GeneRules, parse_rule, rewritten_rule, rule_genes

COBRA_GENES = ("YAL001C", "YAL002W-A", "b0001.1", "HXT3'", "a/b", "x:y=z")
GENES = ("YAL001C", "YAL002W-A", "Q0045", "b0001.1", "s_7", "1234")


def holds(tree, alive):
    """The oracle: evaluates the tree a rule was written from, never its text."""
    if isinstance(tree, str):
        return tree in alive
    word, left, right = tree
    if word in AND_SIGNS:
        return holds(left, alive) and holds(right, alive)
    return holds(left, alive) or holds(right, alive)


def written(tree, outer=""):
    """The text of a tree, with parentheses where precedence asks for them (and below ``AND``)."""
    if isinstance(tree, str):
        return tree
    word, left, right = tree
    text = f"{written(left, word)} {word} {written(right, word)}"
    return f"( {text})" if outer == "AND" or (outer in AND_SIGNS and word in OR_SIGNS) else text


AND_SIGNS, OR_SIGNS = ("and", "And", "AND", "&", "&&"), ("or", "Or", "OR", "|", "||")


def grown(names, signs):
    """Trees of rules, which are written in words or in signs."""
    return st.recursive(
        st.sampled_from(names), lambda inner: st.tuples(st.sampled_from(signs), inner, inner), max_leaves=10
    )


WORDS = [sign for sign in (*AND_SIGNS, *OR_SIGNS) if sign.isalpha()]
trees = grown(GENES, WORDS) | grown(GENES, ["&", "&&", "|", "||"])


@settings(max_examples=150, deadline=None)
@given(trees)
def test_normal_form_has_the_truth_table_of_the_rule(tree):
    complexes = parse_rule(written(tree))
    for size in range(len(GENES) + 1):
        for alive in itertools.combinations(GENES, size):
            expected = holds(tree, set(alive))
            assert any(set(genes) <= set(alive) for genes in complexes) == expected
    assert list(complexes) == sorted(complexes)
    assert all(list(genes) == sorted(set(genes)) for genes in complexes)
    assert not any(set(a) < set(b) for a in complexes for b in complexes)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.none() | trees, min_size=0, max_size=6),
    st.lists(st.lists(st.sampled_from(range(len(GENES))), max_size=4), max_size=6),
    st.sampled_from([np.int64, np.int32, np.uint16]),
)
def test_batch_evaluation_equals_evaluating_each_rule(rules, knockouts, dtype):
    gene_rules = GeneRules.from_strings(["" if t is None else written(t) for t in rules], GENES)
    ids = np.array([gene for lost in knockouts for gene in lost], dtype=dtype)
    ptr = np.concatenate([[0], np.cumsum([len(lost) for lost in knockouts])]).astype(np.int64)
    reactions, reaction_ptr = gene_rules.removed_reactions(ids, ptr)
    assert reactions.dtype == reaction_ptr.dtype == np.int64
    assert len(reaction_ptr) == len(knockouts) + 1
    for k, lost in enumerate(knockouts):
        alive = {name for gene, name in enumerate(GENES) if gene not in lost}
        expected = [r for r, tree in enumerate(rules) if tree is not None and not holds(tree, alive)]
        assert reactions[reaction_ptr[k] : reaction_ptr[k + 1]].tolist() == expected


@pytest.mark.parametrize(
    ("text", "complexes"),
    [
        ("", ()),
        (" \n", ()),
        ("b0001", (("b0001",),)),
        ("((A))", (("A",),)),
        ("B and A or C", (("A", "B"), ("C",))),
        ("A AND (B Or C)", (("A", "B"), ("A", "C"))),
        ("A or A and B", (("A",),)),
        ("(A or B)and(A or B)", (("A",), ("B",))),
        ("android or orb and andy", (("andy", "orb"), ("android",))),
        ("A&B|C", (("A", "B"), ("C",))),
        ("(A | B) && C || D", (("A", "C"), ("B", "C"), ("D",))),
        ("HXT3' or 5/6-kinase", (("HXT3'",), ("5/6-kinase",))),
    ],
)
def test_known_normal_forms(text, complexes):
    assert set(parse_rule(text)) == set(complexes)


def test_all_names_are_listed_even_absorbed_ones():
    assert parse_rule("A or (A and B)") == (("A",),)
    assert rule_genes("A or (A and B)") == ("A", "B")
    assert rule_genes("") == ()


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        ("A and", 5, "got the end"),
        ("A B", 2, "expected 'and', 'or' or '\\)', got 'B'"),
        ("A or or B", 5, "expected a gene name"),
        ("(A or B", 0, "never closed"),
        ("A or B)", 6, "without '\\('"),
        ("()", 1, "expected a gene name"),
        ("A & & B", 4, "expected a gene name"),
        ("A &", 3, "got the end"),
        ("A + B", 2, "unexpected character '\\+'"),
        ("A | B and C", 6, "mixes and, or with & and"),
        ("(A and B) || C", 10, "mixes"),
        ("A, B", 1, "unexpected character ','"),
        ("not A", 4, "expected 'and', 'or' or '\\)', got 'A'"),
        ("A (B)", 2, "got '\\('"),
        ("A;", 1, "unexpected character ';'"),
    ],
)
def test_malformed_rule_names_position_and_text(text, position, what):
    with pytest.raises(SourceContractError, match=f"character {position}: .*{what}") as caught:
        parse_rule(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("rule", [None, float("nan"), 3, ["A", "B"], b"A"])
def test_a_rule_that_is_no_text_is_refused_with_its_reaction(rule):
    with pytest.raises(
        SourceContractError, match=r"reaction 1 \('PFK'\): the gene rule is .*expected text\n.*fix: \"\""
    ):
        GeneRules.from_strings(["A", rule], ["A", "B"], reaction_ids=["PGI", "PFK"])
    with pytest.raises(SourceContractError, match="expected text"):
        rule_genes(rule)


@settings(max_examples=60, deadline=None)
@given(grown(COBRA_GENES, ["and", "or"]) | grown(COBRA_GENES, ["&", "|"]))
def test_rules_are_read_as_cobra_reads_them(tree):
    gpr = pytest.importorskip("cobra.core.gene").GPR.from_string(written(tree))
    assert set(rule_genes(written(tree))) == set(gpr.genes)
    for size in range(len(COBRA_GENES) + 1):
        for lost in itertools.combinations(COBRA_GENES, size):
            assert gpr.eval(lost) == any(not set(lost) & set(genes) for genes in parse_rule(written(tree)))


@settings(max_examples=60, deadline=None)
@given(trees, st.dictionaries(st.sampled_from(GENES), st.sampled_from(["Q0045", "new", "x-1"])))
def test_other_names_for_the_genes_of_a_rule(tree, names):
    def renamed(part):
        return names.get(part, part) if isinstance(part, str) else (part[0], *map(renamed, part[1:]))

    text = written(tree)
    assert parse_rule(rewritten_rule(text, names)) == parse_rule(written(renamed(tree)))
    assert rewritten_rule(text, {}) is text


def test_errors_name_the_reaction():
    with pytest.raises(SourceContractError, match=r"reaction 1 \('PFK'\).*unknown gene 'X'"):
        GeneRules.from_strings(["A", "A or A and X"], ["A"], reaction_ids=["PGI", "PFK"])
    with pytest.raises(SourceContractError, match=r"reaction 0.*character 2"):
        GeneRules.from_strings(["A A"], ["A"])
    wide = " and ".join(f"(a{k} or b{k})" for k in range(13))
    names = [f"{letter}{k}" for k in range(13) for letter in "ab"]
    with pytest.raises(SettingError, match=r"reaction 0 .*'R1'.*limit 4096"):
        GeneRules.from_strings([wide], names, reaction_ids=["R1"])


def test_id_that_is_not_a_gene_is_refused():
    rules = GeneRules.from_strings(["A"], ["A"])
    for bad in (-1, 1):
        with pytest.raises(SourceContractError, match="a model with 1 genes"):
            rules.removed_reactions(np.array([bad]), np.array([0, 1]))


def test_deep_nesting_and_long_chains_are_fine():
    assert parse_rule("(" * 20_000 + "A" + ")" * 20_000) == (("A",),)
    assert len(parse_rule(" or ".join(f"g{k}" for k in range(1000)))) == 1000
    assert len(parse_rule(" and ".join(f"g{k}" for k in range(1000)))[0]) == 1000
