"""A file of a store that somebody removed: the same typed error from everything that reads, never a raw one."""

import shutil

import pytest

import torchcell_cache as tc
from torchcell_cache.cli.contents import info

GRAPH = tc.testing.tiny_graph(num_genes=8)
FILES = (
    "shard-00000.lmdb", "shard-00003.lmdb", "shard-00001.json", "columns.safetensors", "base_graph.json",
    "base_graph.safetensors", "incidence.safetensors", "manifest.json", "",
)  # fmt: skip


def table(count, first=0):
    rows = range(first, first + count)
    values = {"fitness": [k / 10 for k in rows]}
    names = [[f"G{k % 8}"] for k in rows]
    return tc.PerturbationTable(GRAPH, names, phenotypes=values, source_ids=[str(k) for k in rows])


def build(root, storage):
    processor = tc.LazySubgraphRepresentation()
    return tc.build(
        root, source=table(20), processor=processor, storage=storage, shard_size=5, progress=False
    )


USES = {
    "dataset[i]": lambda ds, root: ds[3],
    "several": lambda ds, root: ds.__getitems__([0, 19]),
    "to_pyg": lambda ds, root: ds.read_batch([0, 19]).to_pyg(),
    "labels": lambda ds, root: ds.read_batch([0, 19]).labels,
    "label_df": lambda ds, root: ds.label_df,
    "base graph": lambda ds, root: ds.base_graph,
    "select": lambda ds, root: tc.select(ds, "fitness > 0.5"),
    "split": lambda ds, root: tc.split_by_perturbation(ds),
    "save_subset": lambda ds, root: tc.save_subset(ds[:7], root.parent / "few", progress=False),
    "append": lambda ds, root: tc.append(root, table(1, 20), progress=False),
    "update": lambda ds, root: tc.update(root, table(21), progress=False),
    "repair": lambda ds, root: tc.repair(root, progress=False),
    "stage": lambda ds, root: tc.stage(root, root.parent / "staged", progress=False),
    "push": lambda ds, root: tc.push(root, f"file://{root.parent}/bucket", progress=False),
    "streaming": lambda ds, root: list(tc.StreamingCacheDataset(ds, batch_size=4)),
    "loader": lambda ds, root: list(tc.CacheLoader(ds, batch_size=4)),
    "info": lambda ds, root: info(root=str(root), bins=5),
}


@pytest.fixture(scope="module", params=["delta", "full"])
def whole(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param) / "s"
    build(root, request.param)
    return root


@pytest.mark.parametrize("name", FILES)
def test_whatever_reads_says_so_in_a_typed_error(whole, tmp_path, name):
    wrong = []
    for number, (use, call) in enumerate(USES.items()):
        root = shutil.copytree(whole, tmp_path / str(number) / "s")
        dataset = tc.PreprocessedDataset(root)
        place = root / "processed" / dataset.generation.manifest.generation
        if name:
            (place / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(place)
        dataset.close()
        try:
            call(dataset, root)
        except tc.errors.CacheError as error:
            if str(tmp_path) not in str(error) or "<root>" in str(error):
                wrong.append((use, str(error)))
        except Exception as error:
            wrong.append((use, repr(error)))
        shutil.rmtree(tmp_path / str(number))
    assert wrong == []


def test_verify_finds_each_of_them(whole, tmp_path):
    for number, name in enumerate(FILES[:-1]):
        root = shutil.copytree(whole, tmp_path / str(number))
        path = next((root / "processed").glob("gen-*")) / name
        if path.exists():
            path.unlink()
            report = tc.verify(root, "full", progress=False)
            assert any(name in str(problem) for problem in report.problems), name


@pytest.mark.parametrize("use", ["append", "update", "to_pyg", "dataset[i]"])
def test_the_fix_mends_it(tmp_path, use):
    dataset = build(tmp_path / "s", "delta")
    place = dataset.generation.directory
    dataset.close()
    (place / "shard-00000.lmdb").unlink()
    with pytest.raises(tc.errors.CorruptShardError) as caught:
        USES[use](dataset, tmp_path / "s")
    command = caught.value.fix.partition("  (or")[0]
    assert command == f"torchcell-cache repair root={tmp_path}/s"
    assert tc.repair(tmp_path / "s", progress=False).damaged
    assert list(tc.PreprocessedDataset(tmp_path / "s")[3]["gene"].ids_pert) == ["G3"]
