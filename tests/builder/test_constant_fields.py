"""Fields that samples have in common, and the base graph has not: kept once, however the store is built, grown or mended."""

import copy
import math
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from graphs import cell_graph
from torch.utils.data import DataLoader
from torch_geometric.data import Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.errors import CorruptRecordError
from torchcell_cache.store.manifest import read_manifest
from torchcell_cache.testing import assert_same_graph

COUNT, SIZE = 24, 5
NUMBERS = [k / 7 for k in range(600)]
KINDS = {
    "list of numbers": NUMBERS,
    "text": "ACGT" * 2000,
    "array": np.arange(5000.0),
    "tensor": torch.arange(5000) / 3,
    "dict": {"go": list(range(900)), "x": torch.ones(700), "nothing": float("nan")},
    "tuple": tuple(range(3000)),
    "NaN and -0.0": torch.tensor([math.nan, -0.0, 1.0] * 900, dtype=torch.float64),
    "bool": torch.arange(9000) % 3 == 1,
    "bfloat16": torch.arange(3000, dtype=torch.bfloat16),
}


class Adds:
    """A processor of a user's own, which says something anew in each sample."""

    cache_version = 1

    def __init__(
        self, kind: str = "list of numbers", but: tuple[int, ...] = (), absent: tuple[int, ...] = ()
    ):
        self.kind, self.but, self.absent = kind, but, absent

    def process(self, base, sample):
        graph = HeteroData()
        graph["gene"].x = base["gene"].x
        graph["gene"].ids = torch.from_numpy(np.array(sample.perturbed))
        number = round(float(sample.values[0, 0]))
        if number not in self.absent:
            value = copy.deepcopy(KINDS[self.kind])
            if number in self.but:
                value = [0.5, *value[1:]]
            graph["gene"].said = value
        return graph


def table(start: int = 0, stop: int = COUNT, base=None):
    genes = [[k % 9, (k * 5 + 1) % 9] if k % 2 else [k % 9] for k in range(start, stop)]
    numbers = [float(k) for k in range(start, stop)]
    return tc.PerturbationTable(
        cell_graph() if base is None else base, genes, phenotypes={"number": numbers}, duplicate="unique"
    )


def build(root: Path, processor=None, source=None, **settings):
    settings = {"storage": "delta", "shard_size": SIZE, "progress": False, **settings}
    source = table() if source is None else source
    return tc.build(root, source=source, processor=processor or Adds(), **settings)


def assert_serves(dataset, processor, source=None) -> None:
    source = table() if source is None else source
    assert len(dataset) == len(source)
    for k in range(len(source)):
        assert_same_graph(dataset[k], processor.process(source.base_graph, source[k]))
    assert tc.verify(dataset.root, "full", source=source, processor=processor, progress=False).ok


def bytes_per_sample(dataset) -> float:
    return sum(s.file.size for s in dataset.generation.manifest.shards) / len(dataset)


@pytest.mark.parametrize("storage", ["delta", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_value_is_kept_once(tmp_path: Path, kind: str, storage: str) -> None:
    dataset = build(tmp_path, Adds(kind), storage=storage, shard_size=COUNT)
    assert_serves(dataset, Adds(kind))
    assert len(dataset.generation.manifest.schema["constants"]) == 1
    assert bytes_per_sample(dataset) < 1000
    assert dataset.generation.manifest.format_version == 2


def test_a_list_of_7122_numbers_takes_a_kilobyte_at_most(tmp_path: Path, capfd) -> None:
    source = [Data(x=torch.randn(4), weights=[k / 3 for k in range(7122)]) for _ in range(100)]
    dataset = tc.build(tmp_path, source=source)
    assert bytes_per_sample(dataset) < 1000
    for k in (0, 1, 50, 99):
        assert_same_graph(dataset[k], source[k])
    said = [line.split() for line in capfd.readouterr().err.splitlines()]
    [chosen] = [line for line in said if line[-1:] == ["chosen"]]
    assert float(chosen[5].replace(",", "")) < 1000  # auto measures what will be stored


def test_values_of_samples_own_stay_their_own(tmp_path: Path) -> None:
    """Other values here and there, at the first sample, missing ones, short ones, and the same in two fields."""
    for name, processor in {
        "some": Adds(but=(3, 9, 10, 23)),
        "first": Adds(but=(0, 5, 10)),
        "all but one": Adds(absent=(0,)),
        "missing": Adds(absent=tuple(range(1, COUNT, 3))),
        "none": Adds(absent=tuple(range(COUNT))),
    }.items():
        dataset = build(tmp_path / name, processor)
        assert_serves(dataset, processor)
        manifest = dataset.generation.manifest
        assert ("constants" in manifest.schema) == (name != "none"), name
        assert manifest.format_version == 2
    twice = [Data(a=list(NUMBERS), b=list(NUMBERS), c=[k] * 500, y=k) for k in range(9)]
    dataset = tc.build(tmp_path / "twice", source=twice, progress=False)
    assert len(dataset.generation.manifest.schema["constants"]) == 1
    for got, want in zip(dataset, twice, strict=True):
        assert_same_graph(got, want)


def test_equal_is_not_the_same(tmp_path: Path) -> None:
    """1, 1.0 and True; 0.0 and -0.0; dtypes; shapes."""
    values = [
        *([1] * 300, [1.0] * 300, [True] * 300, torch.zeros(200), -torch.zeros(200)),
        *(torch.zeros(200, dtype=torch.int32), torch.zeros(20, 10), np.zeros(200), (1,) * 300),
    ]
    source = [Data(v=copy.deepcopy(v)) for v in values for _ in range(3)]
    for size in (3, 4, 30):
        dataset = tc.build(tmp_path / str(size), source=source, shard_size=size, progress=False)
        for got, want in zip(dataset, source, strict=True):
            assert_same_graph(got, want)
            assert repr(got.v) == repr(want.v)


def files_of(dataset):
    return {s.file.name: s.file.sha256 for s in dataset.generation.manifest.shards}


def test_the_content_is_that_of_any_way_to_build_it(tmp_path: Path) -> None:
    """Workers and tasks give the same bytes; shards of other sizes, of one sample too, the same digest."""
    plain = build(tmp_path / "plain")
    workers = build(tmp_path / "workers", num_workers=2)
    assert files_of(workers) == files_of(plain)
    assert read_manifest(workers.root).schema == read_manifest(plain.root).schema
    settings = {
        "source": table(),
        "processor": Adds(),
        "storage": "delta",
        "shard_size": SIZE,
        "progress": False,
    }
    works = [
        lambda k=k: tc.build_part(tmp_path / "tasks", task=k, tasks=3, **settings).built for k in range(3)
    ]
    assert sum(answer["value"] for answer in forks.together(works, tmp_path / "answers")) == 5
    tasks = tc.finalize(tmp_path / "tasks", tasks=3, **settings)
    assert files_of(tasks) == files_of(plain)
    others = [build(tmp_path / f"of{size}", shard_size=size) for size in (1, 2, 13, 23, COUNT)]
    assert len({d.content_digest for d in (plain, workers, tasks, *others)}) == 1
    assert "constants" not in others[0].generation.manifest.schema  # one sample has nothing in common
    for dataset in others:
        assert_serves(dataset, Adds())


class Stops(Adds):
    """Raises at one sample, as long as a file is there."""

    def __init__(self, flag: Path):
        super().__init__()
        self.flag = flag

    def process(self, base, sample):
        if self.flag.exists() and sample.values[0, 0] == 20:
            raise ValueError("not now")
        return super().process(base, sample)


def test_a_build_that_was_stopped_goes_on(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    with pytest.raises(tc.errors.SampleError):
        build(tmp_path / "store", Stops(flag))
    flag.unlink()
    dataset = build(tmp_path / "store", Stops(flag))
    assert_serves(dataset, Stops(flag))
    assert dataset.content_digest == build(tmp_path / "at once", Stops(flag)).content_digest


@pytest.mark.parametrize("first", [10, 12, 6, 1])
def test_stores_grow(tmp_path: Path, first: int) -> None:
    """Whole shards, begun ones, one sample; by append and by update."""
    full = build(tmp_path / "full")
    for name in ("append", "update"):
        old = build(tmp_path / name, source=table(0, first))
        if name == "append":
            growth = tc.append(old.root, table(first, COUNT, old.base_graph), Adds(), progress=False)
        else:
            growth = tc.update(old.root, table(), Adds(), progress=False)
        assert growth.recomputed == COUNT - first
        grown = tc.PreprocessedDataset(old.root)
        assert grown.content_digest == full.content_digest
        assert_serves(grown, Adds())
        before, after = ("constants" in d.generation.schema for d in (old, grown))
        assert before == after == (first > 1)  # a store stays in its own form


def test_damaged_shards_and_records(tmp_path: Path) -> None:
    """Made again they are the same; a record that names a constant which is not there says so."""
    dataset = build(tmp_path / "store")
    digests = files_of(dataset)
    path = Path(dataset.generation.directory) / "shard-00002.lmdb"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :: 97] = bytes(len(data[len(data) // 2 :: 97]))
    path.chmod(0o644)
    path.unlink()
    path.write_bytes(data)
    assert not tc.verify(dataset.root, "full", progress=False).ok
    assert tc.repair(dataset.root, table(), Adds(), progress=False).rebuilt == ["shard-00002.lmdb"]
    mended = tc.PreprocessedDataset(dataset.root)
    assert files_of(mended) == digests
    assert_serves(mended, Adds())
    other = tc.PreprocessedDataset(dataset.root)
    other.generation.base_fields.constants.clear()
    with pytest.raises(CorruptRecordError, match="which the store does not have"):
        other[0]


def test_a_selection_as_a_store_of_its_own(tmp_path: Path) -> None:
    dataset = build(tmp_path / "store", Adds(but=(3,)))
    rows = [23, 3, 0, 20]
    part = tc.save_subset(dataset[rows], tmp_path / "part", progress=False)
    for k, row in enumerate(rows):
        assert_same_graph(part[k], dataset[row])
    assert tc.verify(part.root, "full", progress=False).ok


def test_samples_do_not_share_what_can_be_changed(tmp_path: Path) -> None:
    for kind in ("list of numbers", "array", "tensor", "dict"):
        dataset = build(tmp_path / kind, Adds(kind))
        first, other = dataset[0]["gene"].said, dataset[1]["gene"].said
        if kind == "dict":
            first["go"][0], first["x"][0] = -1, -1
        else:
            first[0] = -1
        assert_same_graph(dataset[1], Adds(kind).process(dataset.base_graph, table()[1]))
        assert_same_graph(dataset[0], Adds(kind).process(dataset.base_graph, table()[0]))
        changed = dataset[2]
        changed["gene"].said = other
        assert_same_graph(dataset[2], Adds(kind).process(dataset.base_graph, table()[2]))


def test_batches_and_workers(tmp_path: Path) -> None:
    """PyG's batch of the processor's own samples is the oracle."""
    from torch_geometric.data import Batch

    dataset, source = build(tmp_path, Adds("tensor")), table()
    want = Batch.from_data_list([Adds("tensor").process(source.base_graph, source[k]) for k in range(COUNT)])
    [packed] = tc.CacheLoader(dataset, batch_size=COUNT)
    loader = DataLoader(dataset, COUNT, collate_fn=Batch.from_data_list, num_workers=1)
    for got in (packed.to_pyg(), *loader):
        assert got["gene"].said.equal(want["gene"].said)
        assert got["gene"].ids.equal(want["gene"].ids)
    assert packed.graphs[3]["gene"].said.equal(KINDS["tensor"])
