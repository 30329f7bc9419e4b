"""The source protocol: where samples come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torchcell_cache.record import SampleTable


@runtime_checkable
class Source(Protocol):
    """A sequence of samples on one base graph. Order and content must not change between two passes.

    Attributes:
        base_graph: The graph all samples share, or ``None``.
    """

    base_graph: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The item a processor gets: a ``Sample``, or a ``Data``/``HeteroData``."""

    def identity(self) -> dict[str, Any]:
        """JSON values that change whenever the samples do; part of the store's fingerprint."""


@runtime_checkable
class PerturbationSource(Source, Protocol):
    """A source whose samples are perturbed ids and measurements; the build takes all of them as columns."""

    @property
    def table(self) -> SampleTable:
        """All samples as ragged columns."""
