"""Tensors that differ from the base graph's in some elements: small, exact, alike by every way of writing and reading."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcell_cache.codec.chunks import ChangedRows, FieldChunk, encode_many
from torchcell_cache.codec.field_reader import Bytes, Changes, changes_of
from torchcell_cache.codec.field_reader import locate as located
from torchcell_cache.codec.generic import decode, encode
from torchcell_cache.codec.layout import DTYPES, FieldKey, Layout, Payload, TensorValue
from torchcell_cache.errors import CorruptRecordError, FormatError, RecordTooLargeError, SettingError

TYPED = (CorruptRecordError, FormatError, RecordTooLargeError)
LAYOUT = Layout("Data", ((None, (("x", "tensor"), ("y", "tensor"), ("ids", "value"), ("own", "tensor"))),))
KEYS = LAYOUT.keys
CODES = [code for code, dtype in DTYPES.items() if code != 1 and dtype.carrier.itemsize <= 8]


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


@st.composite
def chunks(draw: st.DrawFn) -> tuple[FieldChunk, dict[FieldKey, Payload], list[np.ndarray]]:
    """A chunk of samples whose ``x`` differs from the base's here and there, and every sample's whole ``x``."""
    code = draw(st.sampled_from(CODES))
    carrier = DTYPES[code].carrier
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape = draw(st.sampled_from([(0, 3), (7,), (50, 1), (30, 3), (200_000,), (1, 90, 2)]))
    size = int(np.prod(shape))
    base = np.frombuffer(rng.bytes(size * carrier.itemsize), dtype=carrier).reshape(shape).copy()
    count = draw(st.integers(1, 6))
    distinct = draw(st.sampled_from([1, 3, 256, 257, 100_000]))
    pool = np.frombuffer(rng.bytes(distinct * carrier.itemsize), dtype=carrier)
    if carrier.kind == "f" and carrier.itemsize > 1:
        pool = pool.copy()
        special = np.array([-0.0, 0.0, np.nan, np.inf], dtype=carrier)
        pool[: len(special)] = special[: len(pool)]
    unsigned = f"<u{carrier.itemsize}"
    whole, positions, values = [], [], []
    for _ in range(count):
        share = draw(st.sampled_from([0.0, 0.01, 0.2, 1.0]))
        at = np.flatnonzero(rng.random(size) < share)[:4000]
        new = pool[rng.integers(0, len(pool), len(at))]
        differ = new.view(unsigned) != base.reshape(-1)[at].view(unsigned)
        at, new = at[differ], new[differ]
        tensor = base.copy()
        tensor.reshape(-1)[at] = new
        whole.append(tensor)
        positions.append(at)
        values.append(new)
    ptr = np.concatenate([[0], np.cumsum([len(p) for p in positions])]).astype(np.int64)
    base_value = TensorValue(code, base)
    texts = [b'["G%d"]' % k if k % 2 else b"[]" for k in range(count)]
    fields = [
        ChangedRows(base_value, ptr, np.concatenate(positions).astype(np.int64), np.concatenate(values)),
        [TensorValue(11, row) for row in rng.random((count, 3)).astype("<f4")],
        texts,
        None,
    ]
    shared = TensorValue(6, np.arange(5))
    return FieldChunk(count, LAYOUT, fields), {KEYS[0]: base_value, KEYS[3]: shared}, whole


def one_by_one(
    chunk: FieldChunk, base: dict[FieldKey, Payload], whole: list[np.ndarray], mode: str
) -> list[bytes]:
    out = []
    stacked, listed = chunk.fields[1], chunk.fields[2]
    assert isinstance(stacked, list)
    assert isinstance(listed, list)
    for k, tensor in enumerate(whole):
        x = base[KEYS[0]]
        assert isinstance(x, TensorValue)
        fields = [TensorValue(x.dtype, tensor), stacked[k], listed[k], None]
        references = [x, None, None, None]
        out.append(encode(LAYOUT, fields, references, mode))
    return out


@settings(max_examples=150, deadline=None)
@given(chunks(), st.sampled_from(["delta", "full", "compact"]))
def test_a_chunk_is_encoded_as_its_samples_are(case, mode: str) -> None:
    chunk, base, whole = case
    bodies = encode_many(chunk, mode)
    assert bodies == one_by_one(chunk, base, whole, mode)
    for body, tensor in zip(bodies, whole, strict=True):
        x = decode(body, {LAYOUT.id: LAYOUT}, base)[1][0]
        assert isinstance(x, TensorValue)
        assert bits(x.array) == bits(tensor)


def read_changes(
    data: Bytes,
    starts: np.ndarray,
    stops: np.ndarray,
    layouts: Mapping[int, Layout],
    base: Mapping[FieldKey, Payload],
    key: FieldKey,
) -> Changes | None:
    found = located(data, starts, stops, layouts)
    if found is None or key not in found[1].keys:
        return None
    return changes_of(found[0], found[2][found[1].keys.index(key)], base.get(key))


def locate(bodies: list[bytes], base: dict[FieldKey, Payload], key: FieldKey = KEYS[0]) -> Changes | None:
    ends = np.cumsum([len(body) for body in bodies]).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    data = np.frombuffer(b"".join(bodies), dtype=np.uint8)
    return read_changes(data, starts, ends, {LAYOUT.id: LAYOUT}, base, key)


@settings(max_examples=150, deadline=None)
@given(chunks())
def test_changes_are_found_without_decoding(case) -> None:
    chunk, base, whole = case
    bodies = encode_many(chunk, "delta")
    found = locate(bodies, base)
    if found is None:  # some sample was shorter whole
        assert any(body[16] == 0 for body in bodies)
        return
    x = base[KEYS[0]]
    assert isinstance(x, TensorValue)
    for k, tensor in enumerate(whole):
        start, stop = found.ptr[k], found.ptr[k + 1]
        rebuilt = x.array.copy()
        rebuilt.reshape(-1)[found.positions[start:stop]] = found.values[start:stop]
        assert bits(rebuilt) == bits(tensor)


def golden() -> tuple[FieldChunk, dict[FieldKey, Payload], np.ndarray]:
    base = TensorValue(11, np.zeros((70_000, 1), dtype="<f4"))
    positions = np.array([2, 3, 10, 11, 12, 13, 14, 69_999])
    values = np.array([1, 2, 1, 1, -0.0, 2, 1, 2], dtype="<f4")
    ptr = np.array([0, 8])
    fields = [
        ChangedRows(base, ptr, positions, values),
        [TensorValue(11, np.array([0.5], dtype="<f4"))],
        [b"[]"],
        None,
    ]
    whole = base.array.copy()
    whole.reshape(-1)[positions] = values
    return FieldChunk(1, LAYOUT, fields), {KEYS[0]: base, KEYS[3]: TensorValue(6, np.arange(2))}, whole


def test_golden_bytes_of_a_palette() -> None:
    chunk, base, whole = golden()
    payload = struct.pack("<II9H", 9, 3, 2, 1, 7, 1, 1, 1, 1, 0xFFFF, 69_999 - 14 - 0xFFFF) + bytes(6)
    payload += struct.pack("<3I", 0x3F800000, 0x40000000, 0x80000000) + bytes(4)
    payload += bytes([0, 1, 0, 0, 2, 1, 0, 1])
    rest = struct.pack("<BBBBI2q", 16, 11, 2, 0, len(payload), 70_000, 1)
    rest += struct.pack("<BBBBI1q", 0, 11, 1, 0, 4, 1)
    rest += struct.pack("<BBBBI", 0, 0, 0, 0, 2) + struct.pack("<BBBBI", 1, 0, 0, 0, 0)
    rest += payload + struct.pack("<f4x", 0.5) + b"[]" + bytes(6)
    body = struct.pack("<BBHIQ", 0x21, 0, 4, 16 + len(rest), LAYOUT.id) + rest
    assert encode_many(chunk, "delta") == [body]
    x = decode(body, {LAYOUT.id: LAYOUT}, base)[1][0]
    assert isinstance(x, TensorValue)
    assert bits(x.array) == bits(whole)


def test_a_cell_takes_three_bytes_per_expressed_gene() -> None:
    rng = np.random.default_rng(0)
    base = TensorValue(11, np.zeros((20_000, 1), dtype="<f4"))
    positions = np.sort(rng.choice(20_000, 2_000, replace=False))
    values = np.log1p(rng.integers(1, 40, 2_000) / np.float32(1.7))
    fields = [
        ChangedRows(base, np.array([0, 2_000]), positions, values),
        None,
        None,
        None,
    ]
    [body] = encode_many(FieldChunk(1, LAYOUT, fields), "delta")
    assert len(body) < 3 * 2_000 + 300


def mutated(body: bytes, rng: random.Random) -> bytes:
    data = bytearray(body)
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(4)
        at = rng.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice([0, 1, 4, 16, 127, 255])
        elif kind == 2:
            del data[at : at + rng.choice([1, 2, 8])]
        else:
            data[at:at] = bytes(rng.choice([1, 8]))
        data = data or bytearray(1)
    return bytes(data)


def test_mutated_palettes_raise_only_typed_errors_both_ways() -> None:
    rng = random.Random(5)
    chunk, base, _ = golden()
    [body] = encode_many(chunk, "delta")
    outcomes = {"decoded": 0, "refused": 0, "found": 0, "not found": 0}
    for _ in range(6_000):
        damaged = mutated(body, rng)
        try:
            decode(damaged, {LAYOUT.id: LAYOUT}, base)
            outcomes["decoded"] += 1
        except TYPED:
            outcomes["refused"] += 1
        try:
            found = locate([body, damaged], base)
        except TYPED:
            outcomes["not found"] += 1
        else:
            outcomes["found"] += 1
            if found is not None:
                assert 0 <= found.positions.min() <= found.positions.max() < 70_000
    assert min(outcomes.values()) > 100, outcomes


def one(encoding: int, payload: bytes, code: int = 11, size: int = 100) -> bytes:
    rest = struct.pack("<BBBBIq", encoding, code, 1, 0, len(payload), size)
    rest += payload + bytes(-len(payload) % 8)
    layout = Layout("Data", ((None, (("x", "tensor"),)),))
    return struct.pack("<BBHIQ", 0x21, 0, 1, 16 + len(rest), layout.id) + rest


GAPS = struct.pack("<4H", 1, 1, 1, 1)
TABLE = struct.pack("<2f", 1, 2)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (struct.pack("<II", 4, 0) + GAPS + bytes(4), 11),
        (struct.pack("<II", 4, 257) + GAPS + bytes(257 * 4 + 4), 11),
        (struct.pack("<II", 4, 1 << 31) + GAPS + TABLE + bytes(4), 11),
        (struct.pack("<II", 4, 2) + GAPS + TABLE + b"\0\1\2\0", 11),
        (struct.pack("<II", 4, 2) + GAPS + TABLE + b"\0\1\1", 11),
        (struct.pack("<II", 4, 2) + GAPS + TABLE + b"\0\1\1\0\1", 11),
        (struct.pack("<II", 4, 1) + GAPS + struct.pack("<2f", 1, 2) + bytes(4), 11),
        (struct.pack("<II", 4, 2) + struct.pack("<4H", 1, 0, 1, 1) + TABLE + bytes(4), 11),
        (struct.pack("<II", 4, 2) + struct.pack("<4H", 1, 1, 1, 97) + TABLE + bytes(4), 11),
        (struct.pack("<II", 4, 2) + struct.pack("<4H", 1, 1, 1, 0xFFFF) + TABLE + bytes(3), 11),
        (struct.pack("<II", 3, 2) + struct.pack("<4H", 1, 1, 1, 7) + TABLE + bytes(3), 11),
        (struct.pack("<II", 4, 2) + GAPS[:4], 11),
        (bytes(4), 11),
        (struct.pack("<II", 4, 2) + GAPS + b"\1\2" + bytes(6) + bytes(4), 2),
        (struct.pack("<II", 4, 2) + GAPS + TABLE + bytes(4), 1),
    ],
    ids=[
        "no entries", "too many entries", "entries beyond", "unknown entry", "fewer", "more", "padding", "twice",
        "position beyond", "ends in a gap", "word padding", "words beyond", "no head", "of bytes", "of bool",
    ],
)  # fmt: skip
def test_malformed_palettes_are_refused(payload: bytes, code: int, request: pytest.FixtureRequest) -> None:
    layout = Layout("Data", ((None, (("x", "tensor"),)),))
    base: dict[FieldKey, Payload] = {
        layout.keys[0]: TensorValue(code, np.zeros(100, dtype=DTYPES[code].carrier))
    }
    body = one(16, payload, code)
    with pytest.raises(TYPED):
        decode(body, {layout.id: layout}, base)
    edges = np.array([0]), np.array([len(body)])
    if code != 11:
        data = np.frombuffer(body, np.uint8)
        assert read_changes(data, *edges, {layout.id: layout}, base, layout.keys[0]) is None
    elif "padding" not in request.node.callspec.id:  # what nothing is read from is left to the full decoder
        with pytest.raises(TYPED):
            read_changes(np.frombuffer(body, np.uint8), *edges, {layout.id: layout}, base, layout.keys[0])


def test_samples_of_another_layout_or_form_are_left_to_the_decoder() -> None:
    chunk, base, _ = golden()
    [body] = encode_many(chunk, "delta")
    [full] = encode_many(chunk, "full")
    assert locate([body, full], base) is None
    assert locate([body], base, (None, "nothing")) is None
    assert locate([body], base, KEYS[2]) is None
    with pytest.raises(CorruptRecordError):
        locate([body[:-8]], base)
    with pytest.raises(FormatError):
        locate([b"\x11" + body[1:]], base)


def test_the_chunk_encoder_refuses() -> None:
    chunk, _, _ = golden()
    with pytest.raises(SettingError, match="'full' or 'delta'"):
        encode_many(chunk, "fast")
    with pytest.raises(RecordTooLargeError, match="cap is 1,000"):
        encode_many(chunk, "delta", max_bytes=1000)
