"""Fields of a batch of ``SubgraphRepresentation``: kept nodes and edges only, relabelled, original order.

How much each sample keeps is known on the host, so every output has its size before the device is asked for anything.
On the CPU the samples are filtered one after the other, which stays in the cache; elsewhere all at once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchcell_cache.batch.pyg import INDEX_FIELDS, Field, fits_edges, listed, numbers, of_edges
from torchcell_cache.batch.pyg_fields import SampleFields
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Int64Array, offsets

_BLOCK = 1 << 16
"""Edges filtered at a time: half a megabyte, a share of the second-level cache."""


class Cut:
    """What all samples remove from one run of nodes or edges."""

    def __init__(self, slots: Int64Array, batch_size: int, size: int, device: torch.device) -> None:
        self.slots, self.size, self.batch_size, self.device = slots, size, batch_size, device
        self.bounds = np.searchsorted(slots, np.arange(batch_size + 1) * size)
        self.counts: Int64Array = size - np.diff(self.bounds)
        self.ptr = offsets(self.counts)
        self.total = int(self.ptr[-1])

    def removed(self, sample: int) -> list[int]:
        """Positions one sample removes, ascending."""
        return list((self.slots[self.bounds[sample] : self.bounds[sample + 1]] - sample * self.size).tolist())

    def keep(self, items: list[Any]) -> list[list[Any]]:
        """A list without what each sample removes; whole runs are copied."""
        out = []
        for sample in range(self.batch_size):
            kept: list[Any] = []
            begin = 0
            for at in self.removed(sample):
                kept += items[begin:at]
                begin = at + 1
            out.append(kept + items[begin:])
        return out

    @cached_property
    def sample(self) -> Tensor:
        """Sample of everything kept, ``[total] int64`` on the device."""
        counts = torch.from_numpy(self.counts).to(self.device)
        samples = torch.arange(self.batch_size, device=self.device)
        return torch.repeat_interleave(samples, counts, output_size=self.total)

    @cached_property
    def position(self) -> Tensor:
        """Position of everything kept, ``[total] int64`` on the device."""
        slots = torch.from_numpy(self.slots).to(self.device)
        ends = torch.cat([slots, slots.new_full((1,), self.batch_size * self.size)])
        begins = torch.cat([slots.new_zeros(1), slots + 1])
        runs = torch.arange(len(ends), device=self.device)
        before = torch.repeat_interleave(runs, ends - begins, output_size=self.total)
        return before.add_(torch.arange(self.total, device=self.device)) - self.sample * self.size


class FilteredFields(SampleFields):
    """See the module.

    Attributes:
        one_by_one: Filter sample after sample.
    """

    one_by_one: bool | None = None
    kept_flags = False

    @cached_property
    def _cuts(self) -> dict[Any, Cut]:
        """What is removed of each domain."""
        out = {}
        for domain in self.topology.domains:
            sample, position = self.batch.removed_of(domain)
            out[domain.key] = Cut(sample * domain.size + position, self.count, domain.size, self.device)
        return out

    @cached_property
    def _nodes(self) -> Cut:
        """What is removed of the perturbable nodes."""
        size = self.topology.num_nodes
        owner = np.repeat(np.arange(self.count), np.diff(self.host["perturbed_ptr"]))
        return Cut(owner * size + self.host["perturbed"].astype(np.int64), self.count, size, self.device)

    def _node_cut(self, key: Any) -> Cut | None:
        """What is removed of a node type, or ``None`` if its nodes stay."""
        if key == self.topology.node_type:
            return self._nodes
        return self._cuts.get(key)

    def num_nodes(self, key: Any) -> list[int]:
        """Number of nodes of a type that each sample keeps."""
        cut = self._node_cut(key)
        return super().num_nodes(key) if cut is None else list(cut.counts.tolist())

    def field(self, key: Any, name: str, value: Any) -> Field:
        """A field of a store."""
        # Homogeneous data has one store; what fits the nodes is the nodes', as in the representation itself.
        named = key is None and name in ("edge_index", "edge_pert_mask")
        sized = key is None and fits_edges(name, value, self.topology.num_nodes)
        if isinstance(key, tuple) or named or sized:
            return self.edge_field(key, name, value)
        if key == self.topology.node_type:
            own = self.own(name)
            if own is not None:
                return own
            if name == "x_pert":
                base = self.context.base_graph
                x = self.context.tensor((base[key] if self.hetero else base._store)._mapping["x"])
                return self.ragged(x.index_select(0, self.tensors["perturbed"]), self.host["perturbed_ptr"])
        if name == "pert_mask":
            return self.flags(self.node_mask(key, False))
        cut = self._node_cut(key)
        if cut is None:
            return self.shared(key, name, value)
        return (
            self._rows(key, name, value, cut) if isinstance(value, Tensor) else listed(cut.keep(list(value)))
        )

    def edge_field(self, key: Any, name: str, value: Any) -> Field:
        """A field of an edge type."""
        cut = self._cuts[key]
        if name in INDEX_FIELDS:
            return self._index_of(key, name, value, cut)
        if name == "num_edges":
            return numbers(cut.counts.tolist(), self.device)
        if name in ("pert_mask", "edge_pert_mask"):
            return self.flags(self.domain_mask(key, False))
        return self._rows(key, name, value, cut)

    def _rows(self, key: Any, name: str, value: Tensor, cut: Cut) -> Field:
        """The kept rows of a tensor that has one per node or edge."""
        tensor = self.context.tensor(value)
        out = self.context.pool.take((key, name), (cut.total, *tensor.shape[1:]), tensor.dtype)
        if self._loops():
            everything = np.arange(cut.size)
            at = cut.ptr.tolist()
            for sample in range(self.count):
                kept = torch.from_numpy(np.delete(everything, cut.removed(sample)))
                torch.index_select(tensor, 0, kept, out=out[at[sample] : at[sample + 1]])
        else:
            torch.index_select(tensor, 0, cut.position, out=out)
        return self.ragged(out, cut.ptr)

    def _loops(self) -> bool:
        return self.device.type == "cpu" if self.one_by_one is None else self.one_by_one

    # Edge indices

    @cached_property
    def _tables(self) -> dict[Any, Tensor]:
        """New number of every node in its batch, ``[batch, num_nodes] int64``, of the types whose nodes go.

        A removed node has -1, shifted like the others: what the representation itself gives it.
        """
        out = {}
        for key in {self.topology.node_type, *(key for key in self.domains if isinstance(key, str))}:
            cut = self._node_cut(key)
            if cut is not None:
                gone = self.node_mask(key, False)
                table = gone.logical_not().cumsum(1).sub_(1).masked_fill_(gone, -1)
                out[key] = table.add_(torch.from_numpy(cut.ptr[:-1]).to(self.device).unsqueeze(1))
        return out

    def _index_of(self, key: Any, name: str, value: Tensor, cut: Cut) -> Field:
        ends = (key[0], key[2]) if self.hetero else (None, None)
        before = np.stack([offsets(np.array(self.num_nodes(end)))[:-1] for end in ends], axis=1)
        shifts = torch.from_numpy(before)
        index = self.context.tensor(value)
        dtype = torch.int64 if self.hetero else index.dtype  # as PyG adds one number, or one for each end
        tables = [self._tables[end].to(dtype) if end in self._tables else None for end in ends]
        out = self.context.pool.take((key, name), (2, cut.total), dtype)
        if self._loops():
            self._filter_blocks(index, tables, before, self.domain_mask(key, False), cut, out)
        else:
            for row, table in enumerate(tables):
                kept = index[row].index_select(0, cut.position)
                if table is None:
                    shift = shifts[:, row].to(self.device).index_select(0, cut.sample)
                    torch.add(kept, shift, out=out[row])
                else:
                    torch.index_select(table.flatten(), 0, kept + cut.sample * table.size(1), out=out[row])
        incs = shifts.view(-1, 2, 1) if self.hetero else torch.from_numpy(before[:, 0].copy())
        return Field(out, torch.from_numpy(cut.ptr), incs)

    def _filter_blocks(
        self, index: Tensor, tables: list[Any], before: Int64Array, gone: Tensor, cut: Cut, out: Tensor
    ) -> None:
        """Block by block, and there sample by sample: edges and flags of a block stay in the cache."""
        rows, target, lacks = index.numpy(), out.numpy(), gone.numpy()
        new = [None if table is None else table.numpy() for table in tables]
        edges = np.append(np.arange(0, cut.size, _BLOCK), cut.size)
        samples = np.arange(self.count)[:, None]
        lost = np.searchsorted(cut.slots, samples * cut.size + edges) - cut.bounds[:-1, None]
        places = (cut.ptr[:-1, None] + edges - lost).tolist()
        for block, (start, stop) in enumerate(pairwise(edges.tolist())):
            source = rows[:, start:stop]
            for sample in range(self.count):
                begin, end = places[sample][block], places[sample][block + 1]
                kept = None if end - begin == stop - start else ~lacks[sample, start:stop]
                for row in (0, 1):
                    old = source[row] if kept is None else source[row][kept]
                    table = new[row]
                    if table is None:
                        np.add(old, before[sample, row], out=target[row, begin:end])
                    else:  # clip: "raise" would fill a copy of the output
                        table[sample].take(old, out=target[row, begin:end], mode="clip")


class KeptEdgeFields(FilteredFields):
    """``LazySubgraphRepresentation`` with its edges filtered; nodes stay."""

    def _node_cut(self, key: Any) -> None:
        return None

    def field(self, key: Any, name: str, value: Any) -> Field:
        """A field of a store."""
        is_edges = self.hetero or of_edges(name, value, self.topology.num_nodes)
        if key not in self.domains or isinstance(key, str) or not is_edges:
            return SampleFields.field(self, key, name, value)
        if name not in ("mask", "edge_mask"):
            return self.edge_field(key, name, value)
        cut = self._cuts[key]
        return self.ragged(torch.ones(cut.total, dtype=torch.bool, device=self.device), cut.ptr)
