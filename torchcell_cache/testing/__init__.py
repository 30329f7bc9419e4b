"""For tests of users' own processors and sources: a tiny cell, comparisons, and checks of what a build relies on."""

from torchcell_cache.testing.checks import assert_same_graph, check_processor, check_source
from torchcell_cache.testing.tiny import tiny_graph, tiny_source

__all__ = ["assert_same_graph", "check_processor", "check_source", "tiny_graph", "tiny_source"]
