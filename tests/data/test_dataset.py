"""``PreprocessedDataset`` behaves like a PyG dataset in every way its users rely on."""

import copy
import pickle
import shutil
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from graphs import cell_graph, random_case
from torch.utils.data import ConcatDataset, Subset, random_split
from torch_geometric.data import Data, Dataset
from torch_geometric.loader import DataLoader

import torchcell_cache as tc
from torchcell_cache.core.indexing import Positions
from torchcell_cache.errors import CacheNotFoundError, SettingError, StaleCacheError, StorageLostError

COUNT = 11


@pytest.fixture(scope="module")
def case():
    return random_case(cell_graph(), num_samples=COUNT, seed=3)


@pytest.fixture(scope="module")
def ds(case, tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    processor = tc.LazySubgraphRepresentation()
    return tc.build(
        root, source=case.source(), processor=processor, storage="delta", shard_size=4, progress=False
    )


def ids(dataset):
    return [graph["gene"].perturbation_indices.tolist() for graph in dataset]


INDICES = {
    "slice": slice(2, 7),
    "open slice": slice(None, -3),
    "step": slice(None, None, 2),
    "float slice": slice(None, 0.5),
    "list": [3, 1, -1],
    "tuple": (0, 4),
    "range": range(2, 9, 3),
    "long tensor": torch.tensor([5, 0, 5]),
    "int32 tensor": torch.tensor([5, 0], dtype=torch.int32),
    "bool tensor": torch.arange(COUNT) % 3 == 0,
    "numpy ints": np.array([7, -2]),
    "numpy bools": np.arange(COUNT) > 8,
    "list of bools": [k in (0, 2) for k in range(COUNT)],
    "empty list": [],
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
def test_every_kind_of_index_selects_what_a_list_would(ds, case, index) -> None:
    everything = np.arange(COUNT)
    if isinstance(index, slice) and isinstance(index.stop, float):
        want = everything[: round(index.stop * COUNT)]
    elif isinstance(index, slice):
        want = everything[index]
    else:
        chosen = np.asarray(index)
        want = everything[chosen if len(chosen) else chosen.astype(int)]
    view = ds[index]
    assert isinstance(view, tc.PreprocessedDataset)
    assert len(view) == len(want)
    assert ids(view) == [case.perturbed[k] for k in want]


def test_views_of_views_compose(ds, case) -> None:
    view = ds[2:][[5, 0, 3]][torch.tensor([True, False, True])]
    assert ids(view) == [case.perturbed[7], case.perturbed[5]]
    assert [g["gene"].perturbation_indices.tolist() for g in view.__getitems__([1, 0])] == ids(view)[::-1]
    assert ids(ds[::-1][1:3]) == [case.perturbed[9], case.perturbed[8]]


@pytest.mark.parametrize(
    "index",
    [COUNT, -COUNT - 1, [0, COUNT], torch.tensor([-COUNT - 1]), np.array([2**64 - 1], dtype=np.uint64)],
    ids=repr,
)
def test_out_of_range_raises_index_error(ds, index) -> None:
    with pytest.raises(IndexError, match=str(COUNT)):
        ds[index]
    with pytest.raises(IndexError):
        ds[3:5][2]


def test_wrong_kinds_of_index_say_what_is_possible(ds) -> None:
    with pytest.raises(IndexError, match="integers, slices"):
        ds["3"]
    with pytest.raises(IndexError, match="mask of 3 bools for 11"):
        ds[[True, False, True]]
    with pytest.raises(IndexError, match="float"):
        ds[np.array([0.5])]


@pytest.mark.parametrize(
    "index", [None, 1.0, torch.tensor(1.5), np.array(2.0), torch.tensor(True), True], ids=repr
)
def test_what_is_no_number_of_a_sample_is_not_made_one(ds, index) -> None:
    with pytest.raises(IndexError, match="integers, slices"):
        ds[index]
    with pytest.raises(IndexError, match="integers, slices"):
        ds[2:5][index]


@pytest.mark.parametrize("index", [3, np.int64(3), torch.tensor(3), -8])
def test_scalar_indices_give_one_sample(ds, case, index) -> None:
    assert ds[index]["gene"].perturbation_indices.tolist() == case.perturbed[3]


def test_pyg_interface(ds) -> None:
    assert isinstance(ds, Dataset)
    assert repr(ds) == f"PreprocessedDataset({COUNT})"
    assert ds.num_features == {"gene": 3, "reaction": 0, "metabolite": 0}
    shuffled, permutation = ds.shuffle(return_perm=True)
    assert ids(shuffled) == [ids(ds)[k] for k in permutation.tolist()]
    assert ids(ds.index_select([4, 2])) == [ids(ds)[4], ids(ds)[2]]
    assert len(copy.copy(ds)) == COUNT
    assert len(list(iter(ds))) == COUNT
    assert Path(ds.processed_dir, "manifest.json").exists()


def test_transform_is_applied_on_every_path_and_never_stored(ds, case) -> None:
    def mark(graph):
        graph["gene"].marked = len(graph["gene"].ids_pert)
        return graph

    marked = tc.PreprocessedDataset(ds.root, transform=mark)
    want = [len(p) for p in case.perturbed]
    assert [g["gene"].marked for g in marked] == want
    assert [g["gene"].marked for g in marked.__getitems__(range(COUNT))] == want
    assert [g["gene"].marked for g in marked[4:]] == want[4:]
    assert "marked" not in ds[0]["gene"]


def test_torch_and_pyg_containers_read_the_right_rows(ds, case) -> None:
    def loaded(dataset):
        return [p for b in DataLoader(dataset, batch_size=3) for p in b["gene"].ids_pert]

    names = [[f"Y{k:03d}" for k in p] for p in case.perturbed]
    assert loaded(ds) == names
    assert loaded(ds[5:]) == names[5:]
    assert loaded(Subset(ds, [4, 1, 9])) == [names[k] for k in (4, 1, 9)]
    assert loaded(Subset(Subset(ds[2:], [0, 3, 5]), [2, 0])) == [names[7], names[2]]
    assert loaded(ConcatDataset([ds[:2], ds[8:]])) == names[:2] + names[8:]
    first, second = random_split(ds, [6, 5], generator=torch.Generator().manual_seed(1))
    assert sorted(loaded(first) + loaded(second)) == sorted(names)


def test_two_datasets_on_one_root_share_the_file_and_the_base_graph(ds) -> None:
    other = tc.PreprocessedDataset(ds.root)
    assert ids(other[::2]) == ids(ds)[::2]
    assert other.base_graph is ds.base_graph
    assert ds.cell_graph is ds.base_graph


def test_pickles_small_and_reads_the_same_afterwards(ds) -> None:
    for dataset in (ds, ds[3:]):
        data = pickle.dumps(dataset)
        assert len(data) < 10_000
        assert ids(pickle.loads(data)) == ids(dataset)


def test_a_slice_of_a_large_store_pickles_small() -> None:
    positions = Positions(np.arange(300_000)[7::3])
    data = pickle.dumps(positions)
    assert len(data) < 300
    assert pickle.loads(data).array.tolist() == list(range(7, 300_000, 3))


def test_a_removed_generation_is_named(tmp_path: Path, case) -> None:
    ds = tc.build(tmp_path, source=case.source(), processor=tc.Perturbation(), progress=False)
    data = pickle.dumps(ds)
    shutil.rmtree(ds.generation.directory)
    with pytest.raises(StorageLostError, match="was removed"):
        pickle.loads(data)


def test_metadata_comes_from_the_store_without_the_source(ds, case) -> None:
    dataset = tc.PreprocessedDataset(ds.root)
    assert dataset.phenotype_info == ["fitness", "size"]
    assert dataset.statistic_info == ["fitness_se"]
    frame = dataset.label_df
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        "index": "int64",
        "fitness": "float64",
        "size": "float64",
    }
    for row, rows in enumerate(case.measurements):
        for name in ("fitness", "size", "fitness_se"):
            known = [np.float32(r[name]) for r in rows if not np.isnan(r[name])]
            mean = dataset.columns[name][row]
            assert np.isnan(mean) if not known else mean == pytest.approx(np.mean(known))
            if name in frame:
                assert np.isnan(frame[name][row]) if not known else frame[name][row] == np.float64(known[-1])
    assert [p.tolist() for p in dataset[4:6].perturbed] == case.perturbed[4:6]
    assert dataset.columns["perturbed_count"].tolist() == [len(p) for p in case.perturbed]
    edges = [e for k in case.base.edge_types if k[2] == "gene" for e in case.base[k].edge_index.t().tolist()]
    removed = [sum(a in p or b in p for a, b in edges) for p in case.perturbed]
    assert dataset.columns["removed_edges"].tolist() == removed
    assert dataset[3:].label_df["index"].tolist() == list(range(3, COUNT))


def test_base_graph_comes_back_bit_for_bit(ds, case) -> None:
    oracle.assert_stores_equal(oracle.stores_of(ds.base_graph), oracle.stores_of(case.base))


def test_missing_store_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="torchcell-cache preprocess"):
        tc.PreprocessedDataset(tmp_path / "nothing")
    with pytest.raises(CacheNotFoundError):
        tc.PreprocessedDataset(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [{"pre_transform": len}, {"pre_filter": len}, {"force_reload": True}, {"root": None}]
)
def test_arguments_of_the_build_are_refused(ds, arguments) -> None:
    with pytest.raises(SettingError):
        tc.PreprocessedDataset(**{"root": ds.root, **arguments})


def test_torchcells_calling_style(tmp_path: Path, case) -> None:
    source = case.source()
    ds = tc.Neo4jPreprocessedCellDataset(root=str(tmp_path))
    ds.preprocess_from_source(source_dataset=source, graph_processor=tc.LazySubgraphRepresentation())
    assert ids(ds) == case.perturbed
    again = tc.PreprocessedDataset(tmp_path, source_dataset=source)
    assert len(again) == COUNT
    other = random_case(cell_graph(seed=5), num_samples=COUNT, seed=4).source()
    with pytest.raises(StaleCacheError, match="perturbed"):
        tc.PreprocessedDataset(tmp_path, source_dataset=other)
    deferred = tc.PreprocessedDataset(tmp_path / "later", source_dataset=source)
    with pytest.raises(CacheNotFoundError):
        len(deferred)
    deferred.preprocess_from_source(source, tc.Perturbation(), num_workers=0)
    assert len(deferred) == COUNT


def test_num_classes_is_answered_from_metadata(tmp_path: Path) -> None:
    graphs = [Data(x=torch.ones(2, 1), y=torch.tensor([k % 3])) for k in range(7)]
    ds = tc.build(tmp_path, source=graphs, progress=False)
    assert ds.num_classes == 3
    assert ds.columns["y"].tolist() == [k % 3 for k in range(7)]
    assert ds.num_node_features == 1
