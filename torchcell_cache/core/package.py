"""The package itself: its version, and where it can run."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from torchcell_cache.errors import SettingError, install_line

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


def optional(module: str, what: str, extra: str, otherwise: str = "") -> Any:
    """A package of an extra, for what cannot do without.

    Raises:
        SettingError: If it cannot be imported, with the line that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise SettingError(
            f"{what} needs {module.partition('.')[0]}, which cannot be imported ({error})",
            fix=f"{install_line(extra)}, {otherwise}".rstrip(", "),
        ) from None
