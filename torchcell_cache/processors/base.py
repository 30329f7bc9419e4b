"""The processor protocol, and how a processor meets a sample."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from torchcell_cache.errors import CacheError, SettingError, SourceContractError, UnsupportedValueError
from torchcell_cache.graph.fields import graph_digests
from torchcell_cache.processors.private import PrivateCopies

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch_geometric.data import Data, HeteroData


@runtime_checkable
class GraphProcessor(Protocol):
    """Turns one sample into its graph. Implement two methods; deterministic, picklable, without side effects.

    ``sample`` is the processor's own and may be changed. The base graph's tensors may be handed on but never changed: every
    sample shares them. A field that *is* the base graph's tensor costs nothing on disk.

    Example:
        >>> class Doubled(tc.GraphProcessor):
        ...     def process(self, base_graph, sample):
        ...         graph = base_graph.clone()
        ...         graph["gene"].x = graph["gene"].x * 2
        ...         return graph
        ...     def settings(self):
        ...         return {}
        >>> tc.testing.check_processor(Doubled(), tc.testing.tiny_source(4))
        []
    """

    def process(self, base_graph: Any, sample: Any) -> Data | HeteroData:
        """The sample's graph.

        Args:
            base_graph: The graph all samples share; ``None`` when the source has none.
            sample: What the source holds at this position: a :class:`~torchcell_cache.core.samples.Sample` from a
                perturbation source, a ``Data`` or ``HeteroData`` from a PyG dataset.
        """

    def settings(self) -> dict[str, Any]:
        """Everything that changes the result, as JSON values; part of the store's fingerprint."""


ProcessorLike = GraphProcessor | Callable[..., Any] | None
"""What a build takes: a processor, a function of a sample, nothing."""


def apply_processor(processor: Any, base_graph: Any, item: Any) -> Any:
    """Call what stands for a processor: a ``GraphProcessor``, any callable, or ``None`` for no change.

    Nothing is copied here; :class:`Processing` is how the package itself runs processors.

    Raises:
        SettingError: If the processor is neither.
    """
    if processor is None:
        return item
    if hasattr(processor, "process"):
        return processor.process(base_graph, item)
    if callable(processor):
        return processor(item)
    raise SettingError(
        f"processor={processor!r} has neither process(base_graph, sample) nor __call__",
        fix="pass a GraphProcessor, a torch_geometric BaseTransform or a function",
    )


class Processing:
    """Runs a processor: once on each sample, on a copy of its own, and on its own copy of the base graph.

    Nothing is copied for the package's own processors, which change neither.
    """

    def __init__(self, processor: Any, base_graph: Any, digests: Mapping[str, str] | None = None) -> None:
        self.processor, self._given = processor, base_graph
        self.trusted = processor is None or type(processor).__module__.startswith(f"{__package__}.")
        self.base_graph, self._shared = base_graph, PrivateCopies()
        self._digests: Mapping[str, str] = digests or {}
        if not self.trusted and base_graph is not None:
            self.base_graph = self._shared.copied(base_graph)
            self._digests = digests or graph_digests(base_graph)
        # How often each of the base graph's tensors was written in place.
        self._written: list[int] | None = None

    def __call__(self, item: Any) -> Any:
        """The graph of one item of the source."""
        return apply_processor(self.processor, self.base_graph, self.own(item))

    def own(self, item: Any) -> Any:
        """What the processor gets for an item: all its own, except for what is the base graph's."""
        return item if self.trusted else PrivateCopies(self._shared).copied(item)

    def check_writes(self) -> None:
        """After a sample: quickly, whether torch counted writes to the base graph, even if they will be taken back.

        Raises:
            SettingError: As :meth:`check_base_graph`, which sees all of it, does.
        """
        if self.trusted or self._given is None:
            return
        written = [
            -1 if value.is_inference() else value._version
            for graph in (self.base_graph, self._given)
            for store in graph.stores
            for value in store._mapping.values()
            if isinstance(value, Tensor)
        ]
        if written != self._written:
            self.check_base_graph()
            self._written = written

    def check_base_graph(self) -> None:
        """Look whether the processor left the base graph as it was.

        Raises:
            SettingError: Naming the processor and what it changed.
        """
        if self.trusted or self._given is None:
            return
        before = self._digests
        for graph in (self.base_graph, self._given):  # the source's own: it may hold a reference of its own
            try:
                now = graph_digests(graph)
                changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            except UnsupportedValueError as error:
                changed = [str(error).split(";")[0]]
            if changed:  # a function's own name, else that of the class
                name = getattr(self.processor, "__qualname__", type(self.processor).__qualname__)
                raise SettingError(
                    f"processor {name} changes the base graph, which all samples share: {', '.join(changed)}",
                    fix="clone what it changes: graph['gene'].x = base_graph['gene'].x.clone()",
                )


def is_interrupt(error: BaseException) -> bool:
    """Whether it can be a Ctrl-C: it is none where nobody turns the signal into this error, as while a build listens itself."""
    here = threading.current_thread() is threading.main_thread()
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, KeyboardInterrupt) and here and heard


@contextlib.contextmanager
def asked(what: str) -> Iterator[None]:
    """Ask a user's code what it is: whatever it raises, even what would end the process, becomes an error of ours.

    Raises:
        SourceContractError: Saying ``what`` raised what.
    """
    try:
        yield
    except CacheError:
        raise
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise SourceContractError(f"{what} raised {type(error).__name__}: {said(error)}") from error


def copy_of(processor: Any) -> Any:
    """A copy of a processor, itself where it cannot be copied."""
    try:
        made = copy.deepcopy(processor)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return processor
    return made if type(made) is type(processor) else processor


def said(error: BaseException) -> str:
    """What an error of a user's code says, also one that would have ended the process."""
    if isinstance(error, SystemExit):
        return f"exited with {error.code}"
    try:
        return str(error)
    except Exception:
        return "(what it says cannot be printed)"
