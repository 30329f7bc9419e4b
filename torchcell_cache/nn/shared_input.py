"""A layer whose samples all enter with the same features: one graph's sums, and anew only the rows that deletions touch.

A sample's sum at a node differs from the base graph's iff the node or one of its sources is deleted. Such rows follow
the base graph's rows as ``[num_target + num_touched, features]``, the layer's own row-wise parts run on these, and the
result is laid out for all samples at the end. What is deleted is subtracted in double precision; a sum that mostly
cancels is added up again from what is left.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchcell_cache.graph.lasting import ranged
from torchcell_cache.nn.adjacency import Compressed, Matrices, offsets_of, ranges
from torchcell_cache.nn.product import linear_map

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

    def __init__(
        self, matrices: Matrices, source_kept: Tensor | None, target_kept: Tensor | None, batch: int
    ) -> None:
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
        self.matrices, self.num_source, self.num_target = matrices, num_source, num_target
        self.source_kept = source_kept
        self.at, place = torch.unique(torch.cat([lost, gone]), return_inverse=True)
        self.row, self.sample = self.at % num_target, self.at // num_target
        counts = torch.bincount(self.sample, minlength=batch)
        self.rows = list(torch.split(self.row, counts.tolist()))
        self.ptr = [0, *counts.cumsum(0).tolist()]
        in_all = torch.bincount(self.row, minlength=num_target) == batch
        self.hidden, self.unused = place[len(lost) :], in_all.nonzero().squeeze(1)
        self.slot, self.source = place[: len(lost)], source[owner]
        self.value = matrices.transpose.values[entry]

    @ranged("shared_input")
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

    @ranged("shared_input")
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
            values[again] = self._added_again(which[again], of_base, of_touched)
        out[which] = values
        return out.to(grad.dtype)

    def _added_again(self, sources: Tensor, of_base: Tensor, of_touched: Tensor) -> Tensor:
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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_of(parts: list[Differing]) -> Tensor:
    """The sum of several layers' outputs, laid out for all samples, ``[batch, num_target, features]``."""
    touched = [part.touched for part in parts]
    both = partial(_laid_out, touched), partial(_collected, touched)
    out: Tensor = linear_map(both, *(part.rows for part in parts))
    return out


def _laid_out(touched: list[Touched], *rows: Tensor) -> Tensor:
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


def _collected(touched: list[Touched], grad: Tensor) -> tuple[Tensor, ...]:
    """The transpose of laying out: the base rows' gradient is the sum over the samples that have them."""
    outs = tuple(grad.new_zeros((t.num_target + len(t.at), *grad.shape[2:])) for t in touched)
    for sample, of_sample in enumerate(grad):
        for one, out in zip(touched, outs, strict=True):
            at, base = one.rows[sample], out[: one.num_target]
            before = base.index_select(0, at)
            base.add_(of_sample).index_copy_(0, at, before)
            begin, end = one.num_target + one.ptr[sample], one.num_target + one.ptr[sample + 1]
            out[begin:end] = of_sample.index_select(0, at)
    return outs


def _entries(csr: Compressed, rows: Tensor) -> tuple[Tensor, Tensor]:
    return ranges(csr.row_ptr.long(), rows)
