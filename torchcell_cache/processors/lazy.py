"""``LazySubgraphRepresentation``: the whole base graph and masks that say what is left of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch_geometric.data import Data, HeteroData

from torchcell_cache.graph.topology import Topology, count_nodes
from torchcell_cache.processors.deletion import (
    Deletion,
    DeletionProcessor,
    extra_tensors,
    graph_of,
    node_names,
    perturbation_fields,
)
from torchcell_cache.processors.private import clone_stores
from torchcell_cache.processors.subgraph import EDGE_FIELDS, NODE_FIELDS, cut_edges, other_nodes


@dataclass(frozen=True, slots=True, eq=False)
class LazyShell:
    """A graph without its sample: every store filled with the base graph's own objects."""

    graph: Data | HeteroData
    head: dict[str, Any]
    features: dict[str, Any]
    tail: dict[str, Any]
    names: list[str] | None
    others: tuple[tuple[str, int], ...] = ()


class LazySubgraphRepresentation(DeletionProcessor):
    """Full base tensors - the base graph's own objects - plus boolean masks.

    Fields and order are torchcell's; per-node and per-edge tensors of the base graph that torchcell does not know
    (``edge_attr``, ``edge_weight``, ...) follow at the end of their store. A homogeneous base graph gives a ``Data`` with
    the same node fields, then ``edge_index`` and ``edge_mask``.

    Example:
        >>> rule = tc.LazySubgraphRepresentation(gpr="rule")  # a reaction goes when its rule says so
        >>> tc.build("stores/rule", source=tc.testing.tiny_source(4), processor=rule, progress=False)
        PreprocessedDataset(4)
    """

    gpr_by: ClassVar[str] = "gene"

    def make_shell(self, base_graph: Any, topology: Topology) -> LazyShell:
        """Stores shared by all samples; see :class:`LazyShell`."""
        own, size = topology.node_type, topology.num_nodes
        base = base_graph._store if own is None else base_graph[own]
        head = {"node_ids": base.node_ids} if "node_ids" in base else {}
        head["num_nodes"] = size
        features = {"x": base.x} if base._mapping.get("x") is not None else {}
        if own is None:
            known = (*NODE_FIELDS, *EDGE_FIELDS)
            tail = extra_tensors(base, known, size)
            if topology.domains:
                tail |= {"edge_index": base.edge_index, **extra_tensors(base, known, topology.size)}
            return LazyShell(Data(), head, features, tail, node_names(base))
        graph, others = graph_of(own, {}), []
        for node_type in base_graph.node_types:
            if node_type == own:
                continue
            store, is_reaction = base_graph[node_type], node_type == "reaction"
            count = count_nodes(store, f"'{node_type}'")
            fields, extras = other_nodes(store, node_type, count, None)
            if is_reaction and store._mapping.get("x") is not None:
                extras.pop("x", None)
                extras["x"] = store.x
            graph[node_type]._mapping = {**fields, "pert_mask": None, "mask": None, **extras}
            if not is_reaction or topology.find("reaction") is None:
                others.append((node_type, count))
        for domain in topology.domains:
            if domain.role != "reaction":
                fields, extras = cut_edges(base_graph[domain.key], domain, None, {}, EDGE_FIELDS)
                fields["mask"] = None
                if domain.role == "rmr":  # torchcell has the number last
                    fields["num_edges"] = fields.pop("num_edges")
                graph[domain.key]._mapping = fields | extras
        tail = extra_tensors(base, NODE_FIELDS, size)
        return LazyShell(graph, head, features, tail, node_names(base), tuple(others))

    def assemble(
        self, base_graph: Any, topology: Topology, shell: LazyShell, deletion: Deletion
    ) -> Data | HeteroData:
        """The sample's graph: copies of the shell's stores and the sample's own fields."""
        pert_mask = torch.zeros(topology.num_nodes, dtype=torch.bool, device="cpu")
        fields = perturbation_fields(shell.names, deletion.perturbed, deletion.unknown)
        pert_mask[fields["perturbation_indices"]] = True
        mapping: dict[str, Any] = {
            **shell.head,
            **fields,
            **shell.features,
            **self.labels(deletion),
            "pert_mask": pert_mask,
            "mask": ~pert_mask,
            **shell.tail,
        }
        if topology.node_type is None:
            if deletion.kept:
                mapping["edge_mask"] = deletion.kept[0]
            return graph_of(None, mapping)
        graph, mappings = clone_stores(shell.graph)
        graph._node_store_dict[topology.node_type].__dict__["_mapping"] = mapping
        for node_type, size in shell.others:
            # Fresh for every sample: a mask edited in place must not reach the next one.
            mappings[node_type]["pert_mask"] = torch.zeros(size, dtype=torch.bool, device="cpu")
            mappings[node_type]["mask"] = torch.ones(size, dtype=torch.bool, device="cpu")
        for domain, kept in zip(topology.domains, deletion.kept, strict=True):
            store = mappings[domain.key]
            if domain.role == "reaction":
                store["pert_mask"] = ~kept
            store["mask"] = kept
        return graph
