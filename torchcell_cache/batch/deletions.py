"""Batches of structured records: perturbed ids, measurements and, in delta storage, the code of what is removed."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchcell_cache.batch.batch import SharedGraphBatch
from torchcell_cache.batch.context import GraphContext, renumbered
from torchcell_cache.batch.masks import Regions, check_removals, node_flags, owners, regions
from torchcell_cache.batch.packed import Sections, require, require_within
from torchcell_cache.batch.pyg import MASKS, collate, collated, is_plain
from torchcell_cache.batch.pyg_fields import (
    Arrays,
    Coordinates,
    SampleFields,
    check_statistics,
    coordinates,
    homogeneous_doubt,
)
from torchcell_cache.batch.subgraphs import FilteredFields, KeptEdgeFields
from torchcell_cache.codec.deletions import StructuredColumns, words_of
from torchcell_cache.codec.delta_code import decode_gaps_ragged
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Float32Array, Int64Array, ascends, merge_ragged
from torchcell_cache.errors import CacheError, FormatError
from torchcell_cache.graph.lasting import lasting, ranged
from torchcell_cache.graph.topology import Domain, EdgeType, Topology, count_nodes
from torchcell_cache.processors import LazySubgraphRepresentation, SubgraphRepresentation
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.schema import decoding

_NO_WORDS = np.zeros(0, dtype=np.uint16)


class DeletionBatch(SharedGraphBatch, records="structured"):
    """A :class:`SharedGraphBatch` of a store of perturbations.

    Node ids, masks, edge lists and :attr:`base_graph` of a restricted one speak of the selected nodes, numbered from 0 in the
    base graph's order: it is what a batch of a store of ``base_graph.subgraph(nodes)`` would be.
    """

    _removals_checked = False

    @classmethod
    def _read_sections(cls, generation: Generation, positions: Int64Array) -> Sections:
        """Removed positions from records, the rest from memory where it fits there."""
        reader, schema = generation.table_reader, generation.structured
        if reader is None:
            columns = generation.read_columns(positions)
            (ids, ptr), (values, value_ptr) = (columns.ids, columns.ptr), (columns.values, columns.value_ptr)
            words = columns.words, columns.word_ptr
        else:
            ids, ptr = reader.perturbed(positions)
            values, value_ptr = reader.measurements(positions)
            words = _NO_WORDS, ptr
            if schema.has_removed:
                words = generation.visit(positions, lambda records: words_of(schema, records, ptr, value_ptr))
        sections: Sections = {"indices": positions, "perturbed_ptr": ptr, "perturbed": ids.astype(np.int64)}
        sections |= {"value_ptr": value_ptr, "values": values}
        if schema.has_removed:
            sections["words"], sections["word_ptr"] = words
        return _with_rules(GraphContext(generation), sections)

    def _check_sections(self) -> None:
        sections, context, schema = self.sections, self.context, self.generation.structured
        names = {"indices", "perturbed", "perturbed_ptr", "values", "value_ptr"}
        assert context.topology is not None
        limits = {"indices": len(self.generation), "perturbed": context.topology.num_nodes}
        if context.has_removed:
            names |= {"words", "word_ptr"}
        elif self.generation.removal is not None and self.generation.removal.by_rule is not None:
            names |= {"removed", "removed_ptr"}
            limits["removed"] = context.topology.size
        require(sections, names)
        require_within(sections, limits)
        if not ascends(sections["perturbed"], sections["perturbed_ptr"]):
            raise FormatError("'perturbed' of a packed batch does not ascend within each sample")
        if sections["values"].shape[1] != schema.num_columns:
            raise FormatError(
                f"'values' of a packed batch has {sections['values'].shape[1]} columns, expected {schema.num_columns}"
            )

    def _position_space(self) -> Topology | None:
        return self.generation.topology

    def _within(self, context: GraphContext) -> Self:
        """The batch of a part of its graph: relabelled ids, its labels as they are."""
        self._check_removals()
        assert context.selection is not None
        sections = {name: self.sections[name] for name in ("indices", "value_ptr", "values")}
        sections["perturbed"], sections["perturbed_ptr"] = renumbered(
            *self._perturbed_ids(), context.selection.nodes
        )
        out = type(self)(context, _with_rules(context, sections))
        out.is_padding = self.is_padding
        return out.to(self.device, non_blocking=True)

    # Samples

    def _graph(self, at: int) -> Any:
        if self.context.selection is not None:
            homogeneous_doubt(self.on_device)
        row: list[npt.NDArray[Any]] = []
        for name, ptr in (("perturbed", "perturbed_ptr"), ("values", "value_ptr"), ("words", "word_ptr")):
            start, stop = self.sections[ptr][at : at + 2].tolist() if ptr in self.sections else (0, 0)
            row += [self.sections.get(name, _NO_WORDS)[start:stop], np.array([0, stop - start])]
        with decoding(self.generation):
            unknown = self.generation.unknown_names(self.sections["indices"][at : at + 1])
            return self.context.assembler.graphs(StructuredColumns(*row), unknown)[0]

    def _perturbed_ids(self) -> tuple[Int64Array, Int64Array]:
        return self.sections["perturbed"], self.sections["perturbed_ptr"]

    @property
    def _perturbed(self) -> tuple[Tensor, Tensor]:
        return self.tensors["perturbed"], self.tensors["perturbed_ptr"]

    @property
    def perturbation_indices(self) -> Tensor:
        """The representations' name of :attr:`perturbed`; like there, not shifted."""
        return self.perturbed

    # Labels

    def _measurements(self) -> tuple[Float32Array, Int64Array]:
        return self.sections["values"], self.sections["value_ptr"]

    def labels(self, name: str) -> Tensor:
        """See :meth:`SharedGraphBatch.labels`."""
        column, ptr = self._column(name), self.sections["value_ptr"]
        if ptr[-1] == len(self) and (ptr[1:] > ptr[:-1]).all():  # one measurement each is its own mean
            return self.tensors["values"][:, column].clone()
        return super().labels(name)

    @cached_property
    def host_coordinates(self) -> tuple[Arrays, Arrays]:
        """Phenotypes and statistics of all samples in coordinate form, on the host."""
        split, (values, ptr) = len(self.phenotype_names), self._measurements()
        first, second = values[:, :split], values[:, split:]
        return coordinates(first, ptr, fill=True), coordinates(second, ptr, fill=False)

    @cached_property
    @lasting
    def _moved_coordinates(self) -> tuple[Coordinates, ...]:
        moved = ([self._there(array) for array in arrays] for arrays in self.host_coordinates)
        return tuple(Coordinates(v, t, s, ptr, owners(ptr, len(v))) for v, t, s, ptr in moved)

    @property
    def phenotype_coordinates(self) -> Coordinates:
        """All phenotype values, measurement by measurement; one NaN for a sample without any."""
        return self._moved_coordinates[0]

    @property
    def statistic_coordinates(self) -> Coordinates | None:
        """All statistic values, or ``None`` if the store has no statistics."""
        return self._moved_coordinates[1] if self.statistic_names else None

    # What is removed

    @cached_property
    def _num_incident(self) -> int:
        """Entries of the incidence index under all perturbed nodes: the size of what the device will expand."""
        removal = None if self.context.has_removed else self.context.removal
        return 0 if removal is None else int(removal.index.degrees(self.sections["perturbed"]).sum())

    @cached_property
    def removed_positions(self) -> tuple[npt.NDArray[Any], Int64Array]:
        """Removed positions on the host, ascending and unique per sample, and their offsets."""
        self._check_removals()
        if self.context.has_removed:
            return decode_gaps_ragged(self.sections["words"], self.sections["word_ptr"])
        assert self.context.removal is not None
        found = self.context.removal.index.removed(*self._perturbed_ids())
        if "removed" not in self.sections:
            return found
        return merge_ragged(found, (self.sections["removed"], self.sections["removed_ptr"]))

    def _check_removals(self) -> None:
        """See :func:`check_removals`; once per batch."""
        if not self._removals_checked and self.context.has_removed:
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
        domains = [d for d in self.on_device.topology.domains if edge_types is None or d.key in edge_types]
        lost = any(len(self.removed_of(domain)[0]) for domain in domains)
        if len(self.sections["perturbed"]) and not lost:
            raise CacheError(
                f"all {len(self)} samples of this batch equal the unperturbed base graph in {[d.key for d in domains]}, "
                f"although they perturb {len(self.sections['perturbed'])} nodes",
                fix="check that the source's node names and the base graph's edges belong together",
            )

    def regions(self, name: str, *, kept: bool) -> Regions:
        """What each sample keeps, or removes, of every domain."""
        self._check_removals()
        return regions(self.on_device, self.tensors, self._num_incident, name, kept=kept)

    @cached_property
    def _regions(self) -> Regions:
        return self.regions("masks", kept=True)

    def _domain(self, key: Any, what: str) -> Domain:
        domains = self.on_device.topology.domains
        found = next((d for d in domains if d.key == key), None)
        if found is None:
            raise KeyError(f"no {what} {key!r} in the base graph; there are {[d.key for d in domains]}")
        return found

    def edge_mask(self, edge_type: EdgeType | None = None) -> Tensor:
        """See :meth:`SharedGraphBatch.edge_mask`."""
        return self._regions.of(self._domain(edge_type, "edge type"))

    def node_mask(self, node_type: str | None = None) -> Tensor:
        """See :meth:`SharedGraphBatch.node_mask`."""
        topology = self.on_device.topology
        if node_type is None or node_type == topology.node_type:
            return self._perturbed_mask
        if any(d.key == node_type for d in topology.domains):
            return self._regions.of(self._domain(node_type, "node type"))
        graph = self.on_device.base_graph
        types = getattr(graph, "node_types", [])
        if node_type not in types:
            raise KeyError(f"no node type {node_type!r} in the base graph; there are {types}")
        size = count_nodes(graph[node_type], f"'{node_type}'")
        return torch.ones((len(self), size), dtype=torch.bool, device=self.device)

    @cached_property
    def _perturbed_mask(self) -> Tensor:
        return node_flags(self.on_device, self.tensors, "nodes", kept=True)

    def removed_edges(self, edge_type: EdgeType | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`SharedGraphBatch.removed_edges`."""
        sample, edge = self.removed_of(self._domain(edge_type, "edge type"))
        return torch.from_numpy(sample).to(self.device), torch.from_numpy(edge).to(self.device)

    def removed_of(self, domain: Domain) -> tuple[Int64Array, Int64Array]:
        """What is removed of a domain on the host, ascending: samples, and positions within it."""
        positions, _ = self.removed_positions
        inside = (positions >= domain.start) & (positions < domain.stop)
        return self._removed_samples[inside], positions[inside].astype(np.int64) - domain.start

    @cached_property
    def _removed_samples(self) -> Int64Array:
        return np.repeat(np.arange(len(self)), np.diff(self.removed_positions[1]))

    # PyG

    def _mask_names(self) -> tuple[str, ...]:
        return MASKS if isinstance(self.generation.processor, LazySubgraphRepresentation) else ()

    @ranged("expand")
    @lasting
    def _to_pyg(self, follow: frozenset[str], exclude: frozenset[str], drop: bool) -> Any:
        context = self.on_device
        if self.context.selection is not None:
            homogeneous_doubt(context)
        check_statistics(self, exclude)
        if not is_plain(context.template):
            return collated(list(self), self.device, follow, exclude, drop)
        self._check_removals()
        filters = isinstance(context.processor, SubgraphRepresentation)
        kind: type[SampleFields] = FilteredFields if filters else SampleFields
        if drop and self._mask_names():
            kind = KeptEdgeFields
        return collate(kind(self), follow, exclude)


def _with_rules(context: GraphContext, sections: Sections) -> Sections:
    """Sections with what reactions take along that gene rules switch off: a device would have to ask back for it."""
    by_rule = None if context.has_removed or context.removal is None else context.removal.by_rule
    if by_rule is not None:
        removed, ptr = by_rule.removed(sections["perturbed"], sections["perturbed_ptr"])
        sections |= {"removed": removed.astype(np.int64), "removed_ptr": ptr}
    return sections
