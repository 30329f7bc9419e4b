"""What the node-deleting processors share: the slow, obvious definition of what is kept.

The build and the readers never call :func:`kept_by_definition`; they go through the incidence index. That the two agree
on every sample is law 1, and the tests hold it.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import GprRule, Statistics
from torchcell_cache.core.ragged import Float32Array, Int64Array
from torchcell_cache.core.samples import Sample
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.removal import Removal
from torchcell_cache.graph.rules import parse_rule
from torchcell_cache.graph.topology import Topology, topology_of

GPR_RULES = get_args(GprRule)
STATISTICS = get_args(Statistics)
"""Which samples have the ``phenotype_stat_*`` fields: those with a statistic, or all of them."""


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

    def __init__(self, *, node_type: str | None = None, statistics: Statistics = "measured") -> None:
        self.node_type, self.statistics = node_type, choice("statistics", statistics, STATISTICS)

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

    def settings(self) -> dict[str, Any]:
        """Settings that change the result; one that is newer than the first stores, only where it is not the default."""
        newer = {} if self.statistics == STATISTICS[0] else {"statistics": self.statistics}
        return {"node_type": self.node_type, **newer}

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
        super().__init__(node_type=node_type, statistics=statistics)
        self.gpr = choice("gpr", gpr, GPR_RULES)
        self._seen: tuple[Any, Topology, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}

    def settings(self) -> dict[str, Any]:
        """Settings that change the result."""
        return {"gpr": self.gpr, **super().settings()}

    def process(self, base_graph: Data | HeteroData | None, sample: Sample) -> Data | HeteroData:
        """The sample's graph, by definition and without an index.

        Raises:
            SourceContractError: If the sample or its base graph is missing, or an id is out of range.
        """
        self.check(base_graph, sample)
        assert base_graph is not None
        # Topology and shell are kept for the graph seen last; a changed tensor makes a new signature.
        values = [value for store in base_graph.stores for value in store._mapping.values()]
        signature = [(id(value), getattr(value, "_version", 0)) for value in values]
        if self._seen is None or self._seen[0] != signature:
            topology = topology_of(base_graph, self.node_type)
            self._seen = (signature, topology, self.make_shell(base_graph, topology))
        _, topology, shell = self._seen
        ids = sample.perturbed
        if len(ids) and not 0 <= ids[0] <= ids[-1] < topology.num_nodes:
            raise SourceContractError(
                f"sample {sample.index}: perturbed ids {ids} outside 0..{topology.num_nodes - 1}"
            )
        kept = kept_by_definition(base_graph, topology, ids, gpr=self.gpr, gpr_by=self.gpr_by)
        labels = sample.values, sample.phenotypes, sample.statistics
        deletion = Deletion(ids, *labels, kept, sample.unknown)
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


def kept_by_definition(
    graph: Any, topology: Topology, perturbed: Int64Array, *, gpr: str, gpr_by: str
) -> tuple[Tensor, ...]:
    """What stays when ``perturbed`` nodes are deleted, by scanning every edge."""
    node_kept = torch.ones(topology.num_nodes, dtype=torch.bool, device="cpu")
    node_kept[torch.from_numpy(perturbed)] = False
    reactions = _reactions_kept(graph, topology, node_kept, gpr)
    out: list[Any] = []
    for domain in topology.domains:
        if domain.role == "reaction":
            out.append(reactions)
            continue
        store = graph if domain.key is None else graph[domain.key]
        index = store.edge_index if domain.role == "edge" else store.hyperedge_index
        kept = torch.ones(index.size(1), dtype=torch.bool, device="cpu")
        for row in topology.ends_of(domain):
            kept &= node_kept[index[row]]
        if domain.role == "rmr" and reactions is not None:
            kept &= reactions[index[0]]
        if domain.role == "gpr" and reactions is not None and gpr_by == "reaction":
            kept &= reactions[index[1]]
        out.append(kept)
    return tuple(out)


def _reactions_kept(graph: Any, topology: Topology, node_kept: Tensor, gpr: str) -> Tensor | None:
    domain, entries = topology.find("reaction"), topology.find("gpr")
    if domain is None:
        return None
    kept = torch.ones(domain.size, dtype=torch.bool, device="cpu")
    if gpr == "any":
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
    for reaction_id, text in enumerate(store.gene_rules if lost else ()):
        complexes = parse_rule(text)
        if complexes and all(lost.intersection(genes) for genes in complexes):
            kept[reaction_id] = False
    return kept


def perturbation_fields(
    names: list[str] | None, perturbed: Int64Array, unknown: tuple[str, ...] = ()
) -> dict[str, Any]:
    """``ids_pert`` (names, those that no node has last; ids where the graph has none) and ``perturbation_indices [P] int64``."""
    ids = perturbed.tolist()
    return {
        "ids_pert": [*(ids if names is None else [names[k] for k in ids]), *unknown],
        "perturbation_indices": torch.from_numpy(np.asarray(perturbed, dtype=np.int64)),
    }


def graph_of(node_type: str | None, fields: dict[str, Any]) -> Any:
    """A graph whose only fields are these of one node type, or of all its nodes where it has no types."""
    out = Data() if node_type is None else HeteroData()
    (out._store if node_type is None else out[node_type])._mapping = fields
    return out


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


def _coordinates(prefix: str, values: Float32Array, names: tuple[str, ...], fill: bool) -> dict[str, Any]:
    """The fields of some columns; with ``fill``, one NaN where there is no value."""
    measurement, column = np.nonzero(~np.isnan(values))
    found = values[measurement, column]
    if fill and len(found) == 0:
        found, measurement = np.full(1, np.nan, dtype=np.float32), np.zeros(1, dtype=np.int64)
        column = measurement.copy()
    return {
        f"{prefix}_values": torch.from_numpy(found),
        f"{prefix}_type_indices": torch.from_numpy(column.astype(np.int64)),
        f"{prefix}_sample_indices": torch.from_numpy(measurement.astype(np.int64)),
        f"{prefix}_types": list(names),
    }


def phenotype_fields(
    values: Float32Array, phenotypes: tuple[str, ...], statistics: tuple[str, ...], always: bool = False
) -> dict[str, Any]:
    """The ``phenotype_*`` fields of one sample.

    Values come measurement by measurement, within one in the order of the names. A sample without any value has one NaN
    of type 0 and sample 0; the ``phenotype_stat_*`` fields are there only if the sample has a statistic, or ``always``.

    Args:
        values: ``[num_measurements, num_phenotypes + num_statistics] float32``, NaN for no value.
        phenotypes: Names of the first columns.
        statistics: Names of the remaining columns.
        always: Give a sample without a statistic empty ``phenotype_stat_*`` fields.

    Returns:
        ``phenotype_values [k] float32``, ``phenotype_type_indices [k] int64``, ``phenotype_sample_indices [k] int64``,
        ``phenotype_types`` (names) and, with statistics, the same four under ``phenotype_stat_*``.
    """
    split = len(phenotypes)
    out = _coordinates("phenotype", values[:, :split], phenotypes, True)
    if not (statistics or always):
        return out
    more = _coordinates("phenotype_stat", values[:, split:], statistics, False)
    return out | more if always or (statistics and len(more["phenotype_stat_values"])) else out
