"""The package itself: its version, and where it can run."""

from __future__ import annotations

import sys

__version__ = "0.1.0"


def platform_lacks() -> str | None:
    """One sentence where the package cannot run: it needs what only Linux has, and would fail deep inside."""
    system = str(sys.platform)
    if system == "linux":
        return None
    return (
        f"torchcell_cache runs on Linux only, this is {system}: its locks (fcntl), directory syncs and process "
        "lists (/proc) are Linux's; use a Linux machine, a container or WSL2"
    )
