"""Manifests with a valid seal that ``to_bytes`` never writes: a seal is no signature."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_manifest import SHA, XXH, dumped, sealed, small, values

from torchcell_cache.errors import CacheError, CorruptManifestError, FormatError
from torchcell_cache.store.manifest import Manifest, manifest_path, processed_dir, read_manifest


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
    "shard-\u0660\u0660\u0660\u0660\u0660.lmdb",
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
        ((*SHARD, "start"), 1, "holds samples 1 to 5"),
        ((*SHARD, "stop"), 0, "none"),
        ((*SHARD, "index"), 1, "expected 'shard-00001.lmdb'"),
        ((*SHARD, "seed"), "FFFFFFFFFFFFFFFF", "64-bit word"),
        ((*SHARD, "seed"), "0" * 17, "64-bit word"),
        ((*SHARD, "seed"), 7, "seed is int, expected str"),
        ((*SHARD, "sums"), ["0" * 16], "1 content sums, expected 2"),
        ((*SHARD, "sums"), ["0" * 16] * 3, "3 content sums, expected 2"),
        ((*SHARD, "sums"), [1, 2], "64-bit word"),
        ((*SHARD, "layouts"), ["xyz"], "layout id 'xyz'"),
        ((*SHARD, "layouts"), [1], "layout id 1"),
        ((*SHARD, "stats"), [], "stats is list"),
        ((*SHARD, "file", "name"), "shard-00001.lmdb", "expected 'shard-00000.lmdb'"),
        ((*SHARD, "file", "name"), "base_graph.json", "expected 'shard-00000.lmdb'"),
        ((*SHARD, "file", "size"), "8192", "size is str"),
        ((*SHARD, "file", "sha256"), SHA.upper(), "sha256"),
        ((*SHARD, "file", "xxh3"), "", "xxh3"),
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
    for document in ({"format_version": 3, "brand": "new"}, {"format_version": 4}):
        with pytest.raises(
            FormatError, match=r"was written by format [34]; this version reads 1 and 2"
        ) as caught:
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
