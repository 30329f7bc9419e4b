"""A node feature of a whole batch, made on the device from the base graph's tensor and what differs from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchcell_cache.batch.context import GraphContext
from torchcell_cache.codec.columns import read_column
from torchcell_cache.codec.field_reader import Changes, changes_of
from torchcell_cache.codec.layout import FieldKey, TensorValue, field_label
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.values import to_tensor

if TYPE_CHECKING:
    from torchcell_cache.batch.graphs import GraphBatch

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dense_features(batch: GraphBatch, key: FieldKey) -> Tensor:
    """The field of every sample, ``[batch, *shape]``, on the batch's device.

    Differences cross to the device as positions and values; the base graph's tensor is there already.

    Raises:
        SettingError: If the samples do not all have this field with one shape and dtype.
        CorruptRecordError: If a record is damaged.
    """
    located = batch.located
    if located is not None and key in located[1].keys:
        field = located[2][located[1].keys.index(key)]
        changes = changes_of(located[0], field, batch.generation.base_fields.get(key))
        if changes is not None:
            return changed(batch, key, changes)
        reference = batch.generation.base_fields.get(key)
        column = read_column(located[0], field, reference) if field.dtype.any() else None
        if column is not None and bool((column.shapes == column.shapes[0]).all()):
            shape = (len(batch), *column.shapes[0].tolist())
            return to_tensor(TensorValue(column.dtype, column.array.reshape(shape))).to(batch.device)
    return _stacked(batch, key)


def changed(batch: GraphBatch, key: FieldKey, changes: Changes) -> Tensor:
    """The base graph's field with each sample's changes, ``[batch, *shape]``, on the batch's device."""
    generation = batch.generation
    context = GraphContext(generation).on(batch.device)
    base = context.tensor(generation.base_fields.value(key))
    out = context.pool.take(key, (len(batch), *base.shape), base.dtype).copy_(base.unsqueeze(0))
    slots = changes.positions + np.repeat(np.arange(len(batch)) * base.numel(), np.diff(changes.ptr))
    if len(slots):
        # As integers: bits stay what they are, and not every dtype can be indexed.
        kind = _INTEGERS[base.element_size()]
        values = torch.from_numpy(changes.values.view(f"i{base.element_size()}")).to(batch.device)
        out.view(-1).view(kind)[torch.from_numpy(slots).to(batch.device)] = values
    return out


def _stacked(batch: GraphBatch, key: FieldKey) -> Tensor:
    """The slow and obvious way: from whole graphs."""
    store, name = key
    found: list[Any] = []
    for at, graph in enumerate(batch.graphs):
        mapping = _store_of(graph, store)
        value = mapping.get(name)
        if not isinstance(value, Tensor):
            raise SettingError(
                f"sample {int(batch.sections['indices'][at])} has no tensor {field_label(key)}; there are "
                f"{sorted(n for n, v in mapping.items() if isinstance(v, Tensor))}"
            )
        found.append(value)
    if len({(value.shape, value.dtype) for value in found}) != 1:
        shapes = sorted({f"{value.dtype} {list(value.shape)}" for value in found})
        raise SettingError(
            f"{field_label(key)} is not of one shape and dtype in this batch: {', '.join(shapes)}",
            fix="batch.to_pyg()",
        )
    return torch.stack(found).to(batch.device)


def _store_of(graph: Any, store: Any) -> dict[str, Any]:
    if not hasattr(graph, "node_types"):
        return dict(graph._store._mapping)
    if store is None:
        return dict(graph._global_store._mapping)
    types = [*graph.node_types, *graph.edge_types]
    if store not in types:
        raise SettingError(f"no {store!r} in the samples; there are {types}")
    return dict(graph[store]._mapping)
