"""What is known of each file of a generation, and the sidecars that declare shards finished.

Every value is checked when an entry is made, whether by a build or by reading a file: names match a
whitelist, so no entry can point outside its generation, and digests and words have exactly one spelling.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torchcell_cache.core.files import write_atomic
from torchcell_cache.core.hints import StrPath, repair_hint
from torchcell_cache.core.sealed import plain, read_sealed, seal
from torchcell_cache.errors import CacheError, CorruptManifestError, FormatError

FORMAT_VERSION = 1
ENDIANNESS = "little"
FILE_NAMES = ("base_graph.safetensors", "base_graph.json", "incidence.safetensors", "columns.safetensors")

GENERATION = re.compile(r"gen-[0-9a-z-]{1,80}")
HEX = re.compile(r"[0-9a-f]{1,128}")
_SHARD_NAME = re.compile(r"shard-[0-9]{5,10}\.lmdb")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_XXH3 = re.compile(r"[0-9a-f]{32}")
_HEX64 = re.compile(r"[0-9a-f]{16}")
_COUNT_LIMIT = 1 << 63

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a generation: name in its directory, size in bytes, digests in hexadecimal."""

    name: str
    size: int
    sha256: str
    xxh3: str

    def __post_init__(self) -> None:
        if self.name not in FILE_NAMES:
            match_text(_SHARD_NAME, self.name, "file name")
        check_count(self.size, "size")
        match_text(_SHA256, self.sha256, "sha256")
        match_text(_XXH3, self.xxh3, "xxh3")


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard: samples ``start`` (included) to ``stop`` (excluded), all in one file.

    Attributes:
        index: Number of the shard.
        start: First sample.
        stop: One after the last sample.
        file: The LMDB file.
        seed: 64 random-looking bits mixed into every record's checksum, so that shards cannot be swapped.
        sums: The shard's part of the content digest, two 64-bit words.
        layouts: Ids of the record layouts in use, hexadecimal.
        stats: Anything worth showing (removed edges, bytes, ...), plain JSON.
    """

    index: int
    start: int
    stop: int
    file: FileEntry
    seed: int
    sums: tuple[int, int]
    layouts: tuple[str, ...] = ()
    stats: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("index", "start", "stop"):
            check_count(getattr(self, name), name)
        if self.start >= self.stop:
            raise ValueError(f"shard {self.index} holds samples {self.start} to {self.stop}: none")
        if self.file.name != shard_name(self.index):
            raise ValueError(
                f"shard {self.index} is in {self.file.name!r}, expected {shard_name(self.index)!r}"
            )
        for word in (self.seed, *self.sums):
            if type(word) is not int or not 0 <= word < 1 << 64:
                raise ValueError(f"shard {self.index}: {word!r} is not a 64-bit word")
        if len(self.sums) != 2:
            raise ValueError(f"shard {self.index} has {len(self.sums)} content sums, expected 2")
        for layout in self.layouts:
            match_text(HEX, layout, "layout id")
        object.__setattr__(self, "stats", plain(self.stats, "stats"))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; 64-bit words become hexadecimal, because many JSON readers round large numbers."""
        return {
            **{name: getattr(self, name) for name in ("index", "start", "stop", "stats")},
            "file": asdict(self.file),
            "seed": f"{self.seed:016x}",
            "sums": [f"{word:016x}" for word in self.sums],
            "layouts": list(self.layouts),
        }

    @classmethod
    def from_json(cls, value: Any) -> ShardEntry:
        """Inverse of ``to_json``; raises ``ValueError`` or ``TypeError`` for anything else."""
        kinds = {"index": int, "start": int, "stop": int, "file": dict, "seed": str, "sums": list}
        got = exact_fields(value, "shard", {**kinds, "layouts": list, "stats": dict})
        seed, *sums = (
            int(match_text(_HEX64, word, "64-bit word"), 16) for word in (got["seed"], *got["sums"])
        )
        parts = {"file": file_from_json(got["file"]), "seed": seed, "sums": tuple(sums)}
        return cls(**{**got, **parts, "layouts": tuple(got["layouts"])})


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.lmdb"


def sidecar_path(generation_dir: StrPath, index: int) -> Path:
    """File that says that a shard is finished."""
    return Path(generation_dir) / f"shard-{index:05d}.json"


def write_sidecar(generation_dir: StrPath, entry: ShardEntry) -> None:
    """Declare a shard finished; its LMDB file is in place and synced."""
    directory = Path(generation_dir)
    document = {
        "format_version": FORMAT_VERSION,
        "endianness": ENDIANNESS,
        "generation": match_text(GENERATION, directory.name, "generation"),
        "shard": entry.to_json(),
    }
    write_atomic(sidecar_path(directory, entry.index), seal(document))


def read_sidecar(generation_dir: StrPath, index: int) -> ShardEntry | None:
    """The finished shard ``index``, or ``None`` if it is not finished.

    Raises:
        CorruptManifestError: The sidecar is damaged or of another generation or shard: build the shard again.
    """
    path = sidecar_path(generation_dir, index)
    fix = repair_hint(path)
    try:
        document = read_sealed(path, fix=fix)
    except FileNotFoundError:
        return None

    def parse(value: dict[str, Any]) -> ShardEntry:
        kinds: dict[str, type] = {"format_version": int, "endianness": str, "generation": str, "shard": dict}
        got = exact_fields(value, "sidecar", kinds)
        entry = ShardEntry.from_json(got["shard"])
        if (got["generation"], entry.index) != (path.parent.name, index):
            raise ValueError(f"belongs to shard {entry.index} of {got['generation']!r}")
        return entry

    return parse_document(document, path, fix, parse)


def parse_document(
    document: dict[str, Any],
    path: StrPath | None,
    fix: str,
    parse: Callable[[dict[str, Any]], T],
    versions: Sequence[int] = (FORMAT_VERSION,),
) -> T:
    """Version and byte order first, so that a newer document is named as such; then every value."""
    where = None if path is None else os.fspath(path)
    name = where or "document"
    try:
        version = document.get("format_version")
        if type(version) is int and version not in versions:
            raise FormatError(
                f"{name} was written by format {version}; this version reads {' and '.join(map(str, versions))}",
                path=where,
                fix="upgrade torchcell_cache" if version > max(versions) else "build the store again",
            )
        order = document.get("endianness")
        if type(order) is str and order != ENDIANNESS:
            said = f"{name} was written with {order} byte order; this version reads {ENDIANNESS}"
            raise FormatError(said, path=where, fix="build the store again")
        return parse(document)
    except CacheError:
        raise
    except (ValueError, TypeError) as error:
        raise CorruptManifestError(f"{name} is damaged: {error}", path=where, fix=fix) from error


def exact_fields(value: Any, where: str, kinds: dict[str, type]) -> dict[str, Any]:
    """``value`` if it is an object with exactly these keys and types."""
    if type(value) is not dict:
        raise TypeError(f"{where} is {type(value).__name__}, expected an object")
    missing, unknown = sorted(kinds.keys() - value.keys()), sorted(value.keys() - kinds.keys())
    if missing or unknown:
        raise ValueError(f"{where}: missing keys {missing}, unknown keys {unknown}")
    for key, kind in kinds.items():
        if type(value[key]) is not kind:
            raise TypeError(f"{where}.{key} is {type(value[key]).__name__}, expected {kind.__name__}")
    return dict(value)


def file_from_json(value: Any) -> FileEntry:
    """A file entry of its fields; raises ``ValueError`` or ``TypeError`` for anything else."""
    return FileEntry(**exact_fields(value, "file", {"name": str, "size": int, "sha256": str, "xxh3": str}))


def match_text(pattern: re.Pattern[str], value: Any, what: str) -> str:
    """``value`` if it is a string that matches as a whole."""
    if type(value) is not str or pattern.fullmatch(value) is None:
        raise ValueError(f"{what} {value!r} is not of the form {pattern.pattern}")
    return value


def check_count(value: Any, what: str) -> int:
    """``value`` if it is an integer of 0 to 2**63 - 1."""
    if type(value) is not int or not 0 <= value < _COUNT_LIMIT:
        raise ValueError(f"{what} {value!r} is not a count")
    return value
