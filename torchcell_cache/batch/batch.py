"""What every batch can do, whatever its records hold: travel, be counted, give single samples."""

from __future__ import annotations

import abc
import operator
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from torchcell_cache.batch import packed as packing
from torchcell_cache.batch.device import find_generation
from torchcell_cache.batch.selectable import Selectable
from torchcell_cache.batch.transfer import TravellingBatch
from torchcell_cache.batch.unlike_pyg import UnlikePyG, unlike_pyg
from torchcell_cache.core.indexing import all_within
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.topology import EdgeType
from torchcell_cache.store.columns import named, names_in
from torchcell_cache.store.generation import Generation

MASKS = ("mask", "edge_mask")


KINDS: dict[str, Any] = {}
"""Batches by the kind of records they hold; the kinds' own files put themselves in."""


class Coordinates(NamedTuple):
    """Values of a batch in coordinate form.

    Attributes:
        values: ``[k] float32``.
        types: Column of each value, ``[k] int64``.
        samples: Number of the measurement within its sample, ``[k] int64``.
        ptr: Where each sample of the batch starts, ``[batch + 1] int64``.
        batch: Sample of the batch of each value, ``[k] int64``.
    """

    values: Tensor
    types: Tensor
    samples: Tensor
    ptr: Tensor
    batch: Tensor


class SharedGraphBatch(UnlikePyG, Selectable, TravellingBatch):
    """Samples of a store that share one base graph: ids of what each lacks and its labels, nothing else.

    Made by ``dataset.read_batch(indices)`` and :meth:`read`. A batch is one buffer of a few kilobytes when it crosses a
    process boundary or goes to a device; the base graph is moved to a device once per process, not with each batch.
    From there it gives boolean masks for models that take the shared graph, or - for any other model - exactly the PyG
    batch of its samples (:meth:`to_pyg`).

    Attributes:
        generation: The store's generation.
        is_padding: Which samples only fill up an even number of steps, ``[batch] bool``, if a loader says so.
    """

    @classmethod
    def read(cls, generation: Generation, positions: npt.ArrayLike) -> SharedGraphBatch:
        """Read samples of a store, checksums verified, nothing decoded that is not needed.

        Args:
            generation: The store's generation.
            positions: Store positions, ``[batch]``, in the order wanted; repeats are fine.

        Raises:
            IndexError: If a position is out of range.
            SettingError: If there is none.
            CorruptRecordError: If a record is damaged.
        """
        wanted = np.asarray(positions, dtype=np.int64)
        if wanted.ndim != 1 or len(wanted) == 0:
            raise SettingError(f"a batch needs at least one sample, got positions of shape {wanted.shape}")
        if not all_within(wanted, len(generation)):
            raise IndexError(f"positions {wanted.min()}..{wanted.max()} of {len(generation)} samples")
        batch: SharedGraphBatch = KINDS[generation.schema["records"]].of_records(generation, wanted)
        return batch

    @classmethod
    def unpack(cls, generation: Generation, buffer: Any) -> SharedGraphBatch:
        """The batch that :meth:`pack` laid into ``buffer`` (bytes or ``uint8`` array).

        Raises:
            FormatError: If the buffer is damaged or belongs to another generation.
        """
        array, sections, places = packing.unpack(buffer, generation.manifest.generation)
        kind = KINDS[generation.schema["records"]]
        kind.check_sections(generation, sections)
        batch: SharedGraphBatch = kind(generation, sections)
        batch._packed = (array, places)
        return batch

    @staticmethod
    def _rebuild(root: str, name: str, buffer: packing.Buffer) -> SharedGraphBatch:
        return SharedGraphBatch.unpack(find_generation(root, name), buffer)

    # Samples

    def __len__(self) -> int:
        return len(self.sections["indices"])

    @property
    def num_graphs(self) -> int:
        """Number of samples."""
        return len(self)

    @property
    def indices(self) -> Tensor:
        """Store positions of the samples, ``[batch] int64``."""
        return self.tensors["indices"]

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, index: int) -> Any:
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples, device={str(self.device)!r})"

    @property
    def phenotype_names(self) -> list[str]:
        """Names of the phenotypes."""
        return list(self.generation.schema["phenotypes"])

    @property
    def statistic_names(self) -> list[str]:
        """Names of the statistics."""
        return list(self.generation.schema["statistics"])

    def _column(self, name: str) -> int:
        names = [*self.phenotype_names, *self.statistic_names]
        if name not in names:
            raise SettingError(f"no phenotype or statistic {name!r}; there are {names}")
        return names.index(name)

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
        known = names_in(self.generation.base_graph, column)
        return list(named(self.labels(column).numpy(force=True), known))

    # What the kinds of records know

    @abc.abstractmethod
    def _graph(self, at: int) -> Any: ...

    @abc.abstractmethod
    def labels(self, name: str) -> Tensor:
        """A phenotype or statistic of every sample: the mean over its measurements, NaN without any.

        Returns:
            ``[batch] float32``.

        Raises:
            SettingError: If there is no such name.
        """

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

    @abc.abstractmethod
    def removed_edges(self, edge_type: EdgeType | None = None) -> tuple[Tensor, Tensor]:
        """What each sample removes of an edge type, as unique pairs in ascending order.

        Returns:
            Sample of the batch and position of the edge, ``[n] int64`` each.
        """

    @abc.abstractmethod
    def _to_pyg(self, follow_batch: frozenset[str], exclude_keys: frozenset[str], drop: bool) -> Any: ...

    def _placed(self, batch: Any) -> Any:
        """A PyG batch on this batch's device. PyG's ``to`` makes lists of tuples even where nothing moves."""
        return batch if self.device.type == "cpu" else batch.to(self.device)

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
    ) -> Any:
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
        if isinstance(follow_batch, str) or isinstance(exclude_keys, str):
            raise SettingError("follow_batch and exclude_keys are lists of field names, got one string")
        follow, exclude = frozenset(follow_batch or ()), frozenset(exclude_keys or ())
        lost = sorted(exclude.intersection(self._mask_names()))
        if lost and not allow_wild_type:
            raise SettingError(
                f"exclude_keys={lost} leaves out what says which nodes and edges a sample lacks: every sample would "
                "be the unperturbed base graph",
                fix="keep the masks, use SubgraphRepresentation, or pass allow_wild_type=True",
            )
        out = _as_pyg(self, follow, exclude, drop_removed)
        known = {name for store in out.stores for name in store._mapping} | exclude
        for name in sorted(follow - known):
            warnings.warn(
                f"follow_batch: no field is called {name!r}, nothing was added for it", stacklevel=2
            )
        return out


@lasting
def _as_pyg(batch: SharedGraphBatch, follow: frozenset[str], exclude: frozenset[str], drop: bool) -> Any:
    return batch._to_pyg(follow, exclude, drop)
