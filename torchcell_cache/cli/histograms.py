"""Histograms of columns, as text and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.cli.figures import new_figure, write_figure

_WIDTH = 40


def histogram(values: npt.NDArray[Any], bins: int) -> dict[str, Any]:
    """Counts and bounds of the finite values, and how many are not finite.

    Args:
        values: One value per sample, ``[num_samples]``.
        bins: Number of bins; fewer if there are fewer whole numbers.
    """
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
    """Draw the histograms side by side into an image file.

    Raises:
        SettingError: If matplotlib is missing, or does not know the file's type.
    """
    shown = {name: facts for name, facts in histograms.items() if facts["count"]}
    figure = new_figure(path, (4.2 * max(len(shown), 1), 3.2))
    figure.suptitle(title)
    for number, (name, facts) in enumerate(shown.items()):
        axes = figure.add_subplot(1, len(shown), number + 1)
        axes.stairs(facts["counts"], facts["edges"], fill=True)
        axes.set_xlabel(name)
        axes.set_ylabel("samples" if number == 0 else "")
    write_figure(figure, path)
