"""Which nodes a batch is restricted to: the strategies of ``SharedGraphBatch.select_nodes``.

All of them work on the host, where a batch keeps its perturbed ids, and are the same on every device. Perturbed nodes come
first whatever the strategy: a sample whose perturbed node were left out would look like the wild type.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from torchcell_cache.batch.context import GraphContext, neighbour_table
from torchcell_cache.core.checks import choice, whole_number
from torchcell_cache.core.choices import Strategy
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.induced_subgraph import NeighbourTable, hop_columns, neighbours, select
from torchcell_cache.graph.topology import Topology
from torchcell_cache.store.generation import Generation

STRATEGIES = get_args(Strategy)

Scores = npt.NDArray[np.float64]
B = TypeVar("B", bound=Any)


def checked_nodes(nodes: Any, num_nodes: int) -> Int64Array:
    """Given node ids, ascending.

    Raises:
        SettingError: If they are not unique integers of the right range, or none.
    """
    array = nodes.numpy(force=True) if isinstance(nodes, Tensor) else np.asarray(nodes)
    if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) == 0:
        raise SettingError(
            f"nodes are {array.dtype}{list(array.shape)}, expected at least one integer id, [k]"
        )
    ids = np.unique(array).astype(np.int64)
    if len(ids) != len(array) or ids[0] < 0 or ids[-1] >= num_nodes:
        raise SettingError(
            f"{len(array)} nodes from {ids[0]} to {ids[-1]}, {len(ids)} of them different: expected unique ids within "
            f"0..{num_nodes - 1}"
        )
    return ids


def at_random(scores: Scores, weighted: bool, key: tuple[int, int, int]) -> Int64Array:
    """Nodes with a value above 0 in random order.

    The first ``m`` are a sample without replacement; weighted, each draw takes a node with a probability proportional to its
    value among those left (Efraimidis and Spirakis, 2006: the smallest of ``exponential / weight``).
    """
    words = [whole_number(name, value, 0) for name, value in zip(("seed", "epoch", "step"), key, strict=True)]
    drawn = np.random.default_rng(words).exponential(size=len(scores))
    expressed = np.flatnonzero(scores > 0)
    weights = scores[expressed] if weighted else 1.0
    return expressed[np.argsort(drawn[expressed] / weights, kind="stable")]


def neighbourhood(table: NeighbourTable, perturbed: Int64Array, k: int, edge_types: Any) -> Int64Array:
    """The perturbed nodes and those fewest hops away from any of them, up to ``k``, ascending.

    Edges count in both directions. Of the nodes of the last hop, those with most edges to the hop before come first, then
    those with the lowest ids.
    """
    topology = table.index.topology
    columns = hop_columns(topology, edge_types)
    reached = np.zeros(topology.num_nodes, dtype=bool)
    reached[perturbed] = True
    chosen, hop = [perturbed], perturbed
    left = k - len(perturbed)
    while left and len(hop):
        others = neighbours(table, hop, columns)
        hop, links = np.unique(others[~reached[others]], return_counts=True)
        if len(hop) > left:
            hop = hop[np.lexsort((hop, -links))[:left]]
        reached[hop] = True
        chosen.append(hop)
        left -= len(hop)
    return np.sort(np.concatenate(chosen))


def scores_of(values: Any, batch: Any, topology: Topology) -> Scores:
    """One value per node, on the host.

    Raises:
        SettingError: If it is none of that; names what the base graph has.
    """
    num_nodes, batch_size = topology.num_nodes, len(batch)
    if isinstance(values, Tensor | np.ndarray):
        array = values.numpy(force=True) if isinstance(values, Tensor) else values
    else:
        graph = batch.generation.base_graph
        base = graph._store if topology.node_type is None else graph[topology.node_type]
        array = _base_column(values, base._mapping, num_nodes)
    if array.shape == (batch_size, num_nodes):
        array = array.astype(np.float64).mean(axis=0)
    if array.shape != (num_nodes,):
        raise SettingError(
            f"values of shape {list(array.shape)}, expected [{num_nodes}] or [{batch_size}, {num_nodes}]: one per node, or "
            "one per sample and node"
        )
    scores: Scores = array.astype(np.float64)
    return np.where(np.isnan(scores), -np.inf, scores)


def expression_field(generation: Generation) -> tuple[str, int | None]:
    """The node field that holds the expression of a store's cells and its column, ``None`` for the last."""
    source = generation.manifest.fingerprint.get("source", {})
    while source.get("class") in ("AppendedSource", "Subset"):
        source = source["stored"] if "stored" in source else source["of"]["source"]
    return source.get("field", "x"), source.get("column")


def expression_of(batch: Any, values: Any) -> Any:
    """What ``values`` means for a batch of cells: their own expression by default, a column of their own ``x`` by number."""
    field, column = expression_field(batch.generation)
    if isinstance(values, int) and not isinstance(values, bool):
        field, column = "x", values
    elif values is not None and values != field if isinstance(values, str) else values is not None:
        return values
    found = batch.features(None, field)
    if column is not None and not 0 <= column < found.size(2):
        raise SettingError(f"values={values!r}: {field} has the columns 0..{found.size(2) - 1}")
    return found[..., -1 if column is None else column]


def _base_column(values: Any, base: dict[str, Any], num_nodes: int) -> npt.NDArray[Any]:
    x, sized = base.get("x"), (num_nodes,)
    width = x.size(1) if isinstance(x, Tensor) and x.dim() == 2 else 0
    tensors = {name: value for name, value in base.items() if isinstance(value, Tensor)}
    named = {n: t for n, t in tensors.items() if t.shape[:1] == sized and t.numel() == num_nodes}
    if isinstance(values, int | np.integer) and not isinstance(values, bool) and 0 <= values < width:
        return np.asarray(tensors["x"][:, values].numpy(force=True))
    if isinstance(values, str) and values in named:
        return np.asarray(named[values].reshape(-1).numpy(force=True))
    columns = f"the number of a column of x (0..{width - 1})" if width else "a base graph with x"
    raise SettingError(
        f"values={values!r} says nothing about the nodes; valid: a tensor [num_nodes] or [batch, num_nodes], {columns}, "
        f"the name of a node field {sorted(named)}",
        fix="values=expression, or values=torch.ones(num_nodes) where every node counts alike",
    )


def choose(batch: Any, topology: Topology, k: Any, strategy: str, settings: dict[str, Any]) -> Int64Array:
    """Nodes for a batch, ascending; see ``SharedGraphBatch.select_nodes``.

    Raises:
        SettingError: Naming the valid choices.
    """
    choice("strategy", strategy, STRATEGIES)
    if strategy == "all":
        return np.arange(topology.num_nodes)
    perturbed = np.unique(batch._perturbed_ids()[0])
    k = whole_number("k", k, 1, fix='k=1000, or strategy="all" for every node')
    if k < len(perturbed):
        raise SettingError(
            f"k={k} nodes, but the samples of this batch perturb {len(perturbed)} different nodes: a sample without its "
            "perturbed nodes would look like the wild type",
            fix=f"k={len(perturbed)} or more, or smaller batches",
        )
    if strategy == "perturbed_neighbourhood":
        if len(perturbed) == 0:
            raise SettingError(
                "the samples of this batch perturb no node, so there is no neighbourhood of one",
                fix='strategy="most_expressed", or batches with at least one perturbed sample',
            )
        return neighbourhood(neighbour_table(batch.generation), perturbed, k, settings["edge_types"])
    values = settings["values"]
    if not batch.generation.is_structured:
        values = expression_of(batch, values)
    scores = scores_of(values, batch, topology)
    if strategy == "most_expressed":
        ranked = np.argsort(-scores, kind="stable")  # ties by id
    elif settings["key"][-1] is None:
        raise SettingError(
            "strategy='random_expressed' draws by seed, epoch and step, and step was not given: every batch would get the "
            "same nodes",
            fix="select_nodes(..., seed=seed, epoch=epoch, step=step)",
        )
    else:
        ranked = at_random(scores, settings["weighted"], settings["key"])
    others = ranked[~np.isin(ranked, perturbed)][: k - len(perturbed)]
    return np.sort(np.concatenate([perturbed, others]))


def selectable_from(batch: Any, node_type: str | None) -> Topology:
    """The position space of a batch from which nodes of a type can be selected.

    Raises:
        SettingError: If they cannot.
    """
    # One that is restricted knows what its perturbed nodes take with them, and of no other node.
    if batch.context.selection is not None:
        raise SettingError(
            f"this batch is restricted to {len(batch.context.selection.nodes)} nodes already",
            fix="select from the batch that the store gave: batch.restrict(node_type, nodes)",
        )
    topology: Topology | None = batch._position_space()
    if topology is None:
        raise SettingError(
            f"nodes are selected from batches of node deletions or of cells; {batch.generation.root} holds whole graphs",
            fix='build the store with a built-in processor and storage="perturbation" or "delta"',
        )
    if node_type != topology.node_type:
        raise SettingError(
            f"nodes of type {node_type!r} cannot be selected; valid: {topology.node_type!r}, the perturbed type. Other "
            "types are kept whole"
        )
    return topology


def restricted(batch: B, topology: Topology, nodes: Int64Array, allow_wild_type: bool) -> B:
    """A batch of the part of the base graph that nodes, ascending and unique, induce.

    Raises:
        SettingError: If a perturbed node is not among them.
    """
    perturbed = np.unique(batch._perturbed_ids()[0])
    here = np.isin(perturbed, nodes)
    lost = perturbed[~here]
    if len(lost) and not allow_wild_type:
        by, like = "by samples", "these samples would look like the wild type"
        if not batch.generation.is_structured:
            by, like = "in cells", "these cells would look unperturbed"
        raise SettingError(
            f"nodes {lost[:5].tolist()}{' and more' if len(lost) > 5 else ''} are perturbed {by} of this batch and not "
            f"selected: {like}",
            fix="select them too, or pass allow_wild_type=True",
        )
    selection = select(neighbour_table(batch.generation), nodes)
    out: B = batch._within(GraphContext(batch.generation, topology, selection, perturbed[here]))
    return out
