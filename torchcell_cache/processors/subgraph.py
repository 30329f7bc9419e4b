"""``SubgraphRepresentation``: what is left of the base graph, relabelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from torchcell_cache.core.samples import Sample
from torchcell_cache.graph.induced_subgraph import cut_index, new_ids
from torchcell_cache.graph.topology import Domain, Topology, count_nodes
from torchcell_cache.processors.deletion import (
    Deletion,
    DeletionProcessor,
    extra_tensors,
    graph_of,
    node_names,
    perturbation_fields,
)

NODE_FIELDS = ("node_ids", "num_nodes", "x", "w_growth", "mask", "pert_mask")
EDGE_FIELDS = ("edge_index", "hyperedge_index", "num_edges", "stoichiometry", "mask", "pert_mask")
_KNOWN = (*NODE_FIELDS, *EDGE_FIELDS)


@dataclass(frozen=True, slots=True, eq=False)
class SubgraphShell:
    """Node names and node counts, computed once per base graph."""

    names: list[str] | None
    counts: dict[str, int]


class SubgraphRepresentation(DeletionProcessor):
    """Kept nodes and edges only, in their original order, relabelled from 0.

    Fields and order are torchcell's; ``pert_mask`` speaks of all nodes or edges of the base graph. A homogeneous base
    graph gives a ``Data`` with the same node fields, then ``edge_index`` and ``edge_pert_mask [num_edges] bool``.

    Example:
        >>> cut = tc.build("stores/cut", source=tc.testing.tiny_source(4), processor=tc.SubgraphRepresentation(), progress=False)
        >>> cut[0]["gene"].num_nodes, cut.base_graph["gene"].num_nodes
        (5, 8)
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
        own = topology.node_type
        base = base_graph._store if own is None else base_graph[own]
        pert_mask = torch.zeros(topology.num_nodes, dtype=torch.bool, device="cpu")
        pert_mask[torch.from_numpy(deletion.perturbed)] = True
        stay = _where(~pert_mask)
        mapping = cut_nodes(base, shell.names, stay, deletion, self.labels(deletion))
        mapping["pert_mask"] = pert_mask
        numbers = {own: new_ids(stay, topology.num_nodes)}
        kept_of = dict(zip(topology.domains, deletion.kept, strict=True))
        if own is None:
            mapping |= _rows(extra_tensors(base, _KNOWN, topology.num_nodes), stay)
            for domain, kept in kept_of.items():
                fields, extras = cut_edges(base, domain, _where(kept), numbers, _KNOWN)
                mapping |= {"edge_index": fields["edge_index"], "edge_pert_mask": ~kept}
                mapping |= {name: value for name, value in extras.items() if name not in mapping}
            return graph_of(None, mapping)
        mapping |= _rows(extra_tensors(base, NODE_FIELDS, topology.num_nodes), stay)
        graph = graph_of(own, mapping)
        reactions = next((kept for domain, kept in kept_of.items() if domain.role == "reaction"), None)
        for node_type, size in shell.counts.items():
            if node_type != own:
                left = reactions if node_type == "reaction" else None
                at = None if left is None else _where(left)
                fields, extras = other_nodes(base_graph[node_type], node_type, size, at)
                mask = torch.zeros(size, dtype=torch.bool, device="cpu") if left is None else ~left
                graph[node_type]._mapping = {**fields, "pert_mask": mask, **extras}
                if at is not None:
                    numbers[node_type] = new_ids(at, size)
        for domain, kept in kept_of.items():
            if domain.role != "reaction":
                fields, extras = cut_edges(base_graph[domain.key], domain, _where(kept), numbers, EDGE_FIELDS)
                masks = {} if domain.role == "rmr" else {"pert_mask": ~kept}
                graph[domain.key]._mapping = {**fields, **masks, **extras}
        return graph


def _where(kept: Tensor) -> Tensor:
    return torch.nonzero(kept).flatten()


def _rows(fields: Mapping[str, Any], at: Tensor | None) -> dict[str, Any]:
    """Chosen rows of each field, or all of them."""
    return {name: value if at is None else value[at] for name, value in fields.items()}


def cut_nodes(
    base: Any, names: list[str] | None, stay: Tensor, sample: Sample | Deletion, labels: dict[str, Any]
) -> dict[str, Any]:
    """Fields of the perturbed node type with the nodes ``stay``, ``[k] int64``, and what a sample says of them."""
    fields: dict[str, Any] = {} if names is None else {"node_ids": [names[k] for k in stay.tolist()]}
    fields["num_nodes"] = len(stay)
    fields |= perturbation_fields(names, sample.perturbed, sample.unknown)
    if base._mapping.get("x") is not None:
        fields["x"], fields["x_pert"] = base.x[stay], base.x[torch.from_numpy(sample.perturbed)]
    return fields | labels


def cut_edges(
    store: Any,
    domain: Domain,
    at: Tensor | None,
    numbers: Mapping[str | None, Tensor],
    known: tuple[str, ...],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of an edge type with the edges ``at``, ``[k] int64`` (``None``: all), and the rows of what is not ``known``."""
    name = "edge_index" if domain.role == "edge" else "hyperedge_index"
    index = store._mapping[name]
    if at is not None:
        ends = (None, None) if domain.key is None else (domain.key[0], domain.key[2])
        index = cut_index(index, at, [numbers.get(end) for end in ends])
    fields = {name: index}
    if domain.role == "rmr" and "stoichiometry" in store and "stoichiometry" in known:
        fields |= _rows({"stoichiometry": store.stoichiometry}, at)
    fields["num_edges"] = int(index.size(1))
    return fields, _rows(extra_tensors(store, known, domain.size), at)


def other_nodes(
    store: Any, node_type: str, size: int, at: Tensor | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of a node type of which the nodes ``at`` stay, ``[k] int64`` (``None``: all), and the rows of what is not known."""
    fields: dict[str, Any] = {}
    if node_type == "reaction":
        ids = list(range(size)) if at is None else at.tolist()
        fields |= {"num_nodes": len(ids), "node_ids": ids}
        if "w_growth" in store:
            fields |= _rows({"w_growth": store.w_growth}, at)
    else:
        if "node_ids" in store:
            fields["node_ids"] = store.node_ids
        fields["num_nodes"] = size
    known = tuple(name for name in NODE_FIELDS if name != "x")
    return fields, _rows(extra_tensors(store, known, size), at)
