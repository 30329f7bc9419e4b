"""``DCellGraphProcessor``: the gene ontology with the states of a sample's genes, for the DCell model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch_geometric.data import HeteroData

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import Statistics
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SourceContractError
from torchcell_cache.graph.topology import perturbable_type
from torchcell_cache.processors.deletion import node_names, perturbation_fields, statistics_setting
from torchcell_cache.processors.phenotypes import STATISTICS, phenotype_fields

ONTOLOGY = "gene_ontology"
STATE = "go_gene_strata_state"


class DCellGraphProcessor:
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

    cache_version: ClassVar[int] = 1

    def __init__(self, *, node_type: str | None = None, statistics: Statistics = "measured") -> None:
        self.node_type, self.statistics = node_type, choice("statistics", statistics, STATISTICS)

    def __repr__(self) -> str:
        return f"DCellGraphProcessor({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"

    def settings(self) -> dict[str, Any]:
        """Settings that change the result."""
        return {"node_type": self.node_type, **statistics_setting(self.statistics)}

    def process(self, base_graph: Any, sample: Sample) -> HeteroData:
        """The sample's fields; what no sample changes is the base graph's own.

        Raises:
            SourceContractError: If the base graph has no gene ontology.
        """
        node_type = perturbable_type(base_graph, self.node_type)
        if node_type is None or STATE not in (
            base_graph[ONTOLOGY] if ONTOLOGY in base_graph.node_types else ()
        ):
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
            **phenotype_fields(
                sample.values, sample.phenotypes, sample.statistics, self.statistics == "always"
            ),
        }
        graph[ONTOLOGY]._mapping = {"num_nodes": terms.num_nodes, "node_ids": terms.node_ids, STATE: state}
        return graph
