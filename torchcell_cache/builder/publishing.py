"""Publishing: find what is there, take the builder lock, look again, work, make the result the store.

Whatever makes or replaces a store goes through :func:`publishing`; what is built from a plan is a :class:`StoreRequest`.

What says the same as a published store in other words leaves it standing, and it goes on with its own words: a base graph made
from Python sets has its edges in another order in every process. The store's own graph is served, and computed on.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchcell_cache.builder.codehash import processor_part
from torchcell_cache.builder.plan import BuildPlan
from torchcell_cache.builder.shards import generation_prefix
from torchcell_cache.core.files import make_dirs_durable, remove_stale_temps, write_atomic
from torchcell_cache.core.fingerprint import explain, sha256_json, source_part
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock, read_status
from torchcell_cache.core.progress import Console
from torchcell_cache.core.samples import Sample, SampleTable
from torchcell_cache.errors import (
    BuildFailedError,
    CacheError,
    CacheNotFoundError,
    CorruptManifestError,
    FormatError,
    StaleCacheError,
)
from torchcell_cache.graph.compare import reordered_parts
from torchcell_cache.graph.fields import graph_digests
from torchcell_cache.sources.base import Source
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.lease import open_with_lease
from torchcell_cache.store.manifest import STORAGES as STORED_AS
from torchcell_cache.store.manifest import Manifest, processed_dir, read_manifest, write_manifest
from torchcell_cache.store.stamps import stamp


@dataclass(frozen=True, slots=True)
class Publisher:
    """What whoever holds the builder lock of a store has.

    Attributes:
        root: Root of the store.
        lock: The lock.
        console: Prints a line.
    """

    root: Path
    lock: BuilderLock
    console: Console

    def publish(self, manifest: Manifest, current: Manifest | None) -> Generation:
        """Make a finished generation the store, unless somebody else was first, and open what is published."""
        begun = time.perf_counter()
        if not self.replace(manifest, current):
            self.console(f"another builder published {read_manifest(self.root).generation}; using it")
        directory = processed_dir(self.root) / manifest.generation
        for entry in (*manifest.files, *(s.file for s in manifest.shards)):
            stamp(directory / entry.name, entry.xxh3)  # digests were taken while writing
        self.console(f"published {manifest.generation} in {(time.perf_counter() - begun) * 1e3:.0f} ms")
        return open_with_lease(self.root)

    def replace(self, manifest: Manifest, current: Manifest | None) -> bool:
        """Put a manifest in the place of ``current`` (a damaged one, or none); without locks somebody may have been first."""
        expect = None if current is None else current.generation
        return write_manifest(self.root, manifest, expect_generation=expect, replace_damaged=True)


@contextlib.contextmanager
def publishing(
    root: Path, console: Console, *, shared: bool = False, wait: bool = True
) -> Iterator[Publisher]:
    """The builder lock of a store, whose directories are made.

    ``shared`` is for tasks of one array build, so that all others wait for all of them; without ``wait`` another holder is a
    ``BuildInProgressError``.
    """
    directory = processed_dir(root)
    make_dirs_durable(directory)
    lock = BuilderLock(directory / LOCK_NAME, shared)
    if wait:
        unknown = "tasks of an array build, or an unknown process"
        lock.wait(console, lambda owner: f"another builder of this store ({owner or unknown})")
    with lock:
        yield Publisher(root, lock, console)


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """The store that stands for a plan: what is published at ``root``, or is made now."""

    root: Path
    plan: BuildPlan
    storage: str
    on_stale: str
    console: Console

    def opened_or_made(
        self, make: Callable[[Publisher], Manifest], begin: Callable[[], None] = lambda: None
    ) -> Generation:
        """What is published, or what ``make`` builds under the lock, after ``begin``."""
        opened = self.find_existing()[1]
        if opened is not None:
            # Of a builder killed between publishing and tidying up.
            remove_stale_temps(processed_dir(self.root))
            return opened
        begin()
        with publishing(self.root, self.console) as publisher:
            current, opened = self.find_existing()
            if opened is not None:
                self.console(f"another builder published {opened.manifest.generation}; using it")
                return opened
            return publisher.publish(make(publisher), current)

    def find_existing(self) -> tuple[Manifest | None, Generation | None]:
        """The published manifest, if any, and the opened store, if it may be used rather than built again."""
        root, plan = self.root, self.plan
        try:
            manifest = read_manifest(root)
        except CacheNotFoundError:
            return None, None
        except (CorruptManifestError, FormatError):
            if self.on_stale == "rebuild":
                return None, None
            raise
        stored = manifest.fingerprint
        wanted = plan.fingerprint(manifest.storage if self.storage == "auto" else self.storage).to_dict()
        if stored != wanted:
            with contextlib.suppress(FormatError):  # of a schema that this version cannot read
                old = Generation(root, manifest)
                wanted, notes = in_stored_words(old, wanted, plan.processor, plan.base_graph)
                self.console.notes(notes if stored == wanted else ())
        if stored == wanted:
            return manifest, open_with_lease(root)
        what = f"the store at {root} was built from something else"
        if self.on_stale == "warn":
            lines = "\n    ".join([f"{what}:", *explain(stored, wanted)])
            warnings.warn(f"{lines}\n  using it all the same (on_stale='warn')", stacklevel=5)
            return manifest, open_with_lease(root)
        fix = "build(..., on_stale='rebuild') or torchcell-cache preprocess ... on_stale=rebuild"
        if self.on_stale == "error":
            insist_same(stored, wanted, what, root, fix)
        return manifest, None


def begun_storage(root: Path, plan: BuildPlan) -> str | None:
    """What ``auto`` chose in an interrupted run: measuring again could choose otherwise and start from nothing."""
    noted = (read_status(_storage_note(root, plan)) or {}).get("storage")
    if noted in STORED_AS:
        return str(noted)
    for storage in STORED_AS:
        prefix = generation_prefix(plan.fingerprint(storage).digest)
        if any(processed_dir(root).glob(f"{prefix}*")):
            return storage
    return None


def settle_storage(root: Path, plan: BuildPlan, choose: Callable[[], str]) -> str:
    """What ``auto`` means for all tasks of an array build: the first to measure writes it down, the others follow."""
    note, settled = _storage_note(root, plan), begun_storage(root, plan)
    if settled is None:
        write_atomic(note, json.dumps({"storage": choose()}).encode(), replace=False)
        settled = begun_storage(root, plan)
    if settled is None:
        fix = f"remove {note}, or pass storage=..."
        raise BuildFailedError(f"{note} does not hold a storage", path=note, fix=fix)
    return settled


def _storage_note(root: Path, plan: BuildPlan) -> Path:
    return processed_dir(root) / f".storage-{sha256_json(plan.parts)[:16]}.json"


def in_stored_words(
    old: Generation, wanted: dict[str, Any], processor: Any, graph: Any
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parts of a fingerprint, in the stored ones' words where they mean the same, and a line if an order was passed over.

    ``processor`` and ``graph`` are what ``wanted`` speaks of.
    """
    stored, out = old.manifest.fingerprint, dict(wanted)
    differs = "processor" in wanted and wanted["processor"] != stored.get("processor")
    if differs and stored.get("processor") == processor_part(processor, by_statement=False):
        out["processor"] = stored["processor"]
    known, digests = stored.get("base_graph", {}), wanted.get("base_graph")
    if graph is None or digests is None or digests == known or set(digests) != set(known):
        return out, ()
    try:
        parts = reordered_parts(old.base_graph, graph)
    except CacheError:  # the stored graph cannot be read: whoever reads it will say so
        parts = []
    if not parts:
        return out, ()
    order = f"base graph: {', '.join(parts)} in another order than in the store (made from a set?)"
    return {**out, "base_graph": known}, (f"{order}; the store's own graph is used",)


def compared(
    old: Generation, source: Source | None = None, processor: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts of a store's fingerprint, and those of a source and a processor, where given, in the store's words."""
    graph, wanted = None if source is None else source.base_graph, dict[str, Any]()
    if source is not None:
        wanted = {"base_graph": {} if graph is None else graph_digests(graph), "source": source_part(source)}
    wanted |= {} if processor is None else {"processor": processor_part(processor)}
    wanted, _ = in_stored_words(old, wanted, processor, graph)
    return {part: old.manifest.fingerprint.get(part, {}) for part in wanted}, wanted


def on_stored_graph(
    source: Source, old: Generation, digests: dict[str, str] | None = None
) -> tuple[Source, tuple[str, ...]]:
    """The source, on the store's own base graph if its own (of ``digests``) is the same but for the order of edges.

    Only a source of ids and measurements moves; other samples may depend on the order themselves. A source whose labels have
    an order of their own in each process gives them in the store's.
    """
    in_order = getattr(source, "in_order", None)
    if callable(in_order):
        source = in_order(old.schema["phenotypes"], old.schema["statistics"])
    graph = source.base_graph
    if graph is None or not isinstance(getattr(source, "table", None), SampleTable):
        return source, ()
    wanted = {"base_graph": digests or graph_digests(graph)}
    _, notes = in_stored_words(old, wanted, None, graph)
    moved = copy.copy(source)
    if notes:
        with contextlib.suppress(AttributeError):  # a property of its own
            moved.base_graph = old.base_graph
            if not len(moved) or (type(moved[0]) is Sample and moved[0].base_graph is old.base_graph):
                return moved, notes
    return source, ()


def insist_same(stored: dict[str, Any], wanted: dict[str, Any], what: str, root: Path, fix: str) -> None:
    """Refuse parts of a fingerprint that differ from the stored ones, naming each."""
    if stored != wanted:
        raise StaleCacheError(f"{what}:\n    " + "\n    ".join(explain(stored, wanted)), path=root, fix=fix)
