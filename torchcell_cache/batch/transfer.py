"""How a batch travels: one buffer across processes, one tensor to a device."""

from __future__ import annotations

import abc
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from torchcell_cache.batch import packed as packing
from torchcell_cache.batch.device import DeviceGraph, device_graph, register
from torchcell_cache.batch.sections import Sections
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.store.generation import Generation


class TravellingBatch(abc.ABC):
    """The sections of a batch, packed and moved only when they are needed there.

    Args:
        generation: The store's generation.
        sections: The batch as arrays; made by the kind of batch on first use if not given.
    """

    def __init__(self, generation: Generation, sections: Sections | None = None) -> None:
        self.generation = generation
        self._given = sections
        self._packed: tuple[packing.Buffer, packing.Places] | None = None
        self._bytes: Tensor | None = None
        self.is_padding: Tensor | None = None

    def pack(self) -> packing.Buffer:
        """Everything this batch holds as one self-describing little-endian buffer, ``[num_bytes] uint8``."""
        return self._pack()[0]

    def _pack(self) -> tuple[packing.Buffer, packing.Places]:
        if self._packed is None:
            self._packed = packing.pack(self.generation.manifest.generation, self.sections)
        return self._packed

    def __reduce__(self) -> Any:
        register(self.generation)
        return self._rebuild, (str(self.generation.root), self.generation.manifest.generation, self.pack())

    @property
    def sections(self) -> Sections:
        """The batch as arrays on the host; see :mod:`torchcell_cache.batch.sections`."""
        if self._given is None:
            self._given = self._make_sections() if self._packed is None else packing.arrays(*self._packed)
        return self._given

    @cached_property
    @lasting
    def tensors(self) -> dict[str, Tensor]:
        """The sections as views of one tensor on :attr:`device`."""
        return packing.views(self._moved(), self._pack()[1])

    @lasting
    def _moved(self) -> Tensor:
        if self._bytes is None:
            self._bytes = torch.from_numpy(self.pack())
        return self._bytes

    @property
    def device(self) -> torch.device:
        """Where masks and PyG batches are made."""
        return torch.device("cpu") if self._bytes is None else self._bytes.device

    @lasting
    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """This batch on another device: one copy of one buffer. The base graph follows once per process."""
        target = torch.device(device)
        if str(target) == "cuda":
            target = torch.device("cuda", torch.cuda.current_device())
        if target == self.device:
            return self
        if target.type == "cpu":
            return self._like(None)
        return self._like(self._moved().to(target, non_blocking=non_blocking))

    def _like(self, data: Tensor | None) -> Self:
        out = type(self)(self.generation, self._given)
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

    @abc.abstractmethod
    def _make_sections(self) -> Sections: ...

    @staticmethod
    @abc.abstractmethod
    def _rebuild(root: str, name: str, buffer: packing.Buffer) -> Any: ...

    @property
    def resident(self) -> DeviceGraph:
        """What all batches of the store share on this device."""
        return device_graph(self.generation, self.device)

    @property
    def base_graph(self) -> Any:
        """The base graph on this device; one copy per process and device."""
        return self.resident.graph

    @property
    def num_bytes(self) -> int:
        """Bytes that are sent to a device."""
        return len(self.pack())
