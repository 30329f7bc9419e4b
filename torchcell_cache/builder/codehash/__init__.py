"""Identity of a processor: its settings, and the source code that it and everything it uses consists of.

``tree`` says what a syntax tree means, ``source`` finds the tree of running code, ``place`` tells the
user's own modules from libraries, ``values`` turns settings and constants into JSON, ``names`` follows names
from one definition to the next, ``collect`` puts it together.
"""

from __future__ import annotations

from typing import Any

from torchcell_cache.builder.codehash.collect import code_digest
from torchcell_cache.core.digests import storable_json

__all__ = ["code_digest", "processor_part"]


def processor_part(processor: object, by_statement: bool = True) -> dict[str, Any]:
    """What a fingerprint says of a processor; earlier versions did not take cells of notebooks ``by_statement``."""
    if processor is None:
        return {"class": "none"}
    named = getattr(processor, "stands_for", processor)
    what = named if isinstance(named, dict) else code_digest(named, by_statement)
    part: dict[str, Any] = storable_json(what)
    return part
