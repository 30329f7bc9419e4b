"""The processor protocol, and how a processor meets a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torchcell_cache.errors import SettingError

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData


@runtime_checkable
class GraphProcessor(Protocol):
    """Turns one sample into its graph. Implement two methods; deterministic, picklable, without side effects.

    The base graph's tensors may be handed on but never changed: every sample shares them. A field that *is* the base
    graph's tensor costs nothing on disk.
    """

    def process(self, base_graph: Any, sample: Any) -> Data | HeteroData:
        """The sample's graph.

        Args:
            base_graph: The graph all samples share; ``None`` when the source has none.
            sample: What the source holds at this position: a :class:`~torchcell_cache.record.Sample` from a
                perturbation source, a ``Data`` or ``HeteroData`` from a PyG dataset.
        """

    def settings(self) -> dict[str, Any]:
        """Everything that changes the result, as JSON values; part of the store's fingerprint."""


def apply_processor(processor: Any, base_graph: Any, item: Any) -> Any:
    """Process one item the way the build does: a ``GraphProcessor``, any callable, or ``None`` for no change.

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


def choice(name: str, value: str, valid: tuple[str, ...]) -> str:
    """``value`` if it is one of ``valid``.

    Raises:
        SettingError: Naming the valid values.
    """
    if value not in valid:
        raise SettingError(f"{name}={value!r} is not one of {', '.join(map(repr, valid))}")
    return value
