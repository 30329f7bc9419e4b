from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcell_cache.errors import CacheNotFoundError, CorruptManifestError, FormatError
from torchcell_cache.store.manifest import (
    STORAGES,
    Manifest,
    manifest_path,
    processed_dir,
    read_manifest,
    write_manifest,
)
from torchcell_cache.store.shard_entry import (
    FILE_NAMES,
    FileEntry,
    ShardEntry,
    read_sidecar,
    shard_name,
    sidecar_path,
    write_sidecar,
)

SHA, XXH = "0123456789abcdef" * 4, "fedcba9876543210" * 2

GOLDEN = """\
{
 "digest": "DIGEST",
 "content_digest": "00ff",
 "created": {
  "host": "n\\u00f6de"
 },
 "endianness": "little",
 "files": [
  {
   "name": "base_graph.json",
   "sha256": "SHA",
   "size": 17,
   "xxh3": "XXH"
  }
 ],
 "fingerprint": {},
 "format_version": 1,
 "generation": "gen-0",
 "num_samples": 5,
 "schema": {
  "fields": [
   1,
   2.5,
   null,
   true
  ]
 },
 "shard_size": 8,
 "shards": [
  {
   "file": {
    "name": "shard-00000.lmdb",
    "sha256": "SHA",
    "size": 8192,
    "xxh3": "XXH"
   },
   "index": 0,
   "layouts": [
    "a1"
   ],
   "seed": "ffffffffffffffff",
   "start": 0,
   "stats": {
    "removed": 3
   },
   "stop": 5,
   "sums": [
    "0000000000000001",
    "0000000000000002"
   ]
  }
 ],
 "storage": "delta"
}
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sealed(body: str | bytes) -> bytes:
    """Put the digest in front, independently of the code under test."""
    body = body.encode() if isinstance(body, str) else body
    assert body.startswith(b"{\n")
    return b'{\n "digest": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n' + body[2:]


def dumped(document: Any) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def small(generation: str = "gen-0") -> Manifest:
    shard = ShardEntry(
        0, 0, 5, FileEntry("shard-00000.lmdb", 8192, SHA, XXH), 2**64 - 1, (1, 2), ("a1",), {"removed": 3}
    )
    return Manifest(
        generation=generation,
        num_samples=5,
        shard_size=8,
        storage="delta",
        schema={"fields": (1, 2.5, None, True)},
        fingerprint={},
        content_digest="00ff",
        files=(FileEntry("base_graph.json", 17, SHA, XXH),),
        shards=(shard,),
        created={"host": "nöde"},
    )


words = st.integers(0, 2**64 - 1)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # lone surrogates included: they are what os.fsdecode makes of a host or file name that is not UTF-8
    | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=3)


@st.composite
def file_entries(draw: st.DrawFn, name: str) -> FileEntry:
    return FileEntry(name, draw(st.integers(0, 2**62)), draw(hexes), draw(hexes)[:32])


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    size, count = draw(st.integers(1, 9)), draw(st.integers(0, 40))
    shards = [
        ShardEntry(
            number,
            start,
            min(start + size, count),
            draw(file_entries(shard_name(number))),
            draw(words),
            (draw(words), draw(words)),
            tuple(draw(st.lists(hexes, max_size=2))),
            draw(objects),
        )
        for number, start in enumerate(range(0, count, size))
    ]
    names = draw(st.lists(st.sampled_from(FILE_NAMES), unique=True))
    return Manifest(
        generation="gen-" + draw(st.text("0123456789abcxyz-", min_size=1, max_size=80)),
        num_samples=count,
        shard_size=size,
        storage=draw(st.sampled_from(STORAGES)),
        schema=draw(objects),
        fingerprint=draw(objects),
        content_digest=draw(hexes),
        files=tuple(draw(file_entries(name)) for name in names),
        shards=tuple(shards),
        created=draw(objects),
    )


def test_golden_bytes() -> None:
    body = GOLDEN.replace(' "digest": "DIGEST",\n', "").replace("SHA", SHA).replace("XXH", XXH)
    assert small().to_bytes() == sealed(body)
    assert Manifest.from_bytes(sealed(body)) == small()
    assert small().digest == hashlib.sha256(body.encode()).hexdigest()


@settings(max_examples=100, deadline=None)
@given(manifests())
def test_round_trip(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    again = Manifest.from_bytes(data)
    assert again == manifest
    assert again.to_bytes() == data
    assert pickle.loads(pickle.dumps(again)) == manifest


def test_order_of_keys_does_not_change_the_bytes() -> None:
    one = dataclasses.replace(small(), fingerprint={"a": 1, "b": {"c": 2, "d": 3}})
    two = dataclasses.replace(small(), fingerprint={"b": {"d": 3, "c": 2}, "a": 1})
    assert one.to_bytes() == two.to_bytes()


def test_every_flipped_bit_is_found() -> None:
    data = small().to_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptManifestError):
            Manifest.from_bytes(bytes(damaged))


def test_every_truncation_and_any_addition_is_found() -> None:
    data = small().to_bytes()
    for length in range(len(data)):
        with pytest.raises(CorruptManifestError):
            Manifest.from_bytes(data[:length])
    for extra in (b"\n", b" ", b"\0", data):
        with pytest.raises(CorruptManifestError):
            Manifest.from_bytes(data + extra)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_are_never_anything_but_damage(data: bytes, seal_it: bool) -> None:
    with pytest.raises(CorruptManifestError):
        Manifest.from_bytes(sealed(b"{\n" + data) if seal_it else data)


# Files.


def test_publishing_once_and_reading_back(tmp_path: Path) -> None:
    root = tmp_path / "sp ace é"
    processed_dir(root).mkdir(parents=True)
    assert write_manifest(root, small())
    assert read_manifest(root) == small()
    assert manifest_path(root).read_bytes() == small().to_bytes()
    assert not write_manifest(root, small("gen-late"))
    assert read_manifest(root).generation == "gen-0"
    assert names_in(processed_dir(root)) == ["manifest.json"]


def test_replacing_needs_the_generation_that_is_there(tmp_path: Path) -> None:
    processed_dir(tmp_path).mkdir()
    assert not write_manifest(tmp_path, small("gen-2"), expect_generation="gen-1")
    assert write_manifest(tmp_path, small("gen-1"))
    assert not write_manifest(tmp_path, small("gen-3"), expect_generation="gen-2")
    assert write_manifest(tmp_path, small("gen-2"), expect_generation="gen-1")
    assert read_manifest(tmp_path).generation == "gen-2"


@pytest.mark.parametrize("expected", [None, "gen-0"])
def test_a_damaged_manifest_is_replaced_only_on_request(tmp_path: Path, expected: str | None) -> None:
    processed_dir(tmp_path).mkdir()
    manifest_path(tmp_path).write_bytes(b"garbage")
    with pytest.raises(CorruptManifestError):
        write_manifest(tmp_path, small(), expect_generation=expected)
    assert manifest_path(tmp_path).read_bytes() == b"garbage"
    assert write_manifest(tmp_path, small("gen-1"), expect_generation=expected, replace_damaged=True)
    assert read_manifest(tmp_path).generation == "gen-1"
    assert not write_manifest(tmp_path, small("gen-2"), expect_generation=expected, replace_damaged=True)


@pytest.mark.parametrize("root", ["missing", "not here", "empty", "a file"])
def test_a_missing_store_names_the_command_that_builds_it(tmp_path: Path, root: str) -> None:
    (tmp_path / "empty" / "processed").mkdir(parents=True)
    (tmp_path / "a file").touch()
    with pytest.raises(CacheNotFoundError, match="no complete store") as caught:
        read_manifest(tmp_path / root)
    argument = f"root={tmp_path / root}"
    builds = f"torchcell-cache preprocess {repr(argument) if ' ' in root else argument} ..."
    assert ("fix: the directory of a store" if root == "a file" else builds) in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(small().to_bytes())
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [make_link, Path.mkdir, os.mkfifo])
def test_what_is_not_a_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    processed_dir(tmp_path).mkdir()
    make(manifest_path(tmp_path))
    with pytest.raises(CorruptManifestError, match="not a regular file"):
        read_manifest(tmp_path)


# Sidecars.


@pytest.fixture
def generation(tmp_path: Path) -> Path:
    directory = processed_dir(tmp_path) / "gen-0"
    directory.mkdir(parents=True)
    return directory


def test_sidecar_round_trip(generation: Path) -> None:
    shard = small().shards[0]
    assert read_sidecar(generation, 0) is None
    write_sidecar(generation, shard)
    write_sidecar(generation, shard)
    assert read_sidecar(generation, 0) == shard
    assert names_in(generation) == ["shard-00000.json"]


def test_every_flipped_bit_of_a_sidecar_is_found(generation: Path) -> None:
    write_sidecar(generation, small().shards[0])
    path = sidecar_path(generation, 0)
    data = path.read_bytes()
    path.chmod(0o644)
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(data)):
            file.seek(bit // 8)
            file.write(bytes([data[bit // 8] ^ 1 << bit % 8]))
            with pytest.raises(CorruptManifestError, match="repair"):
                read_sidecar(generation, 0)
            file.seek(bit // 8)
            file.write(data[bit // 8 : bit // 8 + 1])
    assert read_sidecar(generation, 0) == small().shards[0]


def test_a_sidecar_of_another_shard_or_generation_is_refused(generation: Path) -> None:
    write_sidecar(generation, small().shards[0])
    sidecar_path(generation, 0).rename(sidecar_path(generation, 1))
    with pytest.raises(CorruptManifestError, match="belongs to shard 0 of 'gen-0'"):
        read_sidecar(generation, 1)
    other = generation.with_name("gen-1")
    generation.rename(other)
    sidecar_path(other, 1).rename(sidecar_path(other, 0))
    with pytest.raises(CorruptManifestError, match="belongs to shard 0 of 'gen-0'"):
        read_sidecar(other, 0)


def test_a_sidecar_of_a_newer_format_is_named(generation: Path) -> None:
    sidecar_path(generation, 0).write_bytes(sealed(dumped({"format_version": 2})))
    with pytest.raises(FormatError, match="format 2"):
        read_sidecar(generation, 0)
