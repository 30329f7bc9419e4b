"""The fields of a batch for each built-in representation, from what the batch holds and the base graph on its device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torchcell_cache.batch.device import DeviceContext
from torchcell_cache.batch.masks import Regions, node_flags
from torchcell_cache.batch.pyg import INDEX_FIELDS, Field, Fields, listed, no_increments, numbers, steps
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.topology import Domain
from torchcell_cache.processors.deletion import extra_tensors, node_names
from torchcell_cache.processors.subgraph import EDGE_FIELDS, NODE_FIELDS, SubgraphRepresentation

if TYPE_CHECKING:
    from torchcell_cache.batch.deletions import DeletionBatch

STATISTICS = (
    "phenotype_stat_values",
    "phenotype_stat_type_indices",
    "phenotype_stat_sample_indices",
    "phenotype_stat_types",
)
_COORDINATES = {"values": "values", "type_indices": "types", "sample_indices": "samples"}
_OF_SAMPLES = {
    **{f"phenotype_{name}": (0, part) for name, part in _COORDINATES.items()},
    **{f"phenotype_stat_{name}": (1, part) for name, part in _COORDINATES.items()},
}

Arrays: TypeAlias = tuple[npt.NDArray[Any], Int64Array, Int64Array, Int64Array]
"""Values, their columns, their measurements, and offsets of the samples."""


class Coordinates(NamedTuple):
    """Values of a batch in coordinate form.

    Attributes:
        values: ``[k] float32``.
        types: Column of each value, ``[k] int64``.
        samples: Number of the measurement within its sample, ``[k] int64``.
        ptr: Where each sample of the batch starts, ``[batch + 1] int64``.
        batch: Sample of the batch of each value, ``[k] int64``.
    """

    values: Tensor
    types: Tensor
    samples: Tensor
    ptr: Tensor
    batch: Tensor


def coordinates(values: Float32Array, value_ptr: Int64Array, *, fill: bool) -> Arrays:
    """The coordinate form of all samples' values, one sample after the other, NaN for no value.

    ``fill``: a sample without any value gets one NaN of type 0, measurement 0.
    """
    count = len(value_ptr) - 1
    row, types = np.nonzero(values == values)
    found = values[row, types]
    owner = np.repeat(np.arange(count), np.diff(value_ptr))[row]
    samples = row - value_ptr[owner]
    per_sample = np.bincount(owner, minlength=count)
    ptr = offsets(per_sample)
    if fill and not per_sample.all():
        at = ptr[:-1][per_sample == 0]
        found = np.insert(found, at, np.float32(np.nan))
        types, samples = np.insert(types, at, 0), np.insert(samples, at, 0)
        ptr = offsets(np.maximum(per_sample, 1))
    return found, types, samples, ptr


class SampleFields(Fields):
    """``LazySubgraphRepresentation``: everything shared, and masks; ``Perturbation``: masks of nodes alone."""

    kept_flags: ClassVar[bool] = True
    """Whether flags of what a domain keeps are at hand, rather than of what is removed."""

    def __init__(self, batch: DeletionBatch) -> None:
        self.batch, self.context = batch, batch.on_device
        self.template: Any = self.context.template
        self.host, self.tensors, self.count = batch.sections, batch.tensors, len(batch)
        self.topology, self.device = self.context.topology, self.context.device
        self.hetero = isinstance(self.context.base_graph, HeteroData)
        self.domains: dict[Any, Domain] = {d.key: d for d in self.topology.domains}
        ptr = batch.host_coordinates[1][-1]
        self.has_statistics = ptr[-1] > 0 or self.context.processor.always_statistics

    def names(self, key: Any, names: Iterable[str]) -> list[str]:
        """The template's fields, without those of statistics if no sample has any."""
        absent = () if self.has_statistics else STATISTICS
        return [n for n in names if key != self.topology.node_type or n not in absent]

    def num_nodes(self, key: Any) -> list[int]:
        """Number of nodes of a type in each sample."""
        store = self.template[key] if self.hetero else self.template._store
        return [int(store._mapping["num_nodes"])] * self.count

    def field(self, key: Any, name: str, value: Any) -> Field:
        """A field of a store."""
        if name in ("mask", "pert_mask") and (not self.hetero or isinstance(key, str)):
            return self.flags(self.node_mask(key, name == "mask"))
        if name == ("mask" if self.hetero else "edge_mask") and key in self.domains:
            return self.flags(self.domain_mask(key, True))
        own = self.own(name) if key == self.topology.node_type else None
        return self.shared(key, name, value) if own is None else own

    def own(self, name: str) -> Field | None:
        """A field of the perturbed nodes' store that holds what the sample says, or ``None``."""
        if name == "perturbation_indices":
            return self.ragged(self.tensors["perturbed"].clone(), self.host["perturbed_ptr"])
        if name in _OF_SAMPLES:
            kind, part = _OF_SAMPLES[name]
            found = self.batch._moved_coordinates[kind]  # empty where statistics have no names
            return self.ragged(getattr(found, part).clone(), self.batch.host_coordinates[kind][-1])
        if name == "phenotype_types":
            return listed([list(self.context.phenotypes) for _ in range(self.count)])
        if name == "phenotype_stat_types":
            return listed([list(self.context.statistics) for _ in range(self.count)])
        if name in ("ids_pert", "perturbed_genes"):
            ids, at = self.host["perturbed"].tolist(), self.host["perturbed_ptr"].tolist()
            graph = self.context.base_graph
            names = node_names(graph[self.topology.node_type] if self.hetero else graph._store)
            unknown = self.batch.generation.unknown_names(self.host["indices"])
            flat = ids if names is None else [names[k] for k in ids]
            return listed([[*flat[at[k] : at[k + 1]], *unknown[k]] for k in range(self.count)])
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
        tensor = self.context.tensor(value)
        if name in INDEX_FIELDS and (not self.hetero or isinstance(key, tuple)):
            return self._index(key, name, tensor)
        shape = (self.count, *tensor.shape)
        out = self.context.pool.take((key, name), shape, tensor.dtype).copy_(tensor.unsqueeze(0))
        return Field(out.flatten(0, 1), steps(self.count, tensor.size(0)), no_increments(self.count))

    def _index(self, key: Any, name: str, tensor: Tensor) -> Field:
        """An edge index: each sample's copy shifted by the nodes of the samples before it."""
        samples, size = torch.arange(self.count, device="cpu"), tensor.size(1)
        sizes = [self.num_nodes(end)[0] for end in ((key[0], key[2]) if self.hetero else (None, None))]
        ends = torch.tensor(sizes, device="cpu")
        incs = samples.view(-1, 1, 1) * ends.view(2, 1) if self.hetero else samples * ends[0]
        dtype = torch.result_type(tensor, incs) if self.hetero else tensor.dtype
        out = self.context.pool.take((key, name), (2, self.count, size), dtype)
        shifts = ends.view(2, 1, 1) * samples.view(1, -1, 1)
        torch.add(tensor.unsqueeze(1), shifts.to(self.device, dtype), out=out)
        return Field(out.view(2, -1), steps(self.count, size), incs)

    def flags(self, value: Tensor) -> Field:
        """A mask ``[batch, size]``."""
        return Field(value.flatten(), steps(self.count, value.size(1)), no_increments(self.count))

    @cached_property
    def _regions(self) -> Regions:
        return self.batch.regions("masks of PyG", kept=self.kept_flags)

    def domain_mask(self, key: Any, keep: bool) -> Tensor:
        """What each sample keeps of a domain, or what it removes."""
        flags = self._regions.of(self.domains[key])
        return flags if keep == self.kept_flags else ~flags

    def node_mask(self, key: Any, keep: bool) -> Tensor:
        """What each sample keeps of a node type, or what it removes."""
        if key == self.topology.node_type:
            return node_flags(self.context, self.tensors, (key, keep), kept=keep)
        if key in self.domains:
            return self.domain_mask(key, keep)
        shape = (self.count, self.num_nodes(key)[0])
        return torch.full(shape, keep, dtype=torch.bool, device=self.device)


def check_statistics(batch: DeletionBatch, exclude_keys: frozenset[str]) -> None:
    """Refuse a batch in which only some samples have statistics.

    Raises:
        SettingError: Naming two samples.
    """
    always = batch.on_device.processor.always_statistics
    if always or not batch.statistic_names or exclude_keys.issuperset(STATISTICS):
        return
    has = np.diff(batch.host_coordinates[1][-1]) > 0
    if has.any() and not has.all():
        with_it, without = (int(batch.sections["indices"][np.argmax(h)]) for h in (has, ~has))
        raise SettingError(
            f"sample {with_it} has statistics and sample {without} of the same batch has none: PyG would drop the "
            "fields or fail, depending on which comes first",
            fix='build with the processor\'s statistics="always"; or '
            f"to_pyg(exclude_keys={list(STATISTICS)}), and batch.labels(name) or batch.statistic_coordinates instead",
        )


def homogeneous_doubt(context: DeviceContext) -> None:
    """``Data`` tells fields of nodes and edges apart by size; equal sizes would filter one as the other.

    Raises:
        SettingError: If a selection has such fields.
    """
    topology = context.topology
    if topology.node_type is not None or topology.num_nodes != topology.size:
        return
    fields = extra_tensors(context.base_graph._store, (*NODE_FIELDS, *EDGE_FIELDS), topology.size)
    if fields and isinstance(context.processor, SubgraphRepresentation):
        raise SettingError(
            f"the selection has {topology.num_nodes} nodes and as many edges, so that {sorted(fields)} of a homogeneous "
            "graph could belong to either",
            fix="select one node more or less, or use a HeteroData base graph",
        )
