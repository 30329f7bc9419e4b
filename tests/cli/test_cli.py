"""The command line: what it does, what it says, and with which exit code."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fresh
import pytest
import torch
from graphs import cell_graph, random_case

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.cli.registry import GROUPS, config_text
from torchcell_cache.cli.settings import read_settings
from torchcell_cache.errors import UnsafeContentError
from torchcell_cache.graph.files import save_base_graph
from torchcell_cache.store.manifest import read_manifest
from torchcell_cache.testing import assert_same_graph

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = "\n".join(
    ["genes,fitness,size", "Y000,1.0,2", "Y001|Y002,0.5,3", "Y003,0.25,4", "Y004|Y001,0.75,5", "Y005,0.0,6"]
)


@pytest.fixture
def table(tmp_path: Path) -> list[str]:
    """Arguments of a table source."""
    save_base_graph(cell_graph(), tmp_path)
    (tmp_path / "ko.csv").write_text(TABLE)
    return [
        "source=table",
        f"source.path={tmp_path}/ko.csv",
        f"source.base_graph={tmp_path}",
        "progress=false",
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stores") / "good"
    source = random_case(cell_graph(), num_samples=20).source()
    tc.build(
        root,
        source=source,
        processor=tc.LazySubgraphRepresentation(),
        shard_size=6,
        storage="delta",
        progress=False,
    )
    return root


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return fresh.run(command(*arguments), capture_output=True, text=True, check=False, env=environment())


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torchcell_cache", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from torchcell_cache.cli import main; code = main(['--help']) or main(['verify', '--help']);"
        "heavy = {'torch', 'hydra', 'numpy', 'lmdb'} & set(sys.modules); print(heavy, file=sys.stderr);"
        "sys.exit(code or bool(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "preprocess",
        "verify",
        "repair",
        "status",
        "info",
        "gc",
        "75",
        "level: quick",
        "source=table",
    ):
        assert word in done.stdout


def test_every_key_is_explained(capsys) -> None:
    for name in ("preprocess", "info", "verify", "repair", "status", "gc"):
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert "root: (required)" in text
        assert "defaults" not in text
    for group, names in GROUPS.items():
        for name in names:
            assert config_text(f"{group}/{name}").startswith("# ")
    assert main([]) == 2
    assert main(["help", "gc"]) == 0
    assert main(["--version"]) == 0
    assert tc.__version__ in capsys.readouterr().out


def test_the_whole_way(table: list[str], tmp_path: Path, capsys) -> None:
    root = tmp_path / "store"
    assert main(["preprocess", f"root={root}", *table, "storage=delta", "shard_size=2", "num_workers=0"]) == 0
    digest = read_manifest(root).content_digest
    assert f"5 samples as 'delta', 3 shards, content digest {digest}" in capsys.readouterr().out
    dataset = tc.PreprocessedDataset(root)
    source = tc.PerturbationTable.from_csv(tmp_path / "ko.csv", cell_graph())
    for k in range(5):
        assert_same_graph(dataset[k], tc.LazySubgraphRepresentation()(source[k]))
    assert dataset.phenotype_info == ["fitness", "size"]
    assert main(["verify", f"root={root}", "level=full", *table, "num_samples=3"]) == 0
    assert "3 samples against the source" in capsys.readouterr().out
    shard = root / "processed" / read_manifest(root).generation / "shard-00001.lmdb"
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["verify", f"root={root}"]) == 65
    said = capsys.readouterr()
    assert "shard-00001.lmdb: has" in said.out
    assert f"fix: torchcell-cache repair root={root}" in said.err
    assert main(["verify", f"root={root}", "json=true"]) == 65
    assert json.loads(capsys.readouterr().out)["problems"][0]["shard"] == 1
    assert main(["repair", f"root={root}", "shard=1", "progress=false"]) == 0
    assert "made 1 files again" in capsys.readouterr().out
    assert main(["verify", f"root={root}", "level=full", "progress=false"]) == 0
    assert read_manifest(root).content_digest == digest
    assert main(["gc", f"root={root}", "keep=1"]) == 0
    assert "kept gen-" in (said := capsys.readouterr()).err, "it is open in this process"
    assert said.out.endswith("nothing to remove\n")
    del dataset
    gc.collect()
    assert main(["gc", f"root={root}", "keep=1", "dry_run=true"]) == 0
    assert main(["gc", f"root={root}", "keep=1"]) == 0
    assert main(["gc", f"root={root}", "keep=1"]) == 0
    out = capsys.readouterr().out
    assert "would remove gen-" in out
    assert "\nremoved gen-" in out
    assert out.endswith("nothing to remove\n")


def test_a_stale_store_is_refused_and_rebuilt_when_told(table: list[str], tmp_path: Path, capsys) -> None:
    build = ["preprocess", f"root={tmp_path}/store", *table, "num_workers=0", "storage=delta"]
    assert main([*build, "source.phenotypes=[fitness]"]) == 0
    assert main([*build, "source.phenotypes=[size]", "processor.gpr=rule"]) == 65
    said = capsys.readouterr().err
    assert "processor.settings.gpr: 'any' -> 'rule'" in said
    assert "source.phenotypes" in said
    assert "on_stale=rebuild" in said
    assert main([*build, "source.phenotypes=size", "processor=perturbation", "on_stale=rebuild"]) == 0
    assert tc.PreprocessedDataset(tmp_path / "store").phenotype_info == ["size"]
    assert main(["verify", f"root={tmp_path}/store", *table, "source.phenotypes=[fitness]"]) == 65
    assert "built from something else" in capsys.readouterr().out


def test_info_shows_the_store(store: Path, capsys) -> None:
    assert main(["info", f"root={store}"]) == 0
    text = capsys.readouterr().out
    manifest = read_manifest(store)
    for word in (
        manifest.content_digest,
        manifest.digest,
        manifest.generation,
        "20 as 'delta' (structured records), 4 shards of 6",
        "LazySubgraphRepresentation(gpr='any'",
        "gene|physical|gene                20 edges",
        "bytes per sample",
        "removed_edges: min",
        "fitness: min",
        "without a value",
        "###",
        "torch_geometric",
        "values: float32[",
    ):
        assert word in text
    assert main(["info", f"root={store}", "json=true", "bins=3"]) == 0
    facts = json.loads(capsys.readouterr().out)
    removed = tc.PreprocessedDataset(store).columns["removed_edges"]
    assert sum(facts["histograms"]["removed_edges"]["counts"]) == 20
    assert facts["histograms"]["removed_edges"]["max"] == removed.max()
    assert facts["bytes"]["records"] == sum(s.file.size for s in manifest.shards)
    assert facts["fingerprint"] == manifest.fingerprint
    assert facts["schema"]["phenotypes"] == ["fitness", "size"]


def test_info_of_other_kinds_of_stores(tmp_path: Path, capsys) -> None:
    from torch_geometric.data import Data

    tc.build(
        tmp_path / "a", source=[Data(x=torch.ones(2), y=torch.tensor([k])) for k in range(4)], progress=False
    )
    assert main(["info", f"root={tmp_path}/a"]) == 0
    text = capsys.readouterr().out
    assert "fields of layout" in text
    assert "x, y" in text
    assert "y: min 0, median 1.5, mean 1.5, max 3" in text
    tc.build(tmp_path / "b", source=[], allow_empty=True, progress=False)
    assert main(["info", f"root={tmp_path}/b"]) == 0
    assert main(["verify", f"root={tmp_path}/b", "level=full"]) == 0


def test_info_draws(store: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert main(["info", f"root={store}", f"plot={tmp_path}/a.png"]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert main(["info", f"root={store}", f"plot={tmp_path}/a.doc"]) == 2
    assert "png" in capsys.readouterr().err
    assert main(["info", f"root={store}", f"plot={tmp_path}/none/a.png"]) == 0
    assert (tmp_path / "none" / "a.png").is_file()


def test_info_without_matplotlib_says_what_to_install(
    store: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert main(["info", f"root={store}", f"plot={tmp_path}/a.png"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


USAGE = {
    "unknown command": (["verfy"], "did you mean 'verify'?"),
    "no such command": (["zzz"], "valid: init, preprocess, import-torchcell, append, update, info"),
    "unknown key": (["verify", "root=x", "levl=full"], "did you mean 'level'?"),
    "unknown source key": (
        ["preprocess", "root=x", "source=ecoli", "source.sed=1"],
        "did you mean 'source.seed'?",
    ),
    "misspelt source": (
        ["preprocess", "root=x", "source=ecol"],
        "did you mean 'ecoli'? valid: ecoli, ",
    ),
    "misspelt processor": (["preprocess", "root=x", "source=ecoli", "processor=lzy"], "did you mean 'lazy'?"),
    "misspelt storage": (["preprocess", "root=x", "source=ecoli", "storage=detla"], "did you mean 'delta'?"),
    "misspelt level": (["verify", "root=x", "level=ful"], "did you mean 'full'? valid: quick, full"),
    "misspelt rule": (["preprocess", "root=x", "source=ecoli", "processor.gpr=all"], "valid: any, rule"),
    "no source": (["preprocess", "root=x"], "source= one of ecoli, "),
    "no root": (["info"], "info needs root=..."),
    "no path": (["preprocess", "root=x", "source=table"], "needs source.path=..., source.base_graph=..."),
    "no equals sign": (["info", "here", "there"], "not of the form key=value"),
    "not a number": (["preprocess", "root=x", "source=ecoli", "num_workers=two"], "is not a whole number"),
    "true is no number": (["repair", "root=x", "shard=true"], "is not a whole number"),
    "not a bool": (["info", "root=x", "json=1"], "is not true or false"),
    "several values": (["verify", "root=x", "seed=1,2"], "several values"),
    "added key": (["verify", "root=x", "+new=1"], "cannot be added"),
    "removed key": (["verify", "~root=x"], "cannot be added or removed"),
    "hydra's own": (["verify", "root=x", "hydra.run.dir=/tmp"], "cannot be added"),
    "bad interpolation": (["info", "root=${nothing}"], "cannot be resolved"),
    "no config": (["info", "config=/none.yaml"], "no such file"),
    "dashes": (["info", "--root", "x"], "root=..., without dashes"),
    "dashes and equals": (["info", "--root=x"], "did you mean 'root'?"),
    "a key of the source": (
        ["preprocess", "x", "source=ecoli", "samples=3"],
        "did you mean 'source.num_samples'?",
    ),
    "a key of another source": (
        ["preprocess", "x", "source=anndata", "source.path=x.h5ad"],
        "preprocess source=anndata processor=lazy --help",
    ),
    "what the source needs": (
        ["preprocess", "x", "source=table"],
        "preprocess source=table processor=lazy --help",
    ),
    "root twice": (["info", "x", "root=y"], "fix: leave one of them out\n"),
    "missing table": (
        ["preprocess", "root=x", "source=table", "source.path=/none/a.csv", "source.base_graph=ecoli"],
        "there is no directory /none",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), USAGE.values(), ids=USAGE.keys())
def test_mistakes_are_answered_with_what_is_valid(arguments, text, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert text in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def changed(arguments: list[str], argument: str) -> list[str]:
    """The arguments with one of them in place of that of the same key."""
    key = argument.partition("=")[0]
    return [*(one for one in arguments if one.partition("=")[0] != key), argument]


def test_missing_files_name_what_is_there(table: list[str], tmp_path: Path, store: Path, capsys) -> None:
    arguments = ["preprocess", f"root={tmp_path}/s", *table]
    assert main(changed(arguments, f"source.path={tmp_path}/k.csv")) == 2
    assert "did you mean 'ko.csv'?" in capsys.readouterr().err
    assert main(changed(arguments, f"source.base_graph={tmp_path}/none")) == 2
    assert "one of ecoli, yeast, or the directory of tc.save_base_graph" in capsys.readouterr().err
    assert main([*arguments, "source.perturbed=gene"]) == 2
    assert "it has ['genes', 'fitness', 'size']" in capsys.readouterr().err
    assert main(["info", f"root={store.parent}/bad"]) == 65
    said = capsys.readouterr().err
    assert "torchcell-cache preprocess" in said
    assert f"stores in {store.parent}: good" in said
    assert main(["info", table[1].partition("=")[2]]) == 65
    assert "ko.csv (it is a file); fix: the directory of a store" in capsys.readouterr().err
    assert main(["repair", f"root={store}", "shard=9"]) == 2
    assert "shards 0 to 3" in capsys.readouterr().err


def test_a_store_can_lend_its_base_graph(table: list[str], tmp_path: Path, store: Path) -> None:
    given = [*changed(table, f"source.base_graph={store}"), "num_workers=0", "storage=delta"]
    assert main(["preprocess", f"root={tmp_path}/s", *given]) == 0
    assert_same_graph(tc.PreprocessedDataset(tmp_path / "s").base_graph, cell_graph())


HOSTILE = [
    "source={_target_: os.system}",
    "source._target_=os.system",
    "+source._target_=os.system",
    "processor={_target_: os.system, command: id}",
    "_target_=os.system",
    "root=${oc.create:{_target_: os.system}}",
    "source.settings={_target_: os.system}",
    "source.settings={a: [{b: {_target_: os.system}}]}",
    "++source.name._target_=builtins.eval",
]


@pytest.mark.parametrize("argument", HOSTILE)
def test_a_target_is_refused_wherever_it_stands(argument: str, capsys, tmp_path: Path) -> None:
    given = ["preprocess", f"root={tmp_path}/s", "source=python", f"source.file={tmp_path}/none.py", argument]
    assert main(given) == 65
    assert "classes come from a fixed list" in capsys.readouterr().err
    config = tmp_path / "c.yaml"
    config.write_text("root: x\nsource: ecoli\nextra:\n  - deep:\n      _target_: os.system\n")
    with pytest.raises(UnsafeContentError):
        read_settings("preprocess", [f"config={config}"])


def test_a_target_from_the_environment_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("HOSTILE", "_target_")
    with pytest.raises(UnsafeContentError):
        read_settings("info", ["root=${oc.env:HOSTILE}"])


def test_config_files_hold_settings_but_no_code(tmp_path: Path, capsys) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "root: here\nsource: ecoli\nsource.num_samples: 7\nprocessor.gpr: rule\nstorage: delta\n"
    )
    settings = read_settings("preprocess", [f"config={config}", "storage=full", "source.seed=3"])
    assert (settings["root"], settings["storage"]) == ("here", "full")
    assert settings["source"] == {"num_samples": 7, "seed": 3, "self_loops": False}
    assert settings["processor"] == {"gpr": "rule", "node_type": None, "statistics": "measured"}
    config.write_text("root: here\nsource: python\nsource.file: evil.py\n")
    assert main(["preprocess", f"config={config}"]) == 65
    assert "can only be named on the command line" in capsys.readouterr().err
    config.write_text("root: !!python/object/apply:os.system ['id']\n")
    assert main(["preprocess", f"config={config}"]) == 2
    config.write_text("rot: here\n")
    assert main(["info", f"config={config}"]) == 2
    assert "did you mean 'root'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "sp ace",
        "é 中文",
        "a=b",
        "a(b)[c]{d}",
        "it's",
        'quo"te',
        "x#y",
        "back\\slash",
        "12",
        "null1",
        "a,b",
        "end\\",
    ],
)
def test_roots_may_have_any_name(name: str, tmp_path: Path) -> None:
    assert read_settings("info", [f"root={tmp_path}/{name}"])["root"] == f"{tmp_path}/{name}"
    assert read_settings("info", [f"root={name}"])["root"] == name


def test_interpolations_and_quotes_work(monkeypatch) -> None:
    monkeypatch.setenv("STORE", "/data")
    assert read_settings("info", ["root=${oc.env:STORE}/x"])["root"] == "/data/x"
    assert read_settings("info", ["root='a b'"])["root"] == "a b"
    given = ["root=x", "source=table", "source.path=p", "source.base_graph=g", "source.phenotypes=[a,'b c']"]
    assert read_settings("preprocess", given)["source"]["phenotypes"] == ["a", "b c"]


PYTHON = """
import time
import torch
from torch_geometric.data import Data


def make_source(seconds=0.0, count=40):
    return Graphs(seconds, count)


class Graphs:
    base_graph = None

    def __init__(self, seconds, count):
        self.seconds, self.count = seconds, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        time.sleep(self.seconds)
        return Data(x=torch.full((2,), float(index)))

    def identity(self):
        return {"class": "Graphs", "count": self.count}


def make_processor(factor=2):
    return Times(factor)


class Times:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, data):
        return Data(x=data.x * self.factor)
"""


def test_sources_and_processors_of_ones_own(tmp_path: Path, capsys) -> None:
    file = tmp_path / "my_graphs_of_test_cli.py"
    file.write_text(PYTHON)
    own = ["source=python", f"source.file={file}", "source.settings={count:5}", "progress=false"]
    own += ["processor=python", f"processor.file={file}", "processor.settings={factor:3}"]
    assert main(["preprocess", f"root={tmp_path}/s", "num_workers=0", *own]) == 0
    dataset = tc.PreprocessedDataset(tmp_path / "s")
    assert [graph.x.tolist() for graph in dataset] == [[3.0 * k] * 2 for k in range(5)]
    assert main(["verify", f"root={tmp_path}/s", *own]) == 0
    assert main(["verify", f"root={tmp_path}/s", *changed(own, "processor.settings={factor:2}")]) == 65
    assert main(["verify", f"root={tmp_path}/s", *own[:4]]) == 2
    shard = next((tmp_path / "s").rglob("shard-00000.lmdb"))
    shard.unlink()
    assert main(["repair", f"root={tmp_path}/s", "progress=false"]) == 2
    assert main(["repair", f"root={tmp_path}/s", *own]) == 0
    assert main(["verify", f"root={tmp_path}/s", "level=full"]) == 0
    capsys.readouterr()
    assert main(["preprocess", f"root={tmp_path}/t", *own, "source.name=make_sauce"]) == 2
    assert "did you mean 'make_source'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "beside"), [("{}.txt", ""), ("{}.txt", "{}.py"), ("{}.py", "{}/__init__.py")]
)
def test_no_other_file_is_read_in_place_of_a_python_file(named, beside, tmp_path: Path, capsys) -> None:
    files = [tmp_path / path.format(f"alone_{tmp_path.name}") for path in (named, beside) if path]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("def make_source():\n    raise KeyError")
    assert main(["preprocess", f"root={tmp_path}/s", "source=python", f"source.file={files[0]}"]) == 2
    said = capsys.readouterr().err
    assert "KeyError" not in said
    assert "is not a Python file" in said or "is the name of another module" in said


@pytest.mark.parametrize(
    "words", ["help", "--help", "help help", "help --help", "--help --help", "-h -h", "help -h --help"]
)
def test_help_may_be_asked_for_twice(words: str, capsys) -> None:
    assert main(words.split()) == 0
    assert "preprocess" in capsys.readouterr().out
    assert main([*words.split(), "info"]) == 0
    assert "torchcell-cache info" in capsys.readouterr().out


def test_a_build_is_watched_killed_interrupted_and_resumed(tmp_path: Path, capsys) -> None:
    """From other processes, as a user would: SIGKILL, then Ctrl-C, then to the end."""
    file = tmp_path / "slow_graphs_of_test_cli.py"
    file.write_text(PYTHON)
    root = tmp_path / "s"
    build = [
        "preprocess",
        f"root={root}",
        "source=python",
        f"source.file={file}",
        "processor=none",
        "num_workers=0",
    ]
    build += ["storage=full", "shard_size=4"]
    assert main(["status", f"root={root}"]) == 65
    capsys.readouterr()

    told = tmp_path / "told"

    def start() -> fresh.Process:
        slow = [*build, "source.settings={seconds:0.05}"]
        with told.open("w") as file:
            return fresh.Process(command(*slow), (0, file.fileno(), file.fileno()), env=environment())

    def wait_for_shards(process: fresh.Process, count: int) -> None:
        while len(list(root.glob("processed/gen-*/shard-*.json"))) < count:
            assert process.poll() is None, told.read_text()
            time.sleep(0.01)

    process = start()
    wait_for_shards(process, 2)
    assert main(["status", f"root={root}"]) == 0
    said = capsys.readouterr().out
    assert "building: " in said
    assert f"pid {process.pid}" in said
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert main(["status", f"root={root}"]) == 75
    said = capsys.readouterr().out
    assert f"the builder (pid {process.pid} on" in said
    assert "is dead" in said
    assert "run the same command again" in said
    assert "/10 shards finished" in said
    process = start()
    wait_for_shards(process, 4)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 75, told.read_text()
    assert "stopped cleanly by SIGINT" in told.read_text()
    assert "to continue: torchcell-cache preprocess root=" in told.read_text()
    assert "Traceback" not in told.read_text()
    assert main(["status", f"root={root}", "json=true"]) == 75
    facts = json.loads(capsys.readouterr().out)
    assert facts["build"]["state"] == "interrupted"
    assert facts["unfinished"][0]["shards"] == 10
    assert main([*build, "progress=false"]) == 0
    assert len(tc.PreprocessedDataset(root)) == 40
    capsys.readouterr()
    assert main(["status", f"root={root}"]) == 0
    assert capsys.readouterr().out.startswith("complete: gen-")


def test_ctrl_c_before_the_build_begins(tmp_path: Path, capsys, request) -> None:
    # As in a process of its own: what ran before may have left another handler, and then this is no Ctrl-C.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = tmp_path / "stopped_of_test_cli.py"
    file.write_text("def make_source():\n    raise KeyboardInterrupt\n")
    arguments = ["preprocess", f"root={tmp_path}/s", "source=python", f"source.file={file}"]
    assert main(arguments) == 75
    said = capsys.readouterr().err
    assert f"to continue: torchcell-cache preprocess root={tmp_path}/s" in said
    file.write_text("def make_source():\n    import os, signal; os.kill(os.getpid(), signal.SIGTERM)\n")
    del sys.modules["stopped_of_test_cli"]
    assert main(arguments) == 75


def test_what_cannot_be_written_is_73(table: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    for root in ("file/store", "file"):
        assert main(["preprocess", f"root={tmp_path}/{root}", *table, "num_workers=0", "storage=delta"]) == 73
        said = capsys.readouterr().err
        assert "error: " in said
        assert "Traceback" not in said


def test_surprises_have_no_traceback_unless_asked_for(tmp_path: Path, capsys, monkeypatch) -> None:
    def broken(root: str, **settings: object) -> None:
        print(1 / len(root[:0]))

    monkeypatch.setattr("torchcell_cache.cli.commands.gc", broken)
    assert main(["gc", f"root={tmp_path}/s"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "debug=true" in said
    assert "Traceback" not in said
    assert main(["gc", f"root={tmp_path}/s", "debug=true"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_a_users_own_source_raises_is_answered(tmp_path: Path, capsys) -> None:
    file = tmp_path / "wrong_of_test_cli.py"
    file.write_text(PYTHON.replace('return {"class": "Graphs", "count": self.count}', "return 1 / 0"))
    arguments = ["preprocess", f"root={tmp_path}/s", "source=python", f"source.file={file}"]
    arguments.append("processor=none")
    assert main(arguments) == 2
    assert "asked what it is, raised ZeroDivisionError" in capsys.readouterr().err
    assert main([*arguments, "source.settings={cont:3}"]) == 2
    assert "make_source() raised TypeError" in capsys.readouterr().err
    for number, line in enumerate(
        ("import sys; sys.exit(5)", "raise GeneratorExit", "def f(:", "import none_such")
    ):
        ends = tmp_path / f"ends_{number}_of_test_cli.py"
        ends.write_text(line)
        assert main([*(a for a in arguments if ".file" not in a), f"source.file={ends}"]) == 2
        assert f"{ends.name}: make_source() raised " in capsys.readouterr().err


def test_the_installed_program_in_a_process_of_its_own(store: Path, tmp_path: Path) -> None:
    done = run("verify", f"root={store}", "level=full")
    assert (done.returncode, "no problem found" in done.stdout) == (0, True), done.stderr
    done = run("verify", f"root={tmp_path}")
    assert done.returncode == 65
    assert done.stderr.startswith("error: no complete store at")
    done = run("preprocess", "root=x", "source=ecoli", "storge=full")
    assert (done.returncode, "did you mean 'storage'?" in done.stderr) == (2, True)
    pipe = subprocess.Popen(
        command("info", f"root={store}"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert pipe.stdout is not None
    assert pipe.stderr is not None
    pipe.stdout.close()  # a reader that has had enough
    assert pipe.stderr.read() == b""
    assert pipe.wait() == 0
    pipe.stderr.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("preprocess task=5 tasks=3", "expected task=0 to task=2"),
        ("preprocess finalize=true tasks=0", "tasks=0"),
        ("preprocess num_workers=-1", "num_workers=-1: expected a whole number from 0 on"),
        ("preprocess shard_size=0", "shard_size=0: expected a whole number from 1 on"),
        ("append", "no complete store"),
        ("update", "no complete store"),
    ],
)
def test_what_is_wrong_is_said_before_a_source_is_read(tmp_path, monkeypatch, capsys, command, said) -> None:
    monkeypatch.delenv("TORCHCELL_CACHE_YEAST", raising=False)  # reading this source fails
    name, *keys = command.split()
    assert main([name, f"root={tmp_path}", "source=yeast", *keys]) != 0
    assert said in capsys.readouterr().err
