"""Damage of every kind to a finished store: readers get the right sample or a typed error, verify finds all of it."""

from __future__ import annotations

import os
import random
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stores

import torchcell_cache as tc
from torchcell_cache.builder.shards import INCIDENCE_FILE
from torchcell_cache.errors import CacheError, CorruptManifestError, CorruptRecordError, FormatError
from torchcell_cache.store.manifest import manifest_path, processed_dir, read_manifest

Room = Callable[[], Path]
Flips = list[tuple[Path, int]]
CHILD_ROUNDS = 50


def damaged_files(root: Path) -> set[str]:
    """Names of the files that `verify level=full` finds something wrong with."""
    return {Path(problem.file).name for problem in tc.verify(root, level="full", progress=False).problems}


def verify_finds(root: Path) -> bool:
    """Whether `verify level=full` calls the store damaged."""
    try:
        return not tc.verify(root, level="full", progress=False).ok
    except CacheError:
        return True


def published_files(root: Path) -> list[Path]:
    """Everything a reader opens."""
    manifest = read_manifest(root)
    folder = processed_dir(root) / manifest.generation
    return [manifest_path(root), *(folder / entry.name for entry in stores.files_of(manifest))]


def flip(path: Path, bit: int) -> None:
    """Flip one bit in place, as a bad disk or cable would have done before the file was first read here."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def forget_checks() -> None:
    """Digest checks done on this node are remembered by inode and times; a test is faster than their clock."""
    for stamp in Path(os.environ["TORCHCELL_CACHE_STAMPS"]).iterdir():
        stamp.unlink()


def in_child(work: Callable[[], bytes], name: str) -> bytes:
    """Run in a fork, so that a crash of the process is seen as one."""
    out, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            warnings.simplefilter("ignore")
            os.write(report, work())
        except BaseException:
            os.write(report, b"!" + traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(0)
    os.close(report)
    with os.fdopen(out, "rb") as file:
        answer = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"{name}: the process died with {status}"
    assert not answer.startswith(b"!"), f"{name}:\n{answer.decode()}"
    return answer


def try_flips(root: Path, shape: str, rounds: list[Flips]) -> bytes:
    """One letter per flip: `E` if the reader got equal samples, `e` if a typed error.

    The reader meets each flip alone. Verify meets a round of them, one in every file, and must name every file.
    """
    letters = b""
    for flips in rounds:
        for path, bit in flips:
            flip(path, bit)
        found = damaged_files(root)
        for path, bit in flips:
            assert path.name in found, f"verify missed bit {bit} of {path.name}"
            flip(path, bit)
        for path, bit in flips:
            flip(path, bit)
            forget_checks()
            letters += b"E" if stores.read_outcome(root, shape) == "equal" else b"e"
            flip(path, bit)
    return letters


def draw(root: Path, count: int, seed: int) -> list[Flips]:
    """Rounds of one bit in every file: drawn by size alone, the small files would hardly be met."""
    chance, files = random.Random(seed), published_files(root)
    return [
        [(path, chance.randrange(8 * path.stat().st_size)) for path in files]
        for _ in range(-(-count // len(files)))
    ]


def unread(shape: str) -> set[str]:
    """Masks come from the records of these stores: their readers never open the index."""
    return {INCIDENCE_FILE} if shape in ("delta", "full") else set()


def flip_bits(root: Path, shape: str, count: int, seed: int) -> None:
    rounds = draw(root, count, seed)
    for start in range(0, len(rounds), CHILD_ROUNDS):
        some = rounds[start : start + CHILD_ROUNDS]
        answer = in_child(lambda some=some: try_flips(root, shape, some), f"seed {seed}, rounds from {start}")
        names = [path.name for flips in some for path, _ in flips]
        unharmed = {name for name, letter in zip(names, answer, strict=True) if letter == ord("E")}
        assert unharmed <= unread(shape)
    assert stores.read_outcome(root, shape) == "equal"


@pytest.fixture
def editable(room: Room) -> Callable[..., Path]:
    """Makes a store whose files can be edited."""

    def make(shape: str, **settings: object) -> Path:
        root = room() / "built"
        stores.build(root, shape, **settings)
        return stores.copy_store(root, room() / "s")

    return make


# 10,000 in all; the shapes that take longer per flip get fewer.
@pytest.mark.parametrize(
    ("shape", "seed", "count"),
    [
        ("generic", 1, 3500),
        ("generic", 2, 3500),
        ("delta", 3, 1200),
        ("delta", 4, 800),
        ("perturbation", 5, 700),
        ("full", 6, 300),
    ],
)
def test_no_flipped_bit_gives_a_wrong_sample_and_verify_finds_each(
    editable: Callable[..., Path], shape: str, seed: int, count: int
) -> None:
    flip_bits(editable(shape, shard_size=stores.COUNT), shape, count, seed)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(8, 28))
@pytest.mark.parametrize("shape", stores.SHAPES)
def test_no_flipped_bit_of_a_hundred_thousand(editable: Callable[..., Path], shape: str, seed: int) -> None:
    flip_bits(editable(shape), shape, 5_000, seed)


def open_outcomes(root: Path, bits: range) -> bytes:
    path, letters = manifest_path(root), b""
    for bit in bits:
        flip(path, bit)
        try:
            tc.PreprocessedDataset(root)
            letters += b"!"
        except (CorruptManifestError, FormatError):
            letters += b"e"
        flip(path, bit)
    return letters


def test_every_bit_of_a_small_manifest(room: Room) -> None:
    root = room() / "built"
    tc.build(root, source=stores.graphs()[:2], storage="full", progress=False)
    root = stores.copy_store(root, room() / "s")
    bits = 8 * manifest_path(root).stat().st_size
    assert bits > 10_000
    assert open_outcomes(root, range(bits)) == b"e" * bits


def sizes_of(path: Path) -> Iterator[int]:
    size = path.stat().st_size
    wanted = {0, 1, 7, 8, 9, 10, 100, 4096, 8192, size // 2, size - 4096, size - 1, size + 1, size + 4096}
    yield from sorted(n for n in wanted | set(range(0, size, 4096)) if n >= 0 and n != size)


def try_sizes(root: Path, shape: str) -> bytes:
    letters = b""
    for path in published_files(root):
        content = path.read_bytes()
        for size in sizes_of(path):
            os.truncate(path, size)
            outcome = stores.read_outcome(root, shape)
            assert path.name in unread(shape) or outcome in ("CorruptShardError", "CorruptManifestError"), (
                path.name,
                size,
                outcome,
            )
            assert verify_finds(root), (path.name, size)
            path.write_bytes(content)
            letters += b"."
        path.unlink()
        outcome = stores.read_outcome(root, shape)
        missing = "CacheNotFoundError" if path == manifest_path(root) else "CorruptShardError"
        assert outcome == missing or path.name in unread(shape), (path.name, outcome)
        path.write_bytes(content)
    return letters


@pytest.mark.parametrize("shape", stores.SHAPES)
def test_a_file_cut_short_lengthened_or_missing_is_a_typed_error(
    editable: Callable[..., Path], shape: str
) -> None:
    root = editable(shape)
    assert len(in_child(lambda: try_sizes(root, shape), shape)) > 60
    assert stores.read_outcome(root, shape) == "equal"


def try_holes(root: Path, shape: str) -> bytes:
    """Blocks that were never written: the right size, zeros inside."""
    letters = b""
    for path in published_files(root):
        content = path.read_bytes()
        for start in range(0, len(content), 4096):
            if not any(content[start : start + 4096]):
                continue
            path.write_bytes(
                content[:start] + bytes(len(content[start : start + 4096])) + content[start + 4096 :]
            )
            forget_checks()
            outcome = stores.read_outcome(root, shape)
            assert outcome.startswith("Corrupt") or path.name in unread(shape), path.name
            assert verify_finds(root)
            letters += b"."
        path.write_bytes(content)
    return letters


@pytest.mark.parametrize("shape", ["delta", "generic"])
def test_blocks_of_zeros_are_found(editable: Callable[..., Path], shape: str) -> None:
    root = editable(shape)
    assert len(in_child(lambda: try_holes(root, shape), shape)) > 10


# Whole records and shards in the wrong place: digests are made to fit, so that only the record's own checksum is left.


def shard(root: Path, number: int) -> Path:
    manifest = read_manifest(root)
    return processed_dir(root) / manifest.generation / manifest.shards[number].file.name


@pytest.mark.parametrize("shape", stores.SHAPES)
def test_a_record_under_another_key_is_refused(editable: Callable[..., Path], shape: str) -> None:
    root = editable(shape)

    def swap(records: list[bytes]) -> None:
        first = 8 - stores.SHARD
        records[first], records[first + 4] = records[first + 4], records[first]

    stores.edit_records(root, 1, swap)
    stores.fit_digests(root)
    with stores.fresh_handles():
        dataset = tc.PreprocessedDataset(root)
        for index in (8, 12):
            with pytest.raises(CorruptRecordError, match=f"sample {index}: checksum.*shard 1") as caught:
                dataset[index]
            assert "torchcell-cache repair root=" in str(caught.value)
        assert len(dataset.__getitems__([7, 9, 13])) == 3
        with pytest.raises(CorruptRecordError):
            dataset.__getitems__(list(range(stores.COUNT)))
    assert verify_finds(root)


@pytest.mark.parametrize("shape", stores.SHAPES)
@pytest.mark.parametrize("fitted", [False, True])
def test_swapped_shard_files_are_refused(editable: Callable[..., Path], shape: str, fitted: bool) -> None:
    root = editable(shape)
    first, second = shard(root, 0), shard(root, 1)
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    if fitted:
        stores.fit_digests(root)
    assert stores.read_outcome(root, shape) == ("CorruptRecordError" if fitted else "CorruptShardError")
    assert verify_finds(root)


@pytest.mark.parametrize("fitted", [False, True])
def test_a_shard_of_another_store_with_the_same_keys_is_refused(
    editable: Callable[..., Path], room: Room, fitted: bool
) -> None:
    root, other = editable("delta"), room() / "other"
    source = stores.random_case(stores.case().base, num_samples=stores.COUNT, seed=12).source()
    stores.build(other, "delta", source=source)
    shutil.copyfile(shard(other, 1), shard(root, 1))
    if fitted:
        stores.fit_digests(root)
    assert stores.read_outcome(root, "delta") == ("CorruptRecordError" if fitted else "CorruptShardError")
    assert verify_finds(root)


def test_damage_to_a_file_that_is_already_open_is_met_by_the_records_own_checksums(
    editable: Callable[..., Path],
) -> None:
    """What the digest check before the first read cannot see; only record bytes, for pages may crash a process."""
    root = editable("delta")
    with stores.fresh_handles():
        dataset = tc.PreprocessedDataset(root)
        path = shard(root, 1)
        record = dataset.generation.read([9])[0]
        at = path.read_bytes().index(record)
        for byte in range(len(record)):
            flip(path, 8 * (at + byte) + byte % 8)
            with pytest.raises(CorruptRecordError, match="sample 9"):
                dataset[9]
            flip(path, 8 * (at + byte) + byte % 8)
        assert dataset[9]["gene"].perturbation_indices.tolist() == stores.case().perturbed[9]
