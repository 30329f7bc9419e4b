"""What all batches of a store share on a device: one copy of the base graph and of the incidence index.

A :class:`DeviceGraph` lives as long as a generation that was used with its device is open in this process, whatever the
number of batches, datasets and workers' batches that refer to it; :func:`release` lets go of it earlier.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from torchcell_cache.batch.buffers import BufferPool
from torchcell_cache.graph.lasting import lasting
from torchcell_cache.graph.topology import Topology
from torchcell_cache.processors.deletion import Deletion, DeletionProcessor
from torchcell_cache.store.generation import Generation

_LOCK = threading.RLock()
_SHARED: weakref.WeakValueDictionary[tuple[str, str, str], DeviceGraph] = weakref.WeakValueDictionary()
_HELD: weakref.WeakKeyDictionary[Generation, dict[str, DeviceGraph]] = weakref.WeakKeyDictionary()
_GENERATIONS: weakref.WeakValueDictionary[tuple[str, str], Generation] = weakref.WeakValueDictionary()
_OPENED: OrderedDict[tuple[str, str], Generation] = OrderedDict()
_KEEP_OPEN = 4


class DeviceGraph:
    """Base graph and incidence index on one device.

    Args:
        generation: The store's generation; not kept.
        device: Where to.
    """

    def __init__(self, generation: Generation, device: torch.device) -> None:
        self.device = device
        self.base_graph = generation.base_graph
        self.phenotypes = tuple(generation.schema["phenotypes"])
        self.statistics = tuple(generation.schema["statistics"])
        self.pool = BufferPool(device)
        self._topology, self._processor = generation.topology, generation.processor
        name = "incidence.safetensors"
        self._index_file = generation.file(name) if generation.has_file(name) else None

    @property
    def topology(self) -> Topology:
        """The position space of a store of deletions."""
        assert self._topology is not None
        return self._topology

    @property
    def processor(self) -> DeletionProcessor:
        """The processor of a store of perturbations."""
        assert self._processor is not None
        return self._processor

    @cached_property
    @lasting
    def graph(self) -> Any:
        """The base graph with its tensors on the device; on the CPU the store's own, mapped."""
        if self.device.type == "cpu" or self.base_graph is None:
            return self.base_graph
        return copy.copy(self.base_graph).to(self.device)

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
        """The device's copy of one of the base graph's tensors, or a fresh one of any other tensor."""
        found = self._moved.get(id(value))
        return value.to(self.device) if found is None else found

    @cached_property
    @lasting
    def sizes(self) -> Tensor:
        """Size of each domain, ``[num_domains] int64``."""
        return torch.tensor([d.size for d in self.topology.domains], dtype=torch.int64, device=self.device)

    @cached_property
    @lasting
    def starts(self) -> Tensor:
        """First position of each domain, ``[num_domains] int64``."""
        return torch.tensor([d.start for d in self.topology.domains], dtype=torch.int64, device=self.device)

    @cached_property
    @lasting
    def domain_of(self) -> Tensor:
        """Domain of each position, ``[num_positions]`` of the smallest dtype that holds it."""
        count = len(self.topology.domains)
        dtype = torch.uint8 if count <= 256 else torch.int32
        numbers = torch.arange(count, device=self.device).to(dtype)
        return torch.repeat_interleave(numbers, self.sizes, output_size=self.topology.size)

    def shifts(self, batch_size: int) -> Tensor:
        """What takes a position to its slot in a type-major buffer, ``[batch_size, num_domains] int64``.

        The region of domain ``d`` is ``[batch_size, size of d]``: position ``p`` of sample ``b`` has slot
        ``batch_size * start + b * size + (p - start)``.
        """
        samples = torch.arange(batch_size, device=self.device).unsqueeze(1)
        return samples * self.sizes + (batch_size - 1) * self.starts

    @cached_property
    @lasting
    def index(self) -> tuple[Tensor, Tensor]:
        """Incidence index: ``ptr [num_nodes, num_domains + 1] int64`` and ``positions [nnz]``."""
        assert self._index_file is not None
        return _load_index(self._index_file, self.device)

    @cached_property
    @lasting
    def shell(self) -> Any:
        """What the processor computes once per base graph."""
        return self.processor.make_shell(self.base_graph, self.topology)

    @cached_property
    @lasting
    def template(self) -> Any:
        """A sample that perturbs nothing and has every phenotype and statistic: stores, keys and shared values."""
        deletion = Deletion(
            perturbed=np.empty(0, dtype=np.int64),
            values=np.zeros((1, len(self.phenotypes) + len(self.statistics)), dtype=np.float32),
            phenotypes=self.phenotypes,
            statistics=self.statistics,
            kept=tuple(torch.ones(d.size, dtype=torch.bool, device="cpu") for d in self.topology.domains),
        )
        graph = self.processor.assemble(self.base_graph, self.topology, self.shell, deletion)
        for store in graph.stores:
            base = self._base_mapping(store._key)
            for name, value in store._mapping.items():
                # A filtering processor copies; the base graph's own tensor says as much and costs nothing.
                if isinstance(value, Tensor) and isinstance(base.get(name), Tensor):
                    store._mapping[name] = base[name]
        return graph

    def _base_mapping(self, key: Any) -> dict[str, Any]:
        store = self.base_graph._store if self.topology.node_type is None else None
        if store is None and key is not None:
            store = self.base_graph[key]
        return {} if store is None else dict(store._mapping)


def _load_index(path: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    # safe_open maps the file; on the CPU the tensors are views of the page cache, like numpy's in removal.py.
    with safe_open(str(path), framework="pt", device="cpu") as file:
        return file.get_tensor("ptr").to(device), file.get_tensor("positions").to(device)


def device_graph(generation: Generation, device: torch.device) -> DeviceGraph:
    """The process's one :class:`DeviceGraph` of a store on a device."""
    held = _HELD.get(generation)
    found = None if held is None else held.get(str(device))
    if found is not None:
        return found
    key = (str(generation.directory), generation.manifest.content_digest, str(device))
    with _LOCK:
        shared = _SHARED.get(key)
        if shared is None:
            shared = _SHARED[key] = DeviceGraph(generation, device)
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


def register(generation: Generation) -> None:
    """Make an open generation findable for batches that arrive from worker processes."""
    _GENERATIONS[str(generation.root), generation.manifest.generation] = generation


def find_generation(root: str, name: str) -> Generation:
    """The generation a batch from another process belongs to: the open one, or opened now and kept.

    Raises:
        CacheNotFoundError: If the store is gone.
    """
    with _LOCK:
        found = _GENERATIONS.get((root, name))
        if found is None:
            found = Generation.open(Path(root), name)
            register(found)
            _OPENED[root, name] = found
            while len(_OPENED) > _KEEP_OPEN:
                _OPENED.popitem(last=False)
        return found
