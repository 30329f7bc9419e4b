"""The adjacency times the features of all samples, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from torchcell_cache.nn.adjacency import Compressed, Matrices, adjacency_of, check_ends
from torchcell_cache.nn.edges import SharedEdges

WIDE_BELOW = 2048
"""Numbers in a sample's features below which a call for each sample costs more than it saves."""


def multiply(
    edges: SharedEdges,
    num_target: int,
    x: Tensor,
    weight: Tensor | None = None,
    *,
    loops: bool = True,
    root: float = 0.0,
    constant: bool = False,
) -> Tensor:
    """Sum over the kept edges of all samples: products of a sparse and a dense matrix.

    Args:
        edges: The edges, kept if and only if their ends are.
        num_target: Number of targets.
        x: ``[batch, num_source, num_features]``.
        weight: Constant edge weights, ``[num_edges]``, or ``None``.
        loops: Whether edges from a node to itself count.
        root: What of a node's own features is added, also of a hidden one; needs as many targets as sources.
        constant: Whether nothing is to be differentiated.

    Returns:
        ``[batch, num_target, num_features]``, of ``x``'s dtype.
    """
    gone_in, gone_out = (None if kept is None else ~kept for kept in (edges.source_kept, edges.target_kept))
    if torch.compiler.is_compiling():
        out: Tensor = _compiled(x, edges.edge_index, weight, gone_in, gone_out, num_target, loops, False)
        return out if not root else out + root * x
    if any(gone is not None and _is_mapped(gone) for gone in (gone_in, gone_out)):
        # Masks of many models at once: a linear map holds its own, these are plain operations around it.
        x = x if gone_in is None else x.masked_fill(gone_in.unsqueeze(-1), 0)
        bare = SharedEdges(edges.edge_index, edges.edge_mask)
        out = multiply(bare, num_target, x, weight, loops=loops)
        return out if gone_out is None else out.masked_fill(gone_out.unsqueeze(-1), 0)
    matrix, transpose = _matrices(edges.edge_index, (x.size(1), num_target), weight, x.dtype, loops)
    there = partial(_product, matrix, gone_in, gone_out, root)
    back = partial(_product, transpose, gone_out, gone_in, root)
    out = there(x) if constant else linear_map((there, back), x)
    return out


def _is_mapped(value: Tensor) -> bool:
    """Whether ``vmap`` has a further dimension of a tensor, whatever other transforms are around it."""
    known = torch._C._functorch
    while known.is_functorch_wrapped_tensor(value) and not known.is_batchedtensor(value):
        value = known.get_unwrapped(value)
    return known.is_batchedtensor(value)


def _matrices(
    edge_index: Tensor, ends: tuple[int, int], weight: Tensor | None, dtype: torch.dtype, loops: bool
) -> Matrices:
    wide = torch.promote_types(dtype, torch.float32)  # products in half precision are not on every device
    return adjacency_of(edge_index, *ends).matrices(weight, wide, loops=loops)


@torch.library.custom_op(
    "torchcell_cache::kept_sum",
    mutates_args=(),
    schema="(Tensor x, Tensor edge_index, Tensor? weight, Tensor? hidden_in, Tensor? hidden_out, SymInt num_out, bool loops, "
    "bool transposed) -> Tensor",
)
def _compiled(
    x: Tensor,
    edge_index: Tensor,
    weight: Tensor | None,
    hidden_in: Tensor | None,
    hidden_out: Tensor | None,
    num_out: int,
    loops: bool,
    transposed: bool,
) -> Tensor:
    """The product as an operator that a compiler does not look into; the edges' matrices are found by their list."""
    ends = (num_out, x.size(1)) if transposed else (x.size(1), num_out)
    check_ends(edge_index, *ends)
    both = _matrices(edge_index, ends, weight, x.dtype, loops)
    return _product(both.transpose if transposed else both.matrix, hidden_in, hidden_out, 0.0, x)


@_compiled.register_fake
def _(
    x: Tensor, edge_index: Tensor, weight: Any, hidden_in: Any, hidden_out: Any, num_out: int, *_: bool
) -> Tensor:
    return x.new_empty((x.size(0), num_out, x.size(2)))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *tensors, _, ctx.loops, ctx.transposed = inputs
    ctx.num_in = x.size(1)
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    index, weight, hidden_in, hidden_out = ctx.saved_tensors
    out = _compiled(grad, index, weight, hidden_out, hidden_in, ctx.num_in, ctx.loops, not ctx.transposed)
    return out, *[None] * 7


_compiled.register_autograd(_backward, setup_context=_keep)


def _product(
    csr: Compressed, hidden_in: Tensor | None, hidden_out: Tensor | None, root: float, x: Tensor
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


def linear_map(both: Any, *rows: Tensor) -> Any:
    """A linear function of rows, given with its transpose, as one that autograd knows."""
    return _Linear.apply(both, *rows)  # type: ignore[no-untyped-call]


class _Linear(torch.autograd.Function):
    """See :func:`linear_map`. Rows may have any width: a further dimension of ``vmap`` is more width."""

    @staticmethod
    def forward(both: Any, *rows: Tensor) -> Any:
        return both[0](*rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.both = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        out = linear_map(ctx.both[::-1], *grads)
        return None, *((out,) if isinstance(out, Tensor) else out)

    @staticmethod
    def jvp(ctx: Any, _: None, *rows: Tensor) -> Any:
        return linear_map(ctx.both, *rows)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], both: Any, *rows: Tensor) -> Any:
        wide = []
        for value, dim in zip(rows, in_dims[1:], strict=True):
            several = value.unsqueeze(-1).expand(*value.shape, info.batch_size) if dim is None else value
            wide.append((several if dim is None else several.movedim(dim, -1)).flatten(-2))
        out = linear_map(both, *wide)
        outs = [
            value.unflatten(-1, (-1, info.batch_size))
            for value in ([out] if isinstance(out, Tensor) else out)
        ]
        if isinstance(out, Tensor):
            return outs[0], outs[0].dim() - 1
        return tuple(outs), tuple(value.dim() - 1 for value in outs)
