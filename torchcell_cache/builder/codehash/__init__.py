"""Identity of a processor: its settings, and the source code that it and everything it uses consists of.

``tree`` says what a syntax tree means, ``source`` finds the tree of running code, ``place`` tells the
user's own modules from libraries, ``values`` turns settings and constants into JSON, ``names`` follows names
from one definition to the next, ``collect`` puts it together.
"""

from __future__ import annotations

from typing import Any

from torchcell_cache.builder.codehash.collect import code_digest
from torchcell_cache.builder.codehash.values import declared_settings
from torchcell_cache.core.fingerprint import storable_json
from torchcell_cache.errors import SettingError

__all__ = ["code_digest", "declared_settings", "processor_part", "refuse_class"]


def processor_part(processor: object, by_statement: bool = True) -> dict[str, Any]:
    """What a fingerprint says of a processor; earlier versions did not take cells of notebooks ``by_statement``."""
    refuse_class(processor)
    if processor is None:
        return {"class": "none"}
    named = getattr(processor, "stands_for", processor)
    what = named if isinstance(named, dict) else code_digest(named, by_statement)
    part: dict[str, Any] = storable_json(what)
    return part


def refuse_class(processor: object) -> None:
    """Refuse a class where an object of it is meant.

    Raises:
        SettingError: Saying how to make one.
    """
    if isinstance(processor, type) and (hasattr(processor, "process") or hasattr(processor, "forward")):
        name = processor.__name__
        raise SettingError(f"processor={name} is a class, expected an object of it", fix=f"{name}(...)")
