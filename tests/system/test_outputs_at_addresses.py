"""Nothing that writes takes the address of an object store for a directory named ``s3:``."""

import subprocess
import sys
from pathlib import Path

import pytest

import torchcell_cache as tc
from torchcell_cache.core.urls import is_url, local_path

ADDRESSES = (
    "s3://lab/x",
    "gs://lab/x",
    "az://lab/x",
    "file:///lab/x",
    "S3://lab/x",
    "hdfs://lab/x",
    Path("s3://lab/x"),
)
GRAPH = tc.testing.tiny_graph()


def names():
    return {path.name for path in Path.cwd().iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small store, and the directory it lies in."""
    place = tmp_path_factory.mktemp("made")
    tc.build(place / "s", source=tc.testing.tiny_source(12), processor=tc.Perturbation(), progress=False)
    return place


@pytest.fixture
def store(made, monkeypatch):
    monkeypatch.chdir(made)
    return tc.PreprocessedDataset(made / "s")


def _fetch(at):
    from torchcell_cache.sources.neo4j.source import Neo4jCellDataset

    Neo4jCellDataset(at, "bolt://localhost:1", base_graph=GRAPH, username="u", password="secret-one")


def _graph_database(at):
    from torchcell_cache.sources.neo4j.bolt import embedded_bolt

    with embedded_bolt(at):
        pass


WRITERS = {
    "build": lambda ds, at: tc.build(at, source=tc.testing.tiny_source(2), processor=None, progress=False),
    "build, scratch": lambda ds, at: tc.build(
        ds.root + "-2", source=tc.testing.tiny_source(2), processor=None, scratch=at, progress=False
    ),
    "build_part": lambda ds, at: tc.build_part(
        at, task=0, tasks=1, source=tc.testing.tiny_source(2), processor=None, progress=False
    ),
    "finalize": lambda ds, at: tc.finalize(
        at, tasks=1, source=tc.testing.tiny_source(2), processor=None, progress=False
    ),
    "append": lambda ds, at: tc.append(at, tc.testing.tiny_source(2), progress=False),
    "update": lambda ds, at: tc.update(at, tc.testing.tiny_source(2), progress=False),
    "repair": lambda ds, at: tc.repair(at, progress=False),
    "verify": lambda ds, at: tc.verify(at, progress=False),
    "gc": lambda ds, at: tc.gc(at),
    "save_subset": lambda ds, at: tc.save_subset(ds[:5], at, progress=False),
    "save_indices": lambda ds, at: tc.save_indices(f"{at}.npy" if isinstance(at, str) else at, ds[:5]),
    "Splits.save": lambda ds, at: tc.split_random(ds).save(at),
    "pull": lambda ds, at: tc.pull(
        tc.push(ds.root, f"file://{Path.cwd()}/b", progress=False), at, progress=False
    ),
    "stage": lambda ds, at: tc.stage(ds.root, at, progress=False),
    "cache_dir": lambda ds, at: tc.PreprocessedDataset(
        tc.push(ds.root, f"file://{Path.cwd()}/b", progress=False), cache_dir=at
    ),
    "save_base_graph": lambda ds, at: tc.save_base_graph(ds.base_graph, at),
    "rows of a query": lambda ds, at: _fetch(at),
    "graph database": lambda ds, at: _graph_database(at),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_a_writer_refuses_an_address(store, writer, address):
    before = names()
    with pytest.raises(tc.errors.SettingError) as caught:
        WRITERS[writer](store, address)
    assert str(address).rstrip("/") in str(caught.value)
    assert caught.value.fix
    assert names() - before <= {"b"}


COMMANDS = [
    ["select", "root=s", "n=3", "out={}.npy"],
    ["select", "root=s", "n=3", "store={}"],
    ["split", "root=s", "by=random", "out={}"],
    ["stage", "root=s", "to={}"],
    ["info", "root=s", "plot={}.png"],
    ["info", "root=s", "html={}.html"],
    ["bench", "root=s", "seconds=1", "plot={}.png"],
    ["preprocess", "root={}", "source=ecoli", "source.num_samples=2"],
    ["verify", "root={}"],
    ["gc", "root={}"],
    ["status", "root={}"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join((command[0], command[-1])))
def test_a_command_refuses_an_address(store, command, capsys):
    from torchcell_cache.cli import main

    before = names()
    assert main([argument.format("s3://lab/x") for argument in command]) == tc.errors.EXIT_USAGE
    said = capsys.readouterr()
    assert "s3://lab/x" in said.err
    assert "fix: " in said.err
    assert "Traceback" not in said.err
    assert names() == before


def test_the_environment_is_asked_for_a_directory_too(store, monkeypatch):
    monkeypatch.setenv("TORCHCELL_CACHE_DIR", "gs://lab/cache")
    url = tc.push(store.root, f"file://{Path.cwd()}/b", progress=False)
    with pytest.raises(tc.errors.SettingError, match="TORCHCELL_CACHE_DIR=gs://lab/cache"):
        tc.PreprocessedDataset(url)


@pytest.mark.parametrize("path", [None, 7, b"bytes", ["s"], "~nobody-of-this-name/x"])
def test_what_is_no_path_is_refused_by_its_argument(path):
    with pytest.raises(tc.errors.SettingError, match="to="):
        local_path(path, "to")


@pytest.mark.parametrize("path", ["C:/x", "a:b", "./s3:/x", "run: x/y", "/data/s3:/x", "s3", "x:/y"])
def test_paths_with_colons_are_paths(path):
    assert not is_url(path)
    assert local_path(path).is_absolute()


def test_a_fix_for_a_file_address_is_the_path(tmp_path):
    with pytest.raises(tc.errors.SettingError) as caught:
        local_path(f"file://{tmp_path}/a b")
    assert caught.value.fix == f"write it as '{tmp_path}/a b'"


def test_a_new_output_cannot_forget_the_check():
    """Where the home directory is filled in, a path was taken from a caller: that is one function's work."""
    package = Path(tc.__file__).parent
    users = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if ".expanduser()" in path.read_text(encoding="utf-8")
    }
    looks_only = {"cli/completion.py"}
    assert {name for name in users if not name.startswith("sources/")} - looks_only == {"core/urls.py"}
    assert not {name for name in users if name.startswith("sources/neo4j")}


def test_the_refusal_imports_no_library_of_an_object_store():
    script = (
        "import sys\nfrom torchcell_cache.core.urls import local_path\n"
        "try: local_path('s3://a/b')\nexcept Exception as error: print(type(error).__name__)\n"
        "sys.exit(any(name in sys.modules for name in ('fsspec', 's3fs', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "SettingError\n")
