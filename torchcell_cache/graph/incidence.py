"""The incidence index: from a node to the positions of everything that goes when it is deleted.

One CSR over the whole position space (:mod:`torchcell_cache.graph.topology`), node-major: what a node takes with it is one
slice, ascending, edge type after edge type. With torchcell's ``gpr="any"`` rule a reaction goes with any of its genes, so
reactions and their rmr entries are per-gene sets as well and a sample's removals are a plain union of slices.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.hints import repair_hint
from torchcell_cache.core.ragged import Int64Array, Positions, offsets, ragged_arange, unique_ragged
from torchcell_cache.errors import CorruptIndexError, GraphMismatchError, SourceContractError
from torchcell_cache.graph.arrays import arrays_to_bytes, map_arrays
from torchcell_cache.graph.topology import Domain, EdgeType, Topology, endpoints, topology_of

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

Part: TypeAlias = tuple[Int64Array, Int64Array | None]
"""Nodes and the local positions each removes; ``None``: the k-th entry removes position k."""


@dataclass(frozen=True, slots=True, eq=False)
class IncidenceIndex:
    """CSR from node to removed positions, bound to one base graph.

    Attributes:
        topology: The position space.
        ptr: Slices per node and domain, ``[num_nodes, num_domains + 1] int64``: what node ``n`` removes from domain ``d``
            is ``positions[ptr[n, d]:ptr[n, d + 1]]``.
        positions: Global positions, ascending per node, ``[nnz] int32`` (int64 from 2**31 positions on).
        graph_digest: Content hash of the base graph it was built from.
        gpr_by: Whether a gpr entry goes with its ``gene`` (mask processor) or its ``reaction`` (subgraph processor).
        metabolic: Whether reactions and what hangs on them are part of the index (``gpr="any"``).
        build_ms: What building cost, milliseconds; 0 when loaded.

    Example:
        >>> index = ds.generation.removal.index
        >>> index.ptr.shape  # a row of positions per gene
        (8, 7)
    """

    topology: Topology
    ptr: Int64Array
    positions: Positions
    graph_digest: str
    gpr_by: str = "gene"
    metabolic: bool = True
    build_ms: float = field(default=0.0, compare=False)

    @classmethod
    def build(
        cls,
        base_graph: Data | HeteroData,
        *,
        node_type: str | None = None,
        gpr_by: str = "gene",
        metabolic: bool = True,
        graph_digest: str | None = None,
    ) -> IncidenceIndex:
        """Build the index in one vectorised pass.

        Args:
            base_graph: The graph that all samples share.
            node_type: Perturbable node type; ``gene`` or the only one by default.
            gpr_by: ``gene`` or ``reaction``, see the class.
            metabolic: Include reactions and their entries by the ``any`` rule.
            graph_digest: The graph's content hash if already known; computed otherwise.

        Raises:
            SourceContractError: If the graph's indices are out of range.
        """
        if graph_digest is None:
            from torchcell_cache.graph.fields import graph_digest as digest_of

            graph_digest = digest_of(base_graph)
        begin = time.perf_counter()
        topology = topology_of(base_graph, node_type)
        parts = [_domain_parts(base_graph, topology, d, gpr_by, metabolic) for d in topology.domains]
        ptr, positions = _node_major(topology, parts)
        elapsed = (time.perf_counter() - begin) * 1e3
        return cls(topology, ptr, positions, graph_digest, gpr_by, metabolic, elapsed)

    @property
    def num_edges(self) -> int:
        """Edges and hyperedge entries covered."""
        return sum(d.size for d in self.topology.domains if d.role != "reaction")

    @property
    def edge_types(self) -> list[EdgeType | str | None]:
        """Keys of the edge types covered."""
        return [d.key for d in self.topology.domains if d.role != "reaction"]

    def lookup(self, key: EdgeType | str | None, node: int) -> Positions:
        """Positions within one edge type that go with ``node``, ascending ``[degree] int64``."""
        domain = self.topology.domain_of(key)
        column = self.topology.domains.index(domain)
        found = self.positions[self.ptr[node, column] : self.ptr[node, column + 1]]
        return found.astype(np.int64) - domain.start

    def degrees(self, ids: npt.NDArray[Any]) -> Int64Array:
        """Positions under each node, ``[n] int64``."""
        found: Int64Array = self.ptr[ids, -1] - self.ptr[ids, 0]
        return found

    def removed(self, ids: npt.NDArray[Any], ptr: Int64Array) -> tuple[Positions, Int64Array]:
        """Global positions that each sample of a ragged batch removes.

        Args:
            ids: Perturbed node ids, ``[sum of counts]``.
            ptr: Offsets of the samples, ``[batch + 1] int64``.

        Returns:
            Positions, ascending and unique per sample, and their offsets ``[batch + 1] int64``.
        """
        starts, stops = self.ptr[ids, 0].tolist(), self.ptr[ids, -1].tolist()
        slices = [self.positions[a:b] for a, b in zip(starts, stops, strict=True)]
        counts = offsets(self.degrees(ids))
        flat = np.concatenate(slices) if slices else np.empty(0, dtype=self.positions.dtype)
        return unique_ragged(flat, counts[ptr])

    def check_graph(self, digest: str) -> None:
        """Refuse another base graph than the one the index was built from.

        Raises:
            GraphMismatchError: If the content hashes differ.
        """
        if digest != self.graph_digest:
            raise GraphMismatchError(
                f"this incidence index belongs to base graph {self.graph_digest[:16]}, got base graph {digest[:16]}",
                fix="build the index from the graph it is used with: IncidenceIndex.build(base_graph)",
            )

    def to_bytes(self, more: dict[str, npt.NDArray[Any]] | None = None) -> bytes:
        """Serialised form, the same bytes for the same index; with ``more`` arrays beside it."""
        meta = {
            "graph_digest": self.graph_digest,
            "gpr_by": self.gpr_by,
            "metabolic": str(int(self.metabolic)),
        }
        return arrays_to_bytes({"ptr": self.ptr, "positions": self.positions, **(more or {})}, meta)

    @classmethod
    def load(cls, path: str | Path, topology: Topology) -> IncidenceIndex:
        """Map a stored index; checks shapes and ranges, not every position.

        Raises:
            CorruptIndexError: If it does not fit the topology.
        """
        arrays, meta = map_arrays(path)
        try:
            ptr, positions = arrays["ptr"], arrays["positions"]
            index = cls(
                topology, ptr, positions, meta["graph_digest"], meta["gpr_by"], meta["metabolic"] == "1"
            )
        except KeyError as error:
            raise CorruptIndexError(f"{path}: {error} is missing", path=path) from None
        wanted = (topology.num_nodes, len(topology.domains) + 1)
        flat = ptr.ravel()
        fits = ptr.shape == wanted and ptr.dtype == np.int64 and positions.dtype == topology.position_dtype
        if not fits or (
            len(flat) and (flat[0] != 0 or flat[-1] != len(positions) or bool((np.diff(flat) < 0).any()))
        ):
            raise CorruptIndexError(
                f"{path}: ptr {ptr.shape} and {len(positions)} positions do not fit a base graph of {wanted[0]} nodes",
                path=path,
                fix=repair_hint(path),
            )
        return index


def _domain_parts(
    graph: Data | HeteroData, topology: Topology, domain: Domain, gpr_by: str, metabolic: bool
) -> list[Part]:
    """Which node removes which position of one domain; of an edge both ends that can be deleted, a self loop once."""
    if domain.role == "edge":
        index = endpoints(graph, domain)
        rows = [index[row] for row in topology.ends_of(domain)]
        if len(rows) < 2:
            return [(row, None) for row in rows]
        other_end = rows[0] != rows[1]
        if other_end.all():
            return [(rows[0], None), (rows[1], None)]
        return [(rows[0], None), (rows[1][other_end], np.flatnonzero(other_end))]
    gpr = topology.find("gpr")
    if gpr is None:
        return []
    gene, reaction = endpoints(graph, gpr)
    # By rule, a gene goes while its reaction stays.
    if domain.role == "gpr" and (gpr_by == "gene" or not metabolic):
        return [(gene, None)]
    if not metabolic:
        return []
    num_reactions = domain.size if domain.role == "reaction" else int(graph["reaction"].num_nodes)
    pair = np.unique(reaction * topology.num_nodes + gene)
    pair_reaction, pair_gene = np.divmod(pair, topology.num_nodes)
    if domain.role == "reaction":
        return [(pair_gene, pair_reaction)]
    owner = reaction if domain.role == "gpr" else endpoints(graph, domain)[0]
    per_reaction = np.bincount(pair_reaction, minlength=num_reactions)
    first = np.cumsum(per_reaction) - per_reaction
    counts = per_reaction[owner]
    entry = np.repeat(np.arange(len(owner), dtype=np.int64), counts)
    return [(pair_gene[ragged_arange(first[owner], counts)], entry)]


def _node_major(topology: Topology, parts: Sequence[Sequence[Part]]) -> tuple[Int64Array, Positions]:
    """Bring the parts of all domains into one CSR, nodes first, positions ascending.

    Node and position are packed into one 64-bit key each, so that one sort - which numpy does with vector instructions,
    faster than a radix argsort and the gather after it - brings everything into its final order.
    """
    num_nodes, width = topology.num_nodes, len(topology.domains)
    shift = max(32, topology.size.bit_length())
    if num_nodes.bit_length() + shift > 64:
        raise SourceContractError(
            f"{num_nodes} nodes and {topology.size} positions are more than one index can hold"
        )
    keys = np.empty(sum(len(nodes) for column in parts for nodes, _ in column), dtype=np.uint64)
    counts = np.zeros((num_nodes, width), dtype=np.int64)
    at = 0
    for column, domain in enumerate(topology.domains):
        for nodes, local in parts[column]:
            counts[:, column] += np.bincount(nodes, minlength=num_nodes)
            key = keys[at : at + len(nodes)]
            np.left_shift(nodes.astype(np.uint64, copy=False), np.uint64(shift), out=key)
            own = np.arange(len(nodes), dtype=np.int64) if local is None else local
            key |= (own + domain.start).view(np.uint64)
            at += len(nodes)
    keys.sort()
    if topology.position_dtype == np.int32 and shift == 32 and sys.byteorder == "little":
        return starts_of(counts), np.ascontiguousarray(keys.view(np.int32)[::2])
    return starts_of(counts), (keys & np.uint64((1 << shift) - 1)).astype(topology.position_dtype)


def starts_of(counts: Int64Array) -> Int64Array:
    """``ptr`` of an index with so many positions per node and domain, ``[num_nodes, num_domains]``."""
    num_nodes, width = counts.shape
    ptr = np.zeros((num_nodes, width + 1), dtype=np.int64)
    ends = np.cumsum(counts.ravel()).reshape(num_nodes, width)
    ptr[:, 1:] = ends
    ptr[1:, 0] = ends[:-1, -1] if width else 0
    return ptr
