"""How a batch is made and travels: one buffer across processes, one tensor to a device."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from torchcell_cache.batch import packed
from torchcell_cache.batch.context import GraphContext, find_generation, register
from torchcell_cache.batch.device import DeviceContext
from torchcell_cache.batch.packed import Buffer, Places, Sections
from torchcell_cache.core.indexing import all_within
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import lasting, ranged
from torchcell_cache.graph.topology import Topology
from torchcell_cache.store.generation import Generation


class PackedBatch(abc.ABC):
    """The sections of a batch, packed and moved only when they are needed there.

    Args:
        context: The graph that the samples are of.
        sections: The batch as arrays on the host.
    """

    _kinds: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, records: str | None = None) -> None:
        if records is not None:  # of a schema: the kind makes itself known
            PackedBatch._kinds[records] = cls

    def __init__(self, context: GraphContext, sections: Sections) -> None:
        self.context, self.sections = context, sections
        self._packed: tuple[Buffer, Places] | None = None
        self._bytes: Tensor | None = None
        self.is_padding: Tensor | None = None

    @classmethod
    @ranged("read")
    def read(cls, generation: Generation, positions: npt.ArrayLike) -> Self:
        """Read samples of a store, checksums verified, nothing decoded that is not needed.

        Args:
            generation: The store's generation.
            positions: Store positions, ``[batch]``, in the order wanted; repeats are fine.

        Raises:
            IndexError: If a position is out of range.
            SettingError: If there is none.
            CorruptRecordError: If a record is damaged.
        """
        wanted = np.array(positions, dtype=np.int64)
        if wanted.ndim != 1 or len(wanted) == 0:
            raise SettingError(f"a batch needs at least one sample, got positions of shape {wanted.shape}")
        if not all_within(wanted, len(generation)):
            raise IndexError(f"positions {wanted.min()}..{wanted.max()} of {len(generation)} samples")
        kind = cls._kinds[generation.schema["records"]]
        out: Self = kind(GraphContext(generation), kind._read_sections(generation, wanted))
        return out

    @classmethod
    def unpack(cls, generation: Generation, buffer: Any) -> Self:
        """The batch that :meth:`pack` laid into ``buffer`` (bytes or ``uint8`` array).

        Raises:
            FormatError: If the buffer is damaged or belongs to another generation.
        """
        out: Self = _rebuilt(generation, buffer, None)
        return out

    def __reduce__(self) -> Any:
        register(self.generation)
        store = str(self.generation.root), self.generation.manifest.generation
        part = self.context.selection
        return _rebuilt, (store, self.pack(), None if part is None else (part.nodes, part.kept))

    @classmethod
    @abc.abstractmethod
    def _read_sections(cls, generation: Generation, positions: Int64Array) -> Sections: ...

    @abc.abstractmethod
    def _check_sections(self) -> None:
        """Insist that sections fit the graph; raises ``FormatError``."""

    @abc.abstractmethod
    def _position_space(self) -> Topology | None:
        """The nodes and edges that can be selected from, or ``None`` if they cannot."""

    @abc.abstractmethod
    def _perturbed_ids(self) -> tuple[Int64Array, Int64Array]:
        """Perturbed ids of all samples and their offsets, on the host."""

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

    @property
    def generation(self) -> Generation:
        """The store's generation."""
        return self.context.generation

    @property
    def owner(self) -> str:
        """Whose numbers the sections hold."""
        return self.context.owner

    def pack(self) -> Buffer:
        """Everything this batch holds as one self-describing little-endian buffer, ``[num_bytes] uint8``."""
        if self._packed is None:
            self._packed = packed.pack(self.owner, self.sections)
        return self._packed[0]

    @cached_property
    @lasting
    def tensors(self) -> dict[str, Tensor]:
        """The sections on :attr:`device`: on the CPU the same memory, elsewhere views of one tensor."""
        if self._bytes is None or self._packed is None:
            shown = {n: a.view(np.int16) if n == "words" else a for n, a in self.sections.items()}
            return {name: torch.from_numpy(array) for name, array in shown.items()}
        return packed.views(self._bytes, self._packed[1])

    @property
    def device(self) -> torch.device:
        """Where masks and PyG batches are made."""
        return torch.device("cpu") if self._bytes is None else self._bytes.device

    @cached_property
    def on_device(self) -> DeviceContext:
        """What all batches of the same graph share on this device."""
        return self.context.on(self.device)

    def _there(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    @property
    def base_graph(self) -> Any:
        """The base graph on this device; one copy per process and device."""
        return self.on_device.graph

    @cached_property
    @lasting
    def nodes(self) -> Tensor:
        """Of a restricted batch the selected nodes, ``[k] int64``: rows of your own ``[num_nodes, ...]``.

        Ascending, in the store's numbering. Other batches do not have them.
        """
        if self.context.selection is None:
            raise AttributeError(f"{type(self).__name__} is not restricted to nodes")
        return self._there(self.context.selection.nodes)

    @property
    def num_bytes(self) -> int:
        """Bytes that are sent to a device."""
        return len(self.pack())

    @lasting
    def _moved(self) -> Tensor:
        return torch.from_numpy(self.pack()) if self._bytes is None else self._bytes

    @ranged("copy")
    @lasting
    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """This batch on another device: one copy of one buffer. The base graph follows once per process."""
        target = torch.device(device)
        if str(target) == "cuda":
            target = torch.device("cuda", torch.cuda.current_device())
        if target == self.device:
            return self
        moved = None if target.type == "cpu" else self._moved().to(target, non_blocking=non_blocking)
        return self._like(moved)

    def _like(self, data: Tensor | None, context: GraphContext | None = None) -> Self:
        """The same sections with their bytes elsewhere, or of another graph."""
        out = type(self)(context or self.context, self.sections)
        out._packed, out._bytes = self._packed, data
        out.is_padding = None if self.is_padding is None else self.is_padding.to(out.device)
        return out

    def cpu(self) -> Self:
        """This batch on the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | None = None, *, non_blocking: bool = False) -> Self:
        """This batch on a CUDA device, the current one by default."""
        return self.to("cuda" if device is None else f"cuda:{device}", non_blocking=non_blocking)

    @lasting
    def pin_memory(self) -> Self:
        """This batch in page-locked memory, for a copy that overlaps with work; itself where there is no CUDA."""
        if self.device.type != "cpu" or not torch.cuda.is_available():
            return self
        return self._like(self._moved().pin_memory())

    def is_pinned(self) -> bool:
        """Whether the buffer is page-locked."""
        return self._bytes is not None and self._bytes.is_pinned()

    def record_stream(self, stream: Any) -> None:
        """Keep the buffer's memory until the work queued on ``stream`` is done."""
        if self.device.type != "cpu":
            self._moved().record_stream(stream)


def _rebuilt(store: Any, buffer: Any, part: Any) -> Any:
    """A packed batch of a generation or its place; ``part``: nodes and what stays of each domain, where it is restricted."""
    generation = find_generation(*store) if isinstance(store, tuple) else store
    kind = PackedBatch._kinds[generation.schema["records"]]
    out = kind(GraphContext(generation), {})
    if part is not None:
        out = kind(GraphContext.received(generation, out._position_space(), part), {})
    array, out.sections, places = packed.unpack(buffer, out.owner)
    out._check_sections()
    out._packed = (array, places)
    if part is not None:
        out.context.perturbed = part[0][np.unique(out._perturbed_ids()[0])]
    return out
