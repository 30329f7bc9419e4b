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
    node_names,
    perturbation_fields,
)
from torchcell_cache.processors.private import clone_stores

NODE_FIELDS = ("node_ids", "num_nodes", "x", "w_growth", "mask", "pert_mask")
EDGE_FIELDS = ("edge_index", "hyperedge_index", "num_edges", "stoichiometry", "mask", "pert_mask")


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
        homogeneous = topology.node_type is None
        base = base_graph._store if homogeneous else base_graph[topology.node_type]
        head: dict[str, Any] = {}
        if "node_ids" in base:
            head["node_ids"] = base.node_ids
        head["num_nodes"] = topology.num_nodes
        features = {"x": base.x} if base._mapping.get("x") is not None else {}
        if homogeneous:
            return LazyShell(
                Data(), head, features, _homogeneous_tail(base_graph, topology), node_names(base)
            )
        graph = HeteroData()
        graph[topology.node_type]._mapping = {}
        for node_type in base_graph.node_types:
            if node_type != topology.node_type:
                graph[node_type]._mapping = _node_shell(base_graph[node_type], node_type)
        for domain in topology.domains:
            if domain.role != "reaction":
                store = base_graph[domain.key]
                graph[domain.key]._mapping = _edge_shell(store, domain.role, domain.size)
        tail = extra_tensors(base, NODE_FIELDS, topology.num_nodes)
        skip = (topology.node_type, "reaction" if topology.find("reaction") else None)
        others = tuple((t, int(graph[t]._mapping["num_nodes"])) for t in graph.node_types if t not in skip)
        return LazyShell(graph, head, features, tail, node_names(base), others)

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
            data = Data()
            data._store._mapping = mapping
            return data
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


def _homogeneous_tail(base_graph: Any, topology: Topology) -> dict[str, Any]:
    base = base_graph._store
    known = (*NODE_FIELDS, *EDGE_FIELDS)
    tail: dict[str, Any] = dict(extra_tensors(base, known, topology.num_nodes))
    if topology.domains:
        tail["edge_index"] = base.edge_index
        tail.update({k: v for k, v in extra_tensors(base, known, topology.size).items() if k not in tail})
    return tail


def _node_shell(store: Any, node_type: str) -> dict[str, Any]:
    size = count_nodes(store, f"'{node_type}'")
    shell: dict[str, Any] = {}
    if node_type == "reaction":
        shell["num_nodes"] = size
        shell["node_ids"] = list(range(size))
        if "w_growth" in store:
            shell["w_growth"] = store.w_growth
    else:
        if "node_ids" in store:
            shell["node_ids"] = store.node_ids
        shell["num_nodes"] = size
    shell["pert_mask"] = shell["mask"] = None
    known = NODE_FIELDS if node_type == "reaction" else tuple(n for n in NODE_FIELDS if n != "x")
    shell.update(extra_tensors(store, known, size))
    if node_type == "reaction" and store._mapping.get("x") is not None:
        shell["x"] = store.x
    return shell


def _edge_shell(store: Any, role: str, size: int) -> dict[str, Any]:
    if role == "edge":
        shell = {"edge_index": store.edge_index, "num_edges": size, "mask": None}
    elif role == "gpr":
        shell = {"hyperedge_index": store.hyperedge_index, "num_edges": size, "mask": None}
    else:
        shell = {"hyperedge_index": store.hyperedge_index}
        if "stoichiometry" in store:
            shell["stoichiometry"] = store.stoichiometry
        shell.update({"mask": None, "num_edges": size})
    return {**shell, **extra_tensors(store, EDGE_FIELDS, size)}
