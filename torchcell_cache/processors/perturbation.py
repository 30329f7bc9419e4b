"""``Perturbation``, ``Unperturbed``, ``DCellGraphProcessor``: what a sample says, without removing anything from a graph."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch_geometric.data import Data, HeteroData

from torchcell_cache.core.choices import Statistics
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SourceContractError
from torchcell_cache.graph.topology import Topology, perturbable_type
from torchcell_cache.processors.deletion import (
    Deletion,
    DeletionProcessor,
    SampleProcessor,
    graph_of,
    node_names,
    perturbation_fields,
)

ONTOLOGY = "gene_ontology"
STATE = "go_gene_strata_state"


class Perturbation(DeletionProcessor):
    """Perturbed nodes and phenotypes only, as torchcell has it; the model takes the graph from ``dataset.base_graph``.

    Fields of the perturbed node type: ``num_nodes``, ``perturbed_genes`` (names), ``perturbation_indices [P] int64``,
    ``pert_mask`` and ``mask [num_nodes] bool``, and the ``phenotype_*`` fields; those of statistics always, empty where a
    sample has none.

    Args:
        node_type: Perturbed node type; ``gene``, or the only one, by default.

    Example:
        >>> ids = tc.build("stores/ids", source=tc.testing.tiny_source(4), processor=tc.Perturbation(), progress=False)
        >>> ids[0]["gene"].perturbation_indices
        tensor([0, 1, 7])
    """

    gpr_by: ClassVar[str] = "gene"

    def __init__(self, *, node_type: str | None = None) -> None:
        super().__init__(gpr="any", node_type=node_type, statistics="always")

    def settings(self) -> dict[str, Any]:
        """Settings that change the result."""
        return {"node_type": self.node_type}

    def make_shell(self, base_graph: Any, topology: Topology) -> list[str] | None:
        """The node names."""
        return node_names(base_graph._store if topology.node_type is None else base_graph[topology.node_type])

    def assemble(
        self, base_graph: Any, topology: Topology, shell: list[str] | None, deletion: Deletion
    ) -> Data | HeteroData:
        """The sample's fields on an otherwise empty graph."""
        fields = perturbation_fields(shell, deletion.perturbed, deletion.unknown)
        pert_mask = torch.zeros(topology.num_nodes, dtype=torch.bool, device="cpu")
        pert_mask[fields["perturbation_indices"]] = True
        mapping = {
            "num_nodes": topology.num_nodes,
            "perturbed_genes": fields["ids_pert"],
            "perturbation_indices": fields["perturbation_indices"],
            "pert_mask": pert_mask,
            "mask": ~pert_mask,
            **self.labels(deletion),
        }
        return graph_of(topology.node_type, mapping)


class Unperturbed(SampleProcessor):
    """The base graph as it is, and beside it what the sample perturbs, as torchcell has it.

    Of a ``HeteroData``: ``x``, ``node_ids`` and ``num_nodes`` of the perturbed node type with ``perturbed_genes`` (names) and
    ``perturbation_indices [P] int64``, then a tensor named after each label and statistic (its measurements, one NaN if there
    is none); the edge types ``physical_interaction`` and ``regulatory_interaction``; the names of metabolites. A ``Data``
    keeps all of its fields.

    Args:
        node_type: Perturbed node type; ``gene``, or the only one, by default.

    Example:
        >>> tc.build("stores/whole", source=tc.testing.tiny_source(4), processor=tc.Unperturbed(), progress=False)
        PreprocessedDataset(4)
    """

    _EDGES = ("physical_interaction", "regulatory_interaction")

    def __init__(self, *, node_type: str | None = None) -> None:
        super().__init__(node_type=node_type)

    def process(self, base_graph: Any, sample: Sample) -> Data | HeteroData:
        """The base graph and the sample's own fields; tensors are the base graph's own."""
        node_type = perturbable_type(base_graph, self.node_type)
        store = base_graph._store if node_type is None else base_graph[node_type]
        perturbed = perturbation_fields(node_names(store), sample.perturbed, sample.unknown)
        own: dict[str, Any] = {"perturbed_genes": perturbed.pop("ids_pert"), **perturbed}
        for k, name in enumerate((*sample.phenotypes, *sample.statistics)):
            known = sample.values[:, k][~np.isnan(sample.values[:, k])]
            own[name] = torch.from_numpy(known if len(known) else np.full(1, np.nan, dtype=np.float32))
        if node_type is None:
            return graph_of(None, {**store._mapping, **own})
        kept = {name: store[name] for name in ("x", "node_ids") if name in store}
        graph = graph_of(node_type, {**kept, "num_nodes": store.num_nodes, **own})
        for edge_type in base_graph.edge_types:
            if edge_type[1] in self._EDGES:
                edges = base_graph[edge_type]
                fields = {"edge_index": edges.edge_index, "num_edges": int(edges.edge_index.size(1))}
                graph[edge_type]._mapping = fields
        if "metabolite" in base_graph.node_types:
            names = base_graph["metabolite"]
            own_names = {"node_ids": names.node_ids} if "node_ids" in names else {}
            graph["metabolite"]._mapping = {"num_nodes": names.num_nodes, **own_names}
        return graph


class DCellGraphProcessor(SampleProcessor):
    """Genes, labels, and the state of each gene in each term of the gene ontology, as torchcell has it; no edges.

    ``gene``: ``num_nodes, node_ids, x, perturbed_genes, perturbation_indices, pert_mask`` and the ``phenotype_*`` fields;
    ``gene_ontology``: ``num_nodes, node_ids`` and ``go_gene_strata_state [R, 4] float32`` of (term, gene, stratum, state), in
    which the state of a perturbed gene is 0. Storage ``delta`` keeps the changed rows alone.

    Args:
        node_type: Perturbed node type; ``gene``, or the only one, by default.
        statistics: ``measured`` or ``always``, as for :class:`DeletionProcessor`.

    Raises:
        SettingError: If ``statistics`` is neither.

    Example:
        >>> processor = tc.DCellGraphProcessor(statistics="always")
    """

    def __init__(self, *, node_type: str | None = None, statistics: Statistics = "measured") -> None:
        super().__init__(node_type=node_type, statistics=statistics)

    def process(self, base_graph: Any, sample: Sample) -> HeteroData:
        """The sample's fields; what no sample changes is the base graph's own.

        Raises:
            SourceContractError: If the base graph has no gene ontology.
        """
        node_type = perturbable_type(base_graph, self.node_type)
        found = node_type is not None and ONTOLOGY in base_graph.node_types
        if not found or STATE not in base_graph[ONTOLOGY]:
            raise SourceContractError(
                f"the base graph has no {ONTOLOGY}.{STATE}",
                fix='incidence_graphs={"gene_ontology": ...} in torchcell',
            )
        genes, terms = base_graph[node_type], base_graph[ONTOLOGY]
        perturbed = perturbation_fields(node_names(genes), sample.perturbed, sample.unknown)
        pert_mask = torch.zeros(int(genes.num_nodes), dtype=torch.bool, device="cpu")
        pert_mask[perturbed["perturbation_indices"]] = True
        state = terms[STATE].clone()
        state[pert_mask[state[:, 1].long()], 3] = 0.0
        fields = {
            "num_nodes": genes.num_nodes,
            **{name: genes[name] for name in ("node_ids", "x") if name in genes},
            "perturbed_genes": perturbed["ids_pert"],
            "perturbation_indices": perturbed["perturbation_indices"],
            "pert_mask": pert_mask,
            **self.labels(sample),
        }
        graph = graph_of(node_type, fields)
        graph[ONTOLOGY]._mapping = {"num_nodes": terms.num_nodes, "node_ids": terms.node_ids, STATE: state}
        return graph
