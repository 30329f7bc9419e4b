"""Any PyG dataset, or a sequence of ``Data``/``HeteroData``, as a source."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xxhash
from torch.utils.data import Dataset, IterableDataset
from torch_geometric.data import Batch
from torch_geometric.data.data import BaseData

from torchcell_cache.errors import CacheError, SampleError, SourceContractError
from torchcell_cache.graph.fields import item_digest
from torchcell_cache.processors.base import is_interrupt, said
from torchcell_cache.sources.base import Source

SourceLike = Source | Sequence[Any] | Dataset[Any]
"""What a build takes: a source, graphs in a list, a PyG dataset."""

FULL_IDENTITY_LIMIT = 20_000
_PROBES = 4_096
_READ_AGAIN = 8


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

    Example:
        >>> graphs = [Data(x=torch.rand(4, 2), y=torch.tensor([k])) for k in range(3)]
        >>> len(tc.sources.PygSource(graphs))
        3
    """

    def __init__(
        self, dataset: Sequence[Any] | Any, base_graph: Any = None, *, version: str | None = None
    ) -> None:
        _check_kind(dataset)
        self.dataset = dataset
        if base_graph is None:
            base_graph = getattr(dataset, "base_graph", getattr(dataset, "cell_graph", None))
        self.base_graph = base_graph
        self.version = version

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        positional = getattr(self.dataset, "iloc", self.dataset)  # a pandas Series counts by its labels
        return positional[index]

    def __repr__(self) -> str:
        return f"PygSource({type(self.dataset).__name__}, {len(self)})"

    def identity(self) -> dict[str, Any]:
        """Class, length and content of the dataset.

        Raises:
            SampleError: If the dataset raised on a sample.
            SourceContractError: If it gives another sample each time.
        """
        out: dict[str, Any] = {"class": type(self.dataset).__qualname__, "num_samples": len(self)}
        if self.version is not None:
            return {**out, "version": self.version}
        count = len(self)
        exact = count <= FULL_IDENTITY_LIMIT
        probes = range(count) if exact else [k * (count - 1) // (_PROBES - 1) for k in range(_PROBES)]
        digests = [self._digest(index) for index in probes]
        # A few samples again: what is built from must be what was identified.
        for k in range(0, len(probes), -(-len(probes) // _READ_AGAIN) or 1):
            if self._digest(probes[k]) != digests[k]:
                raise SourceContractError(
                    f"sample {probes[k]} of {type(self.dataset).__name__} is another one when it is read again: a transform "
                    "of the dataset's own is random, or works in place on what the dataset keeps",
                    fix="leave the transform out of the dataset and pass it as processor=..., or as transform of the store "
                    "if it shall be drawn anew each time; or name the content: PygSource(dataset, version='...')",
                )
        content = xxhash.xxh3_128("".join(digests).encode()).hexdigest()
        return {**out, "content": content, "hashed": "all" if exact else f"{_PROBES} evenly spaced"}

    def _digest(self, index: int) -> str:
        try:
            return item_digest(self[index])
        except CacheError as error:
            raise type(error)(f"sample {index}: {error}") from None
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise SampleError(
                f"sample {index}: {type(error).__name__} in {type(self.dataset).__name__}: {said(error)}\n"
                f"{traceback.format_exc()}",
                fix="correct the sample and run the same command again",
            ) from None


def _check_kind(dataset: Any) -> None:
    """Refuse what cannot be indexed by position."""
    name, text, fix = type(dataset).__name__, "", ""
    no_list = (str, bytes, Iterator, IterableDataset)
    try:
        count = len(dataset) if hasattr(dataset, "__getitem__") and not isinstance(dataset, no_list) else -1
    except (TypeError, ValueError):
        count = -1
    if isinstance(dataset, BaseData) and not isinstance(dataset, Batch):
        raise SourceContractError(
            f"the source is one {name}, not a list of graphs", fix="pass source=[graph]"
        )
    if isinstance(dataset, Iterator | IterableDataset):
        text, fix = "it is read in one order only", "pass list(source)"
    elif isinstance(dataset, Mapping) and set(dataset) != set(range(count)):
        text, fix = "its keys are not 0, 1, 2, ...", "pass list(source.values())"
    elif getattr(dataset, "iloc", None) is not None and dataset.ndim != 1:
        text, fix = "it is a table", "pass one column of graphs, or see PerturbationTable"
    elif count < 0:
        text = "it needs len() and integer indexing"
        fix = "pass a PyG dataset, a list of Data, or a PerturbationTable"
    if text:
        raise SourceContractError(f"{name} is no source: {text}", fix=fix)


def as_source(source: Any, base_graph: Any = None) -> Source:
    """``source`` itself if it is one, else a :class:`PygSource` around it.

    Example:
        >>> tc.sources.as_source([Data(x=torch.rand(4, 2))]).identity()["num_samples"]
        1
    """
    if isinstance(source, Source) and hasattr(source, "identity"):
        return source
    from torchcell_cache.sources.torchcell import torchcell_source  # no other source needs processors

    found = torchcell_source(source)
    return PygSource(source, base_graph) if found is None else found
