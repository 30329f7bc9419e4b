"""Raw records as they came from a server, in sealed shards: written once, in order, continued after any interruption.

A shard is committed by its sidecar and the whole by ``root/raw/manifest.json``, as in a preprocessed store. Shards need
not be of one size, so what has arrived when a connection breaks can be committed as it is. The content digest is a sum
over records and does not depend on the cuts.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torchcell_cache.codec import envelope
from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import (
    file_digest,
    make_dirs_durable,
    remove_stale_temps,
    write_atomic,
    written,
)
from torchcell_cache.core.fingerprint import sha256_json
from torchcell_cache.core.hints import RAW_NAME, StrPath
from torchcell_cache.core.sealed import read_sealed, seal
from torchcell_cache.errors import CacheError, CorruptManifestError, CorruptRecordError, SettingError
from torchcell_cache.store import records as store
from torchcell_cache.store.shard_entry import (
    GENERATION,
    FileEntry,
    ShardEntry,
    exact_fields,
    match_text,
    read_sidecar,
    shard_name,
    sidecar_path,
    write_sidecar,
)
from torchcell_cache.store.stamps import ensure_verified, is_whole, stamp

MANIFEST_NAME = "manifest.json"
_VERSION = 1
_READ_AT_ONCE = 1024
_KINDS: dict[str, type] = {
    "format_version": int, "generation": str, "plan": dict, "num_records": int, "content": str, "shards": list,
}  # fmt: skip


class Columns(NamedTuple):
    """Which column of a query's result means what.

    Attributes:
        id: Column of the experiment's id, text or integer.
        perturbed: Column of the perturbed names: a list, or one name.
        phenotypes: Columns of labels, numbers or null.
        statistics: Columns of statistics, numbers or null.
    """

    id: str
    perturbed: str
    phenotypes: list[str]
    statistics: list[str]

    @classmethod
    def from_given(cls, given: Mapping[str, Any] | Columns | None) -> Columns | None:
        """From the argument ``columns``.

        Raises:
            SettingError: If a key is missing or unknown, or two meanings share a column.
        """
        if given is None or isinstance(given, Columns):
            return given
        fix = "columns={'id': 'id', 'perturbed': 'genes', 'phenotypes': ['fitness'], 'statistics': []}"
        if not isinstance(given, Mapping):
            raise SettingError(f"columns is {type(given).__name__}, expected a mapping", fix=fix)
        unknown = sorted(map(str, given.keys() - set(cls._fields)))
        missing = [key for key in ("id", "perturbed") if not given.get(key)]
        if unknown or missing:
            raise SettingError(f"columns: missing {missing}, unknown {unknown}", fix=fix)
        names: dict[str, list[str]] = {"phenotypes": [], "statistics": []}
        for key, value in given.items():
            several = key in ("phenotypes", "statistics") and not isinstance(value, str | Set | Mapping)
            names[key] = (
                list(value) if several and isinstance(value, Iterable) else [value] * (value is not None)
            )
            if not all(isinstance(name, str) for name in names[key]):
                in_order = ", which has no order" if isinstance(value, Set) else ""
                raise SettingError(
                    f"columns: {key} is {value!r:.200}{in_order}, expected names of columns", fix=fix
                )
        labels = [*names["phenotypes"], *names["statistics"]]
        if len(set(labels)) != len(labels):
            raise SettingError(f"columns: {sorted(labels)} names a column twice")
        return cls(names["id"][0], names["perturbed"][0], names["phenotypes"], names["statistics"])

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, each once, in the order in which a raw record holds them."""
        return tuple(dict.fromkeys((self.id, self.perturbed, *self.phenotypes, *self.statistics)))


def raw_dir(root: StrPath) -> Path:
    """Where the raw records of a root are."""
    return Path(root) / RAW_NAME


def rows_digest(bodies: Sequence[bytes]) -> str:
    """SHA-256 of records in order, each preceded by its length."""
    hasher = hashlib.sha256()
    for body in bodies:
        hasher.update(len(body).to_bytes(8, "little") + body)
    return hasher.hexdigest()


class RawWriter:
    """Appends shards to an unfinished set of raw records; what an earlier run committed counts.

    Args:
        root: Root of the store.
        plan: What is being fetched, plain JSON: another plan starts from nothing.
    """

    def __init__(self, root: StrPath, plan: dict[str, Any]) -> None:
        self.plan, self.raw = plan, raw_dir(root)
        digest = sha256_json(plan)
        self.seed = int(digest[:16], 16)
        self.directory = self.raw / f"gen-{digest[:16]}"
        with storage_errors(self.directory):
            make_dirs_durable(self.directory)
        remove_stale_temps(self.directory)
        self.entries: list[ShardEntry] = []
        with contextlib.suppress(CacheError):  # a damaged shard and what follows it are fetched again
            while (entry := read_sidecar(self.directory, len(self.entries))) is not None:
                whole = is_whole(self.directory / entry.file.name, entry.file)
                if (entry.start, entry.seed) != (self.num_records, self.seed) or not whole:
                    break
                self.entries.append(entry)
        finished = {sidecar_path(self.directory, entry.index) for entry in self.entries}
        for path in {
            *self.directory.glob("shard-*.json")
        } - finished:  # they are what declares a shard finished
            path.unlink()

    @property
    def num_records(self) -> int:
        """Records committed so far."""
        return self.entries[-1].stop if self.entries else 0

    @property
    def last_id(self) -> Any:
        """Id of the last record committed, ``None`` if there is none."""
        return self.entries[-1].stats["last_id"] if self.entries else None

    def append(self, bodies: Sequence[bytes], last_id: Any) -> None:
        """Commit records, in order and at least one, as one more shard."""
        index, start = len(self.entries), self.num_records
        target = self.directory / shard_name(index)
        records, sums = envelope.seal(bodies, start, self.seed)
        with written(target) as temporary:
            store.write_shard(temporary, start, [records], 2 * sum(map(len, records)) + (1 << 20))
            file = FileEntry(target.name, *file_digest(temporary))
        stats = {"last_id": last_id, "rows": rows_digest(bodies)}
        entry = ShardEntry(index, start, start + len(bodies), file, self.seed, sums, stats=stats)
        write_sidecar(self.directory, entry)
        stamp(target, file.xxh3)
        self.entries.append(entry)

    def publish(self) -> RawRecords:
        """Declare everything complete."""
        high, low = (sum(entry.sums[k] for entry in self.entries) % (1 << 64) for k in (1, 0))
        found = RawRecords(self.directory, self.plan, f"{high:016x}{low:016x}", tuple(self.entries))
        document = {
            **{"format_version": _VERSION, "generation": self.directory.name, "plan": self.plan},
            **{"num_records": len(found), "content": found.content},
            "shards": [entry.to_json() for entry in self.entries],
        }
        write_atomic(self.raw / MANIFEST_NAME, seal(document))
        return found


@dataclass(frozen=True, slots=True)
class RawRecords:
    """Complete raw records.

    Attributes:
        directory: Where the shards are.
        plan: What was fetched.
        content: Digest of all records, independent of how they were cut into shards.
        entries: The shards.
    """

    directory: Path
    plan: dict[str, Any]
    content: str
    entries: tuple[ShardEntry, ...] = field(repr=False)

    @classmethod
    def open(cls, root: StrPath) -> RawRecords | None:
        """The raw records of a root, ``None`` if they are not complete.

        Raises:
            CorruptManifestError: If the manifest is damaged.
        """
        path = raw_dir(root) / MANIFEST_NAME
        fix = f"remove {path.parent} and fetch again"
        try:
            document = read_sealed(path, fix=fix)
        except FileNotFoundError:
            return None
        try:
            got = exact_fields(document, "manifest", _KINDS)
            if got["format_version"] != _VERSION:
                raise ValueError(f"format {got['format_version']}, this version reads {_VERSION}")
            generation = match_text(GENERATION, got["generation"], "generation")
            entries = tuple(ShardEntry.from_json(item) for item in got["shards"])
            stops = [0, *(entry.stop for entry in entries)]
            if [entry.start for entry in entries] != stops[:-1] or got["num_records"] != stops[-1]:
                raise ValueError("its shards do not follow each other")
        except (ValueError, TypeError) as error:
            raise CorruptManifestError(f"{path} is damaged: {error}", path=path, fix=fix) from None
        return cls(raw_dir(root) / generation, got["plan"], got["content"], entries)

    def __len__(self) -> int:
        return self.entries[-1].stop if self.entries else 0

    def __iter__(self) -> Iterator[bytes]:
        """All records in order, each checked.

        Raises:
            CorruptShardError, CorruptRecordError: If anything differs from what was written.
        """
        paths = [str(self.directory / entry.file.name) for entry in self.entries]
        starts = [*(entry.start for entry in self.entries), len(self)]

        def before_open(shard: int) -> None:
            file = self.entries[shard].file
            ensure_verified(paths[shard], file.size, file.xxh3)

        files = store.ShardFiles(paths, [e.file.size for e in self.entries], starts, before_open)
        for entry in self.entries:
            for start in range(entry.start, entry.stop, _READ_AT_ONCE):
                indices = range(start, min(start + _READ_AT_ONCE, entry.stop))
                values = files.read(indices, [entry.index] * len(indices))
                try:
                    envelope.check(values, indices, entry.seed)
                except CorruptRecordError as error:
                    raise CorruptRecordError(
                        f"{paths[entry.index]}: {error}",
                        path=paths[entry.index],
                        fix=f"remove {self.directory.parent} and fetch again",
                    ) from None
                yield from (value[envelope.CHECKSUM_BYTES :] for value in values)
