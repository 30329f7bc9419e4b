"""Building one generation: what all samples share, the shards, and the manifest that will publish it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torchcell_cache.builder.generic import GenericMaker, label_columns
from torchcell_cache.builder.plan import BuildPlan
from torchcell_cache.builder.pool import StopRequest, forked_worker, light_worker, run_here, run_workers
from torchcell_cache.builder.progress import Progress, human_bytes, human_seconds
from torchcell_cache.builder.resume import finished_shards, tidy
from torchcell_cache.builder.shards import (
    COLUMNS_FILE,
    INCIDENCE_FILE,
    PLAN_FILE,
    RecordMaker,
    ShardPlan,
    StructuredMaker,
    build_shard,
    content_sums,
)
from torchcell_cache.columns import Arrays, columns_bytes, count_removed_edges, table_to_arrays
from torchcell_cache.durable.atomic import (
    file_digest,
    free_bytes,
    fsync_dir,
    fsync_file,
    make_dirs_durable,
    replace_file,
    storage_errors,
    temp_path,
    write_atomic,
)
from torchcell_cache.durable.lock import STATUS_NAME
from torchcell_cache.errors import CacheError, StorageFullError
from torchcell_cache.fingerprint import sha256_json
from torchcell_cache.generation import GENERATION_MANIFEST
from torchcell_cache.graph.io import save_base_graph
from torchcell_cache.manifest import (
    FileEntry,
    Manifest,
    ShardEntry,
    processed_dir,
    read_sidecar,
)

_PROBE = 64


def new_generation_name(fingerprint: str, plan: ShardPlan) -> str:
    """Directory of a build: the same fingerprint and plan resume in the same place, any other starts elsewhere."""
    return f"{generation_prefix(fingerprint)}{sha256_json({'plan': plan.to_bytes().decode()})[:8]}"


def generation_prefix(fingerprint: str) -> str:
    """What the names of all builds of a fingerprint begin with, whatever their plan."""
    return f"gen-{fingerprint[:16]}-"


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
        make_dirs_durable(self.directory)
        tidy(self.root, self.directory, scratch, self.exclusive)
        with storage_errors(self.directory):
            self._write_shared()
        done = {entry.index: entry for entry in finished_shards(self.directory, self.shards)}
        todo = [k for k in range(self.shards.num_shards) if k not in done]
        if done and todo:
            self.say(f"resuming: {len(done)}/{self.shards.num_shards} shards complete")
        maker = self._maker()
        self._check_space(maker, todo)
        samples_done = sum(e.stop - e.start for e in done.values())
        status = processed_dir(self.root) / STATUS_NAME
        report = Progress(self.shards.num_samples, samples_done, status, enabled=progress)
        state = "failed"
        try:
            self._build(todo, maker, num_workers, scratch, report, stop)
            state = "complete"
        except CacheError as error:
            state = "interrupted" if error.code == 75 else "failed"
            raise
        finally:
            report.close(state)
        tidy(self.root, self.directory, scratch, self.exclusive)
        return self._finish(maker, time.perf_counter() - begun, report.done - samples_done)

    # What all samples share

    def _write_shared(self) -> None:
        graph = self.plan.source.base_graph
        if graph is not None:
            self._write_base_graph(graph)
        columns: Arrays = {}
        if self.plan.table is not None and self.plan.topology is not None:
            columns = table_to_arrays(self.plan.table, self.plan.topology.num_nodes)
            columns["removed_edges"] = _smallest(
                count_removed_edges(graph, self.plan.topology, self.plan.table)
            )
            removal = self.plan.processor.build_removal(graph, self.plan.graph_digest)
            index = removal.index
            self.index_ms = index.build_ms
            edges, types = index.num_edges, len(index.edge_types)
            self.say(f"incidence index: {index.build_ms:.0f} ms for {edges:,} edges of {types} edge types")
            write_atomic(self.directory / INCIDENCE_FILE, removal.to_bytes())
        elif self.plan.table is not None:
            columns = table_to_arrays(self.plan.table, int(self.plan.table.ids.max(initial=0)) + 1)
        write_atomic(self.directory / COLUMNS_FILE, columns_bytes(columns))
        write_atomic(self.directory / PLAN_FILE, self.shards.to_bytes())

    def _write_base_graph(self, graph: Any) -> None:
        """Two files by a library that writes plainly: in a directory of their own first, then renamed."""
        place = temp_path(self.directory / "base_graph")
        place.mkdir()
        try:
            save_base_graph(graph, place)
            for name in ("base_graph.safetensors", "base_graph.json"):
                fsync_file(place / name)
                (place / name).chmod(0o444)
                replace_file(place / name, self.directory / name)
            fsync_dir(self.directory)
        finally:
            for leftover in place.iterdir():
                leftover.unlink()
            place.rmdir()

    def _maker(self) -> RecordMaker:
        if self.shards.records == "structured":
            return StructuredMaker.open(self.directory, self.shards)
        return GenericMaker(
            self.plan.source, self.plan.processor, "full" if self.storage == "full" else "delta"
        )

    # Shards

    def _check_space(self, maker: RecordMaker, todo: list[int]) -> None:
        """Estimate from the first samples and refuse before anything is written if it cannot fit."""
        if not todo:
            return
        start, stop = self.shards.span(todo[0])
        first = next(maker.bodies(start, min(start + _PROBE, stop)), [])
        size = sum(map(len, first)) / max(len(first), 1)
        per_sample = size + 30 if size < 2000 else -(-(size + 24) // 4096) * 4096
        missing = sum(b - a for a, b in map(self.shards.span, todo))
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
    ) -> None:
        def one(shard: int, note: Callable[[int], None]) -> None:
            build_shard(self.directory, self.shards, maker, shard, note, scratch)

        total = self.shards.num_shards
        if num_workers == 0 or len(todo) < 2:
            run_here(todo, one, report, stop, total)
        elif self.shards.records == "structured":
            run_workers(todo, lambda: light_worker(self.directory, scratch), num_workers, report, stop, total)
        else:
            run_workers(todo, lambda: forked_worker(one), num_workers, report, stop, total)

    # The manifest

    def _finish(self, maker: RecordMaker, seconds: float, built: int) -> Manifest:
        entries = [read_sidecar(self.directory, k) for k in range(self.shards.num_shards)]
        shards = [entry for entry in entries if entry is not None]
        schema = dict(self.shards.schema)
        if self.shards.records == "generic":
            schema["layouts"] = {k: v for e in shards for k, v in e.stats["layouts"].items()}
            labels = label_columns([e.stats for e in shards])
            if labels and self.plan.table is None:
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


def _smallest(values: Any) -> Any:
    from torchcell_cache.columns import smallest_unsigned

    return values.astype(smallest_unsigned(int(values.max(initial=0))))


def _without_stats(entry: ShardEntry) -> ShardEntry:
    from dataclasses import replace

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
