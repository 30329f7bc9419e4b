"""Processors: what one sample's graph looks like."""

from typing import Any

from torchcell_cache.processors.base import GraphProcessor, apply_processor
from torchcell_cache.processors.deletion import DeletionProcessor
from torchcell_cache.processors.khop import KHopSubgraph
from torchcell_cache.processors.lazy import LazySubgraphRepresentation
from torchcell_cache.processors.perturbation import DCellGraphProcessor, Perturbation, Unperturbed
from torchcell_cache.processors.subgraph import SubgraphRepresentation

BUILT_IN: dict[str, type[DeletionProcessor]] = {
    cls.__name__: cls for cls in (LazySubgraphRepresentation, SubgraphRepresentation, Perturbation)
}
"""Processors that remove nodes and nothing else, whose samples can be stored as ids."""

NAMED: dict[str, type[Any]] = {
    **BUILT_IN,
    **{cls.__name__: cls for cls in (KHopSubgraph, Unperturbed, DCellGraphProcessor)},
}
"""The only processors a stored manifest can name; nothing is ever imported by a name found in a file."""

__all__ = [
    "BUILT_IN",
    "NAMED",
    "DCellGraphProcessor",
    "DeletionProcessor",
    "GraphProcessor",
    "KHopSubgraph",
    "LazySubgraphRepresentation",
    "Perturbation",
    "SubgraphRepresentation",
    "Unperturbed",
    "apply_processor",
]
