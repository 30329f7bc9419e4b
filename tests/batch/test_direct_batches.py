"""Batches written straight into their buffer are the ordinary ones: the same bytes, the same refusals of damage."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from batch_cases import cases
from graphs import cell_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.errors import CorruptRecordError, CorruptShardError
from torchcell_cache.store import table_reader


def read(root, positions, *, memory: bool) -> bytes:
    """The packed batch, with or without the copy of the columns in memory."""
    generation = tc.PreprocessedDataset(root).generation
    if not memory:
        generation.__dict__["table_reader"] = None
    return tc.SharedGraphBatch.read(generation, positions).pack().tobytes()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases(), data=st.data())
def test_the_buffer_is_that_of_the_ordinary_way(case, data):
    storage = data.draw(st.sampled_from(("perturbation", "delta")))
    rule = hasattr(case.base, "node_types") and "reaction" in case.base.node_types
    processor = tc.LazySubgraphRepresentation(
        gpr=data.draw(st.sampled_from(("any", "rule"))) if rule else "any"
    )
    with tempfile.TemporaryDirectory() as root:
        ds = tc.build(
            root, source=case.source(), processor=processor, storage=storage, shard_size=2, progress=False
        )
        for _ in range(3):
            positions = data.draw(st.lists(st.integers(0, len(ds) - 1), min_size=1, max_size=7))
            assert read(root, positions, memory=True) == read(root, positions, memory=False)


@pytest.fixture
def store(tmp_path: Path):
    """Two hundred knock-outs of one to three genes, one complete measurement each."""
    random = np.random.default_rng(3)
    genes = [sorted(random.choice(9, 1 + k % 3, replace=False).tolist()) for k in range(200)]
    labels = {"fitness": random.random(200), "size": random.random(200)}
    source = tc.PerturbationTable(cell_graph(), genes, phenotypes=labels)
    processor = tc.LazySubgraphRepresentation()

    def make(storage: str):
        root = tmp_path / storage
        return tc.build(
            root, source=source, processor=processor, storage=storage, shard_size=16, progress=False
        )

    return make


@pytest.mark.parametrize("storage", ["perturbation", "delta"])
def test_the_first_read_of_a_file_and_later_ones_agree(store, storage: str) -> None:
    ds = store(storage)
    order = np.random.default_rng(0).permutation(200)
    first = [ds.read_batch(part).pack().tobytes() for part in np.split(order, 8)]
    ds.close()
    again = [ds.read_batch(part).pack().tobytes() for part in np.split(order, 8)]
    later = [ds.read_batch(part).pack().tobytes() for part in np.split(order, 8)]
    assert first == again == later
    for part in np.split(order, 8):
        assert read(ds.root, part, memory=True) == read(ds.root, part, memory=False)


def test_a_batch_may_be_changed_and_others_do_not_notice(store) -> None:
    ds = store("delta")
    before = ds.read_batch([3, 4]).pack().tobytes()
    batch = ds.read_batch([3, 4])
    batch.pack()[:] = 0
    assert ds.read_batch([3, 4]).pack().tobytes() == before


def damage(path: Path, at: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_table_is_refused(store) -> None:
    ds = store("perturbation")
    damage(ds.generation.directory / "columns.safetensors", -3)
    with pytest.raises(CorruptShardError, match=r"columns\.safetensors has digest(.|\n)*repair root=/"):
        tc.PreprocessedDataset(ds.root).read_batch([0, 1])


def test_a_record_damaged_after_the_file_was_opened_is_refused(store) -> None:
    ds = store("delta")
    for _ in range(2):
        ds.read_batch(range(16))
    path = ds.generation.directory / "shard-00000.lmdb"
    record = ds.generation.read([5])[0]
    path.chmod(0o644)
    with path.open("r+b") as file:  # in place: the mapping sees it
        at = path.read_bytes().index(record)
        file.seek(at + len(record) - 1)
        file.write(bytes([record[-1] ^ 4]))
    with pytest.raises(CorruptRecordError, match="sample 5"):
        ds.read_batch(range(16))


def test_a_table_too_large_for_memory_is_read_from_records(store, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = store("perturbation")
    with_copy = ds.read_batch(range(50)).pack().tobytes()
    monkeypatch.setattr("torchcell_cache.store.generation.MAX_BYTES", 10)
    small = tc.PreprocessedDataset(ds.root)
    assert small.generation.table_reader is None
    assert small.read_batch(range(50)).pack().tobytes() == with_copy
    assert table_reader.MAX_BYTES > 10
