"""``verify``: is this store what was built, to the bit?

``quick`` looks at the manifest, at file sizes and at a few pages of each shard, in milliseconds. ``full`` reads every byte
and decodes every record. Neither maps a file with LMDB before its digest has been found right, so damage cannot take the
process down, and neither stops at the first problem.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torchcell_cache.builder.check.records import RecordChecker, outline
from torchcell_cache.builder.check.report import Problem, Report, compare_with_source, file_problem
from torchcell_cache.builder.generation import content_digest
from torchcell_cache.builder.generations import read_or_recover, read_plan, stored_processor
from torchcell_cache.builder.plan import columns_part
from torchcell_cache.builder.shards import COLUMNS_FILE, INCIDENCE_FILE, PLAN_FILE
from torchcell_cache.core.checks import choice, seed_number, truth, whole_number
from torchcell_cache.core.choices import Level
from torchcell_cache.core.progress import Progress
from torchcell_cache.core.ragged import ascends
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import CacheError, CorruptShardError, SettingError
from torchcell_cache.graph.fields import digest_of_parts, graph_digests
from torchcell_cache.graph.files import load_base_graph
from torchcell_cache.graph.removal import Removal
from torchcell_cache.sources.pyg import as_source
from torchcell_cache.sources.table import PerturbationTable
from torchcell_cache.store.attributes import Attributes
from torchcell_cache.store.columns import arrays_to_table, load_columns
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.groups import LAST_KEY
from torchcell_cache.store.lease import keeping
from torchcell_cache.store.manifest import GRAPH_FILES, GROUPED, MANIFEST_NAME, Manifest
from torchcell_cache.store.shard_entry import FileEntry, ShardEntry, read_sidecar, sidecar_path
from torchcell_cache.store.stamps import stamp

__all__ = ["LEVELS", "Problem", "Report", "verify"]

LEVELS = get_args(Level)


def verify(
    root: str | os.PathLike[str],
    level: Level = "quick",
    source: Any = None,
    processor: Any = None,
    num_samples: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Check a store.

    Args:
        root: Root of the store.
        level: ``quick`` (manifest, sizes, page headers, entry counts, first and last keys) or ``full`` (also every
            digest, every record, and whether columns, index, base graph and records agree).
        source: If given, run the processor again on samples of it and compare every field, and one PyG batch.
        processor: The processor; the store's own if ``None`` (somebody's own class must be given).
        num_samples: Samples to compare with the source, drawn at random.
        seed: Seed of the draw.
        progress: Whether to print progress on long work.

    Returns:
        What was found; ``report.ok`` says whether nothing is wrong.

    Raises:
        CacheNotFoundError: If there is no store.
        CorruptManifestError: If its manifest is so damaged that nothing else can be checked.
        SettingError: If an argument has no such value.

    Example:
        >>> report = tc.verify("stores/cell", "full", progress=False)
        >>> report.ok, report.checked["shards"]
        (True, 3)
    """
    choice("level", level, LEVELS)
    num_samples, seed = whole_number("num_samples", num_samples, 0), seed_number(seed)
    progress = truth("progress", progress)
    if processor is not None and source is None:
        raise SettingError("processor= is for comparing with a source", fix="pass source=... too")
    begun = time.perf_counter()
    where = local_path(root)
    with keeping(where, read_or_recover, lambda found: found[0]) as (manifest, damage):
        work = _Verifier(where, manifest, level, progress)
        if damage is not None:
            work.report.add(MANIFEST_NAME, damage)
        work.run()
        if source is not None:
            chosen = min(num_samples, manifest.num_samples)
            given, report = as_source(source), work.report
            with Progress(chosen, 0, None, enabled=progress, what="compare with source") as on_progress:
                compare_with_source(work.generation, given, processor, chosen, seed, report, on_progress)
    return work.report.finish(time.perf_counter() - begun)


class _Verifier(RecordChecker):
    def __init__(self, root: Path, manifest: Manifest, level: str, progress: bool) -> None:
        super().__init__(Generation(root, manifest), Report(str(root), level, manifest.generation))
        self.full, self.progress, self.directory = level == "full", progress, self.generation.directory
        self.sound: set[str] = set()
        self.graph_digest = ""

    def run(self) -> None:
        self._guarded(MANIFEST_NAME, self._own_manifest)
        for entry in self.manifest.files:
            self._guarded(entry.name, partial(self._file, entry))
        for name, check in (
            (PLAN_FILE, self._plan),
            (GRAPH_FILES[1], self._base_graph),
            (COLUMNS_FILE, self._columns),
            (INCIDENCE_FILE, self._incidence),
        ):
            if self.full:
                self._guarded(name, check)
        count, what = self.manifest.num_samples, f"verify {self.report.level}"
        with Progress(count, 0, None, enabled=self.progress, what=what) as on_progress:
            for shard in self.manifest.shards:
                at = shard.index
                self._guarded(shard.file.name, partial(self._file, shard.file, at), at)
                if self.full:
                    self._guarded(sidecar_path("", at).name, partial(self._sidecar, shard), at)
                if shard.file.name in self.sound:
                    self._guarded(shard.file.name, partial(self._shard, shard, on_progress), at)
        if self.full:
            self._guarded(MANIFEST_NAME, self._contents)

    def _guarded(self, name: str, check: Callable[[], None], shard: int | None = None) -> None:
        """Run one check; whatever it raises is a finding."""
        try:
            check()
        except FileNotFoundError as error:
            self.add(name, f"missing ({error.filename})", shard)
        except Exception as error:
            text = str(error) if isinstance(error, CacheError) else f"{type(error).__name__}: {error}"
            self.add(name, text, shard)

    # Files

    def _own_manifest(self) -> None:
        if (self.directory / MANIFEST_NAME).read_bytes() != self.manifest.to_bytes():
            self.add(MANIFEST_NAME, "is not a copy of the published manifest")

    def _file(self, entry: FileEntry, shard: int | None = None) -> None:
        """Size and, at level full, digest; a file that passes is added to ``sound``."""
        path = self.directory / entry.name
        problem = file_problem(path, entry, partial(self.report.count, "bytes") if self.full else None)
        self.report.count("files")
        if problem is not None:
            self.add(entry.name, problem, shard)
            return
        if self.full:
            stamp(path, entry.xxh3)
        self.sound.add(entry.name)

    def _plan(self) -> None:
        if not (self.directory / PLAN_FILE).exists():
            return  # a repaired generation may lack it; only an unfinished build needs it
        plan, manifest = read_plan(self.directory, self.manifest), self.manifest
        if (plan.num_samples, plan.shard_size) != (manifest.num_samples, manifest.shard_size):
            self.add(PLAN_FILE, "is the plan of another store")

    # What all samples share

    def _base_graph(self) -> None:
        if not self.sound.issuperset(GRAPH_FILES):
            return
        self.graph = load_base_graph(self.directory)
        digests = graph_digests(self.graph)
        self.graph_digest = digest_of_parts(digests)
        if digests != self.manifest.fingerprint.get("base_graph"):
            self.add(GRAPH_FILES[0], "holds another base graph than the fingerprint names")

    def _columns(self) -> None:
        if COLUMNS_FILE not in self.sound:
            return
        columns, schema = load_columns(self.directory / COLUMNS_FILE), self.manifest.schema
        count = self.manifest.num_samples
        counts = ("perturbed_count", "value_count", "source_id_length", "unknown_count")
        for name in (*counts, "removed_edges", "y"):
            if name in columns and len(columns[name]) != count:
                self.add(COLUMNS_FILE, f"{name} has {len(columns[name]):,} rows for {count:,} samples")
                return
        self.columns = columns
        self.attributes = Attributes.from_arrays(columns, schema.get("attributes", {}), count).shown()
        if "perturbed" in columns:
            table = arrays_to_table(columns, tuple(schema["phenotypes"]), tuple(schema["statistics"]))
            source, topology = self.manifest.fingerprint.get("source", {}), self.generation.topology
            if not ascends(table.ids, table.ptr):
                raise CorruptShardError("perturbed ids do not ascend within each sample")
            last = int(table.ids.max()) if len(table.ids) else -1
            if topology is not None and last >= topology.num_nodes:
                raise CorruptShardError(f"perturbed id {last} of {topology.num_nodes} nodes")
            if source.get("class") == "PerturbationTable":
                again = PerturbationTable.of_table(self.graph, table, None).identity()
                for name in (name for name in source if source[name] != again.get(name)):
                    raise CorruptShardError(f"{name} is not what the fingerprint names")
            if columns_part(table) != {k: schema[k] for k in ("unknown_names", "origins") if k in schema}:
                self.add(COLUMNS_FILE, "holds other unknown names or origins than the schema says")
            self.table = table

    def _incidence(self) -> None:
        topology = self.generation.topology
        if INCIDENCE_FILE not in self.sound or topology is None:
            return
        path = self.directory / INCIDENCE_FILE
        removal = Removal.load(path, topology)
        if self.graph is not None:
            removal.index.check_graph(self.graph_digest)
            again = stored_processor(self.manifest).build_removal(self.graph, self.graph_digest)
            if again.to_bytes() != path.read_bytes():
                self.add(INCIDENCE_FILE, "is not the index of the stored base graph")
        self.removal = removal

    # Shards

    def _shard(self, entry: ShardEntry, on_progress: Callable[[int], None]) -> None:
        self.report.count("shards")
        found = outline(self.directory / entry.file.name)
        count, wanted = entry.stop - entry.start, (entry.start, entry.stop - 1)
        text = f"holds {found.entries:,} records, samples {found.first} to {found.last}, expected {count:,}, "
        text, good = f"{text}{wanted[0]} to {wanted[1]}", found.entries == count
        if GROUPED in self.manifest.schema:
            wanted, good = (entry.start, LAST_KEY), 2 <= found.entries <= count + 1
            text = f"holds {found.entries:,} groups, samples from {found.first} on, expected those from {entry.start} on"
        if not good or (found.first, found.last) != wanted:
            self.add(entry.file.name, text, entry.index)
        elif self.full:
            self.check_records(entry, on_progress)
        else:
            on_progress(count)

    def _sidecar(self, entry: ShardEntry) -> None:
        found, name = read_sidecar(self.directory, entry.index), sidecar_path("", entry.index).name
        if found is None:
            self.add(name, "is missing", entry.index)
        elif replace(found, stats={}) != replace(entry, stats={}):
            self.add(name, "does not describe the shard that the manifest names", entry.index)

    def _contents(self) -> None:
        """What only holds for the whole: layouts, content digest."""
        manifest, report = self.manifest, self.report
        known = not self.generation.is_structured and report.ok
        if known and set(manifest.schema["layouts"]) != self.layouts_seen:
            report.add(MANIFEST_NAME, "names other record layouts than the records use")
        if self.graph is None and self.generation.has_file(GRAPH_FILES[0]):
            return  # damaged; without it the digest cannot be computed again
        shards = list(manifest.shards)
        again = content_digest(manifest.schema, self.graph_digest, manifest.num_samples, shards)
        if again != manifest.content_digest:
            text = f"content digest {manifest.content_digest}, its contents have {again}"
            report.add(MANIFEST_NAME, text)
