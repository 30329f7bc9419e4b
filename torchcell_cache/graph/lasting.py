"""What is kept serves every later caller, whatever the first one was doing; and what a profiler calls it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.profiler import record_function

P = ParamSpec("P")
T = TypeVar("T")


def lasting(make: Callable[P, T]) -> Callable[P, T]:
    """A function whose tensors are ordinary ones: not of inference mode, of a ``torch.func`` transform or of a trace.

    Evaluation under ``torch.inference_mode()`` may be the first to read a store that is trained on afterwards.
    """

    @functools.wraps(make)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        in_transform = torch._C._functorch.peek_interpreter_stack() is not None
        if not in_transform and not torch.is_inference_mode_enabled():
            return make(*args, **kwargs)
        with torch.inference_mode(False), torch._C._DisableFuncTorch():
            return make(*args, **kwargs)

    out: Any = torch.compiler.disable(run)  # type: ignore[no-untyped-call]
    return out  # type: ignore[no-any-return]


def ranged(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function that a profiler shows as ``torchcell_cache::name``; without one, a range would cost as much as a batch."""

    def named(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            if torch.compiler.is_compiling() or not torch._C._autograd._profiler_enabled():
                return function(*args, **kwargs)
            with record_function(f"torchcell_cache::{name}"):
                return function(*args, **kwargs)

        return run

    return named


@lasting
def copied_on_write(value: Tensor) -> Tensor:
    """A copy in memory that torch can share until it is written; its first sharing is not safe in two threads."""
    copied = value.detach().clone()
    lazy_clone(copied)
    return copied


def lazy_clone(value: Tensor) -> Tensor:
    """What :func:`copied_on_write` gave, copied when it is written."""
    made: Tensor = value._lazy_clone() if hasattr(value, "_lazy_clone") else value.clone()
    return made
