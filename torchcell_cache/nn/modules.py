"""What is known of modules: whether they are still what their class says, and what of a batch they look at.

A ``GINConv`` that multiplies messages with a mask of edges (torchcell's ``MaskedGINConv``) is on kept edges alone the plain
layer: a message times 0 adds an exact 0. It is recognised by what it takes and by one look at a tiny graph, without importing
torchcell; whatever behaves in another way runs as it is.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch_geometric.nn as G
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch_geometric.nn.dense import Linear

from torchcell_cache.errors import SettingError
from torchcell_cache.nn.edges import Ends, SharedEdges

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# fmt: off
_PLAIN = (
    nn.Identity, nn.Linear, Linear, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.CELU, nn.SELU, nn.Mish, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.PReLU,
)
_SEPARATE = (
    G.GATConv, G.GATv2Conv, G.TransformerConv, G.PNAConv, G.GINConv, G.GINEConv, G.SAGEConv, G.GraphConv, G.GCNConv,
    G.ResGatedGraphConv, G.NNConv, G.CGConv, G.EdgeConv, G.LEConv, G.TAGConv, G.SGConv, G.FiLMConv,
)
# fmt: on
_MASK = "edge_mask"
_plain: WeakKeyDictionary[torch.nn.Module, G.GINConv | None] = WeakKeyDictionary()
_METHODS = ("forward", "message", "aggregate", "update", "message_and_aggregate", "edge_update")
_AS_PYG_HAS_THEM = {kind: [getattr(kind, name, None) for name in _METHODS] for kind in _SEPARATE}


def is_rowwise(module: Any) -> bool:
    """Whether it is known of a module that each row of its output is a function of that row alone, every time the same."""
    if not isinstance(module, nn.Module) or is_hooked(module) or "forward" in vars(module):
        return False
    if any(
        isinstance(t, Tensor) and t.requires_grad for t in (*vars(module).values(), *module._buffers.values())
    ):
        return False  # a weight that is no parameter, as inner loops of meta-learning put it there
    if type(module) is nn.Sequential:
        return all(map(is_rowwise, module))
    if type(module) is nn.Dropout:
        return module.p == 0 or not module.training
    if type(module) is nn.LayerNorm:
        return len(module.normalized_shape) == 1
    return type(module) in _PLAIN


def is_hooked(module: nn.Module) -> bool:
    """Whether hooks see or change what a module does."""
    hooks = (v for name, v in vars(module).items() if name.endswith("_hooks") and "state_dict" not in name)
    return bool(torch.nn.modules.module._has_any_global_hook() or any(hooks))  # type: ignore[no-untyped-call]


def in_transform() -> bool:
    """Whether ``torch.func``, forward derivatives or a compiler look on, which know plain operations only."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def is_autocast(x: Tensor) -> bool:
    """Whether operations on a tensor change precision by themselves."""
    return torch.is_autocast_enabled(x.device.type)


def is_separate(module: Any) -> bool:
    """Whether it is known of a layer that it looks at each graph of a batch by itself and remembers nothing of it."""
    if not isinstance(module, nn.Module) or is_altered(module) or getattr(module, "explain", False):
        return False
    if is_rowwise(module) or type(module) is nn.Dropout:
        return True
    kind = type(module)
    known = kind in (*_SEPARATE, nn.Sequential, nn.ModuleList, G.BatchNorm)
    _, of_pyg, place = kind.__module__.rpartition("torch_geometric.nn.aggr.")
    is_aggregation = bool(of_pyg) and place in ("basic", "multi", "fused")
    is_scaler = bool(of_pyg) and place == "scaler" and not list(module.parameters())
    is_norm = kind is nn.BatchNorm1d and not module.training and bool(module.track_running_stats)
    return (known or is_aggregation or is_scaler or is_norm) and all(map(is_separate, module.children()))


def is_altered(module: torch.nn.Module) -> bool:
    """Whether hooks or patches make a module do other things than its class says."""
    own, known = vars(module), _AS_PYG_HAS_THEM.get(type(module), [])
    return bool(
        is_hooked(module)
        or any(callable(getattr(type(module), name, None)) for name in own)
        or any(getattr(type(module), name, None) is not it for name, it in zip(_METHODS, known, strict=False))
    )


def why_not_plain(
    layer: Any, x: Ends, edges: SharedEdges, kinds: tuple[Any, ...], aggrs: tuple[Any, ...], node_dim: int
) -> str | None:
    """Why a layer is not one of some as PyG has them, on edges that go with their nodes; ``None`` if it is."""
    name = type(layer).__name__
    if type(layer) not in kinds or not isinstance(layer, G.MessagePassing):
        return f"{name} is not one of {', '.join(kind.__name__ for kind in kinds)}"
    if not edges.by_nodes:
        return "edges are masked one by one, not by their ends"
    if any(end.dim() != 3 or end.dtype not in DTYPES for end in x):
        return "features are not one vector of floating point numbers per node"
    if type(layer.aggr_module) not in aggrs:
        return f"{name} aggregates by {type(layer.aggr_module).__name__}"
    if layer.flow != "source_to_target" or layer.node_dim != node_dim or layer.decomposed_layers > 1:
        return f"{name} has flow={layer.flow!r}, node_dim={layer.node_dim} or several decomposed layers"
    if layer.explain or is_altered(layer) or is_altered(layer.aggr_module):
        return f"{name} has hooks, is being explained or has methods of its own"
    return None


def snapshot(module: Any, instead: Mapping[int, torch.Tensor] | None = None) -> Any:
    """A module with the parameters, buffers and modes it has now, whatever becomes of the module later.

    ``torch.func.functional_call`` puts its own back after the call, ``train()`` and ``eval()`` switch what runs again in
    the backward pass; ``instead`` are tensors by the ``id`` of those they stand in for.
    """
    known: dict[int, Any] = {}

    def copied(part: Any) -> Any:
        if not isinstance(part, torch.nn.Module):
            return part
        if id(part) not in known:
            new = known[id(part)] = object.__new__(type(part))
            new.__dict__.update(part.__dict__)
            for kind in ("_parameters", "_buffers"):
                tensors = {name: (instead or {}).get(id(t), t) for name, t in vars(part)[kind].items()}
                new.__dict__[kind] = tensors
            new.__dict__["_modules"] = {name: copied(child) for name, child in part._modules.items()}
        return known[id(part)]

    return copied(module)


class Seen:
    """A layer as its own ``forward`` sees it, some attributes replaced."""

    def __init__(self, layer: torch.nn.Module, **instead: Any) -> None:
        self._layer = layer
        for name, value in instead.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def unmasked(layer: torch.nn.Module) -> G.GINConv:
    """The ``GINConv`` that a masked one is on kept edges; parameters are the layer's own, as trained, and stay shared.

    Args:
        layer: A subclass of ``GINConv`` whose ``forward`` takes ``edge_mask`` and multiplies messages with it.

    Raises:
        SettingError: If it is no such layer.

    Example:
        >>> conv = tc.nn.unmasked(trained)  # torchcell's MaskedGINConv  # doctest: +SKIP
        >>> conv.nn is trained.nn  # doctest: +SKIP
    """
    plain = plain_of(layer)
    if plain is None:
        raise SettingError(
            f"{type(layer).__name__} is no GINConv with a mask of edges",
            fix="shared_conv(layer, ...), which runs any layer",
        )
    return plain


def plain_of(layer: torch.nn.Module) -> G.GINConv | None:
    """See :func:`unmasked`; ``None`` for any other layer. A layer is looked at once, and when its parts are replaced."""
    if type(layer) is G.GINConv or not isinstance(layer, G.GINConv) or is_altered(layer):
        return None
    if not all(_MASK in inspect.signature(method).parameters for method in (layer.forward, layer.message)):
        return None
    known = _plain.get(layer)
    if layer not in _plain or (known and (known.nn is not layer.nn or known.eps is not layer.eps)):
        known = None
        if _is_plain_on_kept_edges(layer):
            known = G.GINConv(torch.nn.Identity())  # which initialises what it is given
            for name in ("nn", "eps", "aggr_module", "flow", "node_dim", "explain", "decomposed_layers"):
                setattr(known, name, getattr(layer, name))
        _plain[layer] = known
    return known


def _is_plain_on_kept_edges(layer: G.GINConv) -> bool:
    """Whether masked messages, no messages and a sum by hand are the same on a graph of five nodes."""
    index = torch.tensor([[0, 1, 2, 3, 0, 4, 2], [1, 0, 1, 2, 2, 4, 2]], device="cpu")
    mask = torch.tensor([True, False, True, True, False, True, True], device="cpu")
    x = torch.linspace(-1, 2, 15, device="cpu").view(5, 3)
    try:
        with torch.no_grad():
            probe: Any = copy.copy(layer)
            probe.__dict__["_modules"] = {**layer._modules, "nn": torch.nn.Identity()}
            eps = layer.eps.detach().cpu().float()
            for group in ("_parameters", "_buffers"):
                held = getattr(layer, group)
                probe.__dict__[group] = {**held, **({"eps": eps} if "eps" in held else {})}
            kept = index[:, mask]
            total = torch.zeros_like(x).index_add_(0, kept[1], x[kept[0]])
            wanted = total + (1 + eps) * x
            given = [probe(x, index, edge_mask=mask), probe(x, kept)]
    except Exception:  # a layer of some other kind
        return False
    return all(type(out) is torch.Tensor and torch.equal(out, wanted) for out in given)
