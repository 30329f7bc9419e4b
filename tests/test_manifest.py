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

from torchcell_cache.errors import CacheError, CacheNotFoundError, CorruptManifestError, FormatError
from torchcell_cache.manifest import (
    FILE_NAMES,
    STORAGES,
    FileEntry,
    Manifest,
    ShardEntry,
    manifest_path,
    processed_dir,
    read_manifest,
    read_sidecar,
    shard_name,
    sidecar_path,
    write_manifest,
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


# Documents with a valid seal that `to_bytes` never writes: a seal is no signature.


def change(document: dict[str, Any], *path: str | int, to: Any) -> dict[str, Any]:
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    if to is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return document


DELETE = object()
SHARD = ("shards", 0)
HOSTILE_NAMES = [
    "../../x",
    "/etc/passwd",
    "shard-00000.lmdb/../x",
    "shard-00000.lmdb\n",
    "shard-00000.lmdb\0",
    "shard-0000.lmdb",
    "shard-٠٠٠٠٠.lmdb",
    "SHARD-00000.lmdb",
    "shard-00000.lmdb ",
    ".",
    "..",
    "",
    "manifest.json",
    "~/x",
    "base_graph.json\n",
    "con",
    "C:\\x",
]


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("extra",), 1, r"unknown keys \['extra'\]"),
        (("digest",), SHA, r"unknown keys \['digest'\]"),
        (("schema",), DELETE, r"missing keys \['schema'\]"),
        (("format_version",), DELETE, "missing keys"),
        (("format_version",), True, "format_version is bool, expected int"),
        (("format_version",), "1", "format_version is str"),
        (("num_samples",), 5.0, "num_samples is float, expected int"),
        (("num_samples",), -1, "num_samples -1 is not a count"),
        (("num_samples",), 2**63, "is not a count"),
        (("num_samples",), 6, "holds samples 0 to 5, expected shard 0 with 0 to 6"),
        (("num_samples",), 9, "1 shards, expected 2"),
        (("num_samples",), 0, "1 shards, expected 0"),
        (("shard_size",), 0, "shard_size is 0"),
        (("shard_size",), 4, "1 shards, expected 2"),
        (("shards",), {}, "shards is dict, expected list"),
        (("shards",), [], "0 shards, expected 1"),
        (("shards",), [[]], "shard is list, expected an object"),
        (SHARD + ("start",), 1, "holds samples 1 to 5"),
        (SHARD + ("stop",), 0, "none"),
        (SHARD + ("index",), 1, "expected 'shard-00001.lmdb'"),
        (SHARD + ("seed",), "FFFFFFFFFFFFFFFF", "64-bit word"),
        (SHARD + ("seed",), "0" * 17, "64-bit word"),
        (SHARD + ("seed",), 7, "seed is int, expected str"),
        (SHARD + ("sums",), ["0" * 16], "1 content sums, expected 2"),
        (SHARD + ("sums",), ["0" * 16] * 3, "3 content sums, expected 2"),
        (SHARD + ("sums",), [1, 2], "64-bit word"),
        (SHARD + ("layouts",), ["xyz"], "layout id 'xyz'"),
        (SHARD + ("layouts",), [1], "layout id 1"),
        (SHARD + ("stats",), [], "stats is list"),
        (SHARD + ("file", "name"), "shard-00001.lmdb", "expected 'shard-00000.lmdb'"),
        (SHARD + ("file", "name"), "base_graph.json", "expected 'shard-00000.lmdb'"),
        (SHARD + ("file", "size"), "8192", "size is str"),
        (SHARD + ("file", "sha256"), SHA.upper(), "sha256"),
        (SHARD + ("file", "xxh3"), "", "xxh3"),
        (("storage",), "auto", "storage 'auto', expected one of perturbation, delta, full"),
        (("storage",), "Delta", "storage 'Delta'"),
        (("generation",), "gen-", "generation 'gen-'"),
        (("generation",), "gen-A", "generation"),
        (("generation",), "gen-../x", "generation"),
        (("generation",), "gen-" + "a" * 81, "generation"),
        (("generation",), "..", "generation"),
        (("content_digest",), "xyz", "content digest"),
        (("files",), [{"name": "shard-00000.lmdb", "size": 1, "sha256": SHA, "xxh3": XXH}], "each once"),
        (("files",), [{"name": "base_graph.json", "size": 1, "sha256": SHA, "xxh3": XXH}] * 2, "each once"),
        (("files", 0, "more"), None, r"unknown keys \['more'\]"),
        *[(("files", 0, "name"), name, "file name|each once|damaged") for name in HOSTILE_NAMES],
        (("endianness",), 1, "endianness is int"),
    ],
)
def test_sealed_documents_with_a_wrong_value_are_refused(
    path: tuple[str | int, ...], to: Any, message: str
) -> None:
    document = json.loads(small().to_bytes())
    del document["digest"]
    data = sealed(dumped(change(document, *path, to=to)))
    with pytest.raises(CorruptManifestError, match=message) as caught:
        Manifest.from_bytes(data, path="/data/my store/processed/manifest.json")
    assert caught.value.path == "/data/my store/processed/manifest.json"
    assert "torchcell-cache repair 'root=/data/my store'" in str(caught.value)
    assert str(caught.value).startswith("/data/my store/processed/manifest.json is damaged")


def body_of_small() -> str:
    return dumped({key: value for key, value in json.loads(small().to_bytes()).items() if key != "digest"})


REMOVED = '"removed": 3'
COUNT = '"num_samples": 5'


@pytest.mark.parametrize(
    ("part", "instead", "message"),
    [
        (COUNT, COUNT + ",\n " + COUNT, "'num_samples' appears twice"),
        (REMOVED, '"removed": NaN', "NaN is not allowed"),
        (REMOVED, '"removed": -Infinity', "-Infinity is not allowed"),
        (REMOVED, '"removed": 1e999', "not a finite number"),
        (REMOVED, '"removed": 99999999999999999999', "beyond 64 bits"),
        (REMOVED, '"removed": ' + "9" * 10_000, "damaged"),
        (REMOVED, '"removed": 3.00', "canonical"),
        (REMOVED, '"removed":  3', "canonical"),
        (REMOVED, '"removed": ' + "[" * 40 + "]" * 40, "nested deeper than 32"),
        (REMOVED, '"removed": ' + "[" * 200_000, "damaged"),
        ("n\\u00f6de", "n\\u00F6de", "canonical"),
        ("n\\u00f6de", "nöde", "canonical"),
        ("}\n", "}", "canonical"),
        ("}\n", "}\n{}", "damaged"),
        (None, "{\n}", "canonical"),
        (None, "{\n" + "[]," * 2_000_001, "elements"),
    ],
    ids=range(16),
)
def test_sealed_text_that_is_not_canonical_is_refused(part: str | None, instead: str, message: str) -> None:
    body = body_of_small()
    assert part is None or part in body
    body = instead if part is None else body.replace(part, instead)
    with pytest.raises(CorruptManifestError, match=message):
        Manifest.from_bytes(sealed(body))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_sealed_change_is_refused_or_is_another_valid_manifest(data: st.DataObject) -> None:
    document = json.loads(small().to_bytes())
    del document["digest"]
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(values)
    raw = sealed(dumped(document))
    try:
        manifest = Manifest.from_bytes(raw)
    except (CorruptManifestError, FormatError):
        return
    assert manifest.to_bytes() == raw


def test_a_newer_format_is_named_even_if_its_fields_are_unknown() -> None:
    for document in ({"format_version": 2, "brand": "new"}, {"format_version": 3}):
        with pytest.raises(FormatError, match=r"was written by format [23]; this version reads 1") as caught:
            Manifest.from_bytes(sealed(dumped(document)))
        assert "upgrade torchcell_cache" in str(caught.value)
    with pytest.raises(FormatError, match="format 0"):
        Manifest.from_bytes(sealed(dumped({"format_version": 0})))


def test_another_byte_order_is_named() -> None:
    body = body_of_small().replace('"little"', '"big"')
    with pytest.raises(FormatError, match="big byte order; this version reads little"):
        Manifest.from_bytes(sealed(body))


def test_a_file_over_the_size_cap_is_not_read_whole(tmp_path: Path) -> None:
    processed_dir(tmp_path).mkdir()
    with manifest_path(tmp_path).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptManifestError, match="at most"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("schema", {"x": float("nan")}),
        ("schema", {1: 2}),
        ("fingerprint", {"x": {1, 2}}),
        ("created", {"x": b"bytes"}),
        ("created", {"x": 2**64}),
        ("generation", "../x"),
        ("storage", "auto"),
        ("num_samples", 4),
        ("format_version", 2),
        ("shards", ()),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(part: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        dataclasses.replace(small(), **{part: value})
    assert not isinstance(caught.value, CacheError)


# Files.


def test_publishing_once_and_reading_back(tmp_path: Path) -> None:
    root = tmp_path / "sp ace é"
    processed_dir(root).mkdir(parents=True)
    assert write_manifest(root, small())
    assert read_manifest(root) == small()
    assert manifest_path(root).read_bytes() == small().to_bytes()
    assert not write_manifest(root, small("gen-late"))
    assert read_manifest(root).generation == "gen-0"
    assert os.listdir(processed_dir(root)) == ["manifest.json"]


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


@pytest.mark.parametrize("root", ["missing", "empty", "a file"])
def test_a_missing_store_names_the_command_that_builds_it(tmp_path: Path, root: str) -> None:
    (tmp_path / "empty" / "processed").mkdir(parents=True)
    (tmp_path / "a file").touch()
    with pytest.raises(CacheNotFoundError, match="no complete store") as caught:
        read_manifest(tmp_path / root)
    argument = f"root={tmp_path / root}"
    assert f"torchcell-cache preprocess {repr(argument) if ' ' in argument else argument} ..." in str(
        caught.value
    )
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
    assert os.listdir(generation) == ["shard-00000.json"]


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
