"""Repair: only what is damaged is made again, byte for byte, in a generation of its own."""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import fresh
import pytest
import torch
from graphs import cell_graph, plain_graph, random_case
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.builder.check.repair import repair
from torchcell_cache.builder.check.verify import verify
from torchcell_cache.core.locks import BuilderLock
from torchcell_cache.errors import (
    BuildInProgressError,
    CacheNotFoundError,
    CorruptManifestError,
    CorruptShardError,
    SettingError,
    StaleCacheError,
)
from torchcell_cache.store.manifest import read_manifest
from torchcell_cache.testing import assert_same_graph

COUNT, SHARD = 21, 4


def source(**changes):
    return random_case(cell_graph(), num_samples=COUNT, seed=changes.get("seed", 1)).source()


def doubled(sample):
    return Data(x=torch.arange(len(sample.perturbed)) * 2, y=torch.tensor([float(sample.index)]))


def graphs():
    return [Data(x=torch.full((k % 3 + 1,), float(k)), y=torch.tensor([k % 4])) for k in range(COUNT)]


STORES = {
    "perturbation": (source, tc.LazySubgraphRepresentation(), "perturbation"),
    "delta": (source, tc.SubgraphRepresentation(gpr="rule"), "delta"),
    "ids": (source, tc.Perturbation(), "delta"),
    "full": (source, tc.LazySubgraphRepresentation(), "full"),
    "own processor": (source, doubled, "full"),
    "graphs": (graphs, None, "delta"),
}


@pytest.fixture(params=STORES, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def built(kind, tmp_path_factory):
    make, processor, storage = STORES[kind]
    root = tmp_path_factory.mktemp("built")
    tc.build(root, source=make(), processor=processor, storage=storage, shard_size=SHARD, progress=False)
    return root


@pytest.fixture
def root(built, tmp_path):
    shutil.copytree(built, tmp_path / "root")
    return tmp_path / "root"


def generation_of(root: Path) -> Path:
    return root / "processed" / read_manifest(root).generation


def damage(path: Path, how: str = "flip") -> None:
    data = bytearray(path.read_bytes())
    path.chmod(0o644)
    if how == "flip":
        data[len(data) // 2] ^= 0x10
        path.write_bytes(bytes(data))
    elif how == "truncate":
        path.write_bytes(bytes(data[: len(data) // 2]))
    else:
        path.unlink()


def hashes(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir())}


def samples(root: Path):
    dataset = tc.PreprocessedDataset(root)
    return [dataset[k] for k in range(len(dataset))]


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damaged_shards_come_back_byte_for_byte(root: Path, kind: str, how: str) -> None:
    make, processor, _ = STORES[kind]
    before, want, old = read_manifest(root), samples(root), generation_of(root)
    original = hashes(old)
    for shard in (1, 5):
        damage(old / f"shard-{shard:05d}.lmdb", how)
    left = hashes(old)
    needs = {"own processor": {"source": make(), "processor": processor}, "graphs": {"source": make()}}.get(
        kind, {}
    )
    report = repair(root, progress=False, **needs)
    assert sorted(report.rebuilt) == ["shard-00001.lmdb", "shard-00005.lmdb"] == sorted(report.damaged)
    after, new = read_manifest(root), generation_of(root)
    assert new != old
    assert new.name == report.generation == f"{old.name}-r1"
    assert after.content_digest == before.content_digest
    assert after.shards == before.shards
    assert after.files == before.files
    made = hashes(new)
    assert {k: v for k, v in made.items() if not k.endswith(".json")} == {
        k: v for k, v in original.items() if not k.endswith(".json")
    }
    assert hashes(old) == left
    assert (new / "shard-00000.lmdb").samefile(old / "shard-00000.lmdb")
    assert verify(root, "full", progress=False).ok
    for got, expected in zip(samples(root), want, strict=True):
        assert_same_graph(got, expected)


def test_nothing_damaged_changes_nothing(root: Path) -> None:
    before = hashes(root / "processed" / read_manifest(root).generation)
    report = repair(root, progress=False)
    assert report.damaged == []
    assert "nothing is damaged" in str(report)
    assert hashes(generation_of(root)) == before


def test_every_single_file_can_be_lost(built: Path, kind: str, tmp_path: Path) -> None:
    make, processor, _ = STORES[kind]
    given = {"source": make(), "processor": processor}
    digest = read_manifest(built).content_digest
    names = [p.name for p in generation_of(built).iterdir()]
    assert "manifest.json" in names
    for number, name in enumerate(names):
        root, how = tmp_path / name, ("flip", "remove")[number % 2]
        shutil.copytree(built, root)
        if name == "build.json":
            how = "flip"  # only an unfinished build needs it: missing, it is no damage
        damage(generation_of(root) / name, how)
        report = verify(root, "full", progress=False)
        assert any(name in problem.file for problem in report.problems), (name, str(report))
        assert name in repair(root, progress=False, **given).damaged
        assert read_manifest(root).content_digest == digest
        assert verify(root, "full", progress=False).ok, name


def test_what_needs_no_source_is_done_without_one(built: Path, kind: str, tmp_path: Path) -> None:
    possible = {"incidence.safetensors"}
    if kind in ("perturbation", "delta", "ids"):
        possible |= {"columns.safetensors", "shard-00002.lmdb"}
    if kind == "full":
        possible.add("shard-00002.lmdb")
    if kind == "graphs":
        possible.add("columns.safetensors")
    shared = {entry.name for entry in read_manifest(built).files} | {"shard-00002.lmdb"}
    for name in sorted(shared):
        root = tmp_path / name
        shutil.copytree(built, root)
        damage(generation_of(root) / name)
        if name in possible:
            assert repair(root, progress=False).rebuilt == [name]
            assert verify(root, "full", progress=False).ok
        else:
            with pytest.raises((CorruptShardError, SettingError), match="source="):
                repair(root, progress=False)
            assert generation_of(root).name == generation_of(built).name


def store(tmp_path: Path, **settings) -> Path:
    root = tmp_path / "root"
    given = {"source": source(), "processor": tc.LazySubgraphRepresentation(), "storage": "delta", **settings}
    tc.build(root, shard_size=SHARD, progress=False, **given)
    return root


def test_a_damaged_manifest_is_restored_from_the_generations_own_copy(tmp_path: Path) -> None:
    root = store(tmp_path)
    before = (root / "processed/manifest.json").read_bytes()
    damage(root / "processed/manifest.json")
    with pytest.raises(CorruptManifestError):
        tc.PreprocessedDataset(root)
    report = verify(root, progress=False)
    assert [p.file for p in report.problems] == ["manifest.json"]
    assert repair(root, progress=False).damaged == ["manifest.json"]
    assert (root / "processed/manifest.json").read_bytes() == before


def test_manifest_and_shard_damaged_at_once(tmp_path: Path) -> None:
    root = store(tmp_path)
    digest = read_manifest(root).content_digest
    damage(generation_of(root) / "shard-00000.lmdb")
    damage(root / "processed/manifest.json", "truncate")
    assert repair(root, progress=False).damaged == ["manifest.json", "shard-00000.lmdb"]
    assert read_manifest(root).content_digest == digest
    assert verify(root, "full", progress=False).ok


def test_a_manifest_that_several_generations_could_have_is_not_guessed(tmp_path: Path) -> None:
    root = store(tmp_path)
    tc.build(root, source=source(seed=2), processor=tc.Perturbation(), on_stale="rebuild", progress=False)
    damage(root / "processed/manifest.json")
    with pytest.raises(
        CorruptManifestError, match=r"any of gen-\w+-\w+, gen-\w+-\w+ may have been published"
    ):
        repair(root, progress=False)


def test_repair_of_a_repaired_store_and_of_one_shard_only(tmp_path: Path) -> None:
    root = store(tmp_path)
    first = generation_of(root).name
    damage(generation_of(root) / "shard-00001.lmdb")
    repair(root, progress=False)
    for shard in (2, 3):
        damage(generation_of(root) / f"shard-{shard:05d}.lmdb", "remove")
    assert repair(root, progress=False, shard=2).rebuilt == ["shard-00002.lmdb"]
    assert not verify(root, progress=False).ok
    assert repair(root, progress=False).rebuilt == ["shard-00003.lmdb"]
    assert generation_of(root).name == f"{first}-r3"
    assert verify(root, "full", progress=False).ok
    with pytest.raises(SettingError, match="shards 0 to 5"):
        repair(root, progress=False, shard=6)


def test_a_wrong_source_or_processor_is_refused(tmp_path: Path) -> None:
    root = store(tmp_path, processor=doubled, storage="full")
    damage(generation_of(root) / "shard-00001.lmdb")
    with pytest.raises(StaleCacheError, match=r"source\.perturbed"):
        repair(root, source=source(seed=5), processor=doubled, progress=False)
    with pytest.raises(StaleCacheError, match="processor"):
        repair(root, source=source(), processor=graphs, progress=False)
    assert repair(root, source=source(), processor=doubled, progress=False).rebuilt == ["shard-00001.lmdb"]


def test_readers_of_the_old_generation_read_on(tmp_path: Path) -> None:
    root = store(tmp_path)
    dataset = tc.PreprocessedDataset(root)
    want = dataset[0]
    damage(generation_of(root) / "shard-00004.lmdb", "remove")
    repair(root, progress=False)
    assert_same_graph(dataset[0], want)
    assert_same_graph(tc.PreprocessedDataset(root)[0], want)
    with pytest.raises(CorruptShardError, match="missing"):
        dataset[17]
    assert tc.PreprocessedDataset(root)[17] is not None


def test_an_interrupted_repair_is_taken_up_again(tmp_path: Path) -> None:
    root = store(tmp_path)
    old = generation_of(root)
    damage(old / "shard-00001.lmdb")
    half = old.with_name(f"{old.name}-r1")
    half.mkdir()
    shutil.copy(old / "shard-00002.lmdb", half)
    (half / "shard-00001.json").write_text("{}")
    repair(root, progress=False)
    assert generation_of(root) == half
    assert verify(root, "full", progress=False).ok


def test_two_at_once_and_no_store(tmp_path: Path) -> None:
    root = store(tmp_path)
    with (
        BuilderLock(root / "processed/.lock"),
        pytest.raises(BuildInProgressError, match="pid"),
    ):
        repair(root, progress=False)
    with pytest.raises(CacheNotFoundError, match="torchcell-cache preprocess"):
        repair(tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()


def test_homogeneous_and_named_samples(tmp_path: Path) -> None:
    base = plain_graph()
    named = tc.PerturbationTable(
        base, [[0], [1, 2], []], phenotypes={"a": [1, 2, 3]}, source_ids=["x", "y", "z"]
    )
    root = tmp_path / "root"
    tc.build(root, source=named, processor=tc.SubgraphRepresentation(), storage="delta", progress=False)
    damage(generation_of(root) / "columns.safetensors")
    with pytest.raises(
        CorruptShardError, match=r"columns\.safetensors can only be made again from the source"
    ):
        repair(root, progress=False)
    assert repair(root, source=named, progress=False).rebuilt == ["columns.safetensors"]
    assert verify(root, "full", source=named, progress=False).ok
    sidecar = json.loads((generation_of(root) / "shard-00000.json").read_text())
    assert sidecar["generation"] == generation_of(root).name


READER = """
import sys, torchcell_cache as tc
ds = tc.PreprocessedDataset(sys.argv[1])
print(ds[0] is not None, flush=True)
sys.stdin.read()
"""


def test_gc_keeps_what_somebody_reads(tmp_path: Path) -> None:
    root = store(tmp_path)
    first = generation_of(root)
    command = [sys.executable, "-c", READER, str(root)]
    said, out = os.pipe()
    waits, _ = os.pipe()
    reader = fresh.Process(command, (waits, out, 2))
    try:
        with os.fdopen(said) as lines:
            assert lines.readline() == "True\n"
        held = tc.PreprocessedDataset(root)
        for seed in (2, 3):
            settings = {"processor": tc.Perturbation(), "on_stale": "rebuild", "progress": False}
            tc.build(root, source=source(seed=seed), **settings)
        assert first.name not in tc.gc(root, keep=1)
    finally:
        reader.send_signal(signal.SIGKILL)
        reader.wait(30)
    assert tc.gc(root, keep=1, dry_run=True) == []
    sample = held[1]
    del held
    assert tc.gc(root, keep=1) == [first.name]
    assert sample.num_nodes


def test_gc_keeps_what_is_published_and_the_youngest(tmp_path: Path) -> None:
    root = store(tmp_path)
    names = [generation_of(root).name]
    for seed in (2, 3):
        tc.build(
            root, source=source(seed=seed), processor=tc.Perturbation(), on_stale="rebuild", progress=False
        )
        names.append(generation_of(root).name)
    unfinished = root / "processed/gen-0000000000000000-00000000"
    unfinished.mkdir()
    (root / "processed/mine.txt").write_text("kept")
    assert tc.gc(root, keep=3) == []
    assert tc.gc(root, dry_run=True) == [names[0]]
    assert tc.gc(root) == [names[0]]
    assert tc.gc(root, keep=1) == [names[1]]
    assert tc.gc(root, keep=1) == []
    assert unfinished.exists()
    assert tc.gc(root, unfinished=True) == [unfinished.name]
    assert (root / "processed/mine.txt").exists()
    assert verify(root, "full", source=source(seed=3), progress=False).ok
    with pytest.raises(SettingError, match="at least 1"):
        tc.gc(root, keep=0)
    damage(root / "processed/manifest.json")
    with pytest.raises(CorruptManifestError):
        tc.gc(root)
