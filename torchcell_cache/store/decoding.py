"""Errors of records that carry right checksums and make no sense: typed, wherever they are decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchcell_cache.core.hints import root_argument
from torchcell_cache.errors import CacheError, FormatError

if TYPE_CHECKING:
    from torchcell_cache.store.generation import Generation


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
