"""Building one shard: records, file, digest, sidecar. Numpy only for structured stores, so that a worker starts fast."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.constants import expanded, from_text, to_text
from torchcell_cache.codec.deletions import StructuredSchema, encode
from torchcell_cache.codec.delta_code import encode_gaps_ragged
from torchcell_cache.codec.envelope import MAX_RECORD_BYTES, digest_sums, seal
from torchcell_cache.core.files import file_digest, written
from torchcell_cache.core.fingerprint import sha256_json
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import CacheError, FormatError
from torchcell_cache.graph.removal import Removal
from torchcell_cache.graph.topology import Topology
from torchcell_cache.store.attributes import Attributes
from torchcell_cache.store.columns import arrays_to_table, load_columns
from torchcell_cache.store.manifest import GROUPED
from torchcell_cache.store.records import write_shard
from torchcell_cache.store.shard_entry import (
    FileEntry,
    ShardEntry,
    read_sidecar,
    shard_name,
    sidecar_path,
    write_sidecar,
)
from torchcell_cache.store.stamps import is_whole

CHUNK = 512
"""Samples encoded together: enough to amortise numpy calls, few enough to stay in the processor's cache."""

COLUMNS_FILE = "columns.safetensors"
INCIDENCE_FILE = "incidence.safetensors"
PLAN_FILE = "build.json"

Report = Callable[[int, int], None]
"""Called with the number of samples made since the last call and the bytes of their records."""
Labels = npt.NDArray[Any] | None


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


@dataclass(slots=True)
class Facts:
    """What is said of generic records beside their bytes, and goes into their shard's sidecar.

    Attributes:
        layouts: Layouts they use, by id in hexadecimal.
        labels: Their labels ``y``, ``[n, ...]``, where each has one of the same kind.
        constants: Constants they may refer to.
        attributes: Their texts and single numbers, if they are to be columns.
    """

    layouts: Mapping[str, Any] = field(default_factory=dict)
    labels: Labels = None
    constants: Mapping[int, bytes] = field(default_factory=dict)
    attributes: Attributes | None = None

    @classmethod
    def joined(cls, parts: Sequence[Facts]) -> Facts:
        """Of records one behind the other."""
        layouts = {name: layout for part in parts for name, layout in part.layouts.items()}
        constants = {key: value for part in parts for key, value in part.constants.items()}
        labels, said = [part.labels for part in parts], [part.attributes for part in parts]
        return cls(layouts, joined_labels(labels), constants, Attributes.joined(said))

    def take(self, rows: Int64Array) -> Facts:
        """Of some of the records."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, labels=labels, attributes=self.attributes and self.attributes.take(rows))

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        y, said = self.labels, self.attributes
        stats: dict[str, Any] = {"layouts": dict(sorted(self.layouts.items()))}
        stats |= {"constants": to_text(self.constants)} if self.constants else {}
        stats |= {} if said is None else {"attributes": said.to_json()}
        if y is not None:
            stats["y"] = {"dtype": y.dtype.str, "shape": list(y.shape), "hex": y.tobytes().hex()}
        return stats

    @classmethod
    def from_json(cls, stats: Mapping[str, Any]) -> Facts:
        """Inverse of ``to_json``."""
        y, labels = stats.get("y"), None
        if y is not None:
            labels = np.frombuffer(bytes.fromhex(y["hex"]), np.dtype(y["dtype"])).reshape(y["shape"])
        said = Attributes.from_json(stats.get("attributes"))
        return cls(stats.get("layouts", {}), labels, from_text(stats.get("constants", {})), said)


class Chunk(NamedTuple):
    """Bodies of the records of consecutive samples, and what is said of them."""

    bodies: list[bytes]
    facts: Facts = Facts()


class RecordMaker(Protocol):
    """Makes the records of consecutive samples."""

    def chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        """Records of samples ``start`` to ``stop``."""


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

    def chunks(self, start: int, stop: int) -> Iterator[Chunk]:
        """Records of samples ``start`` to ``stop``."""
        for part in self.table.slice(start, stop).chunks(CHUNK):
            yield Chunk(self._encoded(part))

    def bodies(self, rows: Int64Array) -> list[bytes]:
        """Bodies of any samples, ``rows`` being ``[n] int64``."""
        return self._encoded(self.table.take(rows))

    def _encoded(self, table: SampleTable) -> list[bytes]:
        if self.removal is None:
            return encode(self.schema, table)
        positions, ptr = self.removal.removed(table.ids, table.ptr)
        return encode(self.schema, table, *encode_gaps_ragged(positions, ptr))


def build_shard(
    directory: Path,
    plan: ShardPlan,
    maker: RecordMaker,
    shard: int,
    report: Report,
    scratch: Path | None = None,
) -> ShardEntry:
    """Build, digest and publish one shard; its sidecar is the shard's commit.

    LMDB files are never written on network file systems, hence ``scratch``, a node-local directory to write in first.

    Raises:
        StorageError: If the file system refuses.
        CacheError: Whatever the source or processor raised, with the sample named.
    """
    start, stop = plan.span(shard)
    sums, facts = [0, 0], list[Facts]()

    def records() -> Iterator[Sequence[bytes]]:
        at = start
        for bodies, said in maker.chunks(start, stop):
            report(len(bodies), sum(map(len, bodies)))
            sealed, parts = seal(bodies, at, plan.seed, plan.max_record_bytes)
            if said.constants:
                whole = (expanded(body, said.constants) for body in bodies)
                parts = digest_sums(whole, range(at, at + len(sealed)))
            sums[:] = ((a + b) % (1 << 64) for a, b in zip(sums, parts, strict=True))
            at += len(sealed)
            facts.append(said)
            yield sealed

    with written(directory / shard_name(shard), scratch) as temporary:
        write_shard(temporary, start, records(), plan.map_bytes, plan.schema.get(GROUPED, 0))
        file = FileEntry(shard_name(shard), *file_digest(temporary))
    known, low_high = Facts.joined(facts), (sums[0], sums[1])
    stats = known.to_json() if plan.records == "generic" else {}
    entry = ShardEntry(shard, start, stop, file, plan.seed, low_high, tuple(sorted(known.layouts)), stats)
    write_sidecar(directory, entry)
    return entry


def joined_labels(parts: Sequence[Labels]) -> Labels:
    """Labels one behind the other, ``None`` unless all are there and of one kind."""
    there = [part for part in parts if part is not None]
    kinds = {(part.dtype, part.shape[1:]) for part in there}
    return np.concatenate(there) if len(there) == len(parts) and len(kinds) == 1 else None


def own_sidecar(directory: Path, entry: ShardEntry) -> ShardEntry | None:
    """A shard as its own sidecar has it, which knows more than the manifest; ``None`` if it is damaged or another's."""
    try:
        found = read_sidecar(directory, entry.index)
    except (CacheError, OSError):
        return None
    return found if found is not None and replace(found, stats={}) == replace(entry, stats={}) else None


def finished_shards(directory: Path, plan: ShardPlan, share: Sequence[int]) -> list[ShardEntry]:
    """Shards of an earlier run that are whole, their digests checked; anything doubtful is built again."""
    whole = []
    for shard in share:
        entry = None
        with contextlib.suppress(OSError):  # a file that cannot be read is replaced
            try:
                entry = read_sidecar(directory, shard)
            except CacheError:
                sidecar_path(directory, shard).unlink(missing_ok=True)
        if entry is not None and (entry.start, entry.stop, entry.seed) == (*plan.span(shard), plan.seed):
            whole += [entry] if is_whole(directory / shard_name(shard), entry.file) else []
    return whole


def new_generation_name(fingerprint: str, plan: ShardPlan) -> str:
    """Directory of a build: the same fingerprint and plan resume in the same place, any other starts elsewhere."""
    return f"{generation_prefix(fingerprint)}{sha256_json({'plan': plan.to_bytes().decode()})[:8]}"


def generation_prefix(fingerprint: str) -> str:
    """What the names of all builds of a fingerprint begin with, whatever their plan."""
    return f"gen-{fingerprint[:16]}-"
