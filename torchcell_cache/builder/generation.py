"""Building one generation: what all samples share, the shards, and the manifest that will publish it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torchcell_cache.builder.generic import GenericMaker, label_column, seeding
from torchcell_cache.builder.plan import BuildPlan, mode_of, write_shared_files
from torchcell_cache.builder.shards import (
    COLUMNS_FILE,
    INCIDENCE_FILE,
    Facts,
    RecordMaker,
    Report,
    ShardPlan,
    StructuredMaker,
    build_shard,
    finished_shards,
    new_generation_name,
)
from torchcell_cache.builder.workers import StopRequest, forked_worker, light_worker, run_here, run_workers
from torchcell_cache.codec.constants import MOST_BYTES, to_text
from torchcell_cache.core.failures import free_bytes, storage_errors
from torchcell_cache.core.files import file_digest, make_dirs_durable, remove_stale_temps, write_atomic
from torchcell_cache.core.fingerprint import sha256_json
from torchcell_cache.core.locks import STATUS_NAME
from torchcell_cache.core.progress import Console, Progress, human_bytes, human_seconds
from torchcell_cache.errors import StorageFullError
from torchcell_cache.store.columns import columns_bytes
from torchcell_cache.store.groups import disk_bytes
from torchcell_cache.store.manifest import (
    GRAPH_FILES,
    GROUPED,
    MANIFEST_NAME,
    Manifest,
    format_of,
    processed_dir,
)
from torchcell_cache.store.shard_entry import FileEntry, ShardEntry, read_sidecar


@cache
def _libraries() -> dict[str, str]:
    """Versions of what makes the files; a look-up takes milliseconds."""
    return {name: version(name) for name in ("torch", "torch_geometric", "lmdb", "numpy", "safetensors")}


@dataclass(eq=False)
class GenerationBuild:
    """The work between the decision to build and the manifest.

    Attributes:
        root: Root of the store.
        plan: What is built.
        shards: What all workers agree on.
        storage: How samples are stored.
        exclusive: Whether nobody else writes to the store.
        console: Prints a line.
        num_workers: Worker processes; 0 builds in this one.
        scratch: Node-local directory to write shards in first.
    """

    root: Path
    plan: BuildPlan
    shards: ShardPlan
    storage: str
    exclusive: bool
    console: Console
    num_workers: int = 0
    scratch: Path | None = None

    def __post_init__(self) -> None:
        name = new_generation_name(self.plan.fingerprint(self.storage).digest, self.shards)
        self.directory = processed_dir(self.root) / name
        self.index_ms, self.has_constants, self.notes = 0.0, True, self.plan.notes

    def run(self, stop: StopRequest) -> Manifest:
        """Build everything that is not there yet and return the manifest, not yet published."""
        begun = time.perf_counter()
        self.prepare()
        built, _ = self.build(range(self.shards.num_shards), stop)
        return self.finish(time.perf_counter() - begun, built, stop)

    def prepare(self, together: bool = False) -> None:
        """Make the directory, remove what the dead left, write what all samples share; ``together`` with other tasks."""
        make_dirs_durable(self.directory)
        self.tidy()
        with storage_errors(self.directory):
            self.write_shared_files(together)

    def write_shared_files(self, together: bool) -> None:
        """Write what all samples share."""
        self.index_ms = write_shared_files(self.plan, self.shards, self.directory, together, self.console)

    def tidy(self) -> None:
        """Remove what killed builders and workers left; from ``scratch``, which others may use, only what the dead left."""
        for place in (self.directory, processed_dir(self.root)):
            remove_stale_temps(place, exclusive=self.exclusive)
        if self.scratch is not None:
            remove_stale_temps(self.scratch)

    def build(
        self, share: Sequence[int], stop: StopRequest, progress: Callable[[int, int], Progress] | None = None
    ) -> tuple[int, int]:
        """Build those shards of ``share`` that are not there yet; returns how many samples and shards that were.

        ``progress`` makes the reporter, from the number of samples and of those done before.
        """
        done = {entry.index: entry for entry in finished_shards(self.directory, self.shards, share)}
        todo = [k for k in share if k not in done]
        if done and todo:
            self.console(f"resuming: {len(done)}/{len(share)} shards complete")
        total = sum(b - a for a, b in map(self.shards.span, share))
        status = processed_dir(self.root) / STATUS_NAME
        begin = progress or partial(Progress, status_path=status, enabled=self.console.enabled)
        on_progress = begin(total, sum(e.stop - e.start for e in done.values()))
        missing = total - on_progress.done

        def report(count: int, size: int) -> None:
            nonlocal missing
            if missing and count:
                self._check_space(missing, size / count)
                missing = 0
            on_progress(count)

        with on_progress:
            self._build(todo, report, stop, len(share))
        self.tidy()
        return on_progress.done - on_progress.initial, len(todo)

    def maker(self) -> RecordMaker:
        """What makes the records."""
        if self.shards.records == "structured":
            return StructuredMaker.open(self.directory, self.shards)
        assert self.plan.source is not None
        mode = mode_of(self.storage, self.shards.schema)
        most = MOST_BYTES // max(self.shards.num_shards, 1) if self.has_constants else 0
        return GenericMaker(self.plan.source, self.plan.processor, mode, self.plan.parts["base_graph"], most)

    def _check_space(self, missing: int, size: float) -> None:
        """Refuse if ``missing`` samples of the ``size`` of the first ones cannot fit; nothing is written yet."""
        per_sample = disk_bytes(size, self.shards.schema.get(GROUPED, 0))
        need, free = int(missing * per_sample * 1.1), free_bytes(self.directory)
        size_of = human_bytes(missing * per_sample)
        self.console(f"estimate: {size_of} for {missing:,} samples, {human_bytes(free)} free")
        if need > free:
            what = (
                f"the build needs about {human_bytes(need)}, {human_bytes(free)} are free at {self.directory}"
            )
            fix = "free space, choose another root, or a smaller storage (perturbation)"
            raise StorageFullError(what, path=self.directory, fix=fix)

    def _build(self, todo: list[int], report: Report, stop: StopRequest, total: int) -> None:
        workers = self.num_workers if len(todo) > 1 else 0
        if self.shards.records == "structured" and workers:
            start = partial(light_worker, self.directory, self.scratch)
            run_workers(todo, start, workers, report, stop, total)
            return
        maker = self.maker()
        shard_of = partial(build_shard, self.directory, self.shards, scratch=self.scratch)
        if not workers:
            run_here(todo, partial(shard_of, maker), report, stop, total)
            return
        seed = seeding()

        def apart(shard: int, report: Report) -> None:
            seed(shard)
            shard_of(maker.fresh() if isinstance(maker, GenericMaker) else maker, shard, report)

        run_workers(todo, partial(forked_worker, apart), workers, report, stop, total)

    def finish(self, seconds: float, built: int, stop: StopRequest | None = None) -> Manifest:
        """The manifest of a generation whose shards are all there; ``built`` samples took ``seconds``, for information.

        Raises:
            BuildInterruptedError: If a signal came too late to stop a shard: it is obeyed all the same.
        """
        count = self.shards.num_shards
        entries = [read_sidecar(self.directory, k) for k in range(count)]
        shards = [entry for entry in entries if entry is not None]
        schema = dict(self.shards.schema)
        if self.shards.records == "generic":
            facts = Facts.joined([Facts.from_json(entry.stats) for entry in shards])
            schema["layouts"] = dict(facts.layouts)
            schema |= {"constants": to_text(facts.constants)} if facts.constants else {}
            if self.plan.table is None:
                labels, found = label_column([facts.labels]), facts.attributes
                if found is not None and GROUPED in schema:  # the first version of the format has none
                    found = found.kept([*labels])
                    schema["attributes"], labels = found.schema(), labels | found.arrays()
                    self.notes = tuple(dict.fromkeys([*self.notes, *found.notes()]))
                    for line in found.notes():
                        self.console(line)
                write_atomic(self.directory / COLUMNS_FILE, columns_bytes(labels))
            shards = [replace(entry, stats={}) for entry in shards]
        names = [*GRAPH_FILES] if self.plan.base_graph is not None else []
        names += [INCIDENCE_FILE] if (self.directory / INCIDENCE_FILE).exists() else []
        files = tuple(FileEntry(n, *file_digest(self.directory / n)) for n in (*names, COLUMNS_FILE))
        manifest = Manifest(
            generation=self.directory.name,
            num_samples=self.shards.num_samples,
            shard_size=self.shards.shard_size,
            storage=self.storage,
            schema=schema,
            fingerprint=self.plan.fingerprint(self.storage).to_dict(),
            content_digest=content_digest(schema, self.plan.graph_digest, self.shards.num_samples, shards),
            files=files,
            shards=tuple(shards),
            created={
                "libraries": dict(_libraries()),
                "python": platform.python_version(),
                "host": platform.node(),
                "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
                "seconds": round(seconds, 3),
                "index_ms": round(self.index_ms, 3),
                "notes": list(self.notes),
            },
            format_version=format_of(schema),
        )
        write_atomic(self.directory / MANIFEST_NAME, manifest.to_bytes())
        self._summary(manifest, seconds, built)
        if stop is not None and stop.signal is not None:
            stop.raise_interrupted(count, count)
        return manifest

    def _summary(self, manifest: Manifest, seconds: float, built: int) -> None:
        records = sum(s.file.size for s in manifest.shards)
        total = records + sum(f.size for f in manifest.files)
        count = max(manifest.num_samples, 1)
        self.console(
            f"{manifest.num_samples:,} samples as '{self.storage}' in {human_seconds(seconds)} "
            f"({built / max(seconds, 1e-9):,.0f}/s), {human_bytes(total)} in all, {records / count:,.1f} bytes per sample "
            f"in {len(manifest.shards)} shards"
        )


def content_digest(
    schema: dict[str, Any], graph_digest: str, num_samples: int, shards: list[ShardEntry]
) -> str:
    """Digest of what is stored: schema, base graph and every record under its index, in any order of work."""
    schema = {name: part for name, part in schema.items() if name not in ("constants", "attributes", GROUPED)}
    sums = [f"{sum(entry.sums[k] for entry in shards) % (1 << 64):016x}" for k in (0, 1)]
    return sha256_json({"schema": schema, "base_graph": graph_digest, "samples": num_samples, "sums": sums})
