"""Building one shard: records, file, digest, side file. Numpy only for structured stores, so that a worker starts fast."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from torchcell_cache.codec.deletions import StructuredSchema, encode
from torchcell_cache.codec.delta_code import encode_gaps_ragged
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES, seal
from torchcell_cache.core.files import (
    file_digest,
    fsync_dir,
    fsync_file,
    replace_file,
    storage_errors,
    temp_path,
)
from torchcell_cache.core.fingerprint import sha256_json
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import FormatError
from torchcell_cache.graph.removal import Removal
from torchcell_cache.graph.topology import Topology
from torchcell_cache.store.columns import arrays_to_table, load_columns
from torchcell_cache.store.manifest import (
    FileEntry,
    ShardEntry,
    write_sidecar,
)
from torchcell_cache.store.records import write_shard

CHUNK = 512
"""Samples encoded together: enough to amortise numpy calls, few enough to stay in the processor's cache."""

COLUMNS_FILE = "columns.safetensors"
INCIDENCE_FILE = "incidence.safetensors"
PLAN_FILE = "build.json"

Report = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What every worker must agree on; kept as ``build.json`` in the generation being built.

    Attributes:
        num_samples: Samples in the store.
        shard_size: Samples per shard.
        seed: 64-bit seed of the records' checksums, from the fingerprint.
        records: ``structured`` or ``generic``.
        schema: The store's schema, as in the manifest.
        max_record_bytes: Largest record accepted.
        map_bytes: First guess of a shard's map size.
    """

    num_samples: int
    shard_size: int
    seed: int
    records: str
    schema: dict[str, Any]
    max_record_bytes: int = MAX_RECORD_BYTES
    map_bytes: int = 64 << 20

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_samples // self.shard_size)

    def span(self, shard: int) -> tuple[int, int]:
        """First and one past the last sample of a shard."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_samples)

    def to_bytes(self) -> bytes:
        """JSON form."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardPlan:
        """Read the JSON form back.

        Raises:
            FormatError: If it is not one.
        """
        try:
            return cls(**json.loads(data.decode()))
        except (ValueError, TypeError) as error:
            raise FormatError(f"the build plan is malformed: {error}") from None


class RecordMaker(Protocol):
    """Makes the record bodies of consecutive samples."""

    def bodies(self, start: int, stop: int) -> Iterator[list[bytes]]:
        """Bodies of samples ``start`` to ``stop``, chunk by chunk."""

    def extras(self, start: int, stop: int) -> dict[str, Any]:
        """Facts gathered on the way, for the side file: ``layouts`` and ``stats``."""


class StructuredMaker:
    """Bodies straight from the stored columns and the incidence index."""

    def __init__(self, schema: StructuredSchema, table: SampleTable, removal: Removal | None) -> None:
        self.schema, self.table, self.removal = schema, table, removal

    @classmethod
    def open(cls, directory: Path, plan: ShardPlan) -> StructuredMaker:
        """From the files of the generation being built, mapped."""
        schema = StructuredSchema.from_dict(plan.schema["structured"])
        names = plan.schema["phenotypes"], plan.schema["statistics"]
        table = arrays_to_table(load_columns(directory / COLUMNS_FILE), tuple(names[0]), tuple(names[1]))
        topology = Topology.from_dict(plan.schema["topology"])
        removal = Removal.load(directory / INCIDENCE_FILE, topology) if schema.has_removed else None
        return cls(schema, table, removal)

    def bodies(self, start: int, stop: int) -> Iterator[list[bytes]]:
        """Bodies of samples ``start`` to ``stop``."""
        for chunk in self.table.slice(start, stop).chunks(CHUNK):
            yield self._encoded(chunk)

    def bodies_of(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> list[bytes]:
        """Bodies of any samples, ``rows`` being ``[n] int64``."""
        return self._encoded(self.table.take(rows))

    def _encoded(self, table: SampleTable) -> list[bytes]:
        if self.removal is None:
            return encode(self.schema, table)
        positions, ptr = self.removal.removed(table.ids, table.ptr)
        return encode(self.schema, table, *encode_gaps_ragged(positions, ptr))

    def extras(self, start: int, stop: int) -> dict[str, Any]:
        """Nothing: the columns hold it all already."""
        return {"layouts": {}, "stats": {}}


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.lmdb"


def build_shard(
    directory: Path,
    plan: ShardPlan,
    maker: RecordMaker,
    shard: int,
    report: Report,
    scratch: Path | None = None,
    measure: Callable[[Sequence[bytes]], None] | None = None,
) -> ShardEntry:
    """Build, digest and publish one shard; its side file is the shard's commit.

    Args:
        directory: The generation being built.
        plan: The build's plan.
        maker: Makes the record bodies.
        shard: Number of the shard.
        report: Called with the number of samples done since the last call.
        scratch: Node-local directory to write in first; LMDB files are never written on network file systems.
        measure: Called with the first bodies before anything is written.

    Raises:
        StorageError: If the file system refuses.
        CacheError: Whatever the source or processor raised, with the sample named.
    """
    start, stop = plan.span(shard)
    name = shard_name(shard)
    target = directory / name
    temporary = temp_path((scratch or directory) / name)
    sums = [0, 0]

    def chunks() -> Iterator[Sequence[bytes]]:
        at = start
        for bodies in maker.bodies(start, stop):
            if measure is not None and at == start:
                measure(bodies)
            records, (low, high) = seal(bodies, at, plan.seed, plan.max_record_bytes)
            sums[0] = (sums[0] + low) % (1 << 64)
            sums[1] = (sums[1] + high) % (1 << 64)
            at += len(bodies)
            yield records
            report(len(bodies))

    try:
        with storage_errors(target):
            write_shard(temporary, start, chunks(), plan.map_bytes)
            if scratch is not None:
                temporary = _carry_over(temporary, temp_path(target))
            size, sha256, xxh3 = file_digest(temporary)
            temporary.chmod(0o444)
            fsync_file(temporary)
            replace_file(temporary, target)
            fsync_dir(directory)
    finally:
        with contextlib.suppress(OSError):  # must not hide the error that brought us here
            temporary.unlink(missing_ok=True)
    extras = maker.extras(start, stop)
    entry = ShardEntry(
        index=shard,
        start=start,
        stop=stop,
        file=FileEntry(name=name, size=size, sha256=sha256, xxh3=xxh3),
        seed=plan.seed,
        sums=(sums[0], sums[1]),
        layouts=tuple(sorted(extras["layouts"])),
        stats=extras["stats"],
    )
    write_sidecar(directory, entry)
    return entry


def _carry_over(scratch_file: Path, target: Path) -> Path:
    """Copy a finished file from scratch to the store's file system, then remove it from scratch."""
    with scratch_file.open("rb") as source, target.open("wb") as sink:
        while block := source.read(1 << 22):
            sink.write(block)
    scratch_file.unlink()
    return target


def content_sums(entries: Sequence[ShardEntry]) -> tuple[int, int]:
    """Sums of a whole store from those of its shards."""
    low = sum(entry.sums[0] for entry in entries) % (1 << 64)
    high = sum(entry.sums[1] for entry in entries) % (1 << 64)
    return low, high


def new_generation_name(fingerprint: str, plan: ShardPlan) -> str:
    """Directory of a build: the same fingerprint and plan resume in the same place, any other starts elsewhere."""
    return f"{generation_prefix(fingerprint)}{sha256_json({'plan': plan.to_bytes().decode()})[:8]}"


def generation_prefix(fingerprint: str) -> str:
    """What the names of all builds of a fingerprint begin with, whatever their plan."""
    return f"gen-{fingerprint[:16]}-"
