"""The commands, but for the long ones: :mod:`.info`, :mod:`.status` and :mod:`.bench`.

Their signatures have the keys that are the command's own; what they pass on stands in :mod:`.registry`. ``source`` and
``processor`` come as functions that make them, because reading a source may take minutes.
"""

from __future__ import annotations

import json as json_
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import EXIT_CORRUPT_OR_STALE, EXIT_OK, SettingError


def preprocess(
    root: str,
    source: Callable[[], Any],
    processor: Callable[[], Any] = "lazy",  # type: ignore[assignment]
    *,
    num_workers: int = 2,
    max_record_bytes: int = 268435456,
    scratch: str | None = None,
    task: int | None = None,
    tasks: int | None = None,
    finalize: bool = False,
    script: str = "slurm/preprocess_array.slurm",
    **shared: Any,
) -> None:
    """Build a store from a source, or continue an interrupted build.

    After an interruption run the same command again. A store that matches is left as it is; one built from something else is
    an error that names the difference.

    Args:
        task: Array build: build only the shards of this task, 0 to tasks-1; publishes nothing.
        tasks: Array build: number of tasks, the same for all of them and for finalize.
        finalize: Array build: check every shard and publish; names what is missing (exit code 75).
        script: Array build: the batch script in the line that repeats tasks.

    Example:
        torchcell-cache preprocess root=demo/ecoli source=ecoli
        torchcell-cache preprocess root=ko source=table source.path=ko.csv source.phenotypes=[fitness] source.base_graph=ecoli
    """
    from torchcell_cache.builder import array
    from torchcell_cache.data import api

    _check_array(task, tasks, finalize)
    array.check_task(task or 0, 1 if tasks is None else tasks)
    for key, number, least in (("num_workers", num_workers, 0), ("shard_size", shared["shard_size"], 1)):
        if number is not None and number < least:
            raise SettingError(f"{key}={number} must be at least {least}")
    work: dict[str, Any] = {"num_workers": num_workers, "scratch": scratch}
    shared |= {"max_record_bytes": max_record_bytes, "processor": processor(), "source": source()}
    if task is not None and tasks is not None:
        part = array.build_part(root, task=task, tasks=tasks, **work, **shared)
        done = f"{len(part.shards)} shards there, {part.built} of them built now"
        state = "the store is published already" if part.published else done
        print(f"task {task} of {tasks}: {state}; generation {part.generation}")
        return
    last: dict[str, Any] = {"tasks": tasks, "script": script}
    dataset = api.finalize(root, **last, **shared) if finalize else api.build(root, **work, **shared)
    print(
        f"{dataset.root}: {len(dataset):,} samples as '{dataset.storage}', {len(dataset.generation.manifest.shards)} shards, "
        f"content digest {dataset.content_digest}"
    )


def _check_array(task: int | None, tasks: int | None, last: bool) -> None:
    if task is not None and last:
        raise SettingError(
            "task= builds a share, finalize=true publishes: one run does one of them", fix="leave out one"
        )
    if (task is not None or last) and tasks is None:
        what = "finalize=true" if last else f"task={task}"
        raise SettingError(f"{what} needs the number of tasks of the array build", fix="add tasks=...")
    if tasks is not None and task is None and not last:
        raise SettingError(
            f"tasks={tasks} needs task=... or finalize=true", fix="add one, or leave out tasks="
        )


def append(*, source: Any, processor: Any = "none", num_workers: int = 2, **settings: Any) -> None:
    """Add samples to a store; what is there is shared, not made again.

    They go to its end. The new generation shares the files of the old one, which readers may go on using. The source has
    the samples to add, on the store's base graph.

    Example:
        torchcell-cache append root=ko source=table source.path=more.csv source.phenotypes=[fitness] source.base_graph=ko
    """
    _grow("append", source, processor, num_workers=num_workers, **settings)


def update(*, source: Any, processor: Any = "none", num_workers: int = 2, **settings: Any) -> None:
    """Bring a store up to date with a changed source; only what can differ is computed.

    More or fewer samples, other labels, another base graph: the result is that of a full build. The source is the source as
    it is now, all of it.

    Example:
        torchcell-cache update root=ko source=table source.path=ko.csv source.phenotypes=[fitness] source.base_graph=cell/
    """
    _grow("update", source, processor, num_workers=num_workers, **settings)


def _grow(name: str, source: Any, processor: Any, *, root: str, **settings: Any) -> None:
    """Grow the store and print what was computed and what was taken over."""
    from torchcell_cache.builder.grow import STORED
    from torchcell_cache.data import api
    from torchcell_cache.store.manifest import read_manifest

    read_manifest(local_path(root))  # before a source that may take minutes to read
    made, own = source(), processor()
    grow = {"append": api.append, "update": api.update}[name]
    growth = grow(root, made, STORED if own is None else own, **settings)
    print(f"{growth}; content digest {growth.dataset.content_digest}")


def verify(
    *,
    root: str,
    wait: float = 0,
    json: bool = False,
    source: Any = "none",
    processor: Any = "none",
    **settings: Any,
) -> int:
    """Check a store; level=full reads every record, source=... compares with the source.

    Exit code 0 if all is well, 65 if anything is not.

    Args:
        wait: Seconds to wait for a store that another job is building; inf for no limit.
        json: Print the report as JSON.

    Example:
        torchcell-cache verify root=demo/ecoli
        torchcell-cache verify root=demo/ecoli level=full
        torchcell-cache verify root=demo/ecoli source=ecoli num_samples=200
    """
    from torchcell_cache.builder.check.verify import verify
    from torchcell_cache.store.waiting import wait_for_store

    own = processor()
    wait_for_store(local_path(root), wait)
    report = verify(root, source=source(), processor=own, **settings)
    print(report.to_json() if json else report)
    if report.ok:
        return EXIT_OK
    print(f"fix: torchcell-cache repair {shlex.quote(f'root={root}')}", file=sys.stderr)
    return EXIT_CORRUPT_OR_STALE


def repair(*, source: Any = "none", processor: Any = "none", **settings: Any) -> None:
    """Make damaged files again.

    Then the result is published; whole files are shared with the generation before. Stores of the built-in processors need
    no source unless their base graph is damaged.

    Example:
        torchcell-cache repair root=demo/ecoli
        torchcell-cache repair root=demo/ecoli shard=3
    """
    from torchcell_cache.builder.check.repair import repair

    own = processor()
    print(repair(source=source(), processor=own, **settings))


def stage(*, root: str, to: str, wait: float = 0, **settings: Any) -> None:
    """Copy a store to local disk, verified; prints the copy's root.

    Finds the copy that is there. Prints its root, alone, on stdout. Several processes of a node may run this at once: one
    copies, the others wait.

    Args:
        root: Directory of the store, or the address it was pushed to (s3://bucket/prefix).
        to: Directory on local disk; the copy is <to>/<name>-<digest>.
        wait: Seconds to wait for a store that another job is building; inf for no limit.

    Example:
        ROOT=$(torchcell-cache stage root=/shared/stores/ko to=/local/$USER)
    """
    from torchcell_cache.remote.copies import stage

    print(stage(root, to, wait=wait, **settings))


def push(**settings: Any) -> None:
    """Put a store into object storage (s3://, gs://, az://, file://).

    Its files go first, its manifest last. Files that are there already are not sent again. Prints the address.
    Credentials come from where the file system's own library finds them, never from here.

    Example:
        torchcell-cache push root=stores/ko url=s3://lab/stores/ko
    """
    from torchcell_cache.remote.push import push

    print(push(**settings))


def pull(*, url: str, root: str, wait: float = 0, **settings: Any) -> None:
    """Copy a store from object storage into a directory.

    It is verified on the way. After an interruption the same command goes on. Prints the copy's root.
    Credentials come from where the file system's own library finds them, never from here.

    Args:
        wait: Seconds to wait for a store that another job is about to push; inf for no limit.

    Example:
        torchcell-cache pull url=s3://lab/stores/ko root=stores/ko
    """
    from torchcell_cache.remote.pull import pull

    print(pull(url, root, wait=wait, **settings))


def gc(*, dry_run: bool = False, **settings: Any) -> None:
    """Remove old generations of a store.

    What is published stays, and what somebody reads.

    Example:
        torchcell-cache gc root=demo/ecoli dry_run=true
    """
    from torchcell_cache.builder.cleanup import gc

    removed = gc(dry_run=dry_run, **settings)
    what = "would remove" if dry_run else "removed"
    print(f"{what} {', '.join(removed)}" if removed else "nothing to remove")


def select(
    *,
    root: str,
    indices: str | None = None,
    where: str | None = None,
    list: str | None = None,
    out: str | None = None,
    store: str | None = None,
    shard_size: int | None = None,
    on_stale: str = "error",
    json: bool = False,
    progress: bool = True,
    **more: Any,
) -> None:
    """Choose samples by their columns: an index file or a smaller store.

    Args:
        root: Directory of the store.
        indices: Choose among the samples of this index file only.
        where: Condition over columns: and or not == != < <= > >= in (..) + - * / // % isnan() isfinite() abs()
        list: File: index file (.npy), or text with a source id (where samples have them) or position per line.
        out: Index file to write, .npy.
        store: Directory of a smaller store to write.
        shard_size: Samples per shard of that store; by storage if null.
        on_stale: Another store there.
        json: Print JSON.
        progress: Print progress.

    Example:
        torchcell-cache select root=demo/ecoli where="perturbed_count == 2 and fitness > 0.5" out=pairs.npy
        torchcell-cache select root=demo/ecoli n=1000 seed=0 stratify=fitness store=demo/ecoli-1000
        torchcell-cache select root=demo/ecoli genes=[b0002,b0003] without=[b0004]      # only says how many
    """
    from torchcell_cache.core.digests import digest_of
    from torchcell_cache.data.api import save_subset
    from torchcell_cache.data.dataset import PreprocessedDataset
    from torchcell_cache.data.index_file import npy_path, save_indices
    from torchcell_cache.data.select import select

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
    if out is not None:
        facts["out"] = str(save_indices(out, view, made_by=conditions))
    if store is not None:
        writing: dict[str, Any] = {"shard_size": shard_size, "on_stale": on_stale, "progress": progress}
        made = save_subset(view, store, made_by=conditions, **writing)
        facts |= {"store": str(made.generation.root), "content_digest": made.content_digest}
    print(json_.dumps(facts, indent=1) if json else _selected(facts))


def _selected(facts: dict[str, Any]) -> str:
    lines = [f"{facts['chosen']:,} of {facts['samples']:,} samples of {facts['root']}"]
    if "out" in facts:
        lines.append(f"indices: {facts['out']}")
    if "store" in facts:
        lines.append(f"store: {facts['store']}, content digest {facts['content_digest']}")
    if len(lines) == 1:
        lines.append(
            "nothing written: out=chosen.npy writes an index file, store=directory a store of its own"
        )
    return "\n".join(lines)


def split(
    *,
    root: str,
    indices: str | None = None,
    by: str = "perturbation",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    column: str | None = None,
    train: Sequence[str] = (),
    val: Sequence[str] = (),
    test: Sequence[str] = (),
    out: str | None = None,
    overwrite: bool = False,
    seen_fractions: Sequence[float] | None = None,
    names: str = "unseen",
    controls: str = "random",
    **shared: Any,
) -> None:
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
    from torchcell_cache.data.split_groups import split_by_group
    from torchcell_cache.data.splits import split_by_perturbation, split_random

    if out is not None:
        local_path(out, "out")  # said before any work is done
    dataset = PreprocessedDataset(root, indices=indices)
    if by == "group":
        if column is None:
            raise SettingError("by=group needs the column whose values are groups", fix="column=donor")
        splits = split_by_group(dataset, column, fractions, train=train, val=val, test=test, **shared)
    elif column is not None or train or val or test:
        raise SettingError("column=, train=, val= and test= name groups", fix="by=group")
    elif by == "random":
        splits = split_random(dataset, fractions, **shared)
    else:
        own: dict[str, Any] = {"seen_fractions": seen_fractions, "names": names, "controls": controls}
        splits = split_by_perturbation(dataset, fractions, **own, **shared)
    where = None if out is None else splits.save(out, overwrite=overwrite)
    print(splits.summary())
    print(f"saved to {where}" if where else "nothing written: out=directory saves the split")
