"""What every batch can do about nodes: be restricted to some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from torch import Tensor

from torchcell_cache.errors import SettingError
from torchcell_cache.graph.topology import Topology
from torchcell_cache.store.generation import Generation

if TYPE_CHECKING:
    from torchcell_cache.batch.restricted import SelectedBatch
    from torchcell_cache.batch.selected_cells import SelectedCells


RESTRICTED: dict[type, Callable[[Any, Any, bool], Any]] = {}
"""Kinds of batches and what restricts them to some nodes; the kinds' own files put themselves in."""


class Selectable:
    """The part of :class:`~torchcell_cache.batch.batch.SharedGraphBatch` that selects nodes."""

    generation: Generation

    def select_nodes(
        self,
        node_type: str | None,
        k: int | None = None,
        *,
        strategy: str = "most_expressed",
        values: Any = None,
        weighted: bool = False,
        edge_types: Iterable[Any] | None = None,
        seed: int = 0,
        epoch: int = 0,
        step: int | None = None,
    ) -> SelectedBatch | SelectedCells:
        """This batch restricted to ``k`` nodes of the perturbed type and the edges among them.

        Nodes that a sample of the batch perturbs are always among them and count towards ``k``: left out, their samples would
        look like the wild type. Nodes are numbered anew, once for the batch, in the base graph's order. Other node types are
        kept whole; gpr entries are those of the selected genes.

        Args:
            node_type: The perturbed node type; ``None`` for a homogeneous base graph.
            k: Number of nodes, at most; not used by ``all``. Fewer where the base graph, the expressed nodes or the
                neighbourhood has fewer.
            strategy: ``most_expressed`` (largest value), ``random_expressed`` (at random among values above 0), ``all``, or
                ``perturbed_neighbourhood`` (fewest hops from any perturbed node; ties: most edges to the hop before, then
                lowest id).
            values: For the first two: a tensor ``[num_nodes]`` or ``[batch, num_nodes]`` (its mean over the samples), the
                number of a column of the base graph's ``x``, or the name of a node field. Left out, or a column of ``x``, in a
                batch of cells: their own expression.
            weighted: Draw ``random_expressed`` with probabilities proportional to the values.
            edge_types: For ``perturbed_neighbourhood``: edge types to walk along, all between two such nodes by default.
            seed: With ``epoch`` and ``step``, all that ``random_expressed`` depends on.
            epoch: See ``seed``.
            step: See ``seed``; has to be given for a draw. Give every rank another one if ranks are to draw differently.

        Returns:
            A batch like this one; its ``nodes`` tells which nodes were selected.

        Raises:
            SettingError: If ``k`` is too small for the perturbed nodes, an argument is none of the valid ones (which it
                lists), or the store holds whole graphs.
        """
        from torchcell_cache.batch.choose import choose

        whole = self._selectable(node_type)
        settings = {
            "values": values,
            "weighted": weighted,
            "edge_types": edge_types,
            "key": (seed, epoch, step),
        }
        return _restricted(whole, choose(whole, k, strategy, settings), False)

    def restrict(
        self, node_type: str | None, nodes: npt.ArrayLike | Tensor, *, allow_wild_type: bool = False
    ) -> SelectedBatch | SelectedCells:
        """This batch restricted to given nodes and the edges among them; see :meth:`select_nodes`.

        Args:
            node_type: The perturbed node type; ``None`` for a homogeneous base graph.
            nodes: Node ids, ``[k]``, in any order; the result has them ascending.
            allow_wild_type: Take no offence at perturbed nodes that are not among them; they leave their samples.

        Raises:
            SettingError: If a perturbed node is missing, an id is out of range or occurs twice, or the store holds whole
                graphs.
        """
        from torchcell_cache.batch.choose import checked_nodes

        whole = self._selectable(node_type)
        return _restricted(whole, checked_nodes(nodes, whole._position_space().num_nodes), allow_wild_type)

    def _position_space(self) -> Topology | None:
        """The nodes and edges that can be selected from, or ``None`` if they cannot."""
        return None

    def _selectable(self, node_type: str | None) -> Any:
        """This batch, if nodes of the given type can be selected from it."""
        nodes = getattr(self, "nodes", None)
        if nodes is not None:  # it knows what its perturbed nodes take with them, and of no other node
            raise SettingError(
                f"this batch is restricted to {len(nodes)} nodes already",
                fix="select from the batch that the store gave: batch.restrict(node_type, nodes)",
            )
        topology = self._position_space()
        if topology is None:
            raise SettingError(
                f"nodes are selected from batches of node deletions or of cells; {self.generation.root} holds whole graphs",
                fix='build the store with a built-in processor and storage="perturbation" or "delta"',
            )
        if node_type != topology.node_type:
            raise SettingError(
                f"nodes of type {node_type!r} cannot be selected; valid: {topology.node_type!r}, the perturbed type. Other "
                "types are kept whole"
            )
        return self


def _restricted(batch: Any, nodes: Any, allow_wild_type: bool) -> SelectedBatch | SelectedCells:
    """A batch with fewer nodes, of the kind that it is."""
    made: Any = next(RESTRICTED[kind] for kind in type(batch).__mro__ if kind in RESTRICTED)
    return made(batch, nodes, allow_wild_type)  # type: ignore[no-any-return]
