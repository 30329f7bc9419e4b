"""What is computed in pieces and again in the backward pass, so that only its input is kept.

Row-wise modules in pieces that fit the processor's cache; any layer some samples at a time, in bounded memory.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from torchcell_cache.graph.lasting import lasting
from torchcell_cache.nn.edges import Ends, SharedEdges, kept_edges
from torchcell_cache.nn.modules import in_transform, is_hooked, is_separate, snapshot

PIECE = 4096
LOOKED_AT = 1 << 12
_LOOKED: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
EDGES_AT_ONCE = 1 << 18
"""Edges of all samples of a piece together: what PNA makes of them takes 1.2 KB each, and larger pieces are not faster."""


def some_at_a_time(
    run: Callable[..., Any], x: Ends, size: int, *each: Iterable[Any], needs: Iterable[Tensor]
) -> Tensor:
    """``run(source, target or None, *each)`` of ``size`` samples after others; what it makes of them is not kept.

    Its steps are made again in the backward pass; torch refuses if what it ``needs`` was changed in between.
    """
    # Split at once: the gradient of a slice would be as large as the whole, for each of them.
    sources, needed = torch.split(x[0], size), tuple(needs)
    targets = [None] * len(sources) if x[0] is x[1] else torch.split(x[1], size)
    parts = list(zip(sources, targets, *each, strict=True))
    if not torch.is_grad_enabled():
        return torch.cat([run(*part) for part in parts])
    count = 2 + len(each)
    again = partial(checkpoint, lambda *given: run(*given[:count]), use_reentrant=False)
    return torch.cat([again(*part, *needed) for part in parts])


def pieces(layer: nn.Module, x: Ends, edges: SharedEdges, of_edges: dict[str, Tensor]) -> int:
    """How many samples to take at a time; all, unless they are too many and the layer may be given fewer."""
    batch, num_edges = x[0].size(0), edges.edge_index.size(1)
    at_once = EDGES_AT_ONCE if x[0].device.type == "cpu" else 8 * EDGES_AT_ONCE
    if batch * num_edges <= at_once or in_transform():
        return batch
    if not is_separate(layer) and not _looks_separate(layer, x, edges, of_edges):
        return batch
    return max(at_once // max(num_edges, 1), 1)


@lasting
def _looks_separate(layer: Any, x: Ends, edges: SharedEdges, of_edges: dict[str, Tensor]) -> bool:
    """Whether a layer nobody knows gives two samples together what it gives each alone, and keeps nothing of them.

    One look at a copy of it in each of its modes, on random features and the first edges, without dropout.
    """
    if not isinstance(layer, nn.Module) or any(map(is_hooked, layer.modules())):
        return False
    known = _LOOKED.setdefault(layer, {})
    if layer.training in known or not x[0].is_floating_point():
        return known.get(layer.training, False)
    random = torch.Generator("cpu").manual_seed(0)

    def like(end: Tensor) -> Tensor:
        drawn = torch.randn(2, *end.shape[1:], generator=random, device="cpu")
        return torch.stack([drawn[0], 3 * drawn[1] + 1]).to(end)

    ends = (like(x[0]),) * 2 if x[0] is x[1] else (like(x[0]), like(x[1]))
    few = SharedEdges(edges.edge_index[:, :LOOKED_AT], edges.mask()[:2, :LOOKED_AT])
    given, separate = {name: value[:LOOKED_AT] for name, value in of_edges.items()}, False
    with contextlib.suppress(Exception), torch.no_grad(), _NoDropout():
        probe = copy.deepcopy(layer)
        before = _held(probe)
        together, alone = (run_in_pieces(probe, ends, few, given, size) for size in (2, 1))
        off = torch.finfo(together.dtype).eps ** 0.5 * float(together.abs().max().clamp(min=1))
        same = all(a is b and n == m for (a, n), (b, m) in zip(before, _held(probe), strict=True))
        separate = same and bool(((together - alone).abs() <= off).all())
    known[layer.training] = separate
    return separate


class _NoDropout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "dropout" in getattr(func, "__name__", ""):
            return args[0] if args else kwargs["input"]
        return func(*args, **(kwargs or {}))


def _held(module: nn.Module) -> list[tuple[Any, Any]]:
    """What a module holds, such that anything it keeps or changes shows."""
    held = [value for part in module.modules() for value in vars(part).values()]
    sizes = [(value, len(value) if isinstance(value, list | dict | set) else None) for value in held]
    return [*sizes, *((t, t._version) for t in (*module.parameters(), *module.buffers()))]


def run_in_pieces(
    layer: nn.Module, x: Ends, edges: SharedEdges, of_edges: dict[str, Tensor], size: int
) -> Tensor:
    """The layer on ``size`` samples at a time, ``[batch * num_target, ...]``; what it makes of edges is not kept."""
    layer = snapshot(layer)
    needs = (*layer.parameters(), *layer.buffers(), *of_edges.values())

    def piece(source: Tensor, target: Tensor | None, part: Tensor) -> Any:
        num_target = (source if target is None else target).size(1)
        kept = kept_edges(part, edges.edge_index, source.size(1), num_target)
        flat = source.flatten(0, 1)
        both = flat if target is None else (flat, target.flatten(0, 1))
        return layer(both, kept.index, **{name: value[kept.edge] for name, value in of_edges.items()})

    return some_at_a_time(piece, x, size, torch.split(edges.mask(), size), needs=needs)


def run_rowwise(module: nn.Module, x: Tensor) -> Tensor:
    """A row-wise module's output; only its input is kept for the backward pass."""
    return _InPieces.apply(module, x, *module.parameters())  # type: ignore[no-untyped-call,no-any-return]


def _harmless(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A module that may write into what it is given, on a copy."""
    writes = any(getattr(part, "inplace", False) for part in module.modules())
    return (lambda x: module(x.clone())) if writes else module


class _InPieces(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, module: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.module, run = snapshot(module), _harmless(module)
        ctx.save_for_backward(x, *parameters)
        out: Tensor | None = None
        for begin in range(0, len(x), PIECE):
            piece = run(x[begin : begin + PIECE])
            if out is None:
                out = piece.new_empty((len(x), *piece.shape[1:]))
            out[begin : begin + PIECE] = piece
        return run(x) if out is None else out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        known = torch._C._functorch
        several = known.peek_interpreter_stack() is not None or known.is_legacy_batchedtensor(grad)
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Other tensors of the same values: hooks of the parameters wait for the gradient of the whole.
            stand_in = [
                p.view_as(p) if again else p.detach().requires_grad_(p.requires_grad) for p in parameters
            ]
            module = snapshot(
                ctx.module, {id(p): s for p, s in zip(ctx.module.parameters(), stand_in, strict=True)}
            )
        run = _harmless(module)
        if again or several:
            # The gradient is differentiated itself, or there are many: the whole at once, as plain operations.
            with torch.enable_grad():
                own = x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_()
                out = run(own)
            inputs = [t for t, need in zip((own, *stand_in), wanted, strict=True) if need]
            found = iter(torch.autograd.grad(out, inputs, grad, create_graph=again, allow_unused=True))
            return None, *(next(found) if need else None for need in wanted)
        of_x = torch.empty_like(x) if wanted[0] else None
        of_parameters: list[Tensor | None] = [None] * len(parameters)
        used = [k for k, need in enumerate(wanted[1:]) if need]
        for begin in range(0, len(x), PIECE):
            with torch.enable_grad():
                piece = x[begin : begin + PIECE].detach().requires_grad_()
                out = run(piece)
            inputs = [piece, *(stand_in[k] for k in used)]
            parts = torch.autograd.grad(out, inputs, grad[begin : begin + PIECE], allow_unused=True)
            if of_x is not None:
                of_x[begin : begin + PIECE] = parts[0] if parts[0] is not None else 0
            for k, part in zip(used, parts[1:], strict=True):
                so_far = of_parameters[k]
                of_parameters[k] = part if so_far is None or part is None else so_far.add_(part)
        return None, of_x, *of_parameters
