"""A ``GINConv`` that multiplies messages with a mask of edges (torchcell's ``MaskedGINConv``) as the plain layer that it is.

On kept edges alone such a layer is ``GINConv``: a message times 0 adds an exact 0. It is recognised by what it takes and by one
look at a tiny graph, without importing torchcell; whatever behaves in another way runs as it is.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch_geometric.nn import GINConv

from torchcell_cache.errors import SettingError
from torchcell_cache.nn.modules import is_altered

_MASK = "edge_mask"
_plain: WeakKeyDictionary[torch.nn.Module, GINConv | None] = WeakKeyDictionary()


def unmasked(layer: torch.nn.Module) -> GINConv:
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


def plain_of(layer: torch.nn.Module) -> GINConv | None:
    """See :func:`unmasked`; ``None`` for any other layer. A layer is looked at once, and when its parts are replaced."""
    if type(layer) is GINConv or not isinstance(layer, GINConv) or is_altered(layer):
        return None
    if not all(_MASK in inspect.signature(method).parameters for method in (layer.forward, layer.message)):
        return None
    known = _plain.get(layer)
    if layer not in _plain or (
        known is not None and (known.nn is not layer.nn or known.eps is not layer.eps)
    ):
        known = _plain[layer] = _made(layer) if _is_plain_on_kept_edges(layer) else None
    return known


def _made(layer: GINConv) -> GINConv:
    plain = GINConv(torch.nn.Identity())  # which initialises what it is given
    plain.nn, plain.eps, plain.aggr_module = layer.nn, layer.eps, layer.aggr_module
    for name in ("flow", "node_dim", "explain", "decomposed_layers"):
        setattr(plain, name, getattr(layer, name))
    return plain


def _is_plain_on_kept_edges(layer: GINConv) -> bool:
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
