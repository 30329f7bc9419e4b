"""Identity of a processor: its settings, and the source code that it and everything it uses consists of.

``tree`` says what a syntax tree means, ``source`` finds the tree of running code, ``place`` tells the
user's own modules from libraries, ``values`` turns settings and constants into JSON, ``names`` follows names
from one definition to the next, ``collect`` puts it together.
"""

from torchcell_cache.builder.codehash.collect import code_digest

__all__ = ["code_digest"]
