"""Any PyG dataset, or a sequence of ``Data``/``HeteroData``, as a source."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import xxhash
from torch_geometric.data import Batch
from torch_geometric.data.data import BaseData

from torchcell_cache.errors import CacheError, SampleError, SourceContractError
from torchcell_cache.graph.identity import item_digest
from torchcell_cache.sources.base import Source

FULL_IDENTITY_LIMIT = 20_000
_PROBES = 4_096


class PygSource:
    """Samples that are graphs already, or become graphs that can be stored by way of a processor.

    A record holds ``Data`` and ``HeteroData`` themselves, of plain dense tensors. Samples of other kinds (subclasses, sparse
    tensors, ``EdgeIndex``, tensors that require a gradient, tuples) are taken if the processor turns them into such a graph.

    Args:
        dataset: Anything with ``len`` and integer indexing that gives ``Data`` or ``HeteroData``.
        base_graph: Graph whose tensors the samples share; a shared tensor costs nothing on disk. Taken from the
            dataset's ``base_graph`` or ``cell_graph`` if it has one.
        version: A text that names the dataset's content. Without it up to 20,000 samples are hashed, and of a larger
            dataset 4,096 evenly spaced ones.
    """

    def __init__(
        self, dataset: Sequence[Any] | Any, base_graph: Any = None, *, version: str | None = None
    ) -> None:
        if isinstance(dataset, BaseData) and not isinstance(dataset, Batch):
            raise SourceContractError(
                f"the source is one {type(dataset).__name__}, not a list of graphs",
                fix="pass source=[graph]",
            )
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise SourceContractError(
                f"{type(dataset).__name__} is no source: it needs len() and integer indexing",
                fix="pass a PyG dataset, a list of Data, or a PerturbationTable",
            )
        self.dataset = dataset
        if base_graph is None:
            base_graph = getattr(dataset, "base_graph", getattr(dataset, "cell_graph", None))
        self.base_graph = base_graph
        self.version = version

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __repr__(self) -> str:
        return f"PygSource({type(self.dataset).__name__}, {len(self)})"

    def identity(self) -> dict[str, Any]:
        """Class, length and content of the dataset.

        Raises:
            SampleError: If the dataset raised on a sample.
        """
        out: dict[str, Any] = {"class": type(self.dataset).__qualname__, "num_samples": len(self)}
        if self.version is not None:
            return {**out, "version": self.version}
        count = len(self)
        exact = count <= FULL_IDENTITY_LIMIT
        probes = range(count) if exact else [k * (count - 1) // (_PROBES - 1) for k in range(_PROBES)]
        hasher = xxhash.xxh3_128()
        for index in probes:
            hasher.update(self._digest(index).encode())
        return {
            **out,
            "content": hasher.hexdigest(),
            "hashed": "all" if exact else f"{_PROBES} evenly spaced",
        }

    def _digest(self, index: int) -> str:
        try:
            return item_digest(self.dataset[index])
        except CacheError as error:
            raise type(error)(f"sample {index}: {error}") from None
        except Exception as error:
            raise SampleError(
                f"sample {index}: {type(error).__name__} in {type(self.dataset).__name__}: {error}\n"
                f"{traceback.format_exc()}",
                fix="correct the sample and run the same command again",
            ) from None


def as_source(source: Any, base_graph: Any = None) -> Source:
    """``source`` itself if it is one, else a :class:`PygSource` around it."""
    if isinstance(source, Source) and hasattr(source, "identity"):
        return source
    return PygSource(source, base_graph)
