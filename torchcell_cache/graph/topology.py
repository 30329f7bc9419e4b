"""One position space over everything of a base graph that a deletion can remove.

All removable things - the edges of each edge type, gpr and rmr entries, reactions - are numbered consecutively, domain
after domain. A sample's removals are then one ascending list of integers, whatever the number of edge types, and the
masks of a whole batch are one scatter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from torchcell_cache.errors import FormatError, SourceContractError

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

EdgeType: TypeAlias = tuple[str, str, str]
GPR: EdgeType = ("gene", "gpr", "reaction")
RMR: EdgeType = ("reaction", "rmr", "metabolite")


@dataclass(frozen=True, slots=True)
class Domain:
    """A run of positions.

    Attributes:
        role: ``edge`` (an edge goes with either end), ``gpr``, ``rmr`` or ``reaction``.
        key: Edge type, node type, or ``None`` for the edges of a homogeneous graph.
        start: First global position.
        size: Number of positions.
    """

    role: str
    key: EdgeType | str | None
    start: int
    size: int

    @property
    def stop(self) -> int:
        """One past the last global position."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Topology:
    """Which nodes can be deleted and what goes with them.

    Attributes:
        node_type: Perturbable node type, ``None`` for a homogeneous graph.
        num_nodes: Number of perturbable nodes.
        domains: All removable things, in position order.
    """

    node_type: str | None
    num_nodes: int
    domains: tuple[Domain, ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.domains[-1].stop if self.domains else 0

    @property
    def position_dtype(self) -> np.dtype[Any]:
        """Smallest of int32 and int64 that holds every position."""
        return np.dtype(np.int32) if self.size < 1 << 31 else np.dtype(np.int64)

    def find(self, role: str) -> Domain | None:
        """The only domain of a role other than ``edge``, if there is one."""
        return next((d for d in self.domains if d.role == role), None)

    def domain_of(self, key: EdgeType | str | None) -> Domain:
        """The domain of an edge type or node type.

        Raises:
            KeyError: Listing the keys there are.
        """
        for domain in self.domains:
            if domain.key == key:
                return domain
        raise KeyError(f"{key!r} is not removable here; removable: {[d.key for d in self.domains]}")

    def ends_of(self, domain: Domain) -> tuple[int, ...]:
        """Rows of a domain's index that hold nodes of the perturbed type."""
        if domain.role == "edge":
            ends = (None, None) if domain.key is None else (domain.key[0], domain.key[2])
            return tuple(row for row, end in enumerate(ends) if end == self.node_type)
        return (0,) if domain.role == "gpr" else ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest."""
        domains = [[d.role, list(d.key) if isinstance(d.key, tuple) else d.key, d.size] for d in self.domains]
        return {"node_type": self.node_type, "num_nodes": self.num_nodes, "domains": domains}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Topology:
        """Read the JSON form back.

        Raises:
            FormatError: If it is not well formed.
        """
        try:
            domains, start = [], 0
            for role, key, size in data["domains"]:
                name = (str(key[0]), str(key[1]), str(key[2])) if isinstance(key, list) else key
                domains.append(Domain(str(role), name, start, int(size)))
                start += int(size)
            return cls(data["node_type"], int(data["num_nodes"]), tuple(domains))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise FormatError(f"the stored topology is malformed: {error!r}") from None


def count_nodes(store: Any, what: str) -> int:
    """Number of nodes of a store, insisting that it is stated or implied by ``x`` or ``node_ids``.

    Raises:
        SourceContractError: If nothing in the store tells.
    """
    for name in ("num_nodes", "x", "node_ids"):
        value = store._mapping.get(name)
        if value is not None:
            return int(value) if name == "num_nodes" else len(value)
    raise SourceContractError(
        f"the base graph does not say how many nodes {what} has",
        fix=f"set num_nodes on {what} of the base graph",
    )


def endpoints(graph: Data | HeteroData, domain: Domain) -> npt.NDArray[np.int64]:
    """Both rows of an edge domain's index, ``[2, size] int64``."""
    store = graph if domain.key is None else graph[domain.key]
    index = store.edge_index if domain.role == "edge" else store.hyperedge_index
    return np.asarray(index.numpy(force=True), dtype=np.int64)


def perturbable_type(graph: Data | HeteroData, node_type: str | None = None) -> str | None:
    """The node type whose nodes are deleted: the given one, ``gene``, or the only one.

    Raises:
        SourceContractError: If the graph does not have it, or leaves a choice.
    """
    types = getattr(graph, "node_types", None)
    if types is None:
        return None
    if node_type is None:
        node_type = "gene" if "gene" in types else types[0] if len(types) == 1 else None
    if node_type is None or node_type not in types:
        raise SourceContractError(
            f"cannot tell which nodes are deleted: node_type={node_type!r}, the base graph has {types}",
            fix="pass node_type=..., one of them, where the perturbed nodes are named",
        )
    return node_type


def topology_of(graph: Data | HeteroData, node_type: str | None = None) -> Topology:
    """Number everything of ``graph`` that deleting nodes can remove.

    Raises:
        SourceContractError: If an index is out of range, has a wrong shape, or an edge store has none.
    """
    node_type = perturbable_type(graph, node_type)
    if node_type is None:
        num_nodes = count_nodes(graph._store, "the graph")
        index = getattr(graph, "edge_index", None)
        size = 0 if index is None else _checked(index, "edge_index", num_nodes, num_nodes)
        return Topology(None, num_nodes, (Domain("edge", None, 0, size),) if index is not None else ())
    counts = {t: count_nodes(graph[t], f"'{t}'") for t in graph.node_types}
    domains: list[Domain] = []
    roles = {GPR: "gpr", RMR: "rmr"} if node_type == "gene" else {}
    for role in ("edge", "gpr", "rmr"):
        for key in graph.edge_types:
            if roles.get(key, "edge") != role:
                continue
            name = "edge_index" if role == "edge" else "hyperedge_index"
            index = graph[key].get(name)
            if index is None:
                raise SourceContractError(
                    f"edge type {key} of the base graph has no {name}", fix=f"set {name} [2, n]"
                )
            size = _checked(index, f"{key}.{name}", counts.get(key[0]), counts.get(key[2]))
            domains.append(Domain(role, key, domains[-1].stop if domains else 0, size))
    if "reaction" in counts and node_type == "gene":
        domains.append(Domain("reaction", "reaction", domains[-1].stop if domains else 0, counts["reaction"]))
    return Topology(node_type, counts[node_type], tuple(domains))


def check_rows(graph: Data | HeteroData, topology: Topology) -> None:
    """Insist on one row per node of ``x``, and per entry of ``stoichiometry``: they are cut with nodes and entries.

    Raises:
        SourceContractError: Naming the field and the rows it should have.
    """
    own, rmr = topology.node_type, topology.find("rmr")
    wanted: list[tuple[Any, str, int]] = [
        (graph._store if own is None else graph[own], "x", topology.num_nodes)
    ]
    if rmr is not None:
        wanted.append((graph[rmr.key], "stoichiometry", rmr.size))
    for store, name, count in wanted:
        shape = getattr(store._mapping.get(name), "shape", (count,))
        if tuple(shape[:1]) != (count,):
            raise SourceContractError(
                f"{name} of the base graph's {store._key or 'nodes'} has shape {list(shape)}, expected {count} rows",
                fix=f"give {name} one row for each, in their order, or delete it",
            )


def _checked(index: Any, what: str, num_src: int | None, num_dst: int | None) -> int:
    got = getattr(index, "dtype", type(index).__name__), tuple(getattr(index, "shape", ()))
    if str(got[0]) not in ("torch.int64", "torch.int32") or len(got[1]) != 2 or got[1][0] != 2:
        raise SourceContractError(
            f"{what} is {got[0]} {list(got[1])}, expected a tensor [2, n] of torch.int64 (or int32)",
            fix="torch.as_tensor(edge_index, dtype=torch.long)",
        )
    for row, limit in enumerate((num_src, num_dst)):
        if limit is None:
            raise SourceContractError(f"{what}: the base graph has no such node type")
        if index.size(1) and not 0 <= int(index[row].min()) <= int(index[row].max()) < limit:
            raise SourceContractError(
                f"{what}[{row}] spans {int(index[row].min())}..{int(index[row].max())}, there are {limit} nodes"
            )
    return int(index.size(1))
