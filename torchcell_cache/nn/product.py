"""The adjacency times the features of all samples, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from torchcell_cache.graph.lasting import lasting
from torchcell_cache.nn.adjacency import Adjacency, Compressed, Matrices

WIDE_BELOW = 2048
"""Numbers in a sample's features below which a call for each sample costs more than it saves."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def multiply(
    adjacency: Adjacency,
    x: Tensor,
    weight: Tensor | None = None,
    *,
    loops: bool = True,
    source_kept: Tensor | None = None,
    target_kept: Tensor | None = None,
    root: float = 0.0,
) -> Tensor:
    """Sum over the edges of all samples: products of a sparse and a dense matrix.

    Args:
        adjacency: The edges.
        x: ``[batch, num_source, num_features]``.
        weight: Constant edge weights, ``[num_edges]``, or ``None``.
        loops: Whether edges from a node to itself count.
        source_kept: Nodes whose features are sent, ``[batch, num_source] bool``; ``None`` for all.
        target_kept: Nodes that receive, ``[batch, num_target] bool``; ``None`` for all.
        root: What of a node's own features is added, also of a hidden one; needs as many targets as sources.

    Returns:
        ``[batch, num_target, num_features]``, of ``x``'s dtype.
    """
    # The products in half precision are not on every device.
    matrices = adjacency.matrices(weight, torch.promote_types(x.dtype, torch.float32), loops=loops)
    hidden = [None if kept is None else ~kept for kept in (source_kept, target_kept)]
    out: Tensor = _apply(x, matrices, *hidden, root)
    return out


@lasting
def degrees(
    adjacency: Adjacency,
    batch: int,
    dtype: torch.dtype,
    weight: Tensor | None = None,
    *,
    loops: bool = True,
    source_kept: Tensor | None = None,
    target_kept: Tensor | None = None,
) -> Tensor:
    """Number of kept edges into each target, or the sum of their weights, ``[batch, num_target, 1]``."""
    ones = torch.ones((batch, adjacency.shape[1], 1), dtype=dtype, device=adjacency.column.device)
    hidden = [None if kept is None else ~kept for kept in (source_kept, target_kept)]
    return _product(adjacency.matrices(weight, dtype, loops=loops).matrix, ones, hidden[0], hidden[1])


class _SparseProduct(torch.autograd.Function):
    """``matrix @ x`` for all samples; its gradient is the product with the transpose, which is at hand.

    Linear in ``x``: differentiable any number of times, forwards and backwards, and over further batch dimensions.
    """

    @staticmethod
    def forward(
        x: Tensor,
        matrices: Matrices,
        hidden_source: Tensor | None,
        hidden_target: Tensor | None,
        root: float,
    ) -> Tensor:
        return _product(matrices.matrix, x, hidden_source, hidden_target, root)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.matrices, *hidden, ctx.root = inputs
        ctx.save_for_backward(*hidden)
        ctx.save_for_forward(*hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, None, None, None, None]:
        hidden_source, hidden_target = ctx.saved_tensors
        out = _apply(grad, ctx.matrices.t, hidden_target, hidden_source, ctx.root)
        return out, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor, *_: None) -> Any:
        return _apply(x, ctx.matrices, *ctx.saved_tensors, ctx.root)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, matrices: Matrices, *rest: Any) -> Any:
        """A further dimension is a larger batch."""
        size = info.batch_size

        def flat(value: Tensor | None, dim: int | None) -> Tensor | None:
            if value is None:
                return None
            whole = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            return whole.flatten(0, 1)

        masks = [flat(value, dim) for value, dim in zip(rest[:2], in_dims[2:4], strict=True)]
        return _apply(flat(x, in_dims[0]), matrices, *masks, rest[2]).unflatten(0, (size, -1)), 0


def _apply(*inputs: Any) -> Any:
    return _SparseProduct.apply(*inputs)  # type: ignore[no-untyped-call]


def _product(
    csr: Compressed, x: Tensor, hidden_in: Tensor | None, hidden_out: Tensor | None, root: float = 0.0
) -> Tensor:
    """``[batch, n, features]`` to ``[batch, m, features]``; ``hidden_*`` are ``[batch, n or m] bool``."""
    with record_function("torchcell_cache::product"), torch.autocast(x.device.type, enabled=False):
        if x.device.type == "cpu" and x.size(1) * x.size(2) >= WIDE_BELOW and len(csr.column):
            return _by_sample(csr, x, hidden_in, hidden_out, root)
        out = _wide(csr, x, hidden_in, hidden_out)
        return out.add_(x, alpha=root) if root else out


def _by_sample(
    csr: Compressed, x: Tensor, hidden_in: Tensor | None, hidden_out: Tensor | None, root: float
) -> Tensor:
    """In the layout samples have: the features of one sample stay in the processor's second cache."""
    out = x.new_empty((len(x), csr.shape[0], x.size(2)))
    sent = x.new_empty(x.shape[1:], dtype=csr.values.dtype)
    lost_in, lost_out = hidden_rows(hidden_in, len(x)), hidden_rows(hidden_out, len(x))
    for sample in range(len(x)):
        sent.copy_(x[sample])
        if len(lost_in[sample]):
            sent.index_fill_(0, lost_in[sample], 0)
        received = gather_sum(csr, sent)
        if len(lost_out[sample]):
            received.index_fill_(0, lost_out[sample], 0)
        if root:
            received.add_(x[sample], alpha=root)
        out[sample].copy_(received)
    return out


def gather_sum(csr: Compressed, x: Tensor) -> Tensor:
    """One sample's product, ``[n, features]`` to ``[m, features]``; torch is quickest at single precision as bags."""
    if x.dtype == torch.float32:
        bags, _, _, _ = torch._embedding_bag_forward_only(
            x, csr.column, csr.row_ptr, False, 0, False, csr.values, include_last_offset=True
        )
        return bags
    return csr.sparse @ x


def hidden_rows(hidden: Tensor | None, batch: int) -> Sequence[Tensor]:
    """The hidden rows of every sample."""
    if hidden is None:
        return [torch.empty(0, dtype=torch.int64, device="cpu")] * batch
    return torch.split(hidden.nonzero()[:, 1], hidden.sum(1).tolist())


def _wide(csr: Compressed, x: Tensor, hidden_in: Tensor | None, hidden_out: Tensor | None) -> Tensor:
    """All samples side by side, one product: what suits a GPU.

    Features are laid out node by node and hidden in that fresh copy, so masking makes no copy of its own.
    """
    batch, _, features = x.shape
    columns = x.transpose(0, 1).to(csr.values.dtype, memory_format=torch.contiguous_format, copy=True)
    if hidden_in is not None:
        columns.masked_fill_(hidden_in.t().unsqueeze(-1), 0)
    out = csr.sparse @ columns.view(len(columns), batch * features)
    out = out.view(csr.shape[0], batch, features)
    if hidden_out is not None:
        out.masked_fill_(hidden_out.t().unsqueeze(-1), 0)
    return out.transpose(0, 1).to(x.dtype, memory_format=torch.contiguous_format, copy=True)
