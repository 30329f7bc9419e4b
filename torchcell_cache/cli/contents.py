"""The commands that look into a store: what it holds (``info``), and which of its samples (``select``, ``split``)."""

from __future__ import annotations

from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any

from torchcell_cache.cli.commands import Said
from torchcell_cache.cli.registry import keys_of
from torchcell_cache.cli.signatures import signature
from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.choices import SplitWay
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError


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
    from torchcell_cache.data.dataset import PreprocessedDataset
    from torchcell_cache.data.looks import draw, write_figure
    from torchcell_cache.data.splits import Splits
    from torchcell_cache.store.manifest import generation_dirs
    from torchcell_cache.store.summary import facts_of, lines_of

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


def select(
    *,
    root: str,
    indices: str | None = None,
    where: str | None = None,
    list: str | None = None,
    out: str | None = None,
    store: str | None = None,
    **more: Any,
) -> Said:
    """Choose samples by their columns: an index file or a smaller store.

    Args:
        root: Directory of the store.
        indices: Choose among the samples of this index file only.
        where: Condition over columns: and or not == != < <= > >= in (..) + - * / // % isnan() isfinite() abs()
        list: File: index file (.npy), or text with a source id (where samples have them) or position per line.
        out: Index file to write, .npy.
        store: Directory of a smaller store to write.

    Example:
        torchcell-cache select root=demo/ecoli where="perturbed_count == 2 and fitness > 0.5" out=pairs.npy
        torchcell-cache select root=demo/ecoli n=1000 seed=0 stratify=fitness store=demo/ecoli-1000
        torchcell-cache select root=demo/ecoli genes=[b0002,b0003] without=[b0004]      # only says how many
    """
    from torchcell_cache.core.fingerprint import digest_of
    from torchcell_cache.data.api import save_subset
    from torchcell_cache.data.dataset import PreprocessedDataset
    from torchcell_cache.data.index_file import npy_path, save_indices
    from torchcell_cache.data.select import select

    writing = {key: more.pop(key) for key in ("shard_size", "on_stale", "progress")}
    given = {"where": where, "list": list, **more}
    conditions = {key: value for key, value in given.items() if value not in (None, [])}
    if not conditions.keys() & {"where", "list", "genes", "without", "n"}:
        raise SettingError(
            "select needs a condition: where=, list=, genes=, without= or n=",
            fix="torchcell-cache select --help",
        )
    if out is not None:
        npy_path("out", out)  # said before any work is done
    if store is not None:
        local_path(store, "store")
    dataset = PreprocessedDataset(root, indices=indices)
    chosen = select(dataset, **{"listed" if key == "list" else key: v for key, v in conditions.items()})
    if len(chosen) == 0:
        raise SettingError(
            f"no sample of {len(dataset):,} fulfils the conditions", fix="fewer or wider conditions"
        )
    view = dataset[chosen]
    facts = {"root": str(dataset.generation.root), "samples": len(dataset), "chosen": len(chosen)}
    facts |= {"xxh3": digest_of(dataset.positions(chosen)), "made_by": conditions}
    lines = [f"{len(chosen):,} of {len(dataset):,} samples of {dataset.generation.root}"]
    if out is not None:
        facts["out"] = str(save_indices(out, view, made_by=conditions))
        lines.append(f"indices: {facts['out']}")
    if store is not None:
        made = save_subset(view, store, made_by=conditions, **writing)
        facts |= {"store": str(made.generation.root), "content_digest": made.content_digest}
        lines.append(f"store: {made.generation.root}, content digest {made.content_digest}")
    if out is None and store is None:
        lines.append(
            "nothing written: out=chosen.npy writes an index file, store=directory a store of its own"
        )
    return "\n".join(lines), facts


_WAYS = {
    "group": "data.split_groups:split_by_group",
    "perturbation": "data.split_nodes:split_by_perturbation",
    "random": "data.split_nodes:split_random",
}


def split(
    *,
    root: str,
    indices: str | None = None,
    by: SplitWay = "perturbation",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    column: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Said:
    """Training, validation and test samples without leaks.

    By perturbation no held-out node is in training and all samples of one perturbed set stay together, by group all samples of
    one donor, batch or plate.

    Args:
        root: Directory of the store.
        indices: Split the samples of this index file only.
        by: perturbation (nodes are divided, then sets of them), group (values of a column), random (samples).
        fractions: Shares of nodes, groups or samples: train, val, test; two: train, test.
        column: By group: the column whose values are groups.
        out: Directory to save the split in: an index file per part and group, and splits.json.
        overwrite: Replace a split that is there.

    Example:
        torchcell-cache split root=demo/ecoli out=demo/split stratify=fitness
        torchcell-cache split root=demo/ecoli by=random fractions=[0.9,0.1]             # only prints the parts
        torchcell-cache split root=demo/cells by=group column=donor test=[D3] out=demo/split
    """
    from torchcell_cache.data.dataset import PreprocessedDataset

    if out is not None:
        local_path(out, "out")  # said before any work is done
    settings |= {"column": column, "fractions": fractions}
    taken = {way: signature([place]).keys for way, place in _WAYS.items()}
    strange = {name: settings.pop(name) for name in [*settings] if name not in taken[by]}
    changed = [name for name, value in strange.items() if value != keys_of("split")[name].default]
    if changed:
        way = next(way for way in _WAYS if changed[0] in taken[way])
        raise SettingError(
            f"{', '.join(f'{name}=' for name in changed)} would mean nothing with by={by}",
            fix=f"by={way}, or without it",
        )
    if by == "group" and column is None:
        raise SettingError("by=group needs the column whose values are groups", fix="column=donor")
    dataset = PreprocessedDataset(root, indices=indices)
    splits = resolve_name(f"torchcell_cache.{_WAYS[by]}")(dataset, **settings)
    where = None if out is None else str(splits.save(out, overwrite=overwrite))
    said = f"saved to {where}" if where else "nothing written: out=directory saves the split"
    facts = {"root": str(dataset.generation.root), "samples": len(dataset), "out": where}
    for name in ("parts", "groups"):
        facts[name] = {key: len(rows) for key, rows in getattr(splits, name).items()}
    return f"{splits.summary()}\n{said}", {**facts, "made_by": splits.made_by, "notes": splits.notes}
