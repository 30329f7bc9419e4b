"""Fields of a batch of generic records, read column by column without making the samples: as PyG collates them, or dense."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import N_KEYS

from torchcell_cache.batch.device import of_store
from torchcell_cache.batch.pyg import INDEX_FIELDS, Field, Fields, listed, no_increments
from torchcell_cache.codec.columns import read_column, read_texts
from torchcell_cache.codec.field_reader import Changes, Located, all_of, changes_of, cut
from torchcell_cache.codec.generic import FIELD
from torchcell_cache.codec.layout import FieldKey, TensorValue, field_label
from torchcell_cache.codec.values import BASE, CONSTANT
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.fields import unflatten
from torchcell_cache.graph.typed_json import value_from_json
from torchcell_cache.graph.values import TORCH_DTYPES, to_tensor

if TYPE_CHECKING:
    from torchcell_cache.batch.graphs import GraphBatch

_KEPT_TEXT = 1024
_SCALARS = frozenset({type(None), bool, int, float, str})
_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_INTEGERS = (torch.uint8, *_SIGNED.values())


class NotPlainError(Exception):
    """A field follows a rule that is not written down here: PyG itself has to collate the samples."""


def _parsed(text: bytes, label: str) -> tuple[Any, Callable[[Any], Any]]:
    """A value, and what makes a copy of it for one sample, which may change it."""
    value = value_from_json(text, label)
    if type(value) is list and _SCALARS.issuperset(map(type, value)):
        return value, list.copy
    return value, copy.copy if type(value) in _SCALARS else copy.deepcopy


_kept = functools.lru_cache(maxsize=4096)(_parsed)
"""Short texts recur from batch to batch."""


class RecordFields(Fields):
    """Fields of samples that are records of one layout."""

    def __init__(self, batch: GraphBatch) -> None:
        located = batch.located
        if located is None:
            raise NotPlainError
        self.batch, self.base = batch, batch.generation.base_fields
        self.count, self.device = len(batch), batch.device
        self.data, layout, fields = located
        self.located = dict(zip(layout.keys, fields, strict=True))
        tensors = zip(layout.keys, layout.tensors, strict=True)
        self.template = unflatten(layout, [self._like(*each) for each in tensors])
        self.hetero = isinstance(self.template, HeteroData)
        self._shapes: dict[Any, Int64Array] = {}

    def _like(self, place: FieldKey, is_tensor: bool) -> Any:
        """A value of the first sample, or a tensor like it that has no elements."""
        found = self.located[place].take(slice(1))
        dtype, value = TORCH_DTYPES.get(int(found.dtype[0])), None
        if not is_tensor or found.encoding[0] in (BASE, CONSTANT):
            value = self._shared(place, found) if is_tensor else self._values(place, found)[0]
        elif dtype is not None:
            first = (int(found.at[0]) + FIELD.size) // 8
            shape = self.data.view("<i8")[first : first + int(found.ndim[0])]
            value = torch.empty(shape.tolist(), dtype=dtype, device="meta")
        if isinstance(value, Tensor) is not is_tensor:
            raise NotPlainError
        return value

    def num_nodes(self, key: Any) -> list[int]:
        """Number of nodes of a type in each sample, by PyG's rules."""
        if key not in self._shapes:
            self._shapes[key] = self._counted(key)
        counts: list[int] = self._shapes[key].tolist()
        return counts

    def _counted(self, key: Any) -> Int64Array:
        mapping = (self.template[key] if self.hetero else self.template._store)._mapping
        if "num_nodes" in mapping:
            if isinstance(mapping["num_nodes"], Tensor):
                raise NotPlainError
            counts = self._values((key, "num_nodes"))
            if not all(type(count) is int for count in counts):
                raise NotPlainError
            return np.array(counts, dtype=np.int64)
        for known in (N_KEYS.__contains__, lambda name: "node" in name):
            for name, value in mapping.items():
                if not known(name) or value is None or isinstance(value, str | int | float | bool | list):
                    continue
                if not isinstance(value, Tensor) or value.dim() == 0:
                    raise NotPlainError
                return self._extents(key, name, -1 if not self.hetero and "index" in name else 0)
        raise NotPlainError

    def _extents(self, key: Any, name: str, dim: int) -> Int64Array:
        """Size of a tensor field in one dimension, of each sample."""
        found, shared = self.located[key, name], self._shared((key, name))
        if shared is not None:
            return np.full(self.count, shared.size(dim))
        own = found.encoding != BASE
        if np.count_nonzero(found.ndim[own] < 1):
            raise NotPlainError
        at = found.at // 8 + 1 + (0 if dim == 0 else found.ndim - 1)
        sizes = self.data.view("<i8")[np.where(own, at, 0)]
        if not all_of(own):
            sizes[~own] = self.base.value((key, name)).size(dim)
        return sizes

    def field(self, key: Any, name: str, value: Any) -> Field:
        """A field of a store."""
        shifts = "index" in name and (not self.hetero or isinstance(key, tuple))
        if isinstance(value, Tensor) and not ("batch" in name or name in ("face", "ptr")):
            return self._index(key, name, value) if shifts else self._rows(key, name, value)
        nested = isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Tensor)
        if shifts or nested or isinstance(value, dict | Tensor) or name in ("face", "ptr"):
            raise NotPlainError
        values = self._values((key, name))
        if not isinstance(value, int | float):
            return listed(values)
        if not all(isinstance(v, float) or (isinstance(v, int) and abs(v) < 1 << 62) for v in values):
            raise NotPlainError
        out = torch.tensor(values, device="cpu").to(self.device)
        return Field(out, torch.arange(len(values) + 1, device="cpu"), no_increments(len(values)))

    def _values(self, place: FieldKey, found: Located | None = None) -> list[Any]:
        """Values that are no tensors; equal texts are parsed once."""
        texts, label = read_texts(self.data, found or self.located[place]), field_label(place)
        own = {text for text in texts if isinstance(text, bytes)}
        parsed = {text: (_kept if len(text) <= _KEPT_TEXT else _parsed)(text, label) for text in own}

        def value(text: Any) -> Any:
            if isinstance(text, bytes):
                return parsed[text][1](parsed[text][0])
            return self.base.value(place) if text is None else self.base.constant(text, place, False)

        return list(map(value, texts))

    def _shared(self, place: FieldKey, found: Located | None = None) -> Any:
        """The value that the base graph or the store has for all samples, ``None`` if they do not share one."""
        found = found or self.located[place]
        if all_of(found.encoding == BASE):
            return self.base.value(place)
        if all_of(found.encoding == CONSTANT):
            numbers = self.data.view("<u8")[found.start // 8]
            if all_of(numbers == numbers[0]):
                return self.base.constant(int(numbers[0]), place, True)
        return None

    def _rows(self, key: Any, name: str, value: Tensor) -> Field:
        """A tensor whose first dimension is that of all samples together."""
        count, found, reference = self.count, self.located[key, name], self.base.get((key, name))
        whole = self._shared((key, name)) if all_of(found.encoding == CONSTANT) else None
        changes = changes_of(self.data, found, reference) if whole is None else None
        dense: Any = None if changes is None else changed(self.batch, (key, name), changes)
        if whole is not None:
            dense = whole.unsqueeze(0).expand(count, *whole.shape)
        if dense is not None:
            size = dense.size(1) if dense.dim() > 1 else 1
            return self._cut(dense.flatten(0, 1) if dense.dim() > 1 else dense.clone(), np.full(count, size))
        column = read_column(self.data, found, reference)
        if column is None or np.count_nonzero(column.shapes[:, 1:] != column.shapes[0, 1:]):
            raise NotPlainError
        sizes = column.shapes[:, 0] if value.dim() else np.ones(count, dtype=np.int64)
        shape = (int(sizes.sum()), *column.shapes[0, 1:].tolist())
        return self._cut(to_tensor(TensorValue(column.dtype, column.array.reshape(shape))), sizes)

    def _cut(self, value: Tensor, sizes: Int64Array) -> Field:
        return Field(value.to(self.device), torch.from_numpy(offsets(sizes)), no_increments(len(sizes)))

    def _index(self, key: Any, name: str, value: Tensor) -> Field:
        """A tensor of node numbers: samples stand side by side, each shifted by the nodes of those before it."""
        count, found, reference = self.count, self.located[key, name], self.base.get((key, name))
        ends = [key[0], key[2]] if self.hetero else [None]
        plain = value.dtype in _INTEGERS and value.dim() > 0
        if self.hetero:
            plain = plain and name in INDEX_FIELDS and value.dim() == 2
            plain = plain and set(ends) <= set(self.template.node_types)
        if not plain:
            raise NotPlainError
        incs = torch.from_numpy(np.stack([offsets(np.array(self.num_nodes(end)))[:-1] for end in ends]))
        whole: Tensor | None = self._shared((key, name))
        if whole is not None:
            sizes, shift = np.full(count, value.size(-1)), incs.unsqueeze(-1)
            flat = whole.unsqueeze(-2).expand(*whole.shape[:-1], count, -1)
        else:
            column = read_column(self.data, found, reference)
            if column is None or np.count_nonzero(column.shapes[:, :-1] != column.shapes[0, :-1]):
                raise NotPlainError
            sizes, rows = column.shapes[:, -1], value.shape[:-1].numel()
            starts = offsets(sizes * rows)[:-1] + np.arange(rows)[:, None] * sizes
            array = cut(column.array, starts.ravel(), np.tile(sizes, rows))
            flat = to_tensor(TensorValue(column.dtype, array.reshape(*value.shape[:-1], sizes.sum())))
            shift = torch.from_numpy(np.repeat(incs.numpy(), sizes, axis=-1))
        flat = flat + (shift if self.hetero else shift[0].to(flat.dtype))
        flat = flat if whole is None else flat.flatten(-2)
        slices = torch.from_numpy(offsets(sizes))
        return Field(
            flat.to(self.device), slices, incs.t().unsqueeze(-1).contiguous() if self.hetero else incs[0]
        )


def dense_features(batch: GraphBatch, key: FieldKey) -> Tensor:
    """The field of every sample, ``[batch, *shape]``, on the batch's device.

    Differences cross to the device as positions and values; the base graph's tensor is there already.

    Raises:
        SettingError: If the samples do not all have this field with one shape and dtype.
        CorruptRecordError: If a record is damaged.
    """
    located, reference = batch.located, batch.generation.base_fields.get(key)
    if located is not None and key in located[1].keys:
        field = located[2][located[1].keys.index(key)]
        changes = changes_of(located[0], field, reference)
        if changes is not None:
            return changed(batch, key, changes)
        column = read_column(located[0], field, reference) if field.dtype.any() else None
        if column is not None and bool((column.shapes == column.shapes[0]).all()):
            shape = (len(batch), *column.shapes[0].tolist())
            return to_tensor(TensorValue(column.dtype, column.array.reshape(shape))).to(batch.device)
    return _stacked(batch, key)


def changed(batch: GraphBatch, key: FieldKey, changes: Changes) -> Tensor:
    """The base graph's field with each sample's changes, ``[batch, *shape]``, on the batch's device."""
    generation = batch.generation
    context = of_store(generation, batch.device)
    base = context.tensor(generation.base_fields.value(key))
    out = context.pool.take(key, (len(batch), *base.shape), base.dtype).copy_(base.unsqueeze(0))
    slots = changes.positions + np.repeat(np.arange(len(batch)) * base.numel(), np.diff(changes.ptr))
    if len(slots):
        # As integers: bits stay what they are, and not every dtype can be indexed.
        kind = _SIGNED[base.element_size()]
        values = torch.from_numpy(changes.values.view(f"i{base.element_size()}")).to(batch.device)
        out.view(-1).view(kind)[torch.from_numpy(slots).to(batch.device)] = values
    return out


def _stacked(batch: GraphBatch, key: FieldKey) -> Tensor:
    """The slow and obvious way: from whole graphs."""
    store, name = key
    found: list[Any] = []
    for at, graph in enumerate(batch.graphs):
        is_global = store is None and isinstance(graph, HeteroData)
        mapping = graph._global_store._mapping if is_global else batch.fields_of(at, store, SettingError)
        value = mapping.get(name)
        if not isinstance(value, Tensor):
            raise SettingError(
                f"sample {int(batch.sections['indices'][at])} has no tensor {field_label(key)}; there are "
                f"{sorted(n for n, v in mapping.items() if isinstance(v, Tensor))}"
            )
        found.append(value)
    shapes = sorted({f"{value.dtype} {list(value.shape)}" for value in found})
    if len(shapes) != 1:
        raise SettingError(
            f"{field_label(key)} is not of one shape and dtype in this batch: {', '.join(shapes)}",
            fix="batch.to_pyg()",
        )
    return torch.stack(found).to(batch.device)
