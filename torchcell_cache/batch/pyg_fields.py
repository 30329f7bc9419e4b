"""The fields of a batch for each built-in representation, from what the batch holds and the resident base graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torchcell_cache.batch.device import DeviceGraph
from torchcell_cache.batch.masks import Regions, node_flags, regions
from torchcell_cache.batch.pyg import INDEX_FIELDS, Field, listed, no_increments, numbers, steps
from torchcell_cache.batch.sections import Sections
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.graph.topology import Domain
from torchcell_cache.processors.deletion import node_names

STATISTICS = (
    "phenotype_stat_values",
    "phenotype_stat_type_indices",
    "phenotype_stat_sample_indices",
    "phenotype_stat_types",
)
_COORDINATES = {"values": "values", "type_indices": "types", "sample_indices": "samples"}
_OF_SAMPLES = {
    **{f"phenotype_{name}": ("phenotype", part) for name, part in _COORDINATES.items()},
    **{f"phenotype_stat_{name}": ("statistic", part) for name, part in _COORDINATES.items()},
}


class SampleFields:
    """Fields that hold what is the sample's own; all there is to the ``Perturbation`` representation.

    Args:
        resident: Base graph and index on the batch's device.
        host: The batch's sections as arrays.
        tensors: The same on the device.
        num_incident: See :func:`~torchcell_cache.batch.masks.regions`.
        removed: Removed positions, ascending and unique per sample, and their offsets; called only if needed.

    Attributes:
        unknown: Perturbed names that no node has, a tuple per sample.
    """

    unknown: list[tuple[str, ...]]

    def __init__(
        self,
        resident: DeviceGraph,
        host: Sections,
        tensors: Mapping[str, Tensor],
        num_incident: int,
        removed: Any = None,
    ) -> None:
        self.resident, self.host, self.tensors = resident, host, tensors
        self.num_incident, self.removed = num_incident, removed
        self.topology, self.device = resident.topology, resident.device
        self.count = len(host["indices"])
        self.hetero = isinstance(resident.base_graph, HeteroData)
        self.domains: dict[Any, Domain] = {d.key: d for d in self.topology.domains}
        counts = np.diff(host["statistic_ptr"]) if "statistic_ptr" in host else np.zeros(self.count)
        self.has_statistics = bool((counts > 0).any()) or resident.processor.always_statistics

    def names(self, key: Any, names: Iterable[str]) -> list[str]:
        """The template's fields, without those of statistics if no sample has any."""
        absent = () if self.has_statistics else STATISTICS
        return [n for n in names if key != self.topology.node_type or n not in absent]

    def num_nodes(self, key: Any) -> list[int]:
        """Number of nodes of a type in each sample."""
        template = self.resident.template
        store = template[key] if self.hetero else template._store
        return [int(store._mapping["num_nodes"])] * self.count

    def field(self, key: Any, name: str, value: Any) -> Field:
        """A field of a store."""
        if key == self.topology.node_type:
            own = self.own(name)
            if own is not None:
                return own
        return self.shared(key, name, value)

    def own(self, name: str) -> Field | None:
        """A field of the perturbed nodes' store that holds what the sample says, or ``None``."""
        if name == "perturbation_indices":
            return self.ragged(self.tensors["perturbed"].clone(), self.host["perturbed_ptr"])
        if name in _OF_SAMPLES:
            kind, part = _OF_SAMPLES[name]
            return self.ragged(self.tensors[f"{kind}_{part}"].clone(), self.host[f"{kind}_ptr"])
        if name == "phenotype_types":
            return listed([list(self.resident.phenotypes) for _ in range(self.count)])
        if name == "phenotype_stat_types":
            return listed([list(self.resident.statistics) for _ in range(self.count)])
        if name == "ids_pert":
            ids, at = self.host["perturbed"].tolist(), self.host["perturbed_ptr"].tolist()
            graph = self.resident.base_graph
            names = node_names(graph[self.topology.node_type] if self.hetero else graph._store)
            flat = ids if names is None else [names[k] for k in ids]
            return listed([[*flat[at[k] : at[k + 1]], *self.unknown[k]] for k in range(self.count)])
        return None

    def ragged(self, value: Tensor, ptr: Int64Array) -> Field:
        """A field whose parts lie one after the other already."""
        return Field(value, torch.from_numpy(ptr.astype(np.int64)), no_increments(self.count))

    def shared(self, key: Any, name: str, value: Any) -> Field:
        """A field that is the same in every sample."""
        if name == "num_edges":
            return numbers([value] * self.count, self.device)
        if not isinstance(value, Tensor):
            return listed([value] * self.count)
        tensor = self.resident.tensor(value)
        if name in INDEX_FIELDS and (not self.hetero or isinstance(key, tuple)):
            return self._index(key, name, tensor)
        shape = (self.count, *tensor.shape)
        out = self.resident.pool.take((key, name), shape, tensor.dtype).copy_(tensor.unsqueeze(0))
        return Field(out.flatten(0, 1), steps(self.count, tensor.size(0)), no_increments(self.count))

    def _index(self, key: Any, name: str, tensor: Tensor) -> Field:
        """An edge index: each sample's copy shifted by the nodes of the samples before it."""
        samples, size = torch.arange(self.count, device="cpu"), tensor.size(1)
        if self.hetero:
            ends = torch.tensor([self.num_nodes(key[0])[0], self.num_nodes(key[2])[0]], device="cpu")
            incs = samples.view(-1, 1, 1) * ends.view(2, 1)
            dtype = torch.result_type(tensor, incs)
        else:
            ends = torch.tensor([self.num_nodes(None)[0]] * 2, device="cpu")
            incs, dtype = samples * ends[0], tensor.dtype
        out = self.resident.pool.take((key, name), (2, self.count, size), dtype)
        offsets = ends.view(2, 1, 1) * samples.view(1, -1, 1)
        torch.add(tensor.unsqueeze(1), offsets.to(self.device, dtype), out=out)
        return Field(out.view(2, -1), steps(self.count, size), incs)

    def flags(self, value: Tensor) -> Field:
        """A mask ``[batch, size]``."""
        return Field(value.flatten(), steps(self.count, value.size(1)), no_increments(self.count))


class MaskFields(SampleFields):
    """``LazySubgraphRepresentation``: everything shared, and masks."""

    _regions: Regions | None = None

    def field(self, key: Any, name: str, value: Any) -> Field:
        """A field of a store."""
        nodes, edges = ("mask", "pert_mask"), ("mask",) if self.hetero else ("edge_mask",)
        if name in nodes and (not self.hetero or isinstance(key, str)):
            return self.flags(self._node_mask(key, name == "mask"))
        if name in edges and key in self.domains:
            return self.flags(self._kept(self.domains[key]))
        return super().field(key, name, value)

    def _kept(self, domain: Domain) -> Tensor:
        if self._regions is None:
            self._regions = regions(self.resident, self.tensors, self.num_incident, "masks of PyG", kept=True)
        return self._regions.of(domain)

    def _node_mask(self, key: Any, keep: bool) -> Tensor:
        if key == self.topology.node_type:
            return node_flags(self.resident, self.tensors, (key, keep), kept=keep)
        if key in self.domains:
            kept = self._kept(self.domains[key])
            return kept if keep else ~kept
        shape = (self.count, self.num_nodes(key)[0])
        return torch.full(shape, keep, dtype=torch.bool, device=self.device)
