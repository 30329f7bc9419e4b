"""Tensors without a base field: short where they can be, the same bits whatever they hold, and nothing else believed."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchcell_cache.codec.columns import read_column
from torchcell_cache.codec.field_reader import locate
from torchcell_cache.codec.generic import decode, encode
from torchcell_cache.codec.layout import DTYPES, Layout, TensorValue
from torchcell_cache.errors import CorruptRecordError, FormatError, RecordTooLargeError

TYPED = (CorruptRecordError, FormatError, RecordTooLargeError)
LAYOUT = Layout("Data", ((None, (("x", "tensor"),)),))
CODES = [code for code in DTYPES if code != 1]
SHAPES = [(), (0,), (3, 0), (1,), (5,), (9, 7), (40, 1), (3, 2, 4), (1000,), (150_000,)]
RAW, FILL, FILL_PALETTE, TABLE, NARROW = 0, 17, 18, 19, 20


def coded(code: int, array: np.ndarray, mode: str = "compact") -> bytes:
    return encode(LAYOUT, [TensorValue(code, array)], [None], mode)


def decoded(body: bytes) -> TensorValue:
    value = decode(body, {LAYOUT.id: LAYOUT}, {})[1][0]
    assert isinstance(value, TensorValue)
    return value


def column(code: int, bodies: list[bytes]) -> tuple[list[list[int]], bytes]:
    """Shapes and elements of many records, read together."""
    edges = np.cumsum([0, *map(len, bodies)])
    data = np.frombuffer(b"".join(bodies), dtype=np.uint8)
    found = locate(data, edges[:-1], edges[1:], {LAYOUT.id: LAYOUT})
    assert found is not None
    read = read_column(found[0], found[2][0], None)
    assert read is not None
    assert read.dtype == code
    assert read.array.flags.writeable
    return read.shapes.tolist(), read.array.tobytes()


def elements(draw: st.DrawFn, code: int, shape: tuple[int, ...]) -> np.ndarray:
    carrier = DTYPES[code].carrier
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    size = int(np.prod(shape))
    noise = np.frombuffer(rng.bytes(size * carrier.itemsize), dtype=carrier).copy()
    kind = draw(st.sampled_from(["noise", "few", "range", "sparse", "sparse few", "constant"]))
    distinct = noise[: draw(st.sampled_from([1, 2, 3, 5, 17, 256, 257]))]
    if carrier.kind in "fc":
        distinct[:4] = np.array([-0.0, np.nan, 0.0, -np.nan], dtype=carrier)[: len(distinct)]
    if not size or kind == "noise":
        flat = noise
    elif kind == "range" and carrier.kind in "iu":
        info = np.iinfo(carrier)
        span = min(draw(st.sampled_from([1, 255, 256, 65535, 65536, 1 << 31])), int(info.max) - 1)
        low = draw(st.sampled_from([int(info.min), 0, int(info.max) - span]))
        steps = rng.integers(0, span, size=size, endpoint=True).astype(np.uint64)
        flat = (steps + np.uint64(low % (1 << 64))).astype(f"u{carrier.itemsize}").view(carrier)
    elif kind == "constant":
        flat = np.repeat(distinct[:1], size)
    elif "few" in kind:
        flat = distinct[rng.integers(0, len(distinct), size)]
    else:
        flat = noise.copy()
    if kind.startswith("sparse") and size:
        flat = np.where(rng.random(size) < draw(st.sampled_from([0.001, 0.05, 0.5])), flat, flat[0] * 0)
    return np.ascontiguousarray(flat.astype(carrier, copy=False).reshape(shape))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """Any bits: zeros with some others, few distinct elements, a small range, or noise."""
    code = draw(st.sampled_from(CODES))
    return code, elements(draw, code, draw(st.sampled_from(SHAPES)))


@st.composite
def many(draw: st.DrawFn) -> tuple[int, list[np.ndarray]]:
    """Tensors of one dtype and any numbers of rows, each stored in its own way."""
    code, sizes = draw(st.sampled_from(CODES)), st.sampled_from([0, 1, 2, 3, 7, 30, 333])
    return code, [elements(draw, code, (rows, 3)) for rows in draw(st.lists(sizes, min_size=1, max_size=6))]


@settings(max_examples=400, deadline=None)
@given(tensors())
def test_bits_come_back_and_take_no_more_room(case) -> None:
    code, array = case
    body = coded(code, array)
    value = decoded(body)
    assert (value.dtype, value.array.shape) == (code, array.shape)
    assert value.array.tobytes() == array.tobytes()
    assert value.array.flags.writeable
    assert len(body) <= len(coded(code, array, "delta"))
    assert body == coded(code, array.copy())


@settings(max_examples=300, deadline=None)
@given(many(), st.integers(0, 1 << 30), st.integers(0, 255))
def test_many_records_read_together_are_those_read_one_by_one(case, at: int, byte: int) -> None:
    code, arrays = case
    bodies = [coded(code, array) for array in arrays]
    shapes, read = column(code, bodies)
    assert shapes == [list(array.shape) for array in arrays]
    assert read == b"".join(array.tobytes() for array in arrays)
    # Damage is found, or means to all what it means to one.
    hit = bytearray(bodies[at % len(bodies)])
    hit[40 + at % max(len(hit) - 40, 1) if len(hit) > 40 else 16] ^= byte
    bodies[at % len(bodies)] = bytes(hit)
    try:
        read = column(code, bodies)[1]
        alone = [decoded(body).array.tobytes() for body in bodies]
    except (*TYPED, AssertionError):
        return
    assert read == b"".join(alone)


def test_what_is_common_takes_a_fraction() -> None:
    rng = np.random.default_rng(0)
    one_hot = np.zeros((4000, 7), dtype="<f4")
    one_hot[np.arange(4000), rng.integers(0, 7, 4000)] = 1
    bag = (rng.random((200, 1433)) < 0.012).astype("<f4")
    counts = rng.negative_binomial(0.3, 0.3, (2000, 1)).astype("<f4")
    logs = np.log1p(counts * rng.random((2000, 1)).astype("<f4"))
    edges = rng.integers(0, 200, (2, 5000))
    shifted = np.where(rng.random(3000) < 0.1, rng.random(3000), -1.5)
    for code, array, encoding, share in (
        (11, one_hot, TABLE, 1 / 25),
        (11, bag, FILL_PALETTE, 1 / 20),
        (11, counts, TABLE, 1 / 3),
        (11, logs, FILL, 2 / 3),
        (6, edges, NARROW, 1 / 7),
        (2, one_hot.astype("u1"), TABLE, 1 / 7),
        (12, shifted, FILL, 1 / 6),
        (13, one_hot.astype("<c8"), TABLE, 1 / 50),
        (14, bag.astype("<c16"), FILL, 1 / 40),
        (15, bag.astype("<u2"), FILL_PALETTE, 1 / 10),
    ):
        body = coded(code, array)
        assert body[16] == encoding, (code, body[16])
        assert len(body) < share * array.nbytes, (code, len(body) / array.nbytes)


def test_golden_bytes() -> None:
    head = struct.pack("<BBBBI", TABLE, 6, 1, 0, 28) + struct.pack("<q", 30)
    body = coded(6, np.array([7, -2, 7] * 10))
    numbers = sum(1 << k for k in range(30) if k % 3 == 1)  # -2 is the larger one without its sign
    table = struct.pack("<II", 2, 0) + struct.pack("<qq", 7, -2) + numbers.to_bytes(4, "little")
    assert body[16:] == head + table + bytes(4)
    head = struct.pack("<BBBBI", NARROW, 5, 1, 0, 8 + 200) + struct.pack("<q", 200)
    body = coded(5, np.arange(-100, 100, dtype="<i4"))
    assert body[16:] == head + struct.pack("<iI", -100, 0) + bytes(range(200))
    head = struct.pack("<BBBBI", FILL, 12, 1, 0, 8 + 16 + 8) + struct.pack("<q", 40)
    sparse = np.zeros(40)
    sparse[5] = -0.0
    body = coded(12, sparse)
    # Two distinct elements take a bit each: shorter than a position.
    assert body[16] == TABLE
    sparse = np.zeros(1000)
    sparse[5] = -0.0
    body = coded(12, sparse)
    assert body[16:40] == head[:8] + struct.pack("<q", 1000) + bytes(8)
    assert body[40:] == struct.pack("<II4H", 1, 0, 5, 0, 0, 0) + struct.pack("<d", -0.0)


@settings(max_examples=300, deadline=None)
@given(tensors(), st.integers(0, 1 << 30), st.integers(0, 255))
@example((12, np.zeros(1000)), 20, 1 << 7)
def test_damage_is_an_error_or_another_tensor_of_that_size(case, at: int, byte: int) -> None:
    code, array = case
    body = bytearray(coded(code, array))
    body[16 + at % (len(body) - 16)] ^= byte
    try:
        value = decoded(bytes(body))
    except TYPED:
        return
    assert value.array.nbytes <= 256 << 20


def test_a_record_says_no_more_than_it_holds() -> None:
    table = struct.pack("<II", 3, 0) + struct.pack("<qqq", 1, 2, 3)
    for encoding, payload, said in (
        (TABLE, table + bytes([0b11] * 25), "refers to element 3 of 3"),
        (TABLE, table + bytes(9), "bytes of numbers"),
        (TABLE, struct.pack("<II", 0, 0) + bytes(25), "malformed table"),
        (TABLE, struct.pack("<II", 1 << 30, 0), "malformed table"),
        (NARROW, bytes(8) + bytes(99), "small numbers"),
        (NARROW, bytes(8), "small numbers"),
        (FILL, b"abc", "has 3 bytes"),
        (FILL, bytes(8) + struct.pack("<II4H", 1, 0, 500, 0, 0, 0) + bytes(8), "do not ascend"),
        (FILL, bytes(8) + struct.pack("<II4H", 2, 0, 5, 5, 0, 0) + bytes(8), "positions"),
        (
            FILL_PALETTE,
            bytes(8) + struct.pack("<II4H", 1, 1, 5, 0, 0, 0) + bytes(8) + b"\x01",
            "refers to element",
        ),
    ):
        fields = (
            struct.pack("<BBBBIq", encoding, 6, 1, 0, len(payload), 100) + payload + bytes(-len(payload) % 8)
        )
        body = struct.pack("<BBHIQ", 0x21, 0, 1, 16 + len(fields), LAYOUT.id) + fields
        with pytest.raises(CorruptRecordError, match=said):
            decoded(body)
        with pytest.raises(CorruptRecordError):
            column(6, [coded(6, np.zeros(100, dtype="<i8")), body])
    huge = struct.pack("<BBBBIq", FILL, 6, 1, 0, 16, 1 << 40) + bytes(16)
    with pytest.raises(RecordTooLargeError):
        decoded(struct.pack("<BBHIQ", 0x21, 0, 1, 16 + len(huge), LAYOUT.id) + huge)


def test_a_base_field_goes_first() -> None:
    base = TensorValue(11, np.arange(500, dtype="<f4"))
    near, far = base.array.copy(), np.zeros(500, dtype="<f4")
    near[3] = 7
    for array, encoding in ((near, 4), (far, FILL), (base.array, 1)):
        body = encode(LAYOUT, [TensorValue(11, array)], [base], "compact")
        assert body[16] == encoding
        value = decode(body, {LAYOUT.id: LAYOUT}, {LAYOUT.keys[0]: base})[1][0]
        assert isinstance(value, TensorValue)
        assert value.array.tobytes() == array.tobytes()
