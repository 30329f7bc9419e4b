"""Names and signs that people type in ``where``: Unicode in any form, blanks, pandas' & and |. The oracle is numpy, pandas."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.errors import SettingError
from torchcell_cache.store.expression import Expression

VALUES = np.array([1.0, 2.0, 3.0, np.nan])
WORDS = {"and", "or", "not", "in", "is", "if", "else", "for", "lambda", "None", "True", "False"}


def mask(text, **columns):
    return Expression(text).mask(columns, 4).tolist()


NAMES = [
    "\u00b5max",
    "\u03bcmax",
    "fla\u0308che",
    "fl\u00e4che",
    "\ufb01tness",
    "fitness\u00b2_\u00b2",
    "\u0394\u0394G",
    "\u540d",
    "\uff46",
    "x\u0301",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quote", ["", "`"])
def test_a_name_is_found_as_it_was_typed(name, quote) -> None:
    if not quote and not name.isidentifier():
        pytest.skip("stands in backticks")
    expression = Expression(f"1 < {quote}{name}{quote} < 3 or isnan({quote}{name}{quote})")
    assert expression.names == [name]
    assert expression.mask({name: VALUES}, 4).tolist() == [False, True, False, True]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="`"), min_size=1, max_size=8))
def test_any_name_in_backticks_and_any_identifier_without(name) -> None:
    assert Expression(f"`{name}` == 2").mask({name: VALUES}, 4).tolist() == [False, True, False, False]
    if name.isidentifier() and name not in WORDS:
        try:
            compile(name, "", "eval")
        except SyntaxError:
            return  # a keyword
        assert Expression(f"{name}==2").mask({name: VALUES}, 4).tolist() == [False, True, False, False]


def test_the_other_form_of_a_name_finds_it_where_only_one_looks_like_it() -> None:
    both = {"\u00b5": VALUES, "\u03bc": VALUES + 1}  # micro sign and Greek letter
    assert mask("\u00b5 > 2", **both) == [False, False, True, False]
    assert mask("\u03bc > 2", **both) == [False, True, True, False]
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        typed = unicodedata.normalize(form, "fl\u00e4che_\u00b5")
        assert mask(f"{typed} > 2", **{"fl\u00e4che_\u00b5": VALUES}) == [False, False, True, False]
    with pytest.raises(SettingError, match="no column of this store"):
        mask("\uff46 > 1", **{"F": VALUES})


def test_texts_keep_their_letters(tmp_path) -> None:
    """A text in quotes is no name, whatever it holds."""
    names = ["M\u00fcller", "a and b", "x`y`z", "\u00b5"]
    found = [
        Expression(f"donor == {name!r}").mask({"donor": np.arange(4.0)}, 4, {"donor": names}).tolist()
        for name in names
    ]
    assert found == np.eye(4, dtype=bool).tolist()


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.builds(
            "({} {} {})".format,
            st.sampled_from(["a", "b"]),
            st.sampled_from(["<", ">", "<=", ">=", "==", "!="]),
            st.integers(0, 4),
        ),
        lambda inner: (
            st.builds("({} {} {})".format, inner, st.sampled_from("&|"), inner)
            | st.builds("(~{})".format, inner)
        ),
        max_leaves=8,
    )
)
def test_signs_as_in_pandas(text) -> None:
    columns = {"a": VALUES, "b": VALUES[::-1].copy()}
    wanted = pd.DataFrame(columns).eval(text, engine="python", parser="python").tolist()
    assert mask(text, **columns) == wanted
    words = text.replace("&", " and ").replace("|", " or ").replace("~", " not ")
    assert mask(words, **columns) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a > 1 & b < 3", r"joins '1'.*binds tighter(.|\n)*a > 1 and b < 2, or \(a > 1\) & \(b < 2\)"),
        ("a == 'NK' & (b > 1)", r"'NK'(.|\n)*and b"),
        ("a | b", r"joins 'a'.*'\|'(.|\n)*a > 1 or b < 2"),
        ("a > 1 && b < 3", r"cannot be read(.|\n)*and, or, not"),
        ("a > 1 || b < 3", r"cannot be read(.|\n)*and, or, not"),
        ("!a > 1", r"cannot be read(.|\n)*and, or, not"),
        ("~a", "joins the number 'a'"),
        ("(a > 1) ^ (b > 1)", "not of the language"),
        ("a \u2265 2", "cannot be read"),
        ("`growth rate` + 1", "is a number"),
        ("(`growth rate` > 1) < 2", "compares a condition with a number in .*`growth rate`"),
    ],
)  # fmt: skip
def test_other_signs_are_answered_with_the_word_to_use(text, message) -> None:
    with pytest.raises(SettingError, match=message):
        mask(text, a=VALUES, b=VALUES, **{"growth rate": VALUES})


@pytest.mark.parametrize(
    "name", ["Double mutant fitness (DMF)", "p-value", "a/b", "2024", "it's", 'say "x"', "\u00b5 max", "a`b"]
)
def test_columns_of_a_store_with_any_name(tmp_path, name, capsys) -> None:
    from torchcell_cache.cli import main

    source = tc.PerturbationTable(tc.testing.tiny_graph(), [["G0"], ["G1"]], phenotypes={name: [1.0, 2.0]})
    ds = tc.build(tmp_path / "s", source=source, processor=tc.Perturbation(), progress=False)
    if "`" in name:  # no way to quote it
        assert tc.select(ds, n=1, stratify=name).tolist() in ([0], [1])
        return
    assert tc.select(ds, f"`{name}` > 1").tolist() == [1]
    assert main(["select", f"root={tmp_path}/s", f"where=`{name}` > 1", f"out={tmp_path}/x.npy"]) == 0
    assert np.load(tmp_path / "x.npy").tolist() == [1]
    assert main(["select", f"root={tmp_path}/s", "n=1", f"stratify={name}"]) == 0
    capsys.readouterr()
