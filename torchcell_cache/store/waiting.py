"""Waiting for a store that another job builds: by looking for the published manifest, without any collective call."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from torchcell_cache.core.hints import root_argument
from torchcell_cache.errors import CacheNotFoundError, SettingError, WaitTimeoutError
from torchcell_cache.store.manifest import manifest_path, read_manifest
from torchcell_cache.store.status import found_at

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 3.0
_LINE_SECONDS = 30.0


def wait_for_store(root: Path, wait: bool | float) -> None:
    """Return once a store is published at ``root``.

    Says what it waits for at once and every 30 s, on stderr and on rank 0 only.

    Args:
        root: Root of the store.
        wait: Seconds, ``True`` for as long as it takes, ``False`` not at all: whoever opens the store then says that
            it is missing.

    Raises:
        WaitTimeoutError: If it is not there in time; says what is.
        CorruptManifestError: If a damaged manifest is there.
        SettingError: If ``wait`` is no such value.
    """
    seconds = seconds_of(wait)
    begun = time.monotonic()
    last_line, pause = -_LINE_SECONDS, _FIRST_PAUSE_S
    while seconds > 0:
        found = "" if manifest_path(root).exists() else found_at(root)
        try:
            read_manifest(root)
            return
        except CacheNotFoundError:
            pass
        waited = time.monotonic() - begun
        if waited >= seconds:
            raise WaitTimeoutError(
                f"no complete store at {root} after waiting {waited:,.0f} s: {found}",
                path=root,
                fix=f"torchcell-cache status {root_argument(root)}, then build it or wait longer",
            )
        if waited - last_line >= _LINE_SECONDS and _is_first_rank():
            last_line = waited
            print(f"waiting for {root} since {waited:,.0f} s: {found}", file=sys.stderr, flush=True)
        time.sleep(min(pause, seconds - waited))
        pause = min(1.5 * pause, _LONGEST_PAUSE_S)


def seconds_of(wait: bool | float) -> float:
    """How long to wait, infinity for ``True``; raises ``SettingError`` for what is no time."""
    if isinstance(wait, bool):
        return float("inf") if wait else 0.0
    if not isinstance(wait, int | float) or not wait >= 0:
        raise SettingError(
            f"wait={wait!r}: expected seconds, True (no limit) or False (not at all)", fix="wait=3600"
        )
    return float(wait)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
