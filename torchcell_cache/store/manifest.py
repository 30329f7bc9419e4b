"""The manifest: the one file that makes a store exist, and the sidecars that make its shards exist.

``manifest.json`` names one generation and every file of it with size and digests; before it is published
there is no store, afterwards there is a complete one. A shard counts as built once its sidecar is there. Both
are sealed JSON (see :mod:`torchcell_cache.core.sealed`) and are checked value by value: a document that passes describes exactly
one possible store.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torchcell_cache.core.files import write_atomic
from torchcell_cache.core.hints import PROCESSED_NAME, StrPath, repair_hint, root_argument
from torchcell_cache.core.sealed import plain, read_sealed, seal, unseal
from torchcell_cache.errors import CacheError, CacheNotFoundError, CorruptManifestError, FormatError
from torchcell_cache.store.shard_entry import (
    ENDIANNESS,
    FILE_NAMES,
    FORMAT_VERSION,
    GENERATION,
    HEX,
    FileEntry,
    ShardEntry,
    check_count,
    exact_fields,
    file_from_json,
    match_text,
    parse_document,
)

MANIFEST_NAME = "manifest.json"
STORAGES = ("perturbation", "delta", "full")
VERSIONS = (1, 2)
SECOND = ("unknown_names", "origins")
"""Parts of a schema that the first version does not know, each the digest of columns."""
COMPACT, GROUPED = "encodings", "group_bytes"
"""Two more: which encodings records may have, and how many bytes of records are one value of a shard's file."""
_FIELDS: dict[str, type] = {
    **dict.fromkeys(("format_version", "num_samples", "shard_size"), int),
    **dict.fromkeys(("endianness", "generation", "storage", "content_digest"), str),
    **dict.fromkeys(("schema", "fingerprint", "created"), dict),
    **dict.fromkeys(("files", "shards"), list),
}
"""What a manifest holds, and as what."""


def format_of(schema: dict[str, Any]) -> int:
    """The oldest version of the format that can say what a schema says."""
    return 2 if {*SECOND, "constants", "attributes", COMPACT, GROUPED} & set(schema) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One complete generation of a store.

    The free-form parts hold plain JSON; the order of keys in an object does not survive.

    Attributes:
        generation: Name of the generation's directory.
        num_samples: Samples in all shards.
        shard_size: Samples per shard; only the last shard may hold fewer.
        storage: How much of a sample is stored, one of ``STORAGES``.
        schema: What the records hold.
        fingerprint: Identity of the inputs, part by part.
        content_digest: Digest of what is stored, independent of shards and workers, hexadecimal.
        files: The files beside the shards.
        shards: The shards, in order, without gap or overlap.
        created: How the build went (library versions, host, command, seconds); for information only.
        format_version: Version of the store format.
    """

    generation: str
    num_samples: int
    shard_size: int
    storage: str
    schema: dict[str, Any]
    fingerprint: dict[str, Any]
    content_digest: str
    files: tuple[FileEntry, ...]
    shards: tuple[ShardEntry, ...]
    created: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        wanted = format_of(self.schema)
        if type(self.format_version) is not int or self.format_version != wanted:
            raise ValueError(f"format version {self.format_version!r}, expected {wanted} for this schema")
        match_text(GENERATION, self.generation, "generation")
        match_text(HEX, self.content_digest, "content digest")
        if self.storage not in STORAGES:
            raise ValueError(f"storage {self.storage!r}, expected one of {', '.join(STORAGES)}")
        names = [file.name for file in self.files]
        if len(set(names)) != len(names) or not set(names) <= set(FILE_NAMES):
            raise ValueError(f"files {names}, expected some of {', '.join(FILE_NAMES)}, each once")
        check_count(self.num_samples, "num_samples")
        if check_count(self.shard_size, "shard_size") == 0:
            raise ValueError("shard_size is 0")
        expected = -(-self.num_samples // self.shard_size)
        if len(self.shards) != expected:
            said = f"{self.num_samples} samples of {self.shard_size} per shard"
            raise ValueError(f"{len(self.shards)} shards, expected {expected} for {said}")
        for number, shard in enumerate(self.shards):
            start = number * self.shard_size
            stop = min(start + self.shard_size, self.num_samples)
            if (shard.index, shard.start, shard.stop) != (number, start, stop):
                raise ValueError(
                    f"shard {shard.index} holds samples {shard.start} to {shard.stop}, "
                    f"expected shard {number} with {start} to {stop}"
                )
        for name in ("schema", "fingerprint", "created"):
            object.__setattr__(self, name, plain(getattr(self, name), name))

    @property
    def digest(self) -> str:
        """SHA-256 that ``to_bytes`` carries: pins the whole store, because it covers every file's digest."""
        return self.to_bytes().split(b'"', 4)[3].decode()

    def to_bytes(self) -> bytes:
        """The content of ``manifest.json``."""
        document = {name: getattr(self, name) for name in _FIELDS if name != "endianness"}
        document["files"] = [asdict(file) for file in self.files]
        document["shards"] = [shard.to_json() for shard in self.shards]
        return seal({**document, "endianness": ENDIANNESS})

    @classmethod
    def from_bytes(cls, data: bytes, *, path: StrPath | None = None) -> Manifest:
        """Check and parse the content of a ``manifest.json``.

        Raises:
            CorruptManifestError: It is not byte for byte what ``to_bytes`` wrote.
            FormatError: It is intact, but of another format version or byte order.
        """
        fix = repair_hint(path)
        return parse_document(unseal(data, path=path, fix=fix), path, fix, cls.from_json, VERSIONS)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Manifest:
        """Of a document of this version; raises ``ValueError`` or ``TypeError`` for anything else."""
        got = exact_fields(document, "manifest", _FIELDS)
        del got["endianness"]
        got["files"] = tuple(file_from_json(value) for value in got["files"])
        got["shards"] = tuple(ShardEntry.from_json(value) for value in got["shards"])
        return cls(**got)


def processed_dir(root: StrPath) -> Path:
    """Where a store keeps its files."""
    return Path(root) / PROCESSED_NAME


def manifest_path(root: StrPath) -> Path:
    """The commit point of the store at ``root``."""
    return processed_dir(root) / MANIFEST_NAME


def read_manifest(root: StrPath) -> Manifest:
    """Read and check the manifest of the store at ``root``.

    Raises:
        CacheNotFoundError: Nothing complete is there; carries the command that builds it.
        CorruptManifestError: The manifest is damaged.
        FormatError: Another version of the package wrote it.
    """
    path = manifest_path(root)
    try:
        return load_manifest(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        is_file = Path(root).is_file()
        raise CacheNotFoundError(
            f"no complete store at {os.fspath(root)} ({'it is a file' if is_file else f'{path} is missing'})",
            path=path,
            fix="the directory of a store"
            if is_file
            else f"torchcell-cache preprocess {root_argument(root)} ...",
        ) from error


def load_manifest(path: StrPath, fix: str | None = None) -> Manifest:
    """A manifest, its seal and every value checked; not whether it is spelt as it would be written today.

    Raises:
        FileNotFoundError: There is none.
        CorruptManifestError: It is damaged.
        FormatError: Another version of the package wrote it.
    """
    fix = repair_hint(path) if fix is None else fix
    document = read_sealed(path, fix=fix, canonical=False)
    return parse_document(document, path, fix, Manifest.from_json, VERSIONS)


def write_manifest(
    root: StrPath, manifest: Manifest, *, expect_generation: str | None = None, replace_damaged: bool = False
) -> bool:
    """Publish a generation whose files are all written and synced; ``False`` if another one is published meanwhile.

    ``expect_generation`` is the one this takes the place of, ``None`` for the first one of a store, which of several builders
    exactly one can publish. Comparing and renaming are two steps: hold the builder lock. With ``replace_damaged`` a manifest
    that cannot be read counts as absent (repair, rebuild).
    """
    path, data = manifest_path(root), manifest.to_bytes()
    if expect_generation is None and write_atomic(path, data, replace=False):
        return True
    try:
        current = read_manifest(root).generation
        if expect_generation is None or current != expect_generation:
            return False
    except CacheNotFoundError:
        if expect_generation is not None:
            return False
    except (CorruptManifestError, FormatError):
        if not replace_damaged:
            raise
    return write_atomic(path, data)


def copy_name(root: Path, manifest: Manifest) -> str:
    """Name of the directory of a copy: the manifest's digest covers every file and the fingerprint."""
    name = re.sub(r"[^0-9A-Za-z._-]", "_", root.name).lstrip(".")[:60] or "store"
    return f"{name}-{manifest.digest[:16]}"


GRAPH_FILES = ("base_graph.safetensors", "base_graph.json")


def generation_dirs(root: Path) -> list[Path]:
    """Directories of all generations, finished or not, by name."""
    directory = processed_dir(root)
    if not directory.is_dir():
        return []
    return sorted(
        p for p in directory.iterdir() if GENERATION.fullmatch(p.name) and p.is_dir() and not p.is_symlink()
    )


def own_manifest(directory: Path) -> Manifest | None:
    """The manifest a generation carries itself, or ``None`` if it is unfinished or that file is damaged."""
    path = directory / MANIFEST_NAME
    try:
        manifest = load_manifest(path)
    except (CacheError, OSError):
        return None
    return manifest if manifest.generation == directory.name else None
