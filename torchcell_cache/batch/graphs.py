"""Batches of generic records, of any processor: they hold whole graphs, so the batch holds the records."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torchcell_cache.batch.batch import KINDS, MASKS, SharedGraphBatch
from torchcell_cache.batch.features import dense_features
from torchcell_cache.batch.masks import owners
from torchcell_cache.batch.pyg import collated
from torchcell_cache.batch.sections import Sections, generic_sections, mean_labels, require_sections
from torchcell_cache.codec.envelope import CHECKSUM_BYTES
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import FormatError, SettingError
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.records import decode_graph
from torchcell_cache.graph.topology import EdgeType, Topology, perturbable_type, topology_of
from torchcell_cache.store.decoding import decoding
from torchcell_cache.store.generation import Generation

_KEPT, _REMOVED = ("mask", "edge_mask"), ("pert_mask", "edge_pert_mask")


class GraphBatch(SharedGraphBatch):
    """A :class:`SharedGraphBatch` of graphs that are stored whole."""

    @classmethod
    def of_records(cls, generation: Generation, positions: Int64Array) -> GraphBatch:
        """Read a batch."""
        return cls(generation, generic_sections(positions, generation.read(positions)))

    def _make_sections(self) -> Sections:
        raise AssertionError("given when the batch is made")

    @classmethod
    def check_sections(cls, generation: Generation, sections: Sections) -> None:
        """Insist that sections fit a generation.

        Raises:
            FormatError: If they do not.
        """
        require_sections(sections, ("indices", "records", "record_ptr"))
        indices, ptr = sections["indices"], sections["record_ptr"]
        if not 0 <= int(indices.min()) <= int(indices.max()) < len(generation):
            raise FormatError(f"'indices' of a packed batch is not within 0..{len(generation) - 1}")
        if int(np.diff(ptr).min()) < CHECKSUM_BYTES:
            raise FormatError("a record of a packed batch is shorter than a checksum")

    @cached_property
    @lasting
    def graphs(self) -> list[Any]:
        """The samples' graphs on the CPU, decoded once."""
        return [self._graph(at) for at in range(len(self))]

    def _graph(self, at: int) -> Any:
        ptr = self.sections["record_ptr"]
        # A copy: decoded tensors are views, and editing a sample must not change the batch.
        record = memoryview(self.sections["records"][ptr[at] : ptr[at + 1]].tobytes())
        with decoding(self.generation):
            return decode_graph(record[CHECKSUM_BYTES:], self.generation.layouts, self.generation.base_fields)

    @property
    def shares_edges(self) -> bool:
        """Whether all samples have the base graph's edges, as cells do that no processor changed: one selection fits all."""
        graph, made_by = self.generation.base_graph, self.generation.manifest.fingerprint.get("processor")
        if graph is None or self.generation.table is None or made_by != {"class": "none"}:
            return False
        node_type = perturbable_type(graph)
        return "measured" in (graph._store if node_type is None else graph[node_type])

    def _position_space(self) -> Topology | None:
        return topology_of(self.generation.base_graph) if self.shares_edges else None

    def _store(self, at: int, key: Any) -> dict[str, Any]:
        graph = self.graphs[at]
        if isinstance(graph, HeteroData):
            types = [*graph.node_types, *graph.edge_types]
            if key not in types:
                raise KeyError(f"no {key!r} in the samples; there are {types}")
            return dict(graph[key]._mapping)
        return dict(graph._store._mapping)

    def _rows(self) -> tuple[SampleTable, list[int]]:
        table = self.generation.table
        if table is None:
            raise SettingError(
                f"{self.generation.root} knows no perturbed nodes and no labels: its source gives graphs",
                fix="take them from the samples: batch.to_pyg()",
            )
        return table, self.sections["indices"].tolist()

    @cached_property
    @lasting
    def perturbed_ptr(self) -> Tensor:
        """Where each sample's perturbed ids start, ``[batch + 1] int64``."""
        table, rows = self._rows()
        counts = np.diff(table.ptr)[rows]
        return torch.from_numpy(offsets(counts)).to(self.device)

    @cached_property
    @lasting
    def perturbed(self) -> Tensor:
        """Perturbed node ids, one sample after the other, ``[num_perturbed] int64``."""
        table, rows = self._rows()
        ids = np.concatenate([table.ids[table.ptr[k] : table.ptr[k + 1]] for k in rows])
        return torch.from_numpy(ids.astype(np.int64)).to(self.device)

    @property
    def perturbed_batch(self) -> Tensor:
        """Sample of each perturbed id, ``[num_perturbed] int64``."""
        return owners(self.perturbed_ptr, len(self.perturbed))

    def labels(self, name: str) -> Tensor:
        """See :meth:`SharedGraphBatch.labels`."""
        column = self._column(name)
        table, rows = self._rows()
        parts = [table.values[table.value_ptr[k] : table.value_ptr[k + 1]] for k in rows]
        ptr = offsets(np.array([len(part) for part in parts]))
        return torch.from_numpy(mean_labels(np.concatenate(parts), ptr)[:, column].copy()).to(self.device)

    def _masks(self, key: Any, names: tuple[str, str]) -> Tensor:
        """``names``: the field that says kept, and the one that says removed."""
        rows = []
        for at in range(len(self)):
            store = self._store(at, key)
            kept, removed = store.get(names[0]), store.get(names[1])
            if isinstance(kept, Tensor) and kept.dtype == torch.bool:
                rows.append(kept)
            elif isinstance(removed, Tensor) and removed.dtype == torch.bool:
                rows.append(~removed)
            else:
                raise SettingError(
                    f"sample {int(self.sections['indices'][at])} has no mask of {key!r}: neither {names[0]!r} nor "
                    f"{names[1]!r} is among {sorted(store)}",
                    fix="use batch.to_pyg(), or a processor that gives masks",
                )
        if len({row.shape for row in rows}) > 1:
            raise SettingError(
                f"the masks of {key!r} are not of one shape in this batch: {sorted({tuple(row.shape) for row in rows})}",
                fix="use batch.to_pyg(), which joins samples of different sizes",
            )
        return torch.stack(rows).to(self.device)

    def edge_mask(self, edge_type: EdgeType | None = None) -> Tensor:
        """See :meth:`SharedGraphBatch.edge_mask`; stacked from the samples' own masks.

        Raises:
            SettingError: If the samples have none.
        """
        which = 1 if edge_type is None else 0
        return self._masks(edge_type, (_KEPT[which], _REMOVED[which]))

    def node_mask(self, node_type: str | None = None) -> Tensor:
        """See :meth:`SharedGraphBatch.node_mask`; stacked from the samples' own masks.

        Raises:
            SettingError: If the samples have none.
        """
        topology = self.generation.topology
        key = topology.node_type if node_type is None and topology is not None else node_type
        return self._masks(key, ("mask", "pert_mask"))

    def features(self, node_type: str | None = None, name: str = "x") -> Tensor:
        """A node feature of every sample, made on the batch's device: the base graph's, and what differs from it.

        The batch holds differences only, so nothing dense is made on the host or sent to a device.

        Args:
            node_type: The node type; ``gene`` or the only one by default, none for ``Data``.
            name: Name of the field.

        Returns:
            ``[batch, *shape of the field]``, contiguous. Clone it before you change it.

        Raises:
            SettingError: If the samples do not all have this field with one shape and dtype.
        """
        graph = self.generation.base_graph
        if node_type is None and graph is not None:
            node_type = perturbable_type(graph)
        return dense_features(self, (node_type, name))

    def removed_edges(self, edge_type: EdgeType | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`SharedGraphBatch.removed_edges`."""
        sample, edge = torch.nonzero(~self.edge_mask(edge_type), as_tuple=True)
        return sample, edge

    def _mask_names(self) -> Iterable[str]:
        named = {name for store in self.graphs[0].stores for name in store._mapping}
        return named.intersection(MASKS)

    def _to_pyg(self, follow_batch: frozenset[str], exclude_keys: frozenset[str], drop: bool) -> Any:
        graphs = list(self)
        wanted = _keys(graphs[0], exclude_keys)
        for at, graph in enumerate(graphs[1:], 1):
            if _keys(graph, exclude_keys) != wanted:
                first, other = (int(self.sections["indices"][k]) for k in (0, at))
                odd = sorted(map(str, set(_keys(graph, exclude_keys)) ^ set(wanted)))
                raise SettingError(
                    f"samples {first} and {other} of one batch do not have the same fields ({', '.join(odd)}): PyG "
                    "would drop them or fail, depending on which comes first",
                    fix="exclude_keys=[...] with these names",
                )
        return self._placed(collated(graphs, follow_batch, exclude_keys, drop))


def _keys(graph: Any, exclude_keys: frozenset[str]) -> set[tuple[Any, str]]:
    return {(s._key, name) for s in graph.stores for name in s._mapping if name not in exclude_keys}


KINDS["generic"] = GraphBatch
