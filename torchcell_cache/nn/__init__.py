"""Layer 5: PyG's message passing layers on one shared graph, with each sample's own kept edges."""

from torchcell_cache.nn.batch_edges import shared_edges
from torchcell_cache.nn.conv import SharedConv, shared_conv, shared_hetero_conv
from torchcell_cache.nn.edges import KeptEdges, SharedEdges

__all__ = ["KeptEdges", "SharedConv", "SharedEdges", "shared_conv", "shared_edges", "shared_hetero_conv"]
