"""What every batch can do, whatever its records hold: be counted, give single samples and labels, be restricted."""

from __future__ import annotations

import abc
import operator
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData

from torchcell_cache.batch.masks import owners
from torchcell_cache.batch.node_sampling import checked_nodes, choose, restricted, selectable_from
from torchcell_cache.batch.pyg import as_pyg, unlike_pyg
from torchcell_cache.batch.transfer import PackedBatch
from torchcell_cache.core.choices import Strategy
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Float32Array, Int64Array, means
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.topology import EdgeType
from torchcell_cache.store.card import batch_html
from torchcell_cache.store.columns import categories_of, named, names_in


class SharedGraphBatch(PackedBatch):
    """Samples of a store that share one base graph: ids of what each lacks and its labels, nothing else.

    Made by ``dataset.read_batch(indices)`` and :meth:`read`. A batch is one buffer of a few kilobytes when it crosses a
    process boundary or goes to a device; the base graph is moved to a device once per process, not with each batch.
    From there it gives boolean masks for models that take the shared graph, or - for any other model - exactly the PyG
    batch of its samples (:meth:`to_pyg`).

    Attributes:
        generation: The store's generation.
        is_padding: Which samples only fill up an even number of steps, ``[batch] bool``, if a loader says so.

    Example:
        >>> batch = ds.read_batch([0, 3, 5])
        >>> batch.edge_mask(("gene", "physical", "gene")).shape, batch.to_pyg()["gene"].x.shape
        (torch.Size([3, 24]), torch.Size([24, 2]))
    """

    def __iter__(self) -> Iterator[Data | HeteroData]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: int) -> Data | HeteroData:
        """The graph of one sample, equal to ``dataset[i]`` and like it on the CPU.

        Raises:
            SettingError: If ``index`` is no number, such as the node type that a PyG batch takes.
            IndexError: If there is no such sample.
        """
        try:
            number = operator.index(index)
        except TypeError:
            raise unlike_pyg(self, f"[{index!r:.80}]") from None
        at = number + len(self) if number < 0 else number
        if not 0 <= at < len(self):
            raise IndexError(f"sample {index} of a batch of {len(self)}")
        return self._graph(at)

    def __contains__(self, name: object) -> bool:
        raise unlike_pyg(self, f" has no fields of its own to look for {name!r:.80} in")

    if not TYPE_CHECKING:  # a type checker is to find unknown attributes

        def __getattr__(self, name: str) -> NoReturn:
            """Called for names that a batch does not have."""
            if name.startswith("_") or hasattr(type(self), name):
                return object.__getattribute__(self, name)  # raises what it raised
            raise AttributeError(str(unlike_pyg(self, f".{name}")))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples, device={str(self.device)!r})"

    def _repr_html_(self) -> str:
        if self.generation.table is None:
            return batch_html(repr(self), None, {})
        labels = {name: self.labels(name).numpy(force=True) for name in self.phenotype_names}
        return batch_html(repr(self), np.diff(self.perturbed_ptr.numpy(force=True)), labels)

    @property
    def phenotype_names(self) -> list[str]:
        """Names of the phenotypes."""
        return list(self.generation.schema["phenotypes"])

    @property
    def statistic_names(self) -> list[str]:
        """Names of the statistics."""
        return list(self.generation.schema["statistics"])

    def _column(self, name: str) -> int:
        if name not in (names := [*self.phenotype_names, *self.statistic_names]):
            raise SettingError(f"no phenotype or statistic {name!r}; there are {names}")
        return names.index(name)

    def labels(self, name: str) -> Tensor:
        """A phenotype, statistic or single number of every sample: the mean over its measurements, NaN without any.

        Returns:
            ``[batch] float32``.

        Raises:
            SettingError: If there is no such name.
        """
        if (said := self.generation.attributes.shown().get(name)) is not None:
            return self._there(said.at(self.sections["indices"]).astype(np.float32))
        column = self._column(name)
        values, ptr = self._measurements()
        owner = np.repeat(np.arange(len(self)), np.diff(ptr))
        with np.errstate(over="ignore"):
            return self._there(means(values[:, column], owner, len(self)).astype(np.float32))

    @property
    def phenotypes(self) -> dict[str, Tensor]:
        """:meth:`labels` of every phenotype by name."""
        return {name: self.labels(name) for name in self.phenotype_names}

    def names(self, column: str) -> list[str | None]:
        """A column of names (cell type, batch) as text, where :meth:`labels` gives its codes.

        Args:
            column: Name of the column, one of the dataset's ``categories``.

        Returns:
            One text per sample, ``None`` where it has none.

        Raises:
            SettingError: If there is no such column of names.
        """
        store = self.generation
        known = names_in(categories_of(store.base_graph) | store.attributes.texts(), column)
        return list(named(self.labels(column).numpy(force=True), known))

    @cached_property
    @lasting
    def _perturbed(self) -> tuple[Tensor, Tensor]:
        ids, ptr = self._perturbed_ids()
        return self._there(ids), self._there(ptr)

    @property
    def perturbed(self) -> Tensor:
        """Perturbed node ids, one sample after the other, ``[num_perturbed] int64``."""
        return self._perturbed[0]

    @property
    def perturbed_ptr(self) -> Tensor:
        """Where each sample's perturbed ids start, ``[batch + 1] int64``."""
        return self._perturbed[1]

    @property
    def perturbed_batch(self) -> Tensor:
        """Sample of each perturbed id, ``[num_perturbed] int64``."""
        return owners(self.perturbed_ptr, len(self.perturbed))

    # What the kinds of records know

    @abc.abstractmethod
    def _graph(self, at: int) -> Any: ...

    @abc.abstractmethod
    def _measurements(self) -> tuple[Float32Array, Int64Array]:
        """Values of all samples, ``[num_measurements, num_columns]``, and their offsets, on the host."""

    @abc.abstractmethod
    def edge_mask(self, edge_type: EdgeType | None = None) -> Tensor:
        """What each sample keeps of an edge type, ``[batch, num_edges] bool``, True for kept.

        A contiguous view, made on the batch's device without waiting for it. Clone it before you change it.

        Args:
            edge_type: The edge type; left out for a homogeneous base graph.

        Raises:
            KeyError: If there is no such edge type; lists those there are.
        """

    @abc.abstractmethod
    def node_mask(self, node_type: str | None = None) -> Tensor:
        """What each sample keeps of a node type, ``[batch, num_nodes] bool``, True for kept.

        Args:
            node_type: The node type; the perturbed one by default.

        Raises:
            KeyError: If there is no such node type; lists those there are.
        """

    def removed_edges(self, edge_type: EdgeType | None = None) -> tuple[Tensor, Tensor]:
        """What each sample removes of an edge type, as unique pairs in ascending order.

        Returns:
            Sample of the batch and position of the edge, ``[n] int64`` each.
        """
        sample, edge = torch.nonzero(~self.edge_mask(edge_type), as_tuple=True)
        return sample, edge

    @abc.abstractmethod
    def _to_pyg(self, follow: frozenset[str], exclude: frozenset[str], drop: bool) -> Any: ...

    @abc.abstractmethod
    def _mask_names(self) -> Iterable[str]:
        """Fields without which a sample's graph is the wild type."""

    def to_pyg(
        self,
        follow_batch: Iterable[str] | None = None,
        exclude_keys: Iterable[str] | None = None,
        *,
        allow_wild_type: bool = False,
        drop_removed: bool = False,
    ) -> Batch:
        """Exactly ``Batch.from_data_list([processor(source[i]) for i in indices])``, made on the batch's device.

        On an accelerator it is what ``.to(device)`` makes of that batch.

        Args:
            follow_batch: Fields that get a ``_batch`` and a ``_ptr`` vector, as in PyG.
            exclude_keys: Fields to leave out, as in PyG.
            allow_wild_type: Leave out masks too, if ``exclude_keys`` says so.
            drop_removed: For models that pass messages over whatever edges there are: each sample's edges, and all
                fields of edges, are filtered as ``edge_index[:, mask]`` would. Nodes stay, as do their masks; what is
                left of the edges' own masks is all True.

        Raises:
            SettingError: If the masks would be left out, so that a model would train on the wild type; or if only some
                samples have a field, which PyG would drop or fail on.
        """
        return as_pyg(self, follow_batch, exclude_keys, allow_wild_type, drop_removed)

    def select_nodes(
        self,
        node_type: str | None,
        k: int | None = None,
        *,
        strategy: Strategy = "most_expressed",
        values: Any = None,
        weighted: bool = False,
        edge_types: Iterable[Any] | None = None,
        seed: int = 0,
        epoch: int = 0,
        step: int | None = None,
    ) -> Self:
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
        topology = selectable_from(self, node_type)
        how = {"values": values, "weighted": weighted, "edge_types": edge_types, "key": (seed, epoch, step)}
        return restricted(self, topology, choose(self, topology, k, strategy, how), False)

    def restrict(
        self, node_type: str | None, nodes: npt.ArrayLike | Tensor, *, allow_wild_type: bool = False
    ) -> Self:
        """This batch restricted to given nodes and the edges among them; see :meth:`select_nodes`.

        Args:
            node_type: The perturbed node type; ``None`` for a homogeneous base graph.
            nodes: Node ids, ``[k]``, in any order; the result has them ascending.
            allow_wild_type: Take no offence at perturbed nodes that are not among them; they leave their samples.

        Raises:
            SettingError: If a perturbed node is missing, an id is out of range or occurs twice, or the store holds whole
                graphs.
        """
        topology = selectable_from(self, node_type)
        return restricted(self, topology, checked_nodes(nodes, topology.num_nodes), allow_wild_type)
