"""What a layer is given besides features and edges, and layers that must not be given several batches at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchcell_cache.errors import SettingError
from torchcell_cache.nn.edges import SharedEdges

Ends = tuple[Tensor, Tensor]


class Arguments(NamedTuple):
    """A layer's further arguments.

    Attributes:
        of_edges: One row for each of the shared edges.
        others: Handed on as they are: what speaks of nodes or samples numbers them as PyG's batch does.
    """

    of_edges: dict[str, Tensor]
    others: dict[str, Any]


def sort_arguments(given: Mapping[str, Any], x: Ends, edges: SharedEdges) -> Arguments:
    """Tell arguments of edges from others: by name (``edge_...``), else by their number of rows.

    Raises:
        SettingError: If an argument has as many rows as nothing here, or could be either.
    """
    out = Arguments({}, {})
    num_edges = edges.edge_index.size(1)
    batch = x[0].size(0)
    rows_of_others = {batch, batch * x[0].size(1), batch * x[1].size(1)}
    for name, value in given.items():
        rows = value.size(0) if isinstance(value, Tensor) and value.dim() else None
        if value is None:
            continue
        if name.startswith("edge_") or (rows == num_edges and rows not in rows_of_others):
            if rows != num_edges:
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise SettingError(
                    f"{name} is {got}, expected one row for each of the {num_edges} shared edges"
                )
            out.of_edges[name] = value
        elif rows is None or (rows in rows_of_others and rows != num_edges) or name == "batch":
            out.others[name] = value
        else:
            raise SettingError(
                f"{name} is {list(value.shape)}: it is not clear whether its rows are the {num_edges} shared edges, "
                f"the {batch} samples or their {sorted(rows_of_others - {batch})} nodes",
                fix="a parameter of edges is called edge_...; wrap the layer to give it that name",
            )
    return out


def check_features(x: Ends, edges: SharedEdges) -> None:
    """Insist on features of all samples that fit the edges.

    Raises:
        SettingError: If they do not.
    """
    if not isinstance(edges, SharedEdges):
        raise SettingError(
            f"edges is {type(edges).__name__}, expected the SharedEdges of one edge type",
            fix='shared_edges(batch)["gene", "physical", "gene"]; shared_hetero_conv takes all types',
        )
    for end in x:
        if not isinstance(end, Tensor) or end.dim() < 3 or end.size(0) != x[0].size(0):
            got = list(end.shape) if isinstance(end, Tensor) else type(end).__name__
            raise SettingError(
                f"node features are {got}, expected [batch, num_nodes, num_features] on both ends",
                fix="a tensor, or a pair of source and target features; shared_hetero_conv takes them by node type",
            )
    edges.check(x[0].size(0), x[0].size(1), x[1].size(1))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def check_keeps_no_edges(layer: Any) -> None:
    """Refuse a layer that keeps what it made of one batch's edges for the next batch, however deep inside.

    Raises:
        SettingError: Naming the module.
    """
    if not isinstance(layer, torch.nn.Module):
        got = f"the class {layer.__name__}" if isinstance(layer, type) else type(layer).__name__
        raise SettingError(
            f"the layer is {got}, expected a torch.nn.Module", fix="GCNConv(16, 16), or a Module of your own"
        )
    for path, module in _modules(layer, set()):
        kept = [name for name, value in vars(module).items() if "cache" in name.lower() and _is_kept(value)]
        cached = getattr(module, "cached", False)
        if isinstance(cached, int | np.bool_) and cached:
            kept.append("cached=True")
        if kept:
            where = f" at '{path}' in {type(layer).__name__}" if path else ""
            raise SettingError(
                f"{type(module).__name__}{where} keeps edges of the first batch for all others ({kept[-1]})",
                fix="make the layer with cached=False",
            )


def _modules(layer: torch.nn.Module, seen: set[Any]) -> Iterator[tuple[str, torch.nn.Module]]:
    """All modules in a layer, those too that lie in a plain list or dict of one."""
    for path, module in layer.named_modules(seen):
        yield path, module
        for name, value in vars(module).items():
            if isinstance(value, list | tuple | dict) and name != "_modules":
                for part in value.values() if isinstance(value, dict) else value:
                    if isinstance(part, torch.nn.Module):
                        yield from ((f"{path}.{name}".strip("."), inner) for _, inner in _modules(part, seen))


def _is_kept(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_is_kept, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_kept, value))
    return isinstance(value, Tensor) or type(value).__name__ == "SparseTensor"
