"""The source protocol: where samples come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchcell_cache.codec.chunks import FieldChunk
    from torchcell_cache.core.samples import SampleTable


@runtime_checkable
class Source(Protocol):
    """A sequence of samples on one base graph. Order and content must not change between two passes.

    A source may also have ``notes``, a tuple of plain lines on what it kept, left out and made of its input: a build says
    them once and keeps them in the manifest.

    Attributes:
        base_graph: The graph all samples share, or ``None``.

    Example:
        >>> isinstance(tc.testing.tiny_source(4), tc.sources.Source)
        True
    """

    base_graph: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The item a processor gets: a ``Sample``, or a ``Data``/``HeteroData``."""

    def identity(self) -> dict[str, Any]:
        """JSON values that change whenever the samples do; part of the store's fingerprint."""


@runtime_checkable
class PerturbationSource(Source, Protocol):
    """A source whose samples are perturbed ids and measurements; the build takes all of them as columns.

    Example:
        >>> isinstance(tc.testing.tiny_source(4), tc.sources.PerturbationSource)
        True
    """

    @property
    def table(self) -> SampleTable:
        """All samples as ragged columns."""


@runtime_checkable
class RunSource(Source, Protocol):
    """A source that reads consecutive samples faster than one by one; the build then asks for runs of them."""

    def items(self, start: int, stop: int) -> Iterator[Any]:
        """What indexing gives for ``start`` to ``stop``, in that order. Handles are closed when it ends or is dropped."""


@runtime_checkable
class FieldSource(RunSource, Protocol):
    """A source of graphs that can give the fields of many samples as arrays; used where there is no processor."""

    def field_chunks(self, start: int, stop: int) -> Iterator[FieldChunk]:
        """The same samples as :meth:`items` gives, in chunks of consecutive ones; their records must be equal to the byte."""


def notes_of(source: object) -> tuple[str, ...]:
    """What a base graph and its source have to say, line by line; nothing where neither has ``notes``."""
    lines: dict[str, None] = {}
    for part in (getattr(source, "base_graph", None), source):
        # A field of that name is content of a graph, no note.
        notes = vars(part).get("notes", ()) if hasattr(part, "stores") else getattr(part, "notes", ())
        given = [notes] if isinstance(notes, str) else notes if isinstance(notes, list | tuple) else []
        lines |= dict.fromkeys(line for note in given for line in str(note).splitlines() if line.strip())
    return tuple(lines)
