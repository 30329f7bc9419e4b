"""The language of where=: the same answer as Python's own, row by row, and nothing else than the language."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcell_cache.errors import SettingError
from torchcell_cache.store.expression import Expression

COUNT = 12
NAMES = ("small", "label", "flag", "wide")
special = st.sampled_from([0.0, -0.0, 1.0, -1.5, math.nan, math.inf, -math.inf, 2.0**40])
rows = st.fixed_dictionaries(
    {
        "small": st.lists(st.integers(0, 255), min_size=COUNT, max_size=COUNT),
        "label": st.lists(special | st.floats(-9, 9, width=32), min_size=COUNT, max_size=COUNT),
        "wide": st.lists(special | st.floats(-9, 9), min_size=COUNT, max_size=COUNT),
        "flag": st.lists(st.booleans(), min_size=COUNT, max_size=COUNT),
    }
)
DTYPES = {"small": np.uint8, "label": np.float32, "wide": np.float64, "flag": np.bool_}
constants = st.sampled_from(["0", "1", "2.5", "300", "0.5", "-3"])
# float32 and float64 columns are not mixed: Python has one kind of float, so the oracle computes in float64.
exact = st.sampled_from(["small", "wide"]) | constants
numbers = st.recursive(
    exact,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | inner.map(lambda t: f"-({t})")
        | inner.map(lambda t: f"abs({t})")
    ),
    max_leaves=4,
)
comparisons = (
    st.tuples(numbers, st.sampled_from(["<", "<=", "==", "!=", ">", ">="]), numbers).map(" ".join)
    | st.tuples(numbers, constants, constants).map(lambda t: f"{t[1]} <= {t[0]} < {t[2]}")
    | st.tuples(st.just("label"), st.sampled_from(["<", "==", "!=", ">="]), constants).map(" ".join)
    | st.tuples(exact, st.sampled_from(["in", "not in"]), st.lists(constants, min_size=1, max_size=3)).map(
        lambda t: f"{t[0]} {t[1]} [{', '.join(t[2])}]"
    )
    | numbers.map(lambda t: f"isnan({t})")
    | st.just("flag")
    | st.just("flag == False")
)
conditions = st.recursive(
    comparisons,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})")
        | inner.map(lambda t: f"not ({t})")
    ),
    max_leaves=4,
)


def by_rows(text, columns):
    """Python's own answer, one row after the other."""
    code = compile(text, "<oracle>", "eval")
    scope = {"isnan": math.isnan, "abs": abs, "__builtins__": {}}
    return [
        bool(eval(code, scope, {n: float(c[k]) if n != "flag" else c[k] for n, c in columns.items()}))  # noqa: S307 - the oracle
        for k in range(COUNT)
    ]


@settings(max_examples=400, deadline=None)
@given(text=conditions, columns=rows)
def test_an_expression_means_what_python_means_row_by_row(text, columns) -> None:
    arrays = {name: np.array(values, dtype=DTYPES[name]) for name, values in columns.items()}
    got = Expression(text).mask(arrays, COUNT)
    assert got.dtype == np.bool_
    assert got.tolist() == by_rows(text, columns)


def test_constants_take_the_precision_of_their_column() -> None:
    label = np.array([0.9, 0.1, 0.3], dtype=np.float32)
    columns = {"label": label, "same": label.astype(np.float64)}
    assert Expression("label == 0.9").mask(columns, 3).tolist() == [True, False, False]
    assert Expression("label in (0.9, 0.3)").mask(columns, 3).tolist() == [True, False, True]
    assert Expression("same == 0.9").mask(columns, 3).tolist() == [False] * 3
    small = {"count": np.array([0, 1, 255], dtype=np.uint8)}
    assert Expression("count - 1 < 0 or count + 1 > 255").mask(small, 3).tolist() == [True, False, True]
    assert Expression("1 / count > 5 or count // 2 == 127 or count % 2 == 5").mask(small, 3).tolist() == [
        True,
        False,
        True,
    ]
    assert Expression("2 > 1").mask(small, 3).tolist() == [True] * 3
    assert Expression("abs(-2) == 2 and 7 // 2 == 3 and 1 / 0 > 9").mask(small, 3).tolist() == [True] * 3


def test_nan_is_never_equal_less_or_greater() -> None:
    columns = {"x": np.array([np.nan, 1.0], dtype=np.float32)}
    for text, want in {
        "x > 0": [False, True],
        "not (x > 0)": [True, False],
        "x != x": [True, False],
        "x == x": [False, True],
        "x in (1, 2)": [False, True],
        "x not in (1, 2)": [True, False],
        "isnan(x)": [True, False],
        "isfinite(x)": [False, True],
        "0 < x < 2": [False, True],
    }.items():
        assert Expression(text).mask(columns, 2).tolist() == want, text


def test_columns_of_any_name_stand_in_backticks() -> None:
    columns = {"growth rate": np.arange(3.0), "in": np.arange(3), "x": np.arange(3)}
    expression = Expression("`growth rate` > 0 and `in` < 2 and abs(x) == x")
    assert expression.names == ["growth rate", "in", "x"]
    assert expression.mask(columns, 3).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "text", ["2024 > 3", "3 < 2024", "2024 in (1, 2)", "not 2024 == 1 and 1 < 2", "1e5 > 2"]
)
def test_a_number_that_is_the_name_of_a_column_is_no_silent_constant(text) -> None:
    columns = {"2024": np.arange(3.0), "100000.0": np.arange(3.0), "x": np.arange(3.0)}
    with pytest.raises(SettingError, match=r"reads no column.*\n.*`(2024|100000.0)`"):
        Expression(text).mask(columns, 3)
    assert Expression("`2024` > 1 and x < 2024").mask(columns, 3).tolist() == [False, False, True]


HOSTILE = [
    "__import__('os').system('touch owned')",
    "(1).__class__",
    "x.real > 0",
    "[y for y in (1,)] == 1",
    "(lambda: 1)() > 0",
    "x[0] > 0",
    "f'{x}' == 1",
    "x ** 9 > 0",
    "9 ** 9 ** 9 > 0",
    "x << 60 > 0",
    "~x == 1",
    "(y := 1) > 0",
    "x if x > 0 else x",
    "open('f') == 1",
    "abs(x, x) > 0",
    "abs(x=1) > 0",
    "isnan",
    "x is 1",
    "x > 0; x",
    "x = 1",
    "await x",
    "x > 'a'",
    "x > b'a'",
    "x > 1j",
    "x > None",
    "x > ...",
    "x > 1e999",
    "x > 99999999999999999999",
    "x in x",
    "x in (1, x)",
    "x in (1, 2) > 0",
    "x",
    "x and x > 0",
    "not x",
    "x > (x > 0)",
    "(x > 0) + 1 > 0",
    "-(x > 0) == 1",
    "(x > 0) < (x > 1)",
    "",
    "   ",
    "x >",
    "x > 0 # " + "c" * 5000,
    "(" * 300 + "x" + ")" * 300 + " > 0",
    "not " * 900 + "x > 0",
    "-" * 3000 + "x > 0",
    "x > 0 and " * 350 + "x > 0",
    "x\x00 > 0",
    "x > 0\ud800",
    "quoted_column_0 > 0",
    "`quoted_column_0` > 0",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:24].encode("ascii", "replace").decode())
def test_what_is_not_of_the_language_is_refused(text, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun = time.process_time()
    with pytest.raises(SettingError, match=r"where="):
        Expression(text).mask({"x": np.arange(3.0), "isnan2": np.arange(3.0)}, 3)
    assert time.process_time() - begun < 5
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="x0.1()[]<>=!andornotif_*+-/% ,'\"`:{}\\\n", max_size=40) | st.text(max_size=20))
def test_any_text_is_a_condition_or_a_typed_error(text) -> None:
    try:
        mask = Expression(text).mask({"x": np.arange(3.0)}, 3)
    except SettingError:
        return
    assert mask.shape == (3,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fitnes > 0", r"no column of this store; did you mean 'fitness'\? valid: fitness, count"),
        ("zzz > 0", r"no column of this store; valid: fitness, count"),
        ("matrix > 0", r"not one number per sample; valid"),
        ("big > 0", r"above 2\*\*53"),
        ("fitness", r"a number, not a condition(.|\n)*\.\.\. > 0"),
        ("fitness and count > 1", r"joins the number 'fitness'"),
        ("fitness > 'a'", r"genes= and without="),
        ("len(fitness) > 1", r"not of the language(.|\n)*isnan\(x\)"),
    ],
)
def test_messages_name_what_is_valid(text, message) -> None:
    columns = {
        "fitness": np.zeros(3, np.float32),
        "count": np.zeros(3, np.uint8),
        "matrix": np.zeros((3, 2)),
        "big": np.full(3, 2**60),
    }
    with pytest.raises(SettingError, match=message):
        Expression(text).mask(columns, 3)
