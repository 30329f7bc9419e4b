"""What the node-deleting processors share: the slow, obvious definition of what is kept.

The build and the readers never call :func:`kept_by_definition`; they go through the incidence index. That the two agree
on every sample is law 1, and the tests hold it.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import GprRule, Statistics
from torchcell_cache.core.ragged import Float32Array, Int64Array
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.removal import Removal
from torchcell_cache.graph.rules import parse_rule
from torchcell_cache.graph.topology import Domain, Topology, topology_of
from torchcell_cache.processors.phenotypes import STATISTICS, phenotype_fields

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

GPR_RULES = get_args(GprRule)


@dataclass(frozen=True, slots=True, eq=False)
class Deletion:
    """One sample's deletion, ready to be assembled into a graph.

    Attributes:
        perturbed: Deleted nodes, ascending, ``[P] int64``.
        values: Measurements, ``[M, num_phenotypes + num_statistics] float32``.
        phenotypes: Names of the phenotype columns.
        statistics: Names of the statistic columns.
        kept: Per domain of the topology, what stays, ``[domain size] bool``.
        unknown: Perturbed names that no node has.
    """

    perturbed: Int64Array
    values: Float32Array
    phenotypes: tuple[str, ...]
    statistics: tuple[str, ...]
    kept: tuple[Tensor, ...]
    unknown: tuple[str, ...] = ()


class SampleProcessor(abc.ABC):
    """What processors of perturbed ids have in common."""

    cache_version: ClassVar[int] = 1
    statistics: str = STATISTICS[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"

    def __call__(self, sample: Sample) -> Data | HeteroData:
        """Process a sample with the base graph it carries.

        Raises:
            SourceContractError: If ``sample`` is not a :class:`Sample` with a base graph.
        """
        return self.process(getattr(sample, "base_graph", None), sample)

    @abc.abstractmethod
    def process(self, base_graph: Data | HeteroData | None, sample: Sample) -> Data | HeteroData:
        """The sample's graph, by definition and without an index."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings that change the result."""

    def check(self, base_graph: Any, sample: Any) -> None:
        """Raise ``SourceContractError`` unless there is a base graph and a :class:`Sample` of it."""
        if not isinstance(sample, Sample) or base_graph is None:
            raise SourceContractError(
                f"{type(self).__name__} processes a torchcell_cache Sample on a base graph, got "
                f"{type(sample).__name__} and base_graph={'missing' if base_graph is None else 'given'}",
                fix="use a PerturbationTable source, or a processor of your own for graph samples",
            )

    @property
    def always_statistics(self) -> bool:
        """Whether a sample without a statistic has the fields all the same, empty."""
        return self.statistics == "always"

    def labels(self, sample: Sample | Deletion) -> dict[str, Any]:
        """The ``phenotype_*`` fields of a sample."""
        return phenotype_fields(sample.values, sample.phenotypes, sample.statistics, self.always_statistics)


class DeletionProcessor(SampleProcessor):
    """Deletes a sample's perturbed nodes from the base graph.

    Args:
        gpr: When a reaction goes: with ``any`` of its genes (torchcell's rule), or when the model's boolean gene
            ``rule`` fails (needs ``reaction.gene_rules`` on the base graph).
        node_type: Node type whose nodes are deleted; ``gene``, or the only one, by default.
        statistics: Which samples have the ``phenotype_stat_*`` fields: those with a ``measured`` statistic (torchcell's
            rule), or ``always`` all of them, empty where nothing was measured, so that PyG can batch any two.

    Raises:
        SettingError: If ``gpr`` or ``statistics`` is none of these.
    """

    gpr_by: ClassVar[str]

    def __init__(
        self, *, gpr: GprRule = "any", node_type: str | None = None, statistics: Statistics = "measured"
    ) -> None:
        self.gpr = choice("gpr", gpr, GPR_RULES)
        self.statistics = choice("statistics", statistics, STATISTICS)
        self.node_type = node_type
        self._seen: tuple[Any, Topology, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}

    def settings(self) -> dict[str, Any]:
        """Settings that change the result; one that is newer than the first stores, only where it is not the default."""
        return {"gpr": self.gpr, "node_type": self.node_type, **statistics_setting(self.statistics)}

    def process(self, base_graph: Data | HeteroData | None, sample: Sample) -> Data | HeteroData:
        """The sample's graph, by definition and without an index.

        Raises:
            SourceContractError: If the sample or its base graph is missing, or an id is out of range.
        """
        self.check(base_graph, sample)
        assert base_graph is not None
        topology, shell = self._prepared(base_graph)
        if (
            len(sample.perturbed)
            and not 0 <= sample.perturbed[0] <= sample.perturbed[-1] < topology.num_nodes
        ):
            raise SourceContractError(
                f"sample {sample.index}: perturbed ids {sample.perturbed} outside 0..{topology.num_nodes - 1}"
            )
        kept = kept_by_definition(base_graph, topology, sample.perturbed, gpr=self.gpr, gpr_by=self.gpr_by)
        labels = sample.values, sample.phenotypes, sample.statistics
        deletion = Deletion(sample.perturbed, *labels, kept, sample.unknown)
        return self.assemble(base_graph, topology, shell, deletion)

    @abc.abstractmethod
    def make_shell(self, base_graph: Any, topology: Topology) -> Any:
        """What all samples of a base graph have in common, computed once and handed to :meth:`assemble`."""

    @abc.abstractmethod
    def assemble(
        self, base_graph: Any, topology: Topology, shell: Any, deletion: Deletion
    ) -> Data | HeteroData:
        """The sample's graph from what is kept."""

    def build_removal(self, base_graph: Any, graph_digest: str) -> Removal:
        """The index that answers, for this processor, what a sample removes."""
        return Removal.build(
            base_graph, node_type=self.node_type, gpr=self.gpr, gpr_by=self.gpr_by, graph_digest=graph_digest
        )

    def _prepared(self, base_graph: Any) -> tuple[Topology, Any]:
        """Topology and shell, kept for the graph seen last; a changed tensor makes a new signature."""
        stores = base_graph.stores
        signature = tuple(
            (id(v), getattr(v, "_version", 0)) for store in stores for v in store._mapping.values()
        )
        if self._seen is None or self._seen[0] != signature:
            topology = topology_of(base_graph, self.node_type)
            self._seen = (signature, topology, self.make_shell(base_graph, topology))
        return self._seen[1], self._seen[2]


def kept_by_definition(
    graph: Any, topology: Topology, perturbed: Int64Array, *, gpr: str, gpr_by: str
) -> tuple[Tensor, ...]:
    """What stays when ``perturbed`` nodes are deleted, by scanning every edge."""
    node_kept = torch.ones(topology.num_nodes, dtype=torch.bool, device="cpu")
    node_kept[torch.from_numpy(perturbed)] = False
    reaction_kept = _reactions_kept(graph, topology, node_kept, gpr)
    return tuple(_domain_kept(graph, topology, d, node_kept, reaction_kept, gpr_by) for d in topology.domains)


def _domain_kept(
    graph: Any,
    topology: Topology,
    domain: Domain,
    node_kept: Tensor,
    reaction_kept: Tensor | None,
    gpr_by: str,
) -> Tensor:
    if domain.role == "reaction":
        assert reaction_kept is not None
        return reaction_kept
    if domain.role == "edge":
        index = (graph if domain.key is None else graph[domain.key]).edge_index
        kept = torch.ones(index.size(1), dtype=torch.bool, device="cpu")
        ends = (None, None) if domain.key is None else (domain.key[0], domain.key[2])
        for row, end in enumerate(ends):
            if end == topology.node_type:
                kept &= node_kept[index[row]]
        return kept
    index = graph[domain.key].hyperedge_index
    if domain.role == "rmr":
        return (
            torch.ones(index.size(1), dtype=torch.bool, device="cpu")
            if reaction_kept is None
            else reaction_kept[index[0]]
        )
    kept = node_kept[index[0]]
    if gpr_by == "reaction" and reaction_kept is not None:
        kept = kept & reaction_kept[index[1]]
    return kept


def _reactions_kept(graph: Any, topology: Topology, node_kept: Tensor, gpr: str) -> Tensor | None:
    domain = topology.find("reaction")
    if domain is None:
        return None
    kept = torch.ones(domain.size, dtype=torch.bool, device="cpu")
    if gpr == "any":
        entries = topology.find("gpr")
        if entries is not None:
            gene, reaction = graph[entries.key].hyperedge_index
            kept[reaction[~node_kept[gene]]] = False
        return kept
    store = graph["reaction"]
    if "gene_rules" not in store or "node_ids" not in graph["gene"]:
        raise SettingError(
            'gpr="rule" needs reaction.gene_rules and gene.node_ids on the base graph', fix='use gpr="any"'
        )
    names = graph["gene"].node_ids
    lost = {names[k] for k in torch.nonzero(~node_kept).flatten().tolist()}
    if lost:
        for reaction_id, text in enumerate(store.gene_rules):
            complexes = parse_rule(text)
            if complexes and all(lost.intersection(genes) for genes in complexes):
                kept[reaction_id] = False
    return kept


def statistics_setting(statistics: str) -> dict[str, Any]:
    """The setting as part of a fingerprint: at its default it is none, so that it makes no store stale."""
    return {} if statistics == STATISTICS[0] else {"statistics": statistics}


def perturbation_fields(
    names: list[str] | None, perturbed: Int64Array, unknown: tuple[str, ...] = ()
) -> dict[str, Any]:
    """``ids_pert`` (names, those that no node has last; ids where the graph has none) and ``perturbation_indices [P] int64``."""
    ids = perturbed.tolist()
    return {
        "ids_pert": [*(ids if names is None else [names[k] for k in ids]), *unknown],
        "perturbation_indices": torch.from_numpy(np.asarray(perturbed, dtype=np.int64)),
    }


def node_names(store: Any) -> list[str] | None:
    """The store's ``node_ids`` as a list, or ``None``."""
    names = store._mapping.get("node_ids")
    return None if names is None else names if isinstance(names, list) else list(names)


def extra_tensors(store: Any, known: tuple[str, ...], size: int) -> dict[str, Tensor]:
    """Tensors of a base store beyond torchcell's fields that have one row per node or edge (edge weights, say)."""
    return {
        name: value
        for name, value in store._mapping.items()
        if name not in known and isinstance(value, Tensor) and value.dim() > 0 and value.size(0) == size
    }
