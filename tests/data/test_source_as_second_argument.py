"""What stands second when a dataset is opened: a transform for one class, the source for torchcell's."""

import copy
import pickle

import pytest
import torch_geometric.transforms as T

import torchcell_cache as tc

SOURCE = tc.testing.tiny_source(6)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("stores") / "s"
    tc.build(place, source=SOURCE, processor=tc.LazySubgraphRepresentation(), progress=False)
    return place


@pytest.mark.parametrize(
    "second",
    [SOURCE, [1, 2], "s", 3, ("a",)],
    ids=lambda one: type(one).__name__,
)
def test_what_is_no_function_is_no_transform(root, second):
    with pytest.raises(tc.errors.SettingError, match=f"transform is a {type(second).__name__}.*source"):
        tc.PreprocessedDataset(root, second)


@pytest.mark.parametrize(
    "second",
    [lambda graph: graph, T.Compose([]), T.ToUndirected(), copy.copy],
    ids=lambda one: type(one).__name__,
)
def test_functions_are_transforms(root, second):
    assert len(tc.PreprocessedDataset(root, second)) == 6
    with pytest.raises(tc.errors.SettingError, match=r"transform=\.\.\."):
        tc.Neo4jPreprocessedCellDataset(root, second)


def test_torchcells_class_takes_the_source_second(root, tmp_path):
    opened = tc.Neo4jPreprocessedCellDataset(root, SOURCE, lambda graph: "seen")
    assert opened[0] == "seen"
    with pytest.raises(tc.errors.StaleCacheError):
        tc.Neo4jPreprocessedCellDataset(root, tc.testing.tiny_source(5))
    fresh = tc.Neo4jPreprocessedCellDataset(tmp_path / "new", SOURCE)
    fresh.preprocess_from_source(SOURCE, tc.LazySubgraphRepresentation(), progress=False)
    assert len(fresh) == 6
    assert len(pickle.loads(pickle.dumps(fresh))[2:]) == 4
