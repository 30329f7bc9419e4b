"""``SubgraphRepresentation``: what is left of the base graph, relabelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from torchcell_cache.graph.topology import Domain, Topology, count_nodes
from torchcell_cache.processors.deletion import (
    Deletion,
    DeletionProcessor,
    extra_tensors,
    node_names,
    perturbation_fields,
)
from torchcell_cache.processors.lazy import EDGE_FIELDS, NODE_FIELDS


@dataclass(frozen=True, slots=True, eq=False)
class SubgraphShell:
    """Node names and node counts, computed once per base graph."""

    names: list[str] | None
    counts: dict[str, int]


class SubgraphRepresentation(DeletionProcessor):
    """Kept nodes and edges only, in their original order, relabelled from 0.

    Fields and order are torchcell's; ``pert_mask`` speaks of all nodes or edges of the base graph. A homogeneous base
    graph gives a ``Data`` with the same node fields, then ``edge_index`` and ``edge_pert_mask [num_edges] bool``.
    """

    gpr_by: ClassVar[str] = "reaction"

    def make_shell(self, base_graph: Any, topology: Topology) -> SubgraphShell:
        """Names and counts; see :class:`SubgraphShell`."""
        if topology.node_type is None:
            return SubgraphShell(node_names(base_graph._store), {})
        counts = {t: count_nodes(base_graph[t], f"'{t}'") for t in base_graph.node_types}
        return SubgraphShell(node_names(base_graph[topology.node_type]), counts)

    def assemble(
        self, base_graph: Any, topology: Topology, shell: SubgraphShell, deletion: Deletion
    ) -> Data | HeteroData:
        """Filter and relabel the base graph by what is kept."""
        pert_mask = torch.zeros(topology.num_nodes, dtype=torch.bool, device="cpu")
        pert_mask[torch.from_numpy(deletion.perturbed)] = True
        base = base_graph._store if topology.node_type is None else base_graph[topology.node_type]
        mapping = _kept_nodes(base, shell, pert_mask, deletion, self.labels(deletion))
        if topology.node_type is None:
            return _homogeneous(base_graph, topology, deletion, mapping, pert_mask)
        mapping.update(
            {k: v[~pert_mask] for k, v in extra_tensors(base, NODE_FIELDS, topology.num_nodes).items()}
        )
        graph = HeteroData()
        graph[topology.node_type]._mapping = mapping
        kept_of = {
            d.role: k for d, k in zip(topology.domains, deletion.kept, strict=True) if d.role != "edge"
        }
        new_id = {topology.node_type: relabelling(~pert_mask)}
        for node_type, size in shell.counts.items():
            if node_type != topology.node_type:
                kept = kept_of.get("reaction") if node_type == "reaction" else None
                graph[node_type]._mapping = _other_nodes(base_graph[node_type], node_type, size, kept)
                if kept is not None:
                    new_id[node_type] = relabelling(kept)
        for domain, kept in zip(topology.domains, deletion.kept, strict=True):
            if domain.role != "reaction":
                graph[domain.key]._mapping = _kept_edges(base_graph[domain.key], domain, kept, new_id)
        return graph


def relabelling(kept: Tensor) -> Tensor:
    """New id of every kept node, -1 for the others, ``[num_nodes] int64``."""
    new_id = torch.cumsum(kept, 0) - 1
    return new_id.masked_fill_(~kept, -1)


def _kept_nodes(
    base: Any, shell: SubgraphShell, pert_mask: Tensor, deletion: Deletion, labels: dict[str, Any]
) -> dict[str, Any]:
    kept = ~pert_mask
    fields: dict[str, Any] = {}
    if "node_ids" in base:
        gone = set(deletion.perturbed.tolist())
        names = shell.names or []
        fields["node_ids"] = [name for k, name in enumerate(names) if k not in gone]
    fields["num_nodes"] = int(kept.sum())
    fields.update(perturbation_fields(shell.names, deletion.perturbed, deletion.unknown))
    if base._mapping.get("x") is not None:
        fields["x"] = base.x[kept]
        fields["x_pert"] = base.x[pert_mask]
    fields.update(labels)
    fields["pert_mask"] = pert_mask
    return fields


def _other_nodes(store: Any, node_type: str, size: int, kept: Tensor | None) -> dict[str, Any]:
    """A node type whose nodes go only with a reaction rule, or not at all (``kept`` is ``None``)."""
    everything = torch.ones(size, dtype=torch.bool, device="cpu") if kept is None else kept
    fields: dict[str, Any] = {}
    if node_type == "reaction":
        fields["num_nodes"] = int(everything.sum())
        fields["node_ids"] = torch.nonzero(everything).flatten().tolist()
        if "w_growth" in store:
            fields["w_growth"] = store.w_growth if kept is None else store.w_growth[kept]
        known: tuple[str, ...] = tuple(name for name in NODE_FIELDS if name != "x")
    else:
        if "node_ids" in store:
            fields["node_ids"] = store.node_ids
        fields["num_nodes"] = size
        known = tuple(name for name in NODE_FIELDS if name != "x")
    fields["pert_mask"] = ~everything
    for name, value in extra_tensors(store, known, size).items():
        fields.setdefault(name, value if kept is None else value[kept])
    return fields


def _kept_edges(store: Any, domain: Domain, kept: Tensor, new_id: dict[str, Tensor]) -> dict[str, Any]:
    name = "edge_index" if domain.role == "edge" else "hyperedge_index"
    assert isinstance(domain.key, tuple)
    index = store._mapping[name][:, kept]
    rows = [
        new_id[end][index[row]] if end in new_id else index[row]
        for row, end in enumerate((domain.key[0], domain.key[2]))
    ]
    fields: dict[str, Any] = {name: torch.stack(rows)}
    if domain.role == "rmr":
        if "stoichiometry" in store:
            fields["stoichiometry"] = store.stoichiometry[kept]
        fields["num_edges"] = int(index.size(1))
    else:
        fields["num_edges"] = int(index.size(1))
        fields["pert_mask"] = ~kept
    fields.update({k: v[kept] for k, v in extra_tensors(store, EDGE_FIELDS, domain.size).items()})
    return fields


def _homogeneous(
    base_graph: Any, topology: Topology, deletion: Deletion, mapping: dict[str, Any], pert_mask: Tensor
) -> Data:
    known = (*NODE_FIELDS, *EDGE_FIELDS)
    store = base_graph._store
    for name, value in extra_tensors(store, known, topology.num_nodes).items():
        mapping[name] = value[~pert_mask]
    if topology.domains:
        kept = deletion.kept[0]
        mapping["edge_index"] = relabelling(~pert_mask)[store.edge_index[:, kept]]
        mapping["edge_pert_mask"] = ~kept
        for name, value in extra_tensors(store, known, topology.size).items():
            mapping.setdefault(name, value[kept])
    data = Data()
    data._store._mapping = mapping
    return data
