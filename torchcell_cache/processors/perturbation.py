"""``Perturbation``: the deleted ids and the phenotypes, and nothing of the graph."""

from __future__ import annotations

from typing import Any, ClassVar

from torch_geometric.data import Data, HeteroData

from torchcell_cache.graph.topology import Topology
from torchcell_cache.processors.deletion import Deletion, DeletionProcessor, node_names, perturbation_fields


class Perturbation(DeletionProcessor):
    """Ids and phenotypes only; the model takes the graph from ``dataset.base_graph``.

    Fields of the perturbed node type: ``num_nodes``, ``ids_pert``, ``perturbation_indices [P] int64`` and the
    ``phenotype_*`` fields; those of statistics always, empty where a sample has none.

    Args:
        node_type: Perturbed node type; ``gene``, or the only one, by default.
    """

    gpr_by: ClassVar[str] = "gene"

    def __init__(self, *, node_type: str | None = None) -> None:
        super().__init__(gpr="any", node_type=node_type, statistics="always")

    def settings(self) -> dict[str, Any]:
        """Settings that change the result."""
        return {"node_type": self.node_type}

    def process(self, base_graph: Any, sample: Any) -> Data | HeteroData:
        """The sample's ids and phenotypes."""
        return super().process(base_graph, sample)

    def make_shell(self, base_graph: Any, topology: Topology) -> list[str] | None:
        """The node names."""
        return node_names(base_graph._store if topology.node_type is None else base_graph[topology.node_type])

    def assemble(
        self, base_graph: Any, topology: Topology, shell: list[str] | None, deletion: Deletion
    ) -> Data | HeteroData:
        """The sample's fields on an otherwise empty graph."""
        mapping = {
            "num_nodes": topology.num_nodes,
            **perturbation_fields(shell, deletion.perturbed, deletion.unknown),
            **self.labels(deletion),
        }
        if topology.node_type is None:
            data = Data()
            data._store._mapping = mapping
            return data
        graph = HeteroData()
        graph[topology.node_type]._mapping = mapping
        return graph
