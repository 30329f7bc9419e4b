"""Verification finds every kind of damage, names it, and never takes the process down."""

import contextlib
import copy
import dataclasses
import gc
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
import torch
from graphs import cell_graph, random_case
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.builder.check.records import ShardOutline, outline
from torchcell_cache.builder.check.verify import Report, verify
from torchcell_cache.codec.envelope import seal
from torchcell_cache.core.files import file_digest
from torchcell_cache.errors import CacheError, CacheNotFoundError, SettingError
from torchcell_cache.graph.arrays import arrays_to_bytes, map_arrays
from torchcell_cache.graph.compare import first_difference
from torchcell_cache.graph.files import save_base_graph
from torchcell_cache.store.manifest import Manifest, read_manifest
from torchcell_cache.store.records import close_all, write_shard

COUNT, SHARD = 23, 8
ADVISORY = {".lock", ".status.json"}
STORES = {
    "perturbation": (tc.LazySubgraphRepresentation(), "perturbation"),
    "delta": (tc.LazySubgraphRepresentation(gpr="rule"), "delta"),
    "full": (tc.SubgraphRepresentation(), "full"),
}


def source(seed: int = 1, base_seed: int = 0):
    return random_case(cell_graph(seed=base_seed), num_samples=COUNT, seed=seed).source()


@pytest.fixture(params=STORES, scope="module")
def built(request, tmp_path_factory) -> Path:
    processor, storage = STORES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    tc.build(root, source=source(), processor=processor, storage=storage, shard_size=SHARD, progress=False)
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    processor, storage = STORES["delta"]
    tc.build(
        tmp_path, source=source(), processor=processor, storage=storage, shard_size=SHARD, progress=False
    )
    return tmp_path


def generation_of(root: Path) -> Path:
    return root / "processed" / read_manifest(root).generation


def store_files(root: Path) -> list[Path]:
    return sorted(p for p in (root / "processed").rglob("*") if p.is_file() and p.name not in ADVISORY)


_STAMP = iter(range(1, 1 << 30))


def put(path: Path, data: bytes) -> None:
    """Replace a file, with a time of change of its own however fast the test is; mappings of the old one live on."""
    close_all()
    fresh = path.with_name("fresh")
    fresh.write_bytes(data)
    os.utime(fresh, ns=(next(_STAMP), next(_STAMP)))
    fresh.replace(path)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def found_in(report: Report, path: Path) -> bool:
    return any(problem.file.endswith(path.name) for problem in report.problems)


def test_a_good_store_is_good_at_every_level(built: Path) -> None:
    for level in ("quick", "full"):
        report = verify(built, level, progress=False)
        assert report.ok
        assert report.checked["shards"] == 3
        assert "no problem found" in str(report)
    assert report.checked["records"] == COUNT
    facts = json.loads(report.to_json())
    assert facts["ok"] is True
    assert facts["problems"] == []
    assert verify(built, source=source(), progress=False).checked["samples against the source"] == COUNT


def test_full_finds_every_flipped_bit(root: Path) -> None:
    """One bit in every file at once, so that no find may hide another."""
    random_bits = random.Random(7)
    files = [p for p in store_files(root) if p.parent.name != "processed"]
    good = {path: path.read_bytes() for path in files}
    for _ in range(250):
        for path, data in good.items():
            put(path, flipped(data, random_bits.randrange(8 * len(data))))
        report = verify(root, "full", progress=False)
        assert [path.name for path in files if not found_in(report, path)] == []
    for path, data in good.items():
        put(path, data)
    assert verify(root, "full", progress=False).ok


def read_error(root: Path, want: list) -> Exception | None:
    """Read from every shard; a sample that is not the right one fails the test."""
    try:
        dataset = tc.PreprocessedDataset(root)
        got = {k: dataset[k] for k in range(0, COUNT, 5)}
    except Exception as error:
        return error
    for k, graph in got.items():
        assert first_difference(graph, want[k]) is None
    return None


def test_full_finds_a_single_flipped_bit_and_reads_are_right_or_refused(root: Path) -> None:
    random_bits = random.Random(11)
    want = [copy.deepcopy(graph) for graph in tc.PreprocessedDataset(root)]
    for path in store_files(root):
        data = path.read_bytes()
        for _ in range(4):
            bit = random_bits.randrange(8 * len(data))
            put(path, flipped(data, bit))
            report = verify(root, "full", progress=False)
            assert found_in(report, path), (path, bit, str(report))
            if "base_graph" in path.name:
                gc.collect()  # one that is still in memory would be used, and rightly so
            error = read_error(root, want)
            assert error is None or isinstance(error, CacheError), (path, bit)
            if path.suffix == ".lmdb" or "base_graph" in path.name or path.parent.name == "processed":
                assert error is not None, (path, bit)
                assert error.fix
        put(path, data)
    assert verify(root, "full", progress=False).ok


def test_truncated_and_extended_files_are_errors_at_every_level(root: Path) -> None:
    shard = next(generation_of(root).glob("shard-00001.lmdb"))
    data = shard.read_bytes()
    lengths = {
        0,
        1,
        10,
        4095,
        4096,
        8191,
        8192,
        12288,
        len(data) // 2,
        len(data) - 1,
        len(data) + 1,
        2 * len(data),
    }
    for length in sorted(lengths - {len(data)}):
        put(shard, (data + bytes(len(data)))[:length])
        for level in ("quick", "full"):
            [problem] = [p for p in verify(root, level, progress=False).problems if "lmdb" in p.file]
            assert problem.shard == 1
            assert f"has {length:,} bytes, the manifest says {len(data):,}" in problem.text
        with pytest.raises(CacheError, match="bytes"):
            tc.PreprocessedDataset(root)[SHARD]
    put(shard, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert verify(root, "full", progress=False).problems
    with pytest.raises(CacheError, match="digest"):
        tc.PreprocessedDataset(root)[SHARD]


def test_missing_files_swapped_shards_and_links_are_found(root: Path) -> None:
    directory = generation_of(root)
    one, two = directory / "shard-00000.lmdb", directory / "shard-00001.lmdb"
    first, second = one.read_bytes(), two.read_bytes()
    put(one, second)
    put(two, first)
    texts = [p.text for p in verify(root, "quick", progress=False).problems]
    if len(first) == len(second):
        in_groups = "group_bytes" in read_manifest(root).schema
        assert texts == (
            [
                "holds 2 groups, samples from 8 on, expected those from 0 on",
                "holds 2 groups, samples from 0 on, expected those from 8 on",
            ]
            if in_groups
            else [
                "holds 8 records, samples 8 to 15, expected 8, 0 to 7",
                "holds 8 records, samples 0 to 7, expected 8, 8 to 15",
            ]
        )
    assert texts
    one.unlink()
    one.symlink_to(two)
    (directory / "columns.safetensors").unlink()
    report = str(verify(root, "quick", progress=False))
    assert "shard-00000.lmdb: is not a regular file" in report
    assert "columns.safetensors: missing" in report


def test_unknown_files_are_nobodys_business(root: Path) -> None:
    (root / "processed" / "notes.txt").write_text("mine")
    (generation_of(root) / "extra.bin").write_text("mine")
    assert verify(root, "full", progress=False).ok


# Damage that carries right digests: only the contents give it away.


def reseal(root: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
    """Bring sizes and digests in the manifest up to the files as they are now."""
    manifest, directory = read_manifest(root), generation_of(root)

    def entry(old):
        size, sha256, xxh3 = file_digest(directory / old.name)
        return dataclasses.replace(old, size=size, sha256=sha256, xxh3=xxh3)

    manifest = dataclasses.replace(
        manifest,
        files=tuple(entry(f) for f in manifest.files),
        shards=tuple(dataclasses.replace(s, file=entry(s.file)) for s in manifest.shards),
    )
    data = change(manifest).to_bytes()
    for path in (root / "processed" / "manifest.json", directory / "manifest.json"):
        put(path, data)


def records_of(path: Path, start: int, count: int) -> list[bytes]:
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as env, env.begin() as txn:
        return [bytes(txn.get(k.to_bytes(8, "big"))) for k in range(start, start + count)]


def rewrite_shard(root: Path, change: Callable[[list[bytes]], list[bytes]], seal_again: bool = True) -> None:
    close_all()
    shard = read_manifest(root).shards[0]
    path = generation_of(root) / shard.file.name
    bodies = [record[8:] for record in records_of(path, 0, SHARD)]
    records = seal(change(bodies), 0, shard.seed)[0] if seal_again else change(records_of(path, 0, SHARD))
    path.unlink()
    write_shard(path, 0, [records], 1 << 24)
    reseal(root)


def with_other_id(bodies: list[bytes]) -> list[bytes]:
    k = next(k for k, body in enumerate(bodies) if body[2] == 1)
    body = bytearray(bodies[k])
    at = 4 + body[1] * 3 * 4
    body[at] = (body[at] + 1) % 9
    return [*bodies[:k], bytes(body), *bodies[k + 1 :]]


def with_other_value(bodies: list[bytes]) -> list[bytes]:
    return [bodies[0][:4] + b"\x00\x00\x80\x3f" + bodies[0][8:], *bodies[1:]]


def with_other_position(bodies: list[bytes]) -> list[bytes]:
    k = max(range(len(bodies)), key=lambda k: len(bodies[k]))
    return [*bodies[:k], bodies[k][:-2], *bodies[k + 1 :]]


FORGERIES = {
    "another perturbed id": (with_other_id, True, "its perturbed ids are not those of the columns: element"),
    "another value": (with_other_value, True, "its measurements are not those of the columns: element"),
    "a removed position less": (
        with_other_position,
        True,
        "its removed positions are not those of the incidence index",
    ),
    "two records swapped": (lambda r: [r[1], r[0], *r[2:]], False, "checksum"),
    "a record too short": (lambda r: [r[0][:7], *r[1:]], False, "shorter than a checksum"),
    "an empty body": (lambda b: [b"", *b[1:]], True, "a structured record has 8 bytes"),
    "another kind": (lambda b: [b"\x21" + b[0][1:], *b[1:]], True, "kind 0x21"),
}


@pytest.mark.parametrize(("change", "seal_again", "text"), FORGERIES.values(), ids=FORGERIES.keys())
def test_records_with_right_digests_are_compared_with_the_rest_of_the_store(
    delta, change, seal_again, text
) -> None:
    rewrite_shard(delta, change, seal_again)
    assert verify(delta, "quick", progress=False).ok
    report = verify(delta, "full", progress=False)
    assert any(text in p.text and p.sample is not None and p.shard == 0 for p in report.problems), str(report)
    assert any("sums of its records" in p.text for p in report.problems)


def forge_columns(root: Path) -> None:
    path = generation_of(root) / "columns.safetensors"
    arrays = {name: array.copy() for name, array in map_arrays(path)[0].items()}
    arrays["values"][0, 0] += 1
    put(path, arrays_to_bytes(arrays))


def forge_short_columns(root: Path) -> None:
    path = generation_of(root) / "columns.safetensors"
    arrays = {name: array.copy() for name, array in map_arrays(path)[0].items()}
    arrays["removed_edges"] = arrays["removed_edges"][:-1]
    put(path, arrays_to_bytes(arrays))


def forge_index(root: Path) -> None:
    path = generation_of(root) / "incidence.safetensors"
    arrays, meta = map_arrays(path)
    arrays = {name: array.copy() for name, array in arrays.items()}
    arrays["positions"][0] += 1
    put(path, arrays_to_bytes(arrays, meta))


def forge_base_graph(root: Path) -> None:
    for name in ("base_graph.safetensors", "base_graph.json"):
        (generation_of(root) / name).unlink()
    save_base_graph(cell_graph(seed=9), generation_of(root))


SHARED = {
    "columns": (forge_columns, "values is not what the fingerprint names"),
    "a column too short": (forge_short_columns, "removed_edges has 22 rows for 23 samples"),
    "incidence index": (forge_index, "is not the index of the stored base graph"),
    "base graph": (forge_base_graph, "holds another base graph than the fingerprint names"),
}


@pytest.mark.parametrize(("forge", "text"), SHARED.values(), ids=SHARED.keys())
def test_shared_files_with_right_digests_are_compared_too(delta: Path, forge, text: str) -> None:
    forge(delta)
    reseal(delta)
    report = verify(delta, "full", progress=False)
    assert any(text in p.text for p in report.problems), str(report)


def test_a_manifest_of_other_contents_is_found(delta: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        shard = dataclasses.replace(manifest.shards[2], sums=(1, 2))
        return dataclasses.replace(manifest, shards=(*manifest.shards[:2], shard))

    reseal(delta, change)
    text = str(verify(delta, "full", progress=False))
    assert "the sums of its records are not those of the manifest" in text
    assert "content digest" in text
    assert "does not describe the shard" in text


def test_generic_records_are_compared_with_the_columns(tmp_path: Path) -> None:
    tc.build(
        tmp_path,
        source=source(),
        processor=tc.LazySubgraphRepresentation(),
        storage="full",
        shard_size=SHARD,
        progress=False,
    )
    path = generation_of(tmp_path) / "columns.safetensors"
    arrays = {name: array.copy() for name, array in map_arrays(path)[0].items()}
    arrays["perturbed_count"][0], arrays["perturbed_count"][1] = arrays["perturbed_count"][[1, 0]]
    put(path, arrays_to_bytes(arrays))
    reseal(tmp_path)
    assert "fingerprint names" in str(verify(tmp_path, "full", progress=False))
    labelled = tmp_path / "labelled"
    tc.build(labelled, source=[Data(x=torch.ones(1), y=torch.tensor([k])) for k in range(5)], progress=False)
    path = generation_of(labelled) / "columns.safetensors"
    put(path, arrays_to_bytes({"y": map_arrays(path)[0]["y"][::-1].copy()}))
    reseal(labelled)
    assert "its y is not that of the columns" in str(verify(labelled, "full", progress=False))


# Against the source


def test_a_changed_label_or_graph_is_found_in_the_samples(built: Path) -> None:
    changed = source()
    values = changed.table.values
    values[0, 0] = 7.25
    report = verify(built, source=changed, progress=False)
    assert {p.sample for p in report.problems if p.sample is not None} == {0}
    text = str(report)
    assert "built from something else: source.values" in text
    assert "gene.phenotype_values" in text
    text = str(verify(built, source=source(base_seed=3), num_samples=5, progress=False))
    assert "built from something else: base_graph" in text
    assert "not what source and processor give now" in text


def test_a_changed_processor_is_found(built: Path) -> None:
    report = verify(built, source=source(), processor=tc.Perturbation(), num_samples=4, progress=False)
    assert "built from something else: processor.name" in str(report)
    assert sum(p.sample is not None for p in report.problems) == 4
    assert "stores: not expected ['reaction', 'metabolite'" in str(report)


def test_a_shorter_source_a_failing_processor_and_the_draw(delta: Path) -> None:
    short = random_case(cell_graph(), num_samples=COUNT - 3, seed=1).source()
    assert "source.num_samples: 23 -> 20" in str(verify(delta, source=short, progress=False))

    def fails(sample):
        raise ValueError("no")

    report = verify(delta, source=source(), processor=fails, num_samples=3, seed=5, progress=False)
    assert "the processor fails on it now: ValueError: no" in str(report)
    chosen = [p.sample for p in report.problems if p.sample is not None]
    again = verify(delta, source=source(), processor=fails, num_samples=3, seed=5, progress=False)
    assert chosen == [p.sample for p in again.problems if p.sample is not None]


def test_damage_and_source_together(delta: Path) -> None:
    shard = generation_of(delta) / "shard-00000.lmdb"
    put(shard, flipped(shard.read_bytes(), 8 * 9000))
    report = verify(delta, source=source(), progress=False)
    assert {p.sample for p in report.problems} == set(range(SHARD))
    assert all("cannot be read" in p.text for p in report.problems)


# Arguments, printing, page reader


def test_arguments(tmp_path: Path, built: Path) -> None:
    with pytest.raises(SettingError, match="'quick', 'full'"):
        verify(built, "deep")
    with pytest.raises(SettingError, match="source"):
        verify(built, processor=tc.Perturbation())
    with pytest.raises(CacheNotFoundError, match="torchcell-cache preprocess"):
        verify(tmp_path / "none")


def test_an_own_processor_must_be_given(tmp_path: Path) -> None:
    def own(sample):
        return Data(x=torch.ones(sample.index))

    tc.build(tmp_path, source=source(), processor=own, progress=False)
    assert verify(tmp_path, "full", progress=False).ok
    with pytest.raises(SettingError, match="own"):
        verify(tmp_path, source=source(), progress=False)
    assert verify(tmp_path, source=source(), processor=own, progress=False).ok


def test_long_lists_of_problems_are_counted() -> None:
    report = Report("root", "full", "gen-x")
    for k in range(70):
        report.add("a.lmdb", "bad", 0, k)
    report.finish(1.0)
    assert len(report.problems) == 51
    assert report.problems[-1].text == "20 more problems"
    assert "... and 31 more" in str(report)
    assert "a.lmdb, sample 3: bad" in str(report)


def test_progress_goes_to_stderr(delta: Path, capsys) -> None:
    verify(delta, "full", progress=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("count", "size"), [(1, 3), (7, 20), (900, 60), (40, 9000)])
def test_the_page_reader_agrees_with_lmdb(tmp_path: Path, count: int, size: int) -> None:
    path = tmp_path / "shard"
    write_shard(path, 1000, [[bytes(size)] * count], 1 << 24)
    assert outline(path) == ShardOutline(count, 1000, 999 + count)
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as env:
        assert env.stat()["entries"] == count


def test_the_page_reader_survives_anything(tmp_path: Path) -> None:
    path, random_bytes = tmp_path / "shard", random.Random(3)
    write_shard(path, 0, [[bytes(40)] * 500], 1 << 24)
    data = path.read_bytes()
    for trial in range(3000):
        changed = bytearray(data)
        for _ in range(random_bytes.choice((1, 1, 8, 200))):
            where = random_bytes.randrange(8192 if trial % 2 else len(data))
            changed[where] = random_bytes.randrange(256)
        (tmp_path / "bad").write_bytes(changed[: random_bytes.choice((len(data), len(data), trial * 13))])
        with contextlib.suppress(CacheError):
            outline(tmp_path / "bad")
