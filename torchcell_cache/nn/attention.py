"""Attention on the one edge list: scores per edge, softmax over sorted targets, one product; sample by sample.

Three linear steps - spread over edges, sum over a target's edges, products at edges - are each other's derivatives, so
everything made of them has derivatives of any order. Only a layer's node features are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function
from torch_geometric.nn import GATConv, GATv2Conv, MessagePassing, TransformerConv
from torch_geometric.nn.aggr import SumAggregation

from torchcell_cache.nn.adjacency import Adjacency, Compressed, adjacency_of
from torchcell_cache.nn.again import some_at_a_time
from torchcell_cache.nn.edges import Ends, SharedEdges
from torchcell_cache.nn.modules import Seen, in_transform, is_autocast, snapshot, why_not_plain
from torchcell_cache.nn.product import gather_sum, hidden_rows

ATTENTION = (GATConv, GATv2Conv, TransformerConv)
BLOCK = 1 << 17
"""Numbers of edges' features that are looked at together where a score needs all of them: they stay in the second cache."""


def _is_batched(*values: Tensor) -> bool:
    """Whether several gradients come at once, as one tensor that only plain operations can take."""
    known = torch._C._functorch
    return any(known.is_legacy_batchedtensor(v) or known.is_batchedtensor(v) for v in values)


def _spread(edges: Adjacency, end: int, x: Tensor) -> Tensor:
    """``[n]`` to edges, by target (``end`` 0) or by source (1)."""
    return x.index_select(0, edges.column if end else edges.row)


def _collected(edges: Adjacency, end: int, x: Tensor) -> Tensor:
    """Sums over the edges of each target or source."""
    if _is_batched(x):
        return x.new_zeros(edges.shape[end]).index_add(0, edges.column if end else edges.row, x)
    x = x.index_select(0, edges.by_source) if end else x.contiguous()
    ptr = edges.ptr_t if end else edges.ptr
    return torch.segment_reduce(x, "sum", offsets=ptr, initial=0, unsafe=True)


class _Along(torch.autograd.Function):
    """A linear function with its transpose, for autograd alone: one that knows transforms costs 30 us more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Any, back: Any) -> Tensor:
        ctx.ways = back, there
        return there(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, None, None]:
        return _Along.apply(grad, *ctx.ways), None, None  # type: ignore[no-untyped-call]


def _ways(edges: Adjacency, end: int) -> tuple[Any, Any]:
    return partial(_spread, edges, end), partial(_collected, edges, end)


class _Weighted(torch.autograd.Function):
    """Sums of features times weights over the edges of each target, ``[num_target, k]``; or of each source."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, edges: Adjacency, transposed: bool) -> Tensor:
        ctx.edges, ctx.transposed = edges, transposed
        ctx.save_for_backward(weight, x)
        if _is_batched(weight, x):
            ends = (edges.column, edges.row) if transposed else (edges.row, edges.column)
            terms = x.index_select(0, ends[1]) * weight.unsqueeze(-1)
            return terms.new_zeros((edges.shape[int(transposed)], x.size(1))).index_add(0, ends[0], terms)
        return gather_sum(edges.csr(weight, transposed=transposed), x.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, Any, None, None]:
        weight, x = ctx.saved_tensors
        ends = (x, grad) if ctx.transposed else (grad, x)
        of_weight = _Products.apply(*ends, ctx.edges) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        of_x = None
        if ctx.needs_input_grad[1]:
            of_x = _Weighted.apply(weight, grad, ctx.edges, not ctx.transposed)  # type: ignore[no-untyped-call]
        return of_weight, of_x, None, None


class _Products(torch.autograd.Function):
    """Inner product of each edge's target and source features, ``[num_entries]``."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, source: Tensor, edges: Adjacency) -> Tensor:
        ctx.edges = edges
        ctx.save_for_backward(target, source)
        too_many = len(edges.column) > edges.shape[0] * edges.shape[1]  # torch has no such pattern
        if too_many or _is_batched(target, source):
            return (target.index_select(0, edges.row) * source.index_select(0, edges.column)).sum(1)
        pattern = edges.csr(target.new_zeros(len(edges.column))).sparse
        out: Tensor = torch.sparse.sampled_addmm(pattern, target.contiguous(), source.t(), beta=0).values()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, Any, None]:
        target, source = ctx.saved_tensors
        of_target = _Weighted.apply(grad, source, ctx.edges, False)  # type: ignore[no-untyped-call]
        of_source = _Weighted.apply(grad, target, ctx.edges, True)  # type: ignore[no-untyped-call]
        return of_target, of_source, None


class _PairScores(torch.autograd.Function):
    """``leaky_relu(source + target) . att`` of each edge, a block of edges at a time."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, source: Tensor, target: Tensor, att: Tensor, edges: Adjacency, slope: float
    ) -> Tensor:
        ctx.edges, ctx.slope = edges, slope
        ctx.save_for_backward(source, target, att)
        out = source.new_empty(len(edges.column))
        for part, _ in _blocks(edges.ptr, att):
            both = source.index_select(0, edges.column[part]).add_(target.index_select(0, edges.row[part]))
            torch.mv(F.leaky_relu_(both, slope), att, out=out[part])
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        source, target, att = ctx.saved_tensors
        edges, slope = ctx.edges, ctx.slope
        if torch.is_grad_enabled() or _is_batched(grad):  # in plain operations
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                given = [
                    t if again else t.detach().requires_grad_(t.requires_grad) for t in (source, target, att)
                ]
                both = given[0][edges.column.long()] + given[1][edges.row.long()]
                whole = F.leaky_relu(both, slope) @ given[2]
            wanted = [t for t in given if t.requires_grad]
            found = iter(torch.autograd.grad(whole, wanted, grad, create_graph=again))
            return *(next(found) if t.requires_grad else None for t in given), None, None
        outs = [torch.zeros_like(t) for t in (source, target, att)]
        # A row's edges lie together by either end: they are summed, nothing is scattered.
        for end, ptr in enumerate((edges.ptr_t, edges.ptr)):
            by_end = [edges.column, edges.row, grad]
            if not end:
                by_end = [v.index_select(0, edges.by_source) for v in by_end]
            for part, rows in _blocks(ptr, att):
                column, row, weight = (v[part] for v in by_end)
                both = source.index_select(0, column).add_(target.index_select(0, row))
                slopes = torch.ops.aten.leaky_relu_backward(torch.ones_like(both), both, slope, False)
                place = torch.arange(len(both), dtype=ptr.dtype, device=ptr.device)
                offsets = ptr[rows.start : rows.stop + 1] - part.start
                own = Compressed(offsets, place, weight, (rows.stop - rows.start, len(both)))
                outs[end][rows] = gather_sum(own, slopes).mul_(att)
                if end:
                    outs[2].add_(torch.mv(both.mul_(slopes).t(), weight))
        return *outs, None, None


def _blocks(ptr: Tensor, att: Tensor) -> list[tuple[slice, slice]]:
    """Entries of some whole rows at a time, and these rows."""
    size, num_entries = max(BLOCK // len(att), 1), int(ptr[-1])
    marks = torch.arange(0, num_entries + size, size, dtype=ptr.dtype, device=ptr.device)
    rows = torch.unique(torch.searchsorted(ptr, marks).clamp_(max=len(ptr) - 1))
    both = zip(pairwise(ptr[rows].tolist()), pairwise(rows.tolist()), strict=True)
    return [(slice(*entries), slice(*whole)) for entries, whole in both]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def why_not_attention(layer: Any, x: Ends, edges: SharedEdges, fields: Mapping[str, Any]) -> str | None:
    """Why attention on the one edge list would not be exact or not pay here, or ``None``."""
    reason = why_not_plain(layer, x, edges, ATTENTION, (SumAggregation,), 0)
    if reason is not None:
        return reason
    name = type(layer).__name__
    if fields or layer.lin_edge is not None:
        return f"{name} looks at {sorted(fields) or 'edge attributes'}"
    if x[0].dtype != x[1].dtype or x[0].dtype not in (torch.float32, torch.float64):
        return "features are not of single or double precision"
    if edges.edge_index.size(1) + x[1].size(1) >= 2**31:
        return "edges are too many"
    if getattr(layer, "add_self_loops", False) and x[0] is not x[1]:
        return f"{name} adds loops between two sets of nodes"
    if layer.training and layer.dropout > 0:
        return f"{name} draws dropout for every edge"
    if (
        in_transform()
        or is_autocast(x[0])
        or x[0].device.type != "cpu"
        or not torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        or min(end.numel() for end in x) == 0
    ):
        return "attention on the one edge list is for processors, as plain operations in one precision"
    return None


def run_attention(layer: MessagePassing, x: Ends, edges: SharedEdges) -> Tensor | None:
    """Run the layer's own forward with scores, softmax and sums made on the shared edge list.

    Returns:
        ``[batch * num_target, num_out]``; ``None`` where infinite or undefined features would meet weights of zero.
    """
    num_source, num_target = x[0].size(1), x[1].size(1)
    own_loops = bool(getattr(layer, "add_self_loops", False))
    by_target = adjacency_of(edges.edge_index, num_source, num_target, own_loops=own_loops)
    layer = snapshot(layer)

    def sample(source: Tensor, target: Tensor | None, lost_source: Tensor, lost_target: Tensor) -> Tensor:
        attend = _Attend(layer, by_target, by_target.hidden(lost_source, lost_target))
        # Scores are made where they are needed, of what the layer makes them of.
        instead = {"edge_updater": lambda edge_index, alpha=None, **_: alpha, "propagate": attend.propagate}
        seen = Seen(layer, add_self_loops=False, **instead)
        ends = source[0] if target is None else (source[0], target[0])
        return type(layer).forward(seen, ends, edges.edge_index)  # type: ignore[no-any-return]

    lost = [hidden_rows(None if k is None else ~k, len(x[0])) for k in (edges.source_kept, edges.target_kept)]
    with record_function("torchcell_cache::attention"):
        try:
            return some_at_a_time(sample, x, 1, *lost, needs=(*layer.parameters(), *layer.buffers()))
        except _NotFiniteError:
            return None


class _NotFiniteError(Exception):
    """Zero times infinity is not zero."""


class _Attend:
    """One sample's stand-in for ``propagate``, on ``[num_nodes, heads, k]``."""

    def __init__(self, layer: Any, edges: Adjacency, hidden: Tensor | None) -> None:
        self.layer, self.edges, self.hidden = layer, edges, hidden

    def propagate(self, edge_index: Tensor, **given: Any) -> Tensor:
        """The layer's messages; what is given depends on the kind of layer."""
        if isinstance(self.layer, TransformerConv):
            values, ends = given["value"], (given["query"], given["key"])
        else:
            values, ends = given["x"][0], given["alpha" if isinstance(self.layer, GATConv) else "x"]
        if not all(bool(part.detach().isfinite().all()) for part in (values, *ends)):
            raise _NotFiniteError
        heads = []
        for head in range(values.size(1)):
            scores = self._scores(head, *(end[:, head] for end in ends))
            if self.hidden is not None:
                scores = scores.masked_fill(self.hidden, -torch.inf)
            heads.append(self._softmax_sum(scores, values[:, head]))
        return torch.stack(heads, dim=1)

    def _softmax_sum(self, scores: Tensor, values: Tensor) -> Tensor:
        edges = self.edges
        with torch.no_grad():
            top = torch.segment_reduce(scores, "max", offsets=edges.ptr, initial=-torch.inf, unsafe=True)
            top = top.masked_fill_(top == -torch.inf, 0).index_select(0, edges.row)
        weight = (scores - top).exp()
        total = _Along.apply(weight, *_ways(edges, 0)[::-1]) + 1e-16  # type: ignore[no-untyped-call]
        out: Tensor = _Weighted.apply(weight, values, edges, False) / total.unsqueeze(1)  # type: ignore[no-untyped-call]
        return out

    def _scores(self, head: int, source: Tensor, target: Tensor) -> Tensor:
        """Of each edge; a transformer's ends are its query and key."""
        layer, edges = self.layer, self.edges
        if isinstance(layer, TransformerConv):
            query = source / float(layer.out_channels) ** 0.5
            return _Products.apply(query, target, edges)  # type: ignore[no-untyped-call,no-any-return]
        if isinstance(layer, GATConv):
            of_target = _Along.apply(target, *_ways(edges, 0))  # type: ignore[no-untyped-call]
            both = of_target + _Along.apply(source, *_ways(edges, 1))  # type: ignore[no-untyped-call]
            return F.leaky_relu(both, layer.negative_slope)
        att, slope = layer.att[0, head], layer.negative_slope
        return _PairScores.apply(source, target, att, edges, slope)  # type: ignore[no-untyped-call,no-any-return]
