"""``DCellGraphProcessor``: the gene ontology with the states of a sample's genes, for the DCell model."""

from __future__ import annotations

from typing import Any

import torch
from torch_geometric.data import HeteroData

from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SourceContractError
from torchcell_cache.graph.topology import perturbable_type
from torchcell_cache.processors.deletion import SampleProcessor, node_names, perturbation_fields

ONTOLOGY = "gene_ontology"
STATE = "go_gene_strata_state"


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
        graph = HeteroData()
        graph[node_type]._mapping = {
            "num_nodes": genes.num_nodes,
            **{name: genes[name] for name in ("node_ids", "x") if name in genes},
            "perturbed_genes": perturbed["ids_pert"],
            "perturbation_indices": perturbed["perturbation_indices"],
            "pert_mask": pert_mask,
            **self.labels(sample),
        }
        graph[ONTOLOGY]._mapping = {"num_nodes": terms.num_nodes, "node_ids": terms.node_ids, STATE: state}
        return graph
