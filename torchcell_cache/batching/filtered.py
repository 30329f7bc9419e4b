"""Fields of a batch of ``SubgraphRepresentation``: kept nodes and edges only, relabelled, original order.

How much each sample keeps is known on the host, so every output has its size before the device is asked for anything.
On the CPU the samples are filtered one after the other, which stays in the cache; elsewhere all at once.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchcell_cache.batching.collation import INDEX_FIELDS, Field, listed, numbers
from torchcell_cache.batching.fields import SampleFields
from torchcell_cache.batching.masks import kept_regions, node_flags
from torchcell_cache.columns import offsets
from torchcell_cache.record import Int64Array
from torchcell_cache.topology import Domain

_NODES = "nodes"


class Cut:
    """What all samples remove from one run of nodes or edges.

    Args:
        slots: ``sample * size + position`` of everything removed, ascending, ``[n] int64`` on the host.
        batch_size: Number of samples.
        size: Nodes or edges of the base graph.
        device: Where fields are made.
    """

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
    def kept(self) -> Tensor:
        """``sample * size + position`` of everything kept, ascending, ``[total] int64`` on the device."""
        slots = torch.from_numpy(self.slots).to(self.device)
        ends = torch.cat([slots, slots.new_full((1,), self.batch_size * self.size)])
        begins = torch.cat([slots.new_zeros(1), slots + 1])
        runs = torch.arange(len(ends), device=self.device)
        before = torch.repeat_interleave(runs, ends - begins, output_size=self.total)
        return before.add_(torch.arange(self.total, device=self.device))

    @cached_property
    def sample(self) -> Tensor:
        """Sample of everything kept, ``[total] int64`` on the device."""
        counts = torch.from_numpy(self.counts).to(self.device)
        samples = torch.arange(self.batch_size, device=self.device)
        return torch.repeat_interleave(samples, counts, output_size=self.total)

    @cached_property
    def position(self) -> Tensor:
        """Position of everything kept, ``[total] int64`` on the device."""
        return self.kept - self.sample * self.size


class FilteredFields(SampleFields):
    """See the module.

    Attributes:
        one_by_one: Filter sample after sample.
    """

    one_by_one: bool | None = None

    @cached_property
    def _cuts(self) -> dict[Any, Cut]:
        """Per domain, and for the perturbed nodes, what is removed."""
        positions, ptr = self.removed()
        sample = np.repeat(np.arange(self.count), np.diff(ptr))
        out = {}
        for domain in self.topology.domains:
            inside = (positions >= domain.start) & (positions < domain.stop)
            slots = sample[inside] * domain.size + (positions[inside] - domain.start)
            out[domain.key, domain.role] = Cut(slots, self.count, domain.size, self.device)
        nodes = self.topology.num_nodes
        owner = np.repeat(np.arange(self.count), np.diff(self.host["perturbed_ptr"]))
        slots = owner * nodes + self.host["perturbed"].astype(np.int64)
        out[_NODES] = Cut(slots, self.count, nodes, self.device)
        return out

    def _cut(self, key: Any, value: Any = None) -> Cut | None:
        """What is removed from a store, for homogeneous data from the nodes or edges ``value`` belongs to."""
        if key == self.topology.node_type:
            if self.hetero or value is None or value.size(0) == self.topology.num_nodes:
                return self._cuts[_NODES]
        domain = self.domains.get(key)
        return None if domain is None else self._cuts[domain.key, domain.role]

    @cached_property
    def _kept(self) -> Any:
        return kept_regions(self.resident, self.tensors, self.num_incident, "filter")

    def num_nodes(self, key: Any) -> list[int]:
        """Number of nodes of a type that each sample keeps."""
        cut = self._cut(key)
        return super().num_nodes(key) if cut is None else list(cut.counts.tolist())

    def field(self, key: Any, name: str, value: Any) -> Field:
        """A field of a store."""
        is_edge = isinstance(key, tuple) or (key is None and name in ("edge_index", "edge_pert_mask"))
        if is_edge:
            return self._edge_field(key, name, value)
        if key == self.topology.node_type:
            own = self.own(name)
            if own is not None:
                return own
            if name == "x_pert":
                ids = self.tensors["perturbed"]
                x = self.resident.tensor(self._base(key)["x"])
                return self.ragged(x.index_select(0, ids), self.host["perturbed_ptr"])
        if name == "pert_mask":
            return self.flags(self._removed_nodes(key))
        cut = self._cut(key, value if isinstance(value, Tensor) else None)
        if cut is None:
            return self.shared(key, name, value)
        return (
            self._rows(key, name, value, cut) if isinstance(value, Tensor) else listed(cut.keep(list(value)))
        )

    def _base(self, key: Any) -> dict[str, Any]:
        graph = self.resident.base_graph
        return dict((graph[key] if self.hetero else graph._store)._mapping)

    def _removed_nodes(self, key: Any) -> Tensor:
        if key == self.topology.node_type:
            return node_flags(self.resident, self.tensors, (key, "pert_mask")).logical_not_()
        if key in self.domains:
            return ~self._kept.of(self.domains[key])
        return torch.zeros((self.count, self.num_nodes(key)[0]), dtype=torch.bool, device=self.device)

    def _edge_field(self, key: Any, name: str, value: Any) -> Field:
        domain = self.domains[key]
        cut = self._cuts[domain.key, domain.role]
        if name in INDEX_FIELDS:
            return self._index_of(domain, name, value, cut)
        if name == "num_edges":
            return numbers(cut.counts.tolist(), self.device)
        if name in ("pert_mask", "edge_pert_mask"):
            kept = self._kept.of(domain)
            out = self.resident.pool.take((key, name), tuple(kept.shape), torch.bool)
            return self.flags(torch.logical_not(kept, out=out))
        return self._rows(key, name, value, cut)

    def _rows(self, key: Any, name: str, value: Tensor, cut: Cut) -> Field:
        """The kept rows of a tensor that has one per node or edge."""
        tensor = self.resident.tensor(value)
        out = self.resident.pool.take((key, name), (cut.total, *tensor.shape[1:]), tensor.dtype)
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

    def _tables(self, key: Any) -> Tensor | None:
        """New number of every node in its batch, ``[batch, num_nodes] int64``; ``None`` where nodes stay.

        A removed node has the number before the next kept one, like in the representation itself: -1, shifted.
        """
        if key == self.topology.node_type:
            kept = node_flags(self.resident, self.tensors, "relabel")
        elif key == "reaction" and key in self.domains:
            kept = self._kept.of(self.domains[key])
        else:
            return None
        before = torch.from_numpy(
            self._cuts[_NODES if key == self.topology.node_type else (key, key)].ptr[:-1]
        )
        table = kept.cumsum(1).sub_(1).masked_fill_(~kept, -1)
        return table.add_(before.to(self.device).unsqueeze(1))

    def _index_of(self, domain: Domain, name: str, value: Tensor, cut: Cut) -> Field:
        ends = (None, None) if domain.key is None else (domain.key[0], domain.key[2])
        before = np.stack([offsets(np.array(self.num_nodes(end)))[:-1] for end in ends], axis=1)
        index = self.resident.tensor(value)
        out = self.resident.pool.take((domain.key, name), (2, cut.total), torch.int64)
        for row, end in enumerate(ends):
            table = self._table_of(end)
            source = index[row]
            if self._loops():
                self._filter_loop(source, table, before[:, row], domain, cut, out[row])
            elif table is None:
                shift = torch.from_numpy(before[:, row].copy()).to(self.device)
                torch.add(source[cut.position], shift[cut.sample], out=out[row])
            else:
                at = source[cut.position] + cut.sample * table.size(1)
                torch.index_select(table.flatten(), 0, at, out=out[row])
        incs = (
            torch.from_numpy(before).view(-1, 2, 1) if self.hetero else torch.from_numpy(before[:, 0].copy())
        )
        return Field(out, torch.from_numpy(cut.ptr), incs)

    def _table_of(self, key: Any) -> Tensor | None:
        if key not in self._table_cache:
            self._table_cache[key] = self._tables(key)
        return self._table_cache[key]

    @cached_property
    def _table_cache(self) -> dict[Any, Tensor | None]:
        return {}

    def _filter_loop(
        self, source: Tensor, table: Tensor | None, before: Int64Array, domain: Domain, cut: Cut, out: Tensor
    ) -> None:
        """One row of an edge index, sample after sample: numpy copies the runs between removed edges whole."""
        rows, target = source.numpy(), out.numpy()
        flags = self._kept.of(domain).numpy()
        new = None if table is None else table.numpy()
        at = cut.ptr.tolist()
        for sample in range(self.count):
            place = target[at[sample] : at[sample + 1]]
            kept = rows if len(place) == cut.size else rows[flags[sample]]
            if new is None:
                np.add(kept, before[sample], out=place)
            else:
                np.take(new[sample], kept, out=place, mode="clip")  # clip: "raise" would fill a copy of place
