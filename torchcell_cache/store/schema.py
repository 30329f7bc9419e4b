"""What the records hold, by the schema in a manifest. A seal proves that they are undamaged, not that they make sense."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcell_cache.codec.constants import from_text
from torchcell_cache.core.hints import root_argument
from torchcell_cache.errors import CacheError, FormatError
from torchcell_cache.store.manifest import COMPACT, GROUPED, SECOND

if TYPE_CHECKING:
    from torchcell_cache.store.generation import Generation

_RECORDS = ("structured", "generic")


def check_schema(schema: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """``schema`` if all its parts are there and of the right types.

    Raises:
        FormatError: Naming the part that is not.
    """
    attributes, processor = schema.get("attributes", {}), schema.get("processor")
    generic, size = schema.get("records") == "generic", schema.get(GROUPED, 1)
    good: dict[str, bool] = {"records": schema.get("records") in _RECORDS}
    for name in ("structured", "topology", "processor", "layouts"):
        lacks = generic and name != "layouts" and schema.get(name) is None
        good[name] = lacks or isinstance(schema.get(name), dict)
    good |= {name: _all_text(schema.get(name)) for name in ("phenotypes", "statistics")}
    good |= {name: isinstance(schema.get(name, ""), str) for name in SECOND}
    good["attributes"] = isinstance(attributes, dict) and _all_text(list(attributes.values()))
    good |= {COMPACT: schema.get(COMPACT, 2) == 2, GROUPED: type(size) is int and size > 0}
    if isinstance(processor, dict):
        kinds = type(processor.get("name")), type(processor.get("settings"))
        good["processor"] = kinds == (str, dict)
    try:
        from_text(schema.get("constants", {}))
    except (ValueError, TypeError, AttributeError):
        good["constants"] = False
    bad = [name for name, is_good in good.items() if not is_good]
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
