"""Running PyG's layers for heterogeneous graphs on the shared graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from torch_geometric.nn import HeteroConv
from torch_geometric.nn.conv.hetero_conv import group

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import Route
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import ranged
from torchcell_cache.graph.topology import EdgeType
from torchcell_cache.nn.adjacency import check_ends
from torchcell_cache.nn.conv import (
    ROUTES,
    Arguments,
    check_features,
    check_keeps_no_edges,
    per_sample,
    run,
    shared_conv,
    sort_arguments,
)
from torchcell_cache.nn.edges import Ends, SharedEdges
from torchcell_cache.nn.modules import in_transform, is_altered
from torchcell_cache.nn.shared_input import Differing, sum_of

Dicts = Mapping[str, Mapping[Any, Any]]
Features = Mapping[str, Tensor]
Edges = Mapping[EdgeType, SharedEdges]


@ranged("layer")
def shared_hetero_conv(
    layer: torch.nn.Module,
    x: Mapping[str, Tensor],
    edges: Mapping[EdgeType, SharedEdges],
    *,
    route: Route = "auto",
    **argument_dicts: Mapping[Any, Any],
) -> dict[str, Tensor]:
    """Run a ``HeteroConv`` on every sample of a batch; see :func:`shared_conv`.

    Args:
        layer: The layer; edge types that ``edges`` does not have are skipped, as PyG does. Any other module that takes
            dictionaries (``HGTConv``, a model from ``to_hetero``) runs as it is, on the edge types between nodes that
            have features.
        x: Features per node type, ``[batch, num_nodes, num_features]``.
        edges: Edges per edge type, from :func:`shared_edges`.
        route: As for :func:`shared_conv`, for every edge type.
        **argument_dicts: Further arguments named as for ``HeteroConv`` (``edge_weight_dict={...}``): by edge type as for
            :func:`shared_conv`, by node type handed on as they are (``batch_dict``, ``lambda_max_dict``).

    Returns:
        Features per target node type, ``[batch, num_nodes, ...]``.

    Raises:
        SettingError: If a shape or a name does not fit, or an edge type's source or target has no features.

    Example:
        >>> key, x = ("gene", "physical", "gene"), ds.base_graph["gene"].x
        >>> edges = tc.nn.shared_edges(ds.read_batch(range(3)))
        >>> layer = HeteroConv({key: GCNConv(2, 4)})
        >>> tc.nn.shared_hetero_conv(layer, {"gene": x.expand(3, -1, -1)}, {key: edges[key]})["gene"].shape
        torch.Size([3, 8, 4])
    """
    choice("route", route, ROUTES)
    _check_names(layer, x, edges, argument_dicts)
    if type(layer) is HeteroConv and not is_altered(layer):
        return _one_by_one(layer, x, edges, route, argument_dicts)
    if route == "fast":
        raise SettingError(f"{type(layer).__name__} has no fast route", fix='use route="auto"')
    return _as_it_is(layer, x, edges, argument_dicts)


def _one_by_one(layer: HeteroConv, x: Features, edges: Edges, route: str, dicts: Dicts) -> dict[str, Tensor]:
    outs: dict[str, list[Any]] = {}
    bases: dict[int, Tensor] = {}
    sums: dict[str, Tensor] = {}
    for edge_type, conv in layer.convs.items():
        if edge_type not in edges:
            continue
        pair = _ends(x, edge_type)
        check_features(pair, edges[edge_type])
        arguments = _arguments(edge_type, pair, edges[edge_type], dicts)
        with record_function(f"torchcell_cache::{'/'.join(edge_type)}"):
            out = run(conv, pair, edges[edge_type], route, arguments, bases)
        known = outs.setdefault(edge_type[2], [])
        last = known[-1] if known and layer.aggr in ("sum", "add") else None
        if isinstance(out, Tensor) and isinstance(last, Tensor):
            # As they come, into a sum that nobody else has: a stack of all would be as much memory again.
            same = out.dtype == last.dtype and out.shape == last.shape
            own = same and last is sums.get(edge_type[2]) and not in_transform()
            known[-1] = sums[edge_type[2]] = last.add_(out) if own else last + out
        else:
            known.append(out)
    if not outs:
        raise SettingError(f"none of the layer's edge types {_types_of(layer)} is among {list(edges)}")
    return {target: _grouped(parts, layer.aggr, x[target]) for target, parts in outs.items()}


def _grouped(parts: list[Any], aggr: str | None, x: Tensor) -> Tensor:
    """The outputs of several edge types together."""
    if aggr in ("sum", "add"):
        differing = [part for part in parts if isinstance(part, Differing)]
        dense = [part for part in parts if isinstance(part, Tensor)]
        alike = len({(part.rows.dtype, part.rows.shape[1:]) for part in differing}) == 1
        dense += [sum_of(differing)] if alike else [part.dense for part in differing]
        return sum(dense[1:], dense[0])
    flat = [(part.dense if isinstance(part, Differing) else part).flatten(0, 1) for part in parts]
    value: Tensor = group(flat, aggr)
    return value.view(*x.shape[:2], *value.shape[1:])


def _as_it_is(layer: torch.nn.Module, x: Features, edges: Edges, dicts: Dicts) -> dict[str, Tensor]:
    check_keeps_no_edges(layer)
    known = _types_of(layer) or edges
    index: dict[EdgeType, Tensor] = {}
    further = {name: {k: v for k, v in by_type.items() if k not in edges} for name, by_type in dicts.items()}
    for edge_type in edges:
        if edge_type not in known or edge_type[0] not in x or edge_type[2] not in x:
            continue
        pair, shared = _ends(x, edge_type), edges[edge_type]
        check_features(pair, shared)
        check_ends(shared.edge_index, pair[0].size(1), pair[1].size(1))
        kept = shared.kept(pair[0].size(1), pair[1].size(1))
        index[edge_type] = kept.index
        of_edges = {n: by_type[edge_type] for n, by_type in dicts.items() if edge_type in by_type}
        for name, value in sort_arguments(of_edges, pair, shared).of_edges.items():
            further[name][edge_type] = value[kept.edge]
    outs = layer({name: value.flatten(0, 1) for name, value in x.items()}, index, **further)
    if not isinstance(outs, Mapping) or not set(outs) <= set(x):
        raise SettingError(
            f"{type(layer).__name__} gave {type(outs).__name__}, expected features by node type"
        )
    return {name: per_sample(layer, out, x[name]) for name, out in outs.items() if out is not None}


def _arguments(edge_type: EdgeType, x: Ends, edges: SharedEdges, dicts: Dicts) -> Arguments:
    """Those of an edge type, with PyG's rules: by edge type, else by the ends' node types."""
    source, _, target = edge_type
    of_type = {n.removesuffix("_dict"): d[edge_type] for n, d in dicts.items() if edge_type in d}
    out = sort_arguments(of_type, x, edges)
    for name, by_type in dicts.items():
        if edge_type not in by_type and (source in by_type or target in by_type):
            value = by_type.get(source), by_type.get(target)
            out.others[name.removesuffix("_dict")] = value[0] if source == target else value
    return out


def _types_of(layer: torch.nn.Module) -> list[EdgeType] | None:
    """The edge types a module says it knows, if it says so."""
    if isinstance(layer, HeteroConv):
        return list(layer.convs.keys())
    types = getattr(layer, "edge_types", None)
    return types if isinstance(types, list) else None


def _ends(x: Mapping[str, Tensor], edge_type: EdgeType) -> Ends:
    for end in (edge_type[0], edge_type[2]):
        if end not in x:
            raise SettingError(
                f"edge type {edge_type} needs features of {end!r}; there are features of {list(x)}",
                fix=f"give x[{end!r}], or leave the edge type out of edges",
            )
    return x[edge_type[0]], x[edge_type[2]]


def _check_names(layer: torch.nn.Module, x: Features, edges: Edges, dicts: Dicts) -> None:
    for name, given in (("x", x), ("edges", edges)):
        if not isinstance(given, Mapping):
            raise SettingError(
                f"{name} is {type(given).__name__}, expected a dictionary by type",
                fix="shared_conv for one edge type",
            )
    types = {*edges, *(_types_of(layer) or ()), *x}
    types |= {end for edge_type in edges for end in (edge_type[0], edge_type[2])}
    for name, by_type in dicts.items():
        if not name.endswith("_dict"):
            raise SettingError(f"argument '{name}' is by type", fix=f"name it '{name}_dict'")
        if not isinstance(by_type, Mapping):
            raise SettingError(f"'{name}' is {type(by_type).__name__}, expected a dictionary by type")
        unknown = [key for key in by_type if key not in types]
        if unknown:
            raise SettingError(f"'{name}' names {unknown[0]!r}; there are {sorted(types, key=str)}")


class SharedConv(torch.nn.Module):
    """A layer or ``HeteroConv`` as a module that takes the shared graph.

    Args:
        layer: The PyG layer; its parameters are this module's.
        route: As for :func:`shared_conv`.

    Example:
        >>> conv, x = tc.nn.SharedConv(GCNConv(2, 4)), ds.base_graph["gene"].x
        >>> batch = ds.read_batch(range(3))
        >>> conv(x.expand(3, -1, -1), tc.nn.shared_edges(batch)["gene", "physical", "gene"]).shape
        torch.Size([3, 8, 4])
    """

    def __init__(self, layer: torch.nn.Module, route: Route = "auto") -> None:
        super().__init__()
        self.layer, self.route = layer, choice("route", route, ROUTES)

    def forward(self, x: Any, edges: Any, **arguments: Any) -> Any:
        """See :func:`shared_conv` and :func:`shared_hetero_conv`."""
        run_it: Any = shared_hetero_conv if isinstance(x, Mapping) else shared_conv
        return run_it(self.layer, x, edges, route=self.route, **arguments)
