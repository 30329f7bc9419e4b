"""Image files, for the commands that draw. The only file that imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchcell_cache.core.files import make_dirs_durable, storage_errors
from torchcell_cache.errors import SettingError, install_line


def write_figure(figure: Any, path: Path) -> None:
    """Write it, and the directory it goes to."""
    make_dirs_durable(path.parent)
    with storage_errors(path):
        figure.savefig(path, dpi=120)


def new_figure(path: Path, size: tuple[float, float]) -> Any:
    """An empty figure that can be saved as ``path``; draws without a display.

    Args:
        path: Image file to be.
        size: Width and height in inches.

    Raises:
        SettingError: If matplotlib is missing, or does not know the file's type.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingError(
            f"plot= needs matplotlib, which cannot be imported ({error})",
            fix=install_line("plot"),
        ) from None
    figure = Figure(figsize=size, layout="constrained")
    known = FigureCanvasAgg(figure).get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise SettingError(f"plot={path}: no image type {path.suffix!r}; valid: {', '.join(sorted(known))}")
    return figure
