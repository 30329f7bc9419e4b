"""Histograms and image files, for the commands that draw. The only file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.files import make_dirs_durable, storage_errors
from torchcell_cache.errors import SettingError, install_line


def write_figure(figure: Any, path: Path) -> None:
    """Write it, and the directory it goes to."""
    make_dirs_durable(path.parent)
    with storage_errors(path):
        figure.savefig(path, dpi=120)


def new_figure(path: Path, size: tuple[float, float]) -> Any:
    """An empty figure, width and height in inches, that can be saved as ``path``; draws without a display."""
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


_WIDTH = 40


def histogram(values: npt.NDArray[Any], bins: int) -> dict[str, Any]:
    """Counts and bounds of the finite values, ``[num_samples]``, and how many are not; whole numbers get a bin each."""
    numbers = np.asarray(values, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    out: dict[str, Any] = {"count": len(finite), "missing": len(numbers) - len(finite)}
    if len(finite) == 0:
        return out
    low, high = float(finite.min()), float(finite.max())
    if np.issubdtype(values.dtype, np.integer) and high - low < bins:
        edges = np.arange(low, high + 2) - 0.5
    else:
        edges = np.histogram_bin_edges(finite, bins=bins)
    counts, edges = np.histogram(finite, bins=edges)
    out |= {"min": low, "median": float(np.median(finite)), "mean": float(finite.mean()), "max": high}
    return {**out, "edges": edges.tolist(), "counts": counts.tolist()}


def as_text(name: str, facts: Mapping[str, Any]) -> str:
    """A histogram as lines with bars of ``#``."""
    if not facts["count"]:
        return f"{name}: no values"
    missing = f", {facts['missing']:,} without a value" if facts["missing"] else ""
    head = f"{name}: min {facts['min']:.6g}, median {facts['median']:.6g}, mean {facts['mean']:.6g}, max {facts['max']:.6g}"
    lines = [f"{head}{missing}"]
    counts, edges = facts["counts"], facts["edges"]
    whole = all((edge - 0.5).is_integer() for edge in edges) and len(edges) > 1
    most = max(counts)
    for k, count in enumerate(counts):
        label = f"{edges[k] + 0.5:.0f}" if whole else f"{edges[k]:.4g} .. {edges[k + 1]:.4g}"
        bar = "#" * max(round(_WIDTH * count / most), int(count > 0))
        lines.append(f"  {label:>24}  {count:>9,}  {bar}".rstrip())
    return "\n".join(lines)


def save_plot(histograms: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the histograms side by side into an image file."""
    shown = {name: facts for name, facts in histograms.items() if facts["count"]}
    figure = new_figure(path, (4.2 * max(len(shown), 1), 3.2))
    figure.suptitle(title)
    for number, (name, facts) in enumerate(shown.items()):
        axes = figure.add_subplot(1, len(shown), number + 1)
        axes.stairs(facts["counts"], facts["edges"], fill=True)
        axes.set_xlabel(name)
        axes.set_ylabel("samples" if number == 0 else "")
    write_figure(figure, path)
