"""How a dataset looks: in a notebook, as text, as a picture, as a page. The only file that imports matplotlib."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import make_dirs_durable, write_atomic
from torchcell_cache.core.markup import table, wide_counts
from torchcell_cache.core.package import optional
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.tables import Tables
from torchcell_cache.errors import CacheError, SettingError
from torchcell_cache.store.card import card, dataset_html
from torchcell_cache.store.summary import facts_of, lines_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchcell_cache.data.splits import Splits


class Looks(Tables):
    """The part of :class:`~torchcell_cache.PreprocessedDataset` that shows itself, and what PyG asks that a store has not."""

    has_download = has_process = False

    def _repr_html_(self) -> str:
        try:
            return dataset_html(self, type(self).__name__)
        except CacheError as error:  # a notebook must still be able to show the cell
            return table([("cannot be shown", error)], title=type(self).__name__)

    def info(self, bins: int = 10) -> None:
        """Print what is in the store: sizes, schema, fingerprint, histograms of this view. No record is read.

        Args:
            bins: Bars per histogram.

        Example:
            >>> ds.info()  # doctest: +ELLIPSIS
            root            ...stores/cell
            samples         12 as 'delta' (structured records), 3 shards of 4
            ...
        """
        print("\n".join(lines_of(facts_of(self, whole_number("bins", bins, 1, most=10_000)))))

    def plot(self, path: str | os.PathLike[str] | None = None, *, bins: int = 20) -> Figure:
        """Histograms of labels, perturbed counts and removed edges, as a figure of matplotlib that notebooks show.

        Args:
            path: Image file to write it to as well.
            bins: Bars per histogram.

        Raises:
            SettingError: If matplotlib is not installed, or knows no such image type.
            StorageError: If the file cannot be written.

        Example:
            >>> len(ds.plot("cell.png").axes)
            4
        """
        where = None if path is None else local_path(path, "path")
        facts = facts_of(self, whole_number("bins", bins, 1, most=10_000))
        figure = draw(
            facts["histograms"], f"{self.generation.root.name}, {facts['in_view']:,} samples", where
        )
        if where is not None:
            write_figure(figure, where)
        return figure

    def card(
        self, path: str | os.PathLike[str] | None = None, *, splits: Splits | None = None, bins: int = 20
    ) -> str:
        """The dataset's card: one HTML page with where it is from, what is in it, its digests, how to open and cite it.

        Args:
            path: File to write it to.
            splits: A split of this dataset: sizes of its parts and what they have in common.
            bins: Bars per histogram.

        Returns:
            The page.

        Raises:
            SettingError: If the split is of another dataset.
            StorageError: If the file cannot be written.

        Example:
            >>> page = ds.card("card.html", splits=tc.split_random(ds, progress=False))
        """
        if splits is not None and len(splits.dataset) != len(self.positions()):
            raise SettingError(
                f"splits= divides {len(splits.dataset):,} samples, this dataset has {len(self.positions()):,}",
                fix="splits.dataset.card(splits=splits)",
            )
        name = self.generation.root.name
        parts = None if splits is None else splits.parts
        page = card(self, name, name, parts, whole_number("bins", bins, 1, most=10_000))
        if path is not None:
            where = local_path(path, "path")
            make_dirs_durable(where.parent)
            write_atomic(where, page.encode(), mode=0o644)
        return page

    def download(self) -> NoReturn:
        """PyG's hook; a store needs nothing of what it was made from."""
        raise self._unused("download()")

    def process(self) -> NoReturn:
        """PyG's hook; a store is made by :func:`~torchcell_cache.build`."""
        raise self._unused("process()")

    def _unused(self, what: str) -> SettingError:
        return SettingError(
            f"{what} does nothing on a store: it was processed when it was built",
            fix="tc.build(root, source=..., processor=...)",
        )


# Image files and figures

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
