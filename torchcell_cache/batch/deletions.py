"""Batches of structured records: perturbed ids, measurements and, in delta storage, the code of what is removed."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchcell_cache.batch.batch import KINDS, MASKS, Coordinates, SharedGraphBatch
from torchcell_cache.batch.fast_pack import gather, pack_directly
from torchcell_cache.batch.masks import Regions, node_flags, owners, regions
from torchcell_cache.batch.pyg import collate, collated, is_plain
from torchcell_cache.batch.pyg_fields import STATISTICS, MaskFields, SampleFields
from torchcell_cache.batch.removals import check_removals, degrees
from torchcell_cache.batch.sections import Sections, require_sections, structured_sections
from torchcell_cache.batch.subgraphs import FilteredFields, KeptEdgeFields
from torchcell_cache.codec.deletions import StructuredColumns
from torchcell_cache.codec.delta_code import decode_gaps_ragged
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import CacheError, FormatError, SettingError
from torchcell_cache.graph.incidence import IncidenceIndex
from torchcell_cache.graph.topology import Domain, EdgeType, Topology, count_nodes
from torchcell_cache.processors import LazySubgraphRepresentation, SubgraphRepresentation
from torchcell_cache.store.decoding import decoding
from torchcell_cache.store.generation import Generation

_COORDINATES = ("values", "types", "samples", "ptr")


class PerturbationBatch(SharedGraphBatch):
    """A :class:`SharedGraphBatch` of a store of perturbations."""

    _columns: StructuredColumns | None = None
    _indices: Int64Array | None = None
    _removals_checked = False

    @classmethod
    def of_records(cls, generation: Generation, positions: Int64Array) -> PerturbationBatch:
        """Read a batch: removed positions from records, the rest from memory where it fits there."""
        batch = cls(generation)
        batch._indices = positions
        batch._packed = pack_directly(generation, positions)
        if batch._packed is None:
            batch._columns = gather(generation, positions)
        return batch

    def _make_sections(self) -> Sections:
        assert self._columns is not None
        assert self._indices is not None
        schema, generation = self.generation.structured, self.generation
        by_rule = None if schema.has_removed or generation.removal is None else generation.removal.by_rule
        return structured_sections(
            self._indices, self._columns, len(self.phenotype_names), schema.has_removed, by_rule
        )

    @classmethod
    def check_sections(cls, generation: Generation, sections: Sections) -> None:
        """Insist that sections fit a generation.

        Raises:
            FormatError: If they do not.
        """
        names = ["indices", "perturbed", "perturbed_ptr", "values", "value_ptr"]
        names += [f"phenotype_{part}" for part in _COORDINATES]
        if generation.schema["statistics"]:
            names += [f"statistic_{part}" for part in _COORDINATES]
        if generation.structured.has_removed:
            names += ["words", "word_ptr"]
        require_sections(sections, names, ("labels", "removed", "removed_ptr"))
        assert generation.topology is not None
        limits = {
            "indices": len(generation),
            "perturbed": generation.topology.num_nodes,
            "removed": generation.topology.size,
        }
        for name, limit in limits.items():
            array = sections.get(name)
            if array is not None and len(array) and not 0 <= int(array.min()) <= int(array.max()) < limit:
                raise FormatError(f"'{name}' of a packed batch is not within 0..{limit - 1}")
        for name in ("values", "labels"):
            width = sections[name].shape[1] if name in sections else generation.structured.num_columns
            if width != generation.structured.num_columns:
                raise FormatError(
                    f"'{name}' of a packed batch has {width} columns, expected {generation.structured.num_columns}"
                )

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def _positions(self) -> Int64Array:
        return self.sections["indices"] if self._indices is None else self._indices

    def _position_space(self) -> Topology | None:
        return self.generation.topology

    # Samples

    @property
    def columns(self) -> StructuredColumns:
        """The records as ragged columns on the host."""
        if self._columns is None:
            own = self.sections
            none = np.zeros(len(self) + 1, dtype=np.int64)
            self._columns = StructuredColumns(
                own["perturbed"],
                own["perturbed_ptr"],
                own["values"],
                own["value_ptr"],
                own.get("words", none[:0].astype(np.uint16)),
                own.get("word_ptr", none),
            )
        return self._columns

    def _graph(self, at: int) -> Any:
        own = self.columns
        row = {}
        for name, ptr in (("ids", own.ptr), ("values", own.value_ptr), ("words", own.word_ptr)):
            start, stop = int(ptr[at]), int(ptr[at + 1])
            row[name] = getattr(own, name)[start:stop]
            row[{"ids": "ptr", "values": "value_ptr", "words": "word_ptr"}[name]] = np.array(
                [0, stop - start]
            )
        with decoding(self.generation):
            unknown = self.generation.unknown_names(self._positions[at : at + 1])
            return self.generation.assembler.graphs(StructuredColumns(**row), unknown)[0]

    @property
    def perturbed(self) -> Tensor:
        """Perturbed node ids, one sample after the other, ``[num_perturbed] int64``."""
        return self.tensors["perturbed"]

    @property
    def perturbation_indices(self) -> Tensor:
        """The representations' name of :attr:`perturbed`; like there, not shifted."""
        return self.perturbed

    @property
    def perturbed_ptr(self) -> Tensor:
        """Where each sample's ids start, ``[batch + 1] int64``."""
        return self.tensors["perturbed_ptr"]

    @property
    def perturbed_batch(self) -> Tensor:
        """Sample of each perturbed id, ``[num_perturbed] int64``."""
        return owners(self.perturbed_ptr, len(self.perturbed))

    def labels(self, name: str) -> Tensor:
        """See :meth:`SharedGraphBatch.labels`."""
        column = self._column(name)
        # One measurement per sample is its own mean.
        return self.tensors["labels" if "labels" in self.sections else "values"][:, column].clone()

    @property
    def phenotype_coordinates(self) -> Coordinates:
        """All phenotype values, measurement by measurement; one NaN for a sample without any."""
        return self._coordinates("phenotype")

    @property
    def statistic_coordinates(self) -> Coordinates | None:
        """All statistic values, or ``None`` if the store has no statistics."""
        return self._coordinates("statistic") if self.statistic_names else None

    def _coordinates(self, kind: str) -> Coordinates:
        values, types, samples, ptr = (self.tensors[f"{kind}_{part}"] for part in _COORDINATES)
        return Coordinates(values, types, samples, ptr, owners(ptr, len(values)))

    # What is removed

    @property
    def _index(self) -> IncidenceIndex:
        assert self.generation.removal is not None
        return self.generation.removal.index

    @cached_property
    def _num_incident(self) -> int:
        """Entries of the incidence index under all perturbed nodes: the size of what the device will expand."""
        if self.generation.structured.has_removed:
            return 0
        return int(degrees(self._index, self.sections["perturbed"]).sum())

    @cached_property
    def _removed(self) -> tuple[npt.NDArray[Any], Int64Array]:
        """Removed positions on the host, ascending and unique per sample, and their offsets."""
        self._check_removals()
        if self.generation.structured.has_removed:
            return decode_gaps_ragged(self.sections["words"], self.sections["word_ptr"])
        assert self.generation.removal is not None
        return self.generation.removal.removed(self.sections["perturbed"], self.sections["perturbed_ptr"])

    def _check_removals(self) -> None:
        """See :func:`check_removals`; once per batch."""
        if not self._removals_checked and self.generation.structured.has_removed:
            check_removals(self.generation, self.sections)
            self._removals_checked = True

    def check_not_wild_type(self, edge_types: list[EdgeType] | None = None) -> None:
        """Refuse a batch whose masks say nothing: no sample loses an edge although samples perturb nodes.

        A model that looks at edges only cannot tell such a batch from the unperturbed base graph. It is legitimate for
        samples whose nodes have no edge in the types looked at, so it is for you to ask, once per run say.

        Args:
            edge_types: What the model looks at; every edge type by default.

        Raises:
            CacheError: Saying which edge types were looked at.
        """
        domains = [d for d in self.resident.topology.domains if edge_types is None or d.key in edge_types]
        positions, _ = self._removed
        lost = any(bool(((positions >= d.start) & (positions < d.stop)).any()) for d in domains)
        if len(self.sections["perturbed"]) and not lost:
            raise CacheError(
                f"all {len(self)} samples of this batch equal the unperturbed base graph in {[d.key for d in domains]}, "
                f"although they perturb {len(self.sections['perturbed'])} nodes",
                fix="check that the source's node names and the base graph's edges belong together",
            )

    @cached_property
    def _regions(self) -> Regions:
        self._check_removals()
        return regions(self.resident, self.tensors, self._num_incident, "masks", kept=True)

    def _domain(self, key: Any, what: str) -> Domain:
        domains = self.resident.topology.domains
        found = next((d for d in domains if d.key == key), None)
        if found is None:
            raise KeyError(f"no {what} {key!r} in the base graph; there are {[d.key for d in domains]}")
        return found

    def edge_mask(self, edge_type: EdgeType | None = None) -> Tensor:
        """See :meth:`SharedGraphBatch.edge_mask`."""
        return self._regions.of(self._domain(edge_type, "edge type"))

    def node_mask(self, node_type: str | None = None) -> Tensor:
        """See :meth:`SharedGraphBatch.node_mask`."""
        topology = self.resident.topology
        if node_type is None or node_type == topology.node_type:
            return self._perturbed_mask
        if any(d.key == node_type for d in topology.domains):
            return self._regions.of(self._domain(node_type, "node type"))
        types = getattr(self.resident.base_graph, "node_types", [])
        if node_type not in types:
            raise KeyError(f"no node type {node_type!r} in the base graph; there are {types}")
        size = count_nodes(self.resident.base_graph[node_type], f"'{node_type}'")
        return torch.ones((len(self), size), dtype=torch.bool, device=self.device)

    @cached_property
    def _perturbed_mask(self) -> Tensor:
        return node_flags(self.resident, self.tensors, "nodes", kept=True)

    def removed_edges(self, edge_type: EdgeType | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`SharedGraphBatch.removed_edges`."""
        domain = self._domain(edge_type, "edge type")
        positions, ptr = self._removed
        inside = (positions >= domain.start) & (positions < domain.stop)
        sample = np.repeat(np.arange(len(self)), np.diff(ptr))[inside]
        edge = positions[inside].astype(np.int64) - domain.start
        return torch.from_numpy(sample).to(self.device), torch.from_numpy(edge).to(self.device)

    # PyG

    def _mask_names(self) -> tuple[str, ...]:
        return MASKS if isinstance(self.generation.processor, LazySubgraphRepresentation) else ()

    def _to_pyg(self, follow_batch: frozenset[str], exclude_keys: frozenset[str], drop: bool) -> Any:
        self._check_statistics(exclude_keys)
        resident = self.resident
        if not is_plain(resident.template):
            return self._placed(collated(list(self), follow_batch, exclude_keys, drop))
        self._check_removals()
        filters = isinstance(resident.processor, SubgraphRepresentation)
        kind = FilteredFields if filters else SampleFields
        if self._mask_names():
            kind = KeptEdgeFields if drop else MaskFields
        fields = kind(resident, self.sections, self.tensors, self._num_incident, lambda: self._removed)
        fields.unknown = self.generation.unknown_names(self._positions)
        return collate(resident.template, fields, len(self), self.device, follow_batch, exclude_keys)

    def _check_statistics(self, exclude_keys: frozenset[str]) -> None:
        if "statistic_ptr" not in self.sections or exclude_keys.issuperset(STATISTICS):
            return
        if self.resident.processor.always_statistics:
            return
        has = np.diff(self.sections["statistic_ptr"]) > 0
        if has.any() and not has.all():
            with_it, without = (int(self.sections["indices"][np.argmax(h)]) for h in (has, ~has))
            raise SettingError(
                f"sample {with_it} has statistics and sample {without} of the same batch has none: PyG would drop the "
                "fields or fail, depending on which comes first",
                fix='build with the processor\'s statistics="always"; or '
                f"to_pyg(exclude_keys={list(STATISTICS)}), and batch.labels(name) or batch.statistic_coordinates instead",
            )


KINDS["structured"] = PerturbationBatch
