"""Running PyG layers on the shared graph: ``x [batch, num_nodes, num_features]`` and one edge list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import Route
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import ranged
from torchcell_cache.nn.adjacency import check_ends
from torchcell_cache.nn.again import pieces, run_in_pieces
from torchcell_cache.nn.attention import ATTENTION, run_attention, why_not_attention
from torchcell_cache.nn.edges import Ends, SharedEdges
from torchcell_cache.nn.linear import run_linear, run_shared, why_not_linear
from torchcell_cache.nn.modules import plain_of
from torchcell_cache.nn.shared_input import Differing

ROUTES = get_args(Route)


@ranged("layer")
def shared_conv(
    layer: torch.nn.Module,
    x: Tensor | tuple[Tensor, Tensor],
    edges: SharedEdges,
    *,
    route: Route = "auto",
    **arguments: Any,
) -> Tensor:
    """Run a layer on every sample of a batch, each with its own kept edges of one shared edge list.

    Equal, in values and gradients, to the layer on ``batch.to_pyg()`` with ``edge_index[:, mask]``: all nodes are there,
    only kept edges send messages.

    Args:
        layer: Any ``MessagePassing`` layer, or a module that is called like one: ``layer(x, edge_index, **arguments)``.
        x: Node features, ``[batch, num_nodes, num_features]``; source and target features if the edges are bipartite.
        edges: The batch's edges, from :func:`shared_edges`.
        route: ``fast`` multiplies with the one shared adjacency and copies no edge per sample: exact for ``GINConv`` (also
            torchcell's masked one, see :func:`unmasked`), ``SAGEConv`` and ``GraphConv`` with sum or mean and ``GCNConv``,
            with constant weights, and on the CPU for ``GATConv``, ``GATv2Conv`` and ``TransformerConv`` without edge
            attributes and without dropout of edges, all as PyG made them (no hooks, no methods of their own). ``general``
            lists kept edges and runs the layer as it is: any layer, any aggregation; layers known to look at each graph by
            itself get as many samples at a time as memory is meant for, and run again in the backward pass. ``auto`` is
            fast where that is exact.
        **arguments: The layer's further arguments. Those of edges (``edge_weight [num_edges]``, ``edge_attr
            [num_edges, k]``, ...) have one row per edge of the shared list; all others are handed on as they are, with
            nodes numbered as in a PyG batch (``lambda_max [batch]``). ``batch [batch * num_nodes]``, which says whose
            each node is, a layer that has such a parameter is given without being told.

    Returns:
        ``[batch, num_target, ...]``.

    Raises:
        SettingError: If a shape does not fit, a module inside the layer keeps a batch's edges for the next
            (``cached=True``), or ``route="fast"`` is not exact here.

    Example:
        >>> conv, x = GCNConv(2, 4), ds.base_graph["gene"].x
        >>> batch = ds.read_batch(range(3))
        >>> edges = tc.nn.shared_edges(batch)["gene", "physical", "gene"]
        >>> tc.nn.shared_conv(conv, x.expand(3, -1, -1), edges).shape
        torch.Size([3, 8, 4])
    """
    choice("route", route, ROUTES)
    pair: Ends = (x[0], x[1]) if isinstance(x, list | tuple) and len(x) == 2 else (x, x)
    check_features(pair, edges)
    out = run(layer, pair, edges, route, sort_arguments(arguments, pair, edges), {})
    return out.dense if isinstance(out, Differing) else out


def run(
    layer: Any, x: Ends, edges: SharedEdges, route: str, arguments: Arguments, bases: dict[int, Tensor]
) -> Tensor | Differing:
    """:func:`shared_conv` on checked arguments; see ``run_shared`` for ``bases``."""
    if torch.compiler.is_compiling() and route != "general" and not getattr(layer, "cached", False):
        fields = {**arguments.of_edges, **arguments.others}
        alike = x[0].device.type == "cpu" and x[0].stride(0) == 0  # computed once, which is worth a break
        if not alike and why_not_linear(layer, x, edges, fields) is None:
            return per_sample(layer, run_linear(layer, x, edges, fields), x[1])
    out: Tensor | Differing = _run(layer, x, edges, route, arguments, bases)
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run(
    layer: Any, x: Ends, edges: SharedEdges, route: str, arguments: Arguments, bases: dict[int, Tensor]
) -> Tensor | Differing:
    check_ends(edges.edge_index, x[0].size(1), x[1].size(1))
    check_keeps_no_edges(layer)
    reason: str | None = "route='general'"
    if route != "general":
        layer, fields = plain_of(layer) or layer, {**arguments.of_edges, **arguments.others}
        reason = why_not_linear(layer, x, edges, fields)
        if reason is None:
            shared: Differing | None = run_shared(layer, x, edges, fields, bases)
            return per_sample(layer, run_linear(layer, x, edges, fields), x[1]) if shared is None else shared
        attention = why_not_attention(layer, x, edges, fields)
        if attention is None:
            out = run_attention(layer, x, edges)
            if out is not None:
                return per_sample(layer, out, x[1])
            attention = "features are not finite"
        reason = attention if type(layer) in ATTENTION else reason
    if route == "fast":
        raise SettingError(f"the fast route is not exact here: {reason}", fix='use route="auto"')
    size = len(x[0]) if arguments.others else pieces(layer, x, edges, arguments.of_edges)
    if size < len(x[0]):
        return per_sample(layer, run_in_pieces(layer, x, edges, arguments.of_edges, size), x[1])
    kept = edges.kept(x[0].size(1), x[1].size(1))
    given = {name: value[kept.edge] for name, value in arguments.of_edges.items()} | arguments.others
    if x[0] is x[1] and "batch" not in given and "batch" in signature(layer.forward).parameters:
        # Without it, global attention and norms of graphs would take all samples for one graph.
        samples = torch.arange(len(x[0]), device=x[0].device)
        given["batch"] = samples.repeat_interleave(x[0].size(1))
    flat = x[0].flatten(0, 1)
    both = flat if x[0] is x[1] else (flat, x[1].flatten(0, 1))
    return per_sample(layer, layer(both, kept.index, **given), x[1])


def per_sample(layer: Any, out: Any, x: Tensor) -> Tensor:
    """A layer's output with samples and nodes apart again; ``x`` are the target nodes' features.

    Raises:
        SettingError: If the layer gave something else.
    """
    if not isinstance(out, Tensor) or out.dim() == 0 or out.size(0) != x.size(0) * x.size(1):
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise SettingError(
            f"{type(layer).__name__} gave {got}, expected a tensor with one row for each of the "
            f"{x.size(0) * x.size(1)} target nodes"
        )
    return out.view(*x.shape[:2], *out.shape[1:])


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
