"""``KHopSubgraph``: what is near a sample's perturbed nodes, relabelled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from torchcell_cache.core.checks import choice, whole_number
from torchcell_cache.core.choices import Flow, Perturbed, Statistics
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.incidence import IncidenceIndex
from torchcell_cache.graph.induced_subgraph import (
    NeighbourTable,
    hop_columns,
    neighbours,
    new_ids,
    select,
)
from torchcell_cache.graph.topology import EdgeType, Topology, check_rows, endpoints, topology_of
from torchcell_cache.processors.deletion import SampleProcessor, extra_tensors, graph_of, node_names
from torchcell_cache.processors.subgraph import EDGE_FIELDS, NODE_FIELDS, cut_edges, cut_nodes

if TYPE_CHECKING:
    from collections.abc import Callable

FLOWS = get_args(Flow)
PERTURBED = get_args(Perturbed)
_EDGES_KNOWN = tuple(name for name in (*NODE_FIELDS, *EDGE_FIELDS) if name != "stoichiometry")


class KHopSubgraph(SampleProcessor):
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

    Example:
        >>> tc.build("stores/hop", source=tc.testing.tiny_source(4), processor=tc.KHopSubgraph(2), progress=False)
        PreprocessedDataset(4)
    """

    def __init__(
        self,
        num_hops: int = 1,
        edge_types: Iterable[EdgeType | Sequence[str] | str] | None = None,
        *,
        flow: Flow = "both",
        perturbed: Perturbed = "keep",
        node_type: str | None = None,
        statistics: Statistics = "measured",
    ) -> None:
        super().__init__(node_type=node_type, statistics=statistics)
        self.num_hops = whole_number("num_hops", num_hops, 1)
        if isinstance(edge_types, str):
            raise SettingError(
                f"edge_types={edge_types!r} is one name, expected a list", fix=f"[{edge_types!r}]"
            )
        self.edge_types = (
            None if edge_types is None else [t if isinstance(t, str) else tuple(t) for t in edge_types]
        )
        self.flow, self.perturbed = choice("flow", flow, FLOWS), choice("perturbed", perturbed, PERTURBED)

    def settings(self) -> dict[str, Any]:
        """Settings that change the result."""
        types = self.edge_types
        return {
            "num_hops": self.num_hops,
            "edge_types": None if types is None else [list(t) if isinstance(t, tuple) else t for t in types],
            "flow": self.flow,
            "perturbed": self.perturbed,
            **super().settings(),
        }

    def process(self, base_graph: Any, sample: Any) -> Data | HeteroData:
        """The sample's graph, by definition: every hop and every edge type scans all edges.

        Raises:
            SourceContractError: If the sample is no :class:`Sample`, or its base graph is missing.
            SettingError: If the base graph does not have an edge type.
        """
        self.check(base_graph, sample)
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
            rows = topology.ends_of(domain)
            if not rows:
                kept.append(None)
                continue
            index = torch.from_numpy(endpoints(base_graph, domain).copy())
            stays = torch.stack([near[index[row]] for row in rows]).all(dim=0)
            kept.append(stays.nonzero().flatten().numpy())
        return self._assemble(base_graph, topology, sample, near.nonzero().flatten(), kept)

    def with_index(self, base_graph: Any) -> Callable[[Any], Data | HeteroData]:
        """:meth:`process` for many samples of one base graph, through its incidence index: what a build calls.

        Raises:
            SettingError: If the base graph does not have an edge type.
        """
        if base_graph is None:
            return lambda sample: self.process(None, sample)
        index = IncidenceIndex.build(base_graph, node_type=self.node_type, graph_digest="")
        check_rows(base_graph, index.topology)
        columns = hop_columns(index.topology, self.edge_types)
        ends = NeighbourTable.build(index, base_graph)

        def process(sample: Any) -> Data | HeteroData:
            self.check(base_graph, sample)
            near = np.zeros(index.topology.num_nodes, dtype=bool)
            near[sample.perturbed] = True
            hop = sample.perturbed
            for _ in range(self.num_hops):
                others = neighbours(ends, hop, columns, self.flow)
                hop = np.unique(others[~near[others]])
                near[hop] = True
            if self.perturbed == "delete":
                near[sample.perturbed] = False
            nodes = np.flatnonzero(near)
            kept = select(ends, nodes).kept
            return self._assemble(base_graph, index.topology, sample, torch.from_numpy(nodes), kept)

        return process

    def _assemble(
        self,
        base_graph: Any,
        topology: Topology,
        sample: Sample,
        stay: Tensor,
        kept: Sequence[Int64Array | None],
    ) -> Data | HeteroData:
        """The graph of given nodes and positions; what stays whole is the base graph's own."""
        own, size = topology.node_type, topology.num_nodes
        base = base_graph._store if own is None else base_graph[own]
        mapping = cut_nodes(base, node_names(base), stay, sample, self.labels(sample))
        is_perturbed = torch.zeros(size, dtype=torch.bool, device="cpu")
        is_perturbed[torch.from_numpy(sample.perturbed)] = True
        mapping |= {"n_id": stay, "is_perturbed": is_perturbed[stay]}
        numbers, edges = {own: new_ids(stay, size)}, {}
        for domain, local in zip(topology.domains, kept, strict=True):
            if domain.role != "reaction":
                at = None if local is None else torch.from_numpy(local)
                store = base if own is None else base_graph[domain.key]
                fields, extras = cut_edges(store, domain, at, numbers, _EDGES_KNOWN)
                edges[domain.key] = fields | extras
        if own is None:
            for name, value in extra_tensors(base, (*NODE_FIELDS, *EDGE_FIELDS), size).items():
                if topology.size != size or "edge" not in name:  # as PyG tells them apart
                    mapping[name] = value[stay]
            more = {
                name: value for each in edges.values() for name, value in each.items() if name != "num_edges"
            }
            return graph_of(None, mapping | {name: v for name, v in more.items() if name not in mapping})
        mapping |= {name: value[stay] for name, value in extra_tensors(base, NODE_FIELDS, size).items()}
        graph = HeteroData()
        for node_type in base_graph.node_types:
            graph[node_type]._mapping = mapping if node_type == own else dict(base_graph[node_type]._mapping)
        for key, fields in edges.items():
            graph[key]._mapping = fields
        return graph
