"""Image files and figures. The only file of the package that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcell_cache.core.files import make_dirs_durable, storage_errors
from torchcell_cache.core.markup import wide_counts
from torchcell_cache.core.package import optional
from torchcell_cache.errors import SettingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4


def write_figure(figure: Any, path: Path) -> None:
    """Write it, and the directory it goes to."""
    make_dirs_durable(path.parent)
    with storage_errors(path):
        figure.savefig(path, dpi=120)


def new_figure(path: Path | None, size: tuple[float, float]) -> Any:
    """An empty figure, width and height in inches, that can be saved as ``path``; draws without a display, shows in notebooks."""
    backend = optional("matplotlib.backends.backend_agg", "plot=" if path else "plot()", "plot")
    from matplotlib.figure import Figure

    class Drawing(Figure):
        """Shown by a notebook that never imported pyplot."""

        def _repr_png_(self) -> bytes:
            import io

            out = io.BytesIO()
            self.savefig(out, format="png", dpi=100)
            return out.getvalue()

    figure = Drawing(figsize=size, layout="constrained")
    known = backend.FigureCanvasAgg(figure).get_supported_filetypes()
    if path is not None and path.suffix.lower().removeprefix(".") not in known:
        raise SettingError(f"plot={path}: no image type {path.suffix!r}; valid: {', '.join(sorted(known))}")
    return figure


def draw(histograms: Mapping[str, Mapping[str, Any]], title: str, path: Path | None = None) -> Figure:
    """The histograms beside each other: whole ticks for counts, a logarithmic axis where bars differ much, medians."""
    from_zero = {name: facts for name, facts in histograms.items() if facts["count"]}
    wide = min(max(len(from_zero), 1), _COLUMNS)
    high = -(-max(len(from_zero), 1) // wide)
    figure: Figure = new_figure(path, (3.6 * wide, 2.9 * high + 0.3))
    from matplotlib.ticker import MaxNLocator

    figure.suptitle(title)
    for number, (name, facts) in enumerate(from_zero.items()):
        axes = figure.add_subplot(high, wide, number + 1)
        axes.stairs(facts["counts"], facts["edges"], fill=True, color="#4878a8")
        axes.axvline(facts["median"], color="#c44e52", linestyle="--")
        if wide_counts(facts["counts"]):
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.7)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=facts["whole"]))
        missing = f", {facts['missing']:,} without" if facts["missing"] else ""
        axes.set_xlabel(f"{name}{missing}")
        axes.set_ylabel("samples" if number % wide == 0 else "")
        axes.set_title(f"median {facts['median']:.4g}", fontsize="small", color="#c44e52")
    return figure
