"""Where code comes from: the user's own modules and libraries, and short names for both."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from torchcell_cache.builder.codehash.registered import registered

# Known by name even where they are installed in place from a source tree.
LIBRARIES = frozenset(
    {"builtins", "numpy", "scipy", "pandas", "pyarrow", "sklearn", "networkx", "pytest"}
    | {"lightning", "lightning_fabric", "pytorch_lightning", "torch", "torch_geometric", "torchcell_cache"}
    | {"pyg_lib", "torch_cluster", "torch_scatter", "torch_sparse", "torch_spline_conv"}
)
_STDLIB = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_INSTALLED = ("site-packages", "dist-packages")


def top_level(name: str) -> str:
    """First component of a module name."""
    return name.partition(".")[0]


def is_library(name: str, file: str | None, own: frozenset[str] = frozenset()) -> bool:
    """Whether a module's code is identified by name only.

    Args:
        name: The module's name.
        file: Its file, if known.
        own: Top-level packages that are hashed although they are installed in site-packages.
    """
    top = top_level(name)
    if top in ("__main__", "__mp_main__"):
        return False
    if top.startswith("_cython_"):
        return True
    if top in LIBRARIES:
        return True
    if file is None:
        return top in sys.stdlib_module_names or top in sys.builtin_module_names
    if any(part in _INSTALLED for part in PurePath(file).parts):
        return top not in own
    return file.startswith(_STDLIB) or file.startswith("<frozen")


def is_installed(file: str | None) -> bool:
    """Whether a file was put in place by an installer."""
    return file is not None and any(part in _INSTALLED for part in PurePath(file).parts)


def installed_version(package: str) -> str:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def short_name(module_globals: Mapping[str, Any]) -> str:
    """Last component of a module's name; the same whether it is run, imported or imported in a package."""
    name = str(module_globals.get("__name__", "?"))
    file = module_globals.get("__file__")
    if name in ("__main__", "__mp_main__") and file:
        return Path(file).stem
    return name.rpartition(".")[2]


def library_name(value: object) -> str | None:
    """Public dotted name of a library function, class or module; ``None`` for what has no name."""
    if isinstance(value, ModuleType):
        return value.__name__
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(name, str) or "<" in name:
        return None
    module = getattr(value, "__module__", None) or type(value).__module__
    # Private components move between releases (numpy.core became numpy._core).
    return ".".join(part for part in registered(module, name).split(".") if not part.startswith("_"))


def import_user_module(name: str, package: str | None, own: frozenset[str]) -> ModuleType | str | None:
    """The module that ``import name`` inside a function would give.

    Returns:
        A user's module, the name of a library module, or ``None`` if it is not installed.
    """
    try:
        full = importlib.util.resolve_name(name, package)
        top = top_level(full)
        spec = None if top in sys.modules else importlib.util.find_spec(top)
        file = getattr(sys.modules.get(top), "__file__", None) or (spec.origin if spec else None)
        if is_library(full, file, own):
            return full
        return importlib.import_module(full)
    except (ImportError, ValueError):
        return None
