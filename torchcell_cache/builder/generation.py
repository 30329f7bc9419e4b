"""Building one generation: what all samples share, the shards, and the manifest that will publish it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torchcell_cache.builder.chance import seeding
from torchcell_cache.builder.generic import GenericMaker, label_columns
from torchcell_cache.builder.plan import BuildPlan
from torchcell_cache.builder.resume import finished_shards, tidy
from torchcell_cache.builder.shards import (
    COLUMNS_FILE,
    INCIDENCE_FILE,
    RecordMaker,
    ShardPlan,
    StructuredMaker,
    build_shard,
    content_sums,
)
from torchcell_cache.builder.shared_files import SharedFiles
from torchcell_cache.builder.workers import StopRequest, forked_worker, light_worker, run_here, run_workers
from torchcell_cache.core.files import (
    file_digest,
    free_bytes,
    make_dirs_durable,
    storage_errors,
    write_atomic,
)
from torchcell_cache.core.fingerprint import sha256_json
from torchcell_cache.core.locks import STATUS_NAME
from torchcell_cache.core.progress import Progress, human_bytes, human_seconds
from torchcell_cache.errors import CacheError, StorageFullError
from torchcell_cache.store.columns import columns_bytes
from torchcell_cache.store.generation import GENERATION_MANIFEST
from torchcell_cache.store.manifest import (
    FileEntry,
    Manifest,
    ShardEntry,
    format_of,
    processed_dir,
    read_sidecar,
)

_PROBE = 64


class GenerationBuild:
    """The work between the decision to build and the manifest.

    Args:
        root: Root of the store.
        name: The generation's directory name.
        plan: Source, processor and fingerprint.
        shards: The plan all workers share.
        storage: The storage built.
        exclusive: Whether the builder lock keeps others out.
        say: Prints a line.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        plan: BuildPlan,
        shards: ShardPlan,
        storage: str,
        exclusive: bool,
        say: Callable[[str], None],
    ) -> None:
        self.root, self.plan, self.shards, self.storage, self.say = root, plan, shards, storage, say
        self.directory = processed_dir(root) / name
        self.exclusive = exclusive
        self.index_ms = 0.0

    def run(self, num_workers: int, scratch: Path | None, stop: StopRequest, progress: bool) -> Manifest:
        """Build everything that is not there yet and return the manifest, not yet published."""
        begun = time.perf_counter()
        self.prepare(scratch, together=False)
        status = processed_dir(self.root) / STATUS_NAME
        report = partial(Progress, status_path=status, enabled=progress)
        built, _ = self.build(range(self.shards.num_shards), num_workers, scratch, stop, report)
        return self.finish(time.perf_counter() - begun, built)

    def prepare(self, scratch: Path | None, together: bool) -> None:
        """Make the directory, remove what the dead left, write what all samples share.

        Args:
            scratch: Node-local directory, or ``None``.
            together: Whether several tasks do this at once.
        """
        make_dirs_durable(self.directory)
        tidy(self.root, self.directory, scratch, self.exclusive)
        with storage_errors(self.directory):
            files = SharedFiles(self.plan, self.shards, self.directory, together, self.say)
            files.write()
            self.index_ms = files.index_ms

    def build(
        self,
        share: Sequence[int],
        num_workers: int,
        scratch: Path | None,
        stop: StopRequest,
        progress: Callable[[int, int], Progress],
    ) -> tuple[int, int]:
        """Build those shards of ``share`` that are not there yet.

        Args:
            share: Numbers of shards.
            num_workers: Worker processes; 0 builds in this one.
            scratch: Node-local directory to write in first, or ``None``.
            stop: Notes signals.
            progress: Makes the reporter, from the number of samples and of those done before.

        Returns:
            Samples and shards built now.
        """
        done = {entry.index: entry for entry in finished_shards(self.directory, self.shards, share)}
        todo = [k for k in share if k not in done]
        if done and todo:
            self.say(f"resuming: {len(done)}/{len(share)} shards complete")
        maker = self.maker()
        space = partial(self._check_space, sum(b - a for a, b in map(self.shards.span, todo)))
        total = sum(b - a for a, b in map(self.shards.span, share))
        report = progress(total, sum(e.stop - e.start for e in done.values()))
        state = "failed"
        try:
            self._build(todo, maker, num_workers, scratch, report, stop, len(share), space)
            state = "complete"
        except CacheError as error:
            state = "interrupted" if error.code == 75 else "failed"
            raise
        finally:
            report.close(state)
        tidy(self.root, self.directory, scratch, self.exclusive)
        return report.done - report.initial, len(todo)

    def maker(self) -> RecordMaker:
        """What makes the records."""
        if self.shards.records == "structured":
            return StructuredMaker.open(self.directory, self.shards)
        mode = "full" if self.storage == "full" else "delta"
        return GenericMaker(self.plan.source, self.plan.processor, mode, self.plan.parts["base_graph"])

    # Shards

    def _check_space(self, missing: int, bodies: Sequence[bytes]) -> None:
        """Estimate from the first bodies of ``missing`` samples and refuse if the others cannot fit."""
        size = sum(map(len, bodies)) / max(len(bodies), 1)
        per_sample = size + 30 if size < 2000 else -(-(size + 24) // 4096) * 4096
        need, free = int(missing * per_sample * 1.1), free_bytes(self.directory)
        self.say(
            f"estimate: {human_bytes(missing * per_sample)} for {missing:,} samples, {human_bytes(free)} free"
        )
        if need > free:
            raise StorageFullError(
                f"the build needs about {human_bytes(need)}, {human_bytes(free)} are free at {self.directory}",
                path=self.directory,
                fix="free space, choose another root, or a smaller storage (perturbation)",
            )

    def _build(
        self,
        todo: list[int],
        maker: RecordMaker,
        num_workers: int,
        scratch: Path | None,
        report: Progress,
        stop: StopRequest,
        total: int,
        space: Callable[[Sequence[bytes]], None],
    ) -> None:
        structured = self.shards.records == "structured"
        if structured and todo:  # quick to make twice, and its workers are light
            start, end = self.shards.span(todo[0])
            space(next(maker.bodies(start, min(start + _PROBE, end)), []))

        def one(shard: int, note: Callable[[int], None]) -> None:
            measure = space if shard == todo[0] and not structured else None
            build_shard(self.directory, self.shards, maker, shard, note, scratch, measure)

        if num_workers == 0 or len(todo) < 2:
            run_here(todo, one, report, stop, total)
        elif structured:
            run_workers(todo, lambda: light_worker(self.directory, scratch), num_workers, report, stop, total)
        else:
            seed = seeding()

            def apart(shard: int, note: Callable[[int], None]) -> None:
                seed(shard)
                one(shard, note)

            run_workers(todo, lambda: forked_worker(apart), num_workers, report, stop, total)

    # The manifest

    def finish(self, seconds: float, built: int) -> Manifest:
        """The manifest of a generation whose shards are all there, not yet published.

        Args:
            seconds: How long the build took, for information.
            built: Samples built in that time.
        """
        entries = [read_sidecar(self.directory, k) for k in range(self.shards.num_shards)]
        shards = [entry for entry in entries if entry is not None]
        schema = dict(self.shards.schema)
        if self.shards.records == "generic":
            schema["layouts"] = {k: v for e in shards for k, v in e.stats["layouts"].items()}
            if self.plan.table is None:
                labels = label_columns([e.stats for e in shards])
                write_atomic(self.directory / COLUMNS_FILE, columns_bytes(labels))
            shards = [_without_stats(entry) for entry in shards]
        names = (
            ["base_graph.safetensors", "base_graph.json"] if self.plan.source.base_graph is not None else []
        )
        names += [INCIDENCE_FILE] if (self.directory / INCIDENCE_FILE).exists() else []
        files = []
        for name in (*names, COLUMNS_FILE):
            size, sha256, xxh3 = file_digest(self.directory / name)
            files.append(FileEntry(name=name, size=size, sha256=sha256, xxh3=xxh3))
        manifest = Manifest(
            generation=self.directory.name,
            num_samples=self.shards.num_samples,
            shard_size=self.shards.shard_size,
            storage=self.storage,
            schema=schema,
            fingerprint=self.plan.fingerprint(self.storage).to_dict(),
            content_digest=content_digest(schema, self.plan.graph_digest, self.shards.num_samples, shards),
            files=tuple(files),
            shards=tuple(shards),
            created=self._created(seconds),
            format_version=format_of(schema),
        )
        write_atomic(self.directory / GENERATION_MANIFEST, manifest.to_bytes())
        self._summary(manifest, seconds, built)
        return manifest

    def _created(self, seconds: float) -> dict[str, Any]:
        names = ("torch", "torch_geometric", "lmdb", "numpy", "safetensors")
        return {
            "libraries": {name: version(name) for name in names},
            "python": platform.python_version(),
            "host": platform.node(),
            "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
            "seconds": round(seconds, 3),
            "index_ms": round(self.index_ms, 3),
            "notes": list(self.plan.notes),
        }

    def _summary(self, manifest: Manifest, seconds: float, built: int) -> None:
        records = sum(s.file.size for s in manifest.shards)
        total = records + sum(f.size for f in manifest.files)
        count = max(manifest.num_samples, 1)
        self.say(
            f"{manifest.num_samples:,} samples as '{self.storage}' in {human_seconds(seconds)} "
            f"({built / max(seconds, 1e-9):,.0f}/s), {human_bytes(total)} in all, {records / count:,.1f} bytes per sample "
            f"in {len(manifest.shards)} shards"
        )


def _without_stats(entry: ShardEntry) -> ShardEntry:
    return replace(entry, stats={})


def content_digest(
    schema: dict[str, Any], graph_digest: str, num_samples: int, shards: list[ShardEntry]
) -> str:
    """Digest of what is stored: schema, base graph and every record under its index, in any order of work."""
    low, high = content_sums(shards)
    return sha256_json(
        {
            "schema": schema,
            "base_graph": graph_digest,
            "samples": num_samples,
            "sums": [f"{low:016x}", f"{high:016x}"],
        }
    )
