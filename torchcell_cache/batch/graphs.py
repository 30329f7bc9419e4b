"""Batches of generic records, of any processor: they hold whole graphs, so the batch holds the records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from torchcell_cache.batch.batch import SharedGraphBatch
from torchcell_cache.batch.context import GraphContext, renumbered
from torchcell_cache.batch.packed import Sections, require, require_within
from torchcell_cache.batch.pyg import MASKS, collate, collated
from torchcell_cache.batch.pyg_records import NotPlainError, RecordFields, dense_features
from torchcell_cache.codec.envelope import CHECKSUM_BYTES
from torchcell_cache.codec.field_reader import Bytes, Located, locate
from torchcell_cache.codec.generic import LAYOUT_AT
from torchcell_cache.codec.layout import Layout
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Float32Array, Int64Array, offsets, segments
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import FormatError, SettingError
from torchcell_cache.graph.induced_subgraph import Selection, subset
from torchcell_cache.graph.lasting import lasting, ranged
from torchcell_cache.graph.records import decode_graph
from torchcell_cache.graph.topology import EdgeType, Topology, perturbable_type, topology_of
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.schema import decoding


class GraphBatch(SharedGraphBatch, records="generic"):
    """A :class:`SharedGraphBatch` of graphs that are stored whole.

    Node ids, features, edge lists and :attr:`base_graph` of a restricted batch of cells speak of the selected nodes, numbered
    from 0 in the base graph's order; nodes of other types are all there.
    """

    @classmethod
    def _read_sections(cls, generation: Generation, positions: Int64Array) -> Sections:
        """The records themselves, decoded where they are used."""

        def joined(records: Sequence[Any]) -> Sections:
            ptr = offsets(np.fromiter(map(len, records), dtype=np.int64, count=len(records)))
            flat = np.frombuffer(bytearray().join(records), dtype=np.uint8)
            return {"indices": positions, "records": flat, "record_ptr": ptr}

        return generation.visit(positions, joined)

    @property
    def owner(self) -> str:
        """The store: records are its own, whatever is selected of them."""
        return self.generation.manifest.generation

    def _check_sections(self) -> None:
        require(self.sections, {"indices", "records", "record_ptr"})
        require_within(self.sections, {"indices": len(self.generation)})
        if int(np.diff(self.sections["record_ptr"]).min()) < CHECKSUM_BYTES:
            raise FormatError("a record of a packed batch is shorter than a checksum")

    def _within(self, context: GraphContext) -> Self:
        return self._like(self._bytes, context)

    @cached_property
    @lasting
    def graphs(self) -> list[Any]:
        """The samples' graphs on the CPU, decoded once."""
        return [self._graph(at) for at in range(len(self))]

    def _graph(self, at: int) -> Any:
        ptr = self.sections["record_ptr"]
        # A copy: decoded tensors are views, and editing a sample must not change the batch.
        record = memoryview(self.sections["records"][ptr[at] : ptr[at + 1]].tobytes())
        store = self.generation
        with decoding(store):
            graph = decode_graph(record[CHECKSUM_BYTES:], store.layouts, store.base_fields)
            return graph if self.context.selection is None else self._cut(graph, self.context.selection)

    def _cut(self, graph: Any, selection: Selection) -> Any:
        """What the selection leaves of a cell's graph."""
        node_type = selection.topology.node_type
        out = subset(graph, topology_of(self.generation.base_graph), selection)
        before, after = (g._store if node_type is None else g[node_type] for g in (graph, out))
        if "perturbation_indices" in before:  # whatever their number
            ids, names = before["perturbation_indices"].numpy(), list(before["ids_pert"])
            here = np.isin(ids, selection.nodes)
            after["perturbation_indices"] = torch.from_numpy(np.searchsorted(selection.nodes, ids[here]))
            own, others = names[: len(ids)], names[len(ids) :]
            after["ids_pert"] = [n for n, stays in zip(own, here, strict=False) if stays] + others
        return out

    def _position_space(self) -> Topology | None:
        """There is one where all samples have the base graph's edges, as cells do that no processor changed."""
        graph, made_by = self.generation.base_graph, self.generation.manifest.fingerprint.get("processor")
        if graph is None or self.generation.table is None or made_by != {"class": "none"}:
            return None
        node_type = perturbable_type(graph)
        measured = "measured" in (graph._store if node_type is None else graph[node_type])
        return topology_of(graph) if measured else None

    def fields_of(self, at: int, key: Any, error: type[Exception] = KeyError) -> dict[str, Any]:
        """Fields of one type of a sample, or an error that lists the types."""
        graph = self.graphs[at]
        if not isinstance(graph, HeteroData):
            return dict(graph._store._mapping)
        types = [*graph.node_types, *graph.edge_types]
        if key not in types:
            raise error(f"no {key!r} in the samples; there are {types}")
        return dict(graph[key]._mapping)

    def _rows(self) -> tuple[SampleTable, Int64Array]:
        table = self.generation.table
        if table is None:
            raise SettingError(
                f"{self.generation.root} knows no perturbed nodes and no labels: its source gives graphs",
                fix="take them from the samples: batch.to_pyg()",
            )
        return table, self.sections["indices"]

    def _perturbed_ids(self) -> tuple[Int64Array, Int64Array]:
        table, rows = self._rows()
        ids, ptr = segments(table.ids, table.ptr, rows)
        ids, selection = ids.astype(np.int64), self.context.selection
        return (ids, ptr) if selection is None else renumbered(ids, ptr, selection.nodes)

    def _measurements(self) -> tuple[Float32Array, Int64Array]:
        table, rows = self._rows()
        return segments(table.values, table.value_ptr, rows)

    @ranged("masks")
    def _masks(self, key: Any, of: str = "") -> Tensor:
        """From the field that says kept, or the one that says removed."""
        names, rows = (f"{of}mask", f"{of}pert_mask"), []
        for at in range(len(self)):
            store = self.fields_of(at, key)
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
        return self._masks(edge_type, "edge_" if edge_type is None else "")

    def node_mask(self, node_type: str | None = None) -> Tensor:
        """See :meth:`SharedGraphBatch.node_mask`; stacked from the samples' own masks.

        Raises:
            SettingError: If the samples have none.
        """
        topology = self.generation.topology
        key = topology.node_type if node_type is None and topology is not None else node_type
        return self._masks(key)

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
        found, selection = dense_features(self, (node_type, name)), self.context.selection
        if selection is None or node_type != selection.topology.node_type:
            return found
        whole = topology_of(self.generation.base_graph).num_nodes
        return found.index_select(1, self.nodes) if found.dim() > 1 and found.size(1) == whole else found

    def _mask_names(self) -> Iterable[str]:
        first = int.from_bytes(self.sections["records"][CHECKSUM_BYTES + LAYOUT_AT :][:8].tobytes(), "little")
        layout = self.generation.layouts.get(first)
        return set(MASKS).intersection(() if layout is None else (name for _, name in layout.keys))

    @cached_property
    def located(self) -> tuple[Bytes, Layout, list[Located]] | None:
        """Where the fields of all records lie, ``None`` if their layouts differ."""
        ptr = self.sections["record_ptr"]
        return locate(self.sections["records"], ptr[:-1] + CHECKSUM_BYTES, ptr[1:], self.generation.layouts)

    @ranged("expand")
    @lasting
    def _to_pyg(self, follow: frozenset[str], exclude: frozenset[str], drop: bool) -> Any:
        if not drop and self.context.selection is None:
            with decoding(self.generation), contextlib.suppress(NotPlainError):
                return collate(RecordFields(self), follow, exclude)
        graphs = list(self)
        wanted = _keys(graphs[0], exclude)
        for at, graph in enumerate(graphs[1:], 1):
            if _keys(graph, exclude) != wanted:
                first, other = (int(self.sections["indices"][k]) for k in (0, at))
                odd = sorted(map(str, set(_keys(graph, exclude)) ^ set(wanted)))
                raise SettingError(
                    f"samples {first} and {other} of one batch do not have the same fields ({', '.join(odd)}): PyG "
                    "would drop them or fail, depending on which comes first",
                    fix="exclude_keys=[...] with these names",
                )
        return collated(graphs, self.device, follow, exclude, drop)


def _keys(graph: Any, exclude_keys: frozenset[str]) -> set[tuple[Any, str]]:
    return {(s._key, name) for s in graph.stores for name in s._mapping if name not in exclude_keys}
