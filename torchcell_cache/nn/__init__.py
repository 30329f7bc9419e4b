"""Layer 5: PyG's message passing layers on one shared graph, with each sample's own kept edges."""

from torchcell_cache.nn.conv import shared_conv
from torchcell_cache.nn.edges import KeptEdges, SharedEdges, shared_edges
from torchcell_cache.nn.hetero import SharedConv, shared_hetero_conv
from torchcell_cache.nn.modules import unmasked
from torchcell_cache.nn.shared_input import shared_input

__all__ = [
    "KeptEdges",
    "SharedConv",
    "SharedEdges",
    "shared_conv",
    "shared_edges",
    "shared_hetero_conv",
    "shared_input",
    "unmasked",
]
