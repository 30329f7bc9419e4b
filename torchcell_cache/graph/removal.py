"""What each sample removes from the base graph, for either reaction rule.

With ``gpr="any"`` the incidence index alone answers. With ``gpr="rule"`` a reaction survives while one of its enzyme
complexes is whole, which is not a union over genes: the rules are evaluated for the batch, and the reactions they
switch off bring their own entries through a second, small CSR.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, Positions, merge_ragged, offsets, ragged_arange
from torchcell_cache.errors import CorruptIndexError, SourceContractError
from torchcell_cache.graph.arrays import map_arrays
from torchcell_cache.graph.incidence import IncidenceIndex
from torchcell_cache.graph.rules import GeneRules
from torchcell_cache.graph.topology import Topology, endpoints

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

_RULE = "rule."


@dataclass(frozen=True, slots=True, eq=False)
class ReactionRemoval:
    """Reactions by rule, and the positions each brings along.

    Attributes:
        rules: The model's gene rules.
        ptr: Offsets per reaction, ``[num_reactions + 1] int64``.
        positions: Global positions of the reaction itself and its rmr (and gpr) entries, ascending.
        nodes: What the rules call each node, where nodes were numbered anew, ``[num_nodes] int64``.
    """

    rules: GeneRules
    ptr: Int64Array
    positions: Positions
    nodes: Int64Array | None = None

    def removed(self, ids: npt.NDArray[Any], ptr: Int64Array) -> tuple[Positions, Int64Array]:
        """Positions the switched-off reactions of each sample take with them, not sorted across reactions."""
        ids = ids if self.nodes is None else self.nodes[ids]
        reactions, reaction_ptr = self.rules.removed_reactions(ids, ptr)
        counts = self.ptr[reactions + 1] - self.ptr[reactions]
        return self.positions[ragged_arange(self.ptr[reactions], counts)], offsets(counts)[reaction_ptr]


@dataclass(frozen=True, slots=True, eq=False)
class Removal:
    """Turns perturbed ids into removed positions.

    Attributes:
        index: What goes with each node.
        by_rule: The reactions' own removal, or ``None`` with ``gpr="any"``.
    """

    index: IncidenceIndex
    by_rule: ReactionRemoval | None = None

    @property
    def topology(self) -> Topology:
        """The position space."""
        return self.index.topology

    @classmethod
    def build(
        cls, base_graph: Data | HeteroData, *, node_type: str | None, gpr: str, gpr_by: str, graph_digest: str
    ) -> Removal:
        """Build index and rules for a base graph.

        Raises:
            SourceContractError: If ``gpr="rule"`` and the graph carries no gene rules.
        """
        index = IncidenceIndex.build(
            base_graph, node_type=node_type, gpr_by=gpr_by, metabolic=gpr == "any", graph_digest=graph_digest
        )
        if gpr == "any" or index.topology.find("reaction") is None:
            return cls(index)
        return cls(index, _reaction_removal(base_graph, index.topology, gpr_by))

    def removed(self, ids: npt.NDArray[Any], ptr: Int64Array) -> tuple[Positions, Int64Array]:
        """Positions each sample removes, ascending and unique, and their offsets ``[batch + 1] int64``."""
        if self.by_rule is None:
            return self.index.removed(ids, ptr)
        return merge_ragged(self.index.removed(ids, ptr), self.by_rule.removed(ids, ptr))

    def to_bytes(self) -> bytes:
        """Serialised form."""
        if self.by_rule is None:
            return self.index.to_bytes()
        arrays = {"reaction_ptr": self.by_rule.ptr, "reaction_positions": self.by_rule.positions}
        for item in fields(self.by_rule.rules):
            arrays[_RULE + item.name] = np.asarray(getattr(self.by_rule.rules, item.name))
        return self.index.to_bytes(arrays)

    @classmethod
    def load(cls, path: str | Path, topology: Topology) -> Removal:
        """Map a stored removal.

        Raises:
            CorruptIndexError: If it does not fit the topology.
        """
        index = IncidenceIndex.load(path, topology)
        if index.metabolic or topology.find("reaction") is None:
            return cls(index)
        arrays, _ = map_arrays(path)
        try:
            values = {item.name: arrays[_RULE + item.name] for item in fields(GeneRules)}
            rules = GeneRules(**values)
            return cls(index, ReactionRemoval(rules, arrays["reaction_ptr"], arrays["reaction_positions"]))
        except (KeyError, TypeError) as error:
            raise CorruptIndexError(f"{path}: {error} in the stored gene rules", path=path) from None


def _reaction_removal(graph: Data | HeteroData, topology: Topology, gpr_by: str) -> ReactionRemoval:
    domain = topology.find("reaction")
    texts = graph["reaction"]._mapping.get("gene_rules")
    names = graph["gene"]._mapping.get("node_ids")
    if domain is None or texts is None or names is None:
        raise SourceContractError(
            'gpr="rule" needs reaction.gene_rules (one boolean rule per reaction, "" for none) and gene.node_ids '
            "on the base graph",
            fix='set base_graph["reaction"].gene_rules, or use gpr="any"',
        )
    if len(texts) != domain.size:
        raise SourceContractError(f"reaction.gene_rules has {len(texts)} rules for {domain.size} reactions")
    owners = [np.arange(domain.size, dtype=np.int64)]
    positions = [owners[0] + domain.start]
    for role in ("gpr", "rmr") if gpr_by == "reaction" else ("rmr",):
        entries = topology.find(role)
        if entries is not None:
            index = endpoints(graph, entries)
            owners.append(index[1] if role == "gpr" else index[0])
            positions.append(np.arange(entries.size, dtype=np.int64) + entries.start)
    owner, position = np.concatenate(owners), np.concatenate(positions)
    order = np.lexsort((position, owner))
    ptr = offsets(np.bincount(owner, minlength=domain.size))
    rules = GeneRules.from_strings(list(texts), list(names))
    return ReactionRemoval(rules, ptr, position[order].astype(topology.position_dtype))
