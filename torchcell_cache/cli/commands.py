"""The commands that make, check and move stores.

Their signatures have the keys that are the command's own; what they pass on stands in :mod:`.registry`. ``source`` and
``processor`` come as functions that make them, because reading a source may take minutes. Returned is what is printed at the
end, for people and as JSON, or an exit code.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import EXIT_CORRUPT_OR_STALE, EXIT_OK, SettingError

Said = tuple[str, dict[str, Any]]


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
) -> Said:
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

    if task is not None and finalize:
        text = "task= builds a share, finalize=true publishes: one run does one of them"
        raise SettingError(text, fix="leave out one")
    if (tasks is None) != (task is None and not finalize):
        text = f"tasks={tasks}: the number of tasks of an array build, with task=... or finalize=true"
        raise SettingError(text, fix="add task=... or finalize=true" if tasks else "add tasks=...")
    array.check_task(task or 0, 1 if tasks is None else tasks)
    for key, number, least in (("num_workers", num_workers, 0), ("shard_size", shared["shard_size"], 1)):
        if number is not None:
            whole_number(key, number, least)
    work: dict[str, Any] = {"num_workers": num_workers, "scratch": scratch}
    shared |= {"max_record_bytes": max_record_bytes, "processor": processor(), "source": source()}
    if tasks is None:
        return made(api.build(root, **work, **shared))
    if task is None:
        return made(api.finalize(root, tasks=tasks, script=script, **shared))
    part = array.build_part(root, task=task, tasks=tasks, **work, **shared)
    done = f"{len(part.shards)} shards there, {part.built} of them built now"
    state = "the store is published already" if part.published else done
    facts: dict[str, Any] = {"task": task, "tasks": tasks, "shards": len(part.shards), "built": part.built}
    facts |= {"published": part.published, "generation": part.generation}
    return f"task {task} of {tasks}: {state}; generation {part.generation}", facts


def made(dataset: Any) -> Said:
    """What a command that made a store says of it."""
    manifest = dataset.generation.manifest
    files = [*manifest.files, *(shard.file for shard in manifest.shards)]
    facts = {
        "root": str(dataset.generation.root),
        "generation": manifest.generation,
        "samples": manifest.num_samples,
        "storage": manifest.storage,
        "shards": len(manifest.shards),
        "bytes": sum(file.size for file in files),
        "content_digest": manifest.content_digest,
    }
    said = f"{dataset.root}: {len(dataset):,} samples as '{dataset.storage}', {facts['shards']} shards"
    return f"{said}, content digest {dataset.content_digest}", facts


def append(*, source: Any, processor: Any = "none", num_workers: int = 2, **settings: Any) -> Said:
    """Add samples to a store; what is there is shared, not made again.

    They go to its end. The new generation shares the files of the old one, which readers may go on using. The source has
    the samples to add, on the store's base graph.

    Example:
        torchcell-cache append root=ko source=table source.path=more.csv source.phenotypes=[fitness] source.base_graph=ko
    """
    return _grow("append", source, processor, num_workers=num_workers, **settings)


def update(*, source: Any, processor: Any = "none", num_workers: int = 2, **settings: Any) -> Said:
    """Bring a store up to date with a changed source; only what can differ is computed.

    More or fewer samples, other labels, another base graph: the result is that of a full build. The source is the source as
    it is now, all of it.

    Example:
        torchcell-cache update root=ko source=table source.path=ko.csv source.phenotypes=[fitness] source.base_graph=cell/
    """
    return _grow("update", source, processor, num_workers=num_workers, **settings)


def _grow(name: str, source: Any, processor: Any, *, root: str, **settings: Any) -> Said:
    """Grow the store; what was computed and what was taken over."""
    from torchcell_cache.builder.grow import STORED
    from torchcell_cache.data import api
    from torchcell_cache.store.manifest import read_manifest

    read_manifest(local_path(root))  # before a source that may take minutes to read
    given, own = source(), processor()
    growth = getattr(api, name)(root, given, STORED if own is None else own, **settings)
    counts = {"recomputed": growth.recomputed, "linked_shards": growth.linked_shards}
    said = f"{growth}; content digest {growth.dataset.content_digest}"
    return said, {**made(growth.dataset)[1], **counts}


def import_torchcell(*, base_graph: str, num_workers: int = 2, **settings: Any) -> Said:
    """Make a store of one that torchcell's own Neo4jPreprocessedCellDataset made.

    Its pickles are read in a process of its own, in which nothing they name is called; names that torchcell's records do not
    have are refused. Ids and labels are taken, masks are made anew, random samples are compared. Interrupted, the same
    command continues.

    Args:
        base_graph: The cell graph it was made with: a directory written by save_base_graph, or the root of another store.

    Example:
        torchcell-cache import-torchcell root=stores/tmi store=old/preprocessed base_graph=cell/ trust=true
    """
    from torchcell_cache.cli.makers import make_base_graph
    from torchcell_cache.data import api

    graph = make_base_graph(base_graph, "base_graph")
    return made(api.import_torchcell(base_graph=graph, num_workers=num_workers, **settings))


def verify(
    *,
    root: str,
    wait: float = 0,
    source: Any = "none",
    processor: Any = "none",
    json: bool = False,
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
    from torchcell_cache.store.status import wait_for_store

    own = processor()
    wait_for_store(local_path(root), wait)
    report = verify(root, source=source(), processor=own, **settings)
    print(report.to_json() if json else report)
    if report.ok:
        return EXIT_OK
    print(f"fix: torchcell-cache repair {shlex.quote(f'root={root}')}", file=sys.stderr)
    return EXIT_CORRUPT_OR_STALE


def repair(*, source: Any = "none", processor: Any = "none", **settings: Any) -> Said:
    """Make damaged files again.

    Then the result is published; whole files are shared with the generation before. Stores of the built-in processors need
    no source unless their base graph is damaged.

    Example:
        torchcell-cache repair root=demo/ecoli
        torchcell-cache repair root=demo/ecoli shard=3
    """
    from torchcell_cache.builder.check.repair import repair

    own = processor()
    report = repair(source=source(), processor=own, **settings)
    return str(report), asdict(report)


def stage(*, root: str, to: str, wait: float = 0, **settings: Any) -> Said:
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

    return _copied(stage(root, to, wait=wait, **settings))


def _copied(copy: Any) -> Said:
    """The root of a copy, and what it holds."""
    from torchcell_cache.store.manifest import read_manifest

    manifest = read_manifest(copy)
    facts = {"samples": manifest.num_samples, "content_digest": manifest.content_digest}
    return str(copy), {"root": str(copy), **facts}


def push(*, root: str, url: str, **settings: Any) -> Said:
    """Put a store into object storage (s3://, gs://, az://, file://).

    Its files go first, its manifest last. Files that are there already are not sent again. Prints the address.
    Credentials come from where the file system's own library finds them, never from here.

    Example:
        torchcell-cache push root=stores/ko url=s3://lab/stores/ko
    """
    from torchcell_cache.remote.push import push

    address = push(root, url, **settings)
    return address, {"url": address, "root": str(local_path(root))}


def pull(*, url: str, root: str, wait: float = 0, **settings: Any) -> Said:
    """Copy a store from object storage into a directory.

    It is verified on the way. After an interruption the same command goes on. Prints the copy's root.
    Credentials come from where the file system's own library finds them, never from here.

    Args:
        wait: Seconds to wait for a store that another job is about to push; inf for no limit.

    Example:
        torchcell-cache pull url=s3://lab/stores/ko root=stores/ko
    """
    from torchcell_cache.remote.copies import pull

    return _copied(pull(url, root, wait=wait, **settings))


def gc(*, dry_run: bool = False, **settings: Any) -> Said:
    """Remove old generations of a store.

    What is published stays, and what somebody reads.

    Example:
        torchcell-cache gc root=demo/ecoli dry_run=true
    """
    from torchcell_cache.builder.generations import gc

    removed = gc(dry_run=dry_run, **settings)
    what = "would remove" if dry_run else "removed"
    said = f"{what} {', '.join(removed)}" if removed else "nothing to remove"
    return said, {"removed": removed, "dry_run": dry_run}
