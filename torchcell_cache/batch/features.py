"""A node feature of a whole batch, made on the device from the base graph's tensor and what differs from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchcell_cache.batch.context import GraphContext
from torchcell_cache.codec.envelope import CHECKSUM_BYTES
from torchcell_cache.codec.field_reader import read_changes
from torchcell_cache.codec.layout import FieldKey, TensorValue, field_label
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.values import to_tensor

if TYPE_CHECKING:
    from torchcell_cache.batch.graphs import GraphBatch


def dense_features(batch: GraphBatch, key: FieldKey) -> Tensor:
    """The field of every sample, ``[batch, *shape]``, on the batch's device.

    Differences cross to the device as positions and values; the base graph's tensor is there already.

    Raises:
        SettingError: If the samples do not all have this field with one shape and dtype.
        CorruptRecordError: If a record is damaged.
    """
    sections, generation = batch.sections, batch.generation
    context = GraphContext(generation).on(batch.device)
    ptr = sections["record_ptr"]
    changes = read_changes(
        sections["records"],
        ptr[:-1] + CHECKSUM_BYTES,
        ptr[1:],
        generation.layouts,
        generation.base_fields,
        key,
    )
    if changes is None:
        return _stacked(batch, key)
    base = context.tensor(generation.base_fields.value(key))
    out = context.pool.take(key, (len(batch), *base.shape), base.dtype).copy_(base.unsqueeze(0))
    size, code = base.numel(), generation.base_fields[key]
    assert isinstance(code, TensorValue)
    slots = changes.positions + np.repeat(np.arange(len(batch)) * size, np.diff(changes.ptr))
    if len(slots):
        values = to_tensor(TensorValue(code.dtype, changes.values))
        out.view(-1)[torch.from_numpy(slots).to(batch.device)] = values.to(batch.device)
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
