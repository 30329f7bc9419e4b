"""What the records hold, by the schema in a manifest. A seal proves that they are undamaged, not that they make sense."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcell_cache.codec.constants import from_text
from torchcell_cache.core.hints import root_argument
from torchcell_cache.errors import CacheError, FormatError
from torchcell_cache.store.manifest import COMPACT, GROUPED

if TYPE_CHECKING:
    from torchcell_cache.store.generation import Generation

_RECORDS = ("structured", "generic")


def check_schema(schema: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """``schema`` if all its parts are there and of the right types.

    Raises:
        FormatError: Naming the part that is not.
    """
    records = schema.get("records")
    bad = [] if records in _RECORDS else ["records"]
    for name in ("structured", "topology", "processor", "layouts"):
        value = schema.get(name)
        may_lack = records == "generic" and name != "layouts"
        if not isinstance(value, dict) and not (may_lack and value is None):
            bad.append(name)
    bad += [name for name in ("phenotypes", "statistics") if not _all_text(schema.get(name))]
    bad += [name for name in ("unknown_names", "origins") if not isinstance(schema.get(name, ""), str)]
    attributes = schema.get("attributes", {})
    if not isinstance(attributes, dict) or not _all_text(list(attributes.values())):
        bad.append("attributes")
    bad += [COMPACT] if schema.get(COMPACT, 2) != 2 else []
    size = schema.get(GROUPED, 1)
    bad += [GROUPED] if type(size) is not int or size < 1 else []
    try:
        from_text(schema.get("constants", {}))
    except (ValueError, TypeError, AttributeError):
        bad.append("constants")
    processor = schema.get("processor")
    if isinstance(processor, dict) and not (
        isinstance(processor.get("name"), str) and isinstance(processor.get("settings"), dict)
    ):
        bad.append("processor")
    if bad:
        raise FormatError(
            f"{path}: the schema's {', '.join(bad)} cannot be read by this version",
            path=path,
            fix="upgrade torchcell_cache, or build the store again",
        )
    return schema


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


@contextlib.contextmanager
def decoding(generation: Generation) -> Iterator[None]:
    """Around whatever makes graphs of records.

    Raises:
        FormatError: If records, schema and base graph do not fit together.
    """
    try:
        yield
    except CacheError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, AssertionError) as error:
        raise FormatError(
            f"{generation.directory}: records, schema and base graph do not fit together ({error!r})",
            path=generation.directory,
            fix=f"torchcell-cache verify {root_argument(generation.root)} level=full",
        ) from error
