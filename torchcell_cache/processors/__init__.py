"""Processors: what one sample's graph looks like."""

from torchcell_cache.processors.base import GraphProcessor, apply_processor
from torchcell_cache.processors.deletion import DeletionProcessor
from torchcell_cache.processors.khop import KHopSubgraph
from torchcell_cache.processors.lazy import LazySubgraphRepresentation
from torchcell_cache.processors.perturbation import Perturbation
from torchcell_cache.processors.subgraph import SubgraphRepresentation

BUILT_IN: dict[str, type[DeletionProcessor]] = {
    cls.__name__: cls for cls in (LazySubgraphRepresentation, SubgraphRepresentation, Perturbation)
}
"""Processors that remove nodes and nothing else, whose samples can be stored as ids."""

NAMED: dict[str, type[DeletionProcessor] | type[KHopSubgraph]] = {**BUILT_IN, "KHopSubgraph": KHopSubgraph}
"""The only processors a stored manifest can name; nothing is ever imported by a name found in a file."""

__all__ = [
    "BUILT_IN",
    "NAMED",
    "DeletionProcessor",
    "GraphProcessor",
    "KHopSubgraph",
    "LazySubgraphRepresentation",
    "Perturbation",
    "SubgraphRepresentation",
    "apply_processor",
]
