"""How a dataset looks: in a notebook, as text, as a picture, as a page."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.files import make_dirs_durable, write_atomic
from torchcell_cache.core.markup import table
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.plots import draw, write_figure
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
