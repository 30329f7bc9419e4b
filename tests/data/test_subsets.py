"""Samples chosen from columns, index files that know their store, and smaller stores that equal the view."""

import contextlib
import json
import pickle

import numpy as np
import pytest
import torch
import xxhash
from graphs import cell_graph, plain_graph, random_case
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.core.sealed import unseal
from torchcell_cache.errors import (
    CacheNotFoundError,
    CorruptManifestError,
    CorruptRecordError,
    FormatError,
    SettingError,
    StaleCacheError,
)
from torchcell_cache.testing import assert_same_graph

COUNT = 40
CASE = random_case(cell_graph(), num_samples=COUNT, seed=4)
STATISTIC_FIELDS = [
    f"phenotype_stat_{name}" for name in ("values", "type_indices", "sample_indices", "types")
]
STORAGES = ("perturbation", "delta", "full")


def build(root, case=CASE, storage="delta", **settings):
    processor = settings.pop("processor", tc.LazySubgraphRepresentation())
    source = settings.pop("source", None) or case.source()
    return tc.build(
        root, source=source, processor=processor, storage=storage, shard_size=7, progress=False, **settings
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("subsets")
    return {storage: build(root / storage, storage=storage) for storage in STORAGES}


@pytest.fixture(scope="module")
def ds(stores):
    return stores["delta"]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A store whose samples have names."""
    genes = [["Y001"], ["Y002", "Y003"], [], ["Y003"], ["Y001", "Y002", "Y003"]]
    source = tc.PerturbationTable(
        cell_graph(), genes, phenotypes={"fitness": [1.0, 0.5, 1.0, 0.25, 0.0]}, source_ids=list("abcde")
    )
    return build(tmp_path_factory.mktemp("named"), source=source)


# What is chosen


def rows_where(ds, keep):
    """Brute force over the table of labels and the lists of perturbed nodes."""
    labels = {name: ds.columns[name] for name in ds.label_columns.values()}
    rows = [
        {"index": k, **{name: column[n] for name, column in labels.items()}}
        for n, k in enumerate(ds.positions())
    ]
    return [
        k for k, (row, nodes) in enumerate(zip(rows, ds.perturbed, strict=True)) if keep(row, nodes.tolist())
    ]


@pytest.mark.parametrize("view", ["whole", "view"])
def test_conditions_against_a_loop_over_all_samples(ds, view) -> None:
    ds = ds if view == "whole" else ds[::-1][3:]
    names = ds.base_graph["gene"].node_ids
    for arguments, keep in [
        ({"where": "fitness > 0"}, lambda row, _: row["fitness"] > 0),
        (
            {"where": "perturbed_count in (2, 3) and (size < 0 or isnan(size))"},
            lambda row, nodes: len(nodes) in (2, 3) and not row["size"] >= 0,
        ),
        ({"where": "index % 3 == 1"}, lambda row, _: row["index"] % 3 == 1),
        ({"genes": [names[1], names[4]]}, lambda _, nodes: 1 in nodes or 4 in nodes),
        ({"genes": names[1]}, lambda _, nodes: 1 in nodes),
        ({"genes": [names[1], names[4]], "match": "all"}, lambda _, nodes: 1 in nodes and 4 in nodes),
        ({"genes": names[:4], "match": "only"}, lambda _, nodes: nodes and all(n < 4 for n in nodes)),
        ({"without": [names[2]]}, lambda _, nodes: 2 not in nodes),
        (
            {"where": "perturbed_count > 1", "genes": [names[0]], "without": [names[5], names[6]]},
            lambda _, nodes: len(nodes) > 1 and 0 in nodes and not {5, 6} & set(nodes),
        ),
    ]:
        got = tc.select(ds, **arguments)
        assert got.dtype == np.int64
        assert got.tolist() == rows_where(ds, keep), arguments
        assert 0 < len(got) < len(ds)


def test_random_draws_are_nested_and_the_same_everywhere(ds) -> None:
    tens = [tc.select(ds, n=n, seed=3).tolist() for n in range(COUNT + 1)]
    for n, drawn in enumerate(tens):
        assert len(set(drawn)) == n
        assert drawn == sorted(drawn)
        assert set(drawn) <= set(tens[min(n + 1, COUNT)])
    assert tens[5] != tc.select(ds, n=5, seed=4).tolist()
    assert tens[6] == [1, 6, 13, 26, 31, 34]  # pinned: no numpy version may change it
    left = tc.select(ds, "fitness > 0")
    assert set(tc.select(ds, "fitness > 0", n=4).tolist()) <= set(left.tolist())


def test_strata_without_a_draw_are_refused(ds) -> None:
    with pytest.raises(SettingError, match="n= says how many"):
        tc.select(ds, stratify="perturbed_count")


def test_stratified_draws_keep_the_proportions(ds) -> None:
    counts = ds.columns["perturbed_count"]
    for n in (10, 20, 31):
        drawn = tc.select(ds, n=n, stratify="perturbed_count")
        assert len(set(drawn.tolist())) == n
        for value in set(counts.tolist()):
            share = n * (counts == value).mean()
            assert abs((counts[drawn] == value).sum() - share) <= 1, (n, value)


def test_lists_of_positions_and_of_names(ds, named, tmp_path) -> None:
    (tmp_path / "rows.txt").write_text("# chosen by hand\n7\n3\n\n12\n")
    assert tc.select(ds, listed=tmp_path / "rows.txt").tolist() == [7, 3, 12]
    view = ds[[12, 3, 7, 9]]
    assert tc.select(view, listed=tmp_path / "rows.txt").tolist() == [2, 1, 0]
    (tmp_path / "names.txt").write_text("d\na\n")
    assert tc.select(named, listed=tmp_path / "names.txt").tolist() == [3, 0]
    assert tc.select(named, listed=["e", "b"], where="fitness > 0").tolist() == [1]
    for text, message in [
        ("x\n", "'x' is no store position"),
        ("99\n", "99 is out of range"),
        ("-1\n", "'-1'"),
    ]:
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(SettingError, match=message):
            tc.select(ds, listed=tmp_path / "bad.txt")
    with pytest.raises(SettingError, match=r"no sample with source id 'zz'"):
        tc.select(named, listed=["zz"])
    with pytest.raises(SettingError, match="have no source ids"):
        tc.select(ds, listed=["a"])
    with pytest.raises(SettingError, match=r"sample 7 of the store is not in this view of 2 samples"):
        tc.select(ds[:2], listed=tmp_path / "rows.txt")
    with pytest.raises(CacheNotFoundError, match="no list"):
        tc.select(ds, listed=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"where": "fitnes > 0"}, "did you mean 'fitness'"),
        ({"genes": ["Y01"]}, r"no node 'Y01'; did you mean 'Y001'\? it has 9, from 'Y000' to 'Y008'"),
        ({"without": [3]}, "expected a list of names"),
        ({"genes": 3}, "expected a list of names"),
        ({"genes": None}, "expected a list of names"),
        ({"match": "some"}, "'any', 'all', 'only'"),
        ({"n": 41}, "n=41: 40 samples fulfil"),
        ({"n": -1}, "whole number from 0"),
        ({"n": 2.5}, "whole number from 0"),
        ({"n": 2, "seed": "a"}, "seed='a'"),
        ({"n": 2, "bins": 0}, "bins=0"),
        ({"n": 3, "stratify": "fitnes"}, "did you mean 'fitness'"),
    ],
)
def test_wrong_arguments_are_answered_with_the_valid_ones(ds, arguments, message) -> None:
    with pytest.raises(SettingError, match=message):
        tc.select(ds, **arguments)


def test_nothing_is_read_but_columns(stores, tmp_path) -> None:
    ds = build(tmp_path / "s")
    for path in ds.generation.directory.glob("shard-*.lmdb"):
        path.unlink()
    ds = tc.PreprocessedDataset(tmp_path / "s")
    assert tc.select(ds, "fitness > 0", genes=["Y001"], n=2, stratify="size").tolist()
    assert tc.split_by_perturbation(ds, stratify="fitness").train.size


# Index files


def test_an_index_file_is_a_view(ds, stores, tmp_path) -> None:
    chosen = tc.select(ds, "fitness > 0")
    path = tc.save_indices(tmp_path / "deep" / "a.npy", ds[chosen], made_by={"where": "fitness > 0"})
    assert np.load(path).tolist() == chosen.tolist()
    assert tc.load_indices(path, ds).tolist() == chosen.tolist()
    view = tc.PreprocessedDataset(ds.root, indices=path)
    assert view.label_df.equals(ds[chosen].label_df)
    assert all(
        np.array_equal(v, ds[chosen].columns[k], equal_nan=v.dtype.kind == "f")
        for k, v in view.columns.items()
    )
    for got in (view, pickle.loads(pickle.dumps(view)), view[:]):
        assert len(got) == len(chosen)
        assert_same_graph(got[1], ds[int(chosen[1])])
    assert tc.PreprocessedDataset(ds.root, indices=[4, -1]).positions().tolist() == [4, COUNT - 1]
    for other in stores.values():  # the same samples in another storage
        assert tc.load_indices(path, other).tolist() == chosen.tolist()
    note = unseal(tmp_path.joinpath("deep/a.npy.json").read_bytes())
    assert note["made_by"] == {"where": "fitness > 0"}
    assert note["store"]["content_digest"] == ds.content_digest
    tc.save_indices(path, [1, 0], ds[chosen])
    assert tc.load_indices(path, ds).tolist() == chosen[[1, 0]].tolist()


def test_loaders_take_an_index_file(ds, tmp_path) -> None:
    chosen = tc.select(ds, "perturbed_count == 2")
    path = tc.save_indices(tmp_path / "a.npy", ds[chosen])
    for given in (path, str(path), chosen):
        loader = tc.CacheLoader(ds, 4, indices=given)
        assert [k for batch in loader for k in batch.indices.tolist()] == chosen.tolist()
    shuffled = tc.CacheLoader(ds[::-1], 4, True, indices=path)
    assert sorted(k for batch in shuffled for k in batch.indices.tolist()) == chosen.tolist()
    with pytest.raises(SettingError, match="not in this view"):
        tc.CacheLoader(ds[:2], 4, indices=path)
    with pytest.raises(SettingError, match=r"a PreprocessedDataset, got list"):
        tc.CacheLoader([1], 4, indices=[0])


def test_an_index_file_of_another_store_is_refused(ds, tmp_path) -> None:
    path = tc.save_indices(tmp_path / "a.npy", ds[[1, 2]])
    other = build(tmp_path / "other", random_case(cell_graph(), num_samples=COUNT, seed=5))
    shorter = build(tmp_path / "shorter", random_case(cell_graph(), num_samples=30, seed=4))
    for store, text in ((other, r"source\.perturbed"), (shorter, "40 samples then, 30 now")):
        with pytest.raises(StaleCacheError, match=text):
            tc.PreprocessedDataset(store.root, indices=path)
    path.with_name("a.npy.json").unlink()
    assert tc.load_indices(path, other).tolist() == [1, 2]


def test_damaged_and_foreign_index_files(ds, tmp_path) -> None:
    path = tc.save_indices(tmp_path / "a.npy", ds[[1, 2, 3]])
    whole, note = path.read_bytes(), tmp_path.joinpath("a.npy.json").read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with contextlib.suppress(StaleCacheError, FormatError):
            assert tc.load_indices(path, ds).tolist() == [
                1,
                2,
                3,
            ]  # it was a part of the header that says nothing
    path.write_bytes(whole)
    for at in range(0, len(note), 7):
        damaged = bytearray(note)
        damaged[at] ^= 1
        tmp_path.joinpath("a.npy.json").write_bytes(damaged)
        with pytest.raises(CorruptManifestError):
            tc.load_indices(path, ds)
    tmp_path.joinpath("a.npy.json").unlink()
    for array, error in [
        (np.array([0.5]), FormatError),
        (np.zeros((2, 2), np.int64), FormatError),
        (np.array([COUNT]), IndexError),
        (np.array([-1]), IndexError),
        (np.array([2**63], np.uint64), FormatError),
        (np.array([1, 2], ">i2"), None),
        (np.array([], np.int64), None),
    ]:
        np.save(path, array)
        if error is None:
            assert tc.load_indices(path, ds).tolist() == array.tolist()
        else:
            with pytest.raises(error, match=r"a\.npy"):
                tc.load_indices(path, ds)
    np.save(path, np.array([{"a": 1}], dtype=object))  # a pickle
    with pytest.raises(FormatError, match="whole numbers"):
        tc.load_indices(path, ds)
    path.write_bytes(whole[:-3])
    with pytest.raises(FormatError, match="whole numbers"):
        tc.load_indices(path, ds)
    huge = whole.replace(b"(3,), }        ", b"(99999999999,),}")
    path.write_bytes(huge)
    with pytest.raises(FormatError):
        tc.load_indices(path, ds)
    with pytest.raises(CacheNotFoundError, match=r"no index file(.|\n)*torchcell-cache select"):
        tc.load_indices(tmp_path / "none.npy", ds)
    for arguments, text in [
        (("a.txt", ds[:1]), r"end in \.npy"),
        (("a.npy", [0.5]), "whole numbers"),
        (("a.npy", [-1]), "need"),
    ]:
        with pytest.raises(SettingError, match=text):
            tc.save_indices(*arguments)


def test_the_bytes_of_an_index_file(ds, tmp_path) -> None:
    """Pinned: files that are out in the world must stay readable."""
    path = tc.save_indices(tmp_path / "a.npy", ds[[3, 1]], made_by={"n": 2})
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }"
    assert path.read_bytes() == (
        b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n" + bytes([3, *[0] * 7, 1, *[0] * 7])
    )
    note = unseal(tmp_path.joinpath("a.npy.json").read_bytes())
    assert set(note) == {"format", "version", "store", "count", "xxh3", "made_by"}
    assert set(note["store"]) == {"content_digest", "num_samples", "fingerprint"}
    assert (note["format"], note["version"], note["count"]) == ("torchcell_cache indices", 1, 2)
    assert note["xxh3"] == xxhash.xxh3_128_hexdigest(path.read_bytes()[128:])
    assert note["store"]["fingerprint"] == ds.generation.manifest.fingerprint


# Stores of their own


@pytest.mark.parametrize("storage", STORAGES)
def test_a_smaller_store_equals_the_view(stores, storage, tmp_path) -> None:
    view = stores[storage][[30, 2, 2, 17, 39, 0, 11, 8]]
    sub = tc.save_subset(view, tmp_path / "sub", shard_size=3, made_by={"why": "a test"}, progress=False)
    assert (len(sub), sub.storage) == (len(view), storage)
    for k in range(len(view)):
        assert_same_graph(sub[k], view[k])
    assert sub.generation.read([3])[0][8:] == view.generation.read([17])[0][8:]
    some = {
        "expand": True,
        "exclude_keys": STATISTIC_FIELDS,
    }  # PyG makes no batch of samples with and without them
    loaders = [tc.CacheLoader(ds, 3, True, seed=2, **some) for ds in (sub, view)]
    for ours, theirs in zip(*loaders, strict=True):
        assert_same_graph(ours, theirs)
    for name in ("fitness", "size"):
        assert sub.label_df[name].equals(view.label_df[name])
    for name, column in view.columns.items():
        assert np.array_equal(column, sub.columns[name], equal_nan=column.dtype.kind == "f")
    assert [ids.tolist() for ids in sub.perturbed] == [ids.tolist() for ids in view.perturbed]
    report = tc.verify(tmp_path / "sub", level="full", progress=False)
    assert report.ok, report
    origin = sub.generation.manifest.fingerprint["source"]
    assert origin["class"] == "Subset"
    assert origin["of"]["content_digest"] == view.content_digest
    assert origin["selection"]["made_by"] == {"why": "a test"}
    shared = sub.generation.directory / "base_graph.safetensors"
    assert shared.stat().st_ino == (view.generation.directory / shared.name).stat().st_ino


@pytest.mark.parametrize("storage", STORAGES)
def test_it_is_what_a_build_of_those_samples_alone_would_be(stores, storage, tmp_path) -> None:
    rows = [3, 4, 9, 20, 21]
    alone = random_case(cell_graph(), num_samples=COUNT, seed=4)
    for part in (alone.perturbed, alone.measurements):
        part[:] = [part[k] for k in rows]
    built = build(tmp_path / "built", alone, storage)
    sub = tc.save_subset(stores[storage][rows], tmp_path / "sub", progress=False)
    assert sub.content_digest == built.content_digest
    columns = [d.generation.directory / "columns.safetensors" for d in (sub, built)]
    assert columns[0].read_bytes() == columns[1].read_bytes()


def test_stores_of_graphs_and_names_survive_the_selection(named, tmp_path) -> None:
    base = plain_graph()
    data = [Data(x=base.x + k, edge_index=base.edge_index, y=torch.tensor([k % 3])) for k in range(9)]
    data[8].extra = torch.ones(2)
    graphs = tc.build(tmp_path / "graphs", source=data, shard_size=4, progress=False)
    few = graphs[[7, 1, 2]]
    sub = tc.save_subset(few, tmp_path / "few", progress=False)
    for k in range(3):
        assert_same_graph(sub[k], data[[7, 1, 2][k]])
    assert sub.columns["y"].tolist() == [1, 1, 2]
    assert sub.num_classes == 3
    again = tc.save_subset(named[[4, 1]], tmp_path / "named", progress=False)
    assert list(again.generation.table.source_ids) == ["e", "b"]
    assert tc.select(again, listed=["b"]).tolist() == [1]
    twice = tc.save_subset(again[[1]], tmp_path / "twice", progress=False)
    assert_same_graph(twice[0], named[1])
    for root in ("few", "named", "twice"):
        report = tc.verify(tmp_path / root, level="full", progress=False)
        assert report.ok, report


def test_the_same_selection_is_opened_another_refused(ds, tmp_path) -> None:
    first = tc.save_subset(ds[[1, 2]], tmp_path / "s", progress=False)
    again = tc.save_subset(ds[[1, 2]], tmp_path / "s", progress=False)
    assert again.generation.manifest.to_bytes() == first.generation.manifest.to_bytes()
    with pytest.raises(StaleCacheError, match=r"source\.selection\.xxh3"):
        tc.save_subset(ds[[1, 3]], tmp_path / "s", progress=False)
    other = tc.save_subset(ds[[1, 3]], tmp_path / "s", on_stale="rebuild", progress=False)
    assert_same_graph(other[1], ds[3])
    assert_same_graph(first[1], ds[2])
    for arguments, message in [
        ((ds[:0], tmp_path / "t"), "empty"),
        ((ds[:2], ds.root), "the store that is selected from"),
        (([1], tmp_path / "t"), "copies from one store"),
    ]:
        with pytest.raises(SettingError, match=message):
            tc.save_subset(*arguments, progress=False)
    with pytest.raises(SettingError, match="shard_size=0"):
        tc.save_subset(ds[:2], tmp_path / "t", shard_size=0, progress=False)


def test_a_smaller_store_is_repaired_from_what_it_has(ds, tmp_path) -> None:
    sub = tc.save_subset(ds[5:15], tmp_path / "s", shard_size=4, progress=False)
    want = [sub[k] for k in range(len(sub))]
    sub.close()
    for name in ("shard-00001.lmdb", "columns.safetensors"):
        path = sub.generation.directory / name
        path.chmod(0o644)
        damaged = bytearray(path.read_bytes())
        damaged[-5] ^= 1
        path.unlink()  # the file may be shared
        path.write_bytes(damaged)
        assert not tc.verify(tmp_path / "s", level="full", progress=False).ok
        assert tc.repair(tmp_path / "s", progress=False).rebuilt == [name]
        sub = tc.PreprocessedDataset(tmp_path / "s")
    for got, graph in zip(sub, want, strict=True):
        assert_same_graph(got, graph)


def degree(graph):
    """A processor of somebody's own."""
    graph = graph.clone()
    graph["gene"].lost = torch.tensor([len(graph["gene"].perturbation_indices)])
    return graph


class Own:
    def process(self, base_graph, sample):
        return degree(tc.Perturbation().process(base_graph, sample))

    def settings(self):
        return {}


def test_a_smaller_store_of_a_processor_of_ones_own(tmp_path) -> None:
    whole = build(tmp_path / "whole", processor=Own(), storage="delta")
    assert not whole.generation.is_structured
    sub = tc.save_subset(
        whole[tc.select(whole, "perturbed_count == 2")], tmp_path / "sub", shard_size=2, progress=False
    )
    for k, position in enumerate(tc.select(whole, "perturbed_count == 2").tolist()):
        assert_same_graph(sub[k], whole[position])
    assert set(sub.columns["perturbed_count"].tolist()) == {2}
    report = tc.verify(tmp_path / "sub", level="full", progress=False)
    assert report.ok, report


def test_an_interrupted_copy_goes_on(ds, tmp_path) -> None:
    """As a killed one leaves it: some shards whole, one half written, no manifest."""
    view = ds[3:23]
    first = tc.save_subset(view, tmp_path / "s", shard_size=4, progress=False)
    manifest, directory = first.generation.manifest, first.generation.directory
    first.close()
    (tmp_path / "s" / "processed" / "manifest.json").unlink()
    (directory / "manifest.json").unlink()
    (directory / "shard-00003.lmdb").unlink()
    (directory / "shard-00004.json").unlink()
    kept = (directory / "shard-00001.lmdb").stat().st_ino
    with pytest.raises(CacheNotFoundError):
        tc.PreprocessedDataset(tmp_path / "s")
    again = tc.save_subset(view, tmp_path / "s", shard_size=4, progress=False)
    assert (directory / "shard-00001.lmdb").stat().st_ino == kept
    assert again.generation.manifest.content_digest == manifest.content_digest
    assert again.generation.manifest.shards == manifest.shards


def test_a_damaged_record_is_not_copied(tmp_path) -> None:
    whole = build(tmp_path / "whole")
    shard = whole.generation.directory / "shard-00001.lmdb"
    at = shard.read_bytes().index(whole.generation.read([9])[0]) + 9
    with shard.open("r+b") as file:  # after its digest was checked: only the record's own checksum is left
        file.seek(at)
        byte = file.read(1)[0] ^ 1
        file.seek(at)
        file.write(bytes([byte]))
    with pytest.raises(CorruptRecordError, match="sample 9"):
        tc.save_subset(whole[[1, 9]], tmp_path / "s", progress=False)
    assert not (tmp_path / "s" / "processed" / "manifest.json").exists()
    assert len(tc.save_subset(whole[[1, 2]], tmp_path / "s", progress=False)) == 2


# Command line


def run(*arguments):
    from torchcell_cache.cli import main

    return main(list(arguments))


def test_select_on_the_command_line(ds, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = f"root={ds.root}"
    assert run("select", root, "where=perturbed_count == 2 and fitness > 0", "out=a.npy", "json=true") == 0
    facts = json.loads(capsys.readouterr().out)
    want = tc.select(ds, "perturbed_count == 2 and fitness > 0")
    assert facts["chosen"] == len(want)
    assert tc.load_indices("a.npy", ds).tolist() == want.tolist()
    assert run("select", root, "n=3", "seed=1", "indices=a.npy", "store=small", "progress=false") == 0
    small = tc.PreprocessedDataset("small")
    chosen = want[tc.select(ds[want], n=3, seed=1)]
    for k in range(3):
        assert_same_graph(small[k], ds[int(chosen[k])])
    assert run("select", root, "genes=[Y001,Y002]", "match=any", "without=Y003") == 0
    assert "nothing written" in capsys.readouterr().out
    assert run("verify", "root=small", "level=full", "progress=false") == 0
    assert run("verify", "root=small", "level=full", "progress=false", "json=true") == 0
    capsys.readouterr()
    for arguments, code, text in [
        ((root,), 2, "needs a condition"),
        ((root, "where=fitnes > 0"), 2, "did you mean 'fitness'"),
        ((root, "where=fitness > 99"), 2, "no sample of 40"),
        ((root, "n=1", "out=a.csv"), 2, "a.npy"),
        ((root, "n=1", "match=some"), 2, "valid: any, all, only"),
        ((root, "wher=1"), 2, "did you mean 'where'"),
        (("root=small", "n=1", "indices=a.npy"), 65, "made for another store"),
        ((root, "n=1", "out=/proc/a.npy"), 73, "/proc"),
    ]:
        assert run("select", *arguments) == code, arguments
        assert text in capsys.readouterr().err, arguments


def test_training_takes_index_files_and_splits(tmp_path) -> None:
    from omegaconf import OmegaConf

    from experiments.train.data import _parts, tiny_source

    ds = tc.build(tmp_path / "s", source=tiny_source(), processor=tc.Perturbation(), progress=False)
    cfg = {"indices": None, "splits": None, "val_share": 0.2, "seed": 0}
    labelled = np.flatnonzero(~np.isnan(ds.columns["fitness"]))
    chosen = tc.select(ds, "perturbed_count > 1")
    tc.save_indices(tmp_path / "a.npy", ds[chosen])
    splits = tc.split_by_perturbation(ds, (0.7, 0.3, 0))
    splits.save(tmp_path / "split")

    def parts(**given):
        return [set(part.tolist()) for part in _parts(OmegaConf.create({**cfg, **given}), ds, labelled)]

    train, val = parts(indices=str(tmp_path / "a.npy"))
    assert train | val == set(chosen.tolist()) & set(labelled.tolist())
    assert not train & val
    train, val = parts(splits=str(tmp_path / "split"))
    assert train == set(splits.train.tolist()) & set(labelled.tolist())
    assert val == set(splits.val.tolist()) & set(labelled.tolist())
    both = parts(splits=str(tmp_path / "split"), indices=str(tmp_path / "a.npy"))
    assert both == [train & set(chosen.tolist()), val & set(chosen.tolist())]


@pytest.mark.parametrize("listed", [5, 2.5, True, b"s1"])
def test_what_is_no_list_is_answered(tmp_path, listed) -> None:
    ds = tc.build(
        tmp_path / "s", source=tc.testing.tiny_source(4), processor=tc.Perturbation(), progress=False
    )
    with pytest.raises(SettingError, match="listed="):
        tc.select(ds, listed=listed)


@pytest.mark.parametrize("chosen", [[[1], [1, 2]], {"a": 1}, object(), "a"])
def test_what_is_neither_view_nor_indices_is_answered(tmp_path, chosen) -> None:
    with pytest.raises(SettingError, match="one row of whole numbers"):
        tc.save_indices(tmp_path / "i.npy", chosen)
