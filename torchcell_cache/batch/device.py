"""What all batches of a graph share on a device: one copy of it and of the incidence index.

That of a store lives as long as a generation that was used with its device is open in this process, whatever the
number of batches, datasets and workers' batches that refer to it; :func:`release` lets go of it earlier.

Outputs reuse memory: a batch of 28 expanded at yeast scale is 1.1 GB, which into fresh memory costs several times what it costs
into memory that has been touched before, because the kernel hands out and clears every page. A buffer is given out again only
when no tensor, view or array refers to it any more, and whoever takes it writes all of it, so an edit in place never survives.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from torchcell_cache.core.lazy import ThreadLock, cached_property
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.topology import Topology
from torchcell_cache.processors.assemble import Buffers
from torchcell_cache.processors.deletion import Deletion
from torchcell_cache.store.generation import Generation

_LOCK = ThreadLock()
_SHARED: weakref.WeakValueDictionary[tuple[str, str, str], DeviceContext] = weakref.WeakValueDictionary()
_HELD: weakref.WeakKeyDictionary[Generation, dict[str, DeviceContext]] = weakref.WeakKeyDictionary()

_SMALL_BYTES = 1 << 16
_PER_NAME = 3
"""Batches alive at once: the one in use, the one being made, and one waiting in a prefetch thread."""


class BufferPool:
    """Memory for the outputs of one store on one device; on accelerators torch's own allocator does this."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[Hashable, Buffers] = {}
        self._lock = ThreadLock()

    def take(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of undefined content; the caller writes all of it."""
        size = dtype.itemsize * math.prod(shape)
        if self.device.type != "cpu" or size < _SMALL_BYTES:
            return torch.empty(shape, dtype=dtype, device=self.device)
        with self._lock:
            buffers = self._buffers.setdefault(name, Buffers(_PER_NAME))
            memory = torch.from_numpy(buffers.take(size)[:size])
        return memory.view(dtype).view(shape)

    def take_flags(self, name: Hashable, size: int, value: bool) -> Tensor:
        """A flat ``[size] bool`` tensor full of ``value``."""
        flags = self.take(name, (size,), torch.bool)
        if self.device.type == "cpu" and size:
            flags.numpy().fill(value)  # a memset; torch's own fill of bool takes twice as long on one thread
            return flags
        return flags.fill_(value)

    def clear(self) -> None:
        """Let go of all buffers; those still in use live on with their users."""
        with self._lock:
            self._buffers.clear()


class DeviceContext:
    """A graph and its incidence index on one device."""

    def __init__(
        self,
        generation: Generation,
        device: torch.device,
        pool: BufferPool,
        topology: Any,
        base_graph: Callable[[], Any],
        moved: Callable[[], Any],
        index: Callable[[], tuple[Tensor, Tensor]],
    ) -> None:
        self.device, self.pool = device, pool
        # Those of a store of deletions; nobody asks another for them.
        self.topology: Topology = topology
        self.processor: Any = generation.processor
        self.phenotypes = tuple(generation.schema["phenotypes"])
        self.statistics = tuple(generation.schema["statistics"])
        self._base_graph, self._there, self._index = base_graph, moved, index

    @property
    def base_graph(self) -> Any:
        """The graph on the CPU."""
        return self._base_graph()

    @cached_property
    @lasting
    def graph(self) -> Any:
        """The graph with its tensors on the device; on the CPU the store's own, mapped."""
        return self.base_graph if self.device.type == "cpu" else self._there()

    @cached_property
    @lasting
    def _moved(self) -> dict[int, Tensor]:
        pairs = zip(self.base_graph.stores, self.graph.stores, strict=True)
        return {
            id(value): there._mapping[name]
            for here, there in pairs
            for name, value in here._mapping.items()
            if isinstance(value, Tensor)
        }

    def tensor(self, value: Tensor) -> Tensor:
        """The device's copy of one of the graph's tensors, or a fresh one of any other tensor."""
        found = self._moved.get(id(value))
        return value.to(self.device) if found is None else found

    @cached_property
    @lasting
    def _runs(self) -> tuple[Tensor, Tensor]:
        """Size and first position of each domain, ``[num_domains] int64`` each."""
        domains = self.topology.domains
        runs = [[d.size for d in domains], [d.start for d in domains]]
        sizes, starts = torch.tensor(runs, dtype=torch.int64, device=self.device)
        return sizes, starts

    @cached_property
    @lasting
    def domain_of(self) -> Tensor:
        """Domain of each position, ``[num_positions]`` of the smallest dtype that holds it."""
        count = len(self.topology.domains)
        dtype = torch.uint8 if count <= 256 else torch.int32
        numbers = torch.arange(count, device=self.device).to(dtype)
        return torch.repeat_interleave(numbers, self._runs[0], output_size=self.topology.size)

    def shifts(self, batch_size: int) -> Tensor:
        """What takes a position to its slot in a type-major buffer, ``[batch_size, num_domains] int64``.

        The region of domain ``d`` is ``[batch_size, size of d]``: position ``p`` of sample ``b`` has slot
        ``batch_size * start + b * size + (p - start)``.
        """
        sizes, starts = self._runs
        return torch.arange(batch_size, device=self.device).unsqueeze(1) * sizes + (batch_size - 1) * starts

    @cached_property
    @lasting
    def index(self) -> tuple[Tensor, Tensor]:
        """Incidence index: ``ptr [num_nodes, num_domains + 1] int64`` and ``positions [nnz]``."""
        ptr, positions = self._index()
        return ptr.to(self.device, non_blocking=True), positions.to(self.device, non_blocking=True)

    @cached_property
    @lasting
    def template(self) -> Any:
        """A sample that perturbs nothing and has every phenotype and statistic: stores, keys and shared values."""
        labels = self.phenotypes, self.statistics
        values = np.zeros((1, sum(map(len, labels))), dtype=np.float32)
        kept = tuple(torch.ones(d.size, dtype=torch.bool, device="cpu") for d in self.topology.domains)
        deletion = Deletion(np.empty(0, dtype=np.int64), values, *labels, kept)
        base = self.base_graph
        shell = self.processor.make_shell(base, self.topology)
        graph = self.processor.assemble(base, self.topology, shell, deletion)
        for store in graph.stores:
            if store._key is None and self.topology.node_type is not None:
                continue
            own = (base._store if store._key is None else base[store._key])._mapping
            for name, value in store._mapping.items():
                # A filtering processor copies; the base graph's own tensor says as much and costs nothing.
                if isinstance(value, Tensor) and isinstance(own.get(name), Tensor):
                    store._mapping[name] = own[name]
        return graph


def of_store(generation: Generation, device: torch.device) -> DeviceContext:
    """The process's one :class:`DeviceContext` of a store on a device."""
    held = _HELD.get(generation)
    found = None if held is None else held.get(str(device))
    if found is not None:
        return found
    key = (str(generation.directory), generation.manifest.content_digest, str(device))
    with _LOCK:
        shared = _SHARED.get(key)
        if shared is None:
            graph, name = generation.base_graph, "incidence.safetensors"
            path = generation.file(name) if generation.has_file(name) else None

            def moved() -> Any:
                return None if graph is None else copy.copy(graph).to(device)

            def index() -> tuple[Tensor, Tensor]:
                # Mapped: on the CPU the tensors are views of the page cache, like numpy's in `graph/removal`.
                with safe_open(str(path), framework="pt", device="cpu") as file:
                    return file.get_tensor("ptr"), file.get_tensor("positions")

            made = generation, device, BufferPool(device), generation.topology
            shared = _SHARED[key] = DeviceContext(*made, lambda: graph, moved, index)
        _HELD.setdefault(generation, {})[str(device)] = shared
        return shared


def release(device: torch.device | str | None = None) -> None:
    """Let go of base graphs, indices and kept buffers; batches still in use keep theirs until they go.

    Args:
        device: Only on this device; everywhere by default.
    """
    wanted = None if device is None else str(torch.device(device))
    with _LOCK:
        for held in list(_HELD.values()):
            for name in [n for n in held if wanted is None or n == wanted]:
                held.pop(name).pool.clear()
