"""Bodies of generic records: the typed fields of any graph, relative to the base graph.

Little-endian throughout. A body is a header, one descriptor per field of the record's layout (see
:class:`~torchcell_cache.codec.layout.Layout`) in the layout's order, then the payloads in the same order::

    header      u8 0x21 | u8 0 | u16 num_fields | u32 length of the whole body | u64 layout id
    descriptor  u8 encoding | u8 dtype code | u8 ndim | u8 fill | u32 payload length | i64[ndim] shape
    payload     the bytes, then 0 to 7 zero bytes up to a multiple of 8

so every payload starts at a multiple of 8 and the body ends with the last one, no holes. A value that is not
a tensor has dtype code 0, ndim 0 and typed JSON as payload. ``n`` is the number of elements (1 when 0-d).
Encodings::

    0 RAW     the elements in C order (a bool is one byte, 0 or 1); or the JSON text
    1 BASE    the base graph's field of the same store and name; nothing else in the descriptor, no payload
    2 BITS    bool, n > 8: ceil(n / 8) bytes, element k is bit k % 8 of byte k // 8, spare bits 0
    3 SPARSE  bool: all elements equal ``fill`` (0 or 1) but those at the gap-coded positions (u16 words)
    4 DIFF    shape and dtype of the base field, all elements equal to it but some:
              u32 num_words | u32 0 | u16[num_words] gap-coded positions | zeros up to a multiple of 8 |
              the new elements
    16 PALETTE  elements of 2 to 8 bytes: as DIFF, with at most 256 distinct new elements:
              u32 num_words | u32 num_entries | u16[num_words] gap-coded positions | zeros up to a multiple of 8 |
              the distinct elements | zeros up to a multiple of 8 | u8 per new element, its number among them
    17 FILL     not bool: one element, then as DIFF against a tensor full of that element
    18 FILL_PALETTE  elements of 2 to 8 bytes: one element, then as PALETTE against a tensor full of it
    19 TABLE    elements of 1 to 8 bytes, at most 256 distinct ones:
              u32 num_entries | u32 0 | the distinct elements | zeros up to a multiple of 8 |
              the number of each element among them, in 0, 1, 2, 4 or 8 bits, whichever is enough, lowest bits first
    20 NARROW   carriers of 2 to 8 bytes that are integers: the least element, then what to add to it,
              a u8, u16 or u32 per element
    24 CONSTANT the store's constant of that id (:mod:`torchcell_cache.codec.constants`): u64 id, nothing else

A leading element has zeros up to a multiple of 8. ``fill`` is 0 in every other encoding. SPARSE, DIFF and PALETTE stand only
where shorter than BITS (bool, n > 8) or RAW, which also bounds what decoding them can take; PALETTE only where shorter than DIFF
too, for up to 65,536 changes. 17 to 20 stand only in mode ``compact``, in records of format 2, where shorter than all above and
what those take is over a quarter of RAW; of two of a length the lower number. The gap code is that of
:mod:`torchcell_cache.codec.delta_code`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from torchcell_cache.codec.alone import allowed, decoded, encode_alone
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES, Buffer
from torchcell_cache.codec.layout import BOOL, DTYPES, FieldKey, Layout, Payload, TensorValue, field_label
from torchcell_cache.codec.values import (
    BASE,
    CONSTANT,
    DIFF,
    PALETTE,
    RAW,
    SPARSE,
    Encoded,
    StoredField,
    decoded_size,
    encode_field,
    padded,
    too_large,
)
from torchcell_cache.errors import CorruptRecordError, FormatError, SettingError, UnsupportedValueError

KIND = 0x21
LAYOUT_AT = 8
MAX_NDIM = 8
MODES = ("full", "delta", "compact")

HEADER = struct.Struct("<BBHIQ")
FIELD = struct.Struct("<BBBBI")
SHARED = FIELD.pack(BASE, 0, 0, 0, 0)
"""Descriptor of a field that is the base graph's own."""
_MAX_LENGTH = 0xFFFFFFFF
_OF_BASE = (BASE, DIFF, PALETTE)
_ALWAYS = {BASE: ("the base graph's", 0), CONSTANT: ("a constant", 8)}
"""Encodings that say nothing but themselves, and the bytes of their payloads."""


def encode(
    layout: Layout,
    fields: Sequence[Payload | None],
    base: Sequence[Payload | None],
    mode: str,
    max_bytes: int = MAX_RECORD_BYTES,
) -> bytes:
    """Encode one sample: ``None`` of its fields is the base graph's own, ``None`` of those of the base need not be looked at.

    Raises:
        RecordTooLargeError: If the body or its decoded form exceeds ``max_bytes``.
        UnsupportedValueError: If a tensor has more than 8 dimensions.
        SettingError: If ``mode`` is none of the three.
    """
    check_mode(mode)
    descriptors, payloads, decoded = [], [], 0
    for key, value, reference in zip(layout.keys, fields, base, strict=True):
        encoded = None if value is None else encode_field(value, reference, mode)
        if value is None or encoded is None or encoded[0] == BASE:
            descriptors.append(SHARED)
            continue
        ndim = value.array.ndim if isinstance(value, TensorValue) else 0
        if ndim > MAX_NDIM:
            raise UnsupportedValueError(
                f"{field_label(key)} has {ndim} dimensions, at most {MAX_NDIM} are stored",
                fix="flatten(1) in the processor and the shape beside it, unflatten in the transform",
            )
        decoded += value.array.nbytes if isinstance(value, TensorValue) else len(value)
        if decoded > max_bytes:
            raise too_large(f"the sample up to {field_label(key)}", decoded, max_bytes)
        head, payload = described(value, encoded, mode)
        descriptors.append(head)
        payloads.append(payload)
    return record(layout, descriptors + payloads, max_bytes)


def check_mode(mode: str) -> None:
    """Refuse what is no storage mode."""
    if mode not in MODES:
        raise SettingError(f"storage mode {mode!r} is unknown, choose 'full' or 'delta'")


def described(value: Payload, encoded: Encoded, mode: str) -> tuple[bytes, bytes]:
    """Descriptor and padded payload of a field, without the base field where that is allowed and shorter."""
    if isinstance(value, bytes):
        return FIELD.pack(encoded[0], 0, 0, 0, len(value)), padded(value)
    if mode == "compact" and value.dtype != BOOL:
        encoded = encode_alone(value, len(encoded[2])) or encoded
    encoding, fill, payload = encoded
    shape = value.array.shape
    head = FIELD.pack(encoding, value.dtype, len(shape), fill, len(payload))
    return head + struct.pack(f"<{len(shape)}q", *shape), padded(payload)


def record(layout: Layout, parts: Sequence[bytes], max_bytes: int) -> bytes:
    """A body of its descriptors and payloads."""
    body = b"".join(parts)
    length = HEADER.size + len(body)
    if length > min(max_bytes, _MAX_LENGTH):
        raise too_large("the record", length, min(max_bytes, _MAX_LENGTH))
    return HEADER.pack(KIND, 0, len(layout.keys), length, layout.id) + body


def decode(
    body: Buffer,
    layouts: Mapping[int, Layout],
    base: Mapping[FieldKey, Payload],
    max_bytes: int = MAX_RECORD_BYTES,
) -> tuple[Layout, list[Payload | int]]:
    """Decode one body, constants as their ids; every length is checked before anything is allocated.

    Raises:
        FormatError: If this is not a generic record of version 1.
        RecordTooLargeError: If it is, or says it is, larger than ``max_bytes``.
        CorruptRecordError: If anything else does not fit.
    """
    if len(body) > max_bytes:
        raise too_large("the record", len(body), max_bytes)
    if len(body) < HEADER.size:
        raise CorruptRecordError(f"a generic record of {len(body)} bytes is shorter than its header")
    kind, reserved, num_fields, length, layout_id = HEADER.unpack_from(body)
    if kind != KIND or reserved:
        raise FormatError(
            f"record starts with 0x{kind:02x}{reserved:02x}, expected 0x{KIND:02x}00 (generic, version 1)"
        )
    layout = layouts.get(layout_id)
    if layout is None or length != len(body) or num_fields != len(layout.keys):
        known = "unknown" if layout is None else f"{len(layout.keys)} fields"
        raise CorruptRecordError(
            f"generic record of {len(body)} bytes says {length} bytes, {num_fields} fields, "
            f"layout {layout_id:016x} ({known})"
        )
    view = memoryview(body)
    found: list[Payload | int] = []
    fields = _descriptors(view, layout, max_bytes)
    for key, is_tensor, field in zip(layout.keys, layout.tensors, fields, strict=True):
        reference = base.get(key) if field.encoding in _OF_BASE else None
        if field.encoding in _OF_BASE and not isinstance(reference, TensorValue if is_tensor else bytes):
            raise CorruptRecordError(f"{field.label} refers to the base graph, which has no such field")
        stored = view[field.start : field.start + field.length]
        if field.encoding == CONSTANT:
            found.append(int.from_bytes(stored, "little"))
        elif reference is not None and field.encoding == BASE:
            found.append(reference)
        else:
            found.append(decoded(stored, field, reference))
    return layout, found


def _descriptors(body: memoryview, layout: Layout, max_bytes: int) -> list[StoredField]:
    """Read and check all descriptors, their sizes and the padding, and place the payloads."""
    position, decoded, out = HEADER.size, 0, []
    for is_tensor, label in zip(layout.tensors, layout.labels, strict=True):
        field, position = descriptor(body, position, label, is_tensor)
        if field.encoding != BASE:
            decoded += decoded_size(field, max_bytes)
            if decoded > max_bytes:
                raise too_large(f"the sample up to {label}", decoded, max_bytes)
        out.append(field)
    for index, field in enumerate(out):
        end = position + field.length
        out[index] = field._replace(start=position)
        position = end + -end % 8
        if position > len(body) or any(body[end:position]):
            raise CorruptRecordError(
                f"payload of {field.label}, {field.length} bytes, does not fit the record"
            )
    if position != len(body):
        raise CorruptRecordError(f"{len(body) - position} bytes follow the last payload")
    return out


def descriptor(body: memoryview, position: int, label: str, is_tensor: bool) -> tuple[StoredField, int]:
    """Read one descriptor and check that its parts go together; returns it and where the next one starts."""
    end = position + FIELD.size
    if end > len(body):
        raise CorruptRecordError(f"record ends inside the descriptor of {label}")
    encoding, dtype, ndim, fill, length = FIELD.unpack_from(body, position)
    if encoding in _ALWAYS:
        what, size = _ALWAYS[encoding]
        if dtype or ndim or fill or length != size:
            raise CorruptRecordError(f"{label} is {what} and says dtype {dtype} and {length} bytes")
        return StoredField(label, encoding, 0, 0, (), 0, size), end
    if ndim > MAX_NDIM or end + 8 * ndim > len(body):
        raise CorruptRecordError(f"{label} says {ndim} dimensions")
    shape: tuple[int, ...] = struct.unpack_from(f"<{ndim}q", body, end)
    known = dtype in DTYPES if is_tensor else dtype == 0 and ndim == 0
    possible = known and encoding in (allowed(dtype) if is_tensor else (RAW,))
    if not possible or fill > (encoding == SPARSE) or min(shape, default=0) < 0:
        raise CorruptRecordError(
            f"{label} says encoding {encoding}, dtype {dtype}, fill {fill}, shape {shape}"
        )
    return StoredField(label, encoding, dtype, fill, shape, 0, length), end + 8 * ndim
