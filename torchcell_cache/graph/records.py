"""Graphs to bytes and back: a sample as a generic record."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch_geometric.data import Data, HeteroData

from torchcell_cache.codec import generic
from torchcell_cache.codec.constants import constant_payload, from_text
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES, Buffer
from torchcell_cache.codec.layout import FieldKey, Layout, Payload, TensorValue, field_label
from torchcell_cache.errors import CorruptRecordError, RecordTooLargeError
from torchcell_cache.graph.fields import flatten, payload_of, unflatten
from torchcell_cache.graph.lasting import copied_on_write, lazy_clone
from torchcell_cache.graph.typed_json import MAX_VALUE_BYTES, value_from_json
from torchcell_cache.graph.values import is_same_tensor, to_tensor


class BaseFields(Mapping[FieldKey, Payload]):
    """The base graph's fields, by store and name, for encoding and decoding samples; built once per process.

    As a mapping it gives what the codec needs; :meth:`value` gives the base graph's own objects. Nothing is
    converted before it is asked for, and tensors are not copied. ``constants`` are those of the store's records.
    """

    def __init__(self, graph: Data | HeteroData | None, constants: Mapping[str, str] | None = None) -> None:
        self.graph, self.constants = graph, from_text(constants or {})
        self._made: dict[tuple[int, FieldKey, bool], Any] = {}
        self._values: dict[FieldKey, Any] = {}
        if graph is not None:
            layout, values = flatten(graph)
            self._values.update(zip(layout.keys, values, strict=True))
        self._payloads: dict[FieldKey, Payload] = {}

    def __getitem__(self, key: FieldKey) -> Payload:
        payload = self._payloads.get(key)
        if payload is None:
            payload = self._payloads.setdefault(key, payload_of(self._values[key], field_label(key)))
        return payload

    def __iter__(self) -> Iterator[FieldKey]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def value(self, key: FieldKey) -> Any:
        """The base graph's own object."""
        return self._values[key]

    def constant(self, number: int, key: FieldKey, is_tensor: bool) -> Any:
        """A constant, read once and a copy each time: whoever changes its sample changes no other."""
        place, label = (number, key, is_tensor), field_label(key)
        if place not in self._made:
            if number not in self.constants:
                raise CorruptRecordError(f"{label} is constant {number:016x}, which the store does not have")
            payload = constant_payload(self.constants[number], label, is_tensor, self.get(key))
            self._made[place] = (
                copied_on_write(to_tensor(payload))
                if isinstance(payload, TensorValue)
                else value_from_json(payload, label)
            )
        value = self._made[place]
        if isinstance(value, Tensor):
            return lazy_clone(value)
        plain = type(value) is list and set(map(type, value)) <= {str, int, float, bool}
        return value.copy() if plain else copy.deepcopy(value)


def encode_graph(graph: Data | HeteroData, base: BaseFields, mode: str) -> tuple[Layout, bytes]:
    """Encode a sample as a generic record.

    Raises:
        UnsupportedValueError: Naming the attribute that no record can hold.
        RecordTooLargeError: If the record, or the text of its values that are not tensors (16 MiB), is too
            large.
    """
    layout, values = flatten(graph)
    payloads: list[Payload | None] = []
    references: list[Payload | None] = []
    text_bytes = 0
    named = zip(layout.keys, layout.labels, layout.tensors, values, strict=True)
    for key, label, is_tensor, value in named:
        own: Any = base.value(key) if key in base else _MISSING
        shared = own is not _MISSING and isinstance(own, Tensor) is is_tensor
        if shared and (is_same_tensor(value, own) if is_tensor else value is own):
            payloads.append(None)
            references.append(None)
            continue
        payload = payload_of(value, label)
        reference = base[key] if shared and (mode != "full" or not is_tensor) else None
        text_bytes += len(payload) if isinstance(payload, bytes) and payload != reference else 0
        payloads.append(payload)
        references.append(reference)
    _check_text(text_bytes)
    return layout, generic.encode(layout, payloads, references, mode)


_MISSING = object()


def decode_graph(
    body: Buffer, layouts: Mapping[int, Layout], base: BaseFields, max_bytes: int = MAX_RECORD_BYTES
) -> Data | HeteroData:
    """Decode a generic record into a fresh graph; shared fields are the base graph's own objects.

    Raises:
        FormatError, CorruptRecordError, RecordTooLargeError: If the body is not what :func:`encode_graph`
        wrote.
    """
    layout, payloads = generic.decode(body, layouts, base, max_bytes)
    values: list[Any] = []
    text_bytes = 0
    for key, is_tensor, payload in zip(layout.keys, layout.tensors, payloads, strict=True):
        if isinstance(payload, int):
            values.append(base.constant(payload, key, is_tensor))
        elif key in base and base[key] is payload:
            values.append(base.value(key))
        elif isinstance(payload, TensorValue):
            values.append(to_tensor(payload))
        else:
            text_bytes += len(payload)
            _check_text(text_bytes)
            values.append(value_from_json(payload, field_label(key)))
    return unflatten(layout, values)


def _check_text(num_bytes: int) -> None:
    if num_bytes > MAX_VALUE_BYTES:
        raise RecordTooLargeError(
            f"values that are not tensors take {num_bytes:,} bytes as text, at most {MAX_VALUE_BYTES:,}",
            fix="return them as tensors from the processor, or leave them in the base graph",
        )
