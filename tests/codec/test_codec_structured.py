"""Structured records: golden bytes, round trips, and damage."""

import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcell_cache.codec import delta_code as gap
from torchcell_cache.codec import envelope
from torchcell_cache.codec.deletions import StructuredSchema, decode, encode
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import CorruptRecordError, FormatError, RecordTooLargeError


def table(samples, columns):
    """``samples``: list of (ids, rows)."""
    ids = np.array([k for p, _ in samples for k in p], dtype=np.int64)
    values = np.array([row for _, rows in samples for row in rows], dtype=np.float32).reshape(-1, columns)
    return SampleTable(
        ids,
        np.cumsum([0, *(len(p) for p, _ in samples)]),
        values,
        np.cumsum([0, *(len(rows) for _, rows in samples)]),
        tuple(f"p{k}" for k in range(columns)),
    )


def test_golden_bytes() -> None:
    """The format of docs/format.md, written out by hand."""
    rows = table([([3, 258], [[1.5, -0.0]])], 2)
    narrow = StructuredSchema(num_nodes=1000, num_columns=2, has_removed=True)
    words = np.array([5, 0xFFFF, 7], dtype=np.uint16)
    body = bytes.fromhex("11 01 0200  0000c03f 00000080  0300 0201  0500 ffff 0700")
    assert encode(narrow, rows, words, np.array([0, 3])) == [body]
    wide = StructuredSchema(num_nodes=100_000, num_columns=2, has_removed=False, wide=True)
    assert encode(wide, rows) == [bytes.fromhex("12 00 0100 02000000  0000c03f 00000080  03000000 02010000")]
    sealed, sums = envelope.seal([body], 7, 0x1122334455667788)
    digest = xxhash.xxh3_128_intdigest(body, seed=7)
    assert sums == (digest & (2**64 - 1), digest >> 64)
    assert sealed == [struct.pack("<Q", (digest & (2**64 - 1)) ^ 0x1122334455667788) + body]
    assert sealed[0].hex() == "2441a8e64403a22a" + body.hex()


def test_gap_code_by_hand() -> None:
    positions = np.array([0, 1, 65_535, 200_000])
    words = [0, 1, 65_534, 0xFFFF, 0xFFFF, 200_000 - 65_535 - 2 * 65_535]
    assert gap.encode_gaps(positions).tolist() == words
    assert gap.decode_gaps(np.array(words, dtype=np.uint16)).tolist() == positions.tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sets(st.integers(0, 2**33), max_size=12), max_size=6))
def test_gap_code_round_trip(sets) -> None:
    lists = [sorted(s) for s in sets if not s or max(s) < 2**22 or len(s) < 3]
    flat = np.array([k for part in lists for k in part], dtype=np.int64) % 2**22
    lists = [sorted({k % 2**22 for k in part}) for part in lists]
    flat = np.array([k for part in lists for k in part], dtype=np.int64)
    ptr = np.cumsum([0, *map(len, lists)])
    words, word_ptr = gap.encode_gaps_ragged(flat, ptr)
    positions, out_ptr = gap.decode_gaps_ragged(words, word_ptr)
    assert positions.tolist() == flat.tolist()
    assert out_ptr.tolist() == ptr.tolist()


samples = st.lists(
    st.tuples(
        st.sets(st.integers(0, 99), max_size=6).map(sorted),
        st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), max_size=3),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(samples=samples, wide=st.booleans(), removed=st.booleans())
def test_round_trip(samples, wide, removed) -> None:
    rows = table(samples, 2)
    schema = StructuredSchema(num_nodes=100, num_columns=2, has_removed=removed, wide=wide)
    words = np.arange(2 * len(samples), dtype=np.uint16)
    extra = (words, np.arange(len(samples) + 1) * 2) if removed else ()
    records, _ = envelope.seal(encode(schema, rows, *extra), 40, 9)
    envelope.check(records, range(40, 40 + len(records)), 9)
    back = decode(schema, records)
    assert back.ids.tolist() == rows.ids.tolist()
    assert back.ptr.tolist() == rows.ptr.tolist()
    assert back.values.tobytes() == rows.values.tobytes()
    assert back.value_ptr.tolist() == rows.value_ptr.tolist()
    assert back.words.tolist() == (words.tolist() if removed else [])


def test_every_flipped_bit_and_every_wrong_key_is_noticed() -> None:
    schema = StructuredSchema(num_nodes=100, num_columns=1, has_removed=False)
    (record,), _ = envelope.seal(encode(schema, table([([1, 2], [[0.5]])], 1)), 3, 77)
    for bit in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecordError, match="sample 3"):
            envelope.check([bytes(damaged)], [3], 77)
    for key, seed in ((4, 77), (3, 78)):
        with pytest.raises(CorruptRecordError):
            envelope.check([record], [key], seed)
    for size in range(len(record)):
        with pytest.raises(CorruptRecordError):
            envelope.check([record[:size]], [3], 77)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.booleans(), st.booleans())
def test_arbitrary_bytes_decode_or_raise_the_typed_error(data, wide, removed) -> None:
    schema = StructuredSchema(num_nodes=100, num_columns=2, has_removed=removed, wide=wide)
    try:
        columns = decode(schema, [data])
    except CorruptRecordError:
        return
    assert (
        8 + schema.header.itemsize + columns.values.nbytes + columns.ids.nbytes + columns.words.nbytes
        == len(data)
    )


def test_limits_are_errors() -> None:
    with pytest.raises(RecordTooLargeError, match=r"sample 6: .* 5 bytes, the cap is 4"):
        envelope.seal([b"ok", b"large"], 5, 0, max_bytes=4)
    with pytest.raises(FormatError, match="num_nodes"):
        StructuredSchema.from_dict({"num_nodes": "3", "num_columns": 1, "has_removed": False, "wide": False})
