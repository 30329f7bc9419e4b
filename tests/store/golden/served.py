"""What a store serves, as one digest: every field of every sample, in order, to the bit."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch


def described(value: Any) -> str:
    """A value with its type; floats by their bits."""
    if isinstance(value, torch.Tensor):
        data = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        return f"{value.dtype}{list(value.shape)}:{data[:32]}"
    if isinstance(value, np.ndarray):
        return f"array {described(torch.from_numpy(value))}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{described(k)}:{described(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return type(value).__name__ + "[" + ",".join(map(described, value)) + "]"
    if isinstance(value, float):
        return value.hex()
    return f"{type(value).__name__} {value!r}"


def of_graph(graph: Any) -> str:
    """One graph: its stores in order, their fields in order."""
    lines = [
        f"{getattr(store, '_key', None)!r}.{key}={described(value)}"
        for store in graph.stores
        for key, value in store.items()
    ]
    return hashlib.sha256("\n".join([type(graph).__name__, *lines]).encode()).hexdigest()


def of_dataset(dataset: Any) -> dict[str, Any]:
    """Samples one by one, the base graph, and each column."""
    samples = hashlib.sha256("".join(of_graph(dataset[k]) for k in range(len(dataset))).encode())
    base = dataset.base_graph
    return {
        "length": len(dataset),
        "content_digest": dataset.content_digest,
        "samples": samples.hexdigest(),
        "base_graph": "none" if base is None else of_graph(base),
        "columns": {name: described(values) for name, values in dataset.columns.items()},
    }
