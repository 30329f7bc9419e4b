"""Files where directories should be, links to nowhere and in circles, names too long: one sentence with the path."""

from pathlib import Path

import pytest

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.sources.neo4j.bolt import embedded_bolt
from torchcell_cache.sources.neo4j.source import Neo4jCellDataset, raw_references

GRAPH = tc.testing.tiny_graph()
LOGIN = {"username": "u", "password": "secret-one", "progress": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("stores")
    dataset = tc.build(
        place / "s",
        source=tc.testing.tiny_source(6),
        processor=tc.Perturbation(),
        shard_size=2,
        progress=False,
    )
    tc.push(place / "s", f"file://{place}/b", progress=False)
    return dataset


def _database(at):
    with embedded_bolt(at):
        pass


BUILD = {"source": tc.testing.tiny_source(2), "processor": tc.Perturbation(), "progress": False}
WRITERS = {
    "build": lambda ds, at: tc.build(at, **BUILD),
    "scratch": lambda ds, at: tc.build(Path(ds.root + "-2"), **BUILD, scratch=at),
    "build_part": lambda ds, at: tc.build_part(at, **BUILD, task=0, tasks=1),
    "cache_dir": lambda ds, at: tc.PreprocessedDataset(f"file://{Path(ds.root).parent}/b", cache_dir=at),
    "save_indices": lambda ds, at: tc.save_indices(f"{at}/i.npy", ds[:2]),
    "save_subset": lambda ds, at: tc.save_subset(ds[:2], at, progress=False),
    "Splits.save": lambda ds, at: tc.split_random(ds).save(at),
    "pull": lambda ds, at: tc.pull(f"file://{Path(ds.root).parent}/b", at, progress=False),
    "push": lambda ds, at: tc.push(ds.root, f"file://{at}", progress=False),
    "stage": lambda ds, at: tc.stage(ds.root, at, progress=False),
    "save_base_graph": lambda ds, at: tc.save_base_graph(GRAPH, at),
    "rows of a query": lambda ds, at: Neo4jCellDataset(at, "bolt://127.0.0.1:9", base_graph=GRAPH, **LOGIN),
    "graph database": lambda ds, at: _database(at),
}
READERS = {
    "open": lambda ds, at: tc.PreprocessedDataset(at),
    "wait": lambda ds, at: tc.PreprocessedDataset(at, wait=0.01),
    "indices": lambda ds, at: tc.PreprocessedDataset(ds.root, indices=f"{at}.npy"),
    "Splits.load": lambda ds, at: tc.Splits.load(at, ds),
    "push": lambda ds, at: tc.push(at, "memory://b", progress=False),
    "pull": lambda ds, at: tc.pull(f"file://{at}", f"{ds.root}-3", progress=False),
    "stage": lambda ds, at: tc.stage(at, f"{ds.root}-4", progress=False),
    "append": lambda ds, at: tc.append(at, tc.testing.tiny_source(1), progress=False),
    "update": lambda ds, at: tc.update(at, tc.testing.tiny_source(1), progress=False),
    "finalize": lambda ds, at: tc.finalize(at, **BUILD, tasks=1),
    "verify": lambda ds, at: tc.verify(at, progress=False),
    "repair": lambda ds, at: tc.repair(at, progress=False),
    "gc": lambda ds, at: tc.gc(at),
    "load_base_graph": lambda ds, at: tc.load_base_graph(at),
    "references": lambda ds, at: raw_references(at),
    "query": lambda ds, at: Neo4jCellDataset(f"{ds.root}-5", query=Path(at), base_graph=GRAPH, **LOGIN),
}


def places(directory):
    """By name: what cannot be made a directory, and the word that says why."""
    (directory / "file").write_text("x")
    (directory / "link").symlink_to(directory / "nowhere" / "deep")
    (directory / "loop").symlink_to(directory / "loop")
    return {
        directory / "file": "is a file",
        directory / "file" / "store": "is a file",
        directory / "file" / "a" / "store": "is a file",
        directory / "link": "does not exist",
        directory / "link" / "store": "does not exist",
        directory / "loop": "symbolic link",
        directory / "loop" / "store": "symbolic link",
        directory / ("x" * 300): "too long",
        directory / "new" / ("x" * 300): "too long",
        f"{directory}/a\0b": "null",
        f"{directory}/\udc80": "surrogate",
        "/proc/nothing/store": "cannot create",
        "/dev/null/store": "ot a directory",
    }


@pytest.mark.parametrize("writer", WRITERS)
def test_no_output_goes_where_none_can_be(store, tmp_path, writer):
    for place, word in places(tmp_path).items():
        if (writer, word) in (("scratch", "does not exist"), ("push", "surrogate")):
            continue  # fine there: nothing is written yet; objects may have any name
        with pytest.raises(tc.errors.CacheError) as caught:
            WRITERS[writer](store, place)
        text = str(caught.value)
        assert word in text or writer == "push", (place, text)  # whose addresses are fsspec's to judge
        assert caught.value.fix, text
        assert len(text) < 1600


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_read_where_nothing_can_be(store, tmp_path, reader):
    for place in places(tmp_path):
        with pytest.raises(tc.errors.CacheError):
            READERS[reader](store, place)


@pytest.mark.parametrize(
    "command", ["info root={s} plot={at}.png", "select root={s} n=2 out={at}.npy", "status root={at}"]
)
def test_commands_say_a_sentence(store, tmp_path, command, capsys):
    for place in [*places(tmp_path)][1:]:
        arguments = [one.format(s=store.root, at=place) for one in command.split(" ")]
        if main(arguments):
            said = capsys.readouterr().err
            assert "fix: " in said
            assert "should not happen" not in said
            assert "[Errno" not in said.partition("fix: ")[0].partition("cannot create directory")[0]


def test_outputs_make_the_directories_they_go_to(store, tmp_path):
    assert tc.save_indices(tmp_path / "a" / "b" / "i.npy", store[:2]).is_file()
    assert main(["info", f"root={store.root}", f"plot={tmp_path}/c/d/p.png", "json=true"]) == 0
    assert (tmp_path / "c" / "d" / "p.png").is_file()
    place = tc.save_base_graph(GRAPH, tmp_path / "e" / "f")
    assert tc.load_base_graph(place)["gene"].node_ids == GRAPH["gene"].node_ids


def test_names_as_long_as_a_file_system_takes(store, tmp_path):
    """Temporary names are longer than the final ones, and must fit too."""
    name = "é" * 120 + ".npy"
    tc.save_indices(tmp_path / name, store[:2])
    assert len(tc.PreprocessedDataset(store.root, indices=tmp_path / name)) == 2


def test_a_base_graph_saved_over_itself(tmp_path):
    """The graph that is written is mapped from the file that is replaced."""
    tc.save_base_graph(GRAPH, tmp_path)
    loaded = tc.load_base_graph(tmp_path)
    edges = loaded["gene", "physical", "gene"].edge_index.tolist()
    for _ in range(2):
        tc.save_base_graph(loaded, tmp_path)
    assert loaded["gene", "physical", "gene"].edge_index.tolist() == edges
    assert tc.load_base_graph(tmp_path)["gene", "physical", "gene"].edge_index.tolist() == edges
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base_graph.json", "base_graph.safetensors"]


def test_what_is_no_graph_is_no_base_graph(tmp_path):
    with pytest.raises(tc.errors.SettingError, match="got list"):
        tc.save_base_graph([GRAPH], tmp_path / "x")
    assert not (tmp_path / "x").exists()


NAMED_BY_MORE = {"save_indices", "indices", "scratch", "push", "pull", "cache_dir", "graph database", "query"}
"""Where the path is part of a longer one, or empty stands for a default."""


@pytest.mark.parametrize("name", sorted({*WRITERS, *READERS} - NAMED_BY_MORE))
def test_an_empty_path_is_not_the_directory_one_stands_in(name, store, tmp_path, monkeypatch) -> None:
    """What an unset variable of a shell leaves."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tc.errors.SettingError, match="is empty"):
        (WRITERS | READERS)[name](store, "")
    assert not list(tmp_path.iterdir())
