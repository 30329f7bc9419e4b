"""What a shell and its user expect: a first argument without its name, completion, colour on a terminal, watching, JSON."""

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fresh
import pytest
from graphs import cell_graph, random_case

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.cli.completion import candidates
from torchcell_cache.cli.registry import COMMANDS, GROUPS, keys_of, keys_of_choice, with_names

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("habits") / "store"
    source = random_case(cell_graph(), num_samples=20).source()
    tc.build(root, source=source, processor=tc.LazySubgraphRepresentation(), storage="delta", progress=False)
    return root


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("info here", "info root=here"),
        ("info here json=true", "info root=here json=true"),
        ("info root=here", "info root=here"),
        ("info /a=b/c", "info root=/a=b/c"),
        ("info json=true here", "info json=true here"),
        ("info here there", "info root=here there"),
        ("init train there", "init what=train to=there"),
        ("init train to=there", "init what=train to=there"),
        ("completion bash", "completion shell=bash"),
        ("info", "info"),
    ],
)
def test_the_first_argument_needs_no_name(typed: str, meant: str) -> None:
    assert with_names(typed.split()) == meant.split()


def test_every_command_but_those_of_projects_and_shells_takes_its_root_first(
    store: Path, capsys: Any
) -> None:
    for command in COMMANDS.keys() - {"init", "completion", "import-torchcell"}:
        assert with_names([command, "x"]) == [command, "root=x"], command
    assert main(["info", str(store)]) == 0
    assert main(["info", str(store), f"root={store}"]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main(["info", str(store.parent / "stor")]) == 65
    assert "stores in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g, names in GROUPS.items() for n in names if n != "none"]
)
def test_help_has_the_keys_of_what_is_chosen_and_names_the_others(group: str, name: str, capsys: Any) -> None:
    assert main(["preprocess", f"{group}={name}", "--help"]) == 0
    said = capsys.readouterr().out
    for other, places in GROUPS[group].items():
        own = keys_of_choice(group, name)
        for key in keys_of_choice(group, other):
            assert (f"\n{key}: " in said) == (key in own), (key, places)
    assert main(["preprocess", "--help"]) == 0
    said = capsys.readouterr().out
    assert f"\n  {group}={name} " in said
    assert "\nsource." not in said


COMPLETIONS = [
    ("ve", ["verify"]),
    ("", [*COMMANDS, "help"]),
    ("verify level=", ["level=quick", "level=full"]),
    ("verify x lev", ["level="]),
    ("verify root=x json=", ["json=true", "json=false"]),
    ("preprocess x source=t", ["source=table"]),
    ("preprocess x source=table source.unk", ["source.unknown="]),
    ("preprocess x source=table source.unknown=s", ["source.unknown=skip"]),
    ("preprocess x source=ecoli source.unk", []),
    ("split x by=r", ["by=random"]),
    ("init sl", ["slurm"]),
    ("completion ", ["bash", "zsh", "shell=", "debug=", "config="]),
    ("help inf", ["info"]),
    ("nothing ", []),
    ("info root=de", ["root=demo/"]),
    ("info demo/", ["demo/it's/", "demo/ko.csv"]),
    ("info root=demo/k", ["root=demo/ko.csv"]),
    ("info gone/", []),
]


@pytest.mark.parametrize(("line", "found"), COMPLETIONS, ids=[line or "nothing" for line, _ in COMPLETIONS])
def test_what_is_typed_can_be_completed(
    line: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "it's").mkdir(parents=True)
    (tmp_path / "demo" / "ko.csv").touch()
    assert [*candidates(line.split(" "))] == found


def test_keys_that_are_there_are_offered_no_more() -> None:
    offered = [*candidates(["info", "root=x", "json=true", ""])]
    assert {f"{key}=" for key in keys_of("info")} - {"root=", "json="} == set(offered)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "torchcell-cache"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m torchcell_cache "$@"\n')
    program.chmod(0o755)
    env = environment(PATH=f"{tmp_path}:{os.environ['PATH']}")
    made = subprocess.run(
        [program, "completion", shell], capture_output=True, text=True, check=True, env=env
    ).stdout
    (tmp_path / "script").write_text(made)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)
    if shell == "zsh":
        return  # its functions complete on a terminal only: below
    ask = f"""
source {tmp_path}/script
for line in 'torchcell-cache verify x level=' 'torchcell-cache ver' 'torchcell-cache preprocess x sou'; do
  COMP_LINE="$line" COMP_POINT=${{#line}} _torchcell_cache 2>/dev/null
  printf '%s,' "${{COMPREPLY[@]}}"; echo
done
complete -p torchcell-cache
"""
    done = subprocess.run(
        ["bash", "-c", ask], capture_output=True, text=True, check=True, env=env, cwd=tmp_path
    )
    assert done.stdout.splitlines()[:3] == ["quick,full,", "verify,", "source=,"]
    assert "-F _torchcell_cache torchcell-cache" in done.stdout


TYPED = {
    "ver\t x level=q\t": ["verify", "x", "level=quick"],
    "preprocess x sou\tecoli": ["preprocess", "x", "source=ecoli"],
    "help inf\t": ["help", "info"],
    "gone x\t": ["gone", "x"],
    "info root=demo/p\t": ["info", "root=demo/plain/"],
    "info demo/my\t": ["info", "demo/my data/"],
    "info demo/my\\ data/st\t": ["info", "demo/my data/store/"],
    "info root=demo/it\tx": ["info", "root=demo/it's/x"],
}
PROGRAM = """\
#!/bin/sh
case $1 in
  --complete) {python} -m torchcell_cache "$@"; echo >> {place}/asked ;;
  completion) {python} -m torchcell_cache "$@" ;;
  *) printf '%s\\n' "$@" '' >> {place}/ran ;;
esac
"""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_what_a_shell_completes_on_a_terminal_reaches_the_program(shell: str, tmp_path: Path) -> None:
    """Tab by tab, as the documented line in the shell's own file sets it up; names with blanks and quotes too."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    for name in ("demo/plain", "demo/my data/store", "demo/it's"):
        (tmp_path / name).mkdir(parents=True)
    program, ready, asked, ran = (tmp_path / name for name in ("torchcell-cache", "ready", "asked", "ran"))
    program.write_text(PROGRAM.format(python=sys.executable, place=tmp_path))
    program.chmod(0o755)
    start = {"bash": "", "zsh": "autoload -Uz compinit; compinit -u -D\n"}[shell]
    (tmp_path / ".zshrc").write_text(f'{start}eval "$(torchcell-cache completion {shell})"; echo > ready\n')
    command = {"bash": ["bash", "--rcfile", ".zshrc", "-i"], "zsh": ["zsh", "-i"]}[shell]
    env = environment(
        PATH=f"{tmp_path}:{os.environ['PATH']}", ZDOTDIR=str(tmp_path), TERM="xterm", HISTFILE=""
    )
    leader, follower = pty.openpty()
    running = subprocess.Popen(
        ["setsid", "-c", *command], cwd=tmp_path, env=env, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)

    def until(path: Path, lines: int) -> None:
        end = time.monotonic() + 30
        while not path.exists() or path.read_text().count("\n") < lines:
            assert time.monotonic() < end, os.read(leader, 100_000).decode()
            time.sleep(0.02)
        time.sleep(0.2)  # the shell has read it

    try:
        until(ready, 1)
        tabs = 0
        for line, words in TYPED.items():
            *parts, last = f"torchcell-cache {line}".split("\t")
            for part in parts:
                os.write(leader, f"{part}\t".encode())
                until(asked, tabs := tabs + 1)
            ran.unlink(missing_ok=True)
            os.write(leader, f"{last}\r".encode())
            until(ran, len(words) + 1)
            assert ran.read_text().splitlines()[:-1] == words, line
    finally:
        running.kill()
        running.wait()
        os.close(leader)


def on_a_terminal(*arguments: str, **more: str) -> str:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "torchcell_cache", *arguments]
    fresh.Process(command, (0, follower, follower), env=environment(**more)).wait(60)
    os.close(follower)
    said = os.read(leader, 100_000).decode()
    os.close(leader)
    return said


def test_colour_is_for_terminals_that_want_it(store: Path) -> None:
    plain = {"TERM": "xterm", "NO_COLOR": ""}
    assert "\x1b[31;1merror:\x1b[0m" in (said := on_a_terminal("info", "nothing", **plain))
    assert "\x1b[32mcomplete:\x1b[0m" in on_a_terminal("status", str(store), **plain)
    assert "\x1b" not in on_a_terminal("info", "nothing", TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("status", str(store), TERM="dumb", NO_COLOR="")
    done = fresh.run(
        [sys.executable, "-m", "torchcell_cache", "info", "nothing"], text=True, env=environment()
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert "nothing" in said


SLOW = """\
import time
import torch
from torch_geometric.data import Data


def make_source():
    class Graphs(list):
        def __getitem__(self, k):
            time.sleep(0.05)
            return Data(x=torch.full((2,), float(k)))

    return Graphs(range(40))
"""


def test_a_build_is_watched_to_its_end(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    root = tmp_path / "store"
    build = [sys.executable, "-m", "torchcell_cache", "preprocess", str(root), "source=python"]
    build += [
        f"source.file={tmp_path}/slow.py",
        "processor=none",
        "num_workers=0",
        "shard_size=4",
        "progress=false",
    ]
    with (tmp_path / "said").open("w") as out:
        builder = fresh.Process(build, (0, out.fileno(), out.fileno()), env=environment())
    while main(["status", str(root)]) == 65:
        assert builder.poll() is None
    capsys.readouterr()
    assert main(["status", str(root), "watch=true", "seconds=0.1", "json=true"]) == 0
    assert builder.wait(30) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["published"] is None
    assert len({line["build"]["samples"] for line in lines if line["build"]}) > 1
    assert main(["status", str(root), "watch=true"]) == 0
    assert "complete: " in capsys.readouterr().out
    assert main(["status", str(root), "seconds=0"]) == 2


def test_every_result_is_there_as_json(store: Path, tmp_path: Path, capsys: Any) -> None:
    def said(*arguments: str) -> Any:
        assert main([*arguments, "json=true"]) == 0, arguments
        return json.loads(capsys.readouterr().out)

    table = tmp_path / "ko.csv"
    table.write_text("genes,fitness\nY000,1.0\nY001|Y002,0.5\nY003,0.25\n")
    own = str(tmp_path / "own")
    source = ["source=table", f"source.path={table}", f"source.base_graph={store}", "progress=false"]
    made = said("preprocess", own, *source, "num_workers=0")
    assert (made["samples"], made["root"]) == (3, own)
    assert made["bytes"] > 0
    more = said("append", own, *source, "num_workers=0")
    assert (more["samples"], more["recomputed"]) == (6, 3)
    assert said("update", own, *source, "num_workers=0")["samples"] == 3
    assert said("repair", own, "progress=false")["damaged"] == []
    assert said("gc", own, "keep=1")["removed"]
    address = f"file://{tmp_path}/bucket"
    assert said("push", own, f"url={address}", "progress=false")["url"] == address
    digest = tc.PreprocessedDataset(own).content_digest
    pulled = said("pull", str(tmp_path / "pulled"), f"url={address}", "progress=false")
    assert (pulled["content_digest"], pulled["samples"]) == (digest, 3)
    staged = said("stage", own, f"to={tmp_path}/disk", "progress=false")
    assert (staged["content_digest"], Path(staged["root"]).parent) == (digest, tmp_path / "disk")
    split = said("split", str(store), f"out={tmp_path}/split", "by=random", "progress=false")
    assert sum(split["parts"].values()) == split["samples"] == 20
    assert said("select", str(store), "n=3")["chosen"] == 3
    assert said("verify", own, "progress=false")["ok"]
    part = said(
        "preprocess", str(tmp_path / "array"), *source, "num_workers=0", "storage=delta", "task=0", "tasks=1"
    )
    assert (part["task"], part["shards"], part["published"]) == (0, 1, False)
    assert (
        said("preprocess", str(tmp_path / "array"), *source, "storage=delta", "finalize=true", "tasks=1")[
            "samples"
        ]
        == 3
    )
    for name in COMMANDS.keys() - {"completion", "import-torchcell"}:
        assert "json" in keys_of(name), name
