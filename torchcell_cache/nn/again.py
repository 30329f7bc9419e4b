"""What is computed in pieces and again in the backward pass, so that only its input is kept.

Row-wise modules in pieces that fit the processor's cache; any layer some samples at a time, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchcell_cache.nn.arguments import Arguments, Ends
from torchcell_cache.nn.edges import SharedEdges, kept_edges
from torchcell_cache.nn.modules import in_transform, is_separate, snapshot

PIECE = 4096
EDGES_AT_ONCE = 1 << 21
"""Edges of all samples of a piece together: what a layer makes of them takes some hundred bytes each."""


def run_again(run: Callable[..., Any], *given: Any, needs: Iterable[Tensor] = ()) -> Any:
    """A function whose steps are made again in the backward pass; torch refuses if what it needs was changed in between."""
    if not torch.is_grad_enabled():
        return run(*given)
    return checkpoint(lambda *all_: run(*all_[: len(given)]), *given, *needs, use_reentrant=False)


def pieces(layer: nn.Module, x: Ends, edges: SharedEdges, arguments: Arguments) -> int:
    """How many samples to take at a time; all, unless they are too many and the layer may be given fewer."""
    batch, num_edges = x[0].size(0), edges.edge_index.size(1)
    if batch * num_edges <= EDGES_AT_ONCE or arguments.others or in_transform() or not is_separate(layer):
        return batch
    return max(EDGES_AT_ONCE // max(num_edges, 1), 1)


def run_in_pieces(
    layer: nn.Module, x: Ends, edges: SharedEdges, of_edges: dict[str, Tensor], size: int
) -> Tensor:
    """The layer on ``size`` samples at a time, ``[batch * num_target, ...]``; what it makes of edges is not kept."""
    mask, same, layer = edges.mask(), x[0] is x[1], snapshot(layer)
    needs = (*layer.parameters(), *layer.buffers())

    def piece(part: Tensor, source: Tensor, target: Tensor | None, *values: Tensor) -> Any:
        num_target = (source if target is None else target).size(1)
        kept = kept_edges(part, edges.edge_index, source.size(1), num_target)
        flat = source.flatten(0, 1)
        both = flat if target is None else (flat, target.flatten(0, 1))
        named = {name: value[kept.edge] for name, value in zip(of_edges, values, strict=True)}
        return layer(both, kept.index, **named)

    outs = []
    for begin in range(0, len(mask), size):
        here = slice(begin, begin + size)
        given: Any = mask[here], x[0][here], None if same else x[1][here], *of_edges.values()
        outs.append(run_again(piece, *given, needs=needs))
    return torch.cat(outs)


class RowWise:
    """A row-wise module of which only the input is kept for the backward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        """The module's output."""
        parameters = list(self.module.parameters())
        out: Tensor = _InPieces.apply(self.module, x, *parameters)  # type: ignore[no-untyped-call]
        return out


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
