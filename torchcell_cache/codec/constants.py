"""Large values that the samples of a shard have in common: kept once in the manifest, eight bytes in each record.

A constant is what would stand in the record, descriptor, shape and padded payload, and its id is the ``xxh3_64`` of that.
Content digests are those of the records in which every value stands itself, so they do not depend on what was found where.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xxhash

from torchcell_cache.codec.alone import decoded
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES, Buffer
from torchcell_cache.codec.generic import FIELD, HEADER, descriptor
from torchcell_cache.codec.layout import FieldKey, Layout, Payload
from torchcell_cache.codec.values import CONSTANT, decoded_size

MOST_BYTES = 256 << 20
"""Constants of all shards together: they stand in one manifest, which every reader parses."""
FIRST = 3
"""Samples of a shard that tell what is constant."""
_MIN_BYTES = 256
_STAND_IN = FIELD.pack(CONSTANT, 0, 0, 0, 8)
_ID = struct.Struct("<Q")


def _parts(body: Buffer) -> Iterator[tuple[Buffer, Buffer]]:
    """Descriptor with shape, and padded payload, of each field."""
    spans, position = [], HEADER.size
    for _ in range(HEADER.unpack_from(body)[2]):
        _, _, ndim, _, length = FIELD.unpack_from(body, position)
        spans.append((position, position := position + FIELD.size + 8 * ndim, length + -length % 8))
    for start, stop, length in spans:
        yield body[start:stop], body[position : position + length]
        position += length


def _joined(body: Buffer, parts: Sequence[tuple[Buffer, Buffer]]) -> bytes:
    kind, zero, count, _, layout = HEADER.unpack_from(body)
    joined = b"".join([head for head, _ in parts] + [payload for _, payload in parts])
    return HEADER.pack(kind, zero, count, HEADER.size + len(joined), layout) + joined


def constants_of(records: Sequence[tuple[Layout, bytes]], most_bytes: int) -> dict[int, bytes]:
    """The large values that are the same wherever a field is, by id, at most ``most_bytes`` of them."""
    seen: dict[FieldKey, list[bytes]] = {}
    for layout, body in records:
        for key, (head, payload) in zip(layout.keys, _parts(body), strict=True):
            large = len(payload) >= _MIN_BYTES
            seen.setdefault(key, []).append(bytes(head) + bytes(payload) if large else b"")
    found: dict[int, bytes] = {}
    for values in seen.values():
        if len(values) > 1 and values[0] and len({*values}) == 1 and len(values[0]) <= most_bytes:
            most_bytes -= len(values[0])
            found[xxhash.xxh3_64_intdigest(values[0])] = values[0]
    return found


def compacted(body: bytes, constants: Mapping[int, bytes]) -> bytes:
    """A record with ids in place of constants."""
    if not constants:
        return body
    parts: list[tuple[Buffer, Buffer]] = []
    for head, payload in _parts(body):
        if len(payload) >= _MIN_BYTES:
            value = bytes(head) + bytes(payload)
            number = xxhash.xxh3_64_intdigest(value)
            if constants.get(number) == value:
                head, payload = _STAND_IN, _ID.pack(number)
        parts.append((head, payload))
    return _joined(body, parts)


def expanded(body: Buffer, constants: Mapping[int, bytes]) -> Buffer:
    """Inverse of :func:`compacted`; a record that makes no sense stays as it is."""
    if not constants:
        return body
    parts: list[tuple[Buffer, Buffer]] = []
    try:
        for head, payload in _parts(body):
            if head[0] == CONSTANT:
                value = constants[_ID.unpack(payload)[0]]
                size = FIELD.size + 8 * value[2]
                head, payload = value[:size], value[size:]
            parts.append((head, payload))
        return _joined(body, parts)
    except (struct.error, LookupError):
        return body


def constant_payload(value: bytes, label: str, is_tensor: bool, reference: Payload | None) -> Payload:
    """What a constant stands for.

    Raises:
        CorruptRecordError: If it is none.
    """
    field, position = descriptor(memoryview(value), 0, label, is_tensor)
    decoded_size(field, MAX_RECORD_BYTES)
    return decoded(memoryview(value)[position : position + field.length], field, reference)


def to_text(constants: Mapping[int, bytes]) -> dict[str, str]:
    """JSON form for manifest and sidecars."""
    return {f"{k:016x}": base64.b64encode(value).decode() for k, value in constants.items()}


def from_text(constants: Mapping[str, Any]) -> dict[int, bytes]:
    """Inverse of :func:`to_text`."""
    return {int(k, 16): base64.b64decode(value) for k, value in constants.items()}
