"""Files that vanish from the cache of a remote store, with processes reading: they are fetched again."""

import multiprocessing
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import torchcell_cache as tc

GENES = [f"G{k % 8}" for k in range(40)]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    place = tmp_path_factory.mktemp("bucket")
    source = tc.PerturbationTable(
        tc.testing.tiny_graph(num_genes=8),
        [[gene] for gene in GENES],
        phenotypes={"fitness": [k / 10 for k in range(40)]},
    )
    processor = tc.LazySubgraphRepresentation()
    tc.build(place / "s", source=source, processor=processor, storage="delta", shard_size=5, progress=False)
    return tc.push(place / "s", f"file://{place}/b", progress=False)


def genes(dataset, indices):
    return [graph["gene"].ids_pert[0] for graph in dataset.__getitems__(list(indices))]


def everything(place):
    shutil.rmtree(place)


def below(place):
    for path in place.iterdir():
        shutil.rmtree(path)


def locks(place):
    for path in place.rglob(".files.lock"):
        path.unlink()


def a_shard(place):
    next(place.glob("*/processed/*/shard-00000.lmdb")).unlink()


def every_file(place):
    for path in [*place.rglob("*.lmdb"), *place.rglob("*.safetensors"), *place.rglob("*.json")]:
        path.unlink()


def cut_short(place):
    path = next(place.glob("*/processed/*/shard-00000.lmdb"))
    path.unlink()
    path.write_bytes(b"cut")


VANISH = [everything, below, locks, a_shard, every_file, cut_short]
AFTER = {
    "the same sample": lambda ds: genes(ds, [0]) == GENES[:1],
    "all samples": lambda ds: genes(ds, range(40)) == GENES,
    "a batch": lambda ds: ds.read_batch(range(40)).to_pyg().num_graphs == 40,
    "labels": lambda ds: ds.label_df["fitness"].tolist()[7] == pytest.approx(0.7),
    "base graph": lambda ds: ds.base_graph["gene"].num_nodes == 8,
    "a stream": lambda ds: len(list(tc.StreamingCacheDataset(ds, batch_size=4))) == 10,
}


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("vanish", VANISH, ids=lambda one: one.__name__)
def test_what_vanished_is_fetched_again(pushed, tmp_path, vanish, after, closed):
    dataset = tc.PreprocessedDataset(pushed, cache_dir=tmp_path / "c")
    assert genes(dataset, [0, 7]) == [GENES[0], GENES[7]]
    if closed:
        dataset.close()
    vanish(tmp_path / "c")
    assert AFTER[after](dataset)
    again = tc.PreprocessedDataset(pushed, cache_dir=tmp_path / "c")
    assert genes(again, range(40)) == GENES


def test_a_cache_that_is_emptied_over_and_over(pushed, tmp_path):
    """Three threads read while another one removes the directory, faster than anything can be fetched: right, or typed."""
    dataset = tc.PreprocessedDataset(pushed, cache_dir=tmp_path / "c")
    done = threading.Event()

    def remove():
        while not done.wait(0.03):
            shutil.rmtree(tmp_path / "c", ignore_errors=True)
            dataset.close()

    def read(first):
        right = []
        for k in range(first, first + 20):
            try:
                right.append(genes(dataset, [k % 40]) == [GENES[k % 40]])
            except (tc.errors.StorageError, tc.errors.CorruptShardError):
                continue
        return right

    with ThreadPoolExecutor(4) as pool:
        remover = pool.submit(remove)
        found = [pool.submit(read, first) for first in (0, 13, 26)]
        results = [future.result() for future in found]
        done.set()
        remover.result()
    assert all(all(right) for right in results)
    assert genes(dataset, range(40)) == GENES


def _read_in_child(dataset, place, answers):
    shutil.rmtree(place)
    answers.put(genes(dataset, range(40)))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_worker_process_fetches_again_too(pushed, tmp_path, method):
    dataset = tc.PreprocessedDataset(pushed, cache_dir=tmp_path / "c")
    genes(dataset, [0])
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(dataset, tmp_path / "c", answers))
    child.start()
    found = answers.get()
    child.join()
    assert found == GENES
    assert genes(dataset, range(40)) == GENES


def test_an_address_that_is_gone_too_is_said_with_the_local_path(pushed, tmp_path):
    shutil.copytree(pushed.removeprefix("file://"), tmp_path / "b")
    dataset = tc.PreprocessedDataset(f"file://{tmp_path}/b", cache_dir=tmp_path / "c")
    genes(dataset, [0])
    dataset.close()
    shutil.rmtree(tmp_path / "b")
    path = next((tmp_path / "c").glob("*/processed/*/shard-00000.lmdb"))
    path.unlink()
    with pytest.raises(tc.errors.StorageError) as caught:
        genes(dataset, [0])
    assert str(path) in str(caught.value)
    assert f"{tmp_path}/b" in str(caught.value)
    assert "repair" not in caught.value.fix
