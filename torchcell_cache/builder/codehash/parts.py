"""What a fingerprint says of a processor."""

from __future__ import annotations

from typing import Any

from torchcell_cache.builder.codehash import code_digest
from torchcell_cache.core.digests import storable_json


def processor_part(processor: object) -> dict[str, Any]:
    """What a fingerprint says of a processor."""
    if processor is None:
        return {"class": "none"}
    part: dict[str, Any] = storable_json(code_digest(processor))
    return part


def legacy_processor_part(processor: object) -> dict[str, Any]:
    """What earlier versions said of a processor from a notebook."""
    if processor is None:
        return {"class": "none"}
    legacy: dict[str, Any] = storable_json(code_digest(processor, by_statement=False))
    return legacy
