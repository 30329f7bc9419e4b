"""Arguments that nobody means are answered in a sentence when they are passed: no error of numpy or torch comes through."""

import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import build, make_source

import torchcell_cache as tc
from torchcell_cache.errors import SettingError

HUGE = [2**63, 2**64, 2**70]
NO_AXIS = [np.array(3), torch.tensor(3)]
RAGGED = [[1, [2]], [[1], [2, 3]]]
NO_TRUTH = [np.array([1, 2]), np.array([]), torch.tensor([1.0, 2.0]), "yes", 1.5]
NO_FUNCTION = [5, 1.5, "x", [1], {}, np.array([1]), torch.tensor(1), object(), True, Path("x")]
NO_NUMBER = [1.5, "x", None, [1, 2], np.array([1, 2]), object(), 1j, datetime.date(2020, 1, 1)]

NO_JSON = [{"a": object()}, {"a": 2**70}, {"a": float("nan")}, np.array([1, 2]), {1: 2}, b"x"]


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wrong"), make_source(), storage="delta")


def loader(ds, **arguments):
    return tc.CacheLoader(ds, **arguments)


def stream(ds, **arguments):
    return tc.StreamingCacheDataset(ds, **{"batch_size": 4, **arguments})


def batches(ds, **arguments):
    return stream(ds).batches(**arguments)


def from_source(ds, **arguments):
    processor = tc.LazySubgraphRepresentation()
    return tc.StreamingCacheDataset.from_source(make_source(), **{"processor": processor, **arguments})


def weighted(ds, **arguments):
    return tc.WeightedCacheSampler(
        ds, 4, **({} if "by" in arguments else {"by": "fitness", "bins": 3}) | arguments
    )


def order(ds, **arguments):
    return tc.DistributedCacheSampler(**{"dataset": ds, "batch_size": 4, **arguments})


def group(ds, **arguments):
    return tc.split_by_group(ds, **{"column": "perturbed_count", "progress": False, **arguments})


def random(ds, **arguments):
    return tc.split_random(ds, **arguments)


def save(ds, **arguments):
    return random(ds, progress=False).save("never", **arguments)


def indices(ds, **arguments):
    return tc.save_indices(**{"path": "never.npy", "chosen": [0, 1], "dataset": ds, **arguments})


def opened(ds, **arguments):
    return tc.PreprocessedDataset(ds.root, **arguments)


def selected(ds, **arguments):
    return tc.select(ds, **arguments)


def names(ds, column):
    return ds.names(column)


def part(ds, name):
    return random(ds, progress=False)[name]


def splits(ds, dataset):
    return tc.Splits.load("never", dataset)


def positions(ds, dataset):
    return tc.load_indices("never.npy", dataset)


def resumed(ds, left):
    stream(ds).load_state_dict({**stream(ds).state_dict(), "left": left})


def subset(ds, made_by):
    return tc.save_subset(ds[:3], "never", made_by=made_by, progress=False)


ALL_OF = [loader, stream, order]
CASES = [
    *((call, "collate_fn", NO_FUNCTION) for call in (loader, batches, from_source)),
    *((call, "worker_init_fn", NO_FUNCTION) for call in (loader, batches)),
    (opened, "transform", NO_FUNCTION),
    *((loader, name, ["x", 5, np.array("x"), [1], [None]]) for name in ("follow_batch", "exclude_keys")),
    *((loader, name, NO_AXIS) for name in ("sampler", "batch_sampler")),
    (loader, "multiprocessing_context", [5, [1], object(), True, "thread"]),
    (loader, "device", [*HUGE, "gpu", object(), 1.5]),
    *((call, "seed", NO_NUMBER) for call in ALL_OF),
    *((call, "batch_size", [0, -1, 1.5, "x", [1, 2]]) for call in ALL_OF),
    *((call, "rank", [np.array([1, 2]), np.array([]), "one"]) for call in ALL_OF),
    *((call, "uneven", [np.array([1, 2]), np.array([]), "one", 5]) for call in ALL_OF),
    *((stream, name, [*NO_NUMBER, 0, -1]) for name in ("chunk_size", "shuffle_buffer_size")),
    (from_source, "run_size", [*NO_NUMBER, 0]),
    (order, "dataset", [*HUGE, *NO_AXIS, -1, 1.5]),
    (weighted, "num_samples", [*HUGE, 0, -1, 1.5, "x"]),
    (weighted, "bins", [*HUGE, *RAGGED, 2**40, 1, 1.5, "x", [2, 1], [], [np.nan]]),
    (weighted, "by", [*NO_AXIS, 5, [], [1], ["fitness", 5]]),
    (weighted, "weights", ["x", [1, 2], *RAGGED]),
    *(
        (group, name, [np.array(99), torch.tensor(99), [99], "x", 99, [[1]], *RAGGED])
        for name in ("train", "val", "test")
    ),
    *((call, "progress", NO_TRUTH) for call in (group, random)),
    *((call, "bins", [*HUGE, 0, 1.5]) for call in (group, random)),
    (selected, "listed", NO_AXIS),
    (save, "overwrite", NO_TRUTH),
    (indices, "dataset", [5, "x", [1], object()]),
    *((call, "made_by", NO_JSON) for call in (indices, subset)),
    (opened, "force_reload", NO_TRUTH[:3]),
    *((opened, key, NO_TRUTH[:3]) for key in ("cache_dir", "cache_bytes", "download", "storage_options")),
    (names, "column", [5, None, [], {}, "fitness", "nothing", np.array([1, 2])]),
    (part, "name", [5, None, [], {}, "nothing", np.array([1, 2])]),
    *((call, "dataset", [5, "x", None]) for call in (splits, positions)),
    (resumed, "left", ["", {}, iter([]), 5, [[0]], [[0, 99]], [[3, 1]]]),
]
LISTED = [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in CASES]


@pytest.mark.parametrize(("call", "name", "values"), LISTED)
def test_it_is_said_when_it_is_passed(ds, call, name, values, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in values:
        with pytest.raises(SettingError) as caught:
            call(ds, **{name: value})
        assert len(str(caught.value)) < 1500, value
        assert list(tmp_path.iterdir()) == [], value


@pytest.mark.parametrize("value", RAGGED)
def test_ragged_lists_index_nothing(ds, value) -> None:
    for use in (ds.__getitem__, ds.positions, ds.read_batch, lambda v: loader(ds, indices=v)):
        with pytest.raises(IndexError, match="indexed by integers"):
            use(value)


def test_large_numbers_that_mean_everything(ds) -> None:
    """Chunks, windows and batches of any size: as those of the whole dataset, in memory that the dataset bounds."""
    for huge in (10**12, 2**63, 2**70):
        order = stream(ds, chunk_size=huge, shuffle_buffer_size=huge, batch_size=huge)
        assert sorted(k for batch in order for k in batch.indices.tolist()) == list(range(len(ds)))
        assert order.shuffle_quality(batch_size=huge).together == 1
        plain = from_source(ds, run_size=huge, chunk_size=huge, batch_size=huge)
        assert next(iter(plain)).num_graphs == len(ds)
        assert loader(
            ds, num_workers=1, timeout=huge, batch_size=huge
        ).__iter__().__next__().indices.tolist() == [*range(len(ds))]


def test_lists_of_names_may_be_used_up(ds) -> None:
    names = iter(["fitness"])
    got = [batch.to_dict().keys() for batch in loader(ds, batch_size=4, expand=True, exclude_keys=names)]
    want = [
        batch.to_dict().keys() for batch in loader(ds, batch_size=4, expand=True, exclude_keys=["fitness"])
    ]
    assert got == want
    assert len(got) > 1


@pytest.mark.parametrize("processor", [None, lambda sample, *_: sample])
def test_a_batch_of_samples_that_are_no_graphs_is_refused(processor) -> None:
    stream = tc.StreamingCacheDataset.from_source(make_source(), processor, 4)
    with pytest.raises(SettingError, match="samples of a table are no graphs"):
        next(iter(stream))
    own = tc.StreamingCacheDataset.from_source(make_source(), processor, 4, collate_fn=len)
    assert next(iter(own)) == 4
