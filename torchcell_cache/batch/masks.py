"""Masks of a whole batch: one fill and one scatter, on any device, without asking the device for a size.

All domains of a batch share one type-major buffer, in which the region of a domain is contiguous ``[batch, size]``; the
mask of an edge type is a view. One slot more than there are positions takes the words that stand for nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchcell_cache.batch.device import DeviceContext
from torchcell_cache.batch.packed import Sections
from torchcell_cache.codec.delta_code import ESCAPE, check_gaps_ragged
from torchcell_cache.core.hints import root_argument
from torchcell_cache.errors import CorruptRecordError
from torchcell_cache.graph.lasting import lasting, ranged
from torchcell_cache.graph.topology import Domain
from torchcell_cache.store.generation import Generation


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Flags of a batch over all domains.

    Attributes:
        flat: ``[batch_size * num_positions + 1] bool``, type-major.
        batch_size: Number of samples.
    """

    flat: Tensor
    batch_size: int

    def of(self, domain: Domain) -> Tensor:
        """Region of a domain, ``[batch_size, domain size] bool``, contiguous."""
        start, stop = self.batch_size * domain.start, self.batch_size * domain.stop
        return self.flat[start:stop].view(self.batch_size, domain.size)


@ranged("masks")
@lasting
def regions(
    context: DeviceContext, sections: Mapping[str, Tensor], num_incident: int, name: Hashable, *, kept: bool
) -> Regions:
    """What each sample keeps (``kept``), or removes, of every domain; ``name``: whose buffer to use again.

    ``num_incident``: entries of the incidence index under all perturbed nodes; used without removed positions only.
    """
    count = len(sections["indices"])
    shifts = context.shifts(count)
    if "words" in sections:
        # The gap code: running sums, each sample's from its own start.
        words, ptr = sections["words"], sections["word_ptr"]
        steps = words.to(torch.int32).bitwise_and_(0xFFFF)
        running = torch.zeros(len(words) + 1, dtype=torch.int64, device=words.device)
        torch.cumsum(steps, 0, dtype=torch.int64, out=running[1:])
        sample = owners(ptr, len(words))
        positions = running[1:] - running[ptr[:-1]].index_select(0, sample)
        slots = positions + _shift_of(context, positions, sample, shifts)
        slots = slots.masked_fill_(steps == ESCAPE, context.topology.size * count)
    else:
        # The incidence index of the perturbed nodes, one segment per node and domain.
        ids, ptr = sections["perturbed"], sections["perturbed_ptr"]
        index_ptr, positions = context.index
        rows = index_ptr.index_select(0, ids)
        counts = rows.diff(dim=1).flatten()
        segments = torch.arange(len(counts), device=ids.device)
        segment = torch.repeat_interleave(segments, counts, output_size=num_incident)
        first = rows[:, :-1].flatten() - counts.cumsum(0) + counts
        at = first.index_select(0, segment) + torch.arange(num_incident, device=ids.device)
        shift = shifts.index_select(0, owners(ptr, len(ids))).flatten()
        slots = positions.index_select(0, at) + shift.index_select(0, segment)
    if "removed" in sections:
        positions, ptr = sections["removed"], sections["removed_ptr"]
        sample = owners(ptr, len(positions))
        slots = torch.cat([slots, positions + _shift_of(context, positions, sample, shifts)])
    flat = context.pool.take_flags(name, count * context.topology.size + 1, kept)
    return Regions(flat.index_fill_(0, slots, not kept), count)


def owners(ptr: Tensor, total: int) -> Tensor:
    """Sample of each element of a ragged section, ``[total] int64``; the size comes from the host."""
    samples = torch.arange(len(ptr) - 1, device=ptr.device)
    return torch.repeat_interleave(samples, ptr.diff(), output_size=total)


def _shift_of(context: DeviceContext, positions: Tensor, sample: Tensor, shifts: Tensor) -> Tensor:
    domain = context.domain_of.index_select(0, positions)
    return shifts.flatten().index_select(0, sample * shifts.size(1) + domain)


@ranged("masks")
@lasting
def node_flags(
    context: DeviceContext, sections: Mapping[str, Tensor], name: Hashable, *, kept: bool
) -> Tensor:
    """What each sample keeps, or removes, of the perturbable nodes, ``[batch_size, num_nodes] bool``."""
    count, num_nodes = len(sections["indices"]), context.topology.num_nodes
    ids = sections["perturbed"]
    flat = context.pool.take_flags(name, count * num_nodes, kept)
    slots = owners(sections["perturbed_ptr"], len(ids)) * num_nodes + ids
    return flat.index_fill_(0, slots, not kept).view(count, num_nodes)


def check_removals(generation: Generation, sections: Sections) -> None:
    """Refuse positions that make no sense, and "nothing removed" of nodes that have edges.

    A device would read beyond its memory for the first, and the second would train on the wild type.

    Raises:
        CorruptRecordError: Naming the sample.
    """
    assert generation.topology is not None
    assert generation.removal is not None
    words, word_ptr, ptr = (sections[name] for name in ("words", "word_ptr", "perturbed_ptr"))

    def corrupt(at: int, what: str) -> CorruptRecordError:
        return CorruptRecordError(
            f"{generation.directory}: sample {int(sections['indices'][at])} {what}",
            path=generation.directory,
            fix=f"torchcell-cache repair {root_argument(generation.root)}",
        )

    wrong = check_gaps_ragged(words, word_ptr, generation.topology.size)
    if wrong is not None:
        raise corrupt(wrong, "removes positions that do not ascend within the base graph")
    for at in np.flatnonzero((np.diff(word_ptr) == 0) & (np.diff(ptr) > 0)).tolist():
        ids = sections["perturbed"][ptr[at] : ptr[at + 1]]
        if int(generation.removal.index.degrees(ids).sum()):
            raise corrupt(at, f"perturbs nodes {ids.tolist()} that have edges, and removes none")
