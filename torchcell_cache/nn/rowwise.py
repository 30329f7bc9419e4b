"""Modules that treat every row alike: computed in pieces that fit the processor's cache, and again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch_geometric.nn.dense import Linear

PIECE = 4096
_PLAIN = (
    *(
        nn.Identity,
        nn.Linear,
        nn.ReLU,
        nn.LeakyReLU,
        nn.ELU,
        nn.GELU,
        nn.SiLU,
        nn.Tanh,
        nn.Sigmoid,
        nn.Softplus,
    ),
    *(Linear, nn.CELU, nn.SELU, nn.Mish, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.PReLU),
)


def is_rowwise(module: Any) -> bool:
    """Whether it is known of a module that each row of its output is a function of that row alone, every time the same."""
    if not isinstance(module, nn.Module) or is_hooked(module) or "forward" in vars(module):
        return False
    if type(module) is nn.Sequential:
        return all(map(is_rowwise, module))
    if type(module) is nn.Dropout:
        return module.p == 0 or not module.training
    if type(module) is nn.LayerNorm:
        return len(module.normalized_shape) == 1
    return type(module) in _PLAIN


def is_hooked(module: nn.Module) -> bool:
    """Whether hooks see or change what a module does."""
    return bool(
        torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
        or any(
            value
            for name, value in vars(module).items()
            if name.endswith("_hooks") and "state_dict" not in name
        )
    )


def in_transform() -> bool:
    """Whether ``torch.func``, forward derivatives or a compiler look on, which know plain operations only."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
    )


def is_autocast(x: Tensor) -> bool:
    """Whether operations on a tensor change precision by themselves."""
    return torch.is_autocast_enabled(x.device.type)


class RowWise:
    """A row-wise module of which only the input is kept for the backward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        """The module's output."""
        parameters = list(self.module.parameters())
        out: Tensor = _InPieces.apply(self.module, x, *parameters)  # type: ignore[no-untyped-call]
        return out


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x, *parameters)
        out: Tensor | None = None
        for begin in range(0, len(x), PIECE):
            piece = module(x[begin : begin + PIECE])
            if out is None:
                out = piece.new_empty((len(x), *piece.shape[1:]))
            out[begin : begin + PIECE] = piece
        return module(x) if out is None else out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        known = torch._C._functorch
        several = known.peek_interpreter_stack() is not None or known.is_legacy_batchedtensor(grad)
        if torch.is_grad_enabled() or several:
            # The gradient is differentiated itself, or there are many: the whole at once, as plain operations.
            with torch.enable_grad():
                out = ctx.module(x if x.requires_grad else x.detach().requires_grad_())
            inputs = [t for t, need in zip((x, *parameters), wanted, strict=True) if need]
            more = torch.is_grad_enabled()
            found = iter(torch.autograd.grad(out, inputs, grad, create_graph=more, allow_unused=True))
            return None, *(next(found) if need else None for need in wanted)
        of_x = torch.empty_like(x) if wanted[0] else None
        of_parameters: list[Tensor | None] = [None] * len(parameters)
        used = [k for k, need in enumerate(wanted[1:]) if need]
        for begin in range(0, len(x), PIECE):
            with torch.enable_grad():
                piece = x[begin : begin + PIECE].detach().requires_grad_()
                out = ctx.module(piece)
            inputs = [piece, *(parameters[k] for k in used)]
            parts = torch.autograd.grad(out, inputs, grad[begin : begin + PIECE], allow_unused=True)
            if of_x is not None:
                of_x[begin : begin + PIECE] = parts[0] if parts[0] is not None else 0
            for k, part in zip(used, parts[1:], strict=True):
                so_far = of_parameters[k]
                of_parameters[k] = part if so_far is None or part is None else so_far.add_(part)
        return None, of_x, *of_parameters
