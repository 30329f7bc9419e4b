"""What a message says to type next works as it stands: commands run, packages exist, nothing holds a placeholder in < >."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import fsspec  # noqa: F401 - its registry is emptied below
import pytest

import torchcell_cache as tc
from torchcell_cache import errors
from torchcell_cache.cli import main
from torchcell_cache.cli.registry import COMMANDS
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.remote import bucket
from torchcell_cache.sources.neo4j.source import Neo4jCellDataset

PROJECT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"torchcell-cache (?:(?!  |, then|, or|; |\)$|\)\n)[^\n])*")


def build(root, **settings):
    source = tc.testing.tiny_source(20)
    processor = tc.LazySubgraphRepresentation()
    return tc.build(root, source=source, processor=processor, shard_size=5, progress=False, **settings)


@pytest.fixture
def root(tmp_path):
    """A store whose path needs quotes in a shell."""
    place = tmp_path / "my store's 1"
    build(place, storage="delta")
    return place


def shard(root):
    return next((root / "processed").glob("gen-*/shard-00000.lmdb"))


def damaged(root):
    path = shard(root)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))


def _lost_shard(root):
    shard(root).unlink()
    tc.PreprocessedDataset(root)[0]


def _damaged_shard(root):
    damaged(root)
    tc.PreprocessedDataset(root)[0]


def _lost_columns(root):
    next((root / "processed").glob("gen-*/columns.safetensors")).unlink()
    tc.PreprocessedDataset(root).read_batch([0, 1])


def _append_to_a_gap(root):
    shard(root).unlink()
    tc.append(root, tc.testing.tiny_source(1), progress=False)


def _staged_from_a_gap(root):
    shard(root).unlink()
    tc.stage(root, root.parent / "staged", progress=False)


def _damaged_manifest(root):
    path = root / "processed" / "manifest.json"
    path.chmod(0o644)
    path.write_text("{}")
    tc.PreprocessedDataset(root)


def _locked(root):
    with BuilderLock(root / "processed" / LOCK_NAME):
        tc.gc(root, wait=0.1)


CALLS = {
    "a shard is gone": _lost_shard,
    "a shard is damaged": _damaged_shard,
    "columns are gone": _lost_columns,
    "append to a gap": _append_to_a_gap,
    "stage a gap": _staged_from_a_gap,
    "the manifest is damaged": _damaged_manifest,
    "another writer": _locked,
}


def commands_in(text):
    """The commands of a message, as a shell takes them apart; those with ``...`` are to be completed first."""
    found = []
    for match in COMMAND.finditer(text):
        words = shlex.split(match[0].rstrip(" :"), posix=True)
        assert words[1] in (*COMMANDS, "--help"), text
        if not any("..." in word for word in words):
            assert all("=" in word or word == "--help" for word in words[2:]), text
            found.append(words[1:])
    return found


@pytest.mark.parametrize("what", CALLS)
def test_the_advised_command_works(root, what):
    with pytest.raises(tc.errors.CacheError) as caught:
        CALLS[what](root)
    assert "<root>" not in str(caught.value)
    commands = commands_in(str(caught.value))
    assert commands, str(caught.value)
    for words in commands:
        assert f"root={root}" in words
        assert main(words) == 0, words
    if what != "another writer":
        assert tc.verify(root, "full", progress=False).ok


def test_the_advice_for_an_address_brings_the_store(root, tmp_path, monkeypatch):
    url = tc.push(root, f"file://{tmp_path}/bucket/a b", progress=False)
    monkeypatch.chdir(tmp_path)
    for call in (tc.repair, tc.gc, lambda at: tc.append(at, tc.testing.tiny_source(1), progress=False)):
        with pytest.raises(tc.errors.SettingError) as caught:
            call("s3://lab/some store")
        [words] = commands_in(str(caught.value))
        assert words == ["pull", "url=s3://lab/some store", "root=some store"]
    assert main(["pull", f"url={url}", words[2]]) == 0
    assert len(tc.PreprocessedDataset("some store")) == 20


@pytest.mark.parametrize(
    "arguments", [["info"], ["info", "root=x", "nosuch=1"], ["select", "root=x"], ["nosuch"]]
)
def test_help_that_is_named_exists(arguments, capsys):
    assert main(arguments) == 2
    commands = commands_in(capsys.readouterr().err)
    assert commands
    assert [main(words) for words in commands] == [0] * len(commands)


def test_what_is_removed_by_hand_comes_again(root, tmp_path):
    url = tc.push(root, f"file://{tmp_path}/bucket", progress=False)
    from torchcell_cache.core.hints import repair_hint

    dataset = tc.PreprocessedDataset(url, cache_dir=tmp_path / "a cache")
    command = repair_hint(dataset.generation.directory / "shard-00000.lmdb").partition(", then")[0]
    assert shlex.split(command)[:2] == ["rm", "-r"]
    subprocess.run(shlex.split(command), check=True)
    assert list(tc.PreprocessedDataset(url, cache_dir=tmp_path / "a cache")[3]["gene"].ids_pert) is not None
    assert (
        shlex.split(repair_hint(tmp_path / "s" / "raw" / "gen-1" / "x").partition(", then")[0])[2]
        == f"{tmp_path}/s/raw"
    )


def test_packages_that_are_named_are_those_of_the_extras():
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in errors._PACKAGES.items():
        names = [re.split(r"[<>=~!]", requirement)[0] for requirement in declared[extra]]
        assert packages.split() == names
        assert errors.install_line(extra) == f"pip install {packages}"


LIBRARIES = {"gs": "gcsfs", "az": "adlfs", "s3": "s3fs"}


@pytest.mark.parametrize("protocol", LIBRARIES)
@pytest.mark.parametrize("use", ["open", "push", "pull", "stage", "wait"])
def test_every_use_of_an_address_without_its_library_says_what_to_install(
    root, tmp_path, protocol, use, monkeypatch
):
    monkeypatch.setitem(sys.modules, LIBRARIES[protocol], None)
    monkeypatch.setattr(bucket, "_SYSTEMS", {})
    known = sys.modules["fsspec.registry"]._registry  # what an earlier test of this process has loaded
    for name in [name for name, kind in known.items() if kind.__module__.startswith(LIBRARIES[protocol])]:
        monkeypatch.delitem(known, name)
    url = f"{protocol}://lab/x"
    calls = {
        "open": lambda: tc.PreprocessedDataset(url, cache_dir=tmp_path / "c"),
        "push": lambda: tc.push(root, url, progress=False),
        "pull": lambda: tc.pull(url, tmp_path / "p", progress=False),
        "stage": lambda: tc.stage(url, tmp_path / "st", progress=False),
        "wait": lambda: tc.PreprocessedDataset(url, cache_dir=tmp_path / "c", wait=1),
    }
    with pytest.raises(tc.errors.SettingError) as caught:
        calls[use]()
    assert caught.value.fix == f"pip install {LIBRARIES[protocol]}"


def test_no_fix_holds_a_placeholder_or_an_unpublished_package():
    wrong = []
    for path in sorted((PROJECT / "torchcell_cache").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
                if re.search(r"=<\w+>|torchcell[-_]cache\[", text):
                    wrong.append((path.name, node.lineno, text[:80]))
                for command in re.findall(r"torchcell-cache ([a-z]+) \w+=", text):
                    if command not in COMMANDS:
                        wrong.append((path.name, node.lineno, command))
    assert wrong == []


PLATFORM = """
import sys
import shutil, subprocess, tempfile  # which ask for the platform themselves
sys.platform = sys.argv[1]
import torchcell_cache
try:
    torchcell_cache.build
except ImportError as error:
    print(str(error))
from torchcell_cache.cli import main
sys.exit(main(["info", "root=x"]))
"""


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_another_system_is_told_in_one_sentence(platform):
    done = subprocess.run(
        [sys.executable, "-c", PLATFORM, platform], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    for said in (done.stdout, done.stderr):
        assert said.count("\n") == 1
        assert f"runs on Linux only, this is {platform}" in said


def test_the_login_of_a_database_is_asked_for_in_a_line_to_paste(monkeypatch, tmp_path):
    for name in ("NEO4J_URI", "NEO4J_USER", "NEO4J_USERNAME", "NEO4J_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(tc.errors.SettingError) as caught:
        Neo4jCellDataset(tmp_path, base_graph=tc.testing.tiny_graph())
    shell = shutil.which("bash")
    assert subprocess.run([shell, "-c", caught.value.fix], check=False).returncode == 0
