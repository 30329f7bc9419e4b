"""Which nodes a batch is restricted to: the strategies of ``SharedGraphBatch.select_nodes``.

All of them work on the host, where a batch keeps its perturbed ids, and are the same on every device. Perturbed nodes come
first whatever the strategy: a sample whose perturbed node were left out would look like the wild type.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from torchcell_cache.core.checks import choice, whole_number
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.incidence import IncidenceIndex
from torchcell_cache.graph.induced_subgraph import FarEnds, hop_columns, neighbours
from torchcell_cache.graph.topology import Topology, topology_of
from torchcell_cache.store.generation import Generation

_FAR_ENDS: weakref.WeakKeyDictionary[Generation, FarEnds] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()

STRATEGIES = ("most_expressed", "random_expressed", "all", "perturbed_neighbourhood")

Scores = npt.NDArray[np.float64]


def far_ends(generation: Generation) -> FarEnds:
    """Incidence index and far ends of a store's base graph, made on first use in a process."""
    with _LOCK:
        found = _FAR_ENDS.get(generation)
        if found is None:
            stored = None if generation.removal is None else generation.removal.index
            index = stored or IncidenceIndex.build(
                generation.base_graph, graph_digest=""
            )  # of cells none is stored
            found = _FAR_ENDS[generation] = FarEnds.of(index, generation.base_graph)
        return found


def check_count(k: Any, num_perturbed: int, strategy: str) -> int:
    """``k`` if so many nodes can be chosen.

    Raises:
        SettingError: If it is no positive integer, or less than the nodes that the batch perturbs.
    """
    count = whole_number("k", k, 1, fix='k=1000, or strategy="all" for every node')
    if count < num_perturbed:
        raise SettingError(
            f"k={count} nodes, but the samples of this batch perturb {num_perturbed} different nodes: a sample without its "
            "perturbed nodes would look like the wild type",
            fix=f"k={num_perturbed} or more, or smaller batches",
        )
    return count


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


def with_perturbed(perturbed: Int64Array, ranked: Int64Array, k: int) -> Int64Array:
    """Perturbed nodes and then as many of the ranked ones as make ``k``, ascending."""
    others = ranked[~np.isin(ranked, perturbed)][: k - len(perturbed)]
    return np.sort(np.concatenate([perturbed, others]))


def by_value(scores: Scores, at_least_expressed: bool = False) -> Int64Array:
    """Nodes by falling value, ties by id; ``at_least_expressed`` leaves out those without a value above 0."""
    ids = np.arange(len(scores))
    ranked = ids[np.lexsort((ids, -scores))]
    return ranked[scores[ranked] > 0] if at_least_expressed else ranked


def at_random(scores: Scores, weighted: bool, key: tuple[int, int, int]) -> Int64Array:
    """Nodes with a value above 0 in random order.

    The first ``m`` are a sample without replacement; weighted, each draw takes a node with a probability proportional to its
    value among those left (Efraimidis and Spirakis, 2006: the smallest of ``exponential / weight``).

    Args:
        scores: ``[num_nodes]``.
        weighted: By value rather than uniformly.
        key: Seed, epoch and step; nothing else decides the order.
    """
    words = [whole_number(name, value, 0) for name, value in zip(("seed", "epoch", "step"), key, strict=True)]
    drawn = np.random.default_rng(words).exponential(size=len(scores))
    expressed = np.flatnonzero(scores > 0)
    weights = scores[expressed] if weighted else 1.0
    return expressed[np.argsort(drawn[expressed] / weights, kind="stable")]


def neighbourhood(ends: FarEnds, perturbed: Int64Array, k: int, edge_types: Any) -> Int64Array:
    """The perturbed nodes and those fewest hops away from any of them, up to ``k``, ascending.

    Edges count in both directions. Of the nodes of the last hop, those with most edges to the hop before come first, then
    those with the lowest ids.
    """
    topology = ends.index.topology
    columns = hop_columns(topology, edge_types)
    reached = np.zeros(topology.num_nodes, dtype=bool)
    reached[perturbed] = True
    chosen, hop = [perturbed], perturbed
    left = k - len(perturbed)
    while left and len(hop):
        others = neighbours(ends, hop, columns)
        hop, links = np.unique(others[~reached[others]], return_counts=True)
        if len(hop) > left:
            hop = hop[np.lexsort((hop, -links))[:left]]
        reached[hop] = True
        chosen.append(hop)
        left -= len(hop)
    return np.sort(np.concatenate(chosen))


def scores_of(values: Any, base: Any, num_nodes: int, batch_size: int) -> Scores:
    """One value per node, on the host.

    Args:
        values: A tensor ``[num_nodes]`` or ``[batch, num_nodes]`` (its mean over the samples counts), the number of a column
            of the base graph's ``x``, or the name of one of the node type's fields. NaN counts as below everything.
        base: The base graph's store of the node type.
        num_nodes: Nodes of the type.
        batch_size: Samples of the batch.

    Raises:
        SettingError: If it is none of that; names what the base graph has.
    """
    if isinstance(values, Tensor | np.ndarray):
        array = values.numpy(force=True) if isinstance(values, Tensor) else values
    else:
        array = _base_column(values, base, num_nodes)
    if array.shape == (batch_size, num_nodes):
        array = array.astype(np.float64).mean(axis=0)
    if array.shape != (num_nodes,):
        raise SettingError(
            f"values of shape {list(array.shape)}, expected [{num_nodes}] or [{batch_size}, {num_nodes}]: one per node, or "
            "one per sample and node"
        )
    scores: Scores = array.astype(np.float64)
    return np.where(np.isnan(scores), -np.inf, scores)


def expression_of(batch: Any, values: Any) -> Any:
    """What ``values`` means for a batch of cells: their own expression by default, a column of their own ``x`` by number."""
    source = batch.generation.manifest.fingerprint.get("source", {})
    while source.get("class") in ("AppendedSource", "Subset"):
        source = source["stored"] if "stored" in source else source["of"]["source"]
    field, column = source.get("field", "x"), source.get("column")
    if isinstance(values, int) and not isinstance(values, bool):
        field, column = "x", values
    elif values is not None and values != field if isinstance(values, str) else values is not None:
        return values
    found = batch.features(None, field)
    if column is not None and not 0 <= column < found.size(2):
        raise SettingError(f"values={values!r}: {field} has the columns 0..{found.size(2) - 1}")
    return found[..., -1 if column is None else column]


def _base_column(values: Any, base: Any, num_nodes: int) -> npt.NDArray[Any]:
    x = base._mapping.get("x")
    width = x.size(1) if isinstance(x, Tensor) and x.dim() == 2 else 0
    named = {
        name: value
        for name, value in base._mapping.items()
        if isinstance(value, Tensor) and value.numel() == num_nodes and value.size(0) == num_nodes
    }
    if isinstance(values, int | np.integer) and not isinstance(values, bool) and 0 <= values < width:
        return np.asarray(x[:, values].numpy(force=True))
    if isinstance(values, str) and values in named:
        return np.asarray(named[values].reshape(-1).numpy(force=True))
    columns = f"the number of a column of x (0..{width - 1})" if width else "a base graph with x"
    raise SettingError(
        f"values={values!r} says nothing about the nodes; valid: a tensor [num_nodes] or [batch, num_nodes], {columns}, "
        f"the name of a node field {sorted(named)}",
        fix="values=expression, or values=torch.ones(num_nodes) where every node counts alike",
    )


def choose(batch: Any, k: Any, strategy: str, settings: dict[str, Any]) -> Int64Array:
    """Nodes for a batch, ascending; see ``SharedGraphBatch.select_nodes``.

    Raises:
        SettingError: Naming the valid choices.
    """
    choice("strategy", strategy, STRATEGIES)
    graph = batch.generation.base_graph
    removal = batch.generation.removal
    topology: Topology = topology_of(graph) if removal is None else removal.index.topology
    if strategy == "all":
        return np.arange(topology.num_nodes)
    perturbed = np.unique(batch.perturbed.numpy(force=True)).astype(np.int64)
    k = check_count(k, len(perturbed), strategy)
    if strategy == "perturbed_neighbourhood":
        if len(perturbed) == 0:
            raise SettingError(
                "the samples of this batch perturb no node, so there is no neighbourhood of one",
                fix='strategy="most_expressed", or batches with at least one perturbed sample',
            )
        return neighbourhood(far_ends(batch.generation), perturbed, k, settings["edge_types"])
    base = graph._store if topology.node_type is None else graph[topology.node_type]
    values = settings["values"] if removal is not None else expression_of(batch, settings["values"])
    scores = scores_of(values, base, topology.num_nodes, len(batch))
    if strategy == "most_expressed":
        return with_perturbed(perturbed, by_value(scores), k)
    if settings["key"][-1] is None:
        raise SettingError(
            "strategy='random_expressed' draws by seed, epoch and step, and step was not given: every batch would get the "
            "same nodes",
            fix="select_nodes(..., seed=seed, epoch=epoch, step=step)",
        )
    return with_perturbed(perturbed, at_random(scores, settings["weighted"], settings["key"]), k)
