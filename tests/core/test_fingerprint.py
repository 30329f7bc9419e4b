"""Canonical JSON, array digests, and the explanation of what changed."""

import hashlib
import json
import pickle
import re

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings

from torchcell_cache.core.fingerprint import (
    Difference,
    Fingerprint,
    array_digest,
    canonical_json,
    diff,
    explain,
    sha256_json,
)
from torchcell_cache.core.sealed import plain
from torchcell_cache.errors import SettingError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    SCALARS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
TREES = st.dictionaries(TEXT, VALUES, max_size=4)


def test_canonical_json_bytes():
    value = {"b": [1, 2.5, None, True], "a": "ä\n", "c": {}}
    assert canonical_json(value) == b'{"a":"\xc3\xa4\\n","b":[1,2.5,null,true],"c":{}}'
    assert sha256_json(value) == hashlib.sha256(canonical_json(value)).hexdigest()


@given(VALUES)
def test_canonical_json_round_trip(value):
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)


@given(TREES)
def test_canonical_json_ignores_insertion_order(tree):
    assert canonical_json(dict(reversed(tree.items()))) == canonical_json(tree)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {"b": float("nan")}]}, r"value\.a\[1\]\.b is nan"),
        ([float("inf")], r"value\[0\] is inf"),
        ({"a": {1: 2}}, r"value\.a has the key 1 of type int"),
        ({"a": {3, 4}}, r"value\.a is of type set, expected JSON"),
        ({"x": np.int64(3)}, r"value\.x is of type numpy\.int64"),
        (["\ud800"], r"value\[0\] is not valid Unicode"),
        (b"raw", r"value is of type bytes"),
    ],
)
def test_canonical_json_names_the_offender(value, message):
    with pytest.raises(SettingError, match=message):
        canonical_json(value)


def test_numbers_of_an_enumeration_are_numbers():
    assert plain({"flag": re.RegexFlag.DOTALL}) == {"flag": 16}


def test_canonical_json_of_a_cycle():
    value: list = []
    value.append(value)
    with pytest.raises(SettingError, match="contains itself"):
        canonical_json(value)


ARRAYS = npst.arrays(
    dtype=st.sampled_from(["?", "<i4", "<i8", "<u2", "<f2", "<f4", "<f8", "<c8", "<M8[ns]"]),
    shape=npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@given(ARRAYS)
def test_array_digest_is_dtype_shape_and_bytes(array):
    shape = ",".join(map(str, array.shape))
    assert array_digest(array) == f"{array.dtype.name}[{shape}]:{xxhash.xxh3_128_hexdigest(array.tobytes())}"


@given(ARRAYS)
def test_array_digest_ignores_layout_and_byte_order(array):
    same = [np.array(array, order="F"), array.astype(array.dtype.newbyteorder(">"))]
    if array.ndim:
        padded = np.zeros((2 * array.shape[0], *array.shape[1:]), dtype=array.dtype)
        padded[::2] = array
        same.append(padded[::2])
    read_only = array.copy()
    read_only.setflags(write=False)
    assert {array_digest(other) for other in [*same, read_only]} == {array_digest(array)}


@given(ARRAYS, st.data())
def test_array_digest_sees_every_bit(array, data):
    raw = bytearray(array.tobytes())
    if raw:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        changed = np.frombuffer(bytes(raw), dtype=array.dtype).reshape(array.shape)
        assert array_digest(changed) != array_digest(array)


def test_array_digest_tells_shape_dtype_and_nan_payload():
    a = np.zeros((2, 6), np.float32)
    others = [a.reshape(3, 4), a.reshape(12), a.view(np.int32), a[:, :0], -a, np.full_like(a, np.nan)]
    payload = np.full_like(a, np.nan).view(np.int32)
    payload[0, 0] |= 1
    assert len({array_digest(x) for x in [a, *others, payload.view(np.float32)]}) == 8
    assert array_digest(np.zeros((0, 3), np.int64)).startswith("int64[0,3]:")
    assert array_digest(np.float64(1.5).reshape(())).startswith("float64[]:")


@pytest.mark.parametrize("dtype", [object, np.longdouble, [("a", "i1"), ("b", "i8")]])
def test_array_digest_refuses_bytes_that_are_not_the_value(dtype):
    with pytest.raises(SettingError, match="no stable digest"):
        array_digest(np.zeros(3, dtype=dtype))


def tree(**changes):
    """A small fingerprint tree; a change is given as ``part__part=value``."""
    edges = np.arange(20).reshape(2, 10)
    result = {
        "format": 1,
        "base_graph": {"gene|regulatory|gene": {"edge_index": array_digest(edges), "num_edges": 10}},
        "processor": {
            "name": "LazySubgraphRepresentation",
            "settings": {"gpr": "any", "transforms": [{"k": 1}]},
        },
        "source": {"num_samples": 300},
        "storage": "delta",
    }
    for path, value in changes.items():
        node = result
        *parents, last = path.split("__")
        for name in parents:
            node = node[name]
        node[last] = value
    return result


def test_fingerprint_round_trip_and_digest():
    one = Fingerprint(tree())
    assert Fingerprint(json.loads(json.dumps(one.to_dict()))) == one
    assert one.digest == hashlib.sha256(canonical_json(tree())).hexdigest()
    assert pickle.loads(pickle.dumps(one)) == one
    assert Fingerprint(tree(storage="full")).digest != one.digest
    assert explain(one, Fingerprint(tree())) == []
    one.to_dict()["format"] = 2
    assert one == Fingerprint(tree())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"processor__settings__gpr": "rule"}, "processor.settings.gpr: 'any' -> 'rule'"),
        ({"source__num_samples": 320}, "source.num_samples: 300 -> 320"),
        ({"processor__settings__transforms": [{"k": 2}]}, "processor.settings.transforms[0].k: 1 -> 2"),
        ({"source__num_samples": True}, "source.num_samples: 300 -> True"),
        ({"processor__settings__keep": {"a": 1, "b": 2}}, "processor.settings.keep: new, 2 parts"),
        ({"source": 3}, "source: {'num_samples': 300} -> 3"),
    ],
)
def test_explain_names_the_part(changes, line):
    old, new = tree(), tree(**changes)
    lines = explain(old, new)
    assert lines[0] == line
    assert lines[-1].endswith(" equal")
    assert len(lines) == 2


def test_explain_a_missing_part_and_the_count():
    new = tree()
    del new["base_graph"]["gene|regulatory|gene"]
    assert explain(tree(), new) == [
        "base_graph.gene|regulatory|gene: missing now, was 2 parts",
        "6 other parts equal",
    ]
    assert explain({"a": 1, "b": 2}, {"a": 1, "b": 3})[-1] == "1 other part equal"


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 9902), np.int64), "9,881 -> 9,902 columns (int64[2,9881]:"),
        (np.ones((2, 9881), np.int64), "same shape, other values (int64[2,9881]:"),
        (np.zeros((2, 9881), np.int32), "int64 -> int32 (int64[2,9881]:"),
        (np.zeros((3, 9881), np.float32), "int64 -> float32, 2 -> 3 rows (int64[2,9881]:"),
        (np.zeros(9881, np.int64), "shape [2, 9881] -> [9881] (int64[2,9881]:"),
    ],
)
def test_explain_arrays_in_words(array, words):
    old = {"gene|regulatory|gene": {"edge_index": array_digest(np.zeros((2, 9881), np.int64))}}
    new = {"gene|regulatory|gene": {"edge_index": array_digest(array)}}
    (line, last) = explain(old, new)
    assert line.startswith(f"gene|regulatory|gene.edge_index: {words}")
    assert line.count("..") == 2
    assert len(line) < 140
    assert last == "0 other parts equal"


@settings(max_examples=60)
@given(TREES, TREES)
def test_diff_is_empty_exactly_for_equal_trees(one, other):
    assert diff(one, one) == explain(one, one) == []
    equal = canonical_json(one) == canonical_json(other)
    assert (not diff(one, other)) == equal == (Fingerprint(one).digest == Fingerprint(other).digest)
    assert all(isinstance(part, Difference) for part in diff(one, other))
