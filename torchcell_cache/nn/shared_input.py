"""A layer whose samples all enter with the same features: one graph's sums, and anew only the rows that deletions touch.

A sample's sum at a node differs from the base graph's iff the node or one of its sources is deleted. Such rows follow
the base graph's rows as ``[num_target + num_touched, features]``, the layer's own row-wise parts run on these, and the
result is laid out for all samples at the end. What is deleted is subtracted in double precision; a sum that mostly
cancels is added up again from what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from torchcell_cache.nn.adjacency import Compressed, Matrices, offsets_of, ranges

CANCELS = {torch.float64: 2.0**-8}
"""Share of what was subtracted below which the rest is not trusted; ``2**-26`` for what is not double itself."""


def shared_input(x: Tensor, batch: Any) -> Tensor:
    """The same node features for every sample, in no more memory, as the first layer knows them.

    :func:`shared_conv` computes its sums once for the whole batch and corrects the rows that each sample's deletions
    touch, for ``GINConv``, ``SAGEConv`` and ``GraphConv`` on the CPU; whatever stands before goes before this, on
    ``[num_nodes, num_features]``. ``x.expand(len(batch), -1, -1)`` is the same.

    Args:
        x: ``[num_nodes, num_features]``.
        batch: The batch, or its number of samples.

    Returns:
        ``[batch, num_nodes, num_features]``, a view.

    Example:
        >>> x = tc.nn.shared_input(ds.base_graph["gene"].x, ds.read_batch(range(3)))
    """
    return x.expand(batch if isinstance(batch, int) else len(batch), *x.shape)


@dataclass(eq=False)
class Touched:
    """The rows that deletions touch, and what each of them loses.

    Attributes:
        matrices: The edges, in double precision.
        num_source: Source nodes.
        num_target: Target nodes.
        at: Touched rows, ``sample * num_target + target``, ascending, ``[num_touched] int64``.
        row: Their targets.
        sample: Their samples.
        rows: The same by sample.
        ptr: Where each sample's begin, ``batch + 1`` numbers.
        hidden: Places of deleted targets, which receive nothing.
        unused: Targets that are touched in every sample: nobody has the base graph's row.
        slot: Touched row of each lost entry, ``[num_lost] int64``.
        source: Its source.
        value: Its value.
        source_kept: Kept source nodes, ``[batch, num_source] bool``.
    """

    matrices: Matrices
    num_source: int
    num_target: int
    at: Tensor
    row: Tensor
    sample: Tensor
    rows: list[Tensor]
    ptr: list[int]
    hidden: Tensor
    unused: Tensor
    slot: Tensor
    source: Tensor
    value: Tensor
    source_kept: Tensor

    @classmethod
    def find(
        cls, matrices: Matrices, source_kept: Tensor | None, target_kept: Tensor | None, batch: int
    ) -> Touched:
        """What a batch's deletions touch."""
        num_target, num_source = matrices.matrix.shape
        device = matrices.matrix.column.device
        if source_kept is None:
            source_kept = torch.ones((batch, num_source), dtype=torch.bool, device=device)
        sample, source = (~source_kept).nonzero(as_tuple=True)
        owner, entry = _entries(matrices.transpose, source)
        lost = sample[owner] * num_target + matrices.transpose.column[entry]
        gone = torch.empty(0, dtype=torch.int64, device=device)
        if target_kept is not None:
            gone = (~target_kept).flatten().nonzero().squeeze(1)
        at, place = torch.unique(torch.cat([lost, gone]), return_inverse=True)
        row, of_sample = at % num_target, at // num_target
        counts = torch.bincount(of_sample, minlength=batch)
        unused = (torch.bincount(row, minlength=num_target) == batch).nonzero().squeeze(1)
        return cls(
            matrices,
            num_source,
            num_target,
            at,
            row,
            of_sample,
            list(torch.split(row, counts.tolist())),
            [0, *counts.cumsum(0).tolist()],
            place[len(lost) :],
            unused,
            place[: len(lost)],
            source[owner],
            matrices.transpose.values[entry],
            source_kept,
        )

    def sums(self, x: Tensor) -> Tensor:
        """``[num_source, features]`` to ``[num_target + num_touched, features]``."""
        exact = x.double()
        total: Tensor = self.matrices.matrix.sparse @ exact
        values = self._corrected(
            total[self.row], exact[self.source] * self.value.unsqueeze(1), self.slot, x.dtype
        )
        again = values.isnan().any(1)
        again[self.hidden] = False
        which = again.nonzero().squeeze(1)
        if len(which):
            owner, entry = _entries(self.matrices.matrix, self.row[which])
            source = self.matrices.matrix.column[entry].long()
            stays = self.source_kept[self.sample[which][owner], source].nonzero().squeeze(1)
            terms = exact[source[stays]] * self.matrices.matrix.values[entry[stays], None]
            values[which] = terms.new_zeros((len(which), x.size(1))).index_add_(0, owner[stays], terms)
        values.index_fill_(0, self.hidden, 0)
        total.index_fill_(0, self.unused, 0)
        return torch.cat([total, values]).to(x.dtype)

    def degrees(self) -> Tensor:
        """Number of kept edges into each row, ``[num_target + num_touched, 1] float64``."""
        return self.sums(self.value.new_ones((self.num_source, 1)))

    def sums_t(self, grad: Tensor) -> Tensor:
        """The transpose of :meth:`sums`."""
        of_base, of_touched = torch.split(grad.double(), [self.num_target, len(self.at)])
        of_base, of_touched = of_base.clone(), of_touched.clone()
        of_base.index_fill_(0, self.unused, 0)
        of_touched.index_fill_(0, self.hidden, 0)
        everywhere = of_base.index_add(0, self.row, of_touched)
        out: Tensor = self.matrices.transpose.sparse @ everywhere
        which, slot = torch.unique(self.source, return_inverse=True)
        if not len(which):
            return out.to(grad.dtype)
        terms = of_touched[self.slot] * self.value.unsqueeze(1)
        values = self._corrected(out[which], terms, slot, grad.dtype)
        again = values.isnan().any(1).nonzero().squeeze(1)
        if len(again):
            values[again] = self._sums_t_again(which[again], of_base, of_touched)
        out[which] = values
        return out.to(grad.dtype)

    def _sums_t_again(self, sources: Tensor, of_base: Tensor, of_touched: Tensor) -> Tensor:
        transpose = self.matrices.transpose
        owner, entry = _entries(transpose, sources)
        target, value = transpose.column[entry].long(), transpose.values[entry].unsqueeze(1)
        out = of_base.new_zeros((len(sources), of_base.size(1))).index_add_(0, owner, of_base[target] * value)
        order = torch.argsort(self.row, stable=True)
        of_entry, at = ranges(offsets_of(self.row, self.num_target), target)
        touched = order[at]
        stays = self.source_kept[self.sample[touched], sources[owner[of_entry]]].nonzero().squeeze(1)
        terms = of_touched[touched[stays]] * value[of_entry[stays]]
        return out.index_add_(0, owner[of_entry[stays]], terms)

    @staticmethod
    def _corrected(total: Tensor, terms: Tensor, slot: Tensor, dtype: torch.dtype) -> Tensor:
        """``total`` less its terms; NaN where too little is left of it to be trusted."""
        left = total.index_add(0, slot, terms, alpha=-1)
        size = torch.zeros_like(total).index_add_(0, slot, terms.abs_())
        doubtful = (size * CANCELS.get(dtype, 2.0**-26) > left.abs()) | ~left.isfinite()
        return left.masked_fill_(doubtful, torch.nan)


class Differing:
    """A layer's output as the base graph's rows and the touched ones, ``[num_target + num_touched, features]``."""

    def __init__(self, rows: Tensor, touched: Touched) -> None:
        self.rows, self.touched = rows, touched

    @property
    def dense(self) -> Tensor:
        """``[batch, num_target, features]``."""
        out: Tensor = sum_of([self])
        return out


def shared_sums(x: Tensor, touched: Touched) -> Tensor:
    """Sums over kept edges as :class:`Differing` rows, from the base graph's features ``[num_source, features]``."""
    out: Tensor = _Sums.apply((_Sums, touched, False), x)  # type: ignore[no-untyped-call]
    return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_of(parts: list[Differing]) -> Tensor:
    """The sum of several layers' outputs, laid out for all samples, ``[batch, num_target, features]``."""
    out: Tensor = _LaidOut.apply((_LaidOut, [p.touched for p in parts]), *(p.rows for p in parts))  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    """A linear function of rows, whatever their width: a further dimension of ``vmap`` is more width."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], what: Any, *rows: Tensor) -> Any:
        wide = [
            (
                value.unsqueeze(-1).expand(*value.shape, info.batch_size)
                if dim is None
                else value.movedim(dim, -1)
            )
            for value, dim in zip(rows, in_dims[1:], strict=True)
        ]
        out = what[0].apply(what, *(value.flatten(-2) for value in wide))
        outs = [
            value.unflatten(-1, (-1, info.batch_size))
            for value in ((out,) if isinstance(out, Tensor) else out)
        ]
        return (
            (outs[0], outs[0].dim() - 1)
            if isinstance(out, Tensor)
            else (tuple(outs), tuple(o.dim() - 1 for o in outs))
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.what = inputs[0]


class _Sums(_Linear):
    """``what``: this class, the touched rows, whether to transpose. Its gradient is the transpose."""

    @staticmethod
    def forward(what: Any, x: Tensor) -> Tensor:
        _, touched, transposed = what
        with record_function("torchcell_cache::shared_input"):
            return touched.sums_t(x) if transposed else touched.sums(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Any]:
        _, touched, transposed = ctx.what
        return None, _Sums.apply((_Sums, touched, not transposed), grad)  # type: ignore[no-untyped-call]


class _LaidOut(_Linear):
    """``what``: this class, the touched rows of each summand."""

    @staticmethod
    def forward(what: Any, *rows: Tensor) -> Tensor:
        touched: list[Touched] = what[1]
        first, width = touched[0], rows[0].shape[1:]
        out = rows[0].new_empty((len(first.rows), first.num_target, *width))
        for sample, into in enumerate(out):
            for k, (one, values) in enumerate(zip(touched, rows, strict=True)):
                at = one.rows[sample]
                own = values[one.num_target + one.ptr[sample] : one.num_target + one.ptr[sample + 1]]
                if k:
                    own = own + into.index_select(0, at)
                    into.add_(values[: one.num_target])
                else:
                    into.copy_(values[: one.num_target])
                into.index_copy_(0, at, own)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, *_Collected.apply((_Collected, ctx.what[1]), grad)  # type: ignore[no-untyped-call]


class _Collected(_Linear):
    """The transpose of laying out: the base rows' gradient is the sum over the samples that have them."""

    @staticmethod
    def forward(what: Any, grad: Tensor) -> tuple[Tensor, ...]:
        touched: list[Touched] = what[1]
        outs = tuple(grad.new_zeros((t.num_target + len(t.at), *grad.shape[2:])) for t in touched)
        for sample, of_sample in enumerate(grad):
            for one, out in zip(touched, outs, strict=True):
                at, base = one.rows[sample], out[: one.num_target]
                before = base.index_select(0, at)
                base.add_(of_sample).index_copy_(0, at, before)
                begin, end = one.num_target + one.ptr[sample], one.num_target + one.ptr[sample + 1]
                out[begin:end] = of_sample.index_select(0, at)
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, _LaidOut.apply((_LaidOut, ctx.what[1]), *grads)  # type: ignore[no-untyped-call]


def _entries(csr: Compressed, rows: Tensor) -> tuple[Tensor, Tensor]:
    return ranges(csr.row_ptr.long(), rows)
