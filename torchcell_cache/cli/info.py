"""``torchcell-cache info``."""

from __future__ import annotations

from torchcell_cache.cli.commands import Said
from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.looks import draw, write_figure
from torchcell_cache.data.splits import Splits
from torchcell_cache.store.manifest import generation_dirs
from torchcell_cache.store.summary import facts_of, lines_of


def info(
    *,
    root: str,
    wait: float = 0,
    plot: str | None = None,
    html: str | None = None,
    splits: str | None = None,
    bins: int = 10,
) -> Said:
    """What is in a store: sizes, schema, fingerprint, histograms.

    Also its digests; histograms are of removed edges and labels.

    Args:
        root: Directory of the store.
        wait: Seconds to wait for a store that another job is building; inf for no limit.
        plot: Image file for the histograms (needs matplotlib).
        html: File for a dataset card, one page that needs nothing beside it.
        splits: Directory of a split, for the card.
        bins: Bars per histogram.

    Example:
        torchcell-cache info root=demo/ecoli
        torchcell-cache info root=demo/ecoli plot=ecoli.png
        torchcell-cache info root=demo/ecoli html=card.html splits=demo/split
    """
    whole_number("bins", bins, 1, most=10_000)
    dataset = PreprocessedDataset(root, wait=wait)
    names = [path.name for path in generation_dirs(dataset.generation.root)]
    facts = {**facts_of(dataset, bins), "generations": names}
    lines = [*lines_of(facts)]
    if plot is not None:
        path = local_path(plot, "plot")
        title = f"{dataset.generation.root.name}, {facts['samples']:,} samples"
        write_figure(draw(facts["histograms"], title, path), path)
        lines.append(f"\nplot written to {plot}")
    if html is not None:
        parts = None if splits is None else Splits.load(splits, dataset)
        dataset.card(local_path(html, "html"), splits=parts)
        lines.append(f"\ncard written to {html}")
    return "\n".join(lines), facts
