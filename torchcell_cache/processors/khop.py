"""``KHopSubgraph``: what is near a sample's perturbed nodes, relabelled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from torchcell_cache.core.checks import choice
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.incidence import IncidenceIndex
from torchcell_cache.graph.induced_subgraph import NeighbourTable, ends_of, hop_columns, neighbours, select
from torchcell_cache.graph.topology import Domain, EdgeType, Topology, endpoints, topology_of
from torchcell_cache.processors.deletion import (
    extra_tensors,
    node_names,
    perturbation_fields,
    statistics_setting,
)
from torchcell_cache.processors.lazy import EDGE_FIELDS, NODE_FIELDS
from torchcell_cache.processors.phenotypes import STATISTICS, phenotype_fields

if TYPE_CHECKING:
    from collections.abc import Callable

FLOWS = ("both", "source_to_target", "target_to_source")
PERTURBED = ("keep", "delete")


class KHopSubgraph:
    """The nodes at most ``num_hops`` hops from any perturbed node, and all edges among them, in the base graph's order.

    Hops go along edges between two nodes of the perturbed type. All edges between two nodes that are near are kept, also of
    types not walked along; other node types are kept whole, edges to them with their perturbed-type end. A sample that
    perturbs nothing has no node of the perturbed type.

    Fields are :class:`SubgraphRepresentation`'s, but for its masks over the whole base graph: ``n_id [num_nodes] int64`` says
    which nodes of the base graph these are and ``is_perturbed [num_nodes] bool`` which are perturbed.

    Args:
        num_hops: Number of hops, at least 1.
        edge_types: Edge types to walk along, as triples or by the names of their relations; all by default.
        flow: Which way: ``both``, or ``source_to_target`` against the edges' direction as PyG's ``k_hop_subgraph`` goes by
            default, or ``target_to_source`` along it.
        perturbed: ``keep`` the perturbed nodes and their edges - the neighbourhood of a perturbation - or ``delete`` them from
            it - what is left of it. Reactions stay either way; for reaction rules see :class:`SubgraphRepresentation`.
        node_type: Perturbed node type; ``gene``, or the only one, by default.
        statistics: ``measured`` or ``always``, as for :class:`DeletionProcessor`.

    Raises:
        SettingError: If a setting is none of the valid ones.
    """

    cache_version: ClassVar[int] = 1

    def __init__(
        self,
        num_hops: int = 1,
        edge_types: Iterable[EdgeType | Sequence[str] | str] | None = None,
        *,
        flow: str = "both",
        perturbed: str = "keep",
        node_type: str | None = None,
        statistics: str = "measured",
    ) -> None:
        if not isinstance(num_hops, int) or isinstance(num_hops, bool) or num_hops < 1:
            raise SettingError(f"num_hops={num_hops!r}, expected an integer from 1 on")
        if isinstance(edge_types, str):
            raise SettingError(
                f"edge_types={edge_types!r} is one name, expected a list", fix=f"[{edge_types!r}]"
            )
        self.num_hops, self.node_type = num_hops, node_type
        self.edge_types = (
            None if edge_types is None else [t if isinstance(t, str) else tuple(t) for t in edge_types]
        )
        self.statistics = choice("statistics", statistics, STATISTICS)
        self.flow, self.perturbed = choice("flow", flow, FLOWS), choice("perturbed", perturbed, PERTURBED)

    def __repr__(self) -> str:
        return f"KHopSubgraph({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"

    def settings(self) -> dict[str, Any]:
        """Settings that change the result."""
        types = self.edge_types
        return {
            "num_hops": self.num_hops,
            "edge_types": None if types is None else [list(t) if isinstance(t, tuple) else t for t in types],
            "flow": self.flow,
            "perturbed": self.perturbed,
            "node_type": self.node_type,
            **statistics_setting(self.statistics),
        }

    def __call__(self, sample: Sample) -> Data | HeteroData:
        """Process a sample with the base graph it carries."""
        return self.process(getattr(sample, "base_graph", None), sample)

    def process(self, base_graph: Any, sample: Any) -> Data | HeteroData:
        """The sample's graph, by definition: every hop and every edge type scans all edges.

        Raises:
            SourceContractError: If the sample is no :class:`Sample`, or its base graph is missing.
            SettingError: If the base graph does not have an edge type.
        """
        _check(base_graph, sample)
        topology = topology_of(base_graph, self.node_type)
        near = torch.zeros(topology.num_nodes, dtype=torch.bool, device="cpu")
        near[torch.from_numpy(sample.perturbed)] = True
        walked = [topology.domains[c] for c in hop_columns(topology, self.edge_types)]
        for _ in range(self.num_hops):
            reached = near.clone()
            for domain in walked:
                source, target = torch.from_numpy(endpoints(base_graph, domain).copy())
                if self.flow != "target_to_source":
                    reached[source[near[target]]] = True
                if self.flow != "source_to_target":
                    reached[target[near[source]]] = True
            near = reached
        if self.perturbed == "delete":
            near[torch.from_numpy(sample.perturbed)] = False
        kept: list[Int64Array | None] = []
        for domain in topology.domains:
            rows = ends_of(topology, domain)
            if not rows:
                kept.append(None)
                continue
            index = torch.from_numpy(endpoints(base_graph, domain).copy())
            stays = torch.stack([near[index[row]] for row in rows]).all(dim=0)
            kept.append(stays.nonzero().flatten().numpy())
        return _assemble(
            base_graph, topology, sample, near.nonzero().flatten().numpy(), kept, self._labels(sample)
        )

    def with_index(self, base_graph: Any) -> Callable[[Any], Data | HeteroData]:
        """:meth:`process` for many samples of one base graph, through its incidence index: what a build calls.

        Raises:
            SettingError: If the base graph does not have an edge type.
        """
        if base_graph is None:
            return lambda sample: self.process(None, sample)
        index = IncidenceIndex.build(base_graph, node_type=self.node_type, graph_digest="")
        columns = hop_columns(index.topology, self.edge_types)
        ends = NeighbourTable.build(index, base_graph)

        def process(sample: Any) -> Data | HeteroData:
            _check(base_graph, sample)
            nodes = self._near(ends, columns, sample.perturbed)
            selection = select(ends, nodes)
            return _assemble(base_graph, index.topology, sample, nodes, selection.kept, self._labels(sample))

        return process

    def _labels(self, sample: Sample) -> dict[str, Any]:
        always = self.statistics == "always"
        return phenotype_fields(sample.values, sample.phenotypes, sample.statistics, always)

    def _near(self, ends: NeighbourTable, columns: list[int], perturbed: Int64Array) -> Int64Array:
        near = np.zeros(ends.index.topology.num_nodes, dtype=bool)
        near[perturbed] = True
        hop = perturbed
        for _ in range(self.num_hops):
            others = neighbours(ends, hop, columns, self.flow)
            hop = np.unique(others[~near[others]])
            near[hop] = True
        if self.perturbed == "delete":
            near[perturbed] = False
        return np.flatnonzero(near)


def _check(base_graph: Any, sample: Any) -> None:
    if not isinstance(sample, Sample) or base_graph is None:
        raise SourceContractError(
            f"KHopSubgraph processes a torchcell_cache Sample on a base graph, got {type(sample).__name__} and "
            f"base_graph={'missing' if base_graph is None else 'given'}",
            fix="use a PerturbationTable source",
        )


def _assemble(
    base_graph: Any,
    topology: Topology,
    sample: Sample,
    nodes: Int64Array,
    kept: Sequence[Int64Array | None],
    labels: dict[str, Any],
) -> Data | HeteroData:
    """The graph of given nodes and positions; what stays whole is the base graph's own."""
    homogeneous = topology.node_type is None
    base = base_graph._store if homogeneous else base_graph[topology.node_type]
    wanted = torch.from_numpy(nodes)
    mapping = _node_fields(base, topology.num_nodes, sample, wanted, labels)
    new_id = torch.full((topology.num_nodes,), -1, dtype=torch.int64, device="cpu")
    new_id[wanted] = torch.arange(len(nodes), device="cpu")
    if homogeneous:
        data = Data()
        known = (*NODE_FIELDS, *EDGE_FIELDS)
        for name, value in extra_tensors(base, known, topology.num_nodes).items():
            if topology.size != topology.num_nodes or "edge" not in name:  # as PyG tells them apart
                mapping[name] = value[wanted]
        for domain, local in zip(topology.domains, kept, strict=True):
            for name, value in _edge_fields(base, topology, domain, local, new_id).items():
                if name != "num_edges":
                    mapping.setdefault(name, value)
        data._store._mapping = mapping
        return data
    for name, value in extra_tensors(base, NODE_FIELDS, topology.num_nodes).items():
        mapping[name] = value[wanted]
    graph = HeteroData()
    for node_type in base_graph.node_types:
        own = node_type == topology.node_type
        graph[node_type]._mapping = mapping if own else dict(base_graph[node_type]._mapping)
    for domain, local in zip(topology.domains, kept, strict=True):
        if domain.role != "reaction":
            fields = _edge_fields(base_graph[domain.key], topology, domain, local, new_id)
            graph[domain.key]._mapping = fields
    return graph


def _node_fields(
    base: Any, num_nodes: int, sample: Sample, wanted: Tensor, labels: dict[str, Any]
) -> dict[str, Any]:
    names = node_names(base)
    fields: dict[str, Any] = {}
    if names is not None:
        fields["node_ids"] = [names[k] for k in wanted.tolist()]
    fields["num_nodes"] = len(wanted)
    fields.update(perturbation_fields(names, sample.perturbed, sample.unknown))
    if base._mapping.get("x") is not None:
        fields["x"] = base.x[wanted]
        fields["x_pert"] = base.x[torch.from_numpy(sample.perturbed)]
    fields.update(labels)
    is_perturbed = torch.zeros(num_nodes, dtype=torch.bool, device="cpu")
    is_perturbed[torch.from_numpy(sample.perturbed)] = True
    return {**fields, "n_id": wanted, "is_perturbed": is_perturbed[wanted]}


def _edge_fields(
    store: Any, topology: Topology, domain: Domain, local: Int64Array | None, new_id: Tensor
) -> dict[str, Any]:
    name = "edge_index" if domain.role == "edge" else "hyperedge_index"
    known = tuple(n for n in (*NODE_FIELDS, *EDGE_FIELDS) if n != "stoichiometry")
    extras = extra_tensors(store, known, domain.size)
    index = store._mapping[name]
    if local is None:
        return {name: index, "num_edges": domain.size, **extras}
    at = torch.from_numpy(local)
    rows = list(index[:, at])
    for row in ends_of(topology, domain):
        rows[row] = new_id[rows[row]]
    fields = {name: torch.stack(rows), "num_edges": len(local)}
    return {**fields, **{key: value[at] for key, value in extras.items()}}
